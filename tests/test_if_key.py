"""update --if-key: a consumer that was told code 2 asks for a new key by its fingerprint."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from world.shop import PROGRAM, Result, Shop, fingerprint
from world.waiting import await_, unread, within
from world.webkassa_simulator import ALIVE, DEAD, UNCLEAR

BY_INPUT = ("update", "--if-key", "-")


@pytest.fixture
def dead(shop: Shop) -> Shop:
    """A shop whose key died before its time: somebody logged in elsewhere."""
    shop.age("1 hour")
    shop.webkassa.live = None
    return shop


def of_input(shop: Shop, text: bytes) -> Result:
    return shop.finish(shop.start_with({"stdin": text}, *BY_INPUT))


def test_key_that_is_still_stored_is_renewed(dead: Shop) -> None:
    dead.assert_renewed(dead.main("update", "--if-key", fingerprint(dead.old_key)))


def test_fingerprint_may_be_in_capitals(dead: Shop) -> None:
    """.NET spells hex digits so."""
    assert dead.main("update", "--if-key", "0BADC0DE").code == 0
    assert dead.webkassa.authorizations == 0
    dead.assert_renewed(dead.main("update", "--if-key", fingerprint(dead.old_key).upper()))


def test_padded_key_is_the_stored_one(dead: Shop) -> None:
    """Consumers read it with its blanks from such a column, and send the fingerprint of that."""
    dead.sql("ALTER TABLE api_keys ALTER api_key TYPE char(64)")
    ((read,),) = dead.sql("SELECT api_key FROM api_keys WHERE id = 1")
    assert read == dead.old_key.ljust(64)
    result = dead.main("update", "--if-key", fingerprint(read))
    assert (result.code, dead.webkassa.authorizations) == (0, 1)
    assert dead.key == (dead.webkassa.live or "").ljust(64)


def test_key_is_renewed_though_the_probe_calls_it_alive(dead: Shop) -> None:
    """The consumer knows better: that the probe refuses a dead key is not verified."""
    dead.webkassa.live = dead.old_key
    dead.assert_renewed(dead.main("update", "--if-key", fingerprint(dead.old_key)))


@pytest.mark.parametrize("lives", [True, False])
def test_key_that_is_stored_no_more_asks_for_nothing(dead: Shop, lives: bool) -> None:
    dead.webkassa.live = dead.old_key if lives else None
    result = dead.main("update", "--if-key", "0badc0de")
    assert (result.code, dead.webkassa.authorizations) == (0, 0)
    assert dead.is_untouched
    assert "0badc0de" in result.err
    assert fingerprint(dead.old_key) in result.err  # the one to read now


@pytest.mark.parametrize(
    ("seconds", "verdict", "code", "logins"),
    [
        (5, ALIVE, 0, 0),
        (50, ALIVE, 0, 0),
        (50, UNCLEAR, 75, 0),
        (50, DEAD, 0, 1),
        (65, ALIVE, 0, 1),
    ],
)
def test_key_younger_than_a_minute_is_probed(
    dead: Shop, seconds: int, verdict: str, code: int, logins: int
) -> None:
    """Twenty consumers that were told code 2 make one login, however late the last comes."""
    dead.age(f"{seconds} seconds")
    dead.webkassa.verdict = lambda token: verdict if token == dead.old_key else ALIVE
    result = dead.main("update", "--if-key", fingerprint(dead.old_key))
    assert (result.code, dead.webkassa.authorizations) == (code, logins), result.err


def test_two_that_end_each_others_keys_log_in_once_a_minute(dead: Shop) -> None:
    """Somebody else uses the login: every new key is dead when a consumer tries it."""
    dead.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' WHERE id = 1")
    assert dead.main("update", "--if-key", fingerprint(dead.old_key)).code == 0
    dead.webkassa.live = None
    result = dead.main("update", "--if-key", fingerprint(dead.key))
    assert (result.code, dead.webkassa.authorizations) == (75, 1)
    assert "is dead already. Does somebody else use this login?" in result.err
    assert "Ask again in a minute." in result.err
    assert "the stored key is as it was" in result.err


@pytest.mark.slow
def test_twenty_at_once_make_one_login(dead: Shop) -> None:
    with dead.lock_held():
        key = fingerprint(dead.old_key)
        runs = [dead.start("update", "--if-key", key, "-v") for _ in range(20)]
        await_(lambda: dead.has_said(*runs), 40)
    assert [dead.finish(run).code for run in runs] == [0] * 20
    assert (dead.webkassa.authorizations, dead.holds_the_live_key) == (1, True)


@pytest.mark.parametrize("ending", [b"", b" \r\n", b"\nsecond line\n"])
def test_fingerprint_is_read_from_standard_input(dead: Shop, ending: bytes) -> None:
    for other in (b"0badc0de", b"0BADC0DE"):
        assert of_input(dead, other + ending).code == 0
        assert dead.webkassa.authorizations == 0
    dead.assert_renewed(of_input(dead, fingerprint(dead.old_key).encode() + ending))


@pytest.mark.parametrize("line", [b"\n", b"", b" \r\n"])
def test_empty_line_is_if_needed(dead: Shop, line: bytes) -> None:
    dead.webkassa.live = dead.old_key
    result = of_input(dead, line)
    assert (result.code, dead.webkassa.authorizations) == (0, 0)
    assert "Nothing to do" in result.err
    dead.webkassa.live = None
    dead.assert_renewed(of_input(dead, line))


@pytest.mark.slow
def test_line_is_read_before_its_end_comes(dead: Shop) -> None:
    """A socket stays open: who asked waits there for the answer."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *BY_INPUT],
        env=dead.env, stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin
    process.stdin.write(b"0badc0de\n")
    process.stdin.flush()
    assert process.wait(20) == 0
    process.communicate()


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_that_comes_in_parts_is_one(dead: Shop, end: bytes) -> None:
    """Its first part was taken for the whole: 2, wrong usage, at which a consumer gives up. Who sends
    no end of the line, and waits, is heard as well."""
    key = fingerprint(dead.old_key).encode()
    reading, writing = os.pipe()
    process = dead.start_with({"stdin": reading}, *BY_INPUT)
    for part in (key[:3], key[3:5], key[5:] + end):
        os.write(writing, part)
        await_(lambda: not unread(reading))
    dead.assert_renewed(dead.finish(process))
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("text", ["xyz", "0badc0de0", "٠" * 8, "if needed"])
@pytest.mark.parametrize("way", ["argument", "input"])
def test_what_is_no_fingerprint_is_wrong_usage(dead: Shop, text: str, way: str) -> None:
    if way == "argument":
        result = dead.finish(dead.start("update", "--if-key", text))
    else:
        result = of_input(dead, text.encode() + b"\n")
    assert (result.code, result.out) == (2, "")
    assert "fingerprint" in result.err.lower() or "8 hex digits" in result.err
    assert "see --help" in result.err
    assert dead.webkassa.calls == []


