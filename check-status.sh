#!/usr/bin/env bash
# usage: check-status.sh [--json]
#
# How the updater stands: key, timer, last run, installation, settings, other triggers. Changes
# nothing and does not log in at Webkassa. Without root it says what it could not see.
#
#   --json      the same for machines
#   -h, --help  print this help
#
# exit codes, as of monitoring plug-ins: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN; the worst counts,
# and CRITICAL is worse than WARNING, that than UNKNOWN
set -euo pipefail

readonly ACCOUNT=webkassa-key-updater
readonly HOME_DIR=/opt/webkassa-key-updater
readonly CONFIG_DIR=/etc/webkassa-key-updater
readonly SETTINGS=$CONFIG_DIR/webkassa.env ADDRESSES=$CONFIG_DIR/apprise.conf
readonly SERVICE=webkassa-key-update.service TIMER=webkassa-key-update.timer
readonly ALERT=webkassa-key-alert.service
readonly OK=0 WARNING=1 CRITICAL=2 UNKNOWN=3 UNSEEN=4
readonly LEVELS=(OK WARNING CRITICAL UNKNOWN UNSEEN) RANKS=(1 3 4 2 0)

readonly INSTALL="sudo $HOME_DIR/install.sh"
readonly UPDATE="sudo systemctl reset-failed ${SERVICE%.*}; sudo systemctl start ${SERVICE%.*}"
readonly RUN="$HOME_DIR/venv/bin/python -I $HOME_DIR/webkassa_key_updater.py --env-file $SETTINGS"
readonly CHECK="sudo -u $ACCOUNT $RUN check"
UNSEEN_BY="not visible to $(id -un) without sudo"
readonly UNSEEN_BY

# One entry for each thing looked at
levels=() names=() whats=() mends=()
key_report='' perfdata='' lines='' worst=$UNSEEN summary=''

main() {
    local as_json=''
    case $*/$# in
        /0) ;;
        --json/1) as_json=yes ;;
        -h/1 | --help/1) print_help && exit ;;
        *) printf 'check-status.sh: unknown arguments %s; see --help\n' "$*" >&2 && exit 3 ;;
    esac
    cd / # the service's user may not see the folder that root is in
    if ! [[ -e $HOME_DIR || -e /etc/systemd/system/$TIMER ]]; then
        note $CRITICAL installed "no" "sudo ./install.sh"
    else
        look_at_key "$as_json"
        look_at_timer
        look_at_last_run
        look_at_code
        look_at_file "$SETTINGS" settings
        look_at_alerts
    fi
    look_for_other_triggers
    find_worst
    if [[ $as_json ]]; then print_json; else print_screen; fi
    exit "$worst"
}

print_help() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

note() { # level, name, what, command that mends it
    levels+=("$1") names+=("$2") whats+=("$3") mends+=("${4-}")
}

is_root() {
    (($(id -u) == 0))
}

show() { # unit, property
    systemctl show --property="$2" --value "$1"
}

