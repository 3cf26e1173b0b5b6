#!/usr/bin/env bash
# usage: send-alert.sh [--help]
#
# Send the status report through Apprise to the addresses in /etc/webkassa-key-updater/apprise.conf;
# without that file, only print it. Started by webkassa-key-alert.service.
set -euo pipefail

readonly HOME_DIR=/opt/webkassa-key-updater
readonly ADDRESSES=/etc/webkassa-key-updater/apprise.conf

main() {
    if (($#)); then
        sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit
    fi
    local report title
    report=$("$HOME_DIR/check-status.sh") || true
    printf '%s\n' "$report"
    if [[ ! -e $ADDRESSES ]]; then
        echo "There is no $ADDRESSES: nobody was told."
        exit
    fi
    title="$(uname -n): ${report%%[|$'\n']*}"
    # What Apprise says can carry addresses, and those carry passwords: it must not reach the journal
    if "$HOME_DIR/venv/bin/apprise" --config "$ADDRESSES" --notification-type failure \
        --title "$title" <<< "$report" > /dev/null 2>&1; then
        echo "The alert was sent."
    else
        echo "The alert could not be sent. To see why: sudo -u webkassa-key-updater" \
            "$HOME_DIR/venv/bin/apprise -v --config $ADDRESSES --body test"
        exit 1
    fi
}

main "$@"
