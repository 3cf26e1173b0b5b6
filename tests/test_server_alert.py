"""Alerts, through Apprise's own json:// to a receiver on the loopback."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import server_alert
import server_status
from server import ROOT, Box
from server_status import BOOT, UPDATE

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("apprise"),
    reason="Apprise is not installed (requirements-dev.txt)",
)
HOUR = 3600


class Receiver(ThreadingHTTPServer):
    """Keeps what reaches each path; those in `refused` are answered 500."""

    def __init__(self) -> None:
        self.alerts: list[tuple[str, dict[str, Any]]] = []
        self.refused = set[str]()
        super().__init__(("127.0.0.1", 0), Handler)

    def reached(self, path: str) -> list[dict[str, Any]]:
        return [alert for where, alert in self.alerts if where == path]


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        alert = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path not in self.server.refused:
            self.server.alerts.append((self.path, alert))
        self.send_response(500 if self.path in self.server.refused else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        threading.Thread(target=receiver.serve_forever, args=(0.02,), daemon=True).start()
        yield receiver
        receiver.shutdown()


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> Box:
    box = Box(tmp_path)
    monkeypatch.setenv("PATH", f"{box.bin}:{os.environ['PATH']}")
    addresses(box, receiver, "/a")
    return box


def addresses(box: Box, receiver: Receiver, *paths: str, more: str = "") -> None:
    lines = [f"json://canary-user:canary-pass@127.0.0.1:{receiver.server_port}{p}\n" for p in paths]
    box.addresses.write_text("# ours\n" + "".join(lines) + more)
    box.addresses.chmod(0o640)


def fail(box: Box, code: int = 77, unit: str = UPDATE, hours: float = 3) -> None:
    moment, kind = box.now - hours * HOUR, "daily" if unit == UPDATE else "boot"
    box.note(kind, moment, code, "Webkassa refuses it.", run="c3" * 16)
    box.ended(unit, moment, code, run="c3" * 16)


def renew(box: Box) -> None:
    box.note("hand", box.now, renewed=True)


def memory(box: Box) -> dict[str, Any]:
    return dict(json.loads((box.state / "alert.json").read_text()))


def age_pending(box: Box, hours: float) -> None:
    """Let the pending alert, and what was told, be older."""
    notes = memory(box)
    notes["pending"]["time"] -= hours * HOUR
    notes["told"] = {cause: moment - hours * HOUR for cause, moment in notes["told"].items()}
    (box.state / "alert.json").write_text(json.dumps(notes))


def serve(box: Box) -> int:
    return server_alert.main([], box)


def test_a_failure_is_told_of_once(box: Box, receiver: Receiver) -> None:
    fail(box)
    assert [serve(box), serve(box)] == [0, 0]
    (alert,) = receiver.reached("/a")
    assert ": WEBKASSA CRITICAL - last run: failing since " in alert["title"]
    assert "(code 77: Webkassa refuses the login" in alert["title"]
    assert "Webkassa refuses it." in alert["message"]
    assert "-> put the right login" in alert["message"]
    assert alert["type"] == "failure"


def test_where_nothing_failed_nothing_is_asked_and_nobody_is_told(
    box: Box, receiver: Receiver
) -> None:
    (box.root / "report").unlink()  # whoever asked for the status would fail
    assert serve(box) == 0
    assert receiver.alerts == []


def test_a_retry_to_come_is_not_told_of_yet(box: Box, receiver: Receiver) -> None:
    """systemd 254 and newer come on every retry."""
    fail(box, 75)
    for state in ("auto-restart", "auto-restart-queued", "start"):
        box.unit(UPDATE, SubState=state, ActiveState="activating")
        assert serve(box) == 0
    assert receiver.alerts == []


def test_the_same_cause_is_told_of_once_a_day(box: Box, receiver: Receiver) -> None:
    fail(box)
    serve(box)
    fail(box, unit=BOOT)  # another kind of run, the same cause
    serve(box)
    assert len(receiver.alerts) == 1
    fail(box, 73)
    serve(box)
    assert len(receiver.alerts) == 2
    notes = memory(box)
    notes["told"] = {cause: moment - 21 * HOUR for cause, moment in notes["told"].items()}
    (box.state / "alert.json").write_text(json.dumps(notes))
    serve(box)
    assert len(receiver.alerts) == 3


def test_all_is_well_again_is_told_of_once(box: Box, receiver: Receiver) -> None:
    fail(box)
    serve(box)
    renew(box)
    assert [serve(box), serve(box)] == [0, 0]
    _, again = receiver.reached("/a")
    assert ": WEBKASSA OK - works again: key 1a2b3c4d, 4.0 h old" in again["title"]
    assert "last run: failing since" in again["message"]
    assert again["type"] == "success"
    fail(box, hours=-1)  # the next failure is news, though it is the same
    serve(box)
    assert len(receiver.alerts) == 3


def test_it_is_not_well_as_long_as_nobody_knows(box: Box, receiver: Receiver) -> None:
    fail(box)
    serve(box)
    renew(box)
    box.says("UNKNOWN", "PostgreSQL is away")
    serve(box)
    assert len(receiver.alerts) == 1
    box.says("OK", "key 1a2b3c4d, 0.1 h old", age_seconds=360)
    serve(box)
    assert len(receiver.alerts) == 2


def test_who_was_told_is_not_told_again(box: Box, receiver: Receiver) -> None:
    """Apprise itself says of two addresses, of which one fails, that nobody was told."""
    addresses(box, receiver, "/a", "/b")
    receiver.refused = {"/b"}
    fail(box)
    assert [serve(box), serve(box)] == [1, 1]
    assert (len(receiver.reached("/a")), len(receiver.reached("/b"))) == (1, 0)
    receiver.refused = set()
    assert [serve(box), serve(box)] == [0, 0]
    assert (len(receiver.reached("/a")), len(receiver.reached("/b"))) == (1, 1)


def test_tries_end_after_a_day_and_that_is_said(
    box: Box, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver.refused = {"/a"}
    fail(box)
    assert serve(box) == 1
    age_pending(box, 23)
    box.properties[UPDATE]["SubState"] = "start"  # nothing new meanwhile
    box.unit(UPDATE)
    assert serve(box) == 1
    age_pending(box, 2)
    assert serve(box) == 0
    assert "is given up" in capsys.readouterr().out
    assert "could not be sent everywhere, and was given up after a day. line 2 (json): " in looked(
        box
    )
    receiver.refused = set()
    assert server_alert.main(["--test"], box) == 0
    assert looked(box) == ""


def looked(box: Box) -> str:
    return "".join(server_alert.look(box))


def test_a_line_that_cannot_be_parsed_is_named_and_hides_no_other(
    box: Box, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses(box, receiver, "/a", more="hello\ntgram://canary-token/\nnosuch://canary\n")
    fail(box)
    assert serve(box) == 0
    assert len(receiver.reached("/a")) == 1
    said = capsys.readouterr().out + looked(box)
    for label in ("line 3", "line 4 (tgram)", "line 5 (nosuch)"):
        assert said.count(f"{label}: Apprise does not understand this address") >= 2
    assert "canary" not in said


@pytest.mark.parametrize("text", ["# none\n", "hello\n", ""])
def test_where_no_address_can_be_used_nothing_is_called_sent(
    box: Box, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    box.addresses.write_text(text)
    fail(box)
    assert serve(box) == 1
    said = capsys.readouterr().out
    assert "apprise.conf: it holds no address that can be used" in said
    assert "was sent" not in said
    assert server_alert.main(["--test"], box) == 1


def test_a_tagged_line_and_a_yaml_file_are_told_too(box: Box, receiver: Receiver) -> None:
    port = receiver.server_port
    box.addresses.write_text(
        f"ops=json://127.0.0.1:{port}/ops\na, b = json://127.0.0.1:{port}/ab\n"
    )
    fail(box)
    assert serve(box) == 0
    assert {path for path, _ in receiver.alerts} == {"/ops", "/ab"}
    box.addresses.write_text(f"urls:\n  - json://127.0.0.1:{port}/yaml\n  - nosuch://x\n")
    assert server_alert.main(["--test"], box) == 0
    assert len(receiver.reached("/yaml")) == 1


@pytest.mark.parametrize("count", [12, 300])
def test_an_alert_of_many_accounts_is_short_and_the_worst_come_first(
    box: Box, receiver: Receiver, count: int
) -> None:
    names = [f"till-{number:03}" for number in range(count)]
    box.make_many(*names)
    long = "key 1a2b3c4d, 30.0 h old: older than 25 h; the probe says alive" + 300 * "x"
    rows = [
        {"account": n, "status": "WARNING", "message": long, "age_seconds": 108000} for n in names
    ]
    rows[0] |= {"status": "CRITICAL", "message": "key 1a2b3c4d: it is dead"}
    box.report("CRITICAL", f"0 of {count} accounts are well; till-000: it is dead", rows)
    for name in names:
        box.note("daily", box.now - 3 * HOUR, 77, long, account=name, run="c3" * 16)
    box.ended(UPDATE, box.now - 3 * HOUR, 77, run="c3" * 16)
    assert serve(box) == 0
    (alert,) = receiver.reached("/a")
    assert len(alert["title"]) + len(alert["message"]) <= 3500
    assert alert["message"].startswith("CRITICAL key: ")
    assert alert["message"].index("CRITICAL: till-000") < alert["message"].index(
        "WARNING: till-001"
    )
    left = int(alert["message"].rpartition("and ")[2].split()[0])
    named = len(re.findall("^(?:WARNING: |CRITICAL: )?till-", alert["message"], re.MULTILINE))
    assert left == 2 * count - named  # each has a run that failed, and an old key
    assert alert["message"].endswith(" more: sudo webkassa-key status")


def test_a_service_with_less_room_gets_the_beginning(
    box: Box, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apprise.plugins.custom_json import NotifyJSON

    monkeypatch.setattr(NotifyJSON, "body_maxlen", 400)
    fail(box)
    box.note("daily", box.now - 3 * HOUR, 77, 900 * "x", run="c3" * 16)
    assert serve(box) == 0
    (alert,) = receiver.reached("/a")
    assert len(alert["title"]) + len(alert["message"]) <= 400


def test_a_test_says_that_it_is_one_and_what_came_of_it(
    box: Box, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses(box, receiver, "/a", "/b")
    receiver.refused = {"/b"}
    assert server_alert.main(["--test"], box) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "line 2 (json): sent"
    assert said[1].startswith("line 3 (json): ")
    assert "500" in said[1]
    (alert,) = receiver.reached("/a")
    assert ": TEST, WEBKASSA OK" in alert["title"]
    assert alert["message"].startswith("This is a test, sent by hand.")
    assert not (box.state / "alert.json").exists()


def test_no_secret_of_an_address_is_said(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    box.addresses.write_text(
        "jsons://canary-user:canary%20pass@canary-host.invalid/canary-path?x=canary-x\n"
    )
    assert server_alert.main(["--test"], box) == 1
    fail(box)
    assert serve(box) == 1
    said = capsys.readouterr().out + looked(box) + (box.state / "alert.json").read_text()
    assert "line 1 (jsons): " in said
    assert "canary" not in said


def test_without_addresses_the_journal_has_it_at_err(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    box.addresses.unlink()
    fail(box)
    assert [serve(box), serve(box)] == [0, 0]
    said = capsys.readouterr().out
    assert said.count("<3>") == said.count("\n") - 1 > 3
    assert said.count("Nobody was told but this journal") == 1


def test_a_full_disk_keeps_no_alert_back(box: Box, receiver: Receiver) -> None:
    box.state.chmod(0o500)
    shutil.rmtree(box.state)
    box.state.touch()  # no file can be made in it
    box.ended(UPDATE, box.now - HOUR, 203, run="d4" * 16)
    assert serve(box) == 0
    assert len(receiver.reached("/a")) == 1


def test_status_tells_of_alerts_that_do_not_arrive(
    box: Box,
    receiver: Receiver,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver.refused = {"/a"}
    fail(box)
    serve(box)
    capsys.readouterr()
    assert server_status.main([], box) == 2
    screen = capsys.readouterr().out
    assert "is tried again by itself. line 2 (json): " in screen
    assert "-> sudo webkassa-key alert\n" in screen


def test_the_starter_takes_any_python_and_passes_all_on() -> None:
    done = subprocess.run(
        [ROOT / "systemd/send-alert.sh", "--help"], capture_output=True, text=True
    )
    assert done.stdout == str(server_alert.__doc__).rstrip() + "\n"
    done = subprocess.run(
        [ROOT / "systemd/send-alert.sh", "--tset"], capture_output=True, text=True
    )
    assert done.returncode == 2