# The module's own status, as the service's user, with nothing of our environment
look_at_key() { # "yes" for JSON
    local run
    read -ra run <<< "env -i PATH=$PATH $RUN status ${1:+--json}"
    if is_root; then
        run=(setpriv "--reuid=$ACCOUNT" "--regid=$ACCOUNT" --init-groups "${run[@]}")
    elif [[ ! -r $SETTINGS ]]; then
        note $UNKNOWN key "$UNSEEN_BY"
        return
    fi
    local level=0 first mends_key=('' "$UPDATE" "$UPDATE" "$CHECK")
    key_report=$(timeout 60 "${run[@]}" 2> /dev/null) || level=$?
    if ((level > 3)) || [[ -z $key_report ]]; then
        key_report=''
        note $CRITICAL key "its status cannot be asked (code $level)" "$INSTALL"
        return
    fi
    if [[ $1 ]]; then
        first=$("$HOME_DIR/venv/bin/python" -I -c \
            'import json, sys; print(json.load(sys.stdin)["message"])' <<< "$key_report")
    else
        first=${key_report%%$'\n'*}
        [[ $first != *'|'* ]] || perfdata="|${first##*|}"
        first=${first%|*}
        first=${first#WEBKASSA * - }${key_report#"${key_report%%$'\n'*}"}
        ((level == UNKNOWN)) || first=${first%%$'\n'*} # faults of the settings have several lines
    fi
    note "$level" key "$first" "${mends_key[level]}"
}

look_at_timer() {
    local next enabled active
    next=$(show $TIMER NextElapseUSecRealtime)
    enabled=$(systemctl is-enabled $TIMER 2> /dev/null) || true
    active=$(systemctl is-active $TIMER) || true
    if [[ $enabled != enabled || $active != active ]]; then
        note $CRITICAL timer "${enabled:-not installed}, $active: nothing renews the key" \
            "sudo systemctl enable --now $TIMER"
    elif [[ $next || $(show $TIMER SubState) == running ]]; then
        note $OK timer "enabled, active, next run ${next:-when the one at work has ended}"
    else
        note $CRITICAL timer "has no next run" "sudo systemctl restart $TIMER"
    fi
}

look_at_last_run() {
    local ended outcome failing
    ended=$(show $SERVICE ExecMainExitTimestamp)
    outcome=$(show $SERVICE Result)
    if [[ $outcome == @(exit-code|start-limit-hit) ]]; then
        outcome="code $(show $SERVICE ExecMainStatus)"
    fi
    failing=$(failing_since)
    failing="failing since ${failing:-$ended} ($outcome)"
    case $(show $SERVICE SubState) in
        start*) note $OK 'last run' "at work since $(show $SERVICE ExecMainStartTimestamp)" ;;
        auto-restart*) note $WARNING 'last run' "$failing, to be tried again" 'see the lines below' ;;
        failed) note $CRITICAL 'last run' "$failing" "see the lines below, then: $UPDATE" ;;
        *) note $OK 'last run' "${ended:+good, }${ended:-none since this machine started}" ;;
    esac
    lines=$(journalctl --quiet --no-pager --lines=3 --output=short --no-hostname \
        _SYSTEMD_UNIT=$SERVICE 2> /dev/null) || true
    [[ $lines ]] || can_read_journal || note $UNSEEN journal "$UNSEEN_BY"
}

can_read_journal() {
    is_root || [[ " $(id -Gn) " =~ \ (systemd-journal|adm|wheel)\  ]]
}

# The time of the first failure after the last success; by the message ids of systemd's catalog
failing_since() {
    local started=39f53479d3a045ac8e11786248231fbf failed=d9b373ed55a64feb8242e02dbe79a49c good bad
    good=$(journalctl --quiet --no-pager --lines=1 --output=short-unix UNIT=$SERVICE \
        MESSAGE_ID=$started JOB_RESULT=done 2> /dev/null) || true
    bad=$(journalctl --quiet --no-pager --output=short-unix ${good:+"--since=@${good%% *}"} \
        UNIT=$SERVICE MESSAGE_ID=$failed 2> /dev/null) || true
    [[ -z $bad ]] || date "--date=@${bad%%.*}" '+%a %F %T %Z'
}

look_at_code() {
    local python=$HOME_DIR/venv/bin/python version
    if version=$("$python" -I "$HOME_DIR/webkassa_key_updater.py" --version 2> /dev/null); then
        note $OK code "version $version, $("$python" --version)"
    else
        note $CRITICAL code "does not start: the virtual environment is broken" "$INSTALL"
    fi
}

look_at_file() { # file, name
    local modes
    if ! modes=$(stat --format='%U:%G %a' "$1" 2> /dev/null); then
        if [[ -x $CONFIG_DIR ]]; then
            note $CRITICAL "$2" "$1 is missing" "$INSTALL"
        else
            note $UNSEEN "$2" "$UNSEEN_BY"
        fi
    elif [[ $modes == "root:$ACCOUNT 640" ]]; then
        note $OK "$2" "${1##*/}, $modes"
    else
        note $WARNING "$2" "${1##*/} is $modes, not root:$ACCOUNT 640" \
            "sudo chown root:$ACCOUNT $1; sudo chmod 640 $1"
    fi
}

