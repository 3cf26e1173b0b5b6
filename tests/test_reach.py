"""Names and addresses: one of several is dead, slow, or known no more."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from world.relay import Link, Relay
from world.shop import ROOT, Shop, fingerprint

# The program on a machine whose name server says what a file says; it knows nothing else
RESOLVING = """
import os, socket, sys
sys.path.insert(0, {root!r})
import webkassa_key_updater as program
real = socket.getaddrinfo
def getaddrinfo(host, port, *args, **more):
    if host in ("localhost", "db.example.kz"):
        hosts = open({file!r}).read().split()
        if not hosts:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [found for one in hosts for found in real(one, port, *args, **more)]
    return real(host, port, *args, **more)
socket.getaddrinfo = getaddrinfo
os._exit(program.main())
"""


def name_server(shop: Shop, *addresses: str) -> Path:
    """Let the names that the program asks for lead there."""
    file = shop.home / "addresses"
    file.write_text(" ".join(addresses))
    shop.program = ["-c", RESOLVING.format(root=str(ROOT), file=str(file))]
    return file


@contextlib.contextmanager
def dead_address(port: int) -> Iterator[str]:
    """An address where packets get lost: its queue is full, and nobody takes anything from it."""
    address = "127.0.0.2"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((address, port), backlog=0))
        while True:
            client = stack.enter_context(socket.socket())
            client.settimeout(1)
            try:
                client.connect(listener.getsockname())
            except TimeoutError:
                yield address
                return


@pytest.mark.parametrize("command", ["update --if-needed", "status", "check"])
def test_probe_goes_on_to_the_next_address(shop: Shop, command: str) -> None:
    """An address that leads nowhere took all of its 5 s, so a dead key was never healed."""
    shop.age("0 s")
    shop.webkassa.live = None
    shop.env["WEBKASSA_AUTH_URL"] = shop.webkassa.url.replace("127.0.0.1", "localhost")
    with dead_address(shop.webkassa.port) as dead:
        name_server(shop, dead, "127.0.0.1")
        result = shop.run(*command.split())
    if command == "update --if-needed":
        shop.assert_renewed(result)
    else:
        assert "is dead" in result.out
        assert fingerprint(shop.old_key) in result.out


def slow_to_let_in(link: Link, data: bytes) -> bytes:
    """What a client says first is passed on after 6 s."""
    if not hasattr(link, "seen"):
        link.seen = threading.Event()  # type: ignore[attr-defined]
        link.seen.wait(6)  # type: ignore[attr-defined]
    return data


@pytest.mark.slow
@pytest.mark.parametrize("when", ["from the start", "after the login"])
def test_server_that_lets_in_after_6_s_is_waited_for(shop: Shop, when: str) -> None:
    with shop.relay() as relay:
        if when == "from the start":
            relay.to_server = slow_to_let_in

        def become_slow(token: str) -> None:
            shop.webkassa.on_issue = lambda token: None
            relay.to_server = slow_to_let_in
            relay.cut()

        if when == "after the login":
            shop.webkassa.on_issue = become_slow
        shop.renew()


def test_name_that_is_known_no_more_after_a_login_costs_no_key(shop: Shop) -> None:
    file = name_server(shop, "127.0.0.1")

    def forget(token: str) -> None:
        shop.webkassa.on_issue = lambda token: None
        file.write_text("")
        shop.kill_connections()

    shop.webkassa.on_issue = forget
    shop.renew(POSTGRES_HOST="db.example.kz")


@pytest.mark.slow
def test_primary_is_found_though_the_old_one_lets_in_as_a_standby(shop: Shop) -> None:
    """After a failover in the middle of a login, the address that let us in was tried again and
    again, or the first of two hosts: it only reads, and the key was lost."""
    old, new = (Relay(("127.0.0.1", shop.server.port)) for _ in range(2))
    new.listener.close()
    new.listener = socket.create_server(("127.0.0.2", old.port))
    file = name_server(shop)
    shop.env |= {"POSTGRES_PORT": str(old.port)}

    def fail_over(token: str) -> None:
        old.target = ("127.0.0.2", shop.server.port)
        file.write_text("127.0.0.2")
        old.cut()

    shop.webkassa.on_issue = fail_over
    with shop.server.standby("127.0.0.2"), old, new:
        for logins, host in enumerate(("db.example.kz", "127.0.0.1,127.0.0.2"), 1):
            file.write_text("127.0.0.1")
            old.target = ("127.0.0.1", shop.server.port)
            shop.renew(POSTGRES_HOST=host, logins=logins)
        shop.renew(POSTGRES_HOST=host, logins=3)  # long after
        assert shop.run("status", POSTGRES_HOST="127.0.0.1").code == 0  # a standby is read, too


@pytest.mark.parametrize("place", ["settings", "service file"])
def test_status_goes_on_to_the_next_host(shop: Shop, place: str) -> None:
    """The first is silent: all 5 s went to it, and status said UNKNOWN for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts, ports = "127.0.0.1,127.0.0.1", f"{silent.getsockname()[1]},{shop.server.port}"
        if place == "settings":
            shop.env |= {"POSTGRES_HOST": hosts, "POSTGRES_PORT": ports}
        else:
            file = shop.home / "pg_service.conf"
            file.write_text(
                f"# Ours\n[other]\nhost=nowhere.invalid\n\n[shop]\nhost={hosts}\nport={ports}\n[last]\nport=1\n"
            )
            for name in ("POSTGRES_HOST", "POSTGRES_PORT"):
                del shop.env[name]
            shop.env |= {"PGSERVICE": "shop", "PGSERVICEFILE": str(file)}
        result = shop.run("status")
    assert result.out.startswith("WEBKASSA WARNING - key ")  # 30 h old
