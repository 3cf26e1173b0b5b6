"""Alerts, through Apprise's own json:// to a receiver on the loopback."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import server_alert
import server_status
from server import ROOT, Box
from server_status import BOOT, UPDATE
from world.monitor import Monitor

pytestmark = [
    pytest.mark.skipif(
        not importlib.util.find_spec("apprise"),
        reason="Apprise is not installed (requirements-dev.txt)",
    ),
    pytest.mark.xdist_group("apprise"),  # loading it takes a second
]
HOUR = 3600


class AlertedBox(Box):
    """A server whose alerts go to a receiver."""

    def __init__(self, root: Path, receiver: Monitor, said: pytest.CaptureFixture[str]) -> None:
        super().__init__(root)
        self.receiver, self.said = receiver, said

    def send_to(self, *paths: str, more: str = "") -> None:
        """Write a line for each path of the receiver into apprise.conf."""
        at = f"json://canary-user:canary-pass@127.0.0.1:{self.receiver.server_port}"
        self.addresses.write_text("".join(["# ours\n", *(f"{at}{path}\n" for path in paths), more]))
        self.addresses.chmod(0o640)

    def fail(self, code: int = 77, unit: str = UPDATE, hours: float = 3) -> None:
        moment, kind = self.now - hours * HOUR, "daily" if unit == UPDATE else "boot"
        self.note(kind, moment, code, "Webkassa refuses it.", run="c3" * 16)
        self.ended(unit, moment, code, run="c3" * 16)

    def serve(self, *, told: int | None = None, code: int = 0) -> None:
        """Alert as the service does; `told` is how many alerts have arrived then, of all."""
        assert server_alert.main([], self) == code
        assert told in (None, len(self.receiver.heard))

    def test(self, code: int = 0) -> str:
        """Send a test; return what is said."""
        assert server_alert.main(["--test"], self) == code
        return str(self.said.readouterr().out)

    def looked(self) -> str:
        return "".join(server_alert.look(self))

    @property
    def memory(self) -> Path:
        return self.state / "alert.json"

    def age_memory(self, hours: float) -> None:
        """Let the pending alert, and what was told, be older."""
        notes = json.loads(self.memory.read_text())
        if notes.get("pending"):
            notes["pending"]["time"] -= hours * HOUR
        notes["told"] = {cause: moment - hours * HOUR for cause, moment in notes["told"].items()}
        self.memory.write_text(json.dumps(notes))


@pytest.fixture
def receiver(monitor: Monitor) -> Monitor:
    return monitor


@pytest.fixture
def box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Monitor,
    capsys: pytest.CaptureFixture[str],
) -> AlertedBox:  # fmt: skip
    box = AlertedBox(tmp_path, receiver, capsys)
    monkeypatch.setenv("PATH", f"{box.bin}:{os.environ['PATH']}")
    box.send_to("/a")
    return box


def test_a_failure_is_told_of_once(box: AlertedBox, receiver: Monitor) -> None:
    box.fail()
    box.serve(told=1)
    box.serve(told=1)
    (alert,) = receiver.alerts("/a")
    assert ": WEBKASSA CRITICAL - last run: failing since " in alert["title"]
    assert "(code 77: Webkassa refuses the login" in alert["title"]
    assert "Webkassa refuses it." in alert["message"]
    assert "-> put the right login" in alert["message"]
    assert alert["type"] == "failure"


def test_where_nothing_failed_nothing_is_asked_and_nobody_is_told(box: AlertedBox) -> None:
    (box.root / "report").unlink()  # whoever asked for the status would fail
    box.serve(told=0)


def test_a_retry_to_come_is_not_told_of_yet(box: AlertedBox) -> None:
    """systemd 254 and newer come on every retry."""
    box.fail(75)
    for state in ("auto-restart", "auto-restart-queued", "start"):
        box.unit(UPDATE, SubState=state, ActiveState="activating")
        box.serve(told=0)


def test_the_same_cause_is_told_of_once_a_day(box: AlertedBox) -> None:
    box.fail()
    box.serve(told=1)
    box.fail(unit=BOOT)  # another kind of run, the same cause
    box.serve(told=1)
    box.fail(73)
    box.serve(told=2)
    box.age_memory(21)
    box.serve(told=3)


def test_all_is_well_again_is_told_of_once(box: AlertedBox, receiver: Monitor) -> None:
    box.fail()
    box.serve()
    box.note("hand", box.now, renewed=True)
    box.serve(told=2)
    box.serve(told=2)
    _, again = receiver.alerts("/a")
    assert ": WEBKASSA OK - works again: key 1a2b3c4d, 4.0 h old" in again["title"]
    assert "last run: failing since" in again["message"]
    assert again["type"] == "success"
    box.fail(hours=-1)  # the next failure is news, though it is the same
    box.serve(told=3)


def test_it_is_not_well_as_long_as_nobody_knows(box: AlertedBox) -> None:
    box.fail()
    box.serve()
    box.note("hand", box.now, renewed=True)
    box.says("UNKNOWN", "PostgreSQL is away")
    box.serve(told=1)
    box.says("OK", "key 1a2b3c4d, 0.1 h old", age_seconds=360)
    box.serve(told=2)


def test_who_was_told_is_not_told_again(box: AlertedBox, receiver: Monitor) -> None:
    """Apprise itself says of two addresses, of which one fails, that nobody was told."""
    box.send_to("/a", "/b")
    box.fail()
    for receiver.refused, code, reached in (({"/b"}, 1, ["/a"]), (set(), 0, ["/a", "/b"])):
        for _ in range(2):
            box.serve(code=code)
            assert receiver.paths == reached


def test_tries_end_after_a_day_and_that_is_said(box: AlertedBox, receiver: Monitor) -> None:
    receiver.refused = {"/a"}
    box.fail()
    box.serve(code=1)
    box.age_memory(23)
    box.unit(UPDATE, SubState="start")  # nothing new meanwhile
    box.serve(code=1)
    box.age_memory(2)
    box.serve(code=0)
    assert "is given up" in box.said.readouterr().out
    assert "could not be sent everywhere, and was given up after a day. line 2 (json): " in (
        box.looked()
    )
    receiver.refused = set()
    box.test()
    assert box.looked() == ""


def test_a_line_that_cannot_be_parsed_is_named_and_hides_no_other(box: AlertedBox) -> None:
    box.send_to("/a", more="hello\ntgram://canary-token/\nnosuch://canary\n")
    box.fail()
    box.serve(told=1)
    said = box.said.readouterr().out + box.looked()
    for label in ("line 3", "line 4 (tgram)", "line 5 (nosuch)"):
        assert said.count(f"{label}: Apprise does not understand this address") >= 2
    assert "canary" not in said


@pytest.mark.parametrize("text", ["# none\n", "hello\n", ""])
def test_where_no_address_can_be_used_nothing_is_called_sent(box: AlertedBox, text: str) -> None:
    box.addresses.write_text(text)
    box.fail()
    box.serve(code=1)
    said = box.said.readouterr().out
    assert "apprise.conf: it holds no address that can be used" in said
    assert "was sent" not in said
    box.test(code=1)


def test_a_tagged_line_and_a_yaml_file_are_told_too(box: AlertedBox, receiver: Monitor) -> None:
    at = f"json://127.0.0.1:{receiver.server_port}"
    box.addresses.write_text(f"ops={at}/ops\na, b = {at}/ab\n")
    box.fail()
    box.serve()
    assert {*receiver.paths} == {"/ops", "/ab"}
    box.addresses.write_text(f"urls:\n  - {at}/yaml\n  - nosuch://x\n")
    box.test()
    assert receiver.paths.count("/yaml") == 1


@pytest.mark.parametrize("count", [12, 300])
def test_an_alert_of_many_accounts_is_short_and_the_worst_come_first(
    box: AlertedBox, receiver: Monitor, count: int
) -> None:
    names = [f"till-{number:03}" for number in range(count)]
    box.make_many(*names)
    long = "key 1a2b3c4d, 30.0 h old: older than 25 h; the probe says alive" + 300 * "x"
    old = {"status": "WARNING", "message": long, "age_seconds": 108000}
    rows = [old | {"account": name} for name in names]
    rows[0] |= {"status": "CRITICAL", "message": "key 1a2b3c4d: it is dead"}
    box.report("CRITICAL", f"0 of {count} accounts are well; till-000: it is dead", rows)
    for name in names:
        box.note("daily", box.now - 3 * HOUR, 77, long, account=name, run="c3" * 16)
    box.ended(UPDATE, box.now - 3 * HOUR, 77, run="c3" * 16)
    box.serve()
    (alert,) = receiver.alerts("/a")
    text = alert["message"]
    assert len(alert["title"]) + len(text) <= 3500
    assert text.startswith("CRITICAL key: ")
    assert text.index("CRITICAL: till-000") < text.index("WARNING: till-001")
    left = int(text.rpartition("and ")[2].split()[0])
    named = len(re.findall("^(?:WARNING: |CRITICAL: )?till-", text, re.MULTILINE))
    assert left == 2 * count - named  # each has a run that failed, and an old key
    assert text.endswith(" more: sudo webkassa-key status")


def test_a_service_with_less_room_gets_the_beginning(
    box: AlertedBox, receiver: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apprise.plugins.custom_json import NotifyJSON

    monkeypatch.setattr(NotifyJSON, "body_maxlen", 400)
    box.fail()
    box.note("daily", box.now - 3 * HOUR, 77, 900 * "x", run="c3" * 16)
    box.serve()
    (alert,) = receiver.alerts("/a")
    assert len(alert["title"]) + len(alert["message"]) <= 400


def test_a_test_says_that_it_is_one_and_what_came_of_it(box: AlertedBox, receiver: Monitor) -> None:
    box.send_to("/a", "/b")
    receiver.refused = {"/b"}
    said = box.test(code=1).splitlines()
    assert said[0] == "line 2 (json): sent"
    assert said[1].startswith("line 3 (json): ")
    assert "500" in said[1]
    (alert,) = receiver.alerts("/a")
    assert ": TEST, WEBKASSA OK" in alert["title"]
    assert alert["message"].startswith("This is a test, sent by hand.")
    assert not box.memory.exists()


def test_no_secret_of_an_address_is_said(box: AlertedBox) -> None:
    box.addresses.write_text(
        "jsons://canary-user:canary%20pass@canary-host.invalid/canary-path?x=canary-x\n"
    )
    said = box.test(code=1)
    box.fail()
    box.serve(code=1)
    said += box.said.readouterr().out + box.looked() + box.memory.read_text()
    assert "line 1 (jsons): " in said
    assert "canary" not in said


def test_without_addresses_the_journal_has_it_at_err(box: AlertedBox) -> None:
    box.addresses.unlink()
    box.fail()
    box.serve()
    box.serve()
    said = box.said.readouterr().out
    assert said.count("<3>") == said.count("\n") - 1 > 3
    assert said.count("Nobody was told but this journal") == 1


def test_a_full_disk_keeps_no_alert_back(box: AlertedBox) -> None:
    box.state.chmod(0o500)
    shutil.rmtree(box.state)
    box.state.touch()  # no file can be made in it
    box.ended(UPDATE, box.now - HOUR, 203, run="d4" * 16)
    box.serve(told=1)


def test_status_tells_of_alerts_that_do_not_arrive(box: AlertedBox, receiver: Monitor) -> None:
    receiver.refused = {"/a"}
    box.fail()
    box.serve(code=1)
    box.said.readouterr()
    box.looks_at_addresses()
    assert server_status.main([], box) == 2
    screen = box.said.readouterr().out
    assert "is tried again by itself. line 2 (json): " in screen
    assert "-> sudo webkassa-key alert\n" in screen


@pytest.mark.parametrize(
    ("option", "code", "said"),
    [("--help", 0, str(server_alert.__doc__).rstrip() + "\n"), ("--tset", 2, "")],
)
def test_the_starter_takes_any_python_and_passes_all_on(option: str, code: int, said: str) -> None:
    starter = [ROOT / "systemd/send-alert.sh", option]
    done = subprocess.run(starter, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, said)
