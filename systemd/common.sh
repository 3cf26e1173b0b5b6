# shellcheck shell=bash disable=SC2034 # whoever sources it uses the names
# Sourced by the scripts: names, and what several of them do.

# What one program prints and another reads, a date, say, is the same in every country
export LC_ALL=C.UTF-8 LANGUAGE=

readonly ACCOUNT=webkassa-key-updater CLIENTS=webkassa-key-clients
readonly HOME_DIR=/opt/webkassa-key-updater CURRENT=/opt/webkassa-key-updater/current
readonly CONFIG_DIR=/etc/webkassa-key-updater
readonly SETTINGS=$CONFIG_DIR/webkassa.env ADDRESSES=$CONFIG_DIR/apprise.conf
readonly ACCOUNTS=$CONFIG_DIR/accounts.d # where there are many; one file NAME.env each
readonly STATE_DIR=/var/lib/webkassa-key-updater
readonly UNIT_DIR=/etc/systemd/system SANDBOX=webkassa-key-.service.d/00-sandbox.conf
# In a folder that every sudo looks into; sudoers lines of before name the link
readonly COMMAND=/usr/bin/webkassa-key COMMAND_LINK=/usr/local/bin/webkassa-key
# Gives the command the drop-ins of the daily run, at every daemon-reload
readonly GENERATOR=/etc/systemd/system-generators/webkassa-key-drop-ins
readonly UPDATE=webkassa-key-update.service TIMER=webkassa-key-update.timer
readonly BOOT=webkassa-key-boot.service BOOT_TIMER=webkassa-key-boot.timer
readonly NET=webkassa-key-net.service NET_TIMER=webkassa-key-net.timer
readonly HEAL_TIMER=webkassa-key-heal.timer ALERT=webkassa-key-alert.service
readonly SOCKET=webkassa-key-renew.socket
readonly UNITS=(webkassa-key-{update,boot,net,heal}.{timer,service} webkassa-key-renew.socket
    webkassa-key-renew@.service webkassa-key-alert.service)
# What install.sh --account adds to the units. (Of one name, the second would hide the first)
readonly ACCOUNT_DROPINS=(webkassa-key-.service.d/10-accounts.conf
    webkassa-key-update.service.d/10-if-needed.conf)
readonly RELEASES=$HOME_DIR/releases
readonly HOME_MARK=$HOME_DIR/.webkassa-key-updater # the folder is ours
readonly CUT_SHORT=$HOME_DIR/taking-over # a link to the folder of a take-over at work
# One script at a time changes the installation; only root can hold this lock
readonly LOCK=/run/webkassa-key-updater.lock
readonly SNAPSHOT=$UNIT_DIR/.webkassa-key-updater # the units that a new release replaces
readonly TRIALS=/run/trial-of-webkassa-key-updater # what a new release is tried with, begins so
readonly BUILD=webkassa-key-build # scopes in which install.sh runs pip
readonly MARK='# Part of webkassa-key-updater.' # of our units, in their first line
readonly STOPPING='at most 13 minutes' # TimeoutStopSec=

print_help() { # the script: the comment at its top
    sed -n '2,/^set /s/^# \{0,1\}//p' "$1"
}

say() { # whether or not anybody can read it
    printf '%s\n' "$*" 2> /dev/null || true
}

is_root() {
    (($(id -u) == 0))
}

show() { # unit, property
    systemctl show --property="$2" --value "$1"
}

# Become a script of ours, in the first Python of a list that starts it, or in the system's. Its
# options: leave no files behind, heed nothing of the caller
run_python() { # script, Python ... -- arguments
    local script=$1 pythons=()
    shift
    while [[ $1 != -- ]]; do
        pythons+=("$1")
        shift
    done
    local python
    for python in "${pythons[@]}" python3 python3.{14,13,12,11,10}; do
        if "$python" -B -E -s "$script" --help > /dev/null 2>&1; then
            exec "$python" -B -E -s "$script" "${@:2}"
        fi
    done
}

# By the setting, for the few words that are said where no Python starts
speaks_russian() {
    [[ -r $SETTINGS && $'\n'$(< "$SETTINGS") == *$'\n'WEBKASSA_LANG=ru* ]]
}

is_ours() { # a unit or drop-in
    local first=''
    [[ -f $1 && ! -L $1 ]] && read -r first 2> /dev/null < "$1"
    [[ $first == "$MARK"* ]]
}

is_our_command() { # a script, or a link to it
    if [[ -L $1 ]]; then
        [[ $1 == "$COMMAND_LINK" && $(readlink "$1") == "$COMMAND" ]]
    else
        grep --quiet --no-messages "^$MARK" "$1"
    fi
}

# Hold the lock as file descriptor 9. What may outlive the script is to be started with 9>&-
take_lock() {
    umask 077
    exec 9> "$LOCK"
    umask 022
    flock --nonblock 9 || return
    # The pip of a killed install.sh would make its release anew, without the mark
    systemctl kill --signal=KILL "$BUILD-*.scope" 2> /dev/null || true
    systemctl stop "$BUILD-*.scope" 2> /dev/null || true
}

