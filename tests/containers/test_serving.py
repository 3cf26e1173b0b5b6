"""The container that goes on running, and renews."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from world.postgres import PASSWORD
from world.shop import fingerprint

from .common import await_, slow
from .conftest import Salon, mount
from .engine import BASE, HARDENED, IMAGE
from .stack import PYTHON, sell

pytestmark = pytest.mark.xdist_group("containers")  # one engine, one worker

SERVER, ASKED = "serving", "--mount=type=volume,source=renew,target=/run/webkassa-key"


class Server:
    """A container that serves, and what is done with it."""

    def __init__(self, salon: Salon) -> None:
        self.salon, self.engine = salon, salon.engine

    def start(self) -> None:
        options = (mount(self.salon.settings_file()), ASKED, "--restart=always", "--detach",
                   f"--name={SERVER}", "--stop-timeout=750")  # fmt: skip
        self.engine.run("run", *options, *HARDENED, IMAGE, "serve")

    @property
    def log(self) -> str:
        done = self.engine.run("logs", SERVER)
        return done.stdout + done.stderr

    def await_line(self, pattern: str, times: int = 1) -> None:
        await_(lambda: len(re.findall(pattern, self.log, re.MULTILINE)) >= times, pause=0.2)

    def shop(self, *options: str) -> Any:
        """Start a shop with the code of the manual: another image's user, who sees the socket and
        cannot replace it; it sells when it reads a line."""
        server = self.salon.shop.server
        database = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{server.port}/shop"
        text = sell(database, self.salon.webkassa)
        file = self.salon.secret("shop.py", text, owner=12345)
        return self.engine.start(
            "run", "--rm", "--interactive", "--user=12345:12345", f"{ASKED},readonly", *HARDENED,
            mount(file, "/shop.py"), f"--entrypoint={PYTHON}", *options, IMAGE, "/shop.py",
            stdin=subprocess.PIPE,
        )  # fmt: skip


@pytest.fixture
def server(salon: Salon) -> Iterator[Server]:
    yield Server(salon)
    salon.engine.remove_containers()
    salon.engine.run("volume", "rm", "--force", "renew")


def test_old_key_is_renewed_once_however_often_it_is_started_again(server: Server) -> None:
    server.start()
    for restart in range(11):
        server.await_line("^INFO: ", restart + 1)
        server.engine.run("restart", SERVER)
    assert server.salon.shop.holds_the_live_key
    assert server.salon.webkassa.authorizations == 1
    assert re.search(r"^serve: the daily run is at 05:[0-2]\d:\d\d in Almaty$", server.log, re.M)


def test_image_without_a_command_logs_in_never_however_often_it_is_started_again(
    server: Server,
) -> None:
    """With such a policy an image whose default was to update logged in nine times a minute."""
    options = (
        mount(server.salon.settings_file()),
        "--restart=always",
        "--detach",
        f"--name={SERVER}",
    )
    server.engine.run("run", *options, *HARDENED, IMAGE)
    await_(lambda: int(server.engine.inspect(SERVER, "{{.RestartCount}}")) >= 5, pause=0.2)
    assert server.salon.webkassa.calls == []


def test_shop_sells_again_after_one_login_when_somebody_else_has_killed_its_key(
    server: Server,
) -> None:
    server.salon.shop.sql(
        "UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' - interval '1 h'"
    )
    server.engine.run("run", "--rm", ASKED, BASE, "true")  # an image without the folder came first
    server.start()
    shop = server.shop()
    server.await_line("^INFO: ")
    for sale, logins in enumerate((0, 1, 1)):
        if sale == 1:
            server.salon.webkassa.issue()
        shop.stdin.write("\n")
        shop.stdin.flush()
        assert shop.stdout.readline() == "sold\n", shop.stderr.read()
        assert server.salon.webkassa.authorizations == logins
    shop.communicate()
    assert server.salon.shop.holds_the_live_key


def test_stop_in_the_middle_of_a_consumers_login_is_obeyed_after_the_commit(server: Server) -> None:
    server.salon.shop.sql(
        "UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' - interval '1 h'"
    )
    server.start()
    server.await_line("^INFO: ")
    server.salon.webkassa.issue()
    server.salon.webkassa.script.append(slow(3))
    shop = server.shop()
    shop.stdin.write("\n")
    shop.stdin.flush()
    await_(lambda: server.salon.webkassa.authorizations)
    server.engine.run("stop", SERVER)
    assert server.engine.inspect(SERVER, "{{.State.ExitCode}}") == "0"
    assert shop.communicate()[0] == "sold\n"
    assert server.salon.shop.holds_the_live_key
    assert fingerprint(server.salon.shop.key) in server.log
