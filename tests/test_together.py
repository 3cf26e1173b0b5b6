"""Many at the same time, and who waits for whom."""

from __future__ import annotations

import time
from typing import Any

import pytest
from world.nursery import Process
from world.shop import LOCK_WAITERS, UPDATERS, Shop, fingerprint
from world.waiting import await_
from world.webkassa_simulator import ALIVE, UNCLEAR, Handler


@pytest.mark.slow
def test_many_if_needed_on_a_dead_key_make_one_authorize(shop: Shop) -> None:
    shop.webkassa.live = None
    runs = [shop.start("update", "--if-needed") for _ in range(20)]
    assert [shop.finish(run).code for run in runs] == [0] * 20
    assert (shop.webkassa.authorizations, shop.holds_the_live_key) == (1, True)


@pytest.mark.slow
def test_many_plain_updates_leave_the_live_key(shop: Shop) -> None:
    runs = [shop.start() for _ in range(20)]
    assert [shop.finish(run).code for run in runs] == [0] * 20
    assert shop.holds_the_live_key


def test_who_waited_and_finds_a_new_key_asks_for_nothing(shop: Shop) -> None:
    def answer_when_another_waits(handler: Handler, good: bytes) -> None:
        await_(lambda: waiting)
        await_(lambda: shop.has_said(*waiting))
        handler.send(200, good)

    waiting: list[Process] = []
    shop.webkassa.script.append(answer_when_another_waits)
    first = shop.start()
    await_(lambda: shop.webkassa.authorizations)
    second = shop.start("-v")
    waiting.append(second)
    results = [shop.finish(run) for run in (first, second)]
    assert [result.code for result in results] == [0, 0]
    assert "another updater" in results[1].err
    assert shop.webkassa.authorizations == 1


def test_row_deleted_during_the_wait_is_no_new_key(shop: Shop) -> None:
    with shop.lock_held():
        process = shop.start("-v")
        await_(lambda: shop.has_said(process))
        shop.sql("DELETE FROM api_keys WHERE id = 1")
    shop.assert_renewed(process)


@pytest.mark.slow
def test_waits_for_lock_and_row_share_one_deadline(shop: Shop) -> None:
    """The wait for the row, which comes after the lock, is shorter by what the lock took."""
    with shop.transaction("SELECT 1 FROM api_keys FOR UPDATE"):
        with shop.lock_held():
            process = shop.start("check")
            await_(lambda: shop.sql(UPDATERS))
            start = time.monotonic()
            await_(lambda: time.monotonic() - start > 5)
        result = shop.finish(process)
        assert 5 < time.monotonic() - start < 14, result
    assert result.code == 75
    assert shop.webkassa.authorizations == 0


# Two first runs ----------------------------------------------------------------------------------


def table_lock(shop: Shop) -> Any:
    """Hold what a first run waits for before it makes the table."""
    return shop.lock_held("public.api_keys", "table")


def test_first_runs_of_other_services_make_one_table_and_all_go_on(shop: Shop) -> None:
    """Both have found none when the lock for making it becomes free."""
    shop.sql("DROP TABLE api_keys")
    shop.webkassa.verdict = lambda token: ALIVE  # one account, three services: each login counts
    with table_lock(shop):
        runs = [shop.start("-v", WEBKASSA_SERVICE_NAME=name) for name in "abc"]
        await_(lambda: shop.has_said(*runs))
    results = [shop.finish(run) for run in runs]
    assert [result.code for result in results] == [0] * 3, results
    assert shop.webkassa.authorizations == 3
    stored = shop.sql("SELECT api_key FROM api_keys ORDER BY id")
    assert sorted(key for (key,) in stored) == sorted(shop.webkassa.issued[-3:])


def test_first_run_of_a_role_that_may_not_use_the_table_of_another_asks_for_nothing(
    shop: Shop,
) -> None:
    shop.sql("DROP TABLE api_keys")
    with shop.role("one"), shop.role("two"):
        shop.sql("GRANT USAGE, CREATE ON SCHEMA public TO one, two")
        with table_lock(shop):
            runs = [shop.start("-v", WEBKASSA_SERVICE_NAME=name, POSTGRES_USER=name)
                    for name in ("one", "two")]  # fmt: skip
            await_(lambda: shop.has_said(*runs))
        codes = sorted(shop.finish(run).code for run in runs)
        assert (codes, shop.webkassa.authorizations) == ([0, 73], 1)
        assert shop.sql("SELECT api_key FROM api_keys") == [(shop.webkassa.live,)]


# The row in somebody's open transaction ----------------------------------------------------------


def start_meanwhile(shop: Shop, statement: str, *wish: str) -> Process:
    """Start a run that finds a row which somebody has just written; then that is committed."""
    with shop.transaction(statement) as cursor:
        process = shop.start("update", *wish)
        await_(lambda: shop.sql(LOCK_WAITERS))
        cursor.execute("COMMIT")
    return process


def written(key: str) -> str:
    return f"UPDATE api_keys SET api_key = '{key}', updated_at = now() WHERE id = 1"


@pytest.mark.parametrize("wish", [(), ("--if-needed",), ("--if-key", "")])
def test_key_that_somebody_is_about_to_commit_is_judged_and_not_the_one_before(
    shop: Shop, wish: tuple[str, ...]
) -> None:
    if "--if-key" in wish:
        wish = ("--if-key", fingerprint(shop.old_key))
    fresh = shop.webkassa.issue()
    result = shop.finish(start_meanwhile(shop, written(fresh), *wish))
    assert (result.code, shop.webkassa.authorizations) == (0, 0), result
    assert shop.key == fresh == shop.webkassa.live


@pytest.mark.parametrize("wish", [(), ("--if-needed",)])
def test_dead_key_that_appears_during_the_wait_is_no_new_key(
    shop: Shop, wish: tuple[str, ...]
) -> None:
    shop.assert_renewed(start_meanwhile(shop, written("dead"), *wish))


def test_key_that_cannot_be_probed_is_no_reason_for_a_plain_update_to_stop(shop: Shop) -> None:
    """Not called dead is not alive."""
    shop.webkassa.verdict = lambda token: UNCLEAR
    shop.assert_renewed(start_meanwhile(shop, written("other")))


def test_row_deleted_while_it_is_waited_for_is_made_anew(shop: Shop) -> None:
    row = "DELETE FROM api_keys WHERE id = 1"
    shop.assert_renewed(start_meanwhile(shop, row, "--if-needed"))


def test_key_judged_under_a_lock_that_was_lost_meanwhile_is_not_vouched_for(shop: Shop) -> None:
    """Another may have logged in since. So no 0 on the strength of that probe."""
    shop.age("0 s")

    def lose_lock(handler: Handler, good: bytes) -> None:
        shop.kill_connections()
        handler.send(200, good)

    shop.webkassa.probe_script.append(lose_lock)
    result = shop.run("update", "--if-needed")
    assert shop.webkassa.authorizations == 0
    assert result.code == 75 or shop.webkassa.probes > 1


def test_tenants_of_one_row_name_do_not_wait_for_one_another(shop: Shop) -> None:
    """Each has a schema of its own; the lock's number was made of the service alone."""
    shop.sql("CREATE SCHEMA app; CREATE TABLE app.api_keys (LIKE public.api_keys INCLUDING ALL)")
    with shop.lock_held():  # of public.api_keys
        result = shop.run(API_KEYS_TABLE="app.api_keys")
    assert (result.code, shop.webkassa.authorizations) == (0, 1), result
    assert "waiting for" not in result.err
