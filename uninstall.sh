#!/usr/bin/env bash
# usage: sudo ./uninstall.sh [--purge]
#
# Remove the updater: timers, services, code, state and user. Settings and your own drop-ins stay
# (it says where). The database is never touched: the stored key goes on working.
#
#   --purge     settings, alert addresses and drop-ins, too
#   -h, --help  print this help
#
# exit codes: 0 removed, or nothing there; 1 not removed; 2 wrong usage
set -euo pipefail

readonly ACCOUNT=webkassa-key-updater
readonly HOME_DIR=/opt/webkassa-key-updater
readonly CONFIG_DIR=/etc/webkassa-key-updater
readonly STATE_DIR=/var/lib/webkassa-key-updater
readonly UNIT_DIR=/etc/systemd/system
readonly STAMPS=/var/lib/systemd/timers
readonly UNITS=(webkassa-key-{update,heal}.timer webkassa-key-{update,heal,alert}.service)

main() {
    local purge=''
    case $*/$# in
        /0) ;;
        --purge/1) purge=yes ;;
        -h/1 | --help/1) print_help && exit ;;
        *) die "unknown arguments $*; see --help" 2 ;;
    esac
    (($(id -u) == 0)) || die "must be run by root: sudo ./uninstall.sh"
    remove_units
    rm -rf "$HOME_DIR" "$HOME_DIR".* "$STATE_DIR"
    if [[ $purge ]]; then
        rm -rf "$CONFIG_DIR" "$UNIT_DIR"/webkassa-key-{update,heal}.{service,timer}.d \
            "$UNIT_DIR/webkassa-key-alert.service.d"
    elif [[ -d $CONFIG_DIR ]]; then
        chown -R root:root "$CONFIG_DIR" # its group's number may be given to somebody else
    fi
    remove_user
    systemctl daemon-reload
    say_what_stays
}

print_help() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

die() { # message, exit code (1)
    printf 'uninstall.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

# A run in the middle of a login ends first, and its key is stored
remove_units() {
    local unit
    for unit in "${UNITS[@]}"; do
        [[ -e $UNIT_DIR/$unit ]] || continue
        systemctl disable --quiet "$unit" 2> /dev/null || true # services cannot be enabled
        systemctl stop "$unit" || die "$unit cannot be stopped."
        systemctl reset-failed "$unit" 2> /dev/null || true
        rm -f "$UNIT_DIR/$unit" "$STAMPS/stamp-$unit"
    done
    rm -rf "$UNIT_DIR/webkassa-key-.service.d"
}

remove_user() {
    if id "$ACCOUNT" > /dev/null 2>&1; then
        userdel "$ACCOUNT"
    fi
    if getent group "$ACCOUNT" > /dev/null; then # where userdel leaves it
        groupdel "$ACCOUNT"
    fi
}

say_what_stays() {
    echo "The updater is removed. The key in the database is as it was; nothing renews it now."
    local kept
    for kept in "$CONFIG_DIR" "$UNIT_DIR"/webkassa-key-*.d; do
        [[ ! -e $kept ]] || echo "Kept: $kept"
    done
}

main "$@"
