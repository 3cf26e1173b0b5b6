#!/usr/bin/env bash
# usage: check-status.sh [--json]
#
# How the updater stands: key, timers, last run, installation, settings, other triggers. Changes
# nothing and does not log in at Webkassa. Without root it says what it could not see.
#
#   --json      the same for machines
#   -h, --help  print this help
#
# exit codes, as of monitoring plug-ins: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN; the worst counts,
# and CRITICAL is worse than WARNING, that than UNKNOWN
set -euo pipefail

HERE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
readonly HERE
# shellcheck source=systemd/common.sh
. "$HERE/systemd/common.sh"
# shellcheck source=systemd/others.sh
. "$HERE/systemd/others.sh"

readonly OK=0 WARNING=1 CRITICAL=2 UNKNOWN=3 UNSEEN=4
readonly LEVELS=(OK WARNING CRITICAL UNKNOWN UNSEEN) RANKS=(1 3 4 2 0)
# Nothing of the caller's environment may count for Python: -I
readonly PROGRAM=("$CURRENT/venv/bin/python" -I "$CURRENT/venv/bin/webkassa-key-updater")
readonly AGES='90000;176400' # seconds, from which WARNING and CRITICAL begin, for a monitor's graphs

RENEW='sudo webkassa-key update' many=''
if [[ -e $UNIT_DIR/${ACCOUNT_DROPINS[0]} ]]; then
    many=many RENEW+=' --if-needed' # the good keys must stay
fi
readonly RENEW CHECK='sudo webkassa-key check'
UNSEEN_BY="not visible to $(id -un) without sudo"
readonly UNSEEN_BY

# One entry for each thing looked at
levels=() names=() whats=() mends=()
key_report='' key_age='' lines='' worst=$UNSEEN summary=''

main() {
    local as_json=''
    case ${1-} in
        --json) as_json=yes && shift ;;
        -h | --help) print_help "${BASH_SOURCE[0]}" && exit ;;
    esac
    if (($#)); then
        printf 'check-status.sh: unknown arguments %s; see --help\n' "$*" >&2
        exit 3
    fi
    cd / # the service's user may not see the folder that root is in
    if ! [[ -e $CURRENT || -e $UNIT_DIR/$TIMER ]]; then
        note $CRITICAL installed "no: nothing here renews the key" "sudo ./install.sh"
    else
        look_at_key
        look_at_timers
        look_at_last_run "$UPDATE" 'last run'
        look_at_last_run "$BOOT" 'boot run'
        look_at_socket
        look_at_code
        look_at_file "$SETTINGS" settings
        look_at_alerts
    fi
    look_for_other_triggers
    find_worst
    if [[ $as_json ]]; then print_json; else print_screen; fi
    exit "$worst"
}

note() { # level, name, what, command that mends it
    levels+=("$1") names+=("$2") whats+=("$3") mends+=("${4-}")
}

reinstall() { # options
    if [[ -x $CURRENT/install.sh ]]; then
        printf 'sudo %s/install.sh%s' "$CURRENT" "${1:+ $1}"
    else
        printf 'sudo ./install.sh%s (in a fresh copy of the project)' "${1:+ $1}"
    fi
}

enable() { # unit, option
    if [[ -e $UNIT_DIR/$1 ]]; then
        printf 'sudo systemctl enable %s' "${2:+$2 }$1"
    else
        reinstall
    fi
}

readonly READ_REPORT='import json, sys
report = json.load(sys.stdin)
ages = [account.get("age_seconds") for account in report["accounts"]]
print(max((age for age in ages if age is not None), default=""))
text = report["message"].removeprefix("key ")
shown = report["accounts"] if "many" in sys.argv else []
for account in shown[:20]:  # the worst come first
    text += "\n{status}: {account}: {message}".format(**account)
if len(shown) > 20:
    text += f"\nand {len(shown) - 20} more: sudo webkassa-key status --json"
print("".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in text))'

