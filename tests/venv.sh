# shellcheck shell=bash
# Sourced by demo.sh, test.sh and .ci/run, in the project's folder.

# Print the version, like 3.11, of a Python that serves here; fail for any other.
version_of() {
    "$1" -c '
import sys, venv, ensurepip
sys.exit(sys.version_info < (3, 10) or sys.version_info.releaselevel != "final" or print("%d.%d" % sys.version_info[:2]))
' 2>/dev/null
}

# Print "VERSION PROGRAM" for every version of Python that this machine has, oldest first.
pythons() {
    local python version
    for python in python3 python3.{10..19} "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3; do
        if version=$(version_of "$python"); then
            printf '%s %s\n' "$version" "$python"
        fi
    done | sort --stable --unique --version-sort --key=1,1
}

# Make a virtual environment with what requirements-dev.txt names, unless it is there already, and
# put its folder into $venv: .venv for python3, .venv-3.10 (say) for another that $PYTHON names.
# What several need is downloaded once: pip keeps it in its cache.
make_venv() {
    local python=${PYTHON:-python3} version wanted
    if ! version=$(version_of "$python"); then
        if [[ -n ${PYTHON:-} ]] || ! read -r version python < <(pythons | tail -n 1); then
            printf '%s\n' "Python 3.10 or newer with venv is needed. Debian, Ubuntu: sudo apt-get install python3-venv" >&2
            exit 1
        fi
    fi
    venv=.venv
    if [[ -n ${PYTHON:-} && $version != "$(version_of python3)" ]]; then
        venv=.venv-$version
    fi
    wanted="$version $(cat requirements.txt requirements-dev.txt | cksum)"
    if [[ "$(cat "$venv/made-for" 2>/dev/null)" != "$wanted" ]] || ! "$venv/bin/python" -c '' 2>/dev/null; then
        printf 'Setting up %s (once) ...\n' "$venv" >&2
        rm -rf "$venv"
        "$python" -m venv "$venv"
        "$venv/bin/pip" --quiet --disable-pip-version-check install -r requirements-dev.txt
        printf '%s\n' "$wanted" >"$venv/made-for"
    fi
}
