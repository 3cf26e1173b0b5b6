"""Run a command with a PostgreSQL, a Webkassa simulator and the settings for both; clean up after.

PYTHONPATH=tests python -m world.stage COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import os
import subprocess
import sys

from world import webkassa_simulator
from world.postgres import PASSWORD, Postgres


def main(command: list[str]) -> int:
    server = Postgres("fsync=off")
    try:
        with webkassa_simulator.Simulator() as webkassa:
            settings = {
                "WEBKASSA_LOGIN": webkassa_simulator.LOGIN,
                "WEBKASSA_PASSWORD": webkassa_simulator.PASSWORD,
                "WEBKASSA_AUTH_URL": webkassa.url,
                "POSTGRES_HOST": "127.0.0.1",
                "POSTGRES_PORT": str(server.port),
                "POSTGRES_DB": "postgres",
                "POSTGRES_USER": "postgres",
                "POSTGRES_PASSWORD": PASSWORD,
                "XDG_STATE_HOME": str(server.folder / "state"),
                "STAGE_PYTHON": sys.executable,
                "STAGE_PSQL": str(server.bin / "psql"),
                "STAGE_POSTGRES_PID": str(server.pid),
            }
            return subprocess.run(command, env=os.environ | settings, check=False).returncode
    finally:
        server.remove()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
