#!/usr/bin/env bash
# Start server_alert.py with the Python that has Apprise, or with another where that one is broken:
# then the alert stands in the journal at least. For help: send-alert.sh --help
set -euo pipefail

HERE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
readonly HERE
# shellcheck source=systemd/common.sh
. "$HERE/common.sh"

main() {
    cd /
    run_python "$HERE/server_alert.py" "$CURRENT/alerts/bin/python" "$CURRENT/venv/bin/python" -- "$@"
    if speaks_russian; then
        say "<3>Ключ обновить не удалось, и не запускается ни один Python, чтобы сказать больше. Наберите: sudo webkassa-key status"
    else
        say "<3>The key could not be renewed, and no Python starts here that could tell more. Run: sudo webkassa-key status"
    fi
    exit 1
}

main "$@"
