"""A new key is probed before it is stored."""

from __future__ import annotations

import time

import pytest
from world.shop import Shop, fingerprint
from world.webkassa_simulator import answer, cut, errors, hang


@pytest.mark.parametrize("code", [2, 3])
def test_new_key_that_the_probe_calls_dead_is_not_stored_but_asked_for_again(
    shop: Shop, code: int
) -> None:
    """A late login of ours may have killed it: that can happen once or twice, not for ever."""
    shop.webkassa.probe_script.append(answer(200, errors(code)))
    result = shop.run()
    assert (result.code, shop.webkassa.authorizations) == (0, 2)
    assert shop.holds_the_live_key


def test_after_three_new_keys_called_dead_the_probe_itself_is_suspected(shop: Shop) -> None:
    shop.webkassa.verdict = lambda token: errors(2)
    result = shop.run()
    assert (result.code, shop.webkassa.authorizations) == (76, 3)
    assert shop.is_untouched
    assert "WEBKASSA_PROBE_URL" in result.err
    assert f"{fingerprint(shop.old_key)} is dead" in result.err
    assert "Run again now" in result.err or "run again now" in result.err


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
    start = time.monotonic()
    assert shop.run(WEBKASSA_DEADLINE="60s").code == 0
    assert time.monotonic() - start < 30
    assert (shop.webkassa.probes, shop.holds_the_live_key) == (1, True)


def test_probe_can_be_switched_off(shop: Shop) -> None:
    assert shop.run(WEBKASSA_PROBE_URL="off").code == 0
    assert (shop.webkassa.probes, shop.holds_the_live_key) == (0, True)


def test_authorize_and_probe_share_one_connection(shop: Shop) -> None:
    """No connecting while consumers hold a dead key."""
    assert shop.run().code == 0
    assert len({call.client_port for call in shop.webkassa.calls}) == 1
