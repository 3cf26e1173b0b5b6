#!/usr/bin/env bash
# usage: sudo ./install.sh [--env-file FILE] [--with-alerts] [--with-heal] [--take-over] [--no-run]
#        sudo ./install.sh (--account NAME --env-file FILE | --accounts FOLDER) [--no-run]
#
# Install the updater with its timers; run it again to upgrade or to mend an installation.
#
#   --env-file FILE  the settings to begin with; settings that exist are never overwritten
#   --with-alerts    add Apprise: alerts by Telegram, e-mail, Slack, ...
#   --with-heal      also look every 15 minutes whether the key is old or dead
#   --take-over      move what renewed the key so far (units, lines of crontabs) to a folder in
#                    /var/backups; without this option such things are listed, and nothing is done
#   --no-run         no first update now
#   --unpinned       not the versions and hashes of requirements.lock, but what requirements.txt
#                    allows: for wheels of your own, and where PyPI has none for this processor.
#                    Upgrades go on so until --pinned
#   --account NAME   add an account to what is installed, with the settings in FILE that are its own,
#                    and list all. NAME is a-z, 0-9, - and _. The account that is there becomes "main"
#   --accounts FOLDER  add each file NAME.env in FOLDER so; where one of them is wrong, none
#   -h, --help       print this help
#
# Without a network: sudo PIP_NO_INDEX=1 PIP_FIND_LINKS=/folder/of/wheels ./install.sh
# On a like machine with a network, this fills the folder (with --with-alerts also -r
# requirements-alerts.lock): pip download --require-hashes --only-binary=:all: -r requirements.lock
#
# exit codes: 0 installed, checked, timer running; 1 (or 130 and the like, when interrupted) not
# installed, what was there is as it was; 2 wrong usage; others: installed, but the check or the
# first update failed with this code, see webkassa_key_updater.py --help
set -euo pipefail
umask 022 # the service's user must read the code; the settings get their mode from systemd-tmpfiles

# The steps in their order, and what undoes each: should one fail or be interrupted, what stands on
# the right is run for it and for all before it, from the last to the first
readonly STEPS=(
    'examine_places               -'
    'put_back_what_was_cut_short  -'
    'look_for_others              -'
    'build_release                remove_new_release'
    'make_users_and_folders       remove_new_settings' # users stay, as with packages
    'place_settings               -'
    'stage_units                  -' # the stage goes in any case
    'verify_units                 -'
    'check_release                -'
    'take_snapshot                -'
    'take_others_over             renew_as_before'
    'switch_release               switch_back'
    'start_timers                 -'
    'run_first_update             stop_runs'
    'prove_timers                 -'
)

SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
readonly SOURCE
# shellcheck source=systemd/common.sh
. "$SOURCE/systemd/common.sh"
# shellcheck source=systemd/others.sh
. "$SOURCE/systemd/others.sh"
# shellcheck source=systemd/take_over.sh
. "$SOURCE/systemd/take_over.sh"
# shellcheck source=systemd/add_account.sh
. "$SOURCE/systemd/add_account.sh"

