"""What check-status.sh says of a server: real files, and stand-ins for systemd, which is not here."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import server
import server_status
import server_words
import translations
from server import ACTIVE, ROOT, Box
from server_status import BOOT, BOOT_TIMER, HEAL_TIMER, NET_TIMER, SOCKET, TIMER, UPDATE
from world.shop import PROGRAM

HOUR = 3600


class Screen(str):
    code = 0

    def line(self, name: str) -> str:
        """Return a finding with its level and what mends it."""
        found = re.search(rf"^\w+ +{name}\b.*(\n {{21}}.*)*", self, re.MULTILINE)
        assert found, self
        return re.sub(r" +", " ", found[0])


class ShownBox(Box):
    said: pytest.CaptureFixture[str]

    def show(self, *arguments: str) -> Screen:
        code = server_status.main([*arguments], self)
        screen = Screen(self.said.readouterr().out)
        screen.code = code
        return screen


@pytest.fixture
def box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> ShownBox:
    if Path("/opt/webkassa-key-updater").exists():
        pytest.skip("it is installed here")
    box = ShownBox(tmp_path)
    box.said = capsys
    monkeypatch.setenv("PATH", f"{box.bin}:{os.environ['PATH']}")
    return box


@pytest.fixture
def almaty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine's time zone, by its rule: the zone's file may be missing here."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "<+05>-5")
        time.tzset()
        yield
    time.tzset()


def when(moment: float) -> str:
    return str(server_words.when(moment))


def test_a_good_server_is_ok(box: ShownBox) -> None:
    screen = box.show()
    assert screen.startswith(
        "WEBKASSA OK - key 1a2b3c4d, 4.0 h old; the probe says alive; alerts are off|age=14400s;90000;176400\n"
    )
    assert screen.code == 0
    assert screen.line("last run") == f"OK last run good, {when(box.now - 4 * HOUR)}"
    assert f"next run {when(box.now + 900)}" in screen.line("timer")


def test_json_is_the_same_for_machines(box: ShownBox) -> None:
    report = json.loads(box.show("--json"))
    assert report["status"] == report["key"]["status"] == "OK"
    assert [run["kind"] for run in report["runs"]] == ["daily"]
    assert {"name", "status", "message", "mend"} == report["checks"][0].keys()


@pytest.mark.parametrize("arguments", [["--no-probe"], ["--no-probe", "--json"], ["--json"], []])
def test_the_program_is_told_to_leave_webkassa_out(box: ShownBox, arguments: list[str]) -> None:
    program = box.current / "venv/bin/webkassa-key-updater"
    program.write_text(f'echo "$@" >> {box.root}/typed\n{program.read_text()}')
    said = box.show(*arguments)
    asked = "status --json --no-probe\n" if "--no-probe" in arguments else "status --json\n"
    assert asked in (box.root / "typed").read_text()
    assert (said[0] == "{", said.code) == ("--json" in arguments, 0)


def test_looking_changes_nothing(box: ShownBox) -> None:
    def files() -> dict[str, float]:
        return {str(path): path.lstat().st_mtime for path in box.root.rglob("*")}

    before = files()
    for arguments in ([], ["--json"], ["--timers"]):
        box.show(*arguments)
    assert files() == before


# A failure of the night --------------------------------------------------------------------------


def failed_at_night(box: Box, code: int = 77, outcome: str = "Webkassa refuses it.") -> float:
    """Let the daily run have failed three hours ago; return the time."""
    moment = box.now - 3 * HOUR
    box.note("daily", moment, code, outcome, run="c3" * 16)
    box.ended(UPDATE, moment, code, run="c3" * 16)
    return moment


def test_a_failure_is_told_with_its_meaning_and_whether_the_key_works(box: ShownBox) -> None:
    moment = failed_at_night(box)
    screen = box.show()
    assert screen.startswith(
        f"WEBKASSA CRITICAL - last run: failing since {when(moment)} (code 77: Webkassa refuses the "
        "login, password or API key); key 1a2b3c4d, 4.0 h old; the probe says alive|age="
    )
    assert screen.code == 2
    assert "\n Webkassa refuses it." in screen.line("last run")


@pytest.mark.parametrize("kind", ["consumer", "heal", "hand"])
def test_a_run_that_renewed_nothing_hides_no_failure(box: ShownBox, kind: str) -> None:
    moment = failed_at_night(box)
    box.note(kind, box.now - HOUR, outcome="nothing to do: the key is young")
    screen = box.show()
    assert f"failing since {when(moment)}" in screen.line("last run")
    assert screen.code == 2


@pytest.mark.parametrize("kind", ["consumer", "heal", "hand", "boot"])
def test_a_renewal_of_any_kind_ends_a_failure_and_is_named(box: ShownBox, kind: str) -> None:
    """It said "OK ... failing since ..., but the key was renewed since"."""
    moment = failed_at_night(box)
    box.note(kind, box.now - HOUR, renewed=True)
    screen = box.show()
    assert screen.code == 0
    assert "failing" not in screen
    how = server_status.KINDS[kind]
    assert screen.line("last run") == (
        f"OK last run good: renewed {how} {when(box.now - HOUR)}, after the run of {when(moment)} had failed"
    )


def test_a_renewal_noted_by_a_clock_that_was_ahead_hides_no_failure(box: ShownBox) -> None:
    """A till boots with its clock in local time, 5 hours ahead, and renews; then the time comes."""
    moment = failed_at_night(box)
    box.note("boot", box.now + 5 * HOUR, renewed=True)
    screen = box.show()
    assert f"failing since {when(moment)}" in screen.line("last run")
    assert screen.code == 2


@pytest.mark.parametrize("place", ["settings", "state", "addresses"])
def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(box: ShownBox, place: str) -> None:
    failed_at_night(box)
    box.looks_at_addresses()
    path = box.state / "run-boot.json" if place == "state" else getattr(box, place)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    box.says("UNKNOWN", "The settings are wrong")  # which has the file's text looked at
    assert "last run: failing since" in box.show()


def test_a_run_at_work_is_said(box: ShownBox) -> None:
    box.unit(UPDATE, SubState="start", ExecMainStartTimestamp=f"@{box.now - 5:.0f}")
    assert box.show().line("last run") == f"OK last run at work since {when(box.now - 5)}"


def forget(box: Box) -> None:
    """As systemd does at a boot."""
    box.ended(UPDATE, 0)
    box.unit(UPDATE, ExecMainExitTimestamp="", ExecMainStartTimestamp="", InvocationID="")


def cannot_start(box: Box) -> None:
    box.ended(UPDATE, box.now - HOUR, run="c3" * 16)
    box.unit(UPDATE, ActiveState="failed", Result="resources", InvocationID="d4" * 16)


# what happens after the failure of the night, where one was; the level, and what is said of it
STORIES: dict[str, tuple[bool, Callable[[Box], object], str, str]] = {
    "somebody else renews the key": (
        True, lambda box: box.says("OK", "key 1a2b3c4d, 1.0 h old; the probe says alive", age_seconds=HOUR),
        "WARNING", r"failing since {3} (.|\n)*Somebody else has renewed the key since\."),
    "the machine is booted, and systemd forgets": (True, forget, "CRITICAL", "failing since {3} "),
    "a retry is to come": (
        True, lambda box: box.unit(UPDATE, SubState="auto-restart", ActiveState="activating"),
        "WARNING", r"failing since {3} (.|\n)*It is tried again by itself\."),
    "a retry is at work": (
        True, lambda box: box.unit(UPDATE, SubState="start", ExecMainStartTimestamp=f"@{box.now:.0f}",
                                   ExecMainStatus="0", ExecMainCode="0", InvocationID="d4" * 16),
        "WARNING", r"failing since {3} (.|\n)*It is tried again by itself\."),
    "the program noted since when": (
        False, lambda box: box.note("daily", box.now - 3 * HOUR, 75, "away", since=box.now - 51 * HOUR),
        "CRITICAL", "failing since {51} "),
    # The invocation's number decides: after the note of a wrong password it was killed
    "the run of that note was another one": (
        True, lambda box: box.ended(UPDATE, box.now - HOUR, 9, 2, run="d4" * 16), "CRITICAL", "signal 9"),
    "systemd cannot start the unit at all": (False, cannot_start, "CRITICAL", "systemd says resources"),
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES)
def test_the_last_run_is_told_as_it_was_where(box: ShownBox, story: str) -> None:
    is_failed, happens, level, said = STORIES[story]
    if is_failed:
        failed_at_night(box, 75)
    happens(box)
    times = {f"{{{hours}}}": re.escape(when(box.now - hours * HOUR)) for hours in (3, 51)}
    for name, time_ in times.items():
        said = said.replace(name, time_)
    screen = box.show()
    assert re.match(rf"{level} (.|\n)*{said}", screen.line("last run")), screen
    assert screen.code == (1 if level == "WARNING" else 2)


# exit code, how it ended (CLD_EXITED, CLD_KILLED), what is said, what mends it
UNNOTED = [
    (203, 1, "code 203: the program does not start", "install.sh"),
    (1, 1, "code 1: the program does not start", "install.sh"),
    (217, 1, "code 217: the user webkassa-key-updater is missing, or this machine allows no user namespaces any more", "install.sh"),
    (243, 1, "code 243: a file that LoadCredential= names is missing", "systemctl cat"),
    (226, 1, "code 226: systemd cannot set up the sandbox: is a path of a drop-in missing?", "-> sudo journalctl -b -n 9 -g namespac"),
    (238, 1, "code 238: systemd cannot use the folder of the notes", "-> sudo webkassa-key check"),
    (9, 2, "signal 9: killed, or out of time", "-> sudo webkassa-key update"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "way", "said", "mend"), UNNOTED)
def test_a_run_that_could_note_nothing_is_told_by_systemd(
    box: ShownBox, status: int, way: int, said: str, mend: str
) -> None:
    box.ended(UPDATE, box.now - HOUR, status, way, run="d4" * 16)
    line = box.show().line("last run")
    assert f"failing since {when(box.now - HOUR)} ({said})" in line
    assert mend in line


@pytest.mark.parametrize(("status", "way"), [(203, 1), (1, 1), (217, 1), (75, 1), (9, 2)])
def test_what_install_mends_is_no_fault_any_more_after_it(
    box: ShownBox, status: int, way: int
) -> None:
    """It went on to be CRITICAL until the next night, with "install.sh" as what mends it: with a young
    key the installer does not log in."""
    box.ended(UPDATE, box.now - HOUR, status, way, run="d4" * 16)
    release = box.current.rename(box.current.with_name("release"))
    is_over = status in server_status.NOT_STARTED
    for hours, code in ((2, 2), (0.5, 0 if is_over else 2)):
        box.current.symlink_to(release)
        moment = box.now - hours * HOUR
        os.utime(box.current, (moment, moment), follow_symlinks=False)
        screen = box.show()
        assert screen.code == code
        assert ("failing since" in screen.line("last run")) == bool(code)
        box.current.unlink()


def test_a_refused_login_leads_to_the_settings(box: ShownBox) -> None:
    """`check` would say ok to the same wrong password."""
    failed_at_night(box, 77)
    box.says("CRITICAL", "key 1a2b3c4d: Webkassa refused the login", age_seconds=14400)
    screen = box.show()
    assert "-> sudo webkassa-key check" not in screen
    assert screen.count("-> ") == 1
    login = f"put in the right login and password: sudo nano {box.settings}"
    assert f"-> {login}; then: sudo webkassa-key update\n" in screen


@pytest.mark.parametrize("kind", ["hand", "consumer", "heal"])
def test_a_refused_login_of_any_run_is_critical(box: ShownBox, kind: str) -> None:
    """The night would be refused, too, though its last run was good."""
    box.note(kind, box.now - HOUR, 77, "Webkassa refuses it.")
    screen = box.show()
    assert screen.code == 2
    assert f"refused it {server_status.KINDS[kind]} {when(box.now - HOUR)}" in screen.line("login")
    assert f"-> put in the right login and password: sudo nano {box.settings};" in screen.line(
        "login"
    )
    box.note("daily", box.now, renewed=True)
    assert box.show().code == 0


@pytest.mark.slow
def test_meanings_are_those_of_the_programs_help() -> None:
    text = subprocess.check_output([sys.executable, PROGRAM, "--help"], text=True)
    table = dict(re.findall(r"^ *(\d+)  (\S.*)$", text, re.MULTILINE))
    ours = {str(code): text for code, text in server_status.MEANINGS.items() if 1 < code < 99}
    assert {code: table[code] for code in ours} == ours


def test_no_boot_run_is_called_good(box: ShownBox) -> None:
    """An upgrade starts the same service, and there may have been no boot at all."""
    box.note("boot", box.now - HOUR, renewed=True)
    box.ended(BOOT, box.now - HOUR)
    screen = box.show()
    assert "boot run" not in screen
    assert ", after a boot or an upgrade, done: stored" in screen


def test_a_boot_run_that_failed_is_told(box: ShownBox) -> None:
    box.note("boot", box.now - HOUR, 75, "PostgreSQL is away.")
    screen = box.show()
    assert screen.line("boot run").startswith("CRITICAL boot run failing since")


def test_runs_by_hand_are_among_the_last(box: ShownBox) -> None:
    box.note("hand", box.now - 60, 78, "The settings are wrong:\n  WEBKASSA_LOGIN: is not set")
    runs = box.show().partition("Last runs:\n")[2].splitlines()
    assert runs == [
        f"{when(box.now - 60)}, by hand, code 78: The settings are wrong:",
        f"{when(box.now - 4 * HOUR)}, by the timer, done: stored the new key 1a2b3c4d",
    ]


def test_all_times_are_of_this_machines_zone(box: ShownBox, almaty: None) -> None:
    failed_at_night(box)
    box.note("hand", box.now - 60)
    screen = box.show()
    assert "UTC" not in screen
    assert screen.count(" +05") >= 4


def test_an_old_systemd_is_understood(box: ShownBox, almaty: None) -> None:
    """Before 251 there is no --timestamp=unix."""
    box.is_old = True
    box.ended(UPDATE, box.now - HOUR, 203, run="d4" * 16)
    screen = box.show()
    assert screen.line("timer") == f"OK timer enabled, active, next run {when(box.now + 900)}"
    assert f"failing since {when(box.now - HOUR)} (code 203" in screen.line("last run")


@pytest.mark.parametrize("text", ["", "@0", "n/a", "infinity"])
def test_no_time_is_no_time(text: str) -> None:
    assert server_status.seconds(text) is None


@pytest.mark.parametrize("damage", ["{", "[]", '{"kind": "daily"}', "", '"x"'])
def test_a_damaged_note_is_none(box: ShownBox, damage: str) -> None:
    (box.state / "run-daily.json").write_text(damage)
    assert box.show().line("last run") == "OK last run none so far"


def test_nothing_steers_the_terminal(box: ShownBox) -> None:
    failed_at_night(box, 75, "\033[2J\rgone")
    box.says("WARNING", "key \033[31m1a2b3c4d", age_seconds=14400)
    screen = box.show()
    assert "\033" not in screen
    assert "\r" not in screen


def test_without_the_probe_it_does_not_claim_to_know(box: ShownBox) -> None:
    failed_at_night(box, 75)
    box.says("UNKNOWN", "PostgreSQL is away")
    assert "); how the key stands is not known\n" in box.show()


# Many accounts -----------------------------------------------------------------------------------


@pytest.fixture
def many(box: ShownBox) -> ShownBox:
    box.make_many("east", "north", "south")
    rows = [{"account": name, "status": "OK", "message": f"key of {name}", "age_seconds": 4 * HOUR}
            for name in ("east", "north", "south")]  # fmt: skip
    box.report("OK", "3 of 3 accounts are well; east: key of east", rows)
    for name in ("east", "north", "south"):
        box.note("daily", box.now - 3 * HOUR, account=name, renewed=True, run="c3" * 16)
    box.ended(UPDATE, box.now - 3 * HOUR, run="c3" * 16)
    return box


def test_a_file_whose_name_is_wrong_is_named_as_a_shell_takes_it(many: ShownBox) -> None:
    moment = many.now - 3 * HOUR
    (many.accounts / "касса 1.env").touch()
    many.note(
        "daily", moment, 78, "the name of an account is a-z", account="касса 1", run="c3" * 16
    )
    many.ended(UPDATE, moment, 78, run="c3" * 16)
    assert f"sudo nano '{many.accounts}/касса 1.env'; then: " in many.show()


def test_the_accounts_that_failed_are_named(many: ShownBox) -> None:
    many.note("daily", many.now - 3 * HOUR, 77, "refused", account="north", run="c3" * 16)
    many.ended(UPDATE, many.now - 3 * HOUR, 77, run="c3" * 16)
    screen = many.show()
    since = f"CRITICAL last run failing since {when(many.now - 3 * HOUR)}"
    assert f"{since} (code 77: Webkassa refuses" in screen.line("last run")
    assert "): 1 of 3 accounts: north\n north: code 77, refused\n" in screen.line("last run")
    again = "sudo webkassa-key update --account north; sudo webkassa-key update --if-needed\n"
    assert f"nano {many.accounts}/north.env; then: {again}" in screen
    assert ", by the timer, code 77: 2 of 3 accounts: done; not done: north 77" in screen
    many.note("hand", many.now - HOUR, account="south", renewed=True)
    assert many.show().code == 2
    many.note("hand", many.now - HOUR, account="north", renewed=True)
    assert many.show().code == 0


def test_what_failed_is_renewed_by_the_printed_command_however_young_the_key(
    many: ShownBox,
) -> None:
    """--if-needed said "nothing to do" of a key of 20 h, and the failure stayed CRITICAL."""
    for account, code in (("south", 69), ("north", 75)):
        many.note("daily", many.now - 3 * HOUR, code, account=account)
    named = "sudo webkassa-key update --account north --account south"
    line = many.show().line("last run")
    assert line.endswith(f"-> {named}; sudo webkassa-key update --if-needed")
    for number in range(9):  # a command that nobody would type
        (many.accounts / f"s{number}.env").touch()
        many.note("daily", many.now - 3 * HOUR, 69, account=f"s{number}")
    assert many.show().line("last run").endswith("-> sudo webkassa-key update --if-needed")


def test_an_account_whose_file_is_gone_counts_no_more(many: ShownBox) -> None:
    many.note("daily", many.now - 3 * HOUR, 77, "refused", account="north")
    (many.accounts / "north.env").unlink()
    assert many.show().code == 0


def test_a_killed_run_of_many_is_told_though_some_were_done(many: ShownBox) -> None:
    many.ended(UPDATE, many.now - 2 * HOUR, 9, 2, run="c3" * 16)
    assert "signal 9" in many.show().line("last run")


def test_each_account_is_shown(many: ShownBox) -> None:
    assert "\n OK: south: key of south" in many.show().line("key")


# Timers and socket ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "said", "mend"),
    [
        ({"UnitFileState": "disabled", "ActiveState": "inactive"}, "disabled: nothing renews",
         f"sudo systemctl enable --now {TIMER}"),
        ({"NextElapseUSecRealtime": ""}, "without a next run", f"sudo systemctl restart {TIMER}"),
        ({"ActiveState": "failed", "SubState": "failed", "Result": "resources"},
         "enabled, but failed (resources)", f"sudo systemctl restart {TIMER}"),
        ({"LoadState": "masked"}, f"{TIMER} is masked", f"sudo systemctl unmask {TIMER} && sudo "),
    ],
)  # fmt: skip
def test_a_timer_that_will_not_come_is_critical(
    box: ShownBox, properties: dict[str, str], said: str, mend: str
) -> None:
    box.unit(TIMER, **properties)
    screen = box.show()
    assert screen.code == 2
    assert said in screen.line("timer")
    assert f"-> {mend}" in screen.line("timer")


def test_a_next_run_more_than_a_day_away_is_critical(box: ShownBox) -> None:
    """A clock that was ahead when the machine booted leaves every OnCalendar= in the future."""
    box.unit(TIMER, NextElapseUSecRealtime=f"@{box.now + 26 * HOUR:.0f}")
    for arguments in ([], ["--timers"]):
        screen = box.show(*arguments)
        assert screen.code == 2
        assert f"as late as {when(box.now + 26 * HOUR)}" in screen
        assert f"-> sudo systemctl restart {TIMER}; sudo systemctl restart {TIMER}\n" in screen
    box.unit(TIMER, NextElapseUSecRealtime=f"@{box.now + 24.5 * HOUR:.0f}")
    assert box.show().code == box.show("--timers").code == 0


def test_a_heal_timer_that_is_stuck_is_told(box: ShownBox) -> None:
    box.unit(HEAL_TIMER, **ACTIVE, NextElapseUSecRealtime=f"@{box.now + 2 * HOUR:.0f}")
    for arguments in ([], ["--timers"]):
        screen = box.show(*arguments)
        assert screen.code == 1
        assert f"{HEAL_TIMER}: its next run is as late as" in screen


@pytest.mark.parametrize(
    "properties",
    [{"UnitFileState": "disabled"}, {"ActiveState": "inactive"}, {"SubState": "elapsed"}],
)
def test_a_net_that_is_not_there_is_a_warning(box: ShownBox, properties: dict[str, str]) -> None:
    box.unit(NET_TIMER, NextElapseUSecRealtime="", **properties)
    screen = box.show()
    assert screen.code == 1
    assert f"{NET_TIMER}: " in screen
    assert "nothing steps in where the daily timer does not come" in screen


def test_the_proof_of_an_installation_is_about_what_is_enabled(box: ShownBox) -> None:
    assert box.show("--timers") == f"Next run: {when(box.now + 900)}\n"
    for name in (TIMER, NET_TIMER, BOOT_TIMER):
        box.unit(name, UnitFileState="disabled", ActiveState="inactive")
    assert (box.show("--timers"), box.show("--timers").code) == ("", 0)


def test_a_masked_service_is_told_before_its_time_comes(box: ShownBox) -> None:
    box.unit(UPDATE, LoadState="masked")
    screen = box.show()
    assert f"CRITICAL timer {UPDATE} is masked: nothing renews the key" in screen.line("timer")
    assert f"-> sudo systemctl unmask {UPDATE} && " in screen.line("timer")


def test_a_drop_in_that_systemd_has_not_read_is_told(box: ShownBox) -> None:
    """`webkassa-key check` went by it and was good; the night went by what was before."""
    box.unit(UPDATE, NeedDaemonReload="no")
    assert box.show().code == 0
    for unit in (UPDATE, server_status.NET, TIMER):
        box.unit(unit, NeedDaemonReload="yes")
        screen = box.show()
        assert f"{unit} was changed, and systemd has not read that yet" in screen
        assert "-> sudo systemctl daemon-reload\n" in screen
        assert screen.code == 1
        box.unit(unit, NeedDaemonReload="no")


def test_consumers_cannot_ask_where_the_socket_was_removed(box: ShownBox) -> None:
    assert "may ask for a new key: root" in box.show().line("consumers")
    box.socket.unlink()
    for _ in ("nothing there", "a file there"):
        screen = box.show()
        assert screen.line("consumers").startswith("WARNING consumers cannot ask for a new key")
        assert f"-> sudo systemctl restart {SOCKET}" in screen.line("consumers")
        box.socket.touch()


def test_a_unit_that_is_missing_is_not_to_be_enabled(box: ShownBox) -> None:
    off = {"UnitFileState": "disabled", "ActiveState": "inactive"}
    for name in (TIMER, BOOT_TIMER, SOCKET):
        box.unit(name, **off)
    shown = box.show()
    assert f"-> sudo systemctl enable --now {TIMER}\n" in shown
    assert f"-> sudo systemctl enable {BOOT_TIMER}\n" in shown
    assert f"-> sudo systemctl enable --now {SOCKET}\n" in shown
    for name in (TIMER, BOOT_TIMER, SOCKET):
        (box.units / name).unlink()
    assert "-> sudo systemctl enable" not in box.show()


# The installation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "level"), [(540, "OK"), (560, "WARNING")])
def test_old_certificates_of_authorities_are_warned_of(
    days: int, level: str, box: ShownBox
) -> None:
    issued = time.gmtime(time.time() - days * 86400)
    version = f"{issued.tm_year}.{issued.tm_mon}.{issued.tm_mday}"
    packages = box.current / "venv/lib/python3.11/site-packages"
    (packages / f"certifi-{version}.dist-info").mkdir(parents=True)
    screen = box.show()
    assert screen.line("code").startswith(level)
    date = time.strftime("%Y-%m-%d", issued)
    assert (f"certificates of authorities are of {date}" in screen) == (level == "WARNING")
    assert ("-> sudo ./install.sh (in a fresh copy" in screen) == (level == "WARNING")


def test_what_the_sandbox_hides_is_named_for_the_installer(
    box: ShownBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.NamedTemporaryFile(dir="/tmp", suffix=".pem") as hidden:
        for said, there in ((f"FAIL  {hidden.name}: none", True), ("FAIL  /tmp/away", False)):
            monkeypatch.setattr(sys, "stdin", io.StringIO(said))
            screen = box.show("--hidden")
            assert (f"{hidden.name} is there, but the service cannot see it" in screen) == there
            assert there or not screen
            assert screen.code == 0


@pytest.mark.parametrize(
    ("remark", "level", "said"),
    [("runs update_webkassa_key.py", "WARNING", "another one is /etc/crontab:3 ("),
     ("may renew the key, runs schedule:run", "OK",
      "no other one found that is certain; look at /etc/crontab:3 (")],
)  # fmt: skip
def test_what_only_may_renew_the_key_is_named_and_nothing_more(
    box: ShownBox, remark: str, level: str, said: str
) -> None:
    box.script(box.bin / "bash", f"printf 'look\\t/etc/crontab:3\\t{remark}\\n'")
    line = box.show().line("triggers")
    assert line.startswith(level)
    assert f"{said}{remark})" in line


def test_code_that_does_not_start_is_critical(box: ShownBox) -> None:
    (box.current / "venv/bin/webkassa-key-updater").write_text("exit 1\n")
    screen = box.show()
    assert "CRITICAL code does not start" in screen.line("code")
    assert f"-> sudo {box.current}/install.sh" in screen.line("code")
    assert screen.line("key").startswith("CRITICAL key not known")


def test_alerts_that_are_off_are_not_called_ok(box: ShownBox) -> None:
    screen = box.show()
    assert screen.line("alerts").startswith("OFF alerts nobody is told of a failure")
    assert screen.splitlines()[0].count("; alerts are off") == 1


def test_an_apprise_that_does_not_start_is_told(box: ShownBox) -> None:
    box.addresses.write_text("json://127.0.0.1\n")
    box.addresses.chmod(0o640)
    box.script(box.apprise, "exit 1")
    line = box.show().line("alerts")
    assert line.startswith("WARNING alerts cannot be sent: Apprise does not start")
    assert f"-> sudo {box.current}/install.sh --with-alerts" in line


def test_files_are_looked_at_with_the_services_group(
    box: ShownBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user of its name was there, with another group of its own: CRITICAL, while every run was good."""
    user = types.SimpleNamespace(pw_uid=4443, pw_gid=100)
    monkeypatch.setattr("pwd.getpwnam", {server_status.USER: user}.__getitem__)
    group = types.SimpleNamespace(gr_gid=4444)
    monkeypatch.setattr("grp.getgrnam", {server_status.USER: group}.__getitem__)
    monkeypatch.setattr("os.getgrouplist", lambda _, group: [group, 100])
    service = server_status.as_service(box)
    assert service == {"user": 4443, "group": 4444, "extra_groups": [4444, 100]}