look_at_alerts() {
    if [[ ! -x $CONFIG_DIR ]]; then
        return # said already
    elif [[ ! -e $ADDRESSES ]]; then
        note $OK alerts "off: there is no $ADDRESSES"
    elif ! compgen -G "$HOME_DIR/venv/lib/python3*/site-packages/apprise" > /dev/null; then
        note $WARNING alerts "cannot be sent: Apprise is not installed" "$INSTALL --with-alerts"
    elif [[ $(show $ALERT Result) != success ]]; then
        note $WARNING alerts "the last one could not be sent" \
            "sudo journalctl --unit=$ALERT; sudo systemctl reset-failed $ALERT"
    else
        look_at_file $ADDRESSES alerts
    fi
}

# Each login kills the key before it, so a second one at another time of day does harm
look_for_other_triggers() {
    local places=(/etc/crontab /etc/cron.* /var/spool/cron /etc/systemd/system) hidden='' found place
    for place in "${places[@]}"; do
        [[ ! -e $place || -r $place ]] || hidden+=" $place"
    done
    for place in /var/spool/cron/*; do
        [[ ! -e $place || -r $place ]] || hidden+=" $place"
    done
    found=$(grep --recursive --files-with-matches --ignore-case --exclude='webkassa-key-*' \
        --exclude-dir='webkassa-key-*' 'webkassa.*key' "${places[@]}" 2> /dev/null) || true
    if [[ $found ]]; then
        note $WARNING triggers "another one is in ${found//$'\n'/, }" "remove it: each login kills \
the key before it"
    elif [[ $hidden ]]; then
        note $UNSEEN triggers "$UNSEEN_BY:$hidden"
    else
        note $OK triggers "no other one found in cron and systemd"
    fi
}

find_worst() {
    local i
    for i in "${!levels[@]}"; do
        if ((RANKS[levels[i]] > RANKS[worst])); then
            worst=${levels[i]} summary="${names[i]}: ${whats[i]%%$'\n'*}"
            summary=${summary#key: }
        fi
    done
}

print_screen() {
    local colour='' plain='' i
    if [[ -t 1 ]]; then
        local colours=('' $'\e[33m' $'\e[31m' $'\e[35m')
        colour=${colours[worst]} plain=$'\e[0m'
    fi
    printf '%sWEBKASSA %s%s - %s%s\n' "$colour" "${LEVELS[worst]}" "$plain" "$summary" "$perfdata"
    for i in "${!levels[@]}"; do
        printf '%-8s  %-8s  %s\n' "${LEVELS[levels[i]]}" "${names[i]}" "${whats[i]}"
        [[ -z ${mends[i]} ]] || printf '%20s-> %s\n' '' "${mends[i]}"
    done
    [[ -z $lines ]] || printf 'Last lines of its journal:\n%s\n' "$lines"
}

print_json() {
    local i comma=''
    printf '{"status": "%s", "message": %s, "checks": [' "${LEVELS[worst]}" "$(quote "$summary")"
    for i in "${!levels[@]}"; do
        printf '%s\n  {"name": %s, "status": "%s", "message": %s, "mend": %s}' "$comma" \
            "$(quote "${names[i]}")" "${LEVELS[levels[i]]}" "$(quote "${whats[i]}")" \
            "$(quote "${mends[i]}")"
        comma=,
    done
    printf '],\n"journal": %s,\n"key": %s}\n' "$(quote "$lines")" "${key_report:-null}"
}

quote() { # a text, for JSON
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"}
    text=${text//$'\n'/\\n}
    printf '"%s"' "${text//[[:cntrl:]]/ }"
}

main "$@"
