# shellcheck shell=bash
# Sourced by install.sh: what its option --account does.

# shellcheck disable=SC2154 # of install.sh
add_account() { # name, file with its settings
    local file=$ACCOUNTS/$1.env
    if [[ ! -d $CURRENT/systemd/accounts ]] || ! print_version "$CURRENT" &> /dev/null; then
        die "This version is not installed yet. First run: sudo ./install.sh"
    fi
    must_be_roots "$CONFIG_DIR"
    # The same once more ends what was cut short
    if [[ -e $file || -L $file ]] && ! cmp --silent "$2" "$file"; then
        die "There is an account $1: $file stays as it is."
    fi
    stage_accounts "$1" "$2"
    check_account "$1"
    place_accounts "$1"
    say "Accounts: $(cd "$ACCOUNTS" && printf '%s\n' *.env | sed 's/\.env$//' | paste -sd ' ')"
    if ! wants no-run; then
        (run_module "webkassa-key-command-account-$$" "$CURRENT" update --if-needed --account "$1") || code=$?
        ((code == 0)) || die "The account is added, but it has no key yet (code $code, see above)." "$code"
    fi
    say "How they stand: sudo webkassa-key status"
}

# All accounts as they are to be, for the check: nothing counts before it
stage_accounts() { # name, file
    rm -rf "$ACCOUNTS.new"
    install -d -o root -g "$ACCOUNT" -m 0750 "$ACCOUNTS.new"
    [[ ! -d $ACCOUNTS ]] || cp -a "$ACCOUNTS/." "$ACCOUNTS.new"
    split_settings own > "$ACCOUNTS.new/.main" || die "Nothing was changed."
    if [[ -s $ACCOUNTS.new/.main ]]; then
        [[ $1 != main ]] || die "\"main\" is the account of $SETTINGS. Take another name."
        [[ ! -e $ACCOUNTS/main.env ]] || cmp --silent "$ACCOUNTS.new/.main" "$ACCOUNTS/main.env" ||
            die "$SETTINGS and $ACCOUNTS/main.env have an account each. Take the login out of the first."
        install -o root -g "$ACCOUNT" -m 0640 "$ACCOUNTS.new/.main" "$ACCOUNTS.new/main.env"
    fi
    install -o root -g "$ACCOUNT" -m 0640 "$2" "$ACCOUNTS.new/$1.env"
}

split_settings() { # own or rest
    "$CURRENT/venv/bin/python" -I "$CURRENT/systemd/split_settings.py" "$SETTINGS" "$1"
}

# The new account alone, or all where the first moves, too; that no two have one login is looked at
# for all in any case
check_account() { # name
    local one=()
    [[ ! -d $ACCOUNTS ]] || one=(--account "$1")
    run_module "webkassa-key-command-account-$$" "$CURRENT" check --accounts-dir "$ACCOUNTS.new" \
        "${one[@]}" 2>&1 | (trap '' INT && sed -u "s# --accounts-dir $ACCOUNTS\.new##g; s#$ACCOUNTS\.new#$ACCOUNTS#g") || code=${PIPESTATUS[0]}
    ((code == 0)) || die "The check failed (code $code, see above). Nothing was changed." "$code"
}

# Whatever interrupts it, each account is in one place at least, and the same command goes on
place_accounts() { # name
    local file target
    if [[ -d $ACCOUNTS ]]; then
        for file in "$ACCOUNTS.new"/{main,"$1"}.env; do
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