def test_settings_are_judged_by_their_rights(box: ShownBox) -> None:
    box.settings.chmod(0o644)
    assert "root:root 644, not root:webkassa-key-updater 640" in box.show().line("settings")
    box.settings.chmod(0o640)
    box.owner = 4711
    assert "4711:root 640, not root:webkassa-key-updater 640" in box.show().line("settings")
    box.settings.unlink()
    assert "is missing: without it nothing renews the key" in box.show().line("settings")
    box.settings.symlink_to("/srv/away")
    assert "is a link to /srv/away, which is not there" in box.show().line("settings")


def test_who_may_not_look_is_told_so(box: ShownBox) -> None:
    box.is_root, box.user = False, "nobody"
    screen = box.show()
    assert screen.code == 3
    assert screen.line("key").startswith("UNKNOWN key not visible to nobody without sudo")


def test_a_stranger_sees_what_everybody_sees_and_no_traceback(box: ShownBox) -> None:
    """Only root can become somebody else; anybody can close a folder to themselves."""
    stranger, options = server_status.user_name(), dict[str, Any]()
    if os.geteuid() == 0:
        stranger, options = "nobody", {"user": "nobody", "group": "nogroup", "extra_groups": []}
    box.config.chmod(0)
    box.state.chmod(0)
    for folder in (box.root, *box.root.parents):
        if "pytest-" in str(folder):  # where nobody else may look
            folder.chmod(0o755)
    program = (
        f"import server_status as s, pathlib; s.main([], s.Server(pathlib.Path({str(box.root)!r})))"
    )
    copy = box.root / "copy"
    shutil.copytree(ROOT / "systemd", copy)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(copy)}
    done = subprocess.run(["python3", "-B", "-c", program], env=env, capture_output=True, text=True,
                          cwd="/", **options)  # fmt: skip
    box.config.chmod(0o700)  # to be removed
    box.state.chmod(0o700)
    assert done.stderr == ""
    assert f"UNKNOWN   key        not visible to {stranger} without sudo\n" in done.stdout
    assert f"UNSEEN    settings   not visible to {stranger} without sudo\n" in done.stdout


