#!/usr/bin/env bash
# usage: ./test.sh [PYTEST-ARGUMENT ...]
#
# Lint, type-check and test everything. The first start sets up .venv-dev and needs PyPI; with
# PYTHON=python3.10 (say) in the environment it is .venv-dev-3.10. The boot test in tests/boot needs
# root, debootstrap and systemd-nspawn, and is skipped elsewhere.
set -euo pipefail
cd "$(dirname "$0")"

main() {
    if [[ ${1:-} == --help ]]; then
        sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p;}' "$0"
        exit
    fi
    # shellcheck source=tests/venv.sh
    . tests/venv.sh
    make_venv -r requirements-dev.txt
    unset PYTHONDONTWRITEBYTECODE # else each of the tests' workers compiles all of them, every time
    "$venv/bin/ruff" check .
    "$venv/bin/ruff" format --check .
    "$venv/bin/mypy"
    "$venv/bin/shellcheck" -x ./*.sh containers/*.sh systemd/*.sh tests/*.sh findings/*.sh .ci/*
    "$venv/bin/pytest" "$@"
}

main "$@"
