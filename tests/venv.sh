# shellcheck shell=bash
# Sourced by demo.sh and test.sh, in the project's folder.

# Make .venv with what requirements-dev.txt names, unless it is there already.
make_venv() {
    local python wanted
    for python in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.10; do
        "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && break
        python=
    done
    if [ -z "$python" ]; then
        echo "Python 3.10 or newer with venv is needed. Debian, Ubuntu: apt-get install python3-venv" >&2
        exit 1
    fi
    wanted=$(cat requirements.txt requirements-dev.txt | cksum)
    if [ "$(cat .venv/made-for 2>/dev/null)" != "$wanted" ] || ! .venv/bin/python -c '' 2>/dev/null; then
        echo "Setting up .venv (once) ..." >&2
        rm -rf .venv
        "$python" -m venv .venv
        .venv/bin/pip --quiet --disable-pip-version-check install -r requirements-dev.txt
        echo "$wanted" >.venv/made-for
    fi
}
