# shellcheck shell=bash disable=SC2034,SC2154 # names of install.sh
# Sourced by install.sh: what else renews the key (others.sh finds it) is listed, moved away on demand,
# and put back.

readonly BACKUPS=/var/backups
readonly COMMENT='# moved away by webkassa-key-updater: ' # before a line of a crontab

look_for_others() {
    others=$(find_others)
    [[ $others ]] || return 0
    list_others
    others=$(grep --invert-match $'^look\t' <<< "$others") || return 0
    if wants take-over; then
        mkdir -p "$BACKUPS"
        must_be_roots "$BACKUPS"
        refuse_during_a_run
    # Units of our names would be overwritten; other things a running installation lives with
    elif [[ $earlier && $others != *"has the name of one of ours"* ]]; then
        say "They stay at work beside this updater. To move them to a folder in $BACKUPS: sudo $0 --take-over"
        others=''
    else
        die "To move exactly these (but not what is called \"look\") to a \
folder in $BACKUPS and install: $(this_command --take-over)"
    fi
}

list_others() {
    local kind path remark
    if grep --quiet --invert-match $'\tmay ' <<< "$others"; then
        say "This machine renews the key in other ways, too; each login kills the key before it:"
    else
        say "Perhaps this machine renews the key in other ways, too; each login kills the key before it:"
    fi
    while IFS=$'\t' read -r kind path remark; do
        say "  $kind  $path  ($remark)"
    done <<< "$others"
    [[ $'\n'$others != *$'\n'look$'\t'* ]] ||
        say "What is called \"look\" does more than renew the key, or only may renew it. It is never touched: look
at it yourself, and take the renewing out of it."
}

refuse_during_a_run() {
    local busy
    busy=$(at_work "$others")
    [[ -z $busy ]] || die "${busy//$'\n'/, } is at work: it may have logged in, and the key is \
not stored yet. Run this again when it has ended."
}

take_others_over() {
    [[ $others ]] || return 0
    local folder=$BACKUPS/webkassa-key-updater-${release##*/}
    [[ $(find_others | grep --invert-match $'^look\t') == "$others" ]] ||
        die "What renews the key has changed since the list above. Run this again."
    refuse_during_a_run
    ln -sfn "$folder" "$CUT_SHORT.next"
    mkdir -m 0700 "$folder"
    write_put_back "$others" "$folder"
    mv -T "$CUT_SHORT.next" "$CUT_SHORT"
    move_others "$others" "$folder"
    refuse_during_a_run # one that began meanwhile
    backup=$folder
    say "Moved what is listed above to $folder"
}

put_others_back() {
    rm -f "$CUT_SHORT.next"
    [[ -L $CUT_SHORT ]] || return 0
    local script
    script=$(readlink "$CUT_SHORT")/put-back.sh
    if "$script" --force; then
        rm -f "$CUT_SHORT"
    else
        remains="not all could be put back, so perhaps nothing renews the key now. Run: sudo $script --force"
        died=yes
        return 1
    fi
}

# What is listed and at work now
at_work() { # the list
    local kind path unit pid words word
    while IFS=$'\t' read -r kind path _; do
        unit=${path##*/}
        if [[ $kind == unit && $unit == *.service && $(show "$unit" ActiveState) == activating ]]; then
            printf '%s\n' "$unit"
        fi
    done <<< "$1"
    for pid in /proc/[0-9]*; do
        mapfile -d '' -t -n 4 words 2> /dev/null < "$pid/cmdline" || continue
        [[ ${words[0]-} =~ (^|/)(python|bash|sh|dash|env|php|node|perl|ruby)[0-9.]*$ ]] || words=("${words[0]-}")
        [[ ${words[*]} != *"$HOME_DIR/"* ]] || continue # ours
        if word=$(runs_updater "${words[*]}") && ! belongs_to "$1" "$pid"; then
            printf 'process %s (%s)\n' "${pid##*/}" "$word"
        fi
    done
}

# Is this process a daemon of a listed unit, which systemd stops for us?
belongs_to() { # the list, /proc/PID
    local group
    group=$(< "$2/cgroup") 2> /dev/null || return 0 # it has ended
    local kind path
    while IFS=$'\t' read -r kind path _; do
        if [[ $kind == unit && $group == *"/${path##*/}"* ]]; then
            return 0
        fi
    done <<< "$1"
    return 1
}

# Copy all that is listed to a folder; then move it away
move_others() { # the list, folder
    local kind path
    while IFS=$'\t' read -r kind path _; do
        case $kind in
            unit | dropins | link | line) ;;
            *) continue ;;
        esac
        [[ $kind != line ]] || path=${path%:*}
        # From /: cp 9.1, Debian 12's, looks for the parents of an absolute path where it stands
        (cd / && cp --archive --parents "$path" "$2")
    done <<< "$1"
    sync --file-system "$2" 2> /dev/null || true
    while IFS=$'\t' read -r kind path _; do
        if [[ $kind == unit ]]; then
            systemctl stop "${path##*/}" 2> /dev/null || true
        fi
    done <<< "$1"
    while IFS=$'\t' read -r kind path _; do
        case $kind in
            unit | link) rm --force "$path" ;;
            dropins) rm --recursive --force "$path" ;;
            line) edit_crontab "${path%:*}" "${path##*:}s/^/$COMMENT/" ;;
        esac
    done <<< "$1"
}

edit_crontab() { # file, command of sed; cron sees it by the folder's time
    local new
    new=$(mktemp "${1%/*}/.webkassa-key-updater.XXXXXX") # others may write to that folder
    cp --attributes-only --preserve=all "$1" "$new"
    sed "$2" "$1" > "$new"
    mv --no-target-directory "$new" "$1"
}

# A copy of the list, and of the script that goes by it
write_put_back() { # the list, folder
    local kind path
    install -m 0700 "$release/systemd/put-back.sh" "$2"
    while IFS=$'\t' read -r kind path _; do
        printf '%s\t%s\n' "$kind" "$path"
        if [[ $kind == unit ]] && systemctl is-active --quiet "${path##*/}"; then
            printf 'active\t%s\n' "${path##*/}"
        fi
    done <<< "$1" > "$2/moved"
}
