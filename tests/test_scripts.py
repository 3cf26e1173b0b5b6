"""The scripts' failure branches, with stand-ins for the machine's tools: no root, no systemd."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from world.scripts import after

ROOT = Path(__file__).parents[1]
SCRIPTS = ("install.sh", "uninstall.sh", "systemd/webkassa-key.sh")
PARTS = [path for path in (ROOT / "systemd").glob("*.sh") if path.name != "webkassa-key.sh"]
# What the scripts may use of the machine as it is
HONEST = ("bash", "basename", "cat", "cmp", "cut", "date", "dirname", "env", "flock", "grep",
          "readlink", "sed", "sort", "tail", "tr")  # fmt: skip

Stub = Callable[..., None]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    """Put a stand-in for a tool on the path: a line of shell."""

    def stub(name: str, line: str = "exit 0") -> None:
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)

    for tool in HONEST:
        (tmp_path / tool).symlink_to(shutil.which(tool))
    stub("id", "case $1 in -u) echo 0 ;; *) echo root ;; esac")
    stub("apt-get")
    stub("systemd-analyze")
    stub("systemctl", "echo 'systemd 252 (252.39)'")
    return stub


@pytest.fixture
def run(tmp_path: Path, stub: Stub) -> Run:
    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        bash = tmp_path / "bash"
        return subprocess.run(
            [bash, ROOT / script, *arguments], env={"PATH": str(tmp_path)}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_comment_at_the_top(script: str, run: Run) -> None:
    result = run(script, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: ")
    assert "set -" not in result.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "code"),
    [
        ("install.sh", ["--wtih-alerts"], 2),
        ("install.sh", ["--env-file"], 2),
        ("install.sh", ["--env-file", "/nowhere"], 2),
        ("uninstall.sh", ["--prune"], 2),
        ("uninstall.sh", ["--purge", "--json"], 2),
        ("install.sh", ["--env-file", "/"], 2),
        ("install.sh", ["--account"], 2),
        ("install.sh", ["--account", "north"], 2),
        ("install.sh", ["--account", "north", "--env-file", "/nowhere"], 2),
        ("install.sh", ["--account", "North", "--env-file", __file__], 2),
        ("install.sh", ["--account", "-north", "--env-file", __file__], 2),
        ("install.sh", ["--account", "../north", "--env-file", __file__], 2),
        ("install.sh", ["--account", "north\n", "--env-file", __file__], 2),
        ("install.sh", ["--account", 41 * "n", "--env-file", __file__], 2),
        ("install.sh", ["--account", "north", "--env-file", __file__, "--take-over"], 2),
        ("install.sh", ["--account", "north", "--env-file", __file__, "--unpinned"], 2),
        ("install.sh", ["--account", "north", "--env-file", __file__, "--pinned"], 2),
        ("install.sh", ["--accounts"], 2),
        ("install.sh", ["--accounts", "/nowhere"], 2),
        ("install.sh", ["--accounts", __file__], 2),
        ("install.sh", ["--accounts", str(ROOT / "docs")], 2),
        ("install.sh", ["--accounts", str(ROOT / "docs"), "--with-heal"], 2),
        ("systemd/webkassa-key.sh", ["status", "--jsno"], 3),  # for a monitor, 2 would be CRITICAL
        ("systemd/webkassa-key.sh", [], 2),
        ("systemd/webkassa-key.sh", ["renew"], 2),
        ("systemd/webkassa-key.sh", ["update", "--env-file", "/etc/passwd"], 2),
        ("systemd/webkassa-key.sh", ["update", "--if-key", "-"], 2),
        ("systemd/webkassa-key.sh", ["update", "--if-key", "a1b2c3d4; reboot"], 2),
        ("systemd/webkassa-key.sh", ["update\n", "--if-needed"], 2),
        ("systemd/webkassa-key.sh", ["update", "--account"], 2),
        ("systemd/webkassa-key.sh", ["check", "--account", "--env-file"], 2),
        ("systemd/webkassa-key.sh", ["check", "--account", "a", "--env-file", "/etc/passwd"], 2),
        ("systemd/webkassa-key.sh", ["status", "--account", "a", "--json"], 3),
        ("systemd/webkassa-key.sh", ["status", "--metrics", "--json"], 3),
        ("systemd/webkassa-key.sh", ["status", "--metrics --no-probe"], 3),
        ("systemd/webkassa-key.sh", ["status", "--metrics", ""], 3),
        ("systemd/webkassa-key.sh", ["status", "--no-probe", "--timers"], 3),
        ("systemd/webkassa-key.sh", ["update", "--metrics"], 2),
        ("systemd/webkassa-key.sh", ["update", "--json\n"], 2),
        ("systemd/webkassa-key.sh", ["check", "--no-probe"], 2),
    ],
)
def test_wrong_usage_is_refused(script: str, arguments: list[str], code: int, run: Run) -> None:
    result = run(script, *arguments)
    assert result.returncode == code
    assert result.stdout.startswith(f"{Path(script).stem if 'systemd' in script else script}: ")


@pytest.mark.parametrize("script", ["install.sh", "uninstall.sh"])
def test_without_root_it_says_sudo(script: str, run: Run, stub: Stub) -> None:
    stub("id", "echo 1000")
    result = run(script)
    assert result.returncode == 1
    assert result.stdout == f"{script}: must be run by root: sudo ./{script}\n"


def test_an_account_is_added_to_what_is_installed_only(
    run: Run, stub: Stub, tmp_path: Path
) -> None:
    source = copy(tmp_path / "source", tmp_path)
    stub("python3", "exit 1")
    stub("python3.12", "echo 3.12")
    stub("stat", "echo 0")
    stub("rm")
    result = run(f"{source}/install.sh", "--account", "north", "--env-file", __file__)
    assert result.returncode == 1
    assert "is not installed yet. First run: sudo ./install.sh\n" in result.stdout


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ((), ""),
        (("North.env", "новая.env"), '"North" "новая"'),
        (("new.env.txt", "notes", "b.env/x"), "{0}/b.env {0}/new.env.txt {0}/notes"),
        (("-a.env", "$(false).env", "a b.env"), '"$(false)" "-a" "a b"'),
    ],
)
def test_all_wrong_names_in_a_folder_of_accounts_are_told_at_once(
    more: tuple[str, ...], wrong: str, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "new accounts"
    for name in ("a.env", ".hidden", *more):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    result = run("install.sh", "--accounts", str(folder), "--no-run")
    said = result.stdout.rpartition(":")[2] if wrong else ""
    assert (result.returncode == 2) == bool(wrong), result.stdout
    assert sorted(said.replace(str(folder), "{0}").split()) == sorted(wrong.split())
    both = run("install.sh", "--accounts", str(folder), "--env-file", __file__)
    assert both.returncode == 2


# settings, what of them is the account's own, and what remains
SPLITS = [
    ("WEBKASSA_LOGIN=a\nWEBKASSA_PASSWORD='$x # \\'y'\nPGHOST=db",
     "WEBKASSA_LOGIN=a\nWEBKASSA_PASSWORD='$x # \\'y'\nWEBKASSA_SERVICE_NAME=Webkassa\n", "PGHOST=db"),
    ("# c\nexport WEBKASSA_LOGIN=a\n\nWEBKASSA_SERVICE_NAME=till\n#WEBKASSA_PASSWORD=\n",
     "export WEBKASSA_LOGIN=a\nWEBKASSA_SERVICE_NAME=till\n", "# c\n#WEBKASSA_PASSWORD=\n"),
    ("WEBKASSA_SERVICE_NAME=\nWEBKASSA_LOGIN='касса'\r\n",
     "WEBKASSA_SERVICE_NAME=\nWEBKASSA_LOGIN='касса'\nWEBKASSA_SERVICE_NAME=Webkassa\n", ""),
    ("WEBKASSA_LOGIN=\nPGHOST=db\n", "", "PGHOST=db\n"),
]  # fmt: skip


def split(settings: Path, which: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", ROOT / "systemd/split_settings.py", settings, which]
    return subprocess.run(command, capture_output=True)


@pytest.mark.parametrize(("settings", "own", "rest"), SPLITS)
def test_an_account_moves_with_its_row_as_it_is_written(
    settings: str, own: str, rest: str, tmp_path: Path
) -> None:
    (tmp_path / "settings").write_bytes(settings.encode())
    assert split(tmp_path / "settings", "own").stdout.decode() == own
    assert split(tmp_path / "settings", "rest").stdout.decode() == rest


def test_a_login_in_a_file_of_its_own_is_not_left_behind(tmp_path: Path) -> None:
    (tmp_path / "settings").write_text("WEBKASSA_LOGIN=a\nWEBKASSA_PASSWORD_FILE=/etc/password\n")
    result = split(tmp_path / "settings", "own")
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"is in a file of its own: put both into" in result.stderr


# name of the stand-in, what it does, and what install.sh says then
MACHINES = [
    ("systemctl", "exit 127", "needs systemd 249 or newer, here is none"),
    ("systemctl", "echo 'systemd 247 (247.3-7)'", "needs systemd 249 or newer, here is 247"),
    ("systemctl", "[ $1 = --version ] && echo 'systemd 252'", "systemd does not run this machine"),
    ("systemd-analyze", "exit 1", "Asia/Almaty is missing. Run: sudo apt-get install tzdata"),
    ("python3", "exit 1", "Run: sudo apt-get install python3 python3-venv"),
    (
        "python3",
        "echo 3.12; exit 3",
        "Python 3.12 lacks venv. Run: sudo apt-get install python3.12-venv",
    ),
]


@pytest.mark.parametrize(("name", "does", "said"), MACHINES, ids=[said for _, _, said in MACHINES])
def test_install_says_what_the_machine_lacks(
    name: str, does: str, said: str, run: Run, stub: Stub
) -> None:
    stub("python3", "exit 1")
    stub(name, does)
    result = run("install.sh")
    assert result.returncode == 1
    assert said in result.stdout


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ("import os, sys; sys.base_prefix = '/home/eve/.pyenv'", 1, ""),
        ("import os, sys; sys.version_info = (3, 9)", 1, ""),
        ("import os, sys; sys.modules['venv'] = None", 3, "3."),
    ],
)
def test_a_python_that_cannot_carry_it_is_known(changed: str, code: int, said: str) -> None:
    """As far as this one goes: it may be in a home itself, or not root's."""
    fits = f"import runpy; runpy.run_path('{ROOT}/systemd/python_fits.py')"
    root = "os.stat = lambda path: os.stat_result([0o755, 0, 0, 0, 0, 0, 0, 0, 0, 0])"
    good = "sys.base_prefix = '/usr'"
    command = [sys.executable, "-I", "-c", f"import os, sys; {good}; {changed}; {root}; {fits}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout[:2]) == (code, said)


def test_install_names_red_hats_package_there(run: Run, stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "apt-get").unlink()
    stub("dnf")
    stub("python3", "exit 1")
    assert "Run: sudo dnf install python3.12\n" in run("install.sh").stdout


# Where the scripts have their things, and where below a test's folder
PLACES = {
    "/opt/webkassa-key-updater": "home",
    "/etc/webkassa-key-updater": "etc",
    "/etc/systemd/system": "units",
    "/run/webkassa-key-updater.lock": "lock",
}


def copy(folder: Path, places: Path) -> Path:
    """Copy the project to a folder; its scripts have their things below `places`."""
    shutil.copytree(ROOT / "systemd", folder / "systemd")
    for name in ("install.sh", "check-status.sh", ".env.example"):
        shutil.copy(ROOT / name, folder)
    common = folder / "systemd/common.sh"
    text = common.read_text(encoding="utf-8")
    for place, name in PLACES.items():
        assert f"={place}" in text
        text = text.replace(place, f"{places}/{name}")
    common.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def installed(stub: Stub, tmp_path: Path) -> Path:
    """Pretend that it is installed below tmp_path, and that systemd cannot start it."""
    current = copy(tmp_path / "home/current", tmp_path)
    (current / "venv/bin").mkdir(parents=True)
    (current / "venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (current / "venv/bin/python").chmod(0o755)
    shutil.copy(ROOT / "webkassa_key_updater.py", current / "venv/bin/webkassa-key-updater")
    for tool in ("setsid", "stat", "sleep"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    stub("systemd-run", "exit 203")
    stub("systemctl")
    return current


@pytest.mark.parametrize("signal", ["", "INT", "TERM"])
def test_who_ends_uninstall_half_way_is_told_that_timers_may_be_off(
    signal: str, installed: Path, run: Run, stub: Stub
) -> None:
    """Ctrl-C while it waits for a run left a server that renewed nothing, without a word."""
    shutil.copy(ROOT / "uninstall.sh", installed)
    if signal:  # else a tool that it needs is missing
        stub("systemctl", f"[ $1 != disable ] || kill -{signal} $PPID")
    result = run(f"{installed}/uninstall.sh")
    assert result.returncode == {"": 1, "INT": 130, "TERM": 143}[signal]
    assert "Perhaps nothing renews the key now.\nTo go on, run this again." in result.stdout


def test_command_says_that_nothing_was_asked_where_python_is_gone(
    installed: Path, run: Run
) -> None:
    (installed / "venv/bin/python").unlink()
    result = run(f"{installed}/systemd/webkassa-key.sh", "update")
    assert result.returncode == 1
    assert "Nothing was asked of Webkassa, the key is as it was. Run: sudo " in result.stdout


@pytest.mark.parametrize(
    "typed",
    ["update --account a", "update --if-needed --account almaty-* --account b", "check --account a",
     "update --if-key a1b2c3d4 --account a", "status --account a", "status --metrics",
     "status --no-probe --metrics --account a", "status --account a --no-probe", "update --json",
     "update --if-key a1b2c3d4 --json", "update --json --if-needed --account a"],
)  # fmt: skip
def test_command_passes_on_what_is_meant(typed: str, installed: Path, run: Run, stub: Stub) -> None:
    stub("systemd-run", 'echo "runs: $*"')
    result = run(f"{installed}/systemd/webkassa-key.sh", *typed.split())
    assert (result.returncode, result.stdout.split()[0]) == (0, "runs:")
    assert result.stdout.endswith(f"webkassa.env {typed}\n")


@pytest.mark.parametrize(
    ("typed", "ends"),
    [("update", True), ("update --json", True), ("update --if-needed", False),
     ("update --if-key a1b2c3d4", False), ("update --account a", False)],
)  # fmt: skip
def test_a_retry_to_come_is_called_off_by_a_run_that_renewed_all_alone(
    typed: str, ends: bool, installed: Path, run: Run, stub: Stub
) -> None:
    """Where there was "nothing to do", the daily run that had failed was tried again no more."""
    stub("systemd-run")
    stub("systemctl", '[ "$1" != show ] && echo "$*" || echo auto-restart')
    result = run(f"{installed}/systemd/webkassa-key.sh", *typed.split())
    stopped = "".join(f"stop webkassa-key-{name}.service\n" for name in ("update", "boot", "net"))
    assert (result.returncode, result.stdout) == (0, stopped if ends else "")


@pytest.mark.parametrize("typed", ["", "--json", "--no-probe", "--no-probe --json"])
def test_command_has_the_whole_server_looked_at(typed: str, installed: Path, run: Run) -> None:
    (installed / "check-status.sh").write_text('#!/bin/sh\necho "looks: $*"\n')
    result = run(f"{installed}/systemd/webkassa-key.sh", "status", *typed.split())
    assert (result.returncode, result.stdout) == (0, f"looks: {typed}\n")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (203, "Nothing was asked of Webkassa, the key is as it was. Run: sudo "),
        (238, "on a disk that is not full. Run: ls -ld /var/lib/"),
        (226, "(LXC: nesting)? Run: sudo journalctl -b -n 9 -g namespac"),
        (
            137,
            "did not come to its own end (code 137). How the key stands: sudo webkassa-key status",
        ),
        (75, ""),  # the program has said it
        (130, ""),
    ],
)
def test_command_says_what_the_program_could_not(
    code: int, said: str, installed: Path, run: Run, stub: Stub
) -> None:
    stub("systemd-run", f"exit {code}")
    result = run(f"{installed}/systemd/webkassa-key.sh", "update")
    assert result.returncode == code
    assert said in result.stdout
    assert bool(said) == bool(result.stdout)


@pytest.mark.parametrize(
    "script", sorted({"install.sh", "uninstall.sh"} | {f"systemd/{p.name}" for p in PARTS})
)
def test_scripts_stay_short(script: str) -> None:
    """The installer runs as root: it is read before it is trusted."""
    text = (ROOT / script).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 600
    functions = re.findall(r"^(\w+)\(\) \{(.*?)^\}$", text, re.M | re.S)
    assert functions
    assert [name for name, body in functions if body.count("\n") + 1 > 25] == []


def test_each_step_and_what_undoes_it_is_a_function() -> None:
    table = after("install.sh", 'printf "%s\n" "${STEPS[@]}"').split()
    functions = after("install.sh", "declare -F").split()
    assert len(table) == 2 * 15
    assert {name for name in table if name != "-"} <= {*functions}


def test_no_script_holds_a_program_of_python() -> None:
    for path in (*ROOT.glob("*.sh"), *(ROOT / "systemd").glob("*.sh")):
        assert not re.search(r"\bimport \w", path.read_text(encoding="utf-8")), path


# What systemd 262 does with the arguments of systemd-run --scope, and earlier ones do not
SYSTEMD_RUN = """#!/usr/bin/env bash
while [[ $1 != -- ]]; do shift; done
shift
exec "${@//'${HOME}'//expanded}"
"""


def test_what_pip_is_given_goes_safely_through_systemd(tmp_path: Path) -> None:
    folder = tmp_path / "a ${HOME} %n 'b\" \\ $(false) Касса"
    folder.mkdir()
    (tmp_path / "systemd-run").write_text(SYSTEMD_RUN)
    (tmp_path / "systemd-run").chmod(0o755)
    lines = f"""PATH={tmp_path}:$PATH
    build ls -d {shlex.quote(str(folder))}
    build cat
    build false || printf 'false is told\n'"""
    assert after("install.sh", lines) == f"{folder}\nfalse is told\n"


@pytest.mark.parametrize(("forbidden", "left"), [(True, 0), (False, 1)])
def test_a_machine_without_user_namespaces_gets_a_sandbox_without_them(
    forbidden: bool, left: int, tmp_path: Path
) -> None:
    sandbox = tmp_path / "systemd/webkassa-key-.service.d/00-sandbox.conf"
    sandbox.parent.mkdir(parents=True)
    shutil.copy(ROOT / sandbox.relative_to(tmp_path), sandbox)
    lines = f"""systemd-run() {{ return {217 if forbidden else 0}; }}
    release={tmp_path}
    fit_sandbox"""
    assert ("run without PrivateUsers=" in after("install.sh", lines)) == forbidden
    assert len(re.findall("^PrivateUsers=true$", sandbox.read_text(), re.M)) == left


LANGUAGES = {
    "Russian": ("ru_RU.UTF-8", "", "A=1", "A=1\n\nWEBKASSA_LANG=ru\n"),
    "Russian messages": ("C.UTF-8", "ru_RU.UTF-8", "A=1", "A=1\n\nWEBKASSA_LANG=ru\n"),
    "Russian, and the settings say which": ("ru_RU.UTF-8", "", "WEBKASSA_LANG=en", "WEBKASSA_LANG=en\n"),
    "Russian, but not messages": ("ru_RU.UTF-8", "en_US.UTF-8", "A=1", "A=1\n"),
    "none": ("", "", "A=1", "A=1\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", LANGUAGES)
def test_new_settings_get_the_language_of_who_installs(name: str, tmp_path: Path) -> None:
    language, messages, given, placed = LANGUAGES[name]
    (tmp_path / "my.env").write_text(f"{given}\n")
    text = (ROOT / "install.sh").read_text(encoding="utf-8")
    function = re.search(r"^place_settings\(\) \{.*?^\}", text, re.DOTALL | re.MULTILINE)[0]
    lines = f"""set -euo pipefail
    declare -A options=([env-file]=my.env)
    SETTINGS=settings SOURCE=. ACCOUNT=x
    install() {{ cp "${{@: -2:1}}" "${{@: -1}}"; }}
    {function}
    place_settings"""
    env = {"PATH": os.environ["PATH"], "LANG": language, "LC_MESSAGES": messages}
    subprocess.run(["bash", "-c", lines], cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "settings").read_text() == placed


@pytest.mark.parametrize("place", ["/home/opt", "/root/o", "/tmp/x/opt", "/srv/opt", "/opt"])
def test_an_opt_that_the_services_could_not_see_is_refused(place: str) -> None:
    """It was found out after a minute, by a 203 of which nothing more was said."""
    said = after(
        "install.sh",
        f"readlink() {{ echo {place}; }}; (must_be_ours) 2>&1 || true",
    )
    is_hidden = place.startswith(("/home", "/root", "/tmp"))
    assert (f"mount --bind {place} /opt'" in said) == is_hidden
    assert ("where the services could not see it" in said) == is_hidden


REFUSED = """ERROR: $ACCOUNTS.new/north.env: line 4. Correct it, then run: sudo webkassa-key check --account north
FAIL  Webkassa:north-2: away. Then run: sudo webkassa-key check --account north-2
WARN  main, Webkassa: it is dead. Run again now: sudo webkassa-key update --account main"""


@pytest.mark.parametrize(
    ("options", "typed"),
    [("[account]=north [env-file]=/root/n.env [no-run]=yes", "--account north --no-run --env-file /root/n.env"),
     ("[accounts]='/root/my tills'", "--accounts /root/my\\ tills")],
)  # fmt: skip
def test_what_is_printed_of_refused_accounts_is_there_to_be_typed(options: str, typed: str) -> None:
    """It named files that are not there, and commands for accounts that were not added."""
    lines = f"""options=({options}) added=([north]=/root/n.env [north-2]=/root/2.env)
    code=78 show_check "{REFUSED}"
    code=0 show_check "$ACCOUNTS.new/north.env"
    printf '%q' "$0" """
    wrong, away, dead, good, script = after("install.sh", lines).splitlines()
    assert wrong == f"ERROR: /root/n.env: line 4. Correct it, then run: sudo {script} {typed}"
    assert away.endswith(f"Then run: sudo {script} {typed}")
    assert dead.endswith("Run again now: sudo webkassa-key update")
    assert good == "/etc/webkassa-key-updater/accounts.d/north.env"


def test_no_journal_takes_back_an_installation_that_has_logged_in() -> None:
    """Where journald is off; what had renewed the key before was put back, or nothing was installed."""
    lines = """systemctl() { return 0; }
    journalctl() { [[ $1 != --sync ]] || echo "asks the journal"; return 1; }
    run_first_update
    echo "goes on" """
    assert after("install.sh", lines) == "asks the journal\ngoes on\n"


def test_installer_starts_a_script_that_finds_its_parts(tmp_path: Path) -> None:
    """An isolated Python (-I) does not look beside it."""
    text = (ROOT / "install.sh").read_text(encoding="utf-8")
    (line,) = re.findall(r'^ *("\$python" .*server_status.py.*)$', text, re.MULTILINE)
    lines = f"set -eu; python={sys.executable} release={ROOT} said=nothing\n{line}"
    done = subprocess.run(["bash", "-c", lines], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


SAID = "Correct it in /etc/webkassa-key-updater/webkassa.env, then run: sudo webkassa-key check"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        # It fails beside what is to be taken over: nothing of it will be left
        ("code=78 others=x placed=yes", "Correct it in m&y.env, then run: sudo {} --take-over --env-file m\\&y.env"),
        ("code=78 others=x placed=yes earlier=/opt/x", SAID),
        ("code=78 placed=yes", SAID),
        ("code=0 others=x placed=yes", SAID),
    ],
)  # fmt: skip
def test_what_is_printed_to_type_is_there_afterwards(state: str, said: str) -> None:
    lines = f"""options=([env-file]='m&y.env' [take-over]=yes) {state}
    show_said '{SAID}'
    printf '%q' "$0" """
    shown, script = after("install.sh", lines).splitlines()
    assert shown == said.format(script)


@pytest.mark.parametrize(
    ("wheels", "typed"),
    [
        ("", ""),
        ("PIP_NO_INDEX=1 PIP_FIND_LINKS='/my wheels'", "PIP_NO_INDEX=1 PIP_FIND_LINKS='/my wheels' "),
        ("PIP_NO_INDEX=1 PIP_FIND_LINKS=https://me:canary@pypi.example", ""),
    ],
)  # fmt: skip
def test_a_command_to_type_again_is_this_one_with_an_option_more(wheels: str, typed: str) -> None:
    """Without --no-run it would log in, without the wheels it would need a network."""
    lines = f"""unset PIP_NO_INDEX PIP_FIND_LINKS
    export {wheels}
    options=([unpinned]=yes [with-alerts]=yes [no-run]=yes)
    this_command --take-over
    printf '\\n%q' "$0" """
    shown, script = after("install.sh", lines).splitlines()[-2:]
    assert shown == f"sudo {typed}{script} --take-over --with-alerts --unpinned --no-run"


# a command of a unit or a crontab, and whether it renews the key
RENEW, MAY, NOT = "runs_updater", "may_run_updater", ""
COMMANDS = [
    ("/usr/bin/python3 /srv/salon/webkassa_key_updater.py", RENEW),
    ("cd /srv/salon && venv/bin/python update_webkassa_key.py >> /var/log/x.log 2>&1", RENEW),
    ('/bin/sh -c "exec /usr/local/bin/webkassa-token-refresh"', RENEW),
    ("/srv/salon/venv/bin/python -m salon.renew_webkassa_key", RENEW),
    ("php artisan webkassa:update-token", RENEW),
    ("curl -s -d @/etc/login https://api.webkassa.kz/api/v4/Authorize", RENEW),
    ("curl -s http://127.0.0.1:8001/webkassa/token/refresh", RENEW),
    ("systemctl start webkassa-key-update.service", RENEW),
    ("cd /srv/webkassa && venv/bin/python manage.py webkassa_authorize", RENEW),
    # the project's own recipe, and its own command at another time of day
    ("docker-compose -f /opt/shop/docker-compose.yml run --rm webkassa-key", RENEW),
    ("docker compose run --rm webkassa-key update", RENEW),
    ("/usr/bin/webkassa-key update", RENEW),
    # one cannot know
    ("curl -s -X POST http://127.0.0.1:8001/api/webhook/refresh-api-key", MAY),
    ("curl -fsS https://shop.example.kz/tokens/renew?secret=canary", MAY),
    ("cd /var/www/shop && php artisan webkassa:sync-cashboxes", MAY),
    ("cd /var/www/shop && php artisan schedule:run >> /dev/null 2>&1", MAY),
    ("/srv/salon/bin/console webkassa:receipts", MAY),
    ("/srv/salon/webkassa_login.py", MAY),
    # the shop's own
    ("/srv/salon/venv/bin/gunicorn salon.webkassa:app --keyfile /etc/ssl/update.pem", NOT),
    ("/srv/salon/app --settings /etc/webkassa-key-updater/webkassa.env", NOT),
    ("/srv/salon/app.py --log /var/log/webkassa_key_update.log", NOT),
    ("/srv/salon/webkassa_receipts.py --key-file /etc/webkassa.key", NOT),
    ("/srv/salon/run.sh --password-file /run/secrets/webkassa_login", NOT),
    ("cat /root/.ssh/webkassa_authorized_keys", NOT),
    ("/srv/salon/update_prices.py", NOT),
    ("certbot renew --post-hook 'curl https://shop.example.kz/reload'", NOT),
    ("cd /var/www/shop && php artisan queue:work", NOT),
    # looking is not renewing
    ("/opt/webkassa-key-updater/current/check-status.sh", NOT),
    ("/usr/local/bin/webkassa-key status --json", NOT),
    (
        "cd /var/lib/node && webkassa-key status --metrics > webkassa.new && mv webkassa.new webkassa.prom",
        NOT,
    ),
    ("/usr/bin/webkassa-key update --if-needed", NOT),
    ("docker compose run --rm webkassa-key check", NOT),
    ("docker compose logs webkassa-key", NOT),
    ("systemctl is-failed webkassa-key-update.service", NOT),
    ("journalctl --follow --unit=webkassa-key-update", NOT),
]


@pytest.mark.parametrize(("command", "outcome"), COMMANDS)
def test_a_trigger_is_known_by_what_it_runs(command: str, outcome: str) -> None:
    script = f"""set -u
    . {ROOT}/systemd/common.sh; . {ROOT}/systemd/others.sh
    for judge in runs_updater may_run_updater; do
        if said=$("$judge" "$1"); then printf '%s %s' "$judge" "$said"; break; fi
    done"""
    result = subprocess.run(["bash", "-c", script, "bash", command], capture_output=True, text=True)
    assert result.stderr == ""
    assert result.stdout.partition(" ")[0] == outcome
    assert "canary" not in result.stdout


UNIT = "/etc/systemd/system/webkassa-key-renew"
SEEN = {
    "/etc/crontab": "# 5 5 * * * root update_webkassa_key.py\n"
    "0 5 * * * root curl -s -X POST http://127.0.0.1:8001/api/webhook/refresh-api-key\n"
    "5 5 * * * www-data cd /var/www/shop && php artisan webkassa:sync-cashboxes\n"
    "* * * * * www-data cd /var/www/shop && php artisan schedule:run >> /dev/null 2>&1\n"
    "15 5 * * * root docker-compose -f /opt/shop/docker-compose.yml run --rm webkassa-key\n"
    "30 5 * * * root cd /srv/webkassa && venv/bin/python manage.py webkassa_authorize\n",
    # A name close to ours, and not ours; by what it runs one would not know it
    f"{UNIT}.service": "[Service]\nExecStart=/srv/salon/nightly.sh\n",
    f"{UNIT}.timer": "[Timer]\nOnCalendar=03:00\n",
    "/etc/systemd/system/laravel.service": "[Service]\nExecStart=php artisan schedule:work\n",
    "/etc/systemd/system/salon.service": "[Service]\nExecStart=/srv/salon/app.py --webkassa\n",
    "/home/eve/.config/systemd/user/keys.service": "[Service]\nExecStart=/home/eve/webkassa_key_update.py\n",
    "/etc/supervisor/conf.d/keys.conf": "[program:keys]\ncommand=/srv/webkassa_token.py\n",
}
FOUND = """\
look /etc/systemd/system/laravel.service may renew the key, runs schedule:work
unit /etc/systemd/system/webkassa-key-renew.service has the name of an updater
unit /etc/systemd/system/webkassa-key-renew.timer starts webkassa-key-renew.service
look /etc/crontab:2 may renew the key, runs refresh-api-key
look /etc/crontab:3 may renew the key, runs webkassa:sync-cashboxes
look /etc/crontab:4 may renew the key, runs schedule:run
line /etc/crontab:5 runs webkassa-key
line /etc/crontab:6 runs webkassa_authorize
look /etc/supervisor/conf.d/keys.conf may renew the key, runs webkassa_token.py
look /home/eve/.config/systemd/user/keys.service runs webkassa_key_update.py
"""


def test_what_else_renews_the_key_is_found_wherever_it_is_written(tmp_path: Path) -> None:
    for path, text in SEEN.items():
        (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path[1:]).write_text(text)
    for name in ("common.sh", "others.sh"):
        text = (ROOT / "systemd" / name).read_text(encoding="utf-8")
        text = re.sub(r"(?<=[ (=])/(?=etc|run|usr|lib|var|\{home)", f"{tmp_path}/", text)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = subprocess.check_output(["bash", tmp_path / "others.sh"], text=True)
    assert sorted(found.replace(str(tmp_path), "").replace("\t", " ").splitlines()) == sorted(
        FOUND.splitlines()
    )


def test_a_crontab_of_another_user_does_not_run_what_it_names(tmp_path: Path) -> None:
    """The lines are read as words, never as shell."""
    script = f'. {ROOT}/systemd/common.sh; . {ROOT}/systemd/others.sh; runs_updater "$1"'
    line = f"* * * * * $(touch {tmp_path}/ran) `touch {tmp_path}/ran` update_webkassa_key.py *"
    result = subprocess.run(["bash", "-c", script, "bash", line], cwd=tmp_path)
    assert result.returncode == 0
    assert not (tmp_path / "ran").exists()
