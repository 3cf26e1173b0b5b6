"""A shop that runs the program: its database, its account, and what came of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg2
from psycopg2.extensions import get_wait_callback, quote_ident, set_wait_callback

from world import webkassa_simulator
from world.nursery import Process, quick_hash
from world.postgres import PASSWORD as DATABASE_PASSWORD
from world.postgres import Postgres
from world.relay import Hook, Relay
from world.waiting import unread
from world.webkassa_simulator import Simulator

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "webkassa_key_updater.py"

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
        FOR name IN SELECT nspname FROM pg_namespace
                    WHERE nspname !~ '^(pg_|information_schema|changes$)' LOOP
            EXECUTE format('DROP SCHEMA %I CASCADE', name);
        END LOOP;
    END $$;
    CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO public;
"""

# Counts whatever is made, altered, dropped or granted in a database
COUNT_CHANGES = """
    CREATE SCHEMA changes; CREATE SEQUENCE changes.made;
    CREATE FUNCTION changes.count() RETURNS event_trigger SECURITY DEFINER LANGUAGE plpgsql AS
        $$ BEGIN PERFORM nextval('changes.made'); END $$;
    CREATE EVENT TRIGGER count_changes ON ddl_command_end EXECUTE FUNCTION changes.count()
"""

FIRST_ROWS = """
    DELETE FROM api_keys; SELECT setval('api_keys_id_seq', 1, false);
    INSERT INTO api_keys (service_name, api_key, user_id, created_at, updated_at) VALUES
        ('Webkassa', %s, 'user-1', '2026-01-01', now() AT TIME ZONE 'UTC' - interval '30 hours'),
        ('Other', 'foreign', 'user-2', '2026-01-01', '2026-01-02')
"""

HURRIED = """
import os, sys
sys.path.insert(0, {root!r})
import webkassa_key_updater as program
for name, value in {seconds!r}.items():
    owner, _, name = name.rpartition("__")
    owner = getattr(program, owner) if owner else program
    assert hasattr(owner, name)
    setattr(owner, name, value)
os._exit(program.main())
"""

RUN = """
import sys
sys.argv[0] = {program!r}
sys.path.insert(0, {root!r})
import webkassa_key_updater
webkassa_key_updater.run_as_program()
"""

# What the program has of a person's environment though it asks for none of it
INHERITED = re.compile(r"LANG|LANGUAGE|LC_\w+|TZ|PYTHON\w+")

UPDATERS = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'webkassa_key_updater'"
LOCK_WAITERS = UPDATERS + " AND wait_event_type = 'Lock'"


