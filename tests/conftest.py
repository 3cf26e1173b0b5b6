"""What the tests share: a real PostgreSQL, the simulator, and a shop that runs the program."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg2
import pytest
import webkassa_simulator
from postgres import PASSWORD as DATABASE_PASSWORD
from postgres import Postgres
from webkassa_simulator import Simulator

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "webkassa_key_updater.py"
sys.path.insert(0, str(ROOT))

CONSUMERS_TABLE = """
    CREATE TABLE api_keys (
        id serial PRIMARY KEY,
        service_name varchar(50) UNIQUE NOT NULL,
        api_key varchar(255) NOT NULL,
        user_id varchar(255),
        created_at timestamp NOT NULL,
        updated_at timestamp NOT NULL)
"""  # as the web application's SQLAlchemy model makes it: no server defaults


CLEAN_SLATE = """
    DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)' LOOP
            EXECUTE format('DROP SCHEMA %I CASCADE', name);
        END LOOP;
    END $$;
    CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO public;
    ALTER DATABASE shop RESET ALL
"""


def connect(server: Postgres, database: str) -> Any:
    connection = psycopg2.connect(
        host="127.0.0.1", port=server.port, dbname=database, user="postgres", password=DATABASE_PASSWORD,
        options="-c default_transaction_read_only=off",
    )  # fmt: skip
    connection.autocommit = True
    return connection


@dataclasses.dataclass
class Result:
    code: int
    out: str
    err: str


class Shop:
    """A database of its own with the consumers' table and a live key in it, and an account."""

    def __init__(self, server: Postgres, webkassa: Simulator, home: Path) -> None:
        self.server, self.webkassa, self.home = server, webkassa, home
        self.old_key = webkassa.issue()
        self.env = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "WEBKASSA_LOGIN": webkassa_simulator.LOGIN,
            "WEBKASSA_PASSWORD": webkassa_simulator.PASSWORD,
            "WEBKASSA_AUTH_URL": webkassa.url,
            "WEBKASSA_DEADLINE": "12s",
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(server.port),
            "POSTGRES_DB": "shop",
            "POSTGRES_USER": "postgres",
            "POSTGRES_PASSWORD": DATABASE_PASSWORD,
        }
        self.sql(CLEAN_SLATE)
        self.sql(CONSUMERS_TABLE)
        self.sql(
            "INSERT INTO api_keys (service_name, api_key, user_id, created_at, updated_at)"
            " VALUES ('Webkassa', %s, 'user-1', '2026-01-01', now() AT TIME ZONE 'UTC' - %s::interval),"
            "        ('Other', 'foreign', 'user-2', '2026-01-01', '2026-01-02')",
            self.old_key,
            "30 hours",
        )
        self.foreign_row = self.row("Other")

    def connect(self) -> Any:
        return connect(self.server, "shop")

    def sql(self, statement: str, *values: Any) -> list[Any]:
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def row(self, service: str = "Webkassa", table: str = "api_keys") -> dict[str, Any] | None:
        rows = self.sql(f"SELECT to_jsonb(t) FROM {table} t WHERE service_name = %s", service)
        assert len(rows) <= 1
        return rows[0][0] if rows else None

    @property
    def key(self) -> str | None:
        row = self.row()
        return row["api_key"] if row else None

    @property
    def is_untouched(self) -> bool:
        return self.key == self.old_key and self.row("Other") == self.foreign_row

    @property
    def holds_the_live_key(self) -> bool:
        return self.key == self.webkassa.live != self.old_key

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(PROGRAM), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, env=self.env | env, stdout=pipe, stderr=pipe, text=True, encoding="utf-8"
        )

    def finish(self, process: subprocess.Popen[str]) -> Result:
        out, err = process.communicate(timeout=60)
        return self.watched(Result(process.returncode, out, err))

    def run(self, *arguments: str, **env: str) -> Result:
        """Run the program as a user does, at -v, and look for secrets in what it says."""
        return self.finish(self.start(*(arguments or ("update",)), "-v", **env))

    def main(self, *arguments: str, **env: str) -> Result:
        """The same within this process, where hundreds of runs are wanted."""
        import webkassa_key_updater

        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.env | env, clear=True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = webkassa_key_updater.main([*arguments, "-v"])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, webkassa_key_updater.STOP_SIGNALS)
        return self.watched(Result(code, out.getvalue(), err.getvalue()))

    def watched(self, result: Result) -> Result:
        secrets = {webkassa_simulator.PASSWORD, webkassa_simulator.API_KEY, DATABASE_PASSWORD}
        for secret in {*secrets, *self.webkassa.issued}:
            assert secret not in result.out + result.err
        assert "Traceback" not in result.out + result.err
        assert "A bug of this program" not in result.err
        return result

    def kill_connections(self, *_: object) -> None:
        self.sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'webkassa_key_updater'"
        )


def await_(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait until `condition` holds, and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        threading.Event().wait(0.01)
    return value


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    server = Postgres("fsync=off")
    with contextlib.closing(connect(server, "postgres")) as admin, admin.cursor() as cursor:
        cursor.execute("CREATE DATABASE shop")
    yield server
    server.remove()


@pytest.fixture
def webkassa() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def shop(server: Postgres, webkassa: Simulator, tmp_path: Path) -> Shop:
    return Shop(server, webkassa, tmp_path)
