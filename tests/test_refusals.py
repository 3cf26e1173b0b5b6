"""A login that Webkassa refused is remembered, so that nothing sends it again and again."""

from __future__ import annotations

import importlib
import json
import os
import re
import stat
from pathlib import Path

import pytest
from world import webkassa_simulator
from world.monitor import Monitor
from world.shop import Result, Shop, fingerprint
from world.waiting import await_

IF_NEEDED = ("update", "--if-needed")


@pytest.fixture
def refusing(shop: Shop) -> Shop:
    """A shop whose password was changed at Webkassa; its key is too old and has to be renewed."""
    shop.webkassa.password = "changed"
    shop.env["STATE_DIRECTORY"] = str(shop.home / "state")
    return shop


def files(shop: Shop) -> list[Path]:
    found = (shop.home / "state").rglob("refused-*")
    return [path for path in found if path.is_file()]


def refused(shop: Shop, logins: int, *arguments: str, **env: str) -> Result:
    """Run the program: the login is refused, after so many that were sent, all in all."""
    result = shop.main(*(arguments or IF_NEEDED), **env)
    assert (result.code, shop.webkassa.authorizations) == (77, logins)
    return result


def test_refused_login_is_not_sent_again(refusing: Shop) -> None:
    assert refusing.main(*IF_NEEDED).code == 77
    result = refused(refusing, 1)
    assert re.search(r"refused this login at 2[-\d]+ [:\d]+ \S+; it was not", result.err)
    assert re.search("not (sent|tried) again", result.err)
    assert "the stored key is as it was" in result.err
    assert refusing.is_untouched


@pytest.mark.slow
def test_twenty_waiters_send_one_refused_login(refusing: Shop) -> None:
    with refusing.lock_held():
        runs = [refusing.start(*IF_NEEDED, "-v") for _ in range(20)]
        await_(lambda: refusing.has_said(*runs), 40)
    assert [refusing.finish(run).code for run in runs] == [77] * 20
    assert refusing.webkassa.authorizations == 1
    assert refusing.is_untouched


def test_plain_update_always_tries_and_is_remembered_too(refusing: Shop) -> None:
    for count in (1, 2):
        refused(refusing, count, "update")
    refused(refusing, 2)


def test_request_by_fingerprint_is_held_back_too(refusing: Shop) -> None:
    """A consumer that asks on every code 2 would send the refused login hundreds of times."""
    for _ in range(2):
        refused(refusing, 1, "update", "--if-key", fingerprint(refusing.old_key))


