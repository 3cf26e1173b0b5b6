"""The key's age is the key's, not the row's: applications touch their rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from world.shop import Shop, fingerprint, trigger
from world.waiting import await_
from world.webkassa_simulator import ALIVE, DEAD, answer

IF_NEEDED = ("update", "--if-needed")
TOUCH = "UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' WHERE id = 1"


@pytest.fixture
def touched(shop: Shop) -> Shop:
    """A shop with a key of ours, whose row is touched at every sale."""
    assert shop.main("update").code == 0
    shop.webkassa.verdict = lambda token: ALIVE  # a probe would tell nothing
    shop.webkassa.calls.clear()
    return shop


def note(shop: Shop) -> Path:
    (file,) = shop.home.rglob("key-*.json")
    return file


def logins_at(shop: Shop, age: str) -> int:
    """Let the key be so much older, and the row be touched; return how many logins that needs."""
    shop.let_key_age(age)
    shop.sql(TOUCH)
    assert shop.main(*IF_NEEDED).code == 0
    return shop.webkassa.authorizations


@pytest.mark.parametrize(("age", "logins"), [("23 hours", 0), ("25 hours", 1)])
def test_old_key_in_a_touched_row_is_renewed(touched: Shop, age: str, logins: int) -> None:
    assert logins_at(touched, age) == logins


def test_consumer_gets_a_new_key_though_the_row_was_touched(touched: Shop) -> None:
    """Seen: six answers "younger than a minute", no login, the shop stays down."""
    touched.let_key_age("61 seconds")
    touched.sql(TOUCH)
    assert touched.main("update", "--if-key", fingerprint(touched.key)).code == 0
    assert touched.webkassa.authorizations == 1


def test_status_and_check_say_where_the_age_is_from(touched: Shop) -> None:
    touched.let_key_age("3 hours")
    touched.sql(TOUCH)
    status = json.loads(touched.main("status", "--json").out)
    assert (status["status"], status["accounts"][0]["age_from"]) == ("OK", "note")
    assert status["accounts"][0]["age_seconds"] == pytest.approx(3 * 3600, abs=600)
    assert ", 3.0 h old, its row 0.0 h; the probe says alive" in status["message"]
    assert "WARN  stored key: key" in touched.main("check").out


@pytest.mark.parametrize(("age", "dead", "code"), [("72 hours", False, 1), ("1 hour", True, 2)])
def test_old_note_beside_a_young_row_is_a_warning(
    touched: Shop, age: str, dead: bool, code: int
) -> None:
    """Somebody may have stored the same key again."""
    touched.let_key_age(age)
    touched.sql(TOUCH)
    touched.webkassa.verdict = lambda token: DEAD if dead else ALIVE
    assert touched.main("status").code == code


@pytest.fixture
def put_back(shop: Shop) -> Shop:
    """A shop without a probe, whose database was put back as it was before our last login."""
    shop.env["WEBKASSA_PROBE_URL"] = "off"
    shop.age("6 hours")
    row = shop.sql("SELECT api_key, updated_at FROM api_keys WHERE id = 1")[0]
    assert shop.main("update").code == 0
    shop.let_key_age("1 hour")
    shop.sql("UPDATE api_keys SET api_key = %s, updated_at = %s WHERE id = 1", *row)
    return shop


def test_key_of_a_backup_that_was_put_back_is_not_called_good(put_back: Shop) -> None:
    """Our note knows of a later login: it was OK, and for a day nothing to do."""
    status = put_back.main("status")
    assert (status.code, "it may be dead since the last login" in status.out) == (2, True)
    put_back.webkassa.script.append(answer(429, b"", {"Retry-After": "999"}))  # nothing came of it
    assert put_back.main(*IF_NEEDED).code == 69
    assert put_back.main("status").code == 2
    put_back.renew(*IF_NEEDED, logins=3)
    assert put_back.main("status").code == 0


def test_key_of_a_backup_that_the_probe_calls_alive_is_good(put_back: Shop) -> None:
    put_back.env.pop("WEBKASSA_PROBE_URL")
    put_back.webkassa.verdict = lambda token: ALIVE
    assert put_back.main(*IF_NEEDED).code == 0
    put_back.env["WEBKASSA_PROBE_URL"] = "off"
    assert put_back.main("status").code == 0
    assert put_back.webkassa.authorizations == 1


@pytest.mark.parametrize("time", ["updated_at", "now() AT TIME ZONE 'UTC'"])
def test_key_that_another_has_stored_since_is_not_at_risk(touched: Shop, time: str) -> None:
    """Whether or not he says when."""
    touched.let_key_age("1 hour")
    touched.sql(f"UPDATE api_keys SET api_key = 'another', updated_at = {time} WHERE id = 1")
    assert touched.main("status", WEBKASSA_PROBE_URL="off").code == 0


def test_time_in_the_future_is_told_with_its_cure(shop: Shop) -> None:
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'Asia/Almaty' WHERE id = 1")
    result = shop.main("status")
    assert (result.code, "its row's time is 5.0 h in the future" in result.out) == (3, True)
    assert "Does something write local time there? It has to be UTC." in result.out


BODIES = {
    "keeps the old time": "NEW.updated_at := OLD.updated_at; RETURN NEW;",
    "writes local time": "NEW.updated_at := now() AT TIME ZONE 'Asia/Almaty'; RETURN NEW;",
}


@pytest.mark.parametrize("body", BODIES)
def test_trigger_that_sets_another_time_makes_no_login_at_every_run(shop: Shop, body: str) -> None:
    shop.sql(trigger(BODIES[body]))
    for _ in range(3):
        assert shop.main(*IF_NEEDED).code == 0
    assert shop.webkassa.authorizations == 1
    shop.let_key_age("25 hours")
    assert shop.main(*IF_NEEDED).code == 0
    assert shop.webkassa.authorizations == 2


def test_date_is_no_time(shop: Shop) -> None:
    """It made a key of a minute 17 h old."""
    shop.sql("ALTER TABLE api_keys ALTER updated_at TYPE date, ALTER created_at TYPE date")
    shop.sql("UPDATE api_keys SET updated_at = '2026-01-01' WHERE id = 1")
    shop.webkassa.verdict = lambda token: ALIVE
    assert shop.main(*IF_NEEDED).code == 0
    assert shop.webkassa.authorizations == 0
    assert shop.main("update").code == 0
    assert shop.row()["updated_at"] > "2026-01-01"


@pytest.mark.parametrize(("age", "logins"), [("23 hours", 0), ("25 hours", 1)])
def test_key_of_somebody_else_is_as_old_as_it_was_seen(shop: Shop, age: str, logins: int) -> None:
    shop.webkassa.verdict = lambda token: ALIVE
    shop.sql(TOUCH)
    assert shop.main(*IF_NEEDED).code == 0
    assert logins_at(shop, age) == logins


def test_row_tells_the_age_of_a_key_that_was_seen_after_it(shop: Shop) -> None:
    shop.sql("UPDATE api_keys SET updated_at = updated_at + interval '10 hours' WHERE id = 1")
    shop.webkassa.verdict = lambda token: ALIVE
    assert shop.main(*IF_NEEDED).code == 0  # 20 hours old
    shop.sql("UPDATE api_keys SET updated_at = updated_at - interval '5 hours' WHERE id = 1")
    assert shop.main(*IF_NEEDED).code == 0
    assert shop.webkassa.authorizations == 1


@pytest.mark.parametrize(
    "flaw", ["another key", "the future", "no JSON", "missing", "not ours", "a text"]
)
def test_where_no_note_fits_the_row_counts(touched: Shop, flaw: str) -> None:
    touched.let_key_age("25 hours")
    touched.sql(TOUCH)
    file = note(touched)
    told = json.loads(file.read_text())
    if flaw == "another key":
        told["key"] = "0badc0de"
    elif flaw == "the future":
        told["moment"] += 26 * 3600 + 600
    elif flaw == "a text":
        told["moment"] = "yesterday"
    elif flaw == "not ours":
        del told["stored"], told["moment"]
    file.write_text("{" if flaw == "no JSON" else json.dumps(told))
    if flaw == "missing":
        file.unlink()
    assert touched.main(*IF_NEEDED).code == 0
    assert touched.webkassa.authorizations == 0


def test_state_folder_that_cannot_be_written_changes_nothing(shop: Shop) -> None:
    shop.env["STATE_DIRECTORY"] = "/proc/nowhere"
    for _ in range(2):
        assert shop.main(*IF_NEEDED).code == 0
    assert shop.webkassa.authorizations == 1


def test_file_is_touched_when_a_key_was_renewed_and_then_alone(touched: Shop) -> None:
    """Units and containers watch it: they read the key once, at their start."""
    (file,) = touched.home.rglob("renewed-*")
    os.utime(file, (1, 1))
    assert touched.main(*IF_NEEDED).code == 0
    touched.sql(TOUCH)
    assert touched.main("check").code == touched.main("status").code == 0
    assert file.stat().st_mtime == 1
    assert touched.main("update").code == 0
    assert file.stat().st_mtime > 1
    assert [*touched.home.rglob("renewed-*")] == [file]


def test_young_key_of_ours_that_is_dead_tells_of_a_stranger(shop: Shop) -> None:
    """Two databases with one login end one another's keys: every run says so."""
    assert shop.main("update").code == 0
    shop.webkassa.issue()
    result = shop.main(*IF_NEEDED)
    assert result.code == 0
    assert "WARNING: Webkassa: the key" in result.err
    assert "is dead already. Does somebody else use this login?" in result.err
    shop.let_key_age("22 hours")  # its life is about a day
    shop.webkassa.live = None
    assert "somebody else" not in shop.main(*IF_NEEDED).err


def test_stranger_is_told_of_once_however_often_a_migration_is_waited_for(shop: Shop) -> None:
    """A run that waited for 45 s said so 29 times, and would have alerted so."""
    assert shop.main("update").code == 0
    shop.webkassa.issue()
    with shop.transaction("LOCK TABLE api_keys IN SHARE MODE"):  # it is met at the rehearsal
        run = shop.start(*IF_NEEDED)
        probes = len(shop.webkassa.calls)
        await_(lambda: len(shop.webkassa.calls) > probes + 3)
    assert shop.assert_renewed(run, logins=2).err.count("somebody else use this login") == 1


def test_key_that_was_seen_is_as_old_as_that_whatever_touches_its_row(shop: Shop) -> None:
    """Another has stored it; it is not as old as to be renewed."""
    shop.age("1 hour")
    assert shop.expect(0, 0, "update", "--if-needed")
    shop.let_key_age("5 hours")
    shop.age("1 minute")
    (account,) = json.loads(shop.run("status", "--json").out)["accounts"]
    assert account["age_from"] == "note"
    assert 5 * 3600 <= account["age_seconds"] < 6 * 3600
