"""What a person sees who waits at a terminal; and what a pipe or the journal gets: no progress."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import threading
import time

import pytest
from world.shop import Shop, fingerprint, trigger
from world.waiting import await_
from world.webkassa_simulator import answer, hang, slow


class Screen:
    """A run of the program on a terminal of its own, where Ctrl-C is a key."""

    def __init__(self, shop: Shop, *arguments: str, **env: str) -> None:
        self.text, self.shop = "", shop
        self.master, slave = pty.openpty()
        self.start = time.monotonic()
        self.process = shop.start_with({"terminal": slave}, *arguments, **env)
        os.close(slave)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        with contextlib.suppress(OSError):  # the last one at the terminal has gone
            while data := os.read(self.master, 4096):
                self.text += data.decode()

    def await_text(self, pattern: str, seconds: float = 8) -> float:
        """Wait until this is seen; return how long after the start that was."""
        try:
            await_(lambda: re.search(pattern, self.text), seconds)
        except AssertionError:
            raise AssertionError(f"{pattern} is not seen in: {self.text}") from None
        return time.monotonic() - self.start

    def type(self, key: bytes) -> None:
        os.write(self.master, key)

    def finish(self) -> int:
        code = self.process.wait(30)
        self.reader.join(5)
        os.close(self.master)
        return code


CTRL_C = b"\x03"


@pytest.mark.slow
def test_person_is_told_that_webkassa_hangs_and_after_ctrl_c_that_it_ends_soon(shop: Shop) -> None:
    shop.webkassa.script.append(hang())
    screen = Screen(shop, WEBKASSA_DEADLINE="10s")
    host = re.escape(f"127.0.0.1:{shop.webkassa.port}")
    assert 3 <= screen.await_text(f"Waiting for .*{host}.* s at most") < 6
    assert int(re.findall(r"(\d+) s at most", screen.text)[0]) <= 10
    assert "PostgreSQL" not in screen.text
    screen.type(CTRL_C)
    assert screen.await_text("Ctrl-C: .*ends") < 8
    assert screen.finish() == 69
    assert 9 < time.monotonic() - screen.start < 20
    assert f"The stored key {fingerprint(shop.old_key)} is dead" in screen.text
    assert "Run again now" in screen.text  # a dead key is no matter for later
    assert "later" not in screen.text


def test_ctrl_c_while_webkassa_is_slow_stores_the_key_first(shop: Shop) -> None:
    said = threading.Event()
    shop.webkassa.script.append(lambda handler, good: said.wait(60) and handler.send(200, good))
    screen = Screen(shop)
    await_(lambda: shop.webkassa.authorizations)
    screen.type(CTRL_C)
    screen.await_text("Ctrl-C: ")
    assert shop.key == shop.old_key
    said.set()
    assert screen.finish() == 0
    assert shop.holds_the_live_key


@pytest.mark.slow
def test_person_is_told_who_holds_the_lock_and_ctrl_c_ends_that_wait(shop: Shop) -> None:
    with shop.lock_held():
        screen = Screen(shop)
        holder = shop.sql("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted")[0][0]
        assert screen.await_text(f"Waiting for the lock held by PID {holder} .* s at most") < 8
        assert int(re.findall(r"(\d+) s at most", screen.text)[0]) > 60
        connections = shop.sql("SELECT sessions FROM pg_stat_database WHERE datname = 'shop'")[0][0]
        tries = (
            "SELECT pg_stat_clear_snapshot(), sessions FROM pg_stat_database WHERE datname = 'shop'"
        )
        await_(lambda: shop.sql(tries)[0][1] > connections + 4)  # it goes on to look
        assert screen.text.count("Waiting for") == 1
        screen.type(CTRL_C)
        assert screen.finish() == -signal.SIGINT
    assert shop.webkassa.calls == []


def test_wait_for_the_next_try_is_told_and_ctrl_c_ends_it(shop: Shop) -> None:
    shop.webkassa.script.append(answer(503, b"", {"Retry-After": "9"}))
    screen = Screen(shop)
    host = re.escape(f"127.0.0.1:{shop.webkassa.port}")
    screen.await_text(f"Waiting for .*{host}")
    screen.type(CTRL_C)
    assert screen.finish() == 69
    assert time.monotonic() - screen.start < 8


@pytest.mark.slow
def test_person_is_told_that_the_key_waits_for_postgresql(shop: Shop) -> None:
    """It tries again and again; to a person that is one wait."""
    shop.webkassa.on_issue = lambda token: shop.server.stop()
    screen = Screen(shop)
    await_(lambda: shop.webkassa.live != shop.old_key)
    try:
        screen.await_text("Waiting for PostgreSQL.* s at most", 7)
    finally:
        shop.server.start()
    assert screen.finish() == 0
    assert screen.text.count("Waiting for PostgreSQL") <= 3  # not of every try
    assert shop.holds_the_live_key


def test_quick_run_on_a_terminal_is_one_line(shop: Shop) -> None:
    screen = Screen(shop)
    assert screen.finish() == 0
    assert screen.text.count("\n") == 1


def test_pipe_gets_no_progress(shop: Shop) -> None:
    """A terminal would be told after 3 s."""
    shop.webkassa.script.append(slow(4.5))
    result = shop.finish(shop.start())
    assert (result.code, result.out, result.err.count("\n")) == (0, "", 1)
    assert "Waiting" not in result.err


@pytest.mark.parametrize("notice", ["WARNING", "NOTICE"])
def test_servers_notices_are_not_said(shop: Shop, notice: str) -> None:
    """Cron mails whatever is said: a collation warning would come daily."""
    shop.sql(trigger(f"RAISE {notice} 'database has a collation version mismatch'; RETURN NEW;"))
    result = shop.finish(shop.start())
    assert (result.code, result.out, result.err.count("\n")) == (0, "", 1)


def test_warning_of_the_server_at_connecting_is_not_said(shop: Shop) -> None:
    """libpq prints what the server says before anybody asked it something."""
    shop.sql("ALTER DATABASE shop SET default_text_search_config = 'of no such name'")
    psql = [str(shop.server.bin / "psql"), "-h", "127.0.0.1", "-p", str(shop.server.port)]
    env = shop.env | {"PGPASSWORD": shop.env["POSTGRES_PASSWORD"], "PGUSER": "postgres"}
    heard = subprocess.run([*psql, "-c", "", "shop"], env=env, capture_output=True, text=True)
    assert "WARNING" in heard.stderr
    result = shop.finish(shop.start())
    assert (result.code, result.out, result.err.count("\n")) == (0, "", 1)
