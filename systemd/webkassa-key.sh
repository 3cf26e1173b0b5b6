#!/usr/bin/env bash
# usage: sudo webkassa-key update [--if-needed | --if-key FINGERPRINT] [--json] [--account NAME ...]
#        sudo webkassa-key check [--account NAME ...]
#        sudo webkassa-key status [--json | --metrics | --account NAME ...] [--no-probe]
#        sudo webkassa-key alert
#
# Run the installed updater as its service does: same user, sandbox and settings, so that what it
# says is what the night will do.
#
#   update      log in at Webkassa and store the new key. The key in use dies with that login
#     --if-needed           only if the key is old or dead
#     --if-key FINGERPRINT  only if the row still holds this key
#     --json                say for machines, too, what happened
#   check       all that an update needs, but no login
#   status      how it stands: key, timers, last run, installation; without sudo a part of it
#     --json    the same for machines
#     --metrics of the keys alone, for Prometheus (OpenMetrics text); exit code 0 once it is printed
#     --no-probe
#               Webkassa is not asked whether the key works
#     --account NAME
#               of many accounts this one only; may be a pattern ('almaty-*') and be given several
#               times. Of status: their keys alone
#   alert       send a test alert with the status now, and say what came of it
#   -h, --help  print this help
#
# Of many accounts (install.sh --account) each command does all: a plain update logs in for each of
# them, --if-needed for those whose key is old or dead.
#
# exit codes: of update and check those of webkassa_key_updater.py (0 is good, 2 wrong usage);
# of status 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN; of alert 0 when everybody was told. To stop an update: Ctrl-C
set -euo pipefail

HERE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
readonly HERE
# shellcheck source=systemd/common.sh
. "$HERE/common.sh"

main() {
    local usage=2 first=2 # wrong usage: 3 for status, since for a monitor 2 is CRITICAL
    case ${1-} in
        -h | --help) print_help "${BASH_SOURCE[0]}" && exit ;;
        status)
            if [[ " ${*:2} " != *' --account '* && " ${*:2} " != *' --metrics '* ]]; then
                only '--json|--no-probe' "${@:2}" || refuse 3 "$@"
                exec "$HERE/../check-status.sh" "${@:2}"
            fi
            only '--metrics|--no-probe|--account' "${@:2}" || refuse 3 "$@"
            usage=3
            ;;
        check) only '--account' "${@:2}" || refuse 2 "$@" ;;
        alert) (($# == 1)) || refuse 2 "$@" ;;
        update)
            [[ ! ${2-}${3-} =~ ^--if-key[0-9a-f]{8}$ ]] || first=4
            only '--if-needed|--json|--account' "${@:first}" || refuse 2 "$@"
            ;;
        '') die 2 "which command? See webkassa-key --help" ;;
        *) refuse 2 "$@" ;;
    esac
    is_root || die "$usage" "must be run by root: sudo webkassa-key $*"
    [[ -d $CURRENT ]] || die 78 "the updater is not installed: there is no $CURRENT. Nothing was asked of Webkassa, the key is as \
it was. Run: sudo ./install.sh (in a copy of the project)"
    local code=0
    if [[ $1 == alert ]]; then
        run_in_sandbox "webkassa-key-alert-now-$$" 5min "$CURRENT/systemd/send-alert.sh" --test || code=$?
        ((code < 200)) || explain "$code"
        exit "$code"
    fi
    [[ -x $CURRENT/venv/bin/python ]] || die 1 "the updater cannot start: its virtual environment is \
broken. Nothing was asked of Webkassa, the key is as it was. Run: sudo $CURRENT/install.sh"
    refuse_other_command
    run_module "webkassa-key-command-$$" "$CURRENT" "$@" || code=$?
    if [[ $1 == update && $* != *--account* ]] && ((code == 0)); then
        clear_failed_runs "$([[ $* == *--if-* ]] || echo yes)"
    fi
    [[ $1 == status ]] || explain "$code"
    exit "$code"
}

# Codes that the module has no words for: it did not start, or was killed
explain() { # exit code
    case $1 in
        0 | 2 | 69 | 7[0135678] | 129 | 130 | 143 | 226 | 238) ;;
        2[0-4][0-9])
            say "webkassa-key: systemd could not start the updater (code $1). Nothing was asked of Webkassa," \
                "the key is as it was. Run: sudo $CURRENT/install.sh" >&2
            ;;
        *)
            say "webkassa-key: the updater did not come to its own end (code $1). How the key stands:" \
                "sudo webkassa-key status" >&2
            ;;
    esac
}

only() { # options that may be there, with | between them; arguments
    local options=$1
    shift
    while [[ ${1-} =~ ^($options)$ ]]; do
        if [[ $1 == --account ]]; then
            [[ ${2-} =~ ^[][a-z0-9_*?!][][a-z0-9_*?!-]*$ ]] || return
            shift
        fi
        shift
    done
    (($# == 0))
}

refuse() { # exit code, arguments
    die "$1" "wrong usage: ${*:2}; see webkassa-key --help"
}

die() { # exit code, message
    printf 'webkassa-key: %s\n' "${*:2}" >&2
    exit "$1"
}

# A drop-in that says what to run would win over what the caller wants
refuse_other_command() {
    local found
    if found=$(grep --files-with-matches --no-messages \
        --exclude="${ACCOUNT_DROPINS[1]##*/}" '^[[:blank:]]*ExecStart[[:blank:]]*=' \
        "$UNIT_DIR/$UPDATE.d"/*.conf "$UNIT_DIR"/webkassa-key-.service.d/*.conf); then
        die 78 "${found//$'\n'/, } sets ExecStart=. Nothing was run, the key is as it was. Take that line \
away (all else may stand there), then run this again."
    fi
}

main "$@"