# The module's own status, as the service's user; the alert is that user already
look_at_key() {
    local level=0 read what hidden mends_key=('' "$RENEW" "$RENEW" "$CHECK")
    if is_root; then
        key_report=$(run_module "webkassa-key-command-status-$$" "$CURRENT" status --json \
            2> /dev/null) || level=$?
    elif [[ $(id -un) == "$ACCOUNT" ]]; then
        key_report=$(env ${many:+"WEBKASSA_ACCOUNTS_DIR=$ACCOUNTS"} "${PROGRAM[@]}" \
            --env-file "$SETTINGS" status --json 2> /dev/null) || level=$?
    else
        note $UNKNOWN key "$UNSEEN_BY" "sudo webkassa-key status"
        return
    fi
    if ((level > 3)) || ! read=$("$CURRENT/venv/bin/python" -I -c "$READ_REPORT" \
        "$many" <<< "$key_report" 2> /dev/null); then
        key_report=''
        note $CRITICAL key "not known: the updater could not look at it (code $level)" "$CHECK"
        return
    fi
    key_age=${read%%$'\n'*} what=${read#*$'\n'}
    hidden=$({ printf '%s\n' "$what"; cat "$SETTINGS" 2> /dev/null; } | hidden_paths) || true
    [[ $level == "$OK" || -z $hidden ]] || what+=$'\n'"The service cannot see ${hidden//$'\n'/, }: its \
sandbox hides homes and /tmp. Move it, a certificate to /etc/ssl, say."
    note "$level" key "$what" "${mends_key[level]}"
}

look_at_timers() {
    local next enabled active
    next=$(show "$TIMER" NextElapseUSecRealtime)
    enabled=$(systemctl is-enabled "$TIMER" 2> /dev/null) || true
    active=$(systemctl is-active "$TIMER") || true
    if [[ $enabled != enabled || $active != active ]]; then
        note $CRITICAL timer "${enabled:-not installed}, $active: nothing renews the key" \
            "$(enable "$TIMER" --now)"
    elif [[ $next || $(show "$TIMER" SubState) == running ]]; then
        note $OK timer "enabled, active, next run ${next:-is known when the one at work has ended}"
    else
        note $CRITICAL timer "active, but without a next run: nothing renews the key" "sudo systemctl restart $TIMER"
    fi
    enabled=$(systemctl is-enabled "$BOOT_TIMER" 2> /dev/null) || true
    if [[ $enabled != enabled ]]; then
        note $WARNING timer "a run that was missed while the machine was off is not made up for" \
            "$(enable "$BOOT_TIMER")"
    fi
    if systemctl is-enabled --quiet "$HEAL_TIMER" 2> /dev/null &&
        ! systemctl is-active --quiet "$HEAL_TIMER"; then
        note $WARNING timer "$HEAL_TIMER does not run: a dead key waits for the daily run" \
            "sudo systemctl start $HEAL_TIMER"
    fi
}

# What systemd remembers of a run outlives "reset-failed" in ExecMainCode and ExecMainStatus; what was
# before the machine started, and who renewed the key since, it does not know
look_at_last_run() { # service, name
    local state ended kind code failing when
    state=$(show "$1" SubState)
    ended=$(show "$1" ExecMainExitTimestamp)
    kind=$(show "$1" ExecMainCode) code=$(show "$1" ExecMainStatus)
    failing=$(failing_since "$1")
    when=$(date --date="${ended:-${failing:-now}}" +%s) || when=0
    if [[ $many && $failing ]]; then
        # Those that are well may have been renewed by the first of the runs that failed; it took 33
        # minutes at most
        when=$(($(date --date="$failing" +%s) - 33 * 60))
    fi
    if [[ $ended && $kind != 1 ]]; then
        failing="failing since ${failing:-$ended} (signal $code: killed, or out of time)"
    elif [[ $ended && $code != 0 ]]; then
        failing="failing since ${failing:-$ended} ($(meaning "$code"))"
    elif [[ $ended ]]; then
        failing='' # whatever the journal lacks
    else
        failing=${failing:+failing since $failing}
    fi
    if [[ $state == start* ]]; then
        note $OK "$2" "at work since $(show "$1" ExecMainStartTimestamp)"
    elif [[ $state == auto-restart* ]]; then
        note $WARNING "$2" "$failing, to be tried again by itself; why: see the journal below"
    elif [[ $failing && $key_age ]] && ((${EPOCHSECONDS:-$(date +%s)} - key_age > when)); then
        note $OK "$2" "$failing, but the key was renewed since"
    elif [[ $failing ]]; then
        note $CRITICAL "$2" "$failing" "$(mend_run "$kind" "$code")"
    elif [[ $1 == "$UPDATE" || $ended ]]; then
        note $OK "$2" "${ended:+good, }${ended:-none since this machine started}"
    fi
    [[ $1 == "$UPDATE" || $failing ]] || return 0
    lines+=${lines:+$'\n'}$(journalctl --quiet --no-pager --lines=3 --output=short --no-hostname \
        "_SYSTEMD_UNIT=$1" 2> /dev/null) || true
    [[ $lines ]] || can_read_journal || note $UNSEEN journal "$UNSEEN_BY"
}

# In the words of the module's --help, where it starts
meaning() { # exit code
    local said=''
    case $1 in
        1 | 203) said='the program does not start' ;;
        217) said="the user $ACCOUNT is missing" ;;
        *) said=$("${PROGRAM[@]}" --help 2> /dev/null |
            sed --quiet "s/^ *$1  //p") || true ;;
    esac
    printf '%s' "code $1${said:+: $said}"
}

