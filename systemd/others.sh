# shellcheck shell=bash
# Sourced by install.sh, run by server_status.py: what else renews the key on this machine, found by what
# it runs; and how it is moved away and put back.

readonly UNIT_DIRS=(/etc/systemd/system /run/systemd/system /usr/local/lib/systemd/system
    /usr/lib/systemd/system /lib/systemd/system)
readonly CRON_FILES=(/etc/crontab /etc/anacrontab /etc/cron.d/* /var/spool/cron/crontabs/*
    /var/spool/cron/tabs/* /var/spool/cron/*)
readonly CRON_SCRIPTS=(/etc/cron.hourly/* /etc/cron.daily/* /etc/cron.weekly/* /etc/cron.monthly/*)
readonly COMMENT='# moved away by webkassa-key-updater: ' # before a line of a crontab
# Links that our own units' [Install] makes
readonly OUR_LINKS='@(timers.target.wants/webkassa-key-@(update|heal|boot|net).timer|sockets.target.wants/webkassa-key-renew.socket)'

# Print what is found, a line each: kind, path and a remark, with tabs between them.
#   unit     a unit file that runs an updater, or bears the name of one of ours: moved
#   dropins  a folder of drop-ins for such a unit of our name: moved
#   link     a link that starts one of these: removed
#   line     a line of a crontab, as file:number: becomes a comment
#   look     something that does more than run an updater: not touched
find_others() {
    find_other_units | sort --unique --field-separator=$'\t' --key=1,2
    find_other_lines
}

# Does this command run an updater? One of its words must be named like one: the shop's own
# application has webkassa in its command, too
runs_updater() {
    local word base name words
    [[ ${1,,} == *webkassa* && $1 != *journalctl* ]] || return 1
    read -ra words <<< "${1//[\"\';&|()<>]/ }"
    for word in "${words[@]}"; do
        base=${word##*/}
        name=${base,,}
        if [[ $name == *webkassa* && $name =~ key|token && $name =~ updat|renew|refresh|rotat &&
            $name != *.@(env|conf|ini|json|ya?ml|toml|log|txt|lock|pid|sock|md) ]]; then
            printf '%s' "${base//[^[:print:]]/?}" # the rest may hold secrets
            return
        elif [[ ${word,,} =~ ^https?://[^/]*webkassa[^/]*/.*authorize ]]; then
            printf 'a login at Webkassa'
            return
        fi
    done
    return 1
}

find_other_units() {
    local file name word lines all count
    # Bearing our names
    for name in "${UNITS[@]}"; do
        # shellcheck disable=SC2153 # of common.sh
        file=$UNIT_DIR/$name
        if [[ -e $file || -L $file ]] && ! is_ours "$file"; then
            list_unit "$file" "has the name of one of ours"
        fi
    done
    # Running an updater
    while read -r file; do
        ! is_ours "$file" && [[ ${file%/*} != */webkassa-key-*.d ]] || continue
        [[ $(readlink -f "${file%/*}") == "${file%/*}" ]] || continue # /lib is a link to /usr/lib
        lines=$(commands_of "$file" ExecStart) all=$(commands_of "$file" 'Exec[A-Za-z]*') count=0
        word=$(runs_updater "${all//$'\n'/ }") || continue
        while read -r line; do
            [[ -z $line ]] || runs_updater "$line" > /dev/null || count=$((count + 1))
        done <<< "$lines"
        if [[ $file == *.service && $lines ]] && ((count == 0)) && [[ $file != /usr/lib/* ]]; then
            list_unit "$file" "runs $word"
        else
            printf 'look\t%s\truns %s beside other things\n' "$file" "$word"
        fi
    done < <(grep --recursive --files-with-matches --no-messages --ignore-case \
        --include='*.service' --include='*.conf' webkassa "${UNIT_DIRS[@]}")
    # Started by a link that is not of our [Install]: at every boot, say
    for file in "$UNIT_DIR"/*.{wants,requires,upholds}/webkassa-key-*; do
        name=${file##*/}
        # shellcheck disable=SC2053 # a pattern
        if [[ -L $file && " ${UNITS[*]} " == *" $name "* && ${file#"$UNIT_DIR/"} != $OUR_LINKS ]]; then
            printf 'link\t%s\tstarts %s\n' "$file" "$name"
        fi
    done
}

# The values of a unit's directives; lines that end in \ go on
commands_of() { # file, name of the directive as a pattern
    sed --quiet --regexp-extended ":a; /\\\\$/ { N; s/\\\\\n/ /; ta }
        s/^[[:blank:]]*$2[[:blank:]]*=//p" "$1" 2> /dev/null || true
}

# A unit with all that starts it
list_unit() { # file, remark
    local name=${1##*/} file starter
    printf 'unit\t%s\t%s\n' "$1" "$2"
    if [[ -d $1.d && " ${UNITS[*]} " == *" $name "* ]]; then
        printf 'dropins\t%s\tchanges it\n' "$1.d"
    fi
    for file in "$UNIT_DIR"/*.{wants,requires,upholds}/"$name"; do
        [[ ! -L $file ]] || printf 'link\t%s\tstarts %s\n' "$file" "$name"
    done
    [[ $name == *.service ]] || return 0
    for starter in "${1%.service}".{timer,path} $(grep --files-with-matches --no-messages \
        --line-regexp "Unit=$name" "$UNIT_DIR"/*.{timer,path}); do
        if [[ -e $starter ]] && ! is_ours "$starter"; then
            list_unit "$starter" "starts $name"
        fi
    done
}

find_other_lines() {
    local file word line number
    for file in "${CRON_FILES[@]}"; do
        if [[ ! -f $file || ! -r $file ]] || ! is_read_by_cron "$file"; then
            continue
        elif [[ -L $file ]]; then
            [[ $file == /etc/* ]] || continue # users write to the spool
            file=$(readlink -f "$file")
        fi
        number=0
        while IFS= read -r line || [[ $line ]]; do
            number=$((number + 1))
            [[ ! $line =~ ^[[:blank:]]*# ]] || continue
            if word=$(runs_updater "$line"); then
                printf 'line\t%s:%s\truns %s\n' "$file" "$number" "$word"
            fi
        done < "$file"
    done
    for file in "${CRON_SCRIPTS[@]}"; do
        [[ -f $file && -r $file && -x $file ]] || continue
        if word=$(runs_updater "$(grep --invert-match '^[[:blank:]]*#' "$file" | tr '\n' ' ')"); then
            printf 'look\t%s\truns %s\n' "$file" "$word"
        fi
    done
}

is_read_by_cron() { # not what an editor or a package left behind
    [[ ${1##*/} != @(.*|*~|*.bak|*.old|*.orig|*.disabled|*.dpkg-*|*.rpm*|*.save) ]]
}

# What is listed and at work now
at_work() { # the list
    local kind path unit pid words word
    while IFS=$'\t' read -r kind path _; do
        unit=${path##*/}
        if [[ $kind == unit && $unit == *.service && $(show "$unit" ActiveState) == activating ]]; then
            printf '%s\n' "$unit"
        fi
    done <<< "$1"
    for pid in /proc/[0-9]*; do
        mapfile -d '' -t -n 4 words 2> /dev/null < "$pid/cmdline" || continue
        [[ ${words[0]-} =~ (^|/)(python|bash|sh|dash|env|php|node|perl|ruby)[0-9.]*$ ]] || words=("${words[0]-}")
        [[ ${words[*]} != *"$HOME_DIR/"* ]] || continue # ours
        if word=$(runs_updater "${words[*]}") && ! belongs_to "$1" "$pid"; then
            printf 'process %s (%s)\n' "${pid##*/}" "$word"
        fi
    done
}

# Is this process a daemon of a listed unit, which systemd stops for us?
belongs_to() { # the list, /proc/PID
    local group
    group=$(< "$2/cgroup") 2> /dev/null || return 0 # it has ended
    local kind path
    while IFS=$'\t' read -r kind path _; do
        if [[ $kind == unit && $group == *"/${path##*/}"* ]]; then
            return 0
        fi
    done <<< "$1"
    return 1
}

# Copy all that is listed to a folder; then move it away
move_others() { # the list, folder
    local kind path
    while IFS=$'\t' read -r kind path _; do
        case $kind in
            unit | dropins | link | line) ;;
            *) continue ;;
        esac
        [[ $kind != line ]] || path=${path%:*}
        # From /: cp 9.1, Debian 12's, looks for the parents of an absolute path where it stands
        (cd / && cp --archive --parents "$path" "$2")
    done <<< "$1"
    sync --file-system "$2" 2> /dev/null || true
    while IFS=$'\t' read -r kind path _; do
        if [[ $kind == unit ]]; then
            systemctl stop "${path##*/}" 2> /dev/null || true
        fi
    done <<< "$1"
    while IFS=$'\t' read -r kind path _; do
        case $kind in
            unit | link) rm --force "$path" ;;
            dropins) rm --recursive --force "$path" ;;
            line) edit_crontab "${path%:*}" "${path##*:}s/^/$COMMENT/" ;;
        esac
    done <<< "$1"
}

