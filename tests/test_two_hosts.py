"""Two hosts that share nothing but PostgreSQL and Webkassa; one of them dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from world.accounts import Accounts, row
from world.nursery import Process
from world.relay import Relay
from world.shop import Shop, lock_number
from world.waiting import await_
from world.webkassa_simulator import Behaviour, hang, held_until

# So long that there is something to say of it
IDLE_LIMIT = 30.0  # seconds after which the server ends a transaction that fell silent


class Host:
    """A host: its own home, settings, way to PostgreSQL, and processes."""

    def __init__(self, shop: Shop, name: str, relay: Relay) -> None:
        self.shop, self.relay = shop, relay
        self.home = shop.home / name
        self.home.mkdir()
        self.env = {"HOME": str(self.home), "POSTGRES_PORT": str(relay.port)}

    def start(self, *arguments: str) -> Process:
        how = {"cwd": self.home, "start_new_session": True}
        return self.shop.start_with(how, "update", *arguments, "-v", **self.env)

    def lose_power(self, process: Process) -> None:
        """End all at once; the server hears of nothing."""
        self.relay.pause()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def hosts(shop: Shop) -> Iterator[tuple[Host, Host]]:
    shop.env["WEBKASSA_DEADLINE"] = "20s"
    with contextlib.ExitStack() as stack:
        relays = [stack.enter_context(Relay(("127.0.0.1", shop.server.port))) for _ in range(2)]
        yield Host(shop, "first", relays[0]), Host(shop, "second", relays[1])


def locks(shop: Shop, *services: str) -> int:
    """Return how many of these services have their lock held."""
    numbers = [lock_number(service) for service in services]
    return int(
        shop.sql(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND (classid::bigint << 32 | objid::bigint) = ANY(%s)",
            numbers,
        )[0][0]
    )


@pytest.mark.slow
def test_timers_that_fire_together_log_in_once_for_each_account(
    shop: Shop, hosts: tuple[Host, Host]
) -> None:
    names = [f"shop-{number}" for number in range(12)]
    accounts = Accounts(shop, *names)
    shop.env["WEBKASSA_MAX_AGE"] = "1h"
    runs = [host.start("--if-needed", "--jobs", "4") for host in hosts]
    assert [shop.finish(run).code for run in runs] == [0, 0]
    assert accounts.renewed == set(names)
    assert [accounts.logins(name) for name in names] == [1] * 12


@pytest.mark.slow
def test_plain_updates_of_two_hosts_leave_the_live_keys(
    shop: Shop, hosts: tuple[Host, Host]
) -> None:
    accounts = Accounts(shop, *"abcdefgh")
    runs = [host.start("--jobs", "4") for host in hosts]
    assert [shop.finish(run).code for run in runs] == [0, 0]
    assert accounts.renewed == set("abcdefgh")


@pytest.mark.parametrize("moment", ["asked", "probing"])
def test_killed_host_frees_its_locks_at_once(
    shop: Shop, hosts: tuple[Host, Host], moment: str
) -> None:
    first, second = hosts
    script = shop.webkassa.script if moment == "asked" else shop.webkassa.probe_script
    script.append(hang())
    dying = first.start()
    await_(lambda: shop.webkassa.authorizations if moment == "asked" else shop.webkassa.probes)
    waiting = second.start()
    await_(lambda: len(second.relay.links) > 2)
    start = time.monotonic()
    dying.kill()
    dying.communicate()
    result = shop.finish(waiting)
    assert time.monotonic() - start < 40
    assert (result.code, shop.holds_the_live_key) == (0, True)
    assert shop.webkassa.authorizations == 2
    assert re.search(r"(?i)Webkassa\b.*wait", result.err), result.err


@pytest.mark.parametrize("moment", ["asked", "probing"])
def test_cut_connection_of_one_host_leaves_one_live_key(
    shop: Shop, hosts: tuple[Host, Host], moment: str
) -> None:
    """Both hosts go on: the one that lost its lock, and the one that waited for it."""
    first, second = hosts
    go = threading.Event()
    script = shop.webkassa.script if moment == "asked" else shop.webkassa.probe_script
    script.append(held_until(go))
    cut = first.start()
    await_(lambda: shop.webkassa.authorizations if moment == "asked" else shop.webkassa.probes)
    waiting = second.start()
    await_(lambda: len(second.relay.links) > 1)
    first.relay.cut()
    await_(lambda: shop.webkassa.authorizations == 2 or waiting.poll() is not None)
    go.set()
    results = [shop.finish(run) for run in (cut, waiting)]
    assert [result.code for result in results] == [0, 0]
    assert shop.holds_the_live_key


@pytest.mark.slow
def test_host_that_lost_its_power_holds_no_lock_longer_than_30_s(
    shop: Shop, hosts: tuple[Host, Host]
) -> None:
    """A login is on its way, another has been taken, and a third account's turn has not come."""
    shop.hurry(KeyStore__LOCK_PAUSE=2)  # it is the server that ends the wait
    first, second = hosts
    accounts = Accounts(shop, "asked", "killed", "later")
    accounts.script("asked").append(Behaviour(lambda handler, _: handler.leave_open(), False))
    accounts.script("killed").append(hang())
    dying = first.start("--jobs", "2")
    await_(lambda: shop.webkassa.authorizations == 2)
    first.lose_power(dying)
    start = time.monotonic()

    heir = second.start("--jobs", "3")
    await_(lambda: accounts.renewed == {"later"})
    assert locks(shop, row("asked"), row("killed")) == 2
    result = shop.finish(heir)

    assert time.monotonic() - start < IDLE_LIMIT + 5  # the logins of the heir included
    assert (result.code, accounts.renewed) == (0, set(accounts.names))
    assert locks(shop, *map(row, accounts.names)) == 0
    assert [accounts.logins(name) for name in accounts.names] == [2, 2, 1]
    for name in ("asked", "killed"):
        assert re.search(rf"(?i)Webkassa:{name}\b.*wait", result.err), result.err
    assert not re.search(r"(?i)Webkassa:later\b.*wait", result.err)
