"""A new key is probed before it is stored."""

from __future__ import annotations

import json

import pytest
from world.shop import Shop, fingerprint
from world.waiting import within
from world.webkassa_simulator import (
    ALIVE,
    UNCLEAR,
    Behaviour,
    Handler,
    answer,
    beside,
    cut,
    errors,
    hang,
    late,
)


@pytest.mark.parametrize("code", [2, 3])
@pytest.mark.parametrize("times", [1, 3])
def test_directory_that_lags_costs_no_login(shop: Shop, code: int, times: int) -> None:
    """The key in the row is dead since the login: one that is called dead is no worse."""
    shop.webkassa.probe_script.extend([answer(200, errors(code))] * times)
    shop.renew()


def test_new_key_that_somebody_killed_is_replaced_by_one_login_more(shop: Shop) -> None:
    shop.webkassa.on_issue = lambda token: (
        shop.webkassa.issue() if shop.webkassa.authorizations == 1 and len(shop.webkassa.issued) < 4
        else None
    )  # fmt: skip
    shop.renew(logins=2)


REFUSES_ALL = answer(401, errors(3))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "code"), [((), 78), (("--if-needed",), 0)])
def test_probe_that_refuses_every_new_key_takes_no_shop_down(
    shop: Shop, mode: tuple[str, ...], code: int
) -> None:
    """The vendor's text for a missing API key, seen in production: the key is stored all the same,
    and said to be unproven. From then on the probe is not believed, and one login is enough."""
    shop.webkassa.probe_script.extend([REFUSES_ALL] * 100)
    result = shop.expect(code, 2, "update", *mode)
    assert shop.holds_the_live_key
    assert "WEBKASSA_PROBE_URL=off" in result.err
    assert "refuses every new key" in result.err

    again = shop.run("update", "--if-needed")
    assert (again.code, shop.webkassa.authorizations) == (78, 2)
    assert "refuses every new key" in again.err
    daily = shop.run()
    assert (daily.code, shop.webkassa.authorizations) == (78, 3)
    assert shop.holds_the_live_key
    assert shop.run("status", WEBKASSA_PROBE_URL="off").code == 0  # what was advised is no risk

    shop.webkassa.probe_script.clear()  # somebody settled it
    assert shop.run().code == 0
    shop.expect(0, 4, "update", "--if-needed")


@pytest.mark.parametrize("end", [answer(500), answer(200, errors(1)), answer(200, {})])
def test_token_called_dead_is_stored_when_the_next_login_fails(shop: Shop, end: object) -> None:
    """It was thrown away, though the row holds a key that our own login has killed."""
    shop.webkassa.verdict = lambda token: errors(2)
    shop.webkassa.script.append(lambda handler, good: handler.send(200, good))
    shop.webkassa.script.extend([end] * 40)
    result = shop.run()
    assert result.code in (69, 76, 77)
    assert shop.holds_the_live_key


def test_token_called_dead_is_not_stored_over_a_key_that_is_called_alive(shop: Shop) -> None:
    shop.webkassa.verdict = lambda token: errors(2) if token != shop.old_key else {"Data": []}
    shop.webkassa.script.append(lambda handler, good: handler.send(200, good))
    shop.webkassa.script.extend([answer(200, errors(1))] * 9)
    assert shop.run().code == 77
    assert shop.key == shop.old_key


@pytest.mark.parametrize("status", [200, 500, 400, 404, 409, 302])
def test_token_beside_an_error_counts_when_the_probe_proves_it(shop: Shop, status: int) -> None:
    shop.webkassa.script.append(
        beside({"Errors": [{"Code": 7}] if status == 200 else None}, status)
    )
    shop.renew()


def test_token_beside_an_error_that_nothing_proves_is_asked_for_three_times_at_most(
    shop: Shop,
) -> None:
    """Each kills the key before it; the last one is stored."""
    shop.webkassa.verdict = lambda token: UNCLEAR
    shop.webkassa.script.extend([beside(errors(-1))] * 9)
    shop.expect(69, 3)
    assert shop.key == shop.webkassa.live


def test_token_beside_a_refusal_is_not_stored_over_a_key_that_lives(shop: Shop) -> None:
    """Both are called alive: the probe tells nothing, and code 1 says that nobody logged in."""
    token = "0123456789abcdef" * 2
    shop.webkassa.verdict = lambda token: {"Data": []}
    shop.webkassa.script.append(answer(200, {"Data": {"Token": token}} | errors(1)))
    result = shop.run()
    assert (result.code, shop.webkassa.authorizations, shop.key) == (77, 1, shop.old_key)
    assert "still works, but the login just sent may still end it" in result.err


def test_token_beside_a_refusal_is_not_stored_over_a_key_that_cannot_be_probed(shop: Shop) -> None:
    """That the probe calls the token alive is not enough: it may call any so."""
    token = "0123456789abcdef" * 2
    shop.webkassa.verdict = lambda token: UNCLEAR if token == shop.old_key else ALIVE
    shop.webkassa.script.append(answer(200, {"Data": {"Token": token}} | errors(1)))
    shop.expect(77, 1)
    assert shop.key == shop.old_key