def lock_number(service: str = "Webkassa", table: str = "public.api_keys") -> int:
    """Return the number of the advisory lock of a service's row."""
    digest = hashlib.sha256(f"webkassa_key_updater:{table}:{service}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def fingerprint(token: str | None) -> str:
    assert token is not None
    return hashlib.sha256(token.encode()).hexdigest()[:8]


def seconds_ago(text: str) -> float:
    """How long ago a naive (UTC) or aware time of the database was."""
    # Python 3.10 reads three or six digits of a second; PostgreSQL leaves zeros at the end out
    text = re.sub(r"(?<=\.)\d+", lambda digits: digits[0].ljust(6, "0"), text)
    time = datetime.datetime.fromisoformat(text)
    aware = time if time.tzinfo else time.replace(tzinfo=datetime.timezone.utc)
    return (datetime.datetime.now(datetime.timezone.utc) - aware).total_seconds()


def trigger(body: str, kind: str = "", when: str = "BEFORE UPDATE", deferred: str = "") -> str:
    """Return the SQL that puts a trigger with this body on the table."""
    return f"""
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
        CREATE {kind} TRIGGER t {when} ON api_keys {deferred} FOR EACH ROW EXECUTE FUNCTION f()
    """


def connect(server: Postgres, database: str) -> Any:
    connection = psycopg2.connect(
        host="127.0.0.1", port=server.port, dbname=database, user="postgres", password=DATABASE_PASSWORD,
        options="-c default_transaction_read_only=off",
    )  # fmt: skip
    connection.autocommit = True
    return connection


def make_database(server: Postgres) -> Any:
    """Return a connection to an empty database, which any test may spoil."""
    with contextlib.closing(connect(server, "postgres")) as admin:
        execute(admin, "DROP DATABASE IF EXISTS shop WITH (FORCE)", ())
        execute(admin, "CREATE DATABASE shop", ())
    connection = connect(server, "shop")
    execute(connection, COUNT_CHANGES, ())
    return connection


def quote(value: str) -> str:
    """Quote a value for a settings file."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def execute(connection: Any, statement: str, values: tuple[Any, ...]) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


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
        self.options: tuple[str, ...] = ()  # of every run
        self.python = sys.executable  # see quick_python
        self.program = [str(PROGRAM)]  # Python's arguments
        self.started: list[Process | subprocess.Popen[str]] = []
        self.env = {
            **{name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)},
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "WEBKASSA_LOGIN": webkassa_simulator.LOGIN,
            "WEBKASSA_PASSWORD": webkassa_simulator.PASSWORD,
            "WEBKASSA_AUTH_URL": webkassa.url,
            "WEBKASSA_DEADLINE": "12s",
            "WEBKASSA_LANG": "en",  # whatever the developer's is
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(server.port),
            "POSTGRES_DB": "shop",
            "POSTGRES_USER": "postgres",
            "POSTGRES_PASSWORD": DATABASE_PASSWORD,
        }
        self.connection = self.first_connection = server.kept or make_database(server)
        if self.sql("SELECT last_value FROM changes.made") != server.made:
            self.sql(CLEAN_SLATE + CONSUMERS_TABLE)
            server.made = self.sql("SELECT last_value FROM changes.made")
        self.sql(FIRST_ROWS, self.old_key)
        self.foreign_row = self.row("Other")

    def connect(self) -> Any:
        return connect(self.server, "shop")

    def sql(self, statement: str, *values: Any) -> list[Any]:
        if threading.current_thread() is not threading.main_thread():  # one may have to wait
            with contextlib.closing(self.connect()) as connection:
                return execute(connection, statement, values)
        if self.connection.closed:
            self.connection = self.connect()
        try:
            return execute(self.connection, statement, values)
        except psycopg2.Error:
            if not self.connection.closed:
                raise
            self.connection = self.connect()  # the server was started anew
            return execute(self.connection, statement, values)

    def row(self, service: str = "Webkassa", table: str = "api_keys") -> Any:
        """Return the row as a dictionary, or None."""
        rows = self.sql(f"SELECT to_jsonb(t) FROM {table} t WHERE service_name = %s", service)
        assert len(rows) <= 1
        return rows[0][0] if rows else None

    @property
    def key(self) -> str | None:
        row = self.row()
        return row["api_key"] if row else None

    @property
    def is_untouched(self) -> bool:
        return bool(self.key == self.old_key and self.row("Other") == self.foreign_row)

    @property
    def holds_the_live_key(self) -> bool:
        return self.key == self.webkassa.live != self.old_key

    def let_key_age(self, interval: str) -> None:
        """Let the key be so much older, by its row and by the program's notes."""
        self.sql(
            "UPDATE api_keys SET updated_at = updated_at - %s::interval WHERE id = 1", interval
        )
        ((seconds,),) = self.sql("SELECT extract(epoch FROM %s::interval)::float8", interval)
        for file in self.home.rglob("key-*.json"):
            note = json.loads(file.read_text())
            file.write_text(json.dumps(note | {"moment": note["moment"] - seconds}))

    @contextlib.contextmanager
    def lock_held(self, *of: str) -> Iterator[None]:
        """Hold the lock of an updater, or of what `lock_number` is given, meanwhile."""
        with contextlib.closing(self.connect()) as other, other.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (lock_number(*of),))
            yield

    def hurry(self, **seconds: float) -> None:
        """Have the program take other times than its own, as `LoginState__STORING_TIME=3`."""
        self.program = ["-c", HURRIED.format(root=str(ROOT), seconds=seconds)]

    def run_after(self, lines: str) -> None:
        """Have the program run after these lines of Python, on whatever they have made of the machine."""
        self.program = ["-c", f"{lines}\n{RUN.format(program=str(PROGRAM), root=str(ROOT))}"]

    def age(self, interval: str) -> None:
        """Let the stored key be so old."""
        statement = (
            "UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' - %s::interval WHERE id = 1"
        )
        self.sql(statement, interval)

    @contextlib.contextmanager
    def transaction(self, statement: str = "") -> Iterator[Any]:
        """Let somebody else have begun a transaction with this statement; give its cursor."""
        with contextlib.closing(self.connect()) as other, other.cursor() as cursor:
            cursor.execute("BEGIN; " + statement)
            yield cursor

    @contextlib.contextmanager
    def role(self, name: str, options: str = "", password: str = "role-canary") -> Iterator[str]:
        """Have the program be a role of its own, without a right; give its quoted name."""
        quoted = quote_ident(name, self.connection)
        self.sql(f"DROP ROLE IF EXISTS {quoted}")
        self.sql(f"CREATE ROLE {quoted} LOGIN {options} PASSWORD %s", password)
        self.env |= {"POSTGRES_USER": name, "POSTGRES_PASSWORD": password}
        try:
            yield quoted
        finally:
            self.sql(f"DROP OWNED BY {quoted} CASCADE; DROP ROLE {quoted}")

    @contextlib.contextmanager
    def relay(self, **hooks: Hook) -> Iterator[Relay]:
        """Lead the program's way to PostgreSQL through a relay."""
        with Relay(("127.0.0.1", self.server.port), **hooks) as relay:
            self.env["POSTGRES_PORT"] = str(relay.port)
            yield relay
        self.env["POSTGRES_PORT"] = str(self.server.port)

    def move_settings(self, path: Path) -> Path:
        """Take our settings out of the environment and into a file."""
        ours = ("WEBKASSA_", "POSTGRES_")
        names = [n for n in self.env if n.startswith(ours) and n != "WEBKASSA_LANG"]
        path.write_text("".join(f"{name}={quote(self.env.pop(name))}\n" for name in names), "utf-8")
        return path

    def lose_connection(self, then: Callable[[], object] = lambda: None) -> None:
        """At the first login, kill the program's connections, so that its lock is free; then do
        what somebody may do now."""
        seen: list[str] = []

        def act(token: str) -> None:
            seen.append(token)
            if len(seen) == 1:
                self.kill_connections()
                then()

        self.webkassa.on_issue = act

    def command(self, *arguments: str) -> list[str]:
        return [self.python, *self.program, *arguments]

    def start(self, *arguments: str, **env: str) -> Process:
        return self.start_with({}, *arguments, **env)

    def start_with(self, how: dict[str, Any], *arguments: str, **env: str) -> Process:
        """Start the program; `how` is what a Process may be given besides."""
        process = Process(self.command(*arguments, *self.options), self.env | env, **how)
        self.started.append(process)
        return process

    @staticmethod
    def has_said(*processes: Process) -> bool:
        """Say whether each has written to its standard error: with -v, a run that waits for a lock
        says so, and nothing before it."""
        return all(unread(process.stderr) for process in processes)

    def finish(self, process: Process | subprocess.Popen[str]) -> Result:
        out, err = process.communicate(timeout=60)
        return self.watched(Result(process.wait(), out, err))

    def run(self, *arguments: str, **env: str) -> Result:
        """Run the program as a user does, at -v, and look for secrets in what it says."""
        return self.finish(self.start(*(arguments or ("update",)), "-v", **env))

    def expect(self, code: int, logins: int, *arguments: str, **env: str) -> Result:
        """Run the program: it must end with this code, after so many logins, all in all."""
        result = self.run(*arguments, **env)
        assert (result.code, self.webkassa.authorizations) == (code, logins), result
        return result

    def renew(self, *arguments: str, logins: int | None = 1, code: int = 0, **env: str) -> Result:
        """Run the program, and see that it renews the key, as `assert_renewed` says."""
        return self.assert_renewed(self.run(*arguments, **env), logins, code)

    def assert_renewed(
        self, run: Process | Result, logins: int | None = 1, code: int = 0
    ) -> Result:
        """A run has ended, so; the row holds the key that lives since so many logins, all in all;
        None is any number."""
        result = run if isinstance(run, Result) else self.finish(run)
        made = self.webkassa.authorizations
        assert (result.code, made) == (code, made if logins is None else logins), result
        assert self.holds_the_live_key, result
        return result

    def run_in_vain(self, code: int, *arguments: str, **env: str) -> Result:
        """Run the program: it must end with this code, and ask nothing of Webkassa."""
        result = self.run(*arguments, **env)
        assert (result.code, self.webkassa.calls) == (code, []), result
        return result

    def main(self, *arguments: str, **env: str) -> Result:
        """The same within this process, where hundreds of runs are wanted."""
        import webkassa_key_updater

        out, err = io.StringIO(), io.StringIO()
        signals, callback = signal.pthread_sigmask(signal.SIG_BLOCK, ()), get_wait_callback()
        try:
            with (
                mock.patch.dict(os.environ, self.env | env, clear=True),
                mock.patch("hashlib.pbkdf2_hmac", quick_hash),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                code = webkassa_key_updater.main([*arguments, "-v", *self.options])
        finally:  # what ends with a process of its own must not stay in this one
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            set_wait_callback(callback)
        return self.watched(Result(code, out.getvalue(), err.getvalue()))

    def watched(self, result: Result) -> Result:
        secrets = {webkassa_simulator.PASSWORD, webkassa_simulator.API_KEY, DATABASE_PASSWORD}
        for secret in {*secrets, *self.webkassa.issued}:
            assert secret not in result.out + result.err
        assert "Traceback" not in result.out + result.err
        assert "A bug of this program" not in result.err, result.err
        return result

    def close(self) -> None:
        """Leave nothing behind that could disturb the next test, whatever became of this one. Its
        connection goes on to the next, as if it were new: making one is half of a shop's price."""
        for process in self.started:
            process.kill()
        try:
            execute(self.connection, "DISCARD ALL", ())
            execute(self.connection, "ALTER DATABASE shop RESET ALL", ())
            self.server.kept = self.connection if self.connection is self.first_connection else None
        except psycopg2.Error:
            self.server.kept = None
        if not self.server.kept:
            self.connection.close()

    def kill_connections(self, *_: object) -> None:
        self.sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'webkassa_key_updater'"
        )
