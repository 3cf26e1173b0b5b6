#!/usr/bin/env bash
# usage: send-alert.sh [--help]
#
# Write the status report to the journal, at the priority "err", and send it through Apprise to the
# addresses in /etc/webkassa-key-updater/apprise.conf, where that file exists. A report that could
# not be sent is kept, and sent at the next start. Started by webkassa-key-alert.service.
set -euo pipefail

HERE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
readonly HERE
# shellcheck source=systemd/common.sh
. "$HERE/common.sh"

main() {
    if (($#)); then
        print_help "${BASH_SOURCE[0]}"
        exit
    fi
    cd /
    local folder=${STATE_DIRECTORY:-$STATE_DIR} failed report
    readonly PENDING=$folder/alert TOLD=$folder/told # a report; the runs that were told of
    failed=$(failed_runs)
    if is_news "$failed"; then
        make_report
        keep "$failed" "$TOLD"
    elif [[ -s $PENDING ]]; then
        report=$("$HERE/../check-status.sh") || true
        report="$(< "$PENDING")"$'\n'"Since then: ${report%%$'\n'*}"
    elif still_tried; then
        exit # systemd 254 and newer come on every retry
    else
        make_report # somebody wants to see one
    fi
    send_report
}

failed_runs() {
    local unit
    for unit in "$UPDATE" "$BOOT"; do
        [[ $(show "$unit" ActiveState) != failed ]] || show "$unit" InvocationID
    done
}

still_tried() {
    [[ "$(show "$UPDATE" SubState) $(show "$BOOT" SubState)" == *auto-restart* ]]
}

is_news() { # runs
    [[ $1 ]] && { [[ ! -s $TOLD ]] || grep --quiet -vxFf "$TOLD" <<< "$1"; }
}

make_report() {
    report=$("$HERE/../check-status.sh") || true
    printf '%s\n' "<3>${report//$'\n'/$'\n<3>'}"
    keep "$report" "$PENDING"
}

keep() { # text, file; where the disk is full the alert goes out all the same
    { printf '%s\n' "$1" > "$2.new" && mv "$2.new" "$2"; } 2> /dev/null || true
}

send_report() {
    local title
    if [[ ! -e $ADDRESSES ]]; then
        say "Nobody was told but this journal: there is no $ADDRESSES. To make alerts possible: sudo" \
            "$CURRENT/install.sh --with-alerts"
        rm -f "$PENDING"
        return
    fi
    title="$(uname -n): ${report%%[|$'\n']*}"
    # What Apprise says can carry addresses, and those carry passwords: it must not reach the journal
    if "$HERE/../alerts/bin/apprise" --config "$ADDRESSES" --notification-type failure \
        --title "$title" <<< "$report" > /dev/null 2>&1; then
        rm -f "$PENDING"
        say "The alert was sent."
    else
        say "<3>The alert could not be sent, nobody was told but this journal; it is tried again by itself. To see why: sudo -u" \
            "$ACCOUNT $CURRENT/alerts/bin/apprise -v --config $ADDRESSES --body test"
        exit 1
    fi
}

main "$@"