def test_nothing_installed_is_critical(box: ShownBox) -> None:
    box.current.rename(box.current.with_name("away"))
    (box.units / TIMER).unlink()
    screen = box.show()
    assert screen.startswith("WEBKASSA CRITICAL - installed: no: nothing here renews the key")
    assert screen.code == 2


# In Russian ----------------------------------------------------------------------------------------


def in_russian(box: ShownBox) -> None:
    box.settings.write_text("WEBKASSA_LOGIN=cashier@example.kz\nWEBKASSA_LANG=ru\n")
    box.says("OK", "ключ 1a2b3c4d (ему 4.0 ч); проверка: жив", age_seconds=4 * HOUR)
    box.note("daily", box.now - 4 * HOUR, outcome="Записан новый ключ 1a2b3c4d", renewed=True)


def test_a_good_screen_in_russian(box: ShownBox, almaty: None) -> None:
    in_russian(box)
    screen = box.show()
    days = ("пн", "вт", "ср", "чт", "пт", "сб", "вс")
    ran, comes = (f"{days[time.localtime(t).tm_wday]} {time.strftime('%Y-%m-%d %H:%M:%S +05', time.localtime(t))}"
                  for t in (box.now - 4 * HOUR, box.now + 900))  # fmt: skip
    assert screen.replace(str(box.root), "") == (
        "WEBKASSA OK - ключ 1a2b3c4d (ему 4.0 ч); проверка: жив; оповещения выключены|age=14400s;90000;176400\n"
        "OK        ключ          1a2b3c4d (ему 4.0 ч); проверка: жив\n"
        f"OK        таймер        включён, работает; следующий запуск {comes}\n"
        f"OK        запуск        удачный, {ran}\n"
        "OK        приложения    новый ключ могут попросить: root\n"
        "OK        программа     версия 2.0.0, \n"
        f"OK        настройки     /etc/webkassa-key-updater/webkassa.env, root:root 640\n"
        "OFF       оповещения    о неудаче никто не узнает, она останется только в журнале: нет /etc/webkassa-key-updater/apprise.conf\n"
        "OK        другие        больше никто, ни в cron, ни в systemd\n"
        "Последние запуски:\n"
        f"{ran}, по таймеру, готово: Записан новый ключ 1a2b3c4d\n"
    )  # fmt: skip


