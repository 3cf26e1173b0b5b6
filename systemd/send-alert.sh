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
    readonly PENDING=${STATE_DIRECTORY:-$STATE_DIR}/alert
    if [[ ! -s $PENDING ]]; then
        ! still_tried || exit 0
        write_report
    elif ! still_tried; then
        write_report # a newer failure
    fi
    send_report
}

# systemd 254 and newer start the alert on every retry; those name the unit that failed
still_tried() {
    [[ ${MONITOR_UNIT-} && $(show "$MONITOR_UNIT" SubState) == auto-restart* ]]
}

write_report() {
    local report
    report=$("$HERE/../check-status.sh") || true
    printf '%s\n' "$report" > "$PENDING.new"
    mv "$PENDING.new" "$PENDING"
    sed 's/^/<3>/' "$PENDING"
}

send_report() {
    local report title
    if [[ ! -e $ADDRESSES ]]; then
        say "There is no $ADDRESSES: nobody was told but this journal."
        rm "$PENDING"
        return
    fi
    report=$(< "$PENDING")
    title="$(uname -n): ${report%%[|$'\n']*}"
    # What Apprise says can carry addresses, and those carry passwords: it must not reach the journal
    if "$HERE/../alerts/bin/apprise" --config "$ADDRESSES" --notification-type failure \
        --title "$title" <<< "$report" > /dev/null 2>&1; then
        rm "$PENDING"
        say "The alert was sent."
    else
        say "<3>The alert could not be sent; it is tried again in 5 minutes. To see why: sudo -u" \
            "$ACCOUNT $CURRENT/alerts/bin/apprise -v --config $ADDRESSES --body test"
        exit 1
    fi
}

main "$@"
