"""Measure how long it takes until a shop sells again whose key was killed by another login.

    .venv-dev/bin/python benchmarks/consumers.py [ROUNDS]

The shop asks at the socket by the manual's recipe: on a server (a booted Debian with the units) and
beside Compose (the stack of a clean clone), in turn. Webkassa is the simulator, with TLS. Each
round waits until the keys are older than a minute: a younger one is looked at twice, for a second.
Needs what tests/boot and tests/containers need.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/boot")]

from containers.engine import IMAGE, Engine  # noqa: E402
from containers.stack import Stack, sell, time_a_sale  # noqa: E402
from shop_server import CURRENT, new_site  # noqa: E402
from world.postgres import PASSWORD  # noqa: E402
from world.tls import Authority  # noqa: E402
from world.webkassa_simulator import Simulator  # noqa: E402

COMPOSE = ["docker-compose"]  # Debian 12's


@contextlib.contextmanager
def server_and_shop() -> Iterator[tuple[Simulator, Any]]:
    authority = Authority()
    tls = authority.server_context("127.0.0.1")
    with new_site("bookworm") as site, Simulator(tls=tls) as webkassa:
        trust = {"REQUESTS_CA_BUNDLE": "/etc/ssl/webkassa.pem"}
        authority.write(site.machine.root / "etc/ssl/webkassa.pem")
        site.webkassa = webkassa
        site.settings |= trust | {"WEBKASSA_AUTH_URL": webkassa.url}
        site.reset()
        installed = site.install("--env-file", "/root/my.env")
        assert installed.returncode == 0, installed.stdout
        database = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{site.server.port}/postgres"
        site.machine.write("/srv/shop.py", sell(database, webkassa))
        command = [*site.machine.enter(trust), f"{CURRENT}/venv/bin/python", "/srv/shop.py"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as shop:
            yield webkassa, shop


@contextlib.contextmanager
def stack_and_shop() -> Iterator[tuple[Simulator, Any]]:
    with contextlib.closing(Engine()) as engine, tempfile.TemporaryDirectory() as home:
        engine.import_base()
        engine.build(IMAGE, ROOT)
        with Stack(engine, COMPOSE, Path(home)) as stack, stack.shop() as shop:
            yield stack.webkassa, shop


def main(rounds: int) -> None:
    with server_and_shop() as server, stack_and_shop() as stack:
        times: dict[str, list[float]] = {"a server's socket": [], "Compose": []}
        for shown, (webkassa, shop) in zip(times, (server, stack), strict=True):
            print(f"{shown}: the key works, sold after {time_a_sale(shop):.2f} s", flush=True)
            webkassa.calls.clear()
        for _ in range(rounds):
            time.sleep(61)
            for seconds, (webkassa, shop) in zip(times.values(), (server, stack), strict=True):
                webkassa.issue()
                seconds.append(time_a_sale(shop))
        for (webkassa, _), (shown, seconds) in zip((server, stack), times.items(), strict=True):
            assert webkassa.authorizations == rounds
            print(f"| {shown} | {statistics.median(seconds):.2f} s | {max(seconds):.2f} s |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
