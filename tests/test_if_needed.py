"""update --if-needed: Webkassa is asked only when it must be."""

from __future__ import annotations

import subprocess
import sys

import pytest
from world.shop import PROGRAM, Shop, fingerprint
from world.webkassa_simulator import ALIVE, answer, errors


@pytest.mark.parametrize(
    ("age", "probe", "asks"),
    [
        ("1 hour", None, False),
        ("23 hours 59 minutes", None, False),
        ("24 hours", None, True),
        ("-4 minutes", errors(-1), False),  # somebody's clock is a little ahead: that is now
        ("1 hour", errors(2), True),
        ("1 hour", errors(3), True),
        ("1 hour", errors(4), False),
        ("1 hour", errors(-1), False),
        ("1 hour", [], False),
    ],
)
def test_if_needed_asks_only_for_an_old_or_dead_key(
    shop: Shop, age: str, probe: object, asks: bool
) -> None:
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' - %s::interval", age)
    if probe is not None:
        shop.webkassa.probe_script.append(answer(200, probe))
    assert shop.run("update", "--if-needed").code == 0
    assert shop.webkassa.authorizations == asks
    assert shop.holds_the_live_key == asks


def test_if_needed_obeys_max_age_and_creates_a_missing_key(shop: Shop) -> None:
    assert shop.run("update", "--if-needed", WEBKASSA_MAX_AGE="31h").code == 0
    assert shop.webkassa.authorizations == 0
    shop.sql("DELETE FROM api_keys WHERE service_name = 'Webkassa'")
    assert shop.run("update", "--if-needed").code == 0
    assert shop.holds_the_live_key


# Of unknown age: no time columns, no time in them, a time in the future -------------------------

UNKNOWN_AGE = {
    "no columns": "ALTER TABLE api_keys DROP updated_at, DROP created_at",
    "no time": "ALTER TABLE api_keys ALTER updated_at DROP NOT NULL, ALTER created_at DROP NOT NULL;"
    "UPDATE api_keys SET updated_at = NULL, created_at = NULL",
    "infinity": "UPDATE api_keys SET updated_at = 'infinity'",
    "before all": "UPDATE api_keys SET updated_at = '-infinity'",
    "the future": "UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' + interval '1 hour'",
}


@pytest.mark.parametrize("age", UNKNOWN_AGE)
@pytest.mark.parametrize(
    ("probe", "code", "asks"),
    [
        (ALIVE, 0, False),
        (errors(6), 0, False),  # no access to the cash register: the token was accepted
        (errors(2), 0, True),
        (errors(-1), 69, False),
        ("off", 78, False),
    ],
)
def test_key_of_unknown_age_is_judged_by_the_probe_alone(
    shop: Shop, age: str, probe: object, code: int, asks: bool
) -> None:
    shop.sql(UNKNOWN_AGE[age])
    env = {"WEBKASSA_PROBE_URL": "off"} if probe == "off" else {}
    shop.webkassa.probe_script.append(answer(200, probe))
    result = shop.run("update", "--if-needed", **env)
    assert (result.code, shop.webkassa.authorizations) == (code, asks)
    assert shop.key == (shop.webkassa.live if asks else shop.old_key)
    if code:
        assert "no usable time of change" in result.err
    if code == 78:
        assert "WEBKASSA_PROBE_URL" in result.err


# --if-key ----------------------------------------------------------------------------------------


def test_if_key_logs_in_when_that_key_is_still_stored(shop: Shop) -> None:
    """Whatever the probe says: the consumer was told code 2."""
    assert shop.run("update", "--if-key", fingerprint(shop.old_key)).code == 0
    assert (shop.webkassa.authorizations, shop.holds_the_live_key) == (1, True)


@pytest.mark.parametrize("live", [True, False])
def test_if_key_asks_for_nothing_when_another_key_is_stored(shop: Shop, live: bool) -> None:
    shop.webkassa.live = shop.webkassa.live if live else None
    result = shop.run("update", "--if-key", "0123abcd")
    assert (result.code, shop.webkassa.authorizations) == (0, 0)
    assert fingerprint(shop.old_key) in result.err
    assert shop.is_untouched


@pytest.mark.parametrize(("age", "asks"), [("55 seconds", False), ("65 seconds", True)])
def test_if_key_leaves_a_key_alone_that_is_younger_than_a_minute(
    shop: Shop, age: str, asks: bool
) -> None:
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' - %s::interval", age)
    assert shop.run("update", "--if-key", fingerprint(shop.old_key)).code == 0
    assert shop.webkassa.authorizations == asks


@pytest.mark.parametrize("statement", ["DELETE FROM api_keys", "UPDATE api_keys SET api_key = ''"])
def test_if_key_logs_in_where_no_key_is_stored(shop: Shop, statement: str) -> None:
    shop.sql(statement + " WHERE service_name = 'Webkassa'")
    assert shop.run("update", "--if-key", "0123abcd").code == 0
    assert shop.holds_the_live_key


def test_if_key_reads_standard_input_and_an_empty_line_is_if_needed(shop: Shop) -> None:
    def told(text: str) -> tuple[int, str]:
        process = subprocess.run(
            [sys.executable, str(PROGRAM), "update", "--if-key", "-"],
            env=shop.env, input=text, capture_output=True, text=True,
        )  # fmt: skip
        return process.returncode, process.stderr

    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' - interval '1 hour'")
    for text in ("\n", "", "0123abcd\n", "0123ABCD\r\n"):
        code, said = told(text)
        assert (code, shop.webkassa.authorizations) == (0, 0), said
        assert "Nothing to do" in said
    assert told("nonsense\n")[0] == 2
    assert told(fingerprint(shop.old_key) + "\n")[0] == 0
    assert (shop.webkassa.authorizations, shop.holds_the_live_key) == (1, True)


def test_many_if_key_of_one_dead_key_make_one_authorize(shop: Shop) -> None:
    shop.webkassa.live = None
    runs = [shop.start("update", "--if-key", fingerprint(shop.old_key)) for _ in range(12)]
    assert [shop.finish(run).code for run in runs] == [0] * 12
    assert (shop.webkassa.authorizations, shop.holds_the_live_key) == (1, True)
