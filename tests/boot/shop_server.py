"""The booted machine and what it works with: PostgreSQL, Webkassa and a receiver of alerts on the
host's loopback, which is the machine's too."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import machine as machines
import psycopg2
from machine import WHEELS, Machine, await_
from world import webkassa_simulator
from world.postgres import PASSWORD as DATABASE_PASSWORD
from world.postgres import Postgres
from world.webkassa_simulator import Simulator

ROOT = Path(__file__).parents[2]
SOURCE = "/root/webkassa-key-updater"
OPT = "/opt/webkassa-key-updater"
CURRENT = f"{OPT}/current"
CONFIG = "/etc/webkassa-key-updater"
SETTINGS = f"{CONFIG}/webkassa.env"
ADDRESSES = f"{CONFIG}/apprise.conf"
UNITS = "/etc/systemd/system"
UPDATE = "webkassa-key-update.service"
TIMER = "webkassa-key-update.timer"
BOOT = "webkassa-key-boot.service"
ALERT = "webkassa-key-alert.service"
# Sends a signal to install.sh just before the command that begins like this
INTERRUPTION = """
trap '[[ $BASH_COMMAND != "$AT"* ]] || kill -"$SIGNAL" $$' DEBUG
set -o functrace
"""
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS}
LOCKS = ("requirements.lock", "requirements-alerts.lock")
FILES = ("webkassa_key_updater.py", "webkassa_key_accounts.py", "webkassa_key_metrics.py", "pyproject.toml", ".env.example", "requirements.txt",
         "requirements-alerts.txt", *LOCKS, "install.sh", "uninstall.sh", "check-status.sh")  # fmt: skip

TABLE = """CREATE TABLE api_keys (id serial PRIMARY KEY, service_name varchar(50) UNIQUE NOT NULL,
    api_key varchar(255) NOT NULL, user_id varchar(255), created_at timestamp NOT NULL,
    updated_at timestamp NOT NULL)"""


class Receiver(ThreadingHTTPServer):
    """Keeps what Apprise's json:// addresses send."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), ReceiverHandler)