mend_run() { # ExecMainCode, ExecMainStatus
    case $1/$2 in
        1/1 | 1/203 | 1/217) reinstall ;;
        1/2 | 1/73 | 1/77 | 1/78) printf '%s' "$CHECK" ;;
        *) printf '%s' "$RENEW" ;;
    esac
}

can_read_journal() {
    is_root || [[ " $(id -Gn) " =~ \ (systemd-journal|adm|wheel)\  ]]
}

# The time of the first failure after the last success; by the message ids of systemd's catalog
failing_since() { # service
    local started=39f53479d3a045ac8e11786248231fbf failed=d9b373ed55a64feb8242e02dbe79a49c good bad
    good=$(journalctl --quiet --no-pager --lines=1 --output=short-unix "UNIT=$1" \
        "MESSAGE_ID=$started" JOB_RESULT=done 2> /dev/null) || true
    bad=$(journalctl --quiet --no-pager --output=short-unix ${good:+"--since=@${good%% *}"} \
        "UNIT=$1" "MESSAGE_ID=$failed" 2> /dev/null) || true
    [[ -z $bad ]] || date "--date=@${bad%%.*}" '+%a %F %T %Z'
}

look_at_socket() {
    local members
    if systemctl is-enabled --quiet "$SOCKET" 2> /dev/null &&
        systemctl is-active --quiet "$SOCKET"; then
        members=$(getent group "$CLIENTS") || true
        members=${members##*:}
        note $OK consumers "may ask for a new key: root${members:+, ${members//,/, }}"
    else
        note $WARNING consumers "cannot ask for a new key: $SOCKET is off" "$(enable "$SOCKET" --now)"
    fi
}

look_at_code() {
    local python=$CURRENT/venv/bin/python version
    if version=$("${PROGRAM[@]}" --version 2> /dev/null); then
        note $OK code "version $version, $("$python" --version)"
    else
        note $CRITICAL code "does not start: the virtual environment is broken, nothing can renew the key" "$(reinstall)"
    fi
}

# A link is judged by its target
look_at_file() { # file, name
    local target modes mend
    if [[ -d $CONFIG_DIR && ! -x $CONFIG_DIR ]]; then
        note $UNSEEN "$2" "$UNSEEN_BY"
        return
    fi
    target=$(readlink -f "$1") || target=$1
    mend="sudo chown root:$ACCOUNT $target; sudo chmod 640 $target"
    if [[ -L $1 && ! -e $1 ]]; then
        note $CRITICAL "$2" "$1 is a link to $(readlink "$1"), which is not there: put it back"
    elif [[ ! -e $1 ]]; then
        note $CRITICAL "$2" "$1 is missing: without it nothing renews the key. Fill in what this makes" \
            "sudo install -D -o root -g $ACCOUNT -m 640 $CURRENT/.env.example $1"
    elif [[ $target == /@(home|root|tmp|var/tmp|run/user)/* ]]; then
        note $CRITICAL "$2" "$target is hidden from the service, which sees no homes and no /tmp: move it to /etc"
    elif ! modes=$(stat --format='%U:%G %a' "$target" 2> /dev/null); then
        note $UNSEEN "$2" "$UNSEEN_BY"
    elif ! service_reads "$target"; then
        note $CRITICAL "$2" "$target is $modes: the service cannot read it" "$mend"
    elif [[ $modes != "root:"* || $modes != *" "?[04]0 ]]; then
        note $WARNING "$2" "$target is $modes, not root:$ACCOUNT 640" "$mend"
    else
        note $OK "$2" "$target, $modes"
    fi
}

service_reads() { # file
    if is_root; then
        setpriv --reuid="$ACCOUNT" --regid="$ACCOUNT" --init-groups test -r "$1" 2> /dev/null
    else
        [[ $(id -un) != "$ACCOUNT" || -r $1 ]]
    fi
}

look_at_alerts() {
    if [[ -d $CONFIG_DIR && ! -x $CONFIG_DIR ]]; then
        return # said already
    elif [[ ! -e $ADDRESSES ]]; then
        note $OK alerts "off: a failure is told to the journal alone, there is no $ADDRESSES"
    elif [[ ! -x $CURRENT/alerts/bin/apprise ]]; then
        note $WARNING alerts "cannot be sent: Apprise is not installed" "$(reinstall --with-alerts)"
    elif [[ -s $STATE_DIR/alert || $(show "$ALERT" SubState) == @(auto-restart*|failed) ]]; then
        note $WARNING alerts "the last one could not be sent and is tried again" \
            "sudo systemctl status $ALERT"
    else
        look_at_file "$ADDRESSES" alerts
    fi
}

# Each login kills the key before it, so a second one at another time of day does harm
look_for_other_triggers() {
    local place kind path remark found='' hidden='' mend=''
    for place in /etc/crontab /etc/cron.d /var/spool/cron /var/spool/cron/*; do
        [[ ! -e $place || -r $place ]] || hidden+=" $place"
    done
    while IFS=$'\t' read -r kind path remark; do
        case $kind in
            unit) starts_by_itself "${path##*/}" || continue ;;
            link | line | look) ;;
            *) continue ;;
        esac
        [[ $kind == look ]] || mend=$(reinstall --take-over)
        found+="${found:+, }$path ($remark)"
    done < <(find_others)
    if [[ $found ]]; then
        note $WARNING triggers "another one is $found: each login kills the key before it" "$mend"
    elif [[ $hidden ]]; then
        note $UNSEEN triggers "$UNSEEN_BY:$hidden"
    else
        note $OK triggers "no other one found in cron and systemd"
    fi
}

