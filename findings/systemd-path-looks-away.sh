#!/usr/bin/env bash
# systemd 252: a path unit misses what changes while its service runs, against its own manual
#
# Behaviour: systemd.path(5) says that after the service's end "monitored paths are checked
# immediately again, and the service accordingly restarted instantly". But with PathChanged= and
# PathModified= nobody looks while the service runs, and at its end there is nothing to compare
# with: what changes meanwhile starts nothing, ever. Both units look well.
# Seen with 252 of Debian 12: a service hands on the second key and works on for 2 s; the third key
# comes in that time, and is not handed on. Only the fourth, a minute or a day later, is.
# Why it matters: the service that restarts a shop because of a new key takes as long as the shop
# takes to stop. A key that is renewed again meanwhile (the first did not work, say) reaches
# nobody: the shop runs on with a dead one until the next. Keep such a service short (systemctl
# --no-block), or let it look again at its end whether the file is still the one that it has read.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    [[ -x /lib/systemd/systemd && $(type -P systemctl) ]] || cannot 'no systemd'
    systemctl --version | head -n 1
    ((EUID == 0)) || cannot 'it needs root'
    # A manager of its own, which ends with its namespace
    timeout 90 unshare --mount --pid --fork --kill-child --mount-proc \
        bash -c "set -eu; $(declare -f replace_key run_path_unit); run_path_unit '$TMP'" ||
        cannot 'no manager of its own'
    cd "$TMP"
    tail -n 3 PathChanged PathModified
    [[ $(paste -s PathChanged PathModified) == second*fourth*second*fourth && \
        $(cat PathChanged PathModified) != *third* ]] || changed 'see above'
    still_so 'the third key, which came while the service ran, is not handed on'
}

replace_key() { # key
    echo "$1" > new
    mv new "$directive.key"
}

run_path_unit() { # folder
    mount -t tmpfs tmpfs /run
    cd "$1"
    export XDG_RUNTIME_DIR=/run HOME=$PWD XDG_CONFIG_HOME=$PWD/config
    mkdir -p /run/systemd/system config/systemd/user
    local directive
    for directive in PathChanged PathModified; do
        echo first > "$directive.key"
        printf '[Path]\n%s=%s\n' "$directive" "$PWD/$directive.key" \
            > "config/systemd/user/$directive.path"
        printf '[Service]\nType=oneshot\nExecStart=sh -c "cat %s >>%s; sleep 2"\n' \
            "$PWD/$directive.key" "$PWD/$directive" > "config/systemd/user/$directive.service"
    done
    /lib/systemd/systemd --user > systemd.log 2>&1 &
    until [[ $(systemctl --user is-system-running 2> /dev/null) == running ]]; do sleep 0.1; done
    for directive in PathChanged PathModified; do
        systemctl --user start "$directive.path"
        replace_key second
        until [[ -s $directive ]]; do sleep 0.1; done
        replace_key third
        while [[ $(systemctl --user is-active "$directive.service") == activating ]]; do
            sleep 0.1
        done
        sleep 3
        replace_key fourth
        until grep -q fourth "$directive"; do sleep 0.1; done
    done
}

main "$@"
