"""Many at the same time, and who waits for whom."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from world.shop import UPDATERS, Shop
from world.waiting import await_
from world.webkassa_simulator import Handler


@pytest.mark.parametrize("count", [12, 20])
def test_many_if_needed_on_a_dead_key_make_one_authorize(shop: Shop, count: int) -> None:
    shop.webkassa.live = None
    runs = [shop.start("update", "--if-needed") for _ in range(count)]
    assert [shop.finish(run).code for run in runs] == [0] * count
    assert shop.webkassa.authorizations == 1
    assert shop.holds_the_live_key


@pytest.mark.parametrize("count", [8, 20])
def test_many_plain_updates_leave_the_live_key(shop: Shop, count: int) -> None:
    runs = [shop.start() for _ in range(count)]
    assert [shop.finish(run).code for run in runs] == [0] * count
    assert shop.holds_the_live_key


def test_who_waited_and_finds_a_new_key_asks_for_nothing(shop: Shop) -> None:
    def answer_when_another_waits(handler: Handler, good: bytes) -> None:
        await_(lambda: shop.sql(UPDATERS + " AND wait_event = 'advisory'"))
        handler.send(200, good)

    shop.webkassa.script.append(answer_when_another_waits)
    first = shop.start()
    await_(lambda: shop.webkassa.authorizations)
    second = shop.start()
    results = [shop.finish(run) for run in (first, second)]
    assert [result.code for result in results] == [0, 0]
    assert "another updater" in results[1].err
    assert shop.webkassa.authorizations == 1


def test_row_deleted_during_the_wait_is_no_new_key(shop: Shop) -> None:
    with shop.lock_held():
        process = shop.start()
        await_(lambda: shop.sql(UPDATERS + " AND wait_event = 'advisory'"))
        shop.sql("DELETE FROM api_keys WHERE id = 1")
    assert shop.finish(process).code == 0
    assert shop.webkassa.authorizations == 1
    assert shop.holds_the_live_key


def test_waits_for_lock_and_row_share_one_deadline(shop: Shop) -> None:
    with contextlib.closing(shop.connect()) as row, row.cursor() as row_cursor:
        row_cursor.execute("BEGIN; SELECT 1 FROM api_keys FOR UPDATE")
        with shop.lock_held():
            start = time.monotonic()
            process = shop.start("update", WEBKASSA_DEADLINE="4s")
            await_(lambda: shop.sql(UPDATERS + " AND wait_event = 'advisory'"))
            threading.Event().wait(3)
        assert shop.finish(process).code == 75
        assert time.monotonic() - start < 6
    assert shop.webkassa.calls == []
