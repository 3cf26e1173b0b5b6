#!/usr/bin/env bash
# usage: sudo ./install.sh [--env-file FILE] [--with-alerts] [--with-heal] [--take-over] [--no-run]
#        sudo ./install.sh --account NAME --env-file FILE [--no-run]
#
# Install the updater with its timers; run it again to upgrade or to mend an installation.
#
#   --env-file FILE  the settings to begin with; settings that exist are never overwritten
#   --with-alerts    add Apprise: alerts by Telegram, e-mail, Slack, ...
#   --with-heal      also look every 15 minutes whether the key is old or dead
#   --take-over      move what renewed the key so far (units, lines of crontabs) to a folder in
#                    /var/backups; without this option such things are listed, and nothing is done
#   --no-run         no first update now
#   --account NAME   add an account to what is installed, with the settings in FILE that are its own,
#                    and list all. NAME is a-z, 0-9, - and _. The account that is there becomes "main"
#   -h, --help       print this help
#
# Without a network: sudo PIP_NO_INDEX=1 PIP_FIND_LINKS=/folder/of/wheels ./install.sh
# The folder holds the wheels of requirements.txt and setuptools, with --with-alerts also apprise
#
# exit codes: 0 installed, checked, timer running; 1 (or 130 and the like, when interrupted) not
# installed, what was there is as it was; 2 wrong usage; others: installed, but the check or the
# first update failed with this code, see webkassa_key_updater.py --help
set -euo pipefail
umask 022 # the service's user must read the code; the settings get their mode from install -m

SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
readonly SOURCE
# shellcheck source=systemd/common.sh
. "$SOURCE/systemd/common.sh"
# shellcheck source=systemd/others.sh
. "$SOURCE/systemd/others.sh"

readonly SNAPSHOT=$UNIT_DIR/.webkassa-key-updater # the units that a new release replaces
readonly BACKUPS=/var/backups
readonly APPRISE='apprise>=1.8,<3'
readonly TIME_ZONE=Asia/Almaty
readonly SPACE=250 # MiB that a release may need

new_account='' env_file='' with_alerts='' with_heal='' take_over='' no_run=''
python='' release='' earlier='' earlier_runs='' others='' backup='' stage='' code=0 died='' placed=''
# What is to be undone: nothing; looking: the same, nothing was done yet; building: the new release;
# switching: all
phase=nothing

main() {
    parse_options "$@"
    examine_machine
    take_lock || die "Another install.sh or uninstall.sh is at work. Wait for its end, then run this again."
    phase=looking
    trap leave EXIT
    trap '' PIPE # who pipes the output into head gets an installation all the same
    trap 'exit 130' INT
    trap 'exit 129' HUP
    trap 'exit 143' TERM
    if [[ $new_account ]]; then
        add_account 9>&-
    else
        install_all 9>&-
    fi
}

install_all() {
    examine_places
    put_back_what_was_cut_short
    look_for_others
    phase=building
    build_release
    add_users
    place_settings
    stage_units
    verify_units
    check_release
    take_release_into_use
    start_timers
    run_first_update
    prove_timers
    phase=nothing
    remove_earlier_releases
    conclude
}

parse_options() {
    while (($#)); do
        case $1 in
            --env-file)
                (($# > 1)) || die "--env-file needs a file; see --help" 2
                env_file=$2
                shift
                ;;
            --account)
                [[ ${2-} =~ ^[a-z0-9][a-z0-9_-]{0,39}$ ]] ||
                    die "--account needs a name of a-z, 0-9, - and _, at most 40; see --help" 2
                new_account=$2
                shift
                ;;
            --with-alerts) with_alerts=yes ;;
            --with-heal) with_heal=yes ;;
            --take-over) take_over=yes ;;
            --no-run) no_run=yes ;;
            -h | --help) print_help "${BASH_SOURCE[0]}" && exit ;;
            *) die "unknown option $1; see --help" 2 ;;
        esac
        shift
    done
    [[ -z $env_file || -f $env_file && -r $env_file ]] || die "$env_file cannot be read." 2
    if [[ $new_account ]]; then
        [[ $env_file ]] || die "--account needs --env-file, too; see --help" 2
        [[ -z $with_alerts$with_heal$take_over ]] ||
            die "--account goes with --env-file and --no-run alone; see --help" 2
    fi
}

die() { # message, exit code (1)
    printf 'install.sh: %s\n' "$1" >&2 || true
    died=yes
    exit "${2:-1}"
}

