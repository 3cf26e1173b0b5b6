"""Through Pgpool-II, which parses what it passes on: 4.3.5 of Debian 12 was tried."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import pgpool
from world.pgpool import Pgpool
from world.postgres import Postgres
from world.shop import Shop, connect
from world.webkassa_simulator import answer

pytestmark = [
    pytest.mark.skipif(
        pgpool.PROGRAM is None, reason="Pgpool-II is not installed (apt-get install pgpool2)"
    ),
    pytest.mark.xdist_group("pgpool"),  # one standby for all
]
CACHE = "memory_cache_enabled = on"
UNCACHED = f"{CACHE}\ncache_unsafe_memqcache_table_list = 'api_keys'"
OLD_KEY = "gives consumers the old key from its cache"


@pytest.fixture(scope="module")
def standby(server: Postgres) -> Iterator[Path]:
    with server.standby() as folder:
        yield folder


def read_key(pooler: Pgpool) -> str:
    with contextlib.closing(connect(pooler, "shop")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT api_key FROM api_keys WHERE service_name = 'Webkassa'")
        ((key,),) = cursor.fetchall()
        return str(key)


def nodes_asked(pooler: Pgpool, statement: str) -> set[str]:
    """Return the numbers of the servers to which it sent this: 0 is the primary."""
    pattern = rf"DB node id: (\d) .*statement: {re.escape(statement)}"
    return set(re.findall(pattern, pooler.log.read_text()))


@pytest.mark.slow
def test_what_asks_whether_the_transaction_stands_reaches_the_primary(
    shop: Shop, standby: Path
) -> None:
    """Else it would end there after 30 s, and with it the lock, while Webkassa is waited for."""
    shop.webkassa.script.append(answer(503))  # before the next try it is asked
    with Pgpool(shop.server, standby, "log_per_node_statement = on") as pooler:
        shop.renew(logins=2, POSTGRES_PORT=str(pooler.port))
        assert nodes_asked(pooler, "SELECT 1") == {"0"}
        with (
            contextlib.closing(connect(pooler, "shop")) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SELECT 1 + 1")
        assert nodes_asked(pooler, "SELECT 1 + 1") == {"1"}  # where it sends what is no update's


@pytest.mark.slow
def test_look_that_fails_ends_no_transaction(shop: Shop, standby: Path) -> None:
    """At another table of this name, which somebody has locked."""
    shop.sql("CREATE SCHEMA other; CREATE TABLE other.api_keys (LIKE api_keys)")
    shop.sql("ALTER DATABASE shop SET search_path = public, other")
    shop.webkassa.script.append(answer(503))
    with (
        Pgpool(shop.server, standby, "log_per_node_statement = on") as pooler,
        shop.transaction("LOCK TABLE other.api_keys"),
    ):
        shop.renew(logins=2, POSTGRES_PORT=str(pooler.port))
        assert nodes_asked(pooler, "SELECT 1") == {"0"}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [CACHE, UNCACHED])
def test_check_names_a_cache_that_keeps_the_old_key(
    shop: Shop, standby: Path, settings: str
) -> None:
    """Also where the update goes through it: its message is more than it looks for tables in."""
    with Pgpool(shop.server, standby, settings + "\nload_balance_mode = off") as pooler:
        assert read_key(pooler) == shop.old_key
        shop.renew(POSTGRES_PORT=str(pooler.port))
        is_kept = read_key(pooler) == shop.old_key
        checked = shop.run("check", POSTGRES_PORT=str(pooler.port))
    assert is_kept == (settings == CACHE)
    assert checked.code == 0, checked
    assert (OLD_KEY in checked.out) == is_kept
