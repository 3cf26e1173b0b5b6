"""Killed, or told to stop."""

from __future__ import annotations

import contextlib
import signal
import time

import pytest
from world.shop import UPDATERS, Shop, fingerprint
from world.waiting import await_
from world.webkassa_simulator import answer, hang, slow


def reach_lock(shop: Shop) -> None:
    await_(lambda: shop.sql(UPDATERS))


def reach_authorize(shop: Shop) -> None:
    await_(lambda: shop.webkassa.authorizations)


def reach_probe(shop: Shop) -> None:
    await_(lambda: shop.webkassa.probes)


@pytest.mark.parametrize("reach", [reach_lock, reach_authorize, reach_probe])
def test_sigkill_leaves_the_old_row_and_the_next_run_works_at_once(
    shop: Shop, reach: object
) -> None:
    shop.webkassa.script.append(hang() if reach is not reach_probe else slow(0))
    shop.webkassa.probe_script.append(hang())
    process = shop.start()
    reach(shop)
    process.kill()
    process.communicate()
    assert shop.is_untouched
    shop.webkassa.script.clear()
    shop.webkassa.probe_script.clear()
    start = time.monotonic()
    assert shop.run().code == 0
    assert time.monotonic() - start < 3
    assert shop.holds_the_live_key


def test_sigkill_at_any_moment_leaves_an_old_or_a_new_row(shop: Shop) -> None:
    for step in range(12):
        process = shop.start()
        with contextlib.suppress(Exception):
            process.wait(0.1 + step * 0.025)
        process.kill()
        process.communicate()
        assert shop.key in (shop.old_key, *shop.webkassa.issued)
    assert shop.run().code == 0
    assert shop.holds_the_live_key


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_between_question_and_commit_loses_no_key(shop: Shop, number: int) -> None:
    shop.webkassa.script.append(slow(1))
    process = shop.start()
    reach_authorize(shop)
    process.send_signal(number)
    assert shop.finish(process).code == 0
    assert shop.holds_the_live_key


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_waiting_for_the_next_try_ends_it_and_says_so(shop: Shop, number: int) -> None:
    shop.webkassa.script.append(answer(503, b"", {"Retry-After": "8"}))
    process = shop.start("-v")
    reach_authorize(shop)
    start = time.monotonic()
    process.send_signal(number)
    result = shop.finish(process)
    assert time.monotonic() - start < 3
    assert (result.code, shop.webkassa.authorizations) == (69, 1)
    assert f"{fingerprint(shop.old_key)} still works" in result.err


def test_ctrl_c_ends_the_wait_for_the_lock(shop: Shop) -> None:
    with contextlib.closing(shop.connect()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE")
        process = shop.start()
        await_(lambda: shop.sql(UPDATERS + " AND wait_event_type = 'Lock'"))
        process.send_signal(signal.SIGINT)
        assert shop.finish(process).code == -signal.SIGINT
    assert shop.webkassa.calls == []
