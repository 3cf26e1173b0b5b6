"""Runs inside of the machine with a clock of its own (test_9_clock.py), as a unit: a shop's database,
a Webkassa, and a clock that is set. Prints what is seen, each time as JSON, in a line."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from typing import Any

import psycopg2
from world.postgres import PASSWORD, Postgres
from world.webkassa_simulator import Simulator

TIMER, UPDATE = "webkassa-key-update.timer", "webkassa-key-update.service"
NET_TIMER, NET = "webkassa-key-net.timer", "webkassa-key-net.service"
SETTINGS = "/etc/webkassa-key-updater/webkassa.env"


def run(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(*command, "->", done.returncode, done.stdout, flush=True)
    return done.stdout


def await_(condition: Any, seconds: float) -> bool:
    """Wait by the clock that nobody sets."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def has_ended(service: str) -> bool:
    show = ("systemctl", "show", "--property=SubState", "--value", service)
    return subprocess.check_output(show, text=True) == "dead\n"


class Seen(dict[str, Any]):
    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        print(json.dumps({name: value}), flush=True)


def main(real: int) -> None:
    seen = Seen()
    server = Postgres("fsync=off", "shared_buffers=16MB")
    connection = psycopg2.connect(host="127.0.0.1", port=server.port, dbname="postgres",
                                  user="postgres", password=PASSWORD)  # fmt: skip
    connection.autocommit = True
    with contextlib.closing(connection.cursor()) as cursor, Simulator() as webkassa:
        with open(SETTINGS) as file:
            lines = [
                line for line in file if not line.startswith(("WEBKASSA_AUTH_URL", "POSTGRES_PORT"))
            ]
        lines += [f"WEBKASSA_AUTH_URL={webkassa.url}\n", f"POSTGRES_PORT={server.port}\n"]
        with open(SETTINGS, "w") as file:
            file.writelines(lines)
        run("date", "--set", f"@{real}")  # the network sets it back
        cursor.execute(
            "CREATE TABLE api_keys (service_name text UNIQUE, api_key text, updated_at timestamptz)"
        )
        cursor.execute(
            "INSERT INTO api_keys VALUES ('Webkassa', %s, now() - interval '25 h 1 min')",
            (webkassa.issue(),),
        )
        seen["status"] = run("webkassa-key", "status")
        run("systemctl", "start", NET_TIMER)
        renewed = await_(lambda: webkassa.authorizations == 1 and has_ended(NET), 120)
        seen["renewed by the net"] = renewed
        # What the status printed, and then the next night
        for command in seen["status"].split("-> ")[1:]:
            if command.startswith("sudo systemctl "):
                run("bash", "-c", command.splitlines()[0])
        seen["status then"] = run("webkassa-key", "status")
        comes = run(
            "env",
            "TZ=UTC",
            "systemctl",
            "show",
            "--property=NextElapseUSecRealtime",
            "--value",
            TIMER,
        )
        moment = int(run("date", "--date", comes.strip(), "+%s"))
        seen["hours to the next run"] = (moment - time.time()) / 3600
        run("date", "--set", f"@{moment - 5}")
        renewed = await_(lambda: webkassa.authorizations == 2 and has_ended(UPDATE), 120)
        seen["renewed by the night"] = renewed
        seen["status in the morning"] = run("webkassa-key", "status")
    server.remove()


if __name__ == "__main__":
    main(int(sys.argv[1]))