def test_token_beside_a_refusal_may_have_killed_a_key_that_cannot_be_probed(shop: Shop) -> None:
    """It was "as it was", and dead."""
    shop.webkassa.script.append(beside(errors(1)))
    shop.webkassa.probe_script.extend([answer(500)] * 2)
    result = shop.run()
    assert (result.code, shop.key) == (77, shop.old_key) != (77, shop.webkassa.live)
    assert f"The stored key {fingerprint(shop.old_key)} may be dead." in result.err


def test_young_key_that_is_called_dead_is_probed_once_more(shop: Shop) -> None:
    assert shop.run().code == 0
    shop.webkassa.probe_script.append(answer(200, errors(2)))
    shop.expect(0, 1, "update", "--if-needed")


@pytest.mark.parametrize(
    "reply", [answer(401), answer(403), answer(500), answer(200, b"<html>"), cut()]
)
def test_new_key_that_cannot_be_probed_is_stored_with_a_note(shop: Shop, reply: object) -> None:
    shop.webkassa.probe_script.append(reply)
    result = shop.run()
    assert (result.code, shop.webkassa.probes) == (0, 1)
    assert "could not be probed" in result.err
    assert shop.holds_the_live_key


def test_probe_that_hangs_holds_the_key_back_for_5_s_at_most(shop: Shop) -> None:
    shop.webkassa.probe_script.append(hang())
    with within(40):
        assert shop.run(WEBKASSA_DEADLINE="60s").code == 0
    assert (shop.webkassa.probes, shop.holds_the_live_key) == (1, True)


def test_probe_can_be_switched_off(shop: Shop) -> None:
    assert shop.run(WEBKASSA_PROBE_URL="off").code == 0
    assert (shop.webkassa.probes, shop.holds_the_live_key) == (0, True)


def test_authorize_and_probe_share_one_connection(shop: Shop) -> None:
    """No connecting while consumers hold a dead key."""
    assert shop.run().code == 0
    assert len({call.client_port for call in shop.webkassa.calls}) == 1


# A token in hand whose logins have ended -----------------------------------------------------------


def test_token_in_hand_outlives_a_connection_lost_with_the_last_login(shop: Shop) -> None:
    """The first token was called dead, the second login is refused, the connection is gone."""

    def refuse(handler: Handler, good: bytes) -> None:
        shop.kill_connections()
        handler.send(200, json.dumps(errors(1)).encode())

    shop.webkassa.verdict = lambda token: errors(2)
    shop.webkassa.script.append(lambda handler, good: handler.send(200, good))
    shop.webkassa.script.append(Behaviour(refuse, refuses=True))
    assert shop.run().code == 77
    assert shop.holds_the_live_key


@pytest.mark.slow
def test_probe_that_refuses_every_key_is_no_proof_of_a_late_login(shop: Shop) -> None:
    """A login got no answer; of the next two keys, both called dead, the second is stored."""
    shop.webkassa.verdict = lambda token: errors(2)
    shop.webkassa.script.append(late(60, hang_up=True))
    result = shop.expect(69, 3)
    assert shop.holds_the_live_key
    assert "a login before it got no answer and may end it" in result.err


@pytest.mark.slow
def test_probe_is_believed_again_once_it_has_called_a_key_alive(shop: Shop) -> None:
    shop.webkassa.probe_script.extend([REFUSES_ALL] * 100)
    assert shop.run().code == 78
    shop.webkassa.probe_script.clear()
    assert shop.run().code == 0
    shop.webkassa.issue()  # somebody kills the key
    shop.renew("update", "--if-needed", logins=4)


def test_who_tries_whether_a_doubt_can_be_noted_leaves_none(shop: Shop) -> None:
    """Else the probe would not be believed when it calls the next key dead."""
    shop.age("10 minutes")
    for _ in range(2):
        shop.webkassa.issue()  # somebody kills the young key
        shop.renew("update", "--if-needed", logins=None)


@pytest.mark.slow
def test_without_a_memory_nobody_logs_in_on_the_word_of_such_a_probe(shop: Shop) -> None:
    """Each --if-needed would kill a young key that works."""
    shop.webkassa.probe_script.extend([REFUSES_ALL] * 100)
    shop.env["STATE_DIRECTORY"] = "/dev/null/x"
    assert shop.run().code == 78
    made = shop.webkassa.authorizations
    for age in ("1 second", "50 minutes"):
        shop.age(age)
        shop.expect(69, made, "update", "--if-needed")
    shop.age("70 minutes")
    assert shop.run("update", "--if-needed").code == 0
    assert shop.webkassa.authorizations > made


@pytest.mark.slow
def test_key_that_is_called_alive_is_not_said_to_be_dead(shop: Shop) -> None:
    """Each answer is a 503 with a token that is none; the row is left, and its key works."""
    token = "0123456789abcdef" * 2
    shop.webkassa.script.extend([answer(503, {"Data": {"Token": token}})] * 90)
    result = shop.run(WEBKASSA_DEADLINE="10s")
    assert result.code == 69
    assert shop.webkassa.authorizations <= 3
    assert shop.key == shop.webkassa.live
    assert "is dead" not in result.err
    assert "lost" not in result.err


def test_first_key_counts_whatever_stands_beside_it(shop: Shop) -> None:
    shop.sql("DELETE FROM api_keys WHERE service_name = 'Webkassa'")
    shop.webkassa.script.extend([lambda handler, good: handler.send(503, good)] * 9)
    result = shop.expect(0, 1)
    assert "HTTP 503" in result.err