# From now on `leave` is the one way out. Who pipes the output into head has all done the same
leave_by_traps() {
    trap leave EXIT
    trap '' PIPE
    trap 'exit 130' INT
    trap 'exit 129' HUP
    trap 'exit 143' TERM
}

# What an installation needs until its end; one that was killed has left it
remove_traces() {
    rm -rf "$SNAPSHOT" "$TRIALS"-* /run/systemd/system/"${TRIALS##*/}"-*.service.d \
        "$COMMAND.new" "$SETTINGS.new" "$ACCOUNTS.new"
}

# Our units, and all that leads to them
remove_units() {
    local name
    for name in "${UNITS[@]}" "$SANDBOX" "${ACCOUNT_DROPINS[@]}"; do
        ! is_ours "$UNIT_DIR/$name" || rm -f "$UNIT_DIR/$name" "/var/lib/systemd/timers/stamp-$name"
    done
    for name in "$COMMAND_LINK" "$COMMAND"; do
        ! is_our_command "$name" || rm -f "$name"
    done
    rm -f "$GENERATOR" /run/webkassa-key/renew.sock
    rm -rf "${UNIT_DIR:?}/webkassa-key-command-.service.d" # of version 1
    rmdir "$UNIT_DIR"/webkassa-key-{,update}.service.d "${GENERATOR%/*}" /run/webkassa-key 2> /dev/null || true
}

# Only what install.sh made: a copy that somebody keeps has another name than its mark
drop_release() { # folder
    if [[ $1 && -f $1/.release && $(< "$1/.release") == "$(basename "$1")" ]]; then
        find "$1" -mindepth 1 -maxdepth 1 ! -name .release -exec rm -rf {} + # the mark goes last
        rm -rf "$1"
    elif [[ -d $1 ]]; then
        rmdir "$1" 2> /dev/null || true
    fi
}

# Where nothing but the mark is left
drop_home() {
    rmdir "$RELEASES" 2> /dev/null || true
    [[ -f $HOME_MARK && -z $(find "$HOME_DIR" -mindepth 1 ! -path "$HOME_MARK" -print -quit) ]] || return 0
    rm -f "$HOME_MARK"
    rmdir "$HOME_DIR"
}

# Run the module of a release as the services do: their user, sandbox and settings file, nothing of
# our environment. Unit and release come first, then the module's arguments.
run_module() {
    run_in_sandbox "$1" 20min "$2/venv/bin/webkassa-key-updater" --env-file "$SETTINGS" "${@:3}"
}

# Run a command as the services do. Signals are passed on to it, from now on; the exit code is its
# own.
run_in_sandbox() { # unit, limit of time (TimeoutStartSec= of services), command
    local unit=$1 code=0 signal='' interrupted='' job
    trap 'signal=INT' INT
    trap 'signal=TERM' TERM
    trap 'signal=HUP' HUP
    # Its own session: the terminal's signals come from here alone. systemd takes a death by INT, TERM
    # or HUP for a good end, test does not: then the code is the signal's number
    # shellcheck disable=SC2016 # systemd expands it
    setsid systemd-run --quiet --collect --wait --pipe --unit="$unit" \
        --property="RuntimeMaxSec=$2" --property='ExecStopPost=/usr/bin/test ${EXIT_CODE} = exited' -- "${@:3}" < /dev/null &
    job=$!
    while true; do
        code=0
        wait "$job" || code=$?
        [[ $signal ]] || break
        while kill -0 "$job" 2> /dev/null && ! kill_unit "$unit" "$signal"; do
            sleep 0.1 # it is being started
        done
        signal='' interrupted=yes
    done
    ((code != 238)) || name_state_folder >&2
    ((code != 226)) || name_sandbox >&2
    [[ $code != 15 && ! ($interrupted && $code == [12]) ]] || code=$((128 + code))
    return "$code"
}

name_state_folder() {
    say "systemd cannot use the folder $STATE_DIR (code 238). Nothing was asked of Webkassa, the key is as it was." \
        "It must be a folder (no file, no link), on a disk that is not full. Run: ls -ld $STATE_DIR; df $STATE_DIR"
}

name_sandbox() {
    say "systemd cannot set up the sandbox (code 226). Nothing was asked of Webkassa, the key is as it was." \
        "Does a drop-in name a path that is not there, or is this machine a container that may not" \
        "(LXC: nesting)? Run: sudo journalctl -b -n 9 -g namespac"
}

kill_unit() { # unit, signal
    systemctl kill --kill-who=main --signal="$2" "$1" 2> /dev/null
}

# After a good run: a failed one of the services is over, and a waiting one would only log in once
# more, where all keys are new. (--if-needed may have found nothing to do)
clear_failed_runs() { # yes: all keys are new
    local unit
    for unit in "$UPDATE" "$BOOT" "$NET"; do
        case $(show "$unit" SubState) in
            auto-restart*) [[ ! ${1-} ]] || systemctl stop "$unit" ;;
            failed) systemctl reset-failed "$unit" ;;
        esac
    done
    # Whoever was told of a failure is told that it is over
    [[ ! -e $STATE_DIR/alert.json ]] || systemctl start --no-block "$ALERT"
}
