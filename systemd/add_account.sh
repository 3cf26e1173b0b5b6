# shellcheck shell=bash
# Sourced by install.sh: what its options --account and --accounts do.

declare -A added=() # the files with the accounts' settings, by their names
chosen=()           # the same, as options of the program

# shellcheck disable=SC2154 # options: of install.sh
name_accounts() {
    local file name wrong=''
    [[ -z ${options[with-alerts]-}${options[with-heal]-}${options[take-over]-}${options[unpinned]+given} ]] ||
        die "--account goes with --env-file and --no-run alone, --accounts with --no-run; see --help" 2
    if ! wants accounts; then
        wants env-file || die "--account needs --env-file, too; see --help" 2
        added[${options[account]}]=${options[env-file]}
    elif wants account || wants env-file; then
        die "--accounts goes with neither --account nor --env-file; see --help" 2
    else
        for file in "${options[accounts]}"/*; do
            [[ $file == *.env && -f $file && -r $file ]] || wrong+=" $file"
            name=${file##*/}
            added[${name%.env}]=$file
        done
    fi
    [[ -z $wrong ]] || die "--accounts: no file NAME.env, or it cannot be read:$wrong" 2
    for name in "${!added[@]}"; do
        [[ $name =~ ^[a-z0-9][a-z0-9_-]{0,39}$ ]] || wrong+=" \"$name\""
        chosen+=(--account "$name")
    done
    [[ -z $wrong ]] || die "The name of an account is a-z, 0-9, - and _, at most 40, and not:$wrong" 2
}

add_accounts() {
    local name there=''
    if [[ ! -d $CURRENT/systemd/accounts ]] || ! print_version "$CURRENT" &> /dev/null; then
        die "This version is not installed yet. First run: sudo ./install.sh"
    fi
    must_be_roots "$CONFIG_DIR"
    for name in "${!added[@]}"; do # the same once more ends what was cut short
        [[ ! -e $ACCOUNTS/$name.env && ! -L $ACCOUNTS/$name.env ]] ||
            cmp --silent "${added[$name]}" "$ACCOUNTS/$name.env" || there+=" $name"
    done
    [[ -z $there ]] || die "There is an account of this name, which stays as it is:$there. Nothing was changed."
    stage_accounts
    check_accounts
    place_accounts
    say "Accounts: $(cd "$ACCOUNTS" && printf '%s\n' *.env | sed 's/\.env$//' | paste -sd ' ')"
    if ! wants no-run; then
        (run_module "webkassa-key-command-account-$$" "$CURRENT" update --if-needed "${chosen[@]}") || code=$?
        ((code == 0)) || die "Added, but not every account has a key yet (code $code, see above)." "$code"
    fi
    say "How they stand: sudo webkassa-key status"
}

# All accounts as they are to be, for the check: nothing counts before it
stage_accounts() {
    local name
    rm -rf "$ACCOUNTS.new"
    install -d -o root -g "$ACCOUNT" -m 0750 "$ACCOUNTS.new"
    [[ ! -d $ACCOUNTS ]] || cp -a "$ACCOUNTS/." "$ACCOUNTS.new"
    split_settings own > "$ACCOUNTS.new/.main" || die "Nothing was changed."
    if [[ -s $ACCOUNTS.new/.main ]]; then
        [[ -z ${added[main]-} ]] || die "\"main\" is the account of $SETTINGS. Take another name."
        [[ ! -e $ACCOUNTS/main.env ]] || cmp --silent "$ACCOUNTS.new/.main" "$ACCOUNTS/main.env" ||
            die "$SETTINGS and $ACCOUNTS/main.env have an account each. Take the login out of the first."
        install -o root -g "$ACCOUNT" -m 0640 "$ACCOUNTS.new/.main" "$ACCOUNTS.new/main.env"
    fi
    for name in "${!added[@]}"; do
        install -o root -g "$ACCOUNT" -m 0640 "${added[$name]}" "$ACCOUNTS.new/$name.env"
    done
}

split_settings() { # own or rest
    "$CURRENT/venv/bin/python" -I "$CURRENT/systemd/split_settings.py" "$SETTINGS" "$1"
}

# The new accounts alone, or all where the first moves, too; that no two have one login is looked at
# for all in any case
check_accounts() {
    local new=() said
    [[ ! -d $ACCOUNTS ]] || new=("${chosen[@]}")
    said=$(run_module "webkassa-key-command-account-$$" "$CURRENT" check --accounts-dir "$ACCOUNTS.new" \
        "${new[@]}" 2>&1) || code=$?
    show_check "${said//" --accounts-dir $ACCOUNTS.new"/}"
    ((code == 0)) || die "The check failed (code $code, see above). Nothing was changed." "$code"
}

# Where it failed, neither the new accounts nor their files will be there: this command and what it was
# given are
show_check() { # what the check said
    local said=$1 name typed
    typed="--accounts $(printf %q "${options[accounts]-}")"
    local command='(sudo webkassa-key (check|update|status)) --account ([a-z0-9_-]+)'
    ! wants account || typed="--account ${options[account]}"
    if ((code)); then
        for name in "${!added[@]}"; do
            said=${said//"$ACCOUNTS.new/$name.env"/"${added[$name]}"}
        done
        while [[ $said =~ $command ]]; do # of the first account, it is not "main" yet
            name=${BASH_REMATCH[1]}
            [[ ! ${added[${BASH_REMATCH[3]}]-} ]] || name=$(this_command "$typed")
            said=${said/"${BASH_REMATCH[0]}"/"$name"}
        done
    fi
    say "${said//"$ACCOUNTS.new"/"$ACCOUNTS"}"
}

# Whatever interrupts it, each account is in one place at least, and the same command goes on
place_accounts() {
    local name target
    if [[ -d $ACCOUNTS ]]; then
        (
            trap '' INT HUP TERM # all of them, or none
            for name in main "${!added[@]}"; do
                [[ ! -e $ACCOUNTS.new/$name.env || -e $ACCOUNTS/$name.env ]] ||
                    mv -T "$ACCOUNTS.new/$name.env" "$ACCOUNTS/$name.env"
            done
        )
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
