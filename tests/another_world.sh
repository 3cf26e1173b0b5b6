#!/usr/bin/env bash
# usage: tests/another_world.sh [--clock DATE] [--person] COMMAND [ARGUMENT ...]
#
# Run a command, ./test.sh say, in a world unlike the one where the tests were written. Needs root
# and a C compiler; nothing on this machine is changed.
#
#   --clock DATE  the clock shows DATE at the start, for the command and all that it starts. DATE is
#                 what date(1) understands: "+2 days", "2028-02-29 12:00", 'TZ="Asia/Almaty" 2026-12-31 23:59:30'
#   --person      an ordinary user with a Russian locale, in Almaty's time, who lets nobody read their
#                 files (umask 077), as in the background of a script: SIGINT and SIGPIPE are ignored.
#                 Needs localedef (Debian: locales)
#   -h, --help    print this help
set -euo pipefail

readonly SCRATCH=/media # gets a file system of its own, which ends with the command
readonly PERSON=person ID=54321

main() {
    case ${1-} in
        -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" ;;
        --inside) shift && enter "$@" ;;
        *) exec unshare --mount --propagation=private bash "$0" --inside "$@" ;;
    esac
}

enter() {
    local clock='' person=''
    while [[ ${1-} == --* ]]; do
        case $1 in
            --clock) clock=$2 && shift 2 ;;
            --person) person=yes && shift ;;
            *) printf 'another_world.sh: unknown option %s; see --help\n' "$1" >&2 && exit 2 ;;
        esac
    done
    mount -t tmpfs -o mode=755 tmpfs "$SCRATCH"
    mkdir -m 1777 "$SCRATCH/tmp"
    export TMPDIR=$SCRATCH/tmp
    overlay /etc
    [[ -z $person ]] || make_person "$1"
    [[ -z $clock ]] || set_clock "$clock"
    if [[ $person ]]; then
        unset "${!LC_@}" LANGUAGE
        export LANG=ru_RU.UTF-8 TZ=Asia/Almaty HOME=$SCRATCH/$PERSON USER=$PERSON LOGNAME=$PERSON
        umask 077
        trap '' INT PIPE
        exec setpriv --reuid=$ID --regid=$ID --clear-groups --inh-caps=-all "$@"
    fi
    exec "$@"
}

# What is written to a folder from now on is seen in this world alone
overlay() { # folder
    local layer
    layer=$(mktemp -d "$SCRATCH/layer.XXXXXX")
    mkdir "$layer/upper" "$layer/work"
    chmod --reference="$1" "$layer/upper"
    mount -t overlay -o "lowerdir=$1,upperdir=$layer/upper,workdir=$layer/work" overlay "$1"
}

# A user, with a home, a locale and this project; neither it nor Python may lie behind a folder of
# root's own
make_person() { # command
    local path
    printf '%s:x:%s:%s::%s:/bin/bash\n' $PERSON $ID $ID "$SCRATCH/$PERSON" >> /etc/passwd
    printf '%s:x:%s:\n' $PERSON $ID >> /etc/group
    install -d -o $ID -g $ID "$SCRATCH/$PERSON"
    overlay /usr/lib/locale
    localedef --inputfile=ru_RU --charmap=UTF-8 ru_RU.UTF-8
    overlay "$PWD"
    cd "$PWD" # until now, this was what lies below
    find . -path './.venv*' -prune -o -exec chown --no-dereference $ID:$ID {} +
    for path in "$PWD" "$(realpath "$1")" $(realpath .venv*/bin/python); do
        while path=$(dirname "$path") && [[ $path != / ]]; do
            if ! setpriv --reuid=$ID --regid=$ID --clear-groups test -x "$path"; then
                overlay "$path"
                chmod o+x "$path"
            fi
        done
    done
}

# Processes ask the C library for the time, which asks what /etc/ld.so.preload names before itself:
# this also reaches those whose environment was cleared. What only measures (CLOCK_MONOTONIC) stays
set_clock() { # date
    local ahead
    ahead=$(($(date --date="$1" +%s) - $(date +%s)))
    cc -shared -fPIC -D "AHEAD=$ahead" -o "$SCRATCH/clock.so" -xc - << 'EOF'
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += AHEAD;
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    *now = (struct timeval){exact.tv_sec, exact.tv_nsec / 1000};
    return 0;
}
time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    return now ? *now = exact.tv_sec : exact.tv_sec;
}
EOF
    printf '%s\n' "$SCRATCH/clock.so" > /etc/ld.so.preload
}

main "$@"