readonly STAGE=$TRIALS-$$ # no name of ours: it has drop-ins of its own
readonly TRIAL=${STAGE##*/}
readonly TIME_ZONE=Asia/Almaty

declare -A options=() # by their names, without the dashes
python='' release='' earlier='' earlier_runs='' others='' backup=''
code=0 died='' placed=''
undo=() remains='' # what undoes the steps so far, the last first; what there is then

main() {
    parse_options "$@"
    examine_machine
    take_lock || die "Another install.sh or uninstall.sh is at work. Wait for its end, then run this again."
    leave_by_traps
    if wants account || wants accounts; then
        add_accounts 9>&-
    else
        install_all 9>&-
    fi
}

install_all() {
    local step
    remains='the key, and what renews it, are as they were.'
    for step in "${STEPS[@]}"; do
        [[ $step == *' -' ]] || undo=("${step##* }" "${undo[@]}") # first: it may be interrupted
        "${step%% *}"
    done
    undo=() remains=''
    remove_earlier_releases
    conclude
}

parse_options() {
    while (($#)); do
        case $1 in
            --env-file | --account | --accounts)
                [[ ${2-} ]] || die "$1 needs a value; see --help" 2
                options[${1#--}]=$2
                shift
                ;;
            --with-alerts | --with-heal | --take-over | --no-run | --unpinned) options[${1#--}]=yes ;;
            --pinned) options[unpinned]='' ;;
            -h | --help) print_help "${BASH_SOURCE[0]}" && exit ;;
            *) die "unknown option $1; see --help" 2 ;;
        esac
        shift
    done
    local file=${options[env-file]-}
    [[ -z $file || -f $file && -r $file ]] || die "$file cannot be read." 2
    if wants account || wants accounts; then
        name_accounts
    fi
}

wants() { # name of an option
    [[ ${options[$1]-} ]]
}

die() { # message, exit code (1)
    printf 'install.sh: %s\n' "$1" >&2 || true
    died=yes
    exit "${2:-1}"
}

# The one way out: undo what is half done
leave() {
    local code=$? step
    trap '' INT HUP TERM
    trap - EXIT
    set +e
    if ((code > 128)) && [[ -z $died ]]; then
        say "install.sh: interrupted."
    elif ((code)) && [[ -z $died ]]; then
        say "install.sh: a step failed, see above."
        code=1
    fi
    for step in "${undo[@]}"; do
        "$step"
    done
    [[ -z $remains ]] || say "This version was not installed: $remains"
    remove_traces
    exit "$code"
}

this_command() { # to type again, with an option of ours
    local name wheels='' # where they lie in a folder: an address may hold a password
    [[ -z ${PIP_NO_INDEX-} || ${PIP_FIND_LINKS-} != /* ]] || wheels="PIP_NO_INDEX=1 PIP_FIND_LINKS=${PIP_FIND_LINKS@Q} "
    printf 'sudo %s%q%s' "$wheels" "$0" "${1:+ $1}"
    for name in with-alerts with-heal unpinned no-run; do printf '%s' "${options[$name]:+ --$name}"; done
    ! wants env-file || printf ' --env-file %q' "${options[env-file]}"
}

examine_machine() {
    is_root || die "must be run by root: sudo ./install.sh"
    local version
    version=$(systemctl --version 2> /dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p') || true
    ((${version:-0} >= 249)) || die "needs systemd 249 or newer, here is ${version:-none}. \
Without systemd see \"Without systemd\" in docs/server.md"
    systemctl show --property=Version > /dev/null 2>&1 || die "systemd does not run this machine. In a container see docs/containers.md"
    systemd-analyze calendar "05:00 $TIME_ZONE" > /dev/null 2>&1 ||
        die "The time zone $TIME_ZONE is missing. Run: $(installer tzdata tzdata timezone)"
    find_python
}

find_python() {
    local name names version result
    mapfile -t names < <(type -aP python3 python3.{14,13,12,11,10})
    for name in "${names[@]}"; do
        result=0
        version=$("$name" -I "$SOURCE/systemd/python_fits.py" 2> /dev/null) || result=$?
        ((result != 3)) || die "Python $version lacks venv. Run: $(installer "python$version-venv" \
            "python$version" "python${version/./}")"
        ((result)) || { python=$name && return; }
    done
    die "Python 3.10 or newer is missing (one in a home does not count). Run: \
$(installer 'python3 python3-venv' python3.12 python312)"
}

installer() { # names of a package at Debian, Red Hat, SUSE
    local tool name=$1
    for tool in apt-get dnf zypper; do
        ! command -v "$tool" > /dev/null || { say "sudo $tool install $1" && return; }
        shift
    done
    say "your package manager, for: $name"
}

# Root will run what lies there: nobody else may be able to change it
examine_places() {
    local place found
    must_be_ours
    for place in /opt "$HOME_DIR" /etc "$CONFIG_DIR" "$UNIT_DIR"{,/webkassa-key-*.d} "${COMMAND%/*}" "${COMMAND_LINK%/*}"; do
        while [[ -e $place && $place != / ]]; do
            must_be_roots "$place"
            place=$(dirname "$(readlink -f "$place")")
        done
    done
    found=$(find "$HOME_DIR" "$UNIT_DIR"/webkassa-key-*.d -xdev \
        \( ! -uid 0 -o ! -type l -perm /022 \) -print -quit 2> /dev/null) || true
    [[ -z $found ]] || die "$found can be changed by others than root. Run: \
sudo chown -h root:root $(printf '%q' "$found"); sudo chmod go-w $(printf '%q' "$found")"
    must_have_room
    [[ -L $CURRENT ]] || return 0
    earlier=$RELEASES/$(basename "$(readlink "$CURRENT")")
    # By the lock an upgrade would fail on a rare processor, or replace wheels of one's own
    [[ -v options[unpinned] || ! -e $earlier/.unpinned ]] || options[unpinned]=yes
    # In the first releases the module lay beside its venv
    if print_version "$earlier" &> /dev/null || "$earlier/venv/bin/python" -I "$earlier/webkassa_key_updater.py" --version &> /dev/null; then
        earlier_runs=yes
    fi
}

must_have_room() {
    local place space=250 files=8000 free all left # MiB and files that a release may need, with alerts
    for place in /opt /etc "$UNIT_DIR" "$CONFIG_DIR" "${COMMAND%/*}" "${COMMAND_LINK%/*}" /var "${TMPDIR:-/tmp}"; do
        [[ -d $place ]] || continue
        [[ -w $place ]] || die "$place is read-only. To see why: findmnt --target $place"
        read -r free all left < <(df --output=avail,itotal,iavail --block-size=1M "$place" | sed '$!d; s/-/99999/g')
        ((free >= space)) || die "The disk of $place is full: $free MiB are free, $space are needed."
        ((all == 0 || left >= files)) || die "The disk of $place is full: $left more files are possible, $files are needed."
        space=5 files=100 # everywhere but in /opt
    done
    [[ $(findmnt --noheadings --output=OPTIONS --target /opt) != *noexec* ]] ||
        die "/opt is mounted \"noexec\": Python's libraries could not be loaded from there. Run: sudo mount -o remount,exec /opt"
}

must_be_roots() { # folder, or a link to one
    local folder
    folder=$(readlink -f "$1")
    [[ -d $folder ]] || die "$1 is no folder: move it away."
    # Debian lets the group staff write to /usr/local
    [[ $(find "$folder" -maxdepth 0 -uid 0 ! -perm -002 \( ! -perm -020 -o -gid 0 -o -path '/usr/local*' \)) ]] ||
        die "$folder can be changed by others than root ($(stat --format='owner %U, group %G, mode %a' "$folder")): \
what is installed there would not be safe. If nobody needs that, run: \
sudo chown root:root $(printf '%q' "$folder"); sudo chmod go-w $(printf '%q' "$folder")"
}

must_be_ours() {
    local place
    place=$(readlink -f /opt)
    [[ -L $CURRENT || $place != @(/home|/root|/tmp|/var/tmp)/* ]] || die "/opt is a link to $place, where the services could not see it: \
their sandbox hides homes and /tmp. Make it a mount: sudo sh -c 'rm /opt; mkdir /opt; mount --bind $place /opt' (and in /etc/fstab)"
    [[ ! -L $HOME_DIR ]] || die "$HOME_DIR is a link, and not of this installer: move it away."
    [[ -d $STATE_DIR || ! -e $STATE_DIR && ! -L $STATE_DIR ]] || die "$STATE_DIR is no folder: move it away."
    [[ ! -L $CONFIG_DIR ]] || die "$CONFIG_DIR is a link: make it a folder (the files in it may be links)."
    [[ ! -e $HOME_DIR || -f $HOME_MARK ]] || rmdir "$HOME_DIR" 2> /dev/null ||
        die "$HOME_DIR is not of this installer: move it away."
    for place in "$COMMAND" "$COMMAND_LINK"; do
        is_our_command "$place" || [[ ! -e $place && ! -L $place ]] || die "$place is not of this installer: move it away."
    done
    [[ ! -e $CURRENT || -L $CURRENT ]] && [[ ! -L $RELEASES ]] ||
        die "$HOME_DIR is not as the installer made it: move it away."
}

put_back_what_was_cut_short() {
    remove_traces
    [[ -L $CUT_SHORT ]] || return 0
    say "An earlier take-over was cut short. Putting back what it moved to $(readlink "$CUT_SHORT")"
    [[ -L $HOME_DIR/previous ]] || forget_units
    put_others_back || exit
}

build_release() {
    local old
    mkdir -p "$HOME_DIR" # the mark comes first: without it the folder would be somebody else's
    touch "$HOME_MARK"
    mkdir -p "$RELEASES"
    for old in "$RELEASES"/*; do
        [[ $old -ef $CURRENT || $old -ef $HOME_DIR/previous ]] || drop_release "$old"
    done
    release=$RELEASES/$(date +%Y%m%d-%H%M%S).$$
    say "Building $release (a minute or two)"
    mkdir "$release"
    printf '%s\n' "${release##*/}" > "$release/.release"
    cp -RL "$SOURCE"/{install,uninstall,check-status}.sh "$SOURCE"/requirements{,-alerts}.{txt,lock} \
        "$SOURCE"/{.env.example,systemd} "$release"
    fit_sandbox
    ! wants unpinned || say "It takes what requirements.txt allows, not requirements.lock. So will upgrades, until --pinned."
    make_venv "$release/venv" "$SOURCE/requirements"
    add_program
    chmod -R u=rwX,go=rX "$release"
    if wants with-alerts || [[ -e $CURRENT/alerts ]]; then
        make_venv "$release/alerts" "$SOURCE/requirements-alerts" # an alert of a broken venv must not need that one
    fi
    print_version "$release" &> /dev/null || die "The new version does not start: $(print_version "$release" 2>&1 | tail -n 1)"
}

# A host may forbid user namespaces (user.max_user_namespaces=0): a service that wants one ends with 217
fit_sandbox() {
    local result=0
    systemd-run --quiet --wait --collect --property=PrivateUsers=true true 2> /dev/null || result=$?
    ((result == 217)) || return 0
    say "This machine allows no user namespaces, so the services run without PrivateUsers=."
    sed -i '/^PrivateUsers=/d' "$release/systemd/$SANDBOX"
}

remove_new_release() {
    drop_release "$release"
    drop_home
}

# The wheel stays: with it alone this release can be installed again, should its venv break
add_program() {
    if [[ -e $SOURCE/pyproject.toml ]]; then
        mkdir "$release/source" # pip writes to where it builds
        cp -RL "$SOURCE"/{pyproject.toml,requirements.txt,webkassa_key_*.py,locale} "$release/source"
        # With the setuptools of the lock: else pip would take the newest
        pip "$release/venv" wheel --no-deps --no-build-isolation --wheel-dir="$release" "$release/source"
        rm -r "$release/source"
    else
        cp "$SOURCE"/webkassa_key_updater-*.whl "$release"
    fi
    pip "$release/venv" install --no-deps "$release"/webkassa_key_updater-*.whl
}

make_venv() { # folder; file of requirements, without .txt or .lock
    build "$python" -m venv "$1" || die "The virtual environment could not be made, see above."
    if wants unpinned; then
        pip "$1" install --requirement "$2.txt" --upgrade setuptools
        touch "$release/.unpinned"
    else
        pip "$1" install --require-hashes --only-binary=:all: --requirement "$2.lock"
    fi
}

pip() { # virtual environment, what pip is to do
    build "$1/bin/python" -m pip "$2" --quiet --no-input --disable-pip-version-check "${@:3}" ||
        die "pip failed, see above. Without a network, with wheels of your own, or on a rare processor see --help."
}

# What may outlive a killed install.sh is in a scope: the next one must find and end it. The command
# comes by standard input: systemd 262 expands ${HOME} and %n in what systemd-run is given
build() {
    printf 'exec %s < /dev/null' "${*@Q}" |
        systemd-run --quiet --scope --unit="$BUILD-$$-$RANDOM$RANDOM" -- bash
}

print_version() { # release; nothing of our environment may count: -I
    "$1/venv/bin/python" -I "$1/venv/bin/webkassa-key-updater" --version
}

make_users_and_folders() {
    SYSTEMD_LOG_LEVEL=notice systemd-sysusers "$release/systemd/sysusers.conf"
    systemd-tmpfiles --create "$release/systemd/tmpfiles.conf"
}

place_settings() {
    local file=${options[env-file]-}
    if [[ -L $SETTINGS ]] || { [[ -s $SETTINGS ]] && ! cmp --silent "$SETTINGS" "$SOURCE/.env.example"; }; then
        say "Keeping $SETTINGS${file:+; $file is NOT used. To use it, move the other away first}"
    else
        install -o root -g "$ACCOUNT" -m 0640 "${file:-$SOURCE/.env.example}" "$SETTINGS.new"
        [[ -z $file || ${LC_MESSAGES:-${LANG-}} != ru* ]] || grep -q '^WEBKASSA_LANG=' "$file" || printf '\nWEBKASSA_LANG=ru\n' >> "$SETTINGS.new"
        [[ -e $SETTINGS ]] || placed=yes
        mv -T "$SETTINGS.new" "$SETTINGS"
    fi
}

remove_new_settings() { # else the next try would keep what may have been the fault
    [[ -z $placed ]] || rm -f "$SETTINGS"
    rmdir "$CONFIG_DIR" 2> /dev/null
}

# The new units and the drop-ins of the administrator, for the trial of both before the switch
stage_units() {
    local name file
    mkdir -m 0700 "$STAGE"
    cp -R "$release"/systemd/webkassa-key-* "$STAGE"
    sed -i "s#$CURRENT/#$release/#g" "$STAGE"/*.service
    for name in "${UNITS[@]}" webkassa-key-.service; do
        for file in "$UNIT_DIR/$name.d"/*.conf; do
            # Those of a unit that is taken over go with it
            if [[ -f $file && $file != "$UNIT_DIR/$SANDBOX" && $others != *$'unit\t'"$UNIT_DIR/$name"$'\t'* ]]; then
                mkdir -p "$STAGE/$name.d"
                cp -L "$file" "$STAGE/$name.d"
            fi
        done
    done
    if [[ -d $ACCOUNTS ]]; then
        cp -R "$release/systemd/accounts/." "$STAGE"
        sed -i "s#$CURRENT/#$release/#g" "${ACCOUNT_DROPINS[@]/#/"$STAGE/"}"
    fi
}

verify_units() {
    local said result=0
    said=$(systemd-analyze verify --man=no "$STAGE"/webkassa-key-*.{timer,socket,service} 2>&1) || result=$?
    said=$(grep webkassa <<< "${said//$STAGE/$UNIT_DIR}") || true
    [[ -z $said ]] || say "$said"
    # Units of others may have faults, too
    ((result == 0)) || [[ -z $said ]] || die "systemd refuses the units of the new version together with your \
drop-ins, see above. Mend the drop-in, then run this again."
}

# Everything but logging in, as the service would: same user, same sandbox, same drop-ins
check_release() {
    local dropins=/run/systemd/system/$TRIAL.service.d said
    mkdir -p "$dropins"
    cp "$STAGE"/webkassa-key-.service.d/*.conf "$dropins"
    [[ ! -d $STAGE/$UPDATE.d ]] || cp "$STAGE/$UPDATE.d"/*.conf "$dropins"
    # It is no run: neither retried nor alerted of, and it runs what we say
    sed -i -E '/^[[:blank:]]*(ExecStart|Restart|OnFailure|OnSuccess)[[:blank:]]*=/d' "$dropins"/*.conf
    systemctl daemon-reload
    said=$(run_module "$TRIAL" "$release" check 2>&1) || code=$?
    show_said "$said"
    ((code && code != 77)) || { code=0 && return 0; } # 77: it remembers a refused login
    "$python" -B -E -s "$release/systemd/server_status.py" --hidden <<< "$said"
    [[ $others || $earlier_runs ]] || return 0
    if cmp --silent "$SETTINGS" "$SOURCE/.env.example"; then
        placed='' # to be filled in, so it must be there
        die "Fill in the settings ($SETTINGS), then run this again: until then this updater renews no key." "$code"
    fi
    [[ -z $others ]] || die "The check failed (code $code, see above). Nothing was taken over. Mend it, then run: $(this_command --take-over)"
    die "The check failed (code $code, see above). The earlier version stays in use. Mend it, then run this again."
}

# What the new version says. Where it failed and nothing will be left of it, its commands and the
# settings that were placed for it are not there: this command and its file are
show_said() {
    local text=$1 file=${options[env-file]-} typed
    if ((code)) && [[ $others && -z $earlier ]]; then
        for typed in 'update --if-needed' update check status; do
            text=${text//"sudo webkassa-key $typed"/"$(this_command --take-over)"}
        done
        [[ -z $placed || -z $file ]] || text=${text//"$SETTINGS"/"$file"}
    fi
    [[ -z $text ]] || say "$text"
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

switch_release() {
    local name
    ln -sfn "releases/${release##*/}" "$HOME_DIR/.next"
    [[ ! -L $CURRENT ]] || ln -sfn "$(readlink "$CURRENT")" "$HOME_DIR/previous"
    mv -T "$HOME_DIR/.next" "$CURRENT"
    for name in "${UNITS[@]}" "$SANDBOX"; do
        mv -fT "$SNAPSHOT/$name.new" "$UNIT_DIR/$name"
    done
    [[ ! -d $ACCOUNTS ]] || place_account_dropins
    mv -fT "$COMMAND.new" "$COMMAND"
    ln -sfnT "$COMMAND" "$COMMAND_LINK"
    mkdir -p "${GENERATOR%/*}"
    mv -fT "$SNAPSHOT/generator.new" "$GENERATOR"
    rm -rf "${UNIT_DIR:?}/webkassa-key-command-.service.d" # of version 1
    systemctl daemon-reload
}

switch_back() {
    local name
    rm -f "$HOME_DIR/.next"
    [[ $earlier ]] || { forget_units; return; }
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
}

forget_units() {
    local name
    for name in "${UNITS[@]}"; do
        ! is_ours "$UNIT_DIR/$name" || systemctl disable --quiet --now "$name" 2> /dev/null || true
    done
    remove_units
    rm -f "$CURRENT"
}

renew_as_before() {
    local name all=''
    remains='nothing is installed.'
    put_others_back && all=yes
    systemctl daemon-reload
    [[ $earlier ]] || return 0
    for name in "$TIMER" "$SOCKET" "$NET_TIMER" "$HEAL_TIMER"; do
        ! is_on "$name" || systemctl restart "$name"
    done
    [[ -z $all ]] || remains='the earlier version is in use again.'
}

start_timers() {
    local unit verb
    for unit in "$TIMER" "$SOCKET" "$BOOT_TIMER" "$NET_TIMER" "$HEAL_TIMER"; do
        if [[ $unit == "$HEAL_TIMER" ]]; then
            is_on "$unit" || wants with-heal || continue
        elif [[ -e $SNAPSHOT/$TIMER && -e $SNAPSHOT/$unit ]] && ! is_on "$unit"; then
            say "$unit was disabled and stays so. To enable it: sudo systemctl enable --now $unit"
            continue
        fi
        systemctl enable --quiet "$unit"
        [[ $unit != "$BOOT_TIMER" ]] || continue # it begins at the next boot
        verb=restart
        # A timer that is restarted shortly before its time may lose the day
        ! cmp --silent "$SNAPSHOT/$unit" "$UNIT_DIR/$unit" || verb=start
        systemctl "$verb" "$unit" || die "$unit cannot be started. To see why: sudo systemctl status $unit"
    done
}

is_on() { # unit
    systemctl is-enabled --quiet "$1"
}

# A timer that is new does not run at once. With a young live key an upgrade need not log in
run_first_update() {
    local service=$UPDATE
    ((code == 0)) && ! wants no-run || return 0
    [[ -z $earlier ]] || service=$BOOT
    # In "auto-restart" a start would hang until the next retry
    [[ $(show "$service" SubState) != auto-restart* ]] || systemctl stop "$service"
    [[ $(show "$service" ActiveState) != activating ]] ||
        say "A run is at work. Waiting for its end, $STOPPING."
    systemctl reset-failed "$service" 2> /dev/null || true
    systemctl start "$service" 2> /dev/null || code=$(main_status "$service")
    journalctl --sync || true # a machine may have no journal that answers: the run was good all the same
    show_said "$(journalctl --quiet --no-pager --output=cat "_SYSTEMD_UNIT=$service" \
        "_SYSTEMD_INVOCATION_ID=$(show "$service" InvocationID)")"
    if ((code == 0)); then
        clear_failed_runs
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
    say $((kind > 1 ? 255 : status ? status : 1))
}

stop_runs() {
    local name
    for name in "$UPDATE" "$BOOT"; do
        [[ $(show "$name" ActiveState) != activating ]] || say "Waiting for the run at work, $STOPPING."
        systemctl stop "$name" 2> /dev/null
    done
}

prove_timers() {
    local unit
    "$CURRENT/check-status.sh" --timers > /dev/null ||
        for unit in "$TIMER" "$NET_TIMER" "$HEAL_TIMER"; do
            # The clock was set back: the first restart leaves the next run in the future
            ! is_on "$unit" || { systemctl restart "$unit" && systemctl restart "$unit"; }
        done
    "$CURRENT/check-status.sh" --timers || die "A timer would not start its run in time, see above."
}

# The earlier release stays until a run of the new one has ended well
remove_earlier_releases() {
    local old
    rm -rf "$CUT_SHORT" "$SNAPSHOT"
    ((code == 0)) && ! wants no-run || return 0
    rm -f "$HOME_DIR/previous"
    for old in "$RELEASES"/*; do
        [[ $old == "$release" ]] || drop_release "$old"
    done
}

conclude() {
    [[ -z $backup ]] || say "What renewed the key so far is in $backup
To go back to it: sudo $CURRENT/uninstall.sh && sudo $backup/put-back.sh"
    ((code == 0)) || die "Installed, but it does not work yet (code $code, see above).
Mend it (settings: $SETTINGS), then run: sudo webkassa-key check
When that is good, get a key: sudo webkassa-key update" "$code"
    ! wants no-run || say "No update was run now (--no-run). To run one, which kills the key in use: sudo webkassa-key update"
    ! wants with-alerts || [[ -e $ADDRESSES ]] ||
        say "Alerts need addresses: write them to $ADDRESSES, see docs/server.md"
    [[ ! -e $ADDRESSES || ! -e $CURRENT/alerts ]] ||
        setpriv --reuid="$ACCOUNT" --regid="$ACCOUNT" --init-groups "$CURRENT/systemd/send-alert.sh" --look || true
    say "Installed. How it stands: sudo webkassa-key status"
}

main "$@"