CHANGES = {
    "password": {"WEBKASSA_PASSWORD": "another"},
    "login": {"WEBKASSA_LOGIN": "another@example.kz"},
    "URL": {"WEBKASSA_AUTH_URL": "{origin}/api/v3/Authorize"},
    "API key": {"WEBKASSA_API_KEY": "another"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_credentials_are_tried(refusing: Shop, change: str) -> None:
    assert refusing.main(*IF_NEEDED).code == 77
    env = {n: v.format(origin=refusing.webkassa.origin) for n, v in CHANGES[change].items()}
    refused(refusing, 2, **env)
    refused(refusing, 2, **env)  # and these are remembered now


def test_right_password_is_tried_at_once(refusing: Shop) -> None:
    right = refusing.env["WEBKASSA_PASSWORD"]
    refusing.webkassa.password = right
    assert refusing.main(*IF_NEEDED, WEBKASSA_PASSWORD="wrong").code == 77
    assert refusing.main(*IF_NEEDED).code == 0
    assert refusing.holds_the_live_key


def later(shop: Shop, seconds: float) -> None:
    """Let the memory be so much older."""
    (file,) = files(shop)
    note = json.loads(file.read_text())
    aged = {name: value - seconds if isinstance(value, float) else value
            for name, value in note.items()}  # fmt: skip
    assert aged != note
    file.write_text(json.dumps(aged))


@pytest.mark.parametrize(("hours", "tries"), [(23.9, 1), (24.1, 2), (-1, 2)])
def test_refusal_counts_for_a_day(refusing: Shop, hours: float, tries: int) -> None:
    """One of the future tells nothing: the clock was wrong."""
    refusing.main(*IF_NEEDED)
    later(refusing, hours * 3600)
    refused(refusing, tries)


def test_memory_is_void_after_a_success(refusing: Shop) -> None:
    """The password is put back at Webkassa, works, and is refused again: that is news.

    Webkassa gives the same token again, so it is not a changed key that makes it void.
    """
    assert refusing.main(*IF_NEEDED).code == 77
    refusing.webkassa.password = webkassa_simulator.PASSWORD
    refusing.webkassa.script.append(webkassa_simulator.same_token())
    assert refusing.main("update").code == 0
    assert refusing.key == refusing.old_key
    assert files(refusing) == []
    refusing.webkassa.password = "changed"
    refusing.let_key_age("30 hours")
    refused(refusing, 3)


def test_refusal_counts_for_the_token_that_was_stored_all_the_same(refusing: Shop) -> None:
    """Webkassa fails, and gives a token that cannot be probed at once; the next login is refused."""
    refusing.webkassa.probe_script.append(webkassa_simulator.answer(500))
    good = {"Data": {"Token": refusing.webkassa.issue()}}
    refusing.webkassa.script.append(webkassa_simulator.answer(500, good))
    refused(refusing, 2)
    assert refusing.holds_the_live_key
    assert refusing.main("status").code == 2
    refusing.let_key_age("30 hours")
    refused(refusing, 2)


@pytest.mark.parametrize("key", ["dead", "none"])
def test_nobody_advises_to_send_a_refused_login_again(refusing: Shop, key: str) -> None:
    """Of a dead key, status said "Run again now", and not why there is no new one."""
    refused(refusing, 1)
    refusing.webkassa.issue()
    if key == "none":
        refusing.sql("DELETE FROM api_keys WHERE id = 1")
        refused(refusing, 2)
    status = refusing.main("status")
    assert (status.code, "Correct WEBKASSA_LOGIN" in status.out) == (2, True)
    assert "Run again now" not in status.out
    assert ("Webkassa refused this login" in status.out) == (key == "dead")
    check = refusing.main("check")
    assert (check.code, "Correct WEBKASSA_LOGIN" in check.out) == (77, True)
    assert "Run again now" not in check.out


def test_memory_is_void_when_the_stored_key_has_changed(refusing: Shop) -> None:
    assert refusing.main(*IF_NEEDED).code == 77
    refusing.sql("UPDATE api_keys SET api_key = repeat('f', 32) WHERE id = 1")
    refused(refusing, 2)


def test_services_have_memories_of_their_own(refusing: Shop) -> None:
    assert refusing.main(*IF_NEEDED).code == 77
    refused(refusing, 2, WEBKASSA_SERVICE_NAME="Second/../shop")
    refused(refusing, 2)


def test_young_key_is_no_matter_for_the_memory(refusing: Shop) -> None:
    """Nothing is needed, so nothing is refused."""
    refusing.main(*IF_NEEDED)
    refusing.age("0 s")
    assert refusing.main(*IF_NEEDED).code == 0
    assert refusing.webkassa.authorizations == 1


def test_young_key_that_nothing_proves_alive_is_a_matter_for_the_memory(
    refusing: Shop, monitor: Monitor
) -> None:
    """A consumer is told that it is dead, and the login is refused. The hourly look, whose probe is
    off, told the monitor that all is well."""
    refusing.env["HEALTHCHECK_URL"] = f"{monitor.origin}/200/x"
    refusing.age("4 hours")
    refusing.webkassa.issue()
    refused(refusing, 1, "update", "--if-key", fingerprint(refusing.old_key))
    refused(refusing, 1, WEBKASSA_PROBE_URL="off", WEBKASSA_MAX_AGE="25h")
    assert monitor.paths == ["/200/x/fail"] * 2


def test_only_a_refused_login_is_remembered(refusing: Shop) -> None:
    refusing.webkassa.script.append(webkassa_simulator.answer(404, b""))
    assert refusing.main(*IF_NEEDED).code == 76
    refused(refusing, 2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["update", "update --if-needed"])
@pytest.mark.parametrize("cause", ["refused", "no token"])
def test_who_waited_meanwhile_sends_a_failed_login_no_more(
    refusing: Shop, mode: str, cause: str
) -> None:
    """Twenty at a vendor without tokens sent 60 logins in 12 s, six with a wrong password six."""
    if cause == "no token":
        refusing.webkassa.script += [webkassa_simulator.answer(200, {"Data": {}})] * 20
    with refusing.lock_held():
        runs = [refusing.start(*mode.split(), "-v") for _ in range(6)]
        await_(lambda: refusing.has_said(*runs))
    code, logins = {"refused": (77, 1), "no token": (76, 3)}[cause]
    assert [refusing.finish(run).code for run in runs] == [code] * 6
    assert refusing.webkassa.authorizations == logins


# Where it lies -----------------------------------------------------------------------------------

FOLDERS = {
    "systemd": ({"STATE_DIRECTORY": "{home}/state:{home}/second"}, "state"),
    "XDG": ({"STATE_DIRECTORY": "", "XDG_STATE_HOME": "{home}/xdg"}, "xdg"),
    "home": ({"STATE_DIRECTORY": "", "XDG_STATE_HOME": ""}, ".local/state"),
}


@pytest.mark.parametrize("where", FOLDERS)
def test_memory_lies_where_the_system_wants_it(refusing: Shop, where: str) -> None:
    env, folder = FOLDERS[where]
    env = {name: value.format(home=refusing.home) for name, value in env.items()}
    for _ in range(2):
        refused(refusing, 1, **env)
    found = [path for path in refusing.home.rglob("*") if path.is_file()]
    assert {path.name.split("-")[0] for path in found} == {"refused", "key", "risk"}
    assert all(refusing.home / folder in path.parents for path in found)


def test_memory_shows_nothing_of_the_credentials_and_differs_each_time(refusing: Shop) -> None:
    texts = []
    for _ in range(2):
        refusing.main("update", WEBKASSA_API_KEY="canary-api")
        (file,) = files(refusing)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        texts.append(file.read_text())
    secrets = (refusing.env["WEBKASSA_PASSWORD"], refusing.env["WEBKASSA_LOGIN"], "canary-api")
    for text in texts:
        for secret in secrets:
            for start in range(0, len(secret) - 4, 4):
                assert secret[start : start + 5] not in text
    first, second = (json.loads(text) for text in texts)
    assert {name for name in first if first[name] == second[name]} == {"key", "code"}
    assert refusing.old_key not in texts[0]


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_memory_is_the_owners_whatever_the_umask(refusing: Shop, umask: int) -> None:
    before = os.umask(umask)
    try:
        refusing.main("update")
    finally:
        os.umask(before)
    (file,) = files(refusing)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


BROKEN = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "nothing known": b"{}",
    "a number as salt": b'{"salt": 1, "mark": "x", "key": "{key}", "time": 0}',
    "a text as time": b'{"salt": "x", "mark": "x", "key": "{key}", "time": "now"}',
    "bytes": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", BROKEN)
def test_memory_that_cannot_be_read_counts_as_none(refusing: Shop, content: str) -> None:
    refusing.main(*IF_NEEDED)
    (file,) = files(refusing)
    key = json.loads(file.read_text())["key"]
    file.write_bytes(BROKEN[content].replace(b"{key}", key.encode()))
    refused(refusing, 2)
    refused(refusing, 2)  # it was mended


@pytest.mark.parametrize("place", ["a file", "nowhere", "a folder in its place", "a null device"])
def test_memory_that_cannot_be_written_counts_as_none(refusing: Shop, place: str) -> None:
    state = refusing.home / "state"
    if place == "a file":
        state.write_text("")
    elif place == "nowhere":
        refusing.env["STATE_DIRECTORY"] = "/proc/nowhere"
    elif place == "a folder in its place":
        refusing.main(*IF_NEEDED)
        (file,) = files(refusing)
        file.unlink()
        (file / "x").mkdir(parents=True)
        refusing.webkassa.calls.clear()
    else:
        refusing.env["STATE_DIRECTORY"] = "/dev/null"
    for count in (1, 2):
        result = refusing.main(*IF_NEEDED)
        assert (result.code, refusing.webkassa.authorizations) == (77, count)
    refusing.webkassa.password = webkassa_simulator.PASSWORD
    assert refusing.main(*IF_NEEDED).code == 0
    assert refusing.holds_the_live_key
    left = files(refusing)
    assert len(left) <= 1  # they do not gather


def test_check_and_status_neither_ask_nor_forget(refusing: Shop) -> None:
    refusing.main(*IF_NEEDED)
    (before,) = files(refusing)
    text = before.read_text()
    assert refusing.main("check").code == 77
    assert refusing.main("status").code == 2
    assert refusing.webkassa.authorizations == 1
    assert before.read_text() == text


def test_check_and_status_know_of_a_refused_login(refusing: Shop) -> None:
    """check said "ok" six times with the wrong password."""
    refusing.main("update")
    refusing.age("0 s")
    check, status = refusing.main("check"), refusing.main("status")
    refused = r"Webkassa refused this login at [-\d]+ [:\d]+ \S+; it was not sent again\."
    assert re.search(rf"^FAIL  login: {refused} Correct WEBKASSA_LOGIN", check.out, re.MULTILINE)
    assert (check.code, status.code) == (77, 2)
    works = (
        r"The key \w+, 0\.0 h old, works; Webkassa promises about a day, until [-\d]+ [:\d]+ \S+"
    )
    assert re.search(rf"^WEBKASSA CRITICAL - {refused} {works}\|age=", status.out)
    assert "Correct WEBKASSA_LOGIN" in status.out
    refusing.sql("ALTER TABLE api_keys DROP updated_at, DROP created_at")
    assert "promises" not in refusing.main("status").out  # its age is not known


def test_a_database_that_only_the_role_or_a_service_names_has_a_memory_of_its_own(
    shop: Shop,
) -> None:
    """libpq takes the role's name for the database's where none is given."""
    program = importlib.import_module("webkassa_key_updater")

    def memory(url: str) -> Path:
        account = program.read_account(shop.env | {"DATABASE_URL": url}, [])
        return Path(program.Refusals(account).note.file)

    urls = [
        f"postgresql://{user}:x@db.example.kz/{more}"
        for user in "ab"
        for more in ("", "?service=s")
    ]
    assert len({memory(url) for url in urls}) == 4
    assert memory(urls[0]) == memory(urls[0])
    assert memory(urls[0]) == memory(urls[0].replace(":x@", ":y@"))  # another password of the role