class ReceiverHandler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.alerts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Site:
    """The machine, and what it works with."""

    def __init__(
        self, machine: Machine, server: Postgres, webkassa: Simulator, receiver: Receiver
    ) -> None:
        self.machine, self.server, self.webkassa = machine, server, webkassa
        self.receiver = receiver
        self.run = machine.run
        self.offline = OFFLINE
        self.settings = {
            "WEBKASSA_LOGIN": webkassa_simulator.LOGIN,
            "WEBKASSA_PASSWORD": webkassa_simulator.PASSWORD,
            "WEBKASSA_AUTH_URL": webkassa.url,
            "WEBKASSA_DEADLINE": "20s",
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(server.port),
            "POSTGRES_DB": "postgres",
            "POSTGRES_USER": "postgres",
            "POSTGRES_PASSWORD": DATABASE_PASSWORD,
        }

    def sql(self, statement: str, *values: Any) -> list[Any]:
        connection = psycopg2.connect(host="127.0.0.1", port=self.server.port, dbname="postgres",
                                      user="postgres", password=DATABASE_PASSWORD)  # fmt: skip
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def reset(self, **settings: str) -> None:
        """An old key of ours that works, good settings, quick retries, no alerts so far."""
        key = self.webkassa.issue()
        self.webkassa.calls.clear()
        self.receiver.alerts.clear()
        self.sql("DROP TABLE IF EXISTS api_keys")
        self.sql(TABLE)
        self.sql("INSERT INTO api_keys (service_name, api_key, created_at, updated_at) VALUES"
                 " ('Webkassa', %s, now(), now() AT TIME ZONE 'UTC' - interval '24 h')", key)  # fmt: skip
        self.machine.write("/root/my.env", env_file(self.settings | settings))
        if self.installed:
            self.machine.write(SETTINGS, env_file(self.settings | settings))
            self.machine.drop_in(UPDATE, "[Unit]\nStartLimitBurst=3\n[Service]\nRestartSec=2\n")
            self.run("systemctl", "stop", UPDATE, BOOT, ALERT)
            self.run("systemctl", "reset-failed")
            self.run("sh", "-c", "rm -f /var/lib/webkassa-key-updater/*")

    def send_alerts_to(self, *ports: int) -> None:
        lines = [f"json://alert:canary-alert@127.0.0.1:{port}/\n" for port in ports]
        self.machine.write(ADDRESSES, "".join(lines))
        self.run("chown", "root:webkassa-key-updater", ADDRESSES)
        self.run("chmod", "640", ADDRESSES)

    @property
    def installed(self) -> bool:
        return (self.machine.root / CURRENT[1:]).is_symlink()

    @property
    def release(self) -> str:
        return (self.machine.root / CURRENT[1:]).readlink().name

    @property
    def releases(self) -> list[str]:
        return sorted(path.name for path in (self.machine.root / OPT[1:] / "releases").iterdir())

    @property
    def key(self) -> str | None:
        rows = self.sql("SELECT api_key FROM api_keys WHERE service_name = 'Webkassa'")
        return rows[0][0] if rows else None

    @property
    def holds_a_new_key(self) -> bool:
        return self.key == self.webkassa.live and self.webkassa.authorizations > 0

    def install(self, *options: str, source: str = SOURCE, **env: str) -> Any:
        return self.run(f"{source}/install.sh", *options, check=False, **(OFFLINE | env))

    def interrupt_install(self, before: str, signal: str) -> Any:
        """Install, and have a signal come just before the command that begins like this."""
        self.machine.write("/root/interruption.sh", INTERRUPTION)
        env = {"BASH_ENV": "/root/interruption.sh", "AT": before, "SIGNAL": signal}
        result = self.install(**env)
        self.run("rm", "/root/interruption.sh")
        return result

    def status(self) -> Any:
        return self.run("webkassa-key", "status", check=False)

    def paste(self, command: str) -> Any:
        """Run a command as a message printed it."""
        return self.run("bash", "-c", command, check=False)

    def key_of_age(self, hours: float) -> str:
        """Let the row hold a live key of this age."""
        key = self.webkassa.issue()
        self.sql("UPDATE api_keys SET api_key = %s, updated_at = now() AT TIME ZONE 'UTC'"
                 " - make_interval(secs => %s)", key, hours * 3600)  # fmt: skip
        return key

    def let_keys_age(self, hours: float) -> None:
        """Let all keys be as old as that, by their rows and by the program's notes."""
        self.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC'"
                 " - make_interval(secs => %s)", hours * 3600)  # fmt: skip
        for file in (self.machine.root / "var/lib/webkassa-key-updater").glob("key-*.json"):
            noted = json.loads(file.read_text())
            file.write_text(json.dumps(noted | {"moment": time.time() - hours * 3600}))

    def state(self) -> str:
        return self.machine.show(UPDATE, "SubState")

    def starts(self) -> int:
        """How often systemd has started it since `start`."""
        journal = self.machine.journal(f"UNIT={UPDATE}", f"--since=@{self.since}")
        return len(re.findall("^Starting ", journal, re.M))

    def start(self) -> Any:
        self.since = f"{time.time():.3f}"
        return self.run("systemctl", "start", UPDATE, check=False)

    def fail_for_good(self) -> None:
        """Start an update, wait until retries have ended and the alert has been dealt with."""
        self.start()
        await_(lambda: self.state() == "failed")
        await_(lambda: self.machine.show(ALERT, "ActiveState") in ("inactive", "failed"))
        self.run("sh", "-c", "while systemctl list-jobs | grep -q webkassa; do sleep .1; done")


def env_file(settings: dict[str, str]) -> str:
    return "".join(f"{name}='{quoted(value)}'\n" for name, value in settings.items())


def quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


@contextlib.contextmanager
def new_site(suite: str) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        server = Postgres("fsync=off")
        stack.callback(server.remove)
        webkassa = stack.enter_context(Simulator())
        receiver = Receiver()
        threading.Thread(target=receiver.serve_forever, args=(0.05,), daemon=True).start()
        stack.callback(receiver.server_close)
        stack.callback(receiver.shutdown)
        machine = Machine(suite, f"{server.folder}:/run/postgresql")
        stack.callback(machine.remove)
        machines.download_wheels(
            [ROOT / name for name in LOCKS], machine.python, machine.root / WHEELS[1:]
        )
        (machine.root / SOURCE[1:]).mkdir(mode=0o700)
        copy_source(machine)
        site = Site(machine, server, webkassa, receiver)
        site.reset()
        site.pristine = machine.tree()
        yield site


def copy_source(machine: Machine) -> None:
    """Put the project as it is now into the machine."""
    for file in FILES:
        shutil.copy(ROOT / file, machine.root / SOURCE[1:])
    for folder in ("systemd", "locale"):
        shutil.rmtree(machine.root / SOURCE[1:] / folder, ignore_errors=True)
        shutil.copytree(ROOT / folder, machine.root / SOURCE[1:] / folder)