# The one way out: undo what is half done
leave() {
    local code=$?
    trap '' INT HUP TERM
    trap - EXIT
    set +e
    if ((code > 128)) && [[ -z $died ]]; then
        say "install.sh: interrupted."
    elif ((code)) && [[ -z $died ]]; then
        say "install.sh: a step failed, see above. $(disk_full)"
        code=1
    fi
    [[ $phase != switching ]] || put_everything_back
    if [[ $phase == @(building|switching) ]]; then
        drop_release "$release"
        # Else the next try would keep what may have been the fault
        [[ -z $placed ]] || rm -f "$SETTINGS"
        rmdir "$CONFIG_DIR" 2> /dev/null
    fi
    [[ $phase != @(looking|building) ]] ||
        say "This version was not installed: the key, and what renews it, are as they were."
    [[ -z $stage ]] || rm -rf "$stage" "/run/systemd/system/${stage##*/}.service.d"
    rm -rf "$SNAPSHOT" "$COMMAND.new" "$SETTINGS.new" "$ACCOUNTS.new"
    exit "$code"
}

disk_full() {
    local place free
    for place in /opt /etc "$UNIT_DIR" "$CONFIG_DIR" "${TMPDIR:-/tmp}" /var; do
        free=$(df --output=avail --block-size=1M "$place" 2> /dev/null | tail -n 1)
        free=${free//[^0-9]/}
        ((${free:-9} > 4)) || printf 'The disk of %s is full. ' "$place"
    done
}

examine_machine() {
    is_root || die "must be run by root: sudo ./install.sh"
    local version
    version=$(systemctl --version 2> /dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p') || true
    ((${version:-0} >= 249)) || die "needs systemd 249 or newer, here is ${version:-none}. \
Without systemd see \"cron\" in README.md"
    systemctl show --property=Version > /dev/null 2>&1 || die "systemd does not run this machine. In a container see \"Docker\" in README.md"
    systemd-analyze calendar "05:00 $TIME_ZONE" > /dev/null 2>&1 ||
        die "The time zone $TIME_ZONE is missing. Run: $(installer tzdata tzdata timezone)"
    find_python
}

# A Python in a home (pyenv, conda) is out of the service's sight; one that is not root's may change
readonly FITS='import os, sys
binary = os.path.realpath(sys.executable)
home = os.path.realpath(sys.base_prefix).startswith(("/root/", "/home/"))
known = os.stat(binary)
sys.exit(home or known.st_uid != 0 or bool(known.st_mode & 0o22) or sys.version_info < (3, 10))'

find_python() {
    local name names version
    mapfile -t names < <(type -aP python3 python3.{14,13,12,11,10})
    for name in "${names[@]}"; do
        if "$name" -I -c "$FITS" 2> /dev/null; then
            version=$("$name" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')
            "$name" -I -c 'import ensurepip, venv' 2> /dev/null ||
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
        say "sudo apt-get install $1"
    elif command -v dnf > /dev/null; then
        say "sudo dnf install $2"
    elif command -v zypper > /dev/null; then
        say "sudo zypper install $3"
    else
        say "your package manager, for: $1"
    fi
}

# Root will run what lies there: nobody else may be able to change it
examine_places() {
    local place found free
    for place in /opt "$UNIT_DIR" "${COMMAND%/*}" "${COMMAND_LINK%/*}" "$(dirname "$CONFIG_DIR")"; do
        while [[ $place != / ]]; do
            must_be_roots "$place"
            place=$(dirname "$(readlink -f "$place")")
        done
    done
    [[ ! -L $HOME_DIR ]] || die "$HOME_DIR is a link, and not of this installer: move it away."
    [[ ! -L $CONFIG_DIR ]] || die "$CONFIG_DIR is a link: make it a folder (the files in it may be links)."
    if [[ -e $HOME_DIR && ! -f $HOME_MARK ]] && ! rmdir "$HOME_DIR" 2> /dev/null; then
        die "$HOME_DIR is not of this installer: move it away."
    fi
    for place in "$HOME_DIR" "$CONFIG_DIR" "$UNIT_DIR"/webkassa-key-*.d; do
        [[ ! -e $place ]] || must_be_roots "$place"
    done
    found=$(find "$HOME_DIR" "$UNIT_DIR"/webkassa-key-*.d -xdev \
        \( ! -uid 0 -o ! -type l -perm /022 \) -print -quit 2> /dev/null) || true
    [[ -z $found ]] || die "$found can be changed by others than root. Run: \
sudo chown -h root:root $(printf '%q' "$found"); sudo chmod go-w $(printf '%q' "$found")"
    for place in "$COMMAND" "$COMMAND_LINK"; do
        is_our_command "$place" || [[ ! -e $place && ! -L $place ]] || die "$place is not of this installer: move it away."
    done
    if [[ -e $CURRENT && ! -L $CURRENT ]] || [[ -L $RELEASES ]]; then
        die "$HOME_DIR is not as the installer made it: move it away."
    fi
    if [[ $(findmnt --noheadings --output=OPTIONS --target /opt) == *noexec* ]]; then
        die "/opt is mounted \"noexec\": Python's libraries could not be loaded from there. Run: sudo mount -o remount,exec /opt"
    fi
    free=$(df --output=avail --block-size=1M /opt | tail -n 1)
    free=${free//[^0-9]/}
    ((${free:-9999} > SPACE)) || die "The disk of /opt is full: $free MiB are free, $SPACE are needed."
    if [[ -L $CURRENT ]]; then
        earlier=$RELEASES/$(basename "$(readlink "$CURRENT")")
        # In the first releases the module lay beside its venv
        if runs "$earlier" || "$earlier/venv/bin/python" -I "$earlier/webkassa_key_updater.py" --version &> /dev/null; then
            earlier_runs=yes
        fi
    fi
}

must_be_roots() { # folder, or a link to one
    local folder owner
    folder=$(readlink -f "$1")
    owner=$(stat --format='%u %g %a' "$folder") || die "$1 cannot be looked at."
    local user group mode
    read -r user group mode <<< "$owner"
    # Debian lets the group staff write to /usr/local
    if ((user != 0 || (8#$mode & 8#002) != 0)) ||
        { (((8#$mode & 8#020) != 0 && group != 0)) && [[ $folder != /usr/local* ]]; }; then
        die "$folder can be changed by others than root (owner $user, mode $mode): \
what is installed there would not be safe. If nobody needs that, run: \
sudo chown root:root $(printf '%q' "$folder"); sudo chmod go-w $(printf '%q' "$folder")"
    fi
    [[ -d $folder ]] || die "$1 is no folder: move it away."
}

put_back_what_was_cut_short() {
    rm -rf "$SNAPSHOT" /run/trial-of-webkassa-key-updater-* \
        /run/systemd/system/trial-of-webkassa-key-updater-*.service.d
    if [[ -L $CUT_SHORT ]]; then
        backup=$(readlink "$CUT_SHORT")
        say "An earlier take-over was cut short. Putting back what it moved to $backup"
        if [[ ! -L $HOME_DIR/previous ]]; then
            forget_units
        fi
        if ! put_others_back; then
            phase=nothing
            die "Not all could be put back, so perhaps nothing renews the key now. Run: \
sudo $backup/put-back.sh --force"
        fi
        backup=''
    fi
}

look_for_others() {
    local kind path remark
    others=$(find_others)
    [[ $others ]] || return 0
    say "This machine renews the key in other ways, too; each login kills the key before it:"
    while IFS=$'\t' read -r kind path remark; do
        say "  $kind  $path  ($remark)"
    done <<< "$others"
    if [[ $others == *$'look\t'* || $'\n'$others == *$'\n'look$'\t'* ]]; then
        say "What is called \"look\" does more than renew the key. It is never touched: look at it yourself, and
take the renewing out of it."
    fi
    others=$(grep --invert-match $'^look\t' <<< "$others") || return 0
    if [[ -z $take_over ]]; then
        # Units of our names would be overwritten; other things a running installation lives with
        if [[ $earlier && $others != *"has the name of one of ours"* ]]; then
            say "They stay at work beside this updater. To move them to a folder in $BACKUPS: sudo $0 --take-over"
            others=''
            return 0
        fi
        die "To move exactly these (but not what is called \"look\") to a \
folder in $BACKUPS and install: sudo $0 --take-over$([[ -z $env_file ]] || printf ' --env-file %q' "$env_file")"
    fi
    mkdir -p "$BACKUPS"
    must_be_roots "$BACKUPS"
    refuse_during_a_run
}

refuse_during_a_run() {
    local busy
    busy=$(at_work "$others")
    [[ -z $busy ]] || die "${busy//$'\n'/, } is at work: it may have logged in, and the key is \
not stored yet. Run this again when it has ended."
}

build_release() {
    local name old
    mkdir -p "$HOME_DIR" # the mark comes first: without it the folder would be somebody else's
    touch "$HOME_MARK"
    mkdir -p "$RELEASES"
    for old in "$RELEASES"/*; do
        [[ $old -ef $CURRENT || $old -ef $HOME_DIR/previous ]] || drop_release "$old"
    done
    name=$(date +%Y%m%d-%H%M%S).$$
    release=$RELEASES/$name
    say "Building $release (a minute or two)"
    mkdir "$release"
    printf '%s\n' "$name" > "$release/.release"
    cp -RL "$SOURCE"/{requirements.txt,.env.example,systemd} \
        "$SOURCE"/{install,uninstall,check-status}.sh "$release"
    make_venv "$release/venv" --requirement "$SOURCE/requirements.txt"
    add_program
    chmod -R u=rwX,go=rX "$release"
    if [[ $with_alerts || -e $CURRENT/alerts ]]; then
        make_venv "$release/alerts" "$APPRISE" # an alert of a broken venv must not need that venv
    fi
    runs "$release" || die "The new version does not start: $(version "$release" 2>&1 | tail -n 1)"
}

# The wheel stays: with it alone this release can be installed again, should its venv break
add_program() {
    if [[ -e $SOURCE/pyproject.toml ]]; then
        mkdir "$release/source" # pip writes to where it builds
        cp -L "$SOURCE"/{pyproject.toml,requirements.txt,webkassa_key_*.py} "$release/source"
        pip "$release/venv" wheel --no-deps --wheel-dir="$release" "$release/source"
        rm -r "$release/source"
    else
        cp "$SOURCE"/webkassa_key_updater-*.whl "$release"
    fi
    pip "$release/venv" install --no-deps "$release"/webkassa_key_updater-*.whl
}

make_venv() { # folder, what pip is to install
    build "$python" -m venv "$1" || die "The virtual environment could not be made. $(disk_full)"
    pip "$1" install "${@:2}"
}

pip() { # virtual environment, what pip is to do
    build "$1/bin/python" -m pip "$2" --quiet --no-input --disable-pip-version-check "${@:3}" ||
        die "pip failed, see above. $(disk_full)Without a network see --help."
}

build() { # what may outlive a killed install.sh: the next one must find and end it
    systemd-run --quiet --scope --unit="$BUILD-$$-$RANDOM$RANDOM" -- "$@"
}

runs() { # release
    version "$1" > /dev/null 2>&1
}

version() { # release; nothing of our environment may count: -I
    "$1/venv/bin/python" -I "$1/venv/bin/webkassa-key-updater" --version
}

# What is made here is noted, so that uninstall.sh removes that and no more
add_users() {
    add_group "$ACCOUNT"
    add_group "$CLIENTS"
    if ! id "$ACCOUNT" > /dev/null 2>&1; then
        note_made "user $ACCOUNT"
        useradd --system --gid "$ACCOUNT" --no-create-home --home-dir /nonexistent \
            --shell /usr/sbin/nologin "$ACCOUNT"
    fi
    (($(id -u "$ACCOUNT") != 0)) || die "The user $ACCOUNT has the number 0, so it is root. Give it another number."
}

add_group() {
    if ! getent group "$1" > /dev/null; then
        note_made "group $1"
        groupadd --system "$1"
    fi
}

note_made() {
    grep -qxF "$1" "$HOME_MARK" || printf '%s\n' "$1" >> "$HOME_MARK"
}

place_settings() {
    install -d -o root -g "$ACCOUNT" -m 0750 "$CONFIG_DIR"
    if [[ -L $SETTINGS ]]; then
        say "Keeping $SETTINGS, a link to $(readlink "$SETTINGS")${env_file:+; $env_file is NOT used}"
    elif [[ -s $SETTINGS ]] && ! cmp --silent "$SETTINGS" "$SOURCE/.env.example"; then
        say "Keeping $SETTINGS${env_file:+; $env_file is NOT used. To use it, move the other away first}"
        let_service_read "$SETTINGS"
    else
        install -o root -g "$ACCOUNT" -m 0640 "${env_file:-$SOURCE/.env.example}" "$SETTINGS.new"
        [[ -e $SETTINGS ]] || placed=yes
        mv -T "$SETTINGS.new" "$SETTINGS"
    fi
    local file
    for file in "$ADDRESSES" "$ACCOUNTS" "$ACCOUNTS"/*.env; do
        [[ ! -e $file || -L $file ]] || let_service_read "$file"
    done
}

let_service_read() { # file; uninstall.sh has given it to root alone
    [[ $(stat --format=%u "$1") == 0 ]] || return 0 # somebody else's: the check tells
    chown "root:$ACCOUNT" "$1"
    chmod g+r,o= "$1"
}

# The new units and the drop-ins of the administrator, for the trial of both before the switch
stage_units() {
    local name file
    stage=/run/trial-of-webkassa-key-updater-$$ # no name of ours: it has drop-ins of its own
    mkdir -m 0700 "$stage"
    cp -R "$release"/systemd/webkassa-key-* "$stage"
    sed -i "s#$CURRENT/#$release/#g" "$stage"/*.service
    for name in "${UNITS[@]}" webkassa-key-.service; do
        for file in "$UNIT_DIR/$name.d"/*.conf; do
            if [[ -f $file && $file != "$UNIT_DIR/$SANDBOX" ]] && ! is_taken_over "$name"; then
                mkdir -p "$stage/$name.d"
                cp -L "$file" "$stage/$name.d"
            fi
        done
    done
    if [[ -d $ACCOUNTS ]]; then
        cp -R "$release/systemd/accounts/." "$stage"
        sed -i "s#$CURRENT/#$release/#g" "${ACCOUNT_DROPINS[@]/#/"$stage/"}"
    fi
}

is_taken_over() { # unit
    [[ $others == *$'unit\t'"$UNIT_DIR/$1"$'\t'* ]]
}

verify_units() {
    local said result=0
    said=$(systemd-analyze verify --man=no "$stage"/webkassa-key-*.{timer,socket,service} 2>&1) || result=$?
    said=$(grep webkassa <<< "${said//$stage/$UNIT_DIR}") || true
    [[ -z $said ]] || say "$said"
    # Units of others may have faults, too
    ((result == 0)) || [[ -z $said ]] || die "systemd refuses the units of the new version together with your \
drop-ins, see above. Mend the drop-in, then run this again."
}

# Everything but logging in, as the service would: same user, same sandbox, same drop-ins
check_release() {
    local trial=${stage##*/} said
    mkdir -p "/run/systemd/system/$trial.service.d"
    cp "$stage"/webkassa-key-.service.d/*.conf "/run/systemd/system/$trial.service.d"
    if [[ -d $stage/$UPDATE.d ]]; then
        cp "$stage/$UPDATE.d"/*.conf "/run/systemd/system/$trial.service.d"
    fi
    # It is no run: neither retried nor alerted of, and it runs what we say
    sed -i -E '/^[[:blank:]]*(ExecStart|Restart|OnFailure|OnSuccess)[[:blank:]]*=/d' \
        "/run/systemd/system/$trial.service.d"/*.conf
    systemctl daemon-reload
    said=$stage/check
    run_module "$trial" "$release" check 2>&1 | tee --ignore-interrupts "$said" || code=${PIPESTATUS[0]}
    ((code)) || return 0
    explain "$said"
    [[ -z $others ]] || die "The check failed (code $code, see above). Nothing was taken over. Mend it, then run this again."
    if [[ $earlier_runs ]]; then
        if cmp --silent "$SETTINGS" "$SOURCE/.env.example"; then
            placed='' # to be filled in, so it must be there
            die "Fill in the settings ($SETTINGS), then run this again: nothing renews the key \
until then." "$code"
        fi
        die "The check failed (code $code, see above). The earlier version stays in use. Mend it, then run this again."
    fi
}

explain() { # file with what the check said
    local hidden
    hidden=$(cat "$1" "$SETTINGS" 2> /dev/null | hidden_paths) || true
    [[ -z $hidden ]] || say "${hidden//$'\n'/, } is there, but the service cannot see it: its \
sandbox hides /home, /root and /tmp. Move it (certificates to /etc/ssl, say), or change the sandbox \
as $UNIT_DIR/$SANDBOX says."
}

take_release_into_use() {
    take_snapshot
    phase=switching
    if [[ $others ]]; then
        take_others_over
    fi
    ln -sfn "releases/${release##*/}" "$HOME_DIR/.next"
    if [[ -L $CURRENT ]]; then
        ln -sfn "$(readlink "$CURRENT")" "$HOME_DIR/previous"
    fi
    mv -T "$HOME_DIR/.next" "$CURRENT"
    place_units
    systemctl daemon-reload
}

# Links, so that putting them back needs no room on the disk
take_snapshot() {
    local name
    mkdir -p "$SNAPSHOT/webkassa-key-.service.d" "$UNIT_DIR/webkassa-key-.service.d"
    for name in "${UNITS[@]}" "$SANDBOX"; do
        ! is_ours "$UNIT_DIR/$name" || ln -f "$UNIT_DIR/$name" "$SNAPSHOT/$name"
    done
    # Room is needed before the first change, not in the middle
    for name in "${UNITS[@]}" "$SANDBOX"; do
        install -m 0644 "$release/systemd/$name" "$SNAPSHOT/$name.new"
    done
    install -m 0755 "$release/systemd/webkassa-key" "$COMMAND.new"
    install -m 0755 "$release/systemd/webkassa-key-drop-ins" "$SNAPSHOT/generator.new"
}

place_units() {
    local name
    for name in "${UNITS[@]}" "$SANDBOX"; do
        mv -fT "$SNAPSHOT/$name.new" "$UNIT_DIR/$name"
    done
    [[ ! -d $ACCOUNTS ]] || place_account_dropins
    mv -fT "$COMMAND.new" "$COMMAND"
    ln -sfnT "$COMMAND" "$COMMAND_LINK"
    mkdir -p "${GENERATOR%/*}"
    mv -fT "$SNAPSHOT/generator.new" "$GENERATOR"
    rm -rf "${UNIT_DIR:?}/webkassa-key-command-.service.d" # of version 1
}

take_others_over() {
    local folder=$BACKUPS/webkassa-key-updater-${release##*/}
    [[ $(find_others | grep --invert-match $'^look\t') == "$others" ]] ||
        die "What renews the key has changed since the list above. Run this again."
    refuse_during_a_run
    ln -sfn "$folder" "$CUT_SHORT.next"
    backup=$folder
    mkdir -m 0700 "$folder"
    write_put_back "$others" "$folder"
    mv -T "$CUT_SHORT.next" "$CUT_SHORT"
    move_others "$others" "$folder"
    refuse_during_a_run # one that began meanwhile
    say "Moved what is listed above to $folder"
}

start_timers() {
    local unit upgraded=''
    [[ ! -e $SNAPSHOT/$TIMER ]] || upgraded=yes
    for unit in "$TIMER" "$SOCKET" "$BOOT_TIMER" "$NET_TIMER" "$HEAL_TIMER"; do
        if [[ $unit == "$HEAL_TIMER" && -z $with_heal ]] && ! systemctl is-enabled --quiet "$unit"; then
            continue
        elif [[ $upgraded && -e $SNAPSHOT/$unit && ! ($unit == "$HEAL_TIMER" && $with_heal) ]] &&
            ! systemctl is-enabled --quiet "$unit"; then
            say "$unit was disabled and stays so. To enable it: sudo systemctl enable --now $unit"
            continue
        fi
        systemctl enable --quiet "$unit" || die "$unit cannot be enabled. To see why: sudo systemctl status $unit"
        if [[ $unit == "$BOOT_TIMER" ]]; then
            continue # it begins at the next boot
        elif cmp --silent "$SNAPSHOT/$unit" "$UNIT_DIR/$unit"; then
            # Nothing changed: a timer restarted shortly before its time may lose the day
            systemctl start "$unit" || die "$unit cannot be started. To see why: sudo systemctl status $unit"
        else
            systemctl restart "$unit" || die "$unit cannot be started. To see why: sudo systemctl status $unit"
        fi
    done
}

# A timer that is new does not run at once. With a young live key an upgrade need not log in
run_first_update() {
    local service=$UPDATE result=0
    if ((code)) || [[ $no_run ]]; then
        return 0
    elif [[ $earlier ]]; then
        service=$BOOT
    fi
    # In "auto-restart" a start would hang until the next retry
    [[ $(show "$service" SubState) != auto-restart* ]] || systemctl stop "$service"
    [[ $(show "$service" ActiveState) != activating ]] ||
        say "A run is at work. Waiting for its end, $STOPPING."
    systemctl reset-failed "$service" 2> /dev/null || true
    systemctl start "$service" 2> /dev/null || result=$(main_status "$service")
    journalctl --sync
    journalctl --quiet --no-pager --output=cat "_SYSTEMD_UNIT=$service" \
        "_SYSTEMD_INVOCATION_ID=$(show "$service" InvocationID)"
    code=$result
    if ((code == 0)); then
        settle
    elif [[ $others ]]; then
        die "The first update failed (code $code, see above). What renewed the key before is put back: \
if the stored key is called dead above, run that now."
    elif [[ $earlier_runs && " 1 2 70 126 127 203 255 " == *" $code "* ]]; then
        die "The new version failed (code $code, see above). If the stored key is called dead above, \
run: sudo webkassa-key update"
    fi
}

main_status() { # exit code of a run that failed; 255 after a signal, 1 where it has none
    local status kind
    status=$(show "$1" ExecMainStatus) kind=$(show "$1" ExecMainCode)
    if ((kind > 1)); then
        say 255
    else
        say $((status ? status : 1))
    fi
}

prove_timers() {
    local unit
    "$CURRENT/check-status.sh" --timers > /dev/null ||
        for unit in "$TIMER" "$NET_TIMER" "$HEAL_TIMER"; do
            # The clock was set back: the first restart leaves the next run in the future
            if systemctl is-enabled --quiet "$unit"; then
                systemctl restart "$unit"
                systemctl restart "$unit"
            fi
        done
    "$CURRENT/check-status.sh" --timers || die "A timer would not start its run in time, see above."
}

# Whatever fails after the switch, or interrupts it
put_everything_back() {
    local name
    for name in "$UPDATE" "$BOOT"; do
        [[ $(show "$name" ActiveState) != activating ]] || say "Waiting for the run at work, $STOPPING."
        systemctl stop "$name" 2> /dev/null
    done
    rm -f "$COMMAND.new" "$HOME_DIR/.next"
    if [[ $earlier ]]; then
        ln -sfn "releases/${earlier##*/}" "$HOME_DIR/.next"
        mv -T "$HOME_DIR/.next" "$CURRENT"
        rm -f "$HOME_DIR/previous"
        for name in "${UNITS[@]}" "$SANDBOX"; do
            if [[ -e $SNAPSHOT/$name ]]; then
                mv -fT "$SNAPSHOT/$name" "$UNIT_DIR/$name"
            elif is_ours "$UNIT_DIR/$name"; then
                rm -f "$UNIT_DIR/$name"
            fi
        done
    else
        forget_units
    fi
    if [[ -L $CUT_SHORT ]]; then
        put_others_back || say "Not all could be put back, so perhaps nothing renews the key now. Run: sudo $backup/put-back.sh --force"
    fi
    systemctl daemon-reload
    if [[ $earlier ]]; then
        for name in "$TIMER" "$SOCKET" "$NET_TIMER" "$HEAL_TIMER"; do
            ! systemctl is-enabled --quiet "$name" || systemctl restart "$name"
        done
        say "The earlier version is in use again."
    else
        say "Nothing is installed."
    fi
}

put_others_back() {
    "$backup/put-back.sh" --force && rm -f "$CUT_SHORT"
}

# Units of ours, and all that leads to them
forget_units() {
    local name
    for name in "${UNITS[@]}"; do
        is_ours "$UNIT_DIR/$name" || continue
        systemctl disable --quiet "$name" 2> /dev/null || true # services cannot be enabled
        [[ $name == *@.service ]] || systemctl stop "$name" 2> /dev/null || true
        rm -f "$UNIT_DIR/$name"
    done
    rm -f "$CURRENT" "$COMMAND" "$COMMAND_LINK" "${ACCOUNT_DROPINS[@]/#/"$UNIT_DIR/"}" "$UNIT_DIR/$SANDBOX" /run/webkassa-key/renew.sock
    rm -f "$GENERATOR"
    rmdir "$UNIT_DIR"/webkassa-key-{,update}.service.d "${GENERATOR%/*}" /run/webkassa-key 2> /dev/null || true
}

# The earlier release stays until a run of the new one has ended well
remove_earlier_releases() {
    local old
    if [[ -L $CUT_SHORT ]]; then
        rm -f "$CUT_SHORT"
    fi
    rm -rf "$SNAPSHOT"
    ((code == 0)) && [[ -z $no_run ]] || return 0
    rm -f "$HOME_DIR/previous"
    for old in "$RELEASES"/*; do
        [[ $old == "$release" ]] || drop_release "$old"
    done
}

conclude() {
    if [[ $backup ]]; then
        say "What renewed the key so far is in $backup
To go back to it: sudo $CURRENT/uninstall.sh && sudo $backup/put-back.sh"
    fi
    if ((code)); then
        die "Installed, but it does not work yet (code $code, see above).
Mend it (settings: $SETTINGS), then run: sudo webkassa-key check
When that is good, get a key: sudo webkassa-key update" "$code"
    fi
    [[ -z $no_run ]] ||
        say "No update was run now (--no-run). To run one, which kills the key in use: sudo webkassa-key update"
    [[ -z $with_alerts || -e $ADDRESSES ]] ||
        say "Alerts need addresses: write them to $ADDRESSES, see \"alerts\" in README.md"
    [[ ! -e $ADDRESSES || ! -e $CURRENT/alerts ]] ||
        setpriv --reuid="$ACCOUNT" --regid="$ACCOUNT" --init-groups "$CURRENT/systemd/send-alert.sh" --look || true
    say "Installed. How it stands: sudo webkassa-key status"
}

add_account() {
    local file=$ACCOUNTS/$new_account.env unit=webkassa-key-command-account-$$
    if [[ ! -d $CURRENT/systemd/accounts ]] || ! runs "$CURRENT"; then
        die "This version is not installed yet. First run: sudo ./install.sh"
    fi
    must_be_roots "$CONFIG_DIR"
    # The same once more ends what was cut short
    if [[ -e $file || -L $file ]] && ! cmp --silent "$env_file" "$file"; then
        die "There is an account $new_account: $file stays as it is."
    fi
    stage_accounts
    check_account
    place_accounts
    say "Accounts: $(cd "$ACCOUNTS" && printf '%s\n' *.env | sed 's/\.env$//' | paste -sd ' ')"
    if [[ -z $no_run ]]; then
        (run_module "$unit" "$CURRENT" update --if-needed --account "$new_account") || code=$?
        ((code == 0)) || die "The account is added, but it has no key yet (code $code, see above)." "$code"
    fi
    say "How they stand: sudo webkassa-key status"
}

# All accounts as they are to be, for the check: nothing counts before it
stage_accounts() {
    rm -rf "$ACCOUNTS.new"
    install -d -o root -g "$ACCOUNT" -m 0750 "$ACCOUNTS.new"
    [[ ! -d $ACCOUNTS ]] || cp -a "$ACCOUNTS/." "$ACCOUNTS.new"
    split_settings own > "$ACCOUNTS.new/.main" || die "Nothing was changed."
    if [[ -s $ACCOUNTS.new/.main ]]; then
        [[ $new_account != main ]] || die "\"main\" is the account of $SETTINGS. Take another name."
        [[ ! -e $ACCOUNTS/main.env ]] || cmp --silent "$ACCOUNTS.new/.main" "$ACCOUNTS/main.env" ||
            die "$SETTINGS and $ACCOUNTS/main.env have an account each. Take the login out of the first."
        install -o root -g "$ACCOUNT" -m 0640 "$ACCOUNTS.new/.main" "$ACCOUNTS.new/main.env"
    fi
    install -o root -g "$ACCOUNT" -m 0640 "$env_file" "$ACCOUNTS.new/$new_account.env"
}

# An account's own lines of the settings, as they stand there, or the rest. It keeps its row
readonly SPLIT='import sys
from dotenv.parser import parse_stream
names = {"WEBKASSA_LOGIN", "WEBKASSA_PASSWORD", "WEBKASSA_SERVICE_NAME"}
with open(sys.argv[1], encoding="utf-8", newline="") as file:
    lines = list(parse_stream(file))
values = {line.key: line.value for line in lines}
if values.get("WEBKASSA_LOGIN_FILE") or values.get("WEBKASSA_PASSWORD_FILE"):
    sys.exit(f"The login or the password is in a file of its own: put both into {sys.argv[1]}.")
own = "".join(line.original.string.strip() + "\n" for line in lines if line.key in names)
if not values.get("WEBKASSA_SERVICE_NAME"):
    own += "WEBKASSA_SERVICE_NAME=Webkassa\n"
rest = "".join(line.original.string for line in lines if line.key not in names)
sys.stdout.reconfigure(encoding="utf-8", newline="")
sys.stdout.write(rest if sys.argv[2] == "rest" else own if values.get("WEBKASSA_LOGIN") else "")'

split_settings() { # own or rest
    "$CURRENT/venv/bin/python" -I -c "$SPLIT" "$SETTINGS" "$1"
}

# The new account alone, or all where the first moves, too; that no two have one login is looked at
# for all in any case
check_account() {
    local one=()
    [[ ! -d $ACCOUNTS ]] || one=(--account "$new_account")
    run_module "webkassa-key-command-account-$$" "$CURRENT" check --accounts-dir "$ACCOUNTS.new" \
        "${one[@]}" 2>&1 | (trap '' INT && sed -u "s# --accounts-dir $ACCOUNTS\.new##g; s#$ACCOUNTS\.new#$ACCOUNTS#g") || code=${PIPESTATUS[0]}
    ((code == 0)) || die "The check failed (code $code, see above). Nothing was changed." "$code"
}

# Whatever interrupts it, each account is in one place at least, and the same command goes on
place_accounts() {
    local file target
    if [[ -d $ACCOUNTS ]]; then
        for file in "$ACCOUNTS.new"/{main,"$new_account"}.env; do
            [[ ! -e $file || -e $ACCOUNTS/${file##*/} ]] || mv -T "$file" "$ACCOUNTS/${file##*/}"
        done
    else
        rm -f "$ACCOUNTS.new/.main"
        mv -T "$ACCOUNTS.new" "$ACCOUNTS"
    fi
    place_account_dropins
    systemctl daemon-reload
    if [[ -n $(split_settings own) ]]; then
        target=$(readlink -f "$SETTINGS")
        sync --file-system "$ACCOUNTS" # a power cut, too, must leave the login in one place at least
        cp --attributes-only --preserve=all "$target" "$target.new"
        split_settings rest > "$target.new"
        mv -T "$target.new" "$target"
        say "The account of $SETTINGS is now $ACCOUNTS/main.env"
    fi
}

place_account_dropins() {
    local name
    for name in "${ACCOUNT_DROPINS[@]}"; do
        install -D -m 0644 "$CURRENT/systemd/accounts/$name" "$UNIT_DIR/$name.new"
        mv -fT "$UNIT_DIR/$name.new" "$UNIT_DIR/$name"
    done
}

main "$@"
