"""Alerts, through Apprise's own json:// to a receiver on the loopback."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import server
import server_alert
import server_status
import server_words
from server import ROOT, Box
from server_status import BOOT, UPDATE
from world.monitor import Monitor

from webkassa_key_updater import TEST

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

    def report(self, level: str, message: str, accounts: list[dict[str, Any]]) -> None:
        """Let the keys' ages be of the beginning of this minute: their ends are told to the minute."""
        more = int(self.now) % 60
        rows = [row | {"age_seconds": row["age_seconds"] + more} if row.get("age_seconds") else row
                for row in accounts]  # fmt: skip
        super().report(level, message, rows)

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


@pytest.mark.slow
def test_a_failure_is_told_of_once(box: AlertedBox, receiver: Monitor) -> None:
    box.fail()
    box.serve(told=1)
    box.serve(told=1)
    (alert,) = receiver.alerts("/a")
    assert alert["title"].endswith(": WEBKASSA CRITICAL - the shop can sell for now")
    assert "(code 77: Webkassa refuses the login" in alert["message"]
    assert alert["message"].endswith("\nWebkassa refuses it.")
    assert alert["type"] == "failure"


LOOK = """
import pathlib, sys
sys.path.insert(0, {systemd!r})
import server_alert, server_status
sys.exit(server_alert.main(["--look"], server_status.Server(pathlib.Path({root!r}))))
"""


def test_alerts_survive_an_upgrade_of_the_systems_python(box: AlertedBox) -> None:
    """It breaks both virtual environments in one night, and the alert of that reached nobody."""
    libraries = Path(importlib.util.find_spec("apprise").origin).parents[1]  # type: ignore[union-attr, arg-type]
    box.send_to(more="nonsense\n")
    code = LOOK.format(systemd=str(ROOT / "systemd"), root=str(box.root))
    command = [sys.executable, "-S", "-B", "-E", "-s", "-c", code]  # -S: it knows no site-packages
    looked = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert looked == "cannot be sent: Apprise does not start\n"
    before = box.current / "alerts/lib/python3.1"
    before.mkdir(parents=True)
    (before / "site-packages").symlink_to(libraries)
    looked = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert looked.startswith("line 2: Apprise does not understand this address")


# The three questions -----------------------------------------------------------------------------


def clock(moment: float) -> str:
    return time.strftime("%H:%M ", time.localtime(moment))


def answer(box: AlertedBox) -> list[str]:
    """Return what an alert says first, in its lines."""
    alert = server_alert.alarm(server_status.make_report(box))
    return [alert.title.partition(" - ")[2], *alert.body.partition("\n\n")[0].splitlines()]


