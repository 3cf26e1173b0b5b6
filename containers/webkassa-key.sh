#!/usr/bin/env bash
# usage: docker run [OPTION ...] IMAGE COMMAND
#
#   serve    go on running, and renew the key: every day between 05:00 and 05:30 in Almaty, at once
#            where it is old or dead, and when a consumer asks at /run/webkassa-key/renew.sock
#   update   log in at Webkassa and store the new key; the key in use dies with that login
#   check    all that an update needs, but no login
#   status   how it stands; changes nothing
#
# Without a command nothing is done: a container that is started again and again must not log in
# each time. Options of the last three, and exit codes: IMAGE --help
set -euo pipefail

readonly SETTINGS=/opt/webkassa-key-updater/.env

main() {
    local word
    [[ $* != serve ]] || exec webkassa-key-serve
    # What was put in the place of a mounted file is not seen in here: the file of before goes on
    [[ $(stat -L --format=%h "$SETTINGS" 2> /dev/null) != 0 ]] || echo "webkassa-key: the settings file was replaced \
outside: what counts here is the old one. Restart this container to take the new one (docker restart NAME)." >&2
    for word; do
        case $word in
            update | check | status | -h | --help | --version) exec webkassa-key-updater "$@" ;;
        esac
    done
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

main "$@"
