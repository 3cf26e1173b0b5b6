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

# Print what $VERSIONS limits pip to.
versions() {
    case ${VERSIONS:-newest} in
        lowest) sed -n 's/>=\([^,]*\),.*/==\1/p' requirements.txt ;;
        pinned) sed -n '/==/s/ \\$//p' requirements.lock ;;
        newest) ;;
        *) printf 'VERSIONS=%s: lowest, pinned or newest is needed.\n' "$VERSIONS" >&2 && return 1 ;;
    esac
}

# Put the folder of a virtual environment that is ours alone into $venv: .venv-dev for python3,
# .venv-dev-3.10 (say) for another that $PYTHON names. pip installs there what the arguments say.
# With VERSIONS=lowest or pinned, libraries of the program get the lowest versions that requirements.txt
# allows, or those of requirements.lock. Nothing that works is deleted, so that a machine without a network keeps what it has.
make_venv() {
    local python=${PYTHON:-python3} version made_for wanted limits
    limits=$(versions)
    if ! version=$(version_of "$python"); then
        if [[ -n ${PYTHON:-} ]] || ! read -r version python < <(pythons | tail -n 1); then
            printf '%s\n' "Python 3.10 or newer with venv is needed. Debian, Ubuntu: sudo apt-get install python3-venv" >&2
            exit 1
        fi
    fi
    venv=.venv-dev
    if [[ -n ${PYTHON:-} && $version != "$(version_of python3)" ]]; then
        venv=.venv-dev-$version
    fi
    if [[ -L $venv ]]; then
        printf '%s\n' "$venv is a link, and what it leads to is not ours to change. Remove the link." >&2
        exit 1
    fi
    made_for="$version $PWD" # what pip makes names its folder
    wanted="$made_for $(cat requirements*.txt | cksum) $* $limits"
    if [[ "$(cat "$venv/made-for" 2>/dev/null)" != "$wanted" ]] || ! "$venv/bin/python" -c '' 2>/dev/null; then
        printf 'Setting up %s ...\n' "$venv" >&2
        if [[ "$(cat "$venv/made-for" 2>/dev/null)" != "$made_for "* ]] || ! "$venv/bin/python" -m pip --version &>/dev/null; then
            "$python" -m venv --clear "$venv"
            printf '%s\n' "$made_for " >"$venv/made-for"
        fi
        "$venv/bin/python" -m pip --quiet --disable-pip-version-check install "$@" \
            --constraint <(printf '%s\n' "$limits")
        printf '%s\n' "$wanted" >"$venv/made-for"
    fi
}