# What the key is like, and the first line of the alert; {end} is the end of the key's day
KEYS: dict[str, tuple[dict[str, Any], str, str]] = {
    "it works": (
        {}, "the shop can sell for now",
        "The shop can sell for now. Webkassa promises a key about a day: until about {end}."),
    "it works, and its day is over": (
        {"age_seconds": 26 * HOUR}, "the shop can sell for now",
        "The shop can still sell, but the key may end at any moment: the day that Webkassa promises it"
        " was over at {end}."),
    "it works, and nobody knows how old it is": (
        {"age_seconds": None}, "the shop can sell for now", "The shop can sell for now."),
    "it is dead": (
        {"probe": "dead"}, "the shop cannot sell", "The shop cannot sell: the stored key is dead."),
    "there is none": (
        {"fingerprint": "none", "age_seconds": None}, "the shop cannot sell",
        "The shop cannot sell: no key is stored."),
    "Webkassa does not say": (
        {"probe": "unclear"}, "whether the shop can sell is not known",
        "Whether the shop can sell is not known: Webkassa could not be asked about the key."
        " If no other login has ended it, the key lasts until about {end}."),
    "the key is of the test system": (
        {"probe": TEST}, "the shop cannot sell",
        "The shop cannot sell: the stored key is of Webkassa's TEST system."),
    "it was not asked": (
        {"probe": "off", "age_seconds": None}, "whether the shop can sell is not known",
        "Whether the shop can sell is not known: the probe is switched off. Try to sell."),
    "the probe is not believed": (
        {"probe": "dead, but not believed", "age_seconds": 30 * HOUR}, "whether the shop can sell is not known",
        "Whether the shop can sell is not known: the probe refuses every new key. Try to sell."),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_whether_and_until_when_the_shop_can_sell_is_said_first(box: AlertedBox, name: str) -> None:
    facts, short, first = KEYS[name]
    box.fail(69)
    facts = {"age_seconds": 4 * HOUR} | facts
    box.says("CRITICAL", "key 1a2b3c4d and so on", **facts)
    said, line, why, *_ = answer(box)
    end = box.now - (facts["age_seconds"] or 0) + 24 * HOUR
    pattern = re.escape(first).replace(r"\{end\}", clock(end) + r"\w+ \(?\w{3} \d{4}-.*")
    assert said == short
    assert re.fullmatch(pattern, line)
    since = server_words.when(box.now - 3 * HOUR)
    assert why.startswith(f"Renewing the key has failed since {since} (code 69: Webkassa cannot")


def away(box: AlertedBox) -> None:
    box.says("UNKNOWN", "PostgreSQL cannot be reached")


def wrong(box: AlertedBox) -> None:
    box.report("UNKNOWN", "The settings are wrong:", [])


def broken(box: AlertedBox) -> None:
    (box.current / "venv/bin/webkassa-key-updater").write_text("exit 1\n")


@pytest.mark.parametrize(("spoil", "code"), [(away, 75), (wrong, 78), (broken, 203)])
def test_where_nobody_looked_at_the_key_nothing_is_claimed_of_it(
    box: AlertedBox, spoil: Callable[[AlertedBox], None], code: int
) -> None:
    spoil(box)
    box.note("hand", box.now - 5 * HOUR, renewed=True)
    box.fail(code)
    short, line, *_ = answer(box)
    unknown = "Whether the shop can sell is not known: the stored key could not be looked at."
    assert short == "whether the shop can sell is not known"
    until = (
        f"If no other login has ended it, the key lasts until about {clock(box.now + 19 * HOUR)}"
    )
    assert line.startswith(f"{unknown} {until}")
    note = json.loads((box.state / "run-daily.json").read_text())
    for key in ("dead", "unclear"):  # a login of ours may have ended it
        (box.state / "run-daily.json").write_text(json.dumps(note | {"key": key}))
        assert answer(box)[1] == unknown


@pytest.mark.parametrize(
    ("code", "command"),
    [(69, "sudo webkassa-key update"), (75, "sudo webkassa-key update"), (73, "sudo webkassa-key check"),
     (77, "put in the right login and password: sudo nano {settings}; then: sudo webkassa-key update"),
     (78, "correct the settings: sudo nano {settings}; then: sudo webkassa-key check"),
     (203, "sudo {current}/install.sh")],
)  # fmt: skip
def test_what_to_type_is_said_third_and_once(box: AlertedBox, code: int, command: str) -> None:
    box.fail(code)
    command = command.format(settings=box.settings, current=box.current)
    assert answer(box)[-1] == f"What to do: {command}"
    alert = server_alert.alarm(server_status.make_report(box))
    assert alert.body.count(command) == 1


@pytest.mark.slow
def test_of_many_accounts_the_worst_are_said_first(box: AlertedBox) -> None:
    names = [f"till-{number}" for number in range(15)]
    box.make_many(*names)
    rows = [{"account": name, "status": "OK", "message": "key", "age_seconds": (number + 1) * HOUR,
             "probe": "dead" if number in (3, 5) else "alive"} for number, name in enumerate(names)]  # fmt: skip
    for number in (0, 1):
        rows[number] = {"account": names[number], "status": "UNKNOWN", "message": "away"}
    rows.append({"account": "Webkassa:x", "status": "OK", "message": "no file is for this row"})
    box.report("CRITICAL", "11 of 15 accounts are well", rows)
    box.note("daily", box.now - 3 * HOUR, 77, "refused", account="till-3", run="c3" * 16)
    box.ended(UPDATE, box.now - 3 * HOUR, 77, run="c3" * 16)
    short, dead, unknown, alive, _, what = answer(box)
    assert short == "2 of 15 accounts cannot sell"
    assert dead == "Cannot sell: 2 of 15 accounts: till-3, till-5."
    assert unknown == "Not known: 2 of 15 accounts: till-0, till-1."
    first = f"the first until about {clock(box.now + 9 * HOUR)}"
    assert alive.startswith(f"Can sell for now: 11 of 15 accounts, {first}")
    assert (
        f"sudo nano {box.accounts}/till-3.env; then: sudo webkassa-key update --account till-3; "
        in what
    )
    del rows[-1]
    for probe, short, first in (
        ("dead", "15 of 15 accounts cannot sell", " till-8, till-9 and 5 more."),
        ("unclear", "whether 15 of 15 accounts can sell is not known", " till-9 and 5 more."),
        ("alive", "all 15 accounts can sell for now", ", the first until about "),
    ):
        box.report(
            "CRITICAL", "0 of 15 accounts are well", [row | {"probe": probe} for row in rows]
        )
        assert answer(box)[0] == short
        assert first in answer(box)[1]
    rows[7] |= {"probe": "alive", "age_seconds": 26 * HOUR}
    box.report("CRITICAL", "0 of 15 accounts are well", rows)
    assert answer(box)[3].endswith("11 of 15 accounts; the promised day of 1 is over.")


@pytest.mark.slow
def test_an_alert_in_russian_is_russian_whole(box: AlertedBox, receiver: Monitor) -> None:
    box.settings.write_text("WEBKASSA_LANG=ru\n")
    box.says("OK", "ключ 1a2b3c4d (ему 4.0 ч); проверка: жив", age_seconds=4 * HOUR)
    box.fail()
    box.note("daily", box.now - 3 * HOUR, 77, "Вход отклонён.", run="c3" * 16)
    box.serve()
    box.note("hand", box.now, outcome="Записан новый ключ.", renewed=True)
    box.serve(told=2)
    box.test()
    failed, again, test = receiver.alerts("/a")
    assert failed["title"].endswith(": WEBKASSA CRITICAL - магазин пока продаёт")
    end = f"примерно до {clock(box.now + 20 * HOUR)}"
    assert failed["message"].startswith(
        f"Магазин пока продаёт. Webkassa обещает ключу около суток: {end}"
    )
    mend = (
        f"впишите верные логин и пароль: sudo nano {box.settings}; затем: sudo webkassa-key update"
    )
    assert f"\nЧто сделать: {mend}\n" in failed["message"]
    assert again["title"].endswith(": WEBKASSA OK - снова работает: магазин продаёт")
    assert test["message"].startswith("Это пробное сообщение, отправленное вручную.\nМагазин пока")
    box.addresses.write_text("hello\n")
    box.fail(hours=-1)
    box.note("daily", box.now + HOUR, 77, "Вход отклонён.", run="c3" * 16)
    box.serve(code=1)
    box.test(code=1)
    said = [box.said.readouterr().out, box.looked()]
    for alert in (failed, again, test):
        said += [alert["title"].partition(": ")[2], alert["message"]]
    assert server.english_in("\n".join(said).replace(str(box.root), "")) == []


# When it is told ---------------------------------------------------------------------------------


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
    works = ": WEBKASSA OK - works again: the shop can sell"
    assert again["title"].endswith(works)
    assert again["message"].startswith("The shop can sell for now. Webkassa promises")
    assert again["message"].endswith(": WEBKASSA CRITICAL - the shop can sell for now")
    assert again["type"] == "success"
    box.fail(hours=-1)  # the next failure is news, though it is the same
    box.serve(told=3)


def test_who_installs_again_is_told_that_it_is_over(box: AlertedBox, receiver: Monitor) -> None:
    """As the alert says to. It went on for a day to send the alert to whom it had not reached."""
    box.ended(UPDATE, box.now - HOUR, 203, run="c3" * 16)
    receiver.refused.add("/a")
    box.serve(told=0, code=1)
    receiver.refused.clear()
    release = box.current.rename(box.current.with_name("release"))
    box.current.symlink_to(release)
    os.utime(
        box.current, (box.now, box.now), follow_symlinks=False
    )  # a disk has a clock of its own
    box.serve(told=1)
    assert receiver.alerts("/a")[0]["type"] == "success"


@pytest.mark.slow
def test_an_account_that_fails_anew_is_news_though_another_never_was_well(
    box: AlertedBox, receiver: Monitor
) -> None:
    """It was told of once in 20 hours, whatever had become of it in between."""
    box.make_many("almaty", "astana")
    for account, code in (("almaty", 69), ("astana", 77)):
        box.note("daily", box.now - 10 * HOUR, code, account=account)
    box.serve(told=1)
    box.note("hand", box.now - 9 * HOUR, account="almaty", renewed=True)
    box.serve(told=1)
    box.note("net", box.now - HOUR, 69, account="almaty")
    box.serve(told=2)
    assert "almaty: code 69" in receiver.alerts("/a")[1]["message"]
    box.serve(told=2)
    for code, told in ((75, 3), (69, 3), (75, 3)):  # each in its turn is no news
        box.note("net", box.now - HOUR / 2, code, account="almaty")
        box.serve(told=told)


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


@pytest.mark.parametrize(("path", "told"), [("anna/boris", True), ("anna", False)])
def test_who_gets_an_alert_again_and_again_is_told_why(
    box: AlertedBox, receiver: Monitor, path: str, told: bool
) -> None:
    """Of several recipients in one line Apprise does not say who was reached."""
    box.addresses.write_text(f"ntfy://127.0.0.1:{receiver.server_port}/{path}\n")
    receiver.refused = {"/"}
    box.fail()
    box.serve(code=1)
    why = "all of this line are told again: give each of them a line of its own"
    assert (why in box.looked()) == told


def test_alert_that_is_being_sent_is_no_fault_yet(box: AlertedBox, receiver: Monitor) -> None:
    """A status at that moment was WARNING; one that was killed then is told of, but later."""
    receiver.refused = {"/a"}
    box.fail()
    box.serve(code=1)
    notes = json.loads(box.memory.read_text())
    assert "could not be sent everywhere" in box.looked()
    box.memory.write_text(json.dumps(notes | {"pending": notes["pending"] | {"reasons": {}}}))
    assert box.looked() == ""
    box.age_memory(1)
    assert "could not be sent everywhere" in box.looked()


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


def test_an_address_that_has_moved_is_not_called_sent_to(
    box: AlertedBox, receiver: Monitor
) -> None:
    """At the new address a GET without the text would arrive (Apprise 2.3.0)."""
    box.send_to("/301/a")
    assert "line 2 (json): " in (said := box.test(code=1))
    assert ": sent" not in said
    assert receiver.paths == ["/301/a"]


def test_what_a_service_that_refuses_with_200_was_sent_is_not_known(
    box: AlertedBox, receiver: Monitor
) -> None:
    """Apprise 2.3.0 calls sent what Synology Chat, DingTalk and WeCom refuse (findings/)."""
    deaf = f"synology://127.0.0.1:{receiver.server_port}/{'a' * 32}\n"
    box.addresses.write_text(deaf)
    assert "line 1 (synology): sent; a refusal of this service would not be seen" in box.test()
    assert "add another kind" in box.looked()
    box.send_to("/a", more=deaf)
    assert box.looked() == ""


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


@pytest.mark.slow
@pytest.mark.parametrize("count", [12, 300])
def test_an_alert_of_many_accounts_is_short_and_the_worst_come_first(
    box: AlertedBox, receiver: Monitor, count: int
) -> None:
    names = [f"till-{number:03}" for number in range(count)]
    box.make_many(*names)
    long = "key 1a2b3c4d, 30.0 h old: older than 25 h; the probe says alive" + 300 * "x"
    old = {"status": "WARNING", "message": long, "age_seconds": 108000, "probe": "alive"}
    rows = [old | {"account": name} for name in names]
    rows[0] |= {"status": "CRITICAL", "message": "key 1a2b3c4d: it is dead", "probe": "dead"}
    box.report("CRITICAL", f"0 of {count} accounts are well; till-000: it is dead", rows)
    for name in names:
        box.note("daily", box.now - 3 * HOUR, 77, long, account=name, run="c3" * 16)
    box.ended(UPDATE, box.now - 3 * HOUR, 77, run="c3" * 16)
    box.serve()
    (alert,) = receiver.alerts("/a")
    text = alert["message"]
    assert len(alert["title"]) + len(text) <= 3500
    assert text.startswith(f"Cannot sell: 1 of {count} accounts: till-000.\nCan sell for now: ")
    assert "\nCRITICAL key: " in text
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
    assert "\nThere is nothing to do.\n\nLast runs:\n" in alert["message"]
    assert not box.memory.exists()


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_addresses_that_cannot_be_read_are_told_to_who_sends_a_test(
    box: AlertedBox, kind: str
) -> None:
    """As those that are root's alone: it was a traceback."""
    box.addresses.unlink(missing_ok=True)
    box.addresses.mkdir() if kind == "folder" else os.mkfifo(box.addresses)
    assert f"{box.addresses} cannot be read (it is no regular file)." in box.test(code=1)


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
    shutil.rmtree(box.state)
    box.state.touch()  # no file can be made in it
    box.ended(UPDATE, box.now - HOUR, 203, run="d4" * 16)
    box.serve(told=1)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "code", "said"),
    [("--help", 0, str(server_alert.__doc__).rstrip() + "\n"), ("--tset", 2, "")],
)
def test_the_starter_takes_any_python_and_passes_all_on(option: str, code: int, said: str) -> None:
    starter = [ROOT / "systemd/send-alert.sh", option]
    done = subprocess.run(starter, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, said)
