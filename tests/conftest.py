"""The tests' fixtures; what they are made of is in `world`."""

from __future__ import annotations

import contextlib
import gc
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from world import pgbouncer
from world.monitor import Monitor
from world.pgbouncer import PgBouncer
from world.postgres import Postgres
from world.relay import ConnectProxy
from world.serving import serving
from world.shop import Shop, make_database
from world.tls import Authority
from world.webkassa_simulator import Simulator

MACHINES = ("boot", "containers")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "slow: computes as long as ten runs, waits for 8 s, or needs machine or engine"
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Collect without a search for garbage, and let none look at what was collected."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name in MACHINES:
            item.add_marker(pytest.mark.timeout(1800))  # the first makes machine or engine
            item.add_marker(pytest.mark.slow)
    items.sort(key=turn)


def turn(item: pytest.Item) -> tuple[int, int]:
    """Return when a test is to begin: machine and engine first, each in its order; then what is
    slow, then the rest: these two are mixed, the same way each time, so that some wait while others
    compute."""
    if item.path.parent.name in MACHINES:
        return 0, 0
    group = item.get_closest_marker("xdist_group")
    number = zlib.crc32((group.args[0] if group else item.nodeid).encode())
    return 1 if item.get_closest_marker("slow") else 2, number


@pytest.fixture(scope="session", autouse=True)
def _signals_as_at_a_terminal() -> None:
    """What is started here inherits which signals are ignored: SIGINT in the background of a script,
    SIGHUP under nohup. SIGPIPE and SIGXFSZ are ignored by Python itself."""
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def hypothesis() -> Any:
    """Loaded where it is wanted: it costs each worker two seconds."""
    import hypothesis

    return hypothesis


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    server = Postgres("fsync=off", "scram_iterations=1")  # the tests connect some thousand times
    server.kept = make_database(server)
    yield server
    server.remove()


@pytest.fixture
def webkassa() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def shop(server: Postgres, webkassa: Simulator, tmp_path: Path) -> Iterator[Shop]:
    with contextlib.closing(Shop(server, webkassa, tmp_path)) as shop:
        yield shop


@pytest.fixture
def keeper(shop: Shop) -> Iterator[Shop]:
    """The shop through a role that has just the privileges which the README names."""
    with shop.role("keeper", password="keeper-canary-pass"):
        shop.sql("GRANT SELECT, INSERT, UPDATE ON api_keys TO keeper")
        shop.sql("GRANT USAGE ON SEQUENCE api_keys_id_seq TO keeper")
        yield shop


@pytest.fixture
def pooled(shop: Shop) -> Iterator[Shop]:
    """The shop through a PgBouncer in transaction mode."""
    if pgbouncer.PROGRAM is None:
        pytest.skip("PgBouncer is not installed (apt-get install pgbouncer)")
    with PgBouncer(shop.server) as pooler:
        shop.env["POSTGRES_PORT"] = str(pooler.port)
        yield shop


@pytest.fixture
def tls_shop(shop: Shop) -> Iterator[Shop]:
    """A shop whose Webkassa has TLS, a private CA, and vendor's host names, behind a proxy."""
    authority = Authority()
    ca_file = authority.write(shop.home / "ca.pem")
    context = authority.server_context("*.webkassa.kz", "127.0.0.1")
    with (
        Simulator(tls=context) as webkassa,
        ConnectProxy(("127.0.0.1", webkassa.port)) as shop.proxy,
    ):
        webkassa.issued.append(shop.old_key)
        shop.webkassa = webkassa
        shop.env["WEBKASSA_AUTH_URL"] = "https://api.webkassa.kz/api/Authorize"
        settings_file = shop.home / "shop.env"  # under systemd, this is the only place for them
        settings_file.write_text(f"HTTPS_PROXY={shop.proxy.url}\nREQUESTS_CA_BUNDLE='{ca_file}'\n")
        shop.options = ("--env-file", str(settings_file))
        yield shop


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    with serving(Monitor()) as monitor:
        yield monitor
