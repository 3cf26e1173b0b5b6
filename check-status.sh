#!/usr/bin/env bash
# Start systemd/server_status.py with the virtual environment's Python, or with the system's where
# that one is broken. For help: ./check-status.sh --help
set -euo pipefail

HERE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
readonly HERE
# shellcheck source=systemd/common.sh
. "$HERE/systemd/common.sh"

main() {
    cd / # the service's user may not see the folder that root is in
    run_python "$HERE/systemd/server_status.py" "$CURRENT/venv/bin/python" -- "$@"
    if speaks_russian; then
        say "WEBKASSA CRITICAL - программа: не запускается ни один Python 3.10 или новее, обновить ключ нечем"
    else
        say "WEBKASSA CRITICAL - code: no Python 3.10 or newer starts here, nothing can renew the key"
    fi
    exit 2
}

main "$@"