starts_by_itself() { # unit
    [[ $(systemctl is-enabled "$1" 2> /dev/null) == enabled* ]] || systemctl is-active --quiet "$1"
}

find_worst() {
    local i
    for i in "${!levels[@]}"; do
        if ((RANKS[levels[i]] > RANKS[worst])); then
            worst=${levels[i]} summary="${names[i]}: ${whats[i]%%$'\n'*}"
            [[ ! ${summary} =~ ^key:\ [0-9a-f]{8}[,:\;] ]] || summary="key ${summary#key: }"
        fi
    done
    # What people want to know first: does the stored key still work?
    if [[ ${names[0]} == key && $summary != key* && $worst != "$OK" ]]; then
        if ((levels[0] == UNKNOWN)); then
            summary+="; how the key stands is not known"
        else
            summary+="; key ${whats[0]%%$'\n'*}"
        fi
    fi
}

print_screen() {
    local colour='' plain='' i shown=$'\n'
    if [[ -t 1 ]]; then
        local colours=('' $'\e[33m' $'\e[31m' $'\e[35m')
        colour=${colours[worst]} plain=$'\e[0m'
    fi
    printf '%sWEBKASSA %s%s - %s%s\n' "$colour" "${LEVELS[worst]}" "$plain" "$summary" \
        "${key_age:+|age=${key_age}s;$AGES}"
    for i in "${!levels[@]}"; do
        printf '%-8s  %-9s  %s\n' "${LEVELS[levels[i]]}" "${names[i]}" \
            "${whats[i]//$'\n'/$'\n'                     }"
        # The same command for two faults is to be typed once
        [[ -z ${mends[i]} || $shown == *$'\n'"${mends[i]}"$'\n'* ]] ||
            printf '%21s-> %s\n' '' "${mends[i]}"
        shown+=${mends[i]}$'\n'
    done
    [[ -z $lines ]] || printf 'Last lines of the journal:\n%s\n' "$lines"
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
