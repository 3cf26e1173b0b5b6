#!/usr/bin/env bash
# usage: sudo ./install.sh [--env-file FILE] [--with-alerts] [--with-heal] [--no-run]
#
# Install the updater with its daily timer; run it again to upgrade or to mend an installation.
#
#   --env-file FILE  the settings to begin with; settings that exist are never overwritten
#   --with-alerts    add Apprise: alerts by Telegram, e-mail, Slack, ...
#   --with-heal      also look every 15 minutes whether the key is old or dead
#   --no-run         no first update now
#   -h, --help       print this help
#
# Without a network: sudo PIP_NO_INDEX=1 PIP_FIND_LINKS=/folder/of/wheels ./install.sh
#
# exit codes: 0 installed, checked, timer running; 1 not installed, what was there is as it was;
# 2 wrong usage; others: installed, but the check or the first update failed with this code, see
# webkassa_key_updater.py --help
set -euo pipefail
umask 022 # the service's user must read the code; the settings get their mode from install -m

SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
readonly SOURCE
readonly ACCOUNT=webkassa-key-updater
readonly HOME_DIR=/opt/webkassa-key-updater # a link to the release in use, /opt/NAME.TIME
readonly CONFIG_DIR=/etc/webkassa-key-updater
readonly SETTINGS=$CONFIG_DIR/webkassa.env
readonly UNIT_DIR=/etc/systemd/system
readonly SERVICE=webkassa-key-update.service TIMER=webkassa-key-update.timer
readonly HEAL_TIMER=webkassa-key-heal.timer
readonly APPRISE='apprise>=1.8,<3'
readonly TIME_ZONE=Asia/Almaty

env_file='' with_alerts='' with_heal='' no_run=''
python='' release='' code=0

main() {
    parse_options "$@"
    examine_machine
    trap 'rm -rf "$release"' EXIT # until it is in use
    build_release
    add_user
    place_settings
    check_release || code=$?
    if ((code)) && runs "$HOME_DIR"; then
        die "The check failed (code $code, see above). The earlier version stays in use."
    fi
    take_release_into_use
    start_timers
    if ((code == 0)) && [[ -z $no_run ]]; then
        run_first_update || code=$?
    fi
    prove_timer
    conclude
}

parse_options() {
    while (($#)); do
        case $1 in
            --env-file) env_file=${2-} && shift ;;
            --with-alerts | --with-heal | --no-run) printf -v "$(tr - _ <<< "${1#--}")" yes ;;
            -h | --help) print_help && exit ;;
            *) die "unknown option $1; see --help" 2 ;;
        esac
        shift || die "--env-file needs a file; see --help" 2
    done
    [[ -z $env_file || -r $env_file ]] || die "$env_file cannot be read." 2
}

print_help() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

