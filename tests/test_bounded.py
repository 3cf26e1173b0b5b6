"""Every wait is bounded on our own side: frozen servers, standbys that are away, slow vendors."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from world.relay import Link
from world.shop import UPDATERS, Shop, connect, execute, trigger
from world.waiting import await_, within
from world.webkassa_simulator import answer, late, slow


def is_commit(data: bytes) -> bool:
    return bool(re.search(rb"pg_notify.*COMMIT;?\s*\0$", data, re.DOTALL))


def backend(shop: Shop) -> int:
    """Return the process of the server that serves the updater."""
    ((pid,),) = shop.sql(UPDATERS.replace("1", "pid", 1))
    return int(pid)


@pytest.fixture
def frozen() -> Iterator[list[int]]:
    """Processes to be thawed in the end, whatever happens."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


# The vendor's time -------------------------------------------------------------------------------


@pytest.mark.slow
def test_login_that_takes_33_s_is_waited_for_and_the_lock_is_kept(shop: Shop) -> None:
    """The server ends a transaction that falls silent for 30 s; ours is asked meanwhile."""
    shop.webkassa.script.append(slow(33))
    with shop.relay() as relay:
        shop.renew(WEBKASSA_DEADLINE="60s")
        assert len(relay.links) == 1  # it was never lost


@pytest.mark.slow
def test_pause_of_33_s_that_webkassa_asks_for_keeps_the_lock(shop: Shop) -> None:
    shop.webkassa.script.append(answer(503, b"", {"Retry-After": "33"}))
    with shop.relay() as relay:
        shop.renew(logins=2, WEBKASSA_DEADLINE="60s")
        assert len(relay.links) == 1


@pytest.mark.slow
def test_answer_at_the_end_of_the_deadline_leaves_time_for_a_reconnect(shop: Shop) -> None:
    """To store it there are 60 s more."""
    shop.webkassa.script.append(late(9, reply=True))
    shop.webkassa.on_issue = shop.kill_connections
    shop.renew(WEBKASSA_DEADLINE="10s")


# Before every further try the store is asked -----------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("comes_back", [True, False])
def test_webkassa_that_returns_is_not_asked_while_the_database_is_away(
    shop: Shop, comes_back: bool
) -> None:
    shop.webkassa.deafen()
    process = shop.start("-v", WEBKASSA_DEADLINE="10s")
    try:
        await_(lambda: shop.sql(UPDATERS + " AND query = 'SELECT 1'"))  # between two tries
        start = time.monotonic()
        shop.server.stop("immediate")
        shop.webkassa.hear()
        if comes_back:
            await_(lambda: time.monotonic() - start > 2)
            assert shop.webkassa.authorizations == 0
            shop.server.start()
        result = shop.finish(process)
    finally:
        if not (shop.server.data / "postmaster.pid").exists():
            shop.server.start()
    if comes_back:
        shop.assert_renewed(result)
    else:
        assert (result.code, shop.webkassa.authorizations) == (75, 0)
        assert time.monotonic() - start < 40


def test_frozen_server_is_not_taken_for_a_transaction_that_stands(
    shop: Shop, frozen: list[int]
) -> None:
    shop.hurry(KeyStore__ASK_TIME=1)
    shop.webkassa.script.append(answer(503))
    asked_while_frozen = []

    def freeze(event: object) -> None:
        if event.what == "asked" and not frozen:  # type: ignore[attr-defined]
            frozen.append(backend(shop))
            os.kill(frozen[0], signal.SIGSTOP)
            threading.Timer(3, thaw).start()

    def thaw() -> None:
        asked_while_frozen.append(shop.webkassa.authorizations)
        os.kill(frozen[0], signal.SIGCONT)

    shop.webkassa.on_event = freeze
    result = shop.run()
    assert (result.code, asked_while_frozen, shop.webkassa.authorizations) == (0, [1], 2)
    assert shop.holds_the_live_key


# The commit --------------------------------------------------------------------------------------


