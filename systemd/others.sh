# shellcheck shell=bash
# Sourced by install.sh, run by server_status.py: what else renews the key on this machine, found by what
# it runs.

readonly UNIT_DIRS=(/etc/systemd/system /run/systemd/system /usr/local/lib/systemd/system
    /usr/lib/systemd/system /lib/systemd/system)
readonly CRON_FILES=(/etc/crontab /etc/anacrontab /etc/cron.d/* /var/spool/cron/crontabs/*
    /var/spool/cron/tabs/* /var/spool/cron/*)
# These are looked at only: what they start is not root's, or runs all the time
readonly USER_UNIT_DIRS=(/etc/systemd/user /{home/*,root,var/lib/*}/.config/systemd/user)
readonly SUPERVISOR_FILES=(/etc/supervisord.conf /etc/supervisor/supervisord.conf /etc/supervisor/conf.d/*
    /etc/supervisord.d/*)
readonly CRON_SCRIPTS=(/etc/cron.hourly/* /etc/cron.daily/* /etc/cron.weekly/* /etc/cron.monthly/*)
# Links that our own units' [Install] makes
readonly OUR_LINKS='@(timers.target.wants/webkassa-key-@(update|heal|boot|net).timer|sockets.target.wants/webkassa-key-renew.socket)'
readonly RENEWS='updat|renew|refresh|rotat' A_KEY='key|token'
readonly NO_PROGRAM='*.@(env|conf|ini|json|ya?ml|toml|log|txt|lock|pid|sock|md)'
# What runs the commands of an application: Laravel, Django, Symfony, Rails, Yii, Flask
readonly CONSOLES='[ /](artisan|manage\.py|console|rake|rails|yii|flask)( |$)'
# In the text of all that is found, in any case
readonly HINT="webkassa|schedule:|https?://.*($A_KEY)"

# Print what is found, a line each: kind, path and a remark, with tabs between them.
#   unit     a unit file that runs an updater, or bears the name of one, of ours, say: moved
#   dropins  a folder of drop-ins for such a unit of our name: moved
#   link     a link that starts one of these: removed
#   line     a line of a crontab, as file:number: becomes a comment
#   look     what does more than run an updater, or only may run one (the remark begins with "may"),
#            and what is not moved so simply: not touched
find_others() {
    find_other_units | sort --unique --field-separator=$'\t' --key=1,2
    find_other_lines
    find_other_places
}

# Does this command run an updater? One of its words must be named like one: the shop's own
# application has webkassa in its command, too
runs_updater() {
    local word name words line
    [[ ${1,,} == *webkassa* && ! $1 =~ journalctl|systemctl\ +(status|is-|show|cat|list) ]] || return 1
    read -ra words <<< "${1//[\"\';&|()<>]/ }"
    for word in "${words[@]}"; do
        name=${word,,}
        [[ $name =~ ^https?:// ]] || name=${name##*/}
        # shellcheck disable=SC2053 # a pattern
        [[ $name == *webkassa* && $name != $NO_PROGRAM ]] || continue
        if [[ $name =~ ^https?://[^/]*webkassa[^/]*/.*authorize ]]; then
            printf 'a login at Webkassa'
            return
        elif [[ $name =~ $A_KEY && $name =~ $RENEWS || $name =~ authori[sz]e($|[^d]) ]]; then
            print_word "$word"
            return
        fi
    done
    # Our own command, and the service of containers/compose.yaml
    line=" ${words[*],,} "
    [[ $line =~ [\ /]webkassa-key\  && $line =~ \ (update|run|up|start)\  &&
        ! $line =~ \ (check|status|alert|--if-needed|--if-key)\  ]] || return 1
    printf 'webkassa-key'
}

print_word() { # and no more: the rest may hold secrets
    local word=${1%%[?#]*}
    word=${word##*/}
    printf '%s' "${word//[^[:print:]]/?}"
}

# May it? A key is renewed at some address, or an application runs what it calls webkassa, a script of
# such a name, or all that is due
may_run_updater() {
    local word name words before=''
    read -ra words <<< "${1//[\"\';&|()<>]/ }"
    for word in "${words[@]}"; do
        name=${word,,}
        if [[ $name =~ ^https?://[^/]*/.*($RENEWS).*($A_KEY) || $name =~ ^https?://[^/]*/.*($A_KEY).*($RENEWS) ||
            ${name##*/} =~ webkassa.*(auth|login|$A_KEY).*\.(py|sh|php|js|rb|pl)$ ||
            ($before =~ $CONSOLES && $name =~ ^webkassa) || ($before =~ artisan && $name =~ ^schedule:(run|work)$) ]]; then
            print_word "$word"
            return
        fi
        before="$before $name"
    done
    return 1
}

look_at() { # path, command
    local word path=${1//[^[:print:]]/?} # it may be a user's
    if word=$(runs_updater "$2"); then
        printf 'look\t%s\truns %s\n' "$path" "$word"
    elif word=$(may_run_updater "$2"); then
        printf 'look\t%s\tmay renew the key, runs %s\n' "$path" "$word"
    fi
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
    done < <(find_unit_files "${UNIT_DIRS[@]}")
    # Started by a link that is not of our [Install]: at every boot, say
    for file in "$UNIT_DIR"/*.{wants,requires,upholds}/webkassa-key-*; do
        name=${file##*/}
        # shellcheck disable=SC2053 # a pattern
        if [[ -L $file && " ${UNITS[*]} " == *" $name "* && ${file#"$UNIT_DIR/"} != $OUR_LINKS ]]; then
            printf 'link\t%s\tstarts %s\n' "$file" "$name"
        fi
    done
}

# Those that may have to do with it, by their text or their name
find_unit_files() { # folders
    {
        with_hint --recursive --include='*.service' --include='*.conf' "$@"
        find "$@" -name '*webkassa*.service' -type f 2> /dev/null || true
    } | sort --unique
}

# What has no hint is not looked at: that would be several processes for each line
with_hint() { # files
    grep --files-with-matches --no-messages --devices=skip --ignore-case --extended-regexp "$HINT" "$@" || true
}

examine_unit() { # file of a service, or of a drop-in
    local word line lines all others=0 name=${1##*/}
    ! is_ours "$1" && [[ ${1%/*} != */webkassa-key-*.d ]] || return 0
    [[ $(readlink -f "${1%/*}") == "${1%/*}" ]] || return 0 # /lib is a link to /usr/lib
    lines=$(commands_of "$1" ExecStart) all=$(commands_of "$1" 'Exec[A-Za-z]*')
    if ! word=$(runs_updater "${all//$'\n'/ }"); then
        if [[ $name == *.service && $1 != /usr/lib/* ]] && runs_updater "${name%.service}" > /dev/null; then
            list_unit "$1" "has the name of an updater"
        else
            look_at "$1" "${all//$'\n'/ }"
        fi
        return
    fi
    while read -r line; do
        [[ -z $line ]] || runs_updater "$line" > /dev/null || others=$((others + 1))
    done <<< "$lines"
    if [[ $name == *.service && $lines && $1 != /usr/lib/* ]] && ((others == 0)); then
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
    while read -r file; do
        if ! is_read_by_cron "$file"; then
            continue
        elif [[ -L $file ]]; then
            [[ $file == /etc/* ]] || continue # users write to the spool
            file=$(readlink -f "$file")
        fi
        number=0
        while IFS= read -r line || [[ $line ]]; do
            number=$((number + 1))
            [[ ${line,,} =~ $HINT && ! $line =~ ^[[:blank:]]*# ]] || continue
            if word=$(runs_updater "$line"); then
                printf 'line\t%s:%s\truns %s\n' "$file" "$number" "$word"
            else
                look_at "$file:$number" "$line"
            fi
        done < "$file"
    done < <(with_hint "${CRON_FILES[@]}")
}

find_other_places() {
    local file
    while read -r file; do
        [[ ! -x $file ]] || look_at "$file" "$(grep --invert-match '^[[:blank:]]*#' "$file" | tr '\n' ' ')"
    done < <(with_hint "${CRON_SCRIPTS[@]}")
    while read -r file; do
        look_at "$file" "$(commands_of "$file" command)"
    done < <(with_hint "${SUPERVISOR_FILES[@]}")
    while read -r file; do
        look_at "$file" "$(commands_of "$file" 'Exec[A-Za-z]*')"
    done < <(find_unit_files "${USER_UNIT_DIRS[@]}")
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