def test_key_itself_in_place_of_its_fingerprint_is_not_repeated(dead: Shop) -> None:
    """`watched` looks for it in what is said."""
    assert dead.finish(dead.start("update", "--if-key", dead.old_key)).code == 2
    assert of_input(dead, dead.old_key.encode() + b"\n").code == 2
    assert dead.webkassa.calls == []


@pytest.mark.parametrize("text", [b"\xff\xfe\xff\xfe\n", b"\0\0\0\0\0\0\0\0\n"])
def test_bytes_that_are_no_text_are_wrong_usage(dead: Shop, text: bytes) -> None:
    assert (of_input(dead, text).code, dead.webkassa.calls) == (2, [])


@pytest.mark.parametrize(
    "arguments",
    [["check", "--if-key", "0badc0de"], ["status", "--if-key", "0badc0de"],
     ["update", "--if-needed", "--if-key", "0badc0de"], ["update", "--if-key"]],
)  # fmt: skip
def test_it_goes_with_update_alone(dead: Shop, arguments: list[str]) -> None:
    result = dead.finish(dead.start(*arguments))
    assert result.code == (3 if "status" in arguments else 2)
    assert dead.webkassa.calls == []


def test_closed_standard_input_is_no_bug(dead: Shop) -> None:
    run = subprocess.run(
        ["bash", "-c", '"$0" "$1" update --if-key - <&-', sys.executable, str(PROGRAM)],
        env=dead.env, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode in (0, 2), run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("stored", ["DELETE FROM api_keys", "UPDATE api_keys SET api_key = ''"])
def test_missing_key_is_fetched_whatever_the_fingerprint(dead: Shop, stored: str) -> None:
    dead.sql(f"{stored} WHERE id = 1")
    dead.assert_renewed(dead.main("update", "--if-key", "0badc0de"))


def test_age_that_is_not_known_renews(dead: Shop) -> None:
    dead.sql("ALTER TABLE api_keys DROP created_at, DROP updated_at")
    assert dead.main("update", "--if-key", fingerprint(dead.old_key)).code == 0
    assert dead.webkassa.authorizations == 1


@pytest.mark.slow
def test_silent_client_is_not_waited_for_longer_than_10_s(shop: Shop) -> None:
    """At the socket, silent clients would else hold all its places."""
    silent, writing = os.pipe()
    with within(60, least=9):
        result = shop.finish(shop.start_with({"stdin": silent}, *BY_INPUT))
    assert (result.code, shop.webkassa.calls) == (2, [])
    os.close(silent)
    os.close(writing)
