#!/usr/bin/env bash
# Put back what "install.sh --take-over" of webkassa-key-updater moved here, by the list in the file
# "moved". First remove the updater that took over: sudo /opt/webkassa-key-updater/current/uninstall.sh
set -euo pipefail

main() {
    cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
    if [[ ${1-} != --force && -e /opt/webkassa-key-updater/current ]]; then
        echo "put-back.sh: nothing was put back: two updaters would kill each other's keys." \
            "First run: sudo /opt/webkassa-key-updater/current/uninstall.sh" >&2
        exit 1
    fi
    local kind path
    while IFS=$'\t' read -r kind path; do
        case $kind in
            unit | dropins | link) put_back "$path" ;;
            line) uncomment "${path%:*}" ;;
        esac
    done < moved
    systemctl daemon-reload
    while IFS=$'\t' read -r kind path; do
        [[ $kind != active ]] || systemctl start "$path" < /dev/null
    done < moved
    echo "All is as it was before the take-over: what renewed the key then renews it again."
}

put_back() {
    [[ -e .$1 || -L .$1 ]] || return 0
    mkdir --parents "${1%/*}"
    cp --archive --no-target-directory --remove-destination ".$1" "$1"
}

uncomment() { # the lines that were made a comment: the rest may have been changed since
    local new
    [[ -e $1 ]] || return 0
    new=$(mktemp "${1%/*}/.webkassa-key-updater.XXXXXX")
    cp --attributes-only --preserve=all "$1" "$new"
    sed 's/^# moved away by webkassa-key-updater: //' "$1" > "$new"
    mv --no-target-directory "$new" "$1"
}

main "$@"