edit_crontab() { # file, command of sed; cron sees it by the folder's time
    local new
    new=$(mktemp "${1%/*}/.webkassa-key-updater.XXXXXX") # others may write to that folder
    cp --attributes-only --preserve=all "$1" "$new"
    sed "$2" "$1" > "$new"
    mv --no-target-directory "$new" "$1"
}

write_put_back() { # the list, folder
    local kind path
    {
        cat << 'END'
#!/usr/bin/env bash
# Put back what "install.sh --take-over" of webkassa-key-updater moved here. First remove the updater
# that took over: sudo /opt/webkassa-key-updater/current/uninstall.sh
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

put_back() {
    [[ -e .$1 || -L .$1 ]] || return 0
    mkdir --parents "${1%/*}"
    cp --archive --no-target-directory --remove-destination ".$1" "$1"
}

uncomment() { # the lines that were made a comment: the rest may have been changed since
    local new
    [[ -e $1 ]] || return 0
    new=$(mktemp "${1%/*}/.webkassa-key-updater.XXXXXX")
    cp --attributes-only --preserve=all "$1" "$new"
END
        printf "    sed 's/^%s//' \"\$1\" > \"\$new\"\n" "$COMMENT"
        cat << 'END'
    mv --no-target-directory "$new" "$1"
}

if [[ ${1-} != --force && -e /opt/webkassa-key-updater/current ]]; then
    echo "put-back.sh: nothing was put back: two updaters would kill each other's keys." \
        "First run: sudo /opt/webkassa-key-updater/current/uninstall.sh" >&2
    exit 1
fi
END
        while IFS=$'\t' read -r kind path _; do
            case $kind in
                unit | dropins | link) printf 'put_back %q\n' "$path" ;;
                line) printf 'uncomment %q\n' "${path%:*}" ;;
            esac
        done <<< "$1"
        printf 'systemctl daemon-reload\n'
        while IFS=$'\t' read -r kind path _; do
            if [[ $kind == unit ]] && systemctl is-active --quiet "${path##*/}"; then
                printf 'systemctl start %q\n' "${path##*/}"
            fi
        done <<< "$1"
        printf 'echo "All is as it was before the take-over: what renewed the key then renews it again."\n'
    } > "$2/put-back.sh"
    chmod 0700 "$2/put-back.sh"
}

# Started by server_status.py
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set -euo pipefail
    # shellcheck source=systemd/common.sh
    . "$(dirname "$(readlink -f "$0")")/common.sh"
    find_others
fi
