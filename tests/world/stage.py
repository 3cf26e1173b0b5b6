"""Run a command with a PostgreSQL, a Webkassa simulator and the settings for both; clean up after.

PYTHONPATH=tests python -m world.stage COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from world import webkassa_simulator
from world.postgres import PASSWORD, Postgres


@contextlib.contextmanager
def settings(python: str = sys.executable) -> Iterator[dict[str, str]]:
    """Give the environment of what plays on the stage, and runs the program by this `python`."""
    server = Postgres("fsync=off")
    try:
        with webkassa_simulator.Simulator() as webkassa:
            yield {
                "WEBKASSA_LOGIN": webkassa_simulator.LOGIN,
                "WEBKASSA_PASSWORD": webkassa_simulator.PASSWORD,
                "WEBKASSA_AUTH_URL": webkassa.url,
                "POSTGRES_HOST": "127.0.0.1",
                "POSTGRES_PORT": str(server.port),
                "POSTGRES_DB": "postgres",
                "POSTGRES_USER": "postgres",
                "POSTGRES_PASSWORD": PASSWORD,
                "XDG_STATE_HOME": str(server.folder / "state"),
                "STAGE_PYTHON": python,
                "STAGE_PSQL": str(server.bin / "psql"),
                "STAGE_POSTGRES_PID": str(server.pid),
            }
    finally:
        server.remove()


def main(command: list[str]) -> int:
    with settings() as environment:
        return subprocess.run(command, env=os.environ | environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