die() { # message, exit code (1)
    printf 'install.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

say() {
    printf '%s\n' "$*"
}

examine_machine() {
    (($(id -u) == 0)) || die "must be run by root: sudo ./install.sh"
    local version
    version=$(systemctl --version 2> /dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p') || true
    ((${version:-0} >= 249)) || die "needs systemd 249 or newer, here is ${version:-none}. \
Without systemd see \"cron\" in README.md"
    systemctl show --property=Version > /dev/null 2>&1 || die "systemd does not run this machine."
    systemd-analyze calendar "05:00 $TIME_ZONE" > /dev/null 2>&1 ||
        die "The time zone $TIME_ZONE is missing. Run: $(installer tzdata tzdata timezone)"
    find_python
    [[ ! -e $HOME_DIR || -L $HOME_DIR ]] || die "$HOME_DIR is not of this script: move it away."
    exec 9< "$UNIT_DIR"
    flock --nonblock 9 || die "Another install.sh is at work."
}

# A Python in a home (pyenv, conda) is out of the service's sight
readonly FITS='import os, sys
home = os.path.realpath(sys.base_prefix).startswith(("/root/", "/home/"))
sys.exit(home or sys.version_info < (3, 10))'

find_python() {
    local name names version
    mapfile -t names < <(type -aP python3 python3.{14,13,12,11,10})
    for name in "${names[@]}"; do
        if "$name" -c "$FITS" 2> /dev/null; then
            version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
            "$name" -c 'import ensurepip, venv' 2> /dev/null ||
                die "Python $version lacks venv. Run: $(installer "python$version-venv" \
                    "python$version" "python${version/./}")"
            python=$name
            return
        fi
    done
    die "Python 3.10 or newer is missing (one in a home does not count). Run: \
$(installer 'python3 python3-venv' python3.12 python312)"
}

installer() { # names of a package at Debian, Red Hat, SUSE
    if command -v apt-get > /dev/null; then
        say "apt-get install $1"
    elif command -v dnf > /dev/null; then
        say "dnf install $2"
    elif command -v zypper > /dev/null; then
        say "zypper install $3"
    else
        say "your package manager, for: $1"
    fi
}

build_release() {
    local packages=(--requirement "$SOURCE/requirements.txt")
    if [[ $with_alerts ]] || has_apprise "$HOME_DIR"; then
        packages+=("$APPRISE")
    fi
    release=$HOME_DIR.$(date +%Y%m%d-%H%M%S).$$
    say "Building $release"
    mkdir "$release"
    cp -R "$SOURCE"/{webkassa_key_updater.py,requirements.txt,.env.example,systemd} \
        "$SOURCE"/{install,uninstall,check-status}.sh "$release"
    chmod -R u=rwX,go=rX "$release"
    "$python" -m venv "$release/venv" || die "The virtual environment could not be made."
    "$release/venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
        "${packages[@]}" || die "pip failed, see above. Without a network see --help."
    runs "$release" || die "The new version does not start."
}

runs() { # release
    [[ -e $1/venv/bin/python ]] &&
        "$1/venv/bin/python" -I "$1/webkassa_key_updater.py" --version > /dev/null 2>&1
}

has_apprise() { # release
    compgen -G "$1/venv/lib/python3*/site-packages/apprise" > /dev/null
}

add_user() {
    id "$ACCOUNT" > /dev/null 2>&1 ||
        useradd --system --user-group --no-create-home --home-dir /nonexistent \
            --shell /usr/sbin/nologin "$ACCOUNT"
}

place_settings() {
    install -d -o root -g "$ACCOUNT" -m 0750 "$CONFIG_DIR"
    if [[ -e $SETTINGS ]] && ! cmp --silent "$SETTINGS" "$SOURCE/.env.example"; then
        say "Keeping $SETTINGS${env_file:+; $env_file is not used}"
        chown "root:$ACCOUNT" "$SETTINGS" # uninstall.sh has given it to root alone
        return
    fi
    install -o root -g "$ACCOUNT" -m 0640 "${env_file:-$SOURCE/.env.example}" "$SETTINGS"
}

# Everything but logging in, as the service would: same user, same sandbox
check_release() {
    local sandbox
    mapfile -t sandbox < <(sed -n 's/^[A-Z][A-Za-z]*=/--property=&/p' \
        "$SOURCE/systemd/webkassa-key-.service.d/00-sandbox.conf")
    systemd-run --quiet --pipe --wait --collect "${sandbox[@]}" "$release/venv/bin/python" -I \
        "$release/webkassa_key_updater.py" --env-file "$SETTINGS" check < /dev/null
}

take_release_into_use() {
    ln -sfn "$(basename "$release")" "$HOME_DIR.next"
    mv -T "$HOME_DIR.next" "$HOME_DIR"
    trap - EXIT
    install -D -m 0644 -t "$UNIT_DIR/webkassa-key-.service.d" \
        "$HOME_DIR"/systemd/webkassa-key-.service.d/*.conf
    install -m 0644 -t "$UNIT_DIR" "$HOME_DIR"/systemd/*.{service,timer}
    systemctl daemon-reload
    local other
    for other in "$HOME_DIR".*; do
        [[ $other == "$release" ]] || rm -rf "$other"
    done
}

start_timers() {
    local timers=("$TIMER")
    if [[ $with_heal ]] || systemctl is-enabled --quiet "$HEAL_TIMER"; then
        timers+=("$HEAL_TIMER")
    fi
    if ! { systemctl enable --quiet "${timers[@]}" && systemctl restart "${timers[@]}"; }; then
        die "The timer cannot be started. To see why: systemctl status $TIMER"
    fi
}

# "Persistent" does not run a timer that is new
run_first_update() {
    local result=0
    systemctl reset-failed "$SERVICE" 2> /dev/null || true
    systemctl start "$SERVICE" 2> /dev/null || result=$(main_status)
    journalctl --sync
    journalctl --quiet --no-pager --output=cat "_SYSTEMD_UNIT=$SERVICE" \
        "_SYSTEMD_INVOCATION_ID=$(systemctl show --property=InvocationID --value "$SERVICE")"
    return "$result"
}

main_status() { # exit code of a run that failed; 1 where it has none
    local status
    status=$(systemctl show --property=ExecMainStatus --value "$SERVICE")
    say $((status ? status : 1))
}

prove_timer() {
    local next
    next=$(systemctl show --property=NextElapseUSecRealtime --value "$TIMER")
    systemctl is-enabled --quiet "$TIMER" || die "$TIMER is not enabled."
    systemctl is-active --quiet "$TIMER" || die "$TIMER is not active."
    [[ $next ]] || die "$TIMER has no next run."
    say "Next run: $next"
}

conclude() {
    if ((code)); then
        die "Installed, but it does not work yet (code $code, see above).
Mend it (settings: $SETTINGS), then run again: sudo $HOME_DIR/install.sh" "$code"
    fi
    say "Installed. How it stands: sudo $HOME_DIR/check-status.sh"
}

main "$@"
