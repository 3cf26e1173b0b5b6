"""update --if-needed: Webkassa is asked only when it must be."""

from __future__ import annotations

import signal

import pytest
from world.shop import Shop
from world.waiting import await_
from world.webkassa_simulator import (
    ALIVE,
    UNCLEAR,
    Behaviour,
    answer,
    errors,
    late,
    respelled,
)  # fmt: skip


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
    shop.age(age)
    if probe is not None:
        shop.webkassa.probe_script.append(answer(200, probe))
    shop.expect(0, asks, "update", "--if-needed")
    assert shop.holds_the_live_key == asks


def test_if_needed_obeys_max_age_and_creates_a_missing_key(shop: Shop) -> None:
    shop.expect(0, 0, "update", "--if-needed", WEBKASSA_MAX_AGE="31h")
    shop.sql("DELETE FROM api_keys WHERE service_name = 'Webkassa'")
    shop.renew("update", "--if-needed")


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
    result = shop.expect(code, asks, "update", "--if-needed", **env)
    assert shop.key == (shop.webkassa.live if asks else shop.old_key)
    if code:
        assert "no usable time of change" in result.err
    if code == 78:
        assert "WEBKASSA_PROBE_URL" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["off", "fails, too"])
def test_key_that_a_failed_login_may_have_ended_counts_as_no_young_one(
    shop: Shop, probe: str
) -> None:
    """Its failure was forgotten: with nobody to say "dead", `--if-needed` had nothing to do for a
    day, and status said OK."""
    shop.age("2 hours")
    shop.env |= {"WEBKASSA_PROBE_URL": "off"} if probe == "off" else {}
    shop.webkassa.verdict = lambda token: UNCLEAR
    shop.webkassa.script.extend([respelled()] * 3)
    assert "may be dead" in shop.expect(76, 3).err
    shop.webkassa.script.append(answer(429, b"", {"Retry-After": "999"}))  # nothing came of it
    shop.expect(69, 4)
    status = shop.run("status")
    assert (status.code, "may be dead" in status.out) == (2, True)
    shop.renew("update", "--if-needed", logins=5)
    assert shop.run("status").code == (0 if probe == "off" else 1)
    shop.expect(0, 5, "update", "--if-needed")


def test_key_whose_update_was_killed_after_the_login_counts_as_no_young_one(shop: Shop) -> None:
    """What is at risk is noted before the login: who is killed then, says nothing afterwards."""
    shop.age("2 hours")
    shop.env["WEBKASSA_PROBE_URL"] = "off"
    shop.webkassa.on_issue = lambda token: process.kill()
    process = shop.start("update")
    assert process.wait(60) == -signal.SIGKILL
    shop.webkassa.on_issue = lambda token: None
    assert shop.run("status").code == 2
    shop.renew("update", "--if-needed", logins=2)
    assert shop.run("status").code == 0


@pytest.mark.parametrize(
    ("replies", "code"),
    [([answer(429, b"", {"Retry-After": "999"})], 69), ([answer(200, errors(7))], 76)],
    ids=["no login came of it", "the probe says alive"],
)
def test_key_that_a_failed_login_has_not_ended_is_no_risk(
    shop: Shop, replies: list[Behaviour], code: int
) -> None:
    """What was noted before the login is void: with the probe off each would end a good key."""
    shop.age("2 hours")
    shop.webkassa.script.extend(replies)
    shop.expect(code, len(replies))
    shop.env["WEBKASSA_PROBE_URL"] = "off"
    assert shop.run("status").code == 0
    shop.expect(0, len(replies), "update", "--if-needed")


def test_key_that_a_late_login_may_still_end_counts_as_no_young_one(shop: Shop) -> None:
    """The update said so. The hourly look, whose probe is off, left the key alone for a day."""
    shop.age("2 hours")
    no_more = answer(429, b"", {"Retry-After": "999"})
    shop.webkassa.script.extend([late(0.5, hang_up=True), no_more])
    assert "may still end it" in shop.expect(69, 2).err
    await_(lambda: shop.webkassa.live != shop.old_key)
    hourly = {"WEBKASSA_PROBE_URL": "off", "WEBKASSA_MAX_AGE": "25h"}
    assert shop.run("status", **hourly).code == 2
    shop.renew("update", "--if-needed", logins=3, **hourly)
    assert shop.run("status", **hourly).code == 0


def test_key_that_is_alive_after_all_is_no_risk_any_more(shop: Shop) -> None:
    """Each run with the probe off would end a key that works."""
    shop.age("2 hours")
    shop.webkassa.verdict = lambda token: UNCLEAR
    shop.webkassa.script.extend([answer(200, {"Data": {}})] * 3)
    shop.expect(76, 3)
    shop.webkassa.verdict = lambda token: ALIVE
    shop.expect(0, 3, "update", "--if-needed")
    shop.env["WEBKASSA_PROBE_URL"] = "off"
    shop.expect(0, 3, "update", "--if-needed")
