"""Killed, or told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from world.shop import LOCK_WAITERS, PROGRAM, UPDATERS, Shop, fingerprint, lock_number
from world.waiting import await_, within
from world.webkassa_simulator import answer, drip, hang, slow


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
    with within(40):
        shop.renew(logins=None)


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_an_old_or_a_new_row(shop: Shop) -> None:
    for step in range(12):
        process = shop.start()
        with contextlib.suppress(Exception):
            process.wait(0.1 + step * 0.025)
        process.kill()
        process.communicate()
        assert shop.key in (shop.old_key, *shop.webkassa.issued)
    shop.renew(logins=None)


FAULTS = {"SEGV", "BUS", "FPE", "ILL", "ABRT", "TRAP", "SYS", "KILL", "STOP"}  # the process's own
SENT = sorted(
    number
    for number in signal.valid_signals()
    if str(getattr(number, "name", number))[3:] not in FAULTS
)


@pytest.mark.parametrize("reach", [reach_authorize, reach_probe])
@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGHUP], SENT])
def test_no_signal_between_question_and_commit_loses_a_key(
    shop: Shop, reach: Any, numbers: list[int]
) -> None:
    """Nor one that a thread could take: whichever can be blocked, is."""
    shop.webkassa.script.append(slow(1))
    shop.webkassa.probe_script.append(slow(1))
    process = shop.start()
    reach(shop)
    for number in numbers:
        process.send_signal(number)
    shop.assert_renewed(process)


def test_thread_left_behind_by_an_earlier_probe_takes_no_signal(shop: Shop) -> None:
    """It began before signals were held back, and still waits for a server that drips."""
    shop.hurry(PROBE_TIME=0.5)
    shop.webkassa.probe_script.append(drip(0.2))
    shop.webkassa.script.append(slow(1))
    with shop.transaction("UPDATE api_keys SET api_key = 'another' WHERE id = 1") as cursor:
        process = shop.start()
        await_(lambda: shop.sql(LOCK_WAITERS))
        cursor.execute("COMMIT")
    reach_authorize(shop)
    assert shop.webkassa.probes == 1
    for number in SENT:
        process.send_signal(number)
    shop.assert_renewed(process)


def test_signal_while_the_database_is_waited_for_with_a_token_in_hand_loses_no_key(
    shop: Shop,
) -> None:
    def lose_lock(token: str) -> None:
        shop.kill_connections()
        other.cursor().execute("SELECT pg_advisory_lock(%s)", (lock_number(),))

    shop.webkassa.on_issue = lose_lock
    with shop.relay() as relay, contextlib.closing(shop.connect()) as other:
        process = shop.start()
        await_(lambda: len(relay.links) > 2)
        known = len(relay.links)
        for number in SENT:
            process.send_signal(number)
        await_(lambda: len(relay.links) > known + 1)  # it has slept between two tries meanwhile
        other.close()
        shop.assert_renewed(process)


@pytest.mark.slow
@pytest.mark.parametrize("is_ignored", [True, False])
def test_hangup_that_was_ignored_from_the_start_ends_no_retries(
    shop: Shop, is_ignored: bool
) -> None:
    """As under nohup."""
    shop.webkassa.script.append(answer(503, b"", {"Retry-After": "2"}))
    process = subprocess.Popen(
        ["bash", "-c", ("trap '' HUP; " if is_ignored else "") + 'exec "$@"', "-", sys.executable, PROGRAM],
        env=shop.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    reach_authorize(shop)
    process.send_signal(signal.SIGHUP)
    result = shop.finish(process)
    if is_ignored:
        assert (result.code, shop.holds_the_live_key) == (0, True)
    else:
        assert (result.code, shop.webkassa.authorizations) == (69, 1)


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGUSR1, signal.SIGALRM])
def test_other_signal_ends_no_retries(shop: Shop, number: int) -> None:
    shop.webkassa.script.append(answer(503, b"", {"Retry-After": "1"}))
    process = shop.start()
    reach_authorize(shop)
    process.send_signal(number)
    assert (shop.finish(process).code, shop.holds_the_live_key) == (0, True)


def fill(pipe: int) -> None:
    """Fill a pipe, as when whoever reads the log has stopped to."""
    filled = 0
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(pipe, b"x" * 4096)
    os.set_blocking(pipe, True)
    assert filled


def test_line_that_nobody_reads_is_no_wait_without_end(shop: Shop) -> None:
    """Once the key is stored, a signal ends it at once."""
    reading, writing = os.pipe()
    shop.webkassa.on_issue = lambda token: fill(writing)
    process = shop.start_with({"stderr": writing})
    await_(lambda: shop.holds_the_live_key)
    # The first signal may come too soon
    await_(lambda: process.terminate() or process.poll() is not None)
    assert process.returncode == -signal.SIGTERM
    os.close(reading)
    os.close(writing)


def test_full_pipe_on_standard_error_loses_no_key(shop: Shop) -> None:
    """Whoever reads the log has stopped to, while Webkassa was asked."""
    reading, writing = os.pipe()
    shop.webkassa.on_issue = lambda token: fill(writing)
    shop.webkassa.probe_script.append(hang())  # whose trouble is worth a line
    shop.hurry(PROBE_TIME=1)
    process = shop.start_with({"stderr": writing}, "-v")
    await_(lambda: shop.holds_the_live_key)
    assert process.poll() is None  # it has not said so yet
    said = b""
    while b"Stored the new key" not in said:
        said += os.read(reading, 65536)
    assert process.wait(20) == 0
    os.close(reading)
    os.close(writing)


def test_sigkill_while_webkassa_is_asked_leaves_a_trace_in_the_log(shop: Shop) -> None:
    shop.webkassa.script.append(hang())
    process = shop.start("-v")
    reach_authorize(shop)
    process.kill()
    assert "asking 127.0.0.1" in process.communicate()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_waiting_for_the_next_try_ends_it_and_says_so(shop: Shop, number: int) -> None:
    shop.webkassa.script.append(answer(503, b"", {"Retry-After": "8"}))
    process = shop.start("-v")
    reach_authorize(shop)
    start = time.monotonic()
    process.send_signal(number)
    result = shop.finish(process)
    assert time.monotonic() - start < 40
    assert (result.code, shop.webkassa.authorizations) == (69, 1)
    assert f"{fingerprint(shop.old_key)} still works" in result.err


def test_ctrl_c_ends_the_wait_for_the_lock(shop: Shop) -> None:
    with shop.transaction("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE"):
        process = shop.start()
        await_(lambda: shop.sql(LOCK_WAITERS))
        process.send_signal(signal.SIGINT)
        assert shop.finish(process).code == -signal.SIGINT
    assert shop.webkassa.calls == []