def all_at_once(box: ShownBox) -> None:
    """Whatever can be said at the same time."""
    box.unit(TIMER, UnitFileState="disabled", ActiveState="inactive")
    box.unit(NET_TIMER, LoadState="masked")
    box.unit(HEAL_TIMER, NextElapseUSecRealtime="", UnitFileState="enabled", ActiveState="active")
    box.unit(BOOT_TIMER, UnitFileState="disabled")
    box.unit(SOCKET, ActiveState="inactive")
    box.note("boot", box.now - HOUR, 75, "PostgreSQL недоступен.".replace("PostgreSQL ", ""))
    box.note("consumer", box.now - HOUR, 77, "Вход отклонён.")
    box.note("heal", box.now - HOUR, renewed=False, outcome="Ключ жив.")
    box.addresses.write_text("json://127.0.0.1\n")
    box.addresses.chmod(0o644)
    box.script(box.apprise, "exit 1")
    packages = box.current / "venv/lib/python3.11/site-packages"
    (packages / "certifi-2020.1.1.dist-info").mkdir(parents=True)
    lines = "".join(f"{kind}\\t/etc/crontab:{number}\\t{remark}\\n" for number, (kind, remark) in enumerate([
        ("line", "runs a login at Webkassa"), ("look", "runs /x beside other things"),
        ("link", "starts /y"), ("look", "runs /z")]))  # fmt: skip
    box.script(box.bin / "bash", f"printf '{lines}'")