@pytest.fixture
def standby_away(shop: Shop) -> Iterator[None]:
    """Every commit waits for a standby that does not come, but those with synchronous_commit off."""

    def set_standby(name: str) -> None:
        shop.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        shop.sql("SELECT pg_reload_conf()")
        await_(lambda: shop.sql("SHOW synchronous_standby_names") == [(name,)])

    set_standby("away")
    yield
    set_standby("")


@pytest.mark.usefixtures("standby_away")
def test_standby_that_is_away_does_not_hold_the_key_back(shop: Shop) -> None:
    with within(40):
        shop.renew()


def test_notification_of_a_stranger_that_waits_for_a_standby_does_not_hold_the_key_back(
    shop: Shop, standby_away: None
) -> None:
    """It holds a lock that every NOTIFY of the server wants, and our rehearsal never comes to."""
    writes = "CREATE TABLE a (); DROP TABLE a; NOTIFY somebody"
    with contextlib.closing(connect(shop.server, "postgres")) as stranger:
        waiting = threading.Thread(target=execute, args=(stranger, writes, ()))
        waiting.start()
        await_(lambda: shop.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))
        try:
            with within(10):
                result = shop.renew()
        finally:
            stranger.cancel()
            waiting.join()
    assert "Storing took more than one try; perhaps nobody was notified." in result.err


def test_backend_that_freezes_at_the_commit_loses_no_key(shop: Shop, frozen: list[int]) -> None:
    """When it wakes up it commits; the updater, which waits for its lock, finds that done."""
    shop.hurry(KeyStore__COMMIT_TIME=1.5)
    shop.sql("CREATE TABLE writes (api_key text)")
    shop.sql(trigger("INSERT INTO writes VALUES (NEW.api_key); RETURN NEW;"))

    def freeze(link: Link, data: bytes) -> bytes:
        if is_commit(data) and not frozen:
            frozen.append(backend(shop))
            os.kill(frozen[0], signal.SIGSTOP)
        return data

    with shop.relay(to_server=freeze) as relay:
        process = shop.start("-v")
        await_(lambda: len(relay.links) > 2)  # the lock of the first is still held
        assert shop.is_untouched
        os.kill(frozen[0], signal.SIGCONT)
        shop.assert_renewed(process)
    assert shop.sql("SELECT api_key FROM writes") == [(shop.webkassa.live,)]


def test_network_that_falls_silent_at_the_commit_loses_no_key(shop: Shop) -> None:
    shop.hurry(KeyStore__COMMIT_TIME=1.5)

    def fall_silent(link: Link, data: bytes) -> bytes:
        if is_commit(data) and "silent" not in notes:
            notes.add("silent")
            relay.pause()
            threading.Timer(4, relay.resume).start()
            relay.passing.wait()
        return data

    notes: set[str] = set()
    with shop.relay(to_server=fall_silent) as relay:
        shop.renew()
    assert notes


# Several hosts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["update", "check", "status"])
def test_second_host_is_reached_when_the_first_says_nothing(shop: Shop, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        shop.hurry(CONNECT_TIME=1)
        ports = f"{silent.getsockname()[1]},{shop.server.port}"
        with within(40):
            result = shop.run(command, POSTGRES_HOST="127.0.0.1,127.0.0.1", POSTGRES_PORT=ports)
    assert result.code == (command == "status")  # its key is 30 hours old


def test_second_host_is_reached_when_nobody_listens_at_the_first(shop: Shop) -> None:
    ports = f"9,{shop.server.port}"
    shop.renew(POSTGRES_HOST="127.0.0.1,127.0.0.1", POSTGRES_PORT=ports)


def test_message_of_several_hosts_names_one_that_failed(shop: Shop) -> None:
    result = shop.run_in_vain(75, POSTGRES_HOST="127.0.0.1,127.0.0.1", POSTGRES_PORT="9,10")
    assert "port=10" in result.err or "port=9" in result.err
