# shellcheck shell=bash
# Sourced by install.sh, run by server_status.py: what else renews the key on this machine, found by what
# it runs.

readonly UNIT_DIRS=(/etc/systemd/system /run/systemd/system /usr/local/lib/systemd/system
    /usr/lib/systemd/system /lib/systemd/system)
readonly CRON_FILES=(/etc/crontab /etc/anacrontab /etc/cron.d/* /var/spool/cron/crontabs/*
    /var/spool/cron/tabs/* /var/spool/cron/*)
readonly CRON_SCRIPTS=(/etc/cron.hourly/* /etc/cron.daily/* /etc/cron.weekly/* /etc/cron.monthly/*)
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
    local file name
    # Bearing our names
    for name in "${UNITS[@]}"; do
        # shellcheck disable=SC2153 # of common.sh
        file=$UNIT_DIR/$name
        if [[ -e $file || -L $file ]] && ! is_ours "$file"; then
            list_unit "$file" "has the name of one of ours"
        fi
    done
    while read -r file; do
        examine_unit "$file"
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

examine_unit() { # file of a service, or of a drop-in
    local word line lines all others=0
    ! is_ours "$1" && [[ ${1%/*} != */webkassa-key-*.d ]] || return 0
    [[ $(readlink -f "${1%/*}") == "${1%/*}" ]] || return 0 # /lib is a link to /usr/lib
    lines=$(commands_of "$1" ExecStart) all=$(commands_of "$1" 'Exec[A-Za-z]*')
    word=$(runs_updater "${all//$'\n'/ }") || return 0
    while read -r line; do
        [[ -z $line ]] || runs_updater "$line" > /dev/null || others=$((others + 1))
    done <<< "$lines"
    if [[ $1 == *.service && $lines && $1 != /usr/lib/* ]] && ((others == 0)); then
        list_unit "$1" "runs $word"
    else
        printf 'look\t%s\truns %s beside other things\n' "$1" "$word"
    fi
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

# Started by server_status.py
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set -euo pipefail
    # shellcheck source=systemd/common.sh
    . "$(dirname "$(readlink -f "$0")")/common.sh"
    find_others
fi
