#!/usr/bin/env bash
# usage: sudo ./uninstall.sh [--purge]
#
# Remove the updater: timers, services, code and state. Settings (of all accounts) and your own
# drop-ins stay (it says where), so do its user and groups, as with packages. The database is never
# touched: the stored key goes on working.
#
#   --purge     settings, alert addresses, drop-ins, user and groups, too
#   -h, --help  print this help
#
# exit codes: 0 removed, or nothing there; 1 (or 130 and the like, when interrupted) not removed; 2
# wrong usage
set -euo pipefail

HERE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
readonly HERE
died=''
# shellcheck source=systemd/common.sh
. "$HERE/systemd/common.sh"

main() {
    local purge=''
    case ${1-} in
        --purge) purge=yes && shift ;;
        -h | --help) print_help "${BASH_SOURCE[0]}" && exit ;;
    esac
    (($# == 0)) || die "unknown arguments $*; see --help" 2
    is_root || die "must be run by root: sudo ./uninstall.sh"
    take_lock || die "Another install.sh or uninstall.sh is at work. Wait for its end, then run this again."
    leave_by_traps
    remove_all "$purge" 9>&-
}

# The one way out: who ends it half-way, while it waits for a run, say, has no timers any more
leave() {
    local code=$?
    trap '' INT HUP TERM
    trap - EXIT
    ((code == 0)) || [[ $died ]] || say "uninstall.sh: interrupted, or a step failed, see above. Perhaps nothing \
renews the key now.
To go on, run this again. To keep the updater: sudo ./install.sh (in a copy of the project); then
see what is still off: sudo webkassa-key status"
    exit $((code == 0 || code > 128 ? code : 1))
}

remove_all() { # yes: purge
    local unit
    cd /
    stop_units
    refuse_while_in_use
    remove_units
    remove_traces
    remove_folders
    if [[ $1 ]]; then
        rm -rf "$CONFIG_DIR" "$UNIT_DIR/webkassa-key-.service.d"
        for unit in "${UNITS[@]}"; do
            rm -rf "$UNIT_DIR/$unit.d"
        done
        remove_users
    fi
    systemctl daemon-reload
    say_what_stays
}

die() { # message, exit code (1)
    printf 'uninstall.sh: %s\n' "$1" >&2 || true
    died=yes
    exit "${2:-1}"
}

# A run in the middle of a login ends first, and its key is stored
stop_units() {
    local unit units
    mapfile -t units < <(systemctl list-units --plain --no-legend --all \
        'webkassa-key-command-*' 'webkassa-key-renew@*' | cut -d ' ' -f 1)
    for unit in "$SOCKET" "${UNITS[@]}" "${units[@]}"; do
        [[ $unit != *@.service && $unit ]] || continue
        [[ ! -e $UNIT_DIR/$unit ]] || is_ours "$UNIT_DIR/$unit" || continue
        [[ $(show "$unit" ActiveState) != activating ]] ||
            say "$unit is at work. Waiting for its end, $STOPPING."
        systemctl disable --quiet "$unit" 2> /dev/null || true # services cannot be enabled
        [[ $(show "$unit" LoadState) != loaded ]] || systemctl stop "$unit" ||
            die "$unit cannot be stopped. The code is still there. To see why: sudo systemctl status $unit"
        systemctl reset-failed "$unit" 2> /dev/null || true
    done
}

# Somebody may run the module by hand as its user, in the middle of a login
refuse_while_in_use() {
    local found
    if id "$ACCOUNT" > /dev/null 2>&1; then
        found=$(find /proc -maxdepth 1 -name '[0-9]*' -user "$ACCOUNT" -printf '%f ')
        [[ -z $found ]] || die "$ACCOUNT still has a process: $found
Timers and services are stopped, nothing renews the key now. Run this again when it has ended."
    fi
}

remove_users() {
    local name
    ! id "$ACCOUNT" > /dev/null 2>&1 || userdel "$ACCOUNT"
    for name in "$ACCOUNT" "$CLIENTS"; do
        ! getent group "$name" > /dev/null || groupdel "$name" # where userdel has left it
    done
}

# What somebody else has put there stays
remove_folders() {
    local release
    [[ ! -L $STATE_DIR ]] || die "$STATE_DIR is a link: remove it by hand, then run this again."
    rm -rf "$STATE_DIR"
    [[ -f $HOME_MARK ]] || return 0
    for release in "$RELEASES"/*; do
        drop_release "$release"
    done
    rm -f "$HOME_DIR"/{current,previous,.next}
    drop_home
}

say_what_stays() {
    say "The updater is removed. The key in the database is as it was, but nothing renews it now: it
works until it is about a day old."
    local kept
    for kept in "$HOME_DIR" "$CONFIG_DIR" "$UNIT_DIR"/webkassa-key-*.d /var/backups/webkassa-key-updater-*; do
        [[ ! -e $kept ]] || say "Kept: $kept"
    done
    if [[ -L $CUT_SHORT ]]; then
        say "A take-over was cut short. To put back what it moved: sudo $(readlink "$CUT_SHORT")/put-back.sh"
    fi
}

main "$@"
