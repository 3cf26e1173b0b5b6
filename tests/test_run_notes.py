"""What an update notes for the server's status: a file for each kind of run and each account."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from world.accounts import Accounts, children
from world.shop import Shop
from world.waiting import await_
from world.webkassa_simulator import answer, errors, hang


@pytest.fixture
def state(shop: Shop) -> Path:
    """The folder of a run under systemd, which gives it and a number."""
    folder = shop.home / "state of systemd"
    folder.mkdir()
    shop.env |= {"STATE_DIRECTORY": str(folder), "INVOCATION_ID": "a1" * 16}
    return folder


def note(state: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((state / f"run-{name}.json").read_text()))


def test_a_good_run_is_noted_with_systemds_number(shop: Shop, state: Path) -> None:
    before = time.time()
    assert shop.run(WEBKASSA_RUN_KIND="daily").code == 0
    noted = note(state, "daily")
    assert before <= noted["time"] == noted["renewed"] <= time.time()
    assert "Stored the new key" in noted.pop("outcome")
    assert {name: noted[name] for name in ("account", "kind", "code", "key", "invocation")} == {
        "account": "", "kind": "daily", "code": 0, "key": "alive", "invocation": "a1" * 16,
    }  # fmt: skip


def test_no_run_hides_another_kinds_failure(shop: Shop, state: Path) -> None:
    shop.webkassa.script.append(answer(200, errors(1)))
    assert shop.run(WEBKASSA_RUN_KIND="daily").code == 77
    assert shop.run("update", "--if-needed", WEBKASSA_RUN_KIND="consumer").code in (0, 77)
    noted = note(state, "daily")
    assert noted["code"] == 77
    assert noted["key"] == "as it was"
    assert "refuse" in noted["outcome"]
    assert noted["renewed"] is None
    assert note(state, "consumer")["time"] >= noted["time"]


def test_failing_since_ends_with_a_renewal_or_another_cause(shop: Shop, state: Path) -> None:
    def fail(code: int) -> float:
        shop.webkassa.script.append(answer(200, errors(code)))
        assert shop.run(WEBKASSA_RUN_KIND="daily", WEBKASSA_DEADLINE="10s").code != 0
        return float(note(state, "daily")["since"])

    first = fail(1)
    assert fail(1) == first
    assert shop.run().code == 0  # by hand
    assert note(state, "hand")["renewed"]
    second = fail(1)
    assert second > first
    assert note(state, "daily")["renewed"] is None


def test_nothing_to_do_is_no_renewal_and_forgets_none(shop: Shop, state: Path) -> None:
    shop.run()
    renewed = note(state, "hand")["renewed"]
    assert shop.run("update", "--if-needed").code == 0
    assert "Nothing to do" in note(state, "hand")["outcome"]
    assert note(state, "hand")["renewed"] == renewed


def test_wrong_settings_are_noted_and_no_secret(shop: Shop, state: Path) -> None:
    assert shop.run(WEBKASSA_AUTH_URL="ftp://canary-host").code == 78
    text = (state / "run-hand.json").read_text()
    assert "WEBKASSA_AUTH_URL" in text
    assert "canary" not in text


@pytest.mark.parametrize("command", ["check", "status"])
def test_looking_notes_nothing(shop: Shop, state: Path, command: str) -> None:
    shop.run(command)
    assert list(state.glob("run-*")) == []


def test_a_state_folder_that_is_full_or_foreign_changes_nothing(shop: Shop, state: Path) -> None:
    state.rmdir()
    assert shop.run().code == 0
    (state / "run-hand.json").write_text("{")
    assert shop.run().code == 0
    assert sorted(path.name for path in state.glob("run-*")) == ["run-hand.json"]


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null", "folder", "pipe"])
def test_what_is_no_note_hinders_none(shop: Shop, state: Path, content: str) -> None:
    """A power cut had left an empty one: from then on no run of any kind was noted."""
    other = state / "run-boot.json"
    if content == "folder":
        other.mkdir()
    elif content == "pipe":
        os.mkfifo(other)
    else:
        other.write_text(content)
    assert shop.run(WEBKASSA_RUN_KIND="daily").code == 0
    assert note(state, "daily")["code"] == 0
    if other.is_file():  # the next run of its kind puts it right
        assert shop.run(WEBKASSA_RUN_KIND="boot").code == 0
        assert note(state, "boot")["renewed"]


def test_a_renewal_that_is_yet_to_come_ends_no_failure(shop: Shop, state: Path) -> None:
    """It was noted by a clock that was ahead."""
    since = time.time() - 3600
    daily = {"code": 77, "time": since, "since": since, "renewed": None}
    for kind, facts in (("daily", daily), ("boot", {"renewed": time.time() + 18000})):
        (state / f"run-{kind}.json").write_text(json.dumps(facts))
    shop.webkassa.script.append(answer(200, errors(1)))
    assert shop.run(WEBKASSA_RUN_KIND="daily").code == 77
    assert note(state, "daily")["since"] == since


def test_each_of_many_accounts_has_a_note_a_killed_one_too(shop: Shop, state: Path) -> None:
    accounts = Accounts(shop, "north", "south", "west")
    accounts.script("south").append(answer(200, errors(1)))
    accounts.script("west").append(hang())
    process = shop.start("update", "--jobs", "1", WEBKASSA_RUN_KIND="daily")
    await_(lambda: accounts.logins("west") == 1)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    assert shop.finish(process).code == 71
    codes = {name: note(state, f"daily.{name}")["code"] for name in accounts.names}
    assert codes == {"north": 0, "south": 77, "west": 70}
    assert note(state, "daily.west")["outcome"].startswith("killed by signal 9")
    assert note(state, "daily.south")["account"] == "south"