def many_accounts(box: ShownBox) -> None:
    names = [f"{number}" for number in range(30)]
    box.make_many(*names)
    rows = [
        {"account": name, "status": "OK", "message": "ключ жив", "probe": "alive"} for name in names
    ]
    box.report("OK", "30 из 30 в порядке", rows)
    for name in names:
        box.note("daily", box.now - HOUR, int(name) % 3, "Вот так.", account=name, run="c3" * 16)


def perhaps(box: ShownBox) -> None:
    remark = "may renew the key, runs /x"
    box.script(box.bin / "bash", f"printf 'look\\t/etc/crontab:3\\t{remark}\\n'")


def unit_is(**properties: str) -> Callable[[ShownBox], object]:
    return lambda box: box.unit(TIMER, **properties)


WHOLE: dict[str, Callable[[ShownBox], object]] = {
    "all at once": all_at_once,
    "many accounts": many_accounts,
    "perhaps another one": perhaps,
    "no settings": lambda box: box.settings.rename(box.settings.with_name("away.env")),
    "no program": lambda box: (box.current / "venv/bin/webkassa-key-updater").write_text("exit 1\n"),
    "nothing installed": lambda box: [box.current.rename(box.root / "away"), (box.units / TIMER).unlink()],
    "not root": lambda box: vars(box).update(is_root=False, user="nobody"),
    "timer failed": unit_is(ActiveState="failed", Result="/resources"),
    "timer runs": unit_is(SubState="running"),
    "timer elapsed": unit_is(SubState="elapsed"),
    "timer far away": lambda box: box.unit(TIMER, NextElapseUSecRealtime=f"@{box.now + 9e6:.0f}"),
    "units not read": lambda box: box.unit(UPDATE, NeedDaemonReload="yes"),
    "service masked": lambda box: box.unit(UPDATE, LoadState="masked"),
    "socket gone": lambda box: box.socket.unlink(),
    "at work": lambda box: box.unit(UPDATE, SubState="start", ExecMainStartTimestamp=f"@{box.now:.0f}"),
    "renewed since": lambda box: [failed_at_night(box, outcome=""), box.note("hand", box.now, outcome="", renewed=True)],
    **{f"code {code}": lambda box, code=code: failed_at_night(box, code, "Вот так.")  # type: ignore[misc]
       for code in server_status.MEANINGS},
    **{f"ended {status}": lambda box, status=status, way=way: box.ended(UPDATE, box.now, status, way, run="d4" * 16)  # type: ignore[misc]
       for status, way, _, _ in UNNOTED},
    "damaged note": lambda box: (box.state / "run-daily.json").write_text("{"),
    "a retry is to come": lambda box: [failed_at_night(box, 75, ""), box.unit(UPDATE, SubState="auto-restart")],
    "renewed by others": lambda box: [failed_at_night(box, 75, ""), box.says("OK", "ключ", age_seconds=60)],
    "rights": lambda box: box.settings.chmod(0o644),
    "a link": lambda box: [box.settings.rename(box.root / "x"), box.settings.symlink_to(box.root / "x"),
                           box.in_words("translate now, before it is away"), (box.root / "x").unlink()],
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_the_screen_in_russian_is_russian_whole(box: ShownBox, name: str) -> None:
    in_russian(box)
    assert box.translate("key") == "ключ"  # whatever happens to the file with the setting
    WHOLE[name](box)
    shown = box.show().replace(str(box.root), "")
    assert server.english_in(shown) == [], shown


def test_what_machines_read_is_the_same_in_russian(box: ShownBox) -> None:
    failed_at_night(box)
    english = box.show("--json")
    box.settings.write_text("WEBKASSA_LANG=ru\n")
    del box.translate
    russian = box.show("--json")
    assert english.code == russian.code == 2
    both = [json.loads(text) for text in (english, russian)]
    assert both[0]["message"] != both[1]["message"]
    for report in both:
        del report["message"]
        for check in report["checks"]:
            del check["message"], check["mend"]
    assert both[0] == both[1]
    assert [check["name"] for check in both[1]["checks"]][:3] == ["key", "timer", "last run"]


def test_timers_are_proven_in_english_for_the_installer(box: ShownBox) -> None:
    in_russian(box)
    assert box.show("--timers") == f"Next run: {when(box.now + 900)}\n"


# settings, /etc/locale.conf, /etc/default/locale, whether it is Russian
CHOSEN = {
    "nothing is said": ("", "", "", False),
    "by the setting": ("A=1\nWEBKASSA_LANG = 'ru'\n", "", "", True),
    "by an old setting that is commented out": ("#WEBKASSA_LANG=ru\n", "", "", False),
    "by the last of two settings": ("WEBKASSA_LANG=en\nexport WEBKASSA_LANG=ru\n", "", "", True),
    "by the machine": ("", "LANG=ru_RU.UTF-8\n", "", True),
    "by the machine, as Debian has it": ("", "", 'LANG="ru_RU.UTF-8"\n', True),
    "by the machine's messages": ("", "LANG=ru_RU.UTF-8\nLC_MESSAGES=C.UTF-8\n", "", False),
    "the setting wins": ("WEBKASSA_LANG=en\n", "LANG=ru_RU.UTF-8\n", "", False),
    "a language that is not there": ("WEBKASSA_LANG=kk\n", "LANG=ru_RU.UTF-8\n", "", False),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
def test_language_is_that_of_the_services(box: ShownBox, name: str) -> None:
    settings, machine, debian, is_russian = CHOSEN[name]
    box.settings.write_text(settings)
    (box.root / "etc/default").mkdir()
    (box.root / "etc/locale.conf").write_text(machine)
    (box.root / "etc/default/locale").write_text(debian)
    assert ("ключ" in box.show()) == is_russian


def start_copy(box: Box, catalogue: bytes | None, folder: str) -> subprocess.CompletedProcess[str]:
    """Start a release's own copy of the script, with this catalogue in a folder of it."""
    release = box.root / "release"
    shutil.copytree(ROOT / "systemd", release / "systemd")
    if catalogue is not None:
        (release / folder).mkdir(parents=True)
        (release / folder / translations.PO.with_suffix(".mo").name).write_bytes(catalogue)
    program = (
        f"import server_status as s, pathlib; s.main([], s.Server(pathlib.Path({str(box.root)!r})))"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(release / "systemd"), "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        [sys.executable, "-B", "-c", program], env=env, capture_output=True, text=True
    )


def test_a_release_finds_the_catalogue_that_pip_installed(box: ShownBox) -> None:
    in_russian(box)
    mo = translations.PO.with_suffix(".mo").read_bytes()
    inside = "venv/lib/python3.11/site-packages/webkassa_key_locale/ru/LC_MESSAGES"
    assert "\nOK        таймер " in start_copy(box, mo, inside).stdout


MO = translations.PO.with_suffix(".mo").read_bytes()


@pytest.mark.parametrize(
    "catalogue", [None, b"", MO[:5000], b"#!/bin/sh\n" * 500, MO.replace("запуск {comes}".encode(), "запуск {other}".encode())],
    ids=["missing", "empty", "cut off", "none", "other values"],
)  # fmt: skip
def test_a_broken_catalogue_means_english(box: ShownBox, catalogue: bytes | None) -> None:
    in_russian(box)
    done = start_copy(box, catalogue, "locale/ru/LC_MESSAGES")
    assert done.stderr == ""
    assert "enabled, active, next run " in done.stdout


# The starter ---------------------------------------------------------------------------------------


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "check-status.sh", *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_the_starter_passes_all_on() -> None:
    assert start("--help").stdout == str(server_status.__doc__).rstrip() + "\n"
    assert (start("--jsno").returncode, start("--json", "x").returncode) == (3, 3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [("#WEBKASSA_LANG=ru", "code: no Python 3.10 or newer starts here"),
     ("A=1\nWEBKASSA_LANG=ru", "программа: не запускается ни один Python")],
)  # fmt: skip
def test_without_any_python_it_is_critical(tmp_path: Path, settings: str, said: str) -> None:
    """In a copy whose settings are there."""
    for tool in ("env", "bash", "dirname", "readlink"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    shutil.copytree(ROOT / "systemd", tmp_path / "systemd")
    shutil.copy(ROOT / "check-status.sh", tmp_path)
    common = tmp_path / "systemd/common.sh"
    text = common.read_text(encoding="utf-8").replace("/etc/webkassa-key-updater", str(tmp_path))
    common.write_text(text, encoding="utf-8")
    (tmp_path / "webkassa.env").write_text(settings, encoding="utf-8")
    for script, start_of in (
        ("check-status.sh", "WEBKASSA CRITICAL - "),
        ("systemd/send-alert.sh", "<3>"),
    ):
        done = subprocess.run(
            [tmp_path / script], env={"PATH": str(tmp_path)}, capture_output=True, text=True
        )
        assert done.returncode == (2 if script == "check-status.sh" else 1)
        assert done.stdout.startswith(start_of)
        assert done.stdout.isascii() == said.isascii()
        assert said in done.stdout or script != "check-status.sh"


def test_nobody_reads_it_and_its_code_is_the_truth_all_the_same() -> None:
    """install.sh | head -n 1 failed: its proof of the timers ended with 1."""
    script = ROOT / "systemd/server_status.py"
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        done = subprocess.run([sys.executable, script, "--help"], stdout=closed)
    assert done.returncode == 0
