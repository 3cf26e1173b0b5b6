#!/usr/bin/env bash
# usage: sudo ./uninstall.sh [--purge]
#
# Remove the updater: timers, services, code, state, and the user and groups that it made. Settings
# (of all accounts) and your own drop-ins stay (it says where). The database is never touched: the stored key goes on
# working.
#
#   --purge     settings, alert addresses and drop-ins, too
#   -h, --help  print this help
#
# exit codes: 0 removed, or nothing there; 1 not removed; 2 wrong usage
set -euo pipefail

HERE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
readonly HERE
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
    remove_all "$purge" 9>&-
}

remove_all() { # yes: purge
    local unit
    cd /
    stop_units
    refuse_while_in_use
    remove_units
    remove_users
    remove_folders
    if [[ $1 ]]; then
        rm -rf "$CONFIG_DIR" "$UNIT_DIR/webkassa-key-.service.d"
        for unit in "${UNITS[@]}"; do
            rm -rf "$UNIT_DIR/$unit.d"
        done
    elif [[ -d $CONFIG_DIR && ! -L $CONFIG_DIR ]]; then
        chown -hR root:root "$CONFIG_DIR" # its group's number may be given to somebody else
    fi
    systemctl daemon-reload
    say_what_stays
}

die() { # message, exit code (1)
    printf 'uninstall.sh: %s\n' "$1" >&2
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
    if id "$ACCOUNT" > /dev/null 2>&1 && made "user $ACCOUNT"; then
        found=$(find /proc -maxdepth 1 -name '[0-9]*' -user "$ACCOUNT" -printf '%f ')
        [[ -z $found ]] || die "$ACCOUNT still has a process: $found
Timers and services are stopped, nothing renews the key now. Run this again when it has ended."
    fi
}

made() { # a line of install.sh's notes
    [[ -f $HOME_MARK ]] && grep --quiet --line-regexp --fixed-strings "$1" "$HOME_MARK"
}

remove_units() {
    local unit
    for unit in "${UNITS[@]}" "$SANDBOX"; do
        if is_ours "$UNIT_DIR/$unit"; then
            rm -f "$UNIT_DIR/$unit" "/var/lib/systemd/timers/stamp-$unit"
        fi
    done
    for unit in "${ACCOUNT_DROPINS[@]}"; do
        ! is_ours "$UNIT_DIR/$unit" || rm -f "$UNIT_DIR/$unit"
        rmdir "$UNIT_DIR/${unit%/*}" 2> /dev/null || true
    done
    rm -f "$GENERATOR"
    rm -rf "${UNIT_DIR:?}/webkassa-key-command-.service.d" # of version 1
    rm -f /run/webkassa-key/renew.sock
    rmdir "$UNIT_DIR/webkassa-key-.service.d" "${GENERATOR%/*}" /run/webkassa-key 2> /dev/null || true
    for unit in "$COMMAND_LINK" "$COMMAND"; do
        ! is_our_command "$unit" || rm -f "$unit"
    done
}

remove_users() {
    local name
    local group
    group=$(getent group "$ACCOUNT" | cut -d : -f 3) || true
    if id "$ACCOUNT" > /dev/null 2>&1 && made "user $ACCOUNT"; then
        userdel "$ACCOUNT"
        if ! made "group $ACCOUNT" && ! getent group "$ACCOUNT" > /dev/null; then
            groupadd --gid "$group" "$ACCOUNT" # userdel has taken it along
        fi
    fi
    for name in "$ACCOUNT" "$CLIENTS"; do
        if getent group "$name" > /dev/null && made "group $name"; then # where userdel leaves it
            groupdel "$name"
        fi
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
    rmdir "$RELEASES" 2> /dev/null || true
    if [[ -z $(find "$HOME_DIR" -mindepth 1 ! -path "$HOME_MARK" -print -quit) ]]; then
        rm -f "$HOME_MARK"
        rmdir "$HOME_DIR"
    fi
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
