"""The order of an update: nothing is asked before the answer can be kept, nothing given is lost."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import re
import select
import signal
import socket
import threading
import time

import pytest
from conftest import Shop, await_
from webkassa_simulator import Handler, answer, cut, errors, hang, slow

UPDATERS = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'webkassa_key_updater'"


def fingerprint(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:8]


def test_good_run_says_one_line_and_stores_the_live_key(shop: Shop) -> None:
    before = shop.row()
    result = shop.finish(shop.start())
    assert (result.code, result.out, result.err.count("\n")) == (0, "", 1)
    assert shop.holds_the_live_key
    assert fingerprint(shop.key) in result.err
    assert fingerprint(shop.old_key) in result.err
    assert "30.0 h old" in result.err
    assert "127.0.0.1" in result.err  # the host is shown
    after = shop.row()
    changed = datetime.datetime.fromisoformat(after["updated_at"])
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    assert abs(changed - now) < datetime.timedelta(seconds=10)
    expected = before | {"api_key": shop.key, "updated_at": after["updated_at"]}
    assert after == expected
    assert shop.row("Other") == shop.foreign_row


# What happens before Authorize -----------------------------------------------------------------


def test_database_down_asks_webkassa_for_nothing(shop: Shop) -> None:
    shop.server.stop()
    try:
        result = shop.run()
    finally:
        shop.server.start()
    assert result.code == 75
    assert shop.webkassa.calls == []
    assert "the stored key is as it was" in result.err
    assert f"port={shop.server.port}" in result.err


def test_database_that_says_nothing_is_given_up_after_5_s(shop: Shop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        result = shop.run(POSTGRES_PORT=str(silent.getsockname()[1]))
        assert time.monotonic() - start < 9
    assert (result.code, shop.webkassa.calls) == (75, [])


TRIGGER = """
    CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
    CREATE {kind} TRIGGER t {when} ON api_keys {deferred} FOR EACH ROW EXECUTE FUNCTION f()
"""
RAISE = "RAISE 'no: %', NEW.api_key USING COLUMN = OLD.api_key, DETAIL = NEW.api_key;"
UNWRITABLE = {
    "no UPDATE": (
        "REVOKE UPDATE ON api_keys FROM keeper",
        "GRANT UPDATE ON public.api_keys TO keeper",
    ),
    "no SELECT": (
        "REVOKE SELECT ON api_keys FROM keeper",
        "GRANT SELECT ON public.api_keys TO keeper",
    ),
    "no schema of the setting": (
        "REVOKE USAGE ON SCHEMA public FROM public",
        "GRANT USAGE ON SCHEMA public TO keeper",
    ),
    "no schema": (
        "CREATE SCHEMA s; ALTER TABLE api_keys SET SCHEMA s; ALTER ROLE keeper SET search_path = s",
        "GRANT USAGE ON SCHEMA s TO keeper",
    ),
    "other schema": (
        "CREATE SCHEMA s; ALTER TABLE api_keys SET SCHEMA s",
        "API_KEYS_TABLE=s.api_keys",
    ),
    "other case": ('ALTER TABLE api_keys RENAME TO "Api_Keys"', "API_KEYS_TABLE=public.Api_Keys"),
    "short column": (
        "UPDATE api_keys SET api_key = 'x'; ALTER TABLE api_keys ALTER api_key TYPE varchar(31)",
        "22001",
    ),
    "no sequence": (
        "DELETE FROM api_keys WHERE service_name = 'Webkassa'; REVOKE USAGE ON api_keys_id_seq FROM keeper",
        "GRANT USAGE ON SEQUENCE public.api_keys_id_seq TO keeper",
    ),
    "no default": (
        "DELETE FROM api_keys WHERE service_name = 'Webkassa'; ALTER TABLE api_keys ALTER user_id SET NOT NULL",
        "user_id",
    ),
    "no key column": ("ALTER TABLE api_keys RENAME api_key TO key", "no column api_key"),
    "no service column": (
        "ALTER TABLE api_keys RENAME service_name TO s",
        "no column service_name",
    ),
    "two rows": (
        "ALTER TABLE api_keys DROP CONSTRAINT api_keys_service_name_key;"
        "UPDATE api_keys SET service_name = 'Webkassa'",
        "2 rows",
    ),
    "trigger raises": (
        TRIGGER.format(body=RAISE, kind="", when="BEFORE UPDATE", deferred=""),
        "P0001",
    ),
    "deferred trigger raises": (
        TRIGGER.format(
            body=RAISE, kind="CONSTRAINT", when="AFTER UPDATE", deferred="INITIALLY DEFERRED"
        ),
        "P0001",
    ),
    "trigger swallows": (
        TRIGGER.format(body="RETURN NULL;", kind="", when="BEFORE UPDATE", deferred=""),
        "swallows",
    ),
    "trigger changes": (
        TRIGGER.format(
            body="NEW.api_key := upper(NEW.api_key); RETURN NEW;",
            kind="",
            when="BEFORE UPDATE",
            deferred="",
        ),
        "changes",
    ),
    "row-level security": (
        "ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY p ON api_keys FOR SELECT USING (true)",
        "swallows",
    ),
    "read-only database": ("ALTER ROLE keeper SET default_transaction_read_only = on", "25006"),
    "view": (
        "ALTER TABLE api_keys RENAME TO t; CREATE VIEW api_keys AS SELECT DISTINCT * FROM t;"
        "GRANT ALL ON api_keys TO keeper",
        "refuses",
    ),
}


@pytest.fixture
def keeper(shop: Shop) -> Shop:
    """The shop through a role that has just the privileges which the README names."""
    shop.sql("DROP ROLE IF EXISTS keeper; CREATE ROLE keeper LOGIN PASSWORD 'keeper-canary-pass'")
    shop.sql("GRANT SELECT, INSERT, UPDATE ON api_keys TO keeper")
    shop.sql("GRANT USAGE ON SEQUENCE api_keys_id_seq TO keeper")
    shop.env |= {"POSTGRES_USER": "keeper", "POSTGRES_PASSWORD": "keeper-canary-pass"}
    yield shop
    shop.sql("DROP OWNED BY keeper; DROP ROLE keeper")


def test_the_minimal_grants_suffice(keeper: Shop) -> None:
    assert keeper.run().code == 0
    keeper.sql("DELETE FROM api_keys WHERE service_name = 'Webkassa'")
    assert keeper.run().code == 0
    assert keeper.holds_the_live_key


@pytest.mark.parametrize("case", UNWRITABLE)
@pytest.mark.parametrize("command", ["update", "check"])
def test_unwritable_table_asks_webkassa_for_nothing(keeper: Shop, case: str, command: str) -> None:
    statement, said = UNWRITABLE[case]
    keeper.sql(statement)
    result = keeper.run(command)
    assert result.code == 73
    assert said in result.out + result.err
    assert keeper.webkassa.authorizations == 0
    assert "keeper-canary-pass" not in result.out + result.err


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("53100", 73),
        ("53300", 75),
        ("40001", 75),
        ("57014", 75),
        ("08006", 75),
        ("XX000", 73),
        ("T0K3N", 73),
    ],
)
def test_error_of_the_database_is_passing_or_not(shop: Shop, state: str, code: int) -> None:
    """53100 is a full disk: it does not mend itself as a lack of connections does."""
    body = f"RAISE 'no' USING ERRCODE = '{state}';"
    shop.sql(TRIGGER.format(body=body, kind="", when="BEFORE UPDATE", deferred=""))
    result = shop.run()
    assert (result.code, shop.webkassa.calls) == (code, [])
    assert state in result.err


def test_standby_asks_webkassa_for_nothing(shop: Shop) -> None:
    """A server in recovery refuses the write; pg_basebackup makes a real one."""
    server = shop.server
    standby = server.folder / "standby"
    server._run("pg_basebackup", "-D", standby, "-c", "fast", "-X", "stream", "-R", "-d",
                f"host={server.folder} port={server.port} user=postgres passfile={passfile(shop)}")  # fmt: skip
    server._run("pg_ctl", "-w", "-D", standby, "-l", server.folder / "standby.log", "-o",
                f"-c max_connections=200 -c port={server.port} -c listen_addresses= -c unix_socket_directories={standby}", "start")  # fmt: skip
    try:
        result = shop.run(POSTGRES_HOST=str(standby))
    finally:
        server._run("pg_ctl", "-w", "-D", standby, "-m", "immediate", "stop")
    assert (result.code, shop.webkassa.calls) == (73, [])
    assert "read_only" in result.err


def passfile(shop: Shop) -> str:
    import os
    import pwd

    path = shop.server.folder / "pgpass"
    password = shop.env["POSTGRES_PASSWORD"].replace("\\", "\\\\").replace(":", "\\:")
    path.write_text(f"*:*:*:*:{password}\n", encoding="utf-8")
    path.chmod(0o600)
    if shop.server.user:
        os.chown(path, pwd.getpwnam(shop.server.user).pw_uid, -1)
    return str(path)


@pytest.mark.parametrize(
    "held",
    [
        "LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE",
        "SELECT * FROM api_keys FOR UPDATE",
        "SELECT pg_advisory_xact_lock({number})",
    ],
)
def test_lock_held_by_somebody_asks_webkassa_for_nothing(shop: Shop, held: str) -> None:
    digest = hashlib.sha256(b"webkassa_key_updater:Webkassa").digest()
    number = int.from_bytes(digest[:8], "big", signed=True)
    with contextlib.closing(shop.connect()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(held.format(number=number))
        start = time.monotonic()
        result = shop.run(WEBKASSA_DEADLINE="1s")
        assert 1 <= time.monotonic() - start < 5
    assert (result.code, shop.webkassa.calls) == (75, [])
    assert shop.is_untouched
    assert shop.run().code == 0


def test_lock_is_held_and_write_is_rehearsed_when_webkassa_is_asked(shop: Shop) -> None:
    shop.sql("CREATE SEQUENCE writes")
    shop.sql(
        TRIGGER.format(
            body="PERFORM nextval('writes'); RETURN NEW;",
            kind="",
            when="BEFORE UPDATE",
            deferred="",
        )
    )
    seen = []

    def look(token: str) -> None:
        locks = shop.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted")
        writes = shop.sql("SELECT last_value, is_called FROM writes")
        free = shop.sql("SELECT count(*) FROM (SELECT 1 FROM api_keys WHERE service_name = 'Webkassa' FOR UPDATE SKIP LOCKED) AS t")  # fmt: skip
        seen.append((locks, writes, free, shop.key))

    shop.webkassa.on_issue = look
    assert shop.run().code == 0
    assert seen == [([(1,)], [(1, True)], [(0,)], shop.old_key)]
    assert shop.sql("SELECT last_value FROM writes") == [(2,)]


def test_rehearsal_is_as_long_as_the_stored_key(shop: Shop) -> None:
    """Should the vendor change to longer keys, a column that is too short shows in time."""
    shop.sql("UPDATE api_keys SET api_key = repeat('k', 80)")
    shop.sql("ALTER TABLE api_keys ADD CHECK (length(api_key) NOT BETWEEN 33 AND 80) NOT VALID")
    assert shop.run().code == 73
    assert shop.webkassa.authorizations == 0


def test_servers_own_timeouts_do_not_break_the_lock(shop: Shop) -> None:
    for setting in (
        "idle_in_transaction_session_timeout",
        "transaction_timeout",
        "statement_timeout",
    ):
        shop.sql(f"ALTER DATABASE shop SET {setting} = '1s'")
    shop.webkassa.script.append(slow(2))
    result = shop.run()
    assert (result.code, shop.webkassa.authorizations) == (0, 1)
    assert "broke" not in result.err
    assert shop.holds_the_live_key


def test_lock_of_a_host_that_lost_its_power_is_bounded(shop: Shop) -> None:
    """The server itself ends a session that stays idle much longer than Authorize may take."""
    limits = []
    shop.webkassa.on_issue = lambda token: limits.extend(
        shop.sql("SELECT query FROM pg_stat_activity WHERE state = 'idle in transaction'")
    )
    shop.webkassa.script.append(slow(0.2))
    assert shop.run(WEBKASSA_DEADLINE="12s").code == 0
    assert limits == [("ROLLBACK TO SAVEPOINT rehearsal",)]  # all is prepared before the question
    import webkassa_key_updater

    assert "idle_in_transaction_session_timeout', %(idle)s" in webkassa_key_updater.SET_LOCAL


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_other_isolation_by_default_changes_nothing(shop: Shop, level: str) -> None:
    shop.sql(f"ALTER DATABASE shop SET default_transaction_isolation = '{level}'")
    runs = [shop.start() for _ in range(4)]
    assert [shop.finish(run).code for run in runs] == [0] * 4
    assert shop.holds_the_live_key


# Many at the same time ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [12, 20])
def test_many_if_needed_on_a_dead_key_make_one_authorize(shop: Shop, count: int) -> None:
    shop.webkassa.live = None
    runs = [shop.start("update", "--if-needed") for _ in range(count)]
    assert [shop.finish(run).code for run in runs] == [0] * count
    assert shop.webkassa.authorizations == 1
    assert shop.holds_the_live_key


@pytest.mark.parametrize("count", [8, 20])
def test_many_plain_updates_leave_the_live_key(shop: Shop, count: int) -> None:
    runs = [shop.start() for _ in range(count)]
    assert [shop.finish(run).code for run in runs] == [0] * count
    assert shop.holds_the_live_key


def test_who_waited_and_finds_a_new_key_asks_for_nothing(shop: Shop) -> None:
    shop.webkassa.script.append(slow(1.5))
    first = shop.start()
    await_(lambda: shop.webkassa.authorizations)
    second = shop.start()
    await_(lambda: len(shop.sql(UPDATERS)) == 2)
    results = [shop.finish(run) for run in (first, second)]
    assert [result.code for result in results] == [0, 0]
    assert "another updater" in results[1].err
    assert shop.webkassa.authorizations == 1


# If needed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "probe", "asks"),
    [
        ("1 hour", None, False),
        ("23 hours 59 minutes", None, False),
        ("24 hours", None, True),
        ("-1 hour", None, True),  # a time in the future tells nothing
        ("1 hour", errors(2), True),
        ("1 hour", errors(3), True),
        ("1 hour", errors(4), False),
        ("1 hour", errors(-1), False),
        ("1 hour", [], False),
    ],
)
def test_if_needed_asks_only_for_an_old_or_dead_key(
    shop: Shop, age: str, probe: object, asks: bool
) -> None:
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' - %s::interval", age)
    if probe is not None:
        shop.webkassa.probe_script.append(answer(200, probe))
    assert shop.run("update", "--if-needed").code == 0
    assert shop.webkassa.authorizations == asks
    assert shop.holds_the_live_key == asks


def test_if_needed_obeys_max_age_and_creates_a_missing_key(shop: Shop) -> None:
    assert shop.run("update", "--if-needed", WEBKASSA_MAX_AGE="31h").code == 0
    assert shop.webkassa.authorizations == 0
    shop.sql("DELETE FROM api_keys WHERE service_name = 'Webkassa'")
    assert shop.run("update", "--if-needed").code == 0
    assert shop.holds_the_live_key


# Validate ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [2, 3])
def test_new_key_that_the_probe_calls_dead_is_not_stored(shop: Shop, code: int) -> None:
    shop.webkassa.probe_script.append(answer(200, errors(code)))
    result = shop.run()
    assert (result.code, shop.webkassa.authorizations) == (76, 1)
    assert shop.is_untouched
    assert f"{fingerprint(shop.old_key)} is dead" in result.err


@pytest.mark.parametrize(
    "reply", [answer(401), answer(403), answer(500), answer(200, b"<html>"), cut()]
)
def test_new_key_that_cannot_be_probed_is_stored_with_a_note(shop: Shop, reply: object) -> None:
    shop.webkassa.probe_script.append(reply)
    result = shop.run()
    assert (result.code, shop.webkassa.probes) == (0, 1)
    assert "could not be probed" in result.err
    assert shop.holds_the_live_key


def test_probe_that_hangs_holds_the_key_back_for_5_s_at_most(shop: Shop) -> None:
    shop.webkassa.probe_script.append(hang())
    start = time.monotonic()
    assert shop.run(WEBKASSA_DEADLINE="60s").code == 0
    assert time.monotonic() - start < 7
    assert (shop.webkassa.probes, shop.holds_the_live_key) == (1, True)


def test_probe_can_be_switched_off(shop: Shop) -> None:
    assert shop.run(WEBKASSA_PROBE_URL="off").code == 0
    assert (shop.webkassa.probes, shop.holds_the_live_key) == (0, True)


def test_authorize_and_probe_share_one_connection(shop: Shop) -> None:
    """No connecting while consumers hold a dead key."""
    assert shop.run().code == 0
    assert len({call.client_port for call in shop.webkassa.calls}) == 1


# Store, whatever happens -------------------------------------------------------------------------


def test_connection_killed_after_the_answer_loses_no_key(shop: Shop) -> None:
    shop.webkassa.on_issue = shop.kill_connections
    result = shop.run()
    assert (result.code, shop.webkassa.authorizations) == (0, 1)
    assert shop.holds_the_live_key


def test_server_restarted_for_6_s_after_the_answer_loses_no_key(shop: Shop) -> None:
    def restart(token: str) -> None:
        shop.server.stop("immediate")
        threading.Timer(6, shop.server.start).start()

    shop.webkassa.on_issue = restart
    result = shop.run(WEBKASSA_DEADLINE="60s")
    assert (result.code, shop.webkassa.authorizations) == (0, 1)
    assert shop.holds_the_live_key


def test_write_refused_after_the_answer_is_tried_again(shop: Shop) -> None:
    """Somebody breaks the table after the rehearsal, and mends it before the deadline."""

    def break_for_a_while(token: str) -> None:
        shop.kill_connections()
        shop.sql("ALTER TABLE api_keys RENAME api_key TO k")
        threading.Timer(1.5, shop.sql, ["ALTER TABLE api_keys RENAME k TO api_key"]).start()

    shop.webkassa.on_issue = break_for_a_while
    assert shop.run().code == 0
    assert shop.webkassa.authorizations == 1
    assert shop.holds_the_live_key


def test_key_that_cannot_be_stored_until_the_deadline_is_reported_lost(shop: Shop) -> None:
    def break_for_good(token: str) -> None:
        shop.kill_connections()
        shop.sql("ALTER TABLE api_keys RENAME api_key TO k")

    shop.webkassa.on_issue = break_for_good
    start = time.monotonic()
    result = shop.run(WEBKASSA_DEADLINE="3s")
    assert 3 <= time.monotonic() - start < 8
    assert (result.code, shop.webkassa.authorizations) == (73, 1)
    assert f"{fingerprint(shop.webkassa.live)}, but it could not be stored" in result.err
    assert "run at once" in result.err


def test_key_of_somebody_who_logged_in_after_us_is_left_alone(shop: Shop) -> None:
    """Our connection and so our lock are lost after the probe; another updater comes in between."""

    def other_updater(handler: Handler, good: bytes) -> None:
        shop.kill_connections()
        shop.sql(
            "UPDATE api_keys SET api_key = %s WHERE service_name = 'Webkassa'",
            shop.webkassa.issue(),
        )
        handler.send(200, good)

    shop.webkassa.probe_script.append(other_updater)
    result = shop.run()
    assert result.code == 0
    assert "another updater logged in after us" in result.err
    assert shop.holds_the_live_key


def test_dead_key_of_somebody_who_logged_in_before_us_is_replaced(shop: Shop) -> None:
    """Two lost their connections; the one whose key is dead came to store it first."""

    def other_updater(token: str) -> None:
        shop.kill_connections()
        shop.sql("UPDATE api_keys SET api_key = 'earlier' WHERE service_name = 'Webkassa'")

    shop.webkassa.on_issue = other_updater
    assert shop.run().code == 0
    assert shop.holds_the_live_key


@pytest.mark.parametrize(
    "emptied",
    ["DELETE FROM api_keys WHERE id = 1", "UPDATE api_keys SET api_key = '' WHERE id = 1"],
)
def test_new_key_is_stored_where_the_row_was_emptied_meanwhile(shop: Shop, emptied: str) -> None:
    def empty(token: str) -> None:
        shop.kill_connections()
        shop.sql(emptied)

    shop.webkassa.on_issue = empty
    assert shop.run().code == 0
    assert shop.webkassa.authorizations == 1
    assert shop.holds_the_live_key


def test_row_deleted_during_the_wait_is_no_new_key(shop: Shop) -> None:
    digest = hashlib.sha256(b"webkassa_key_updater:Webkassa").digest()
    number = int.from_bytes(digest[:8], "big", signed=True)
    with contextlib.closing(shop.connect()) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (number,))
        process = shop.start()
        await_(lambda: shop.sql(UPDATERS + " AND wait_event = 'advisory'"))
        shop.sql("DELETE FROM api_keys WHERE id = 1")
    assert shop.finish(process).code == 0
    assert shop.webkassa.authorizations == 1
    assert shop.holds_the_live_key


def test_grants_taken_away_for_a_while_after_the_answer_lose_no_key(keeper: Shop) -> None:
    def revoke(token: str) -> None:
        keeper.kill_connections()
        keeper.sql("REVOKE UPDATE ON api_keys FROM keeper")
        threading.Timer(1.5, keeper.sql, ["GRANT UPDATE ON api_keys TO keeper"]).start()

    keeper.webkassa.on_issue = revoke
    assert keeper.run().code == 0
    assert keeper.webkassa.authorizations == 1
    assert keeper.holds_the_live_key


def test_waits_for_lock_and_row_share_one_deadline(shop: Shop) -> None:
    digest = hashlib.sha256(b"webkassa_key_updater:Webkassa").digest()
    number = int.from_bytes(digest[:8], "big", signed=True)
    with contextlib.closing(shop.connect()) as row, row.cursor() as row_cursor:
        row_cursor.execute("BEGIN; SELECT 1 FROM api_keys FOR UPDATE")
        with contextlib.closing(shop.connect()) as other, other.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (number,))
            start = time.monotonic()
            process = shop.start("update", WEBKASSA_DEADLINE="4s")
            await_(lambda: shop.sql(UPDATERS + " AND wait_event = 'advisory'"))
            threading.Event().wait(3)
        assert shop.finish(process).code == 75
        assert time.monotonic() - start < 6
    assert shop.webkassa.calls == []


def test_role_with_an_odd_name_is_quoted_in_the_grants(shop: Shop) -> None:
    shop.sql('DROP ROLE IF EXISTS "web-upd"; CREATE ROLE "web-upd" LOGIN PASSWORD \'odd-canary\'')
    result = shop.run(POSTGRES_USER="web-upd", POSTGRES_PASSWORD="odd-canary")
    assert result.code == 73
    for grant in re.findall(r"GRANT [^;]*;", result.err):
        shop.sql(grant)
    assert 'TO "web-upd";' in result.err
    assert shop.run(POSTGRES_USER="web-upd", POSTGRES_PASSWORD="odd-canary").code == 0
    shop.sql('DROP OWNED BY "web-upd"; DROP ROLE "web-upd"')


def test_commit_whose_confirmation_is_lost_is_not_made_twice(shop: Shop) -> None:
    """A proxy passes COMMIT on and hangs up; whether it was done shows only when looking again."""
    shop.sql("CREATE TABLE writes (api_key text)")
    shop.sql(
        TRIGGER.format(
            body="INSERT INTO writes VALUES (NEW.api_key); RETURN NEW;",
            kind="",
            when="BEFORE UPDATE",
            deferred="",
        )
    )
    with Proxy(shop.server.port) as proxy:
        result = shop.run(POSTGRES_PORT=str(proxy.port))
    assert (result.code, proxy.cuts) == (0, 1), result
    assert shop.holds_the_live_key
    assert shop.sql("SELECT api_key FROM writes") == [(shop.webkassa.live,)]


class Proxy:
    """Passes bytes on to PostgreSQL, and once hangs up after it has passed a COMMIT on."""

    def __init__(self, port: int) -> None:
        self.cuts = 0
        self.target = ("127.0.0.1", port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    def __enter__(self) -> Proxy:
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                threading.Thread(target=self.carry, args=(client,), daemon=True).start()

    def carry(self, client: socket.socket) -> None:
        server = socket.create_connection(self.target)
        with client, server, contextlib.suppress(OSError):
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)
                    if source is client and b"COMMIT\0" in data and not self.cuts:
                        server.recv(65536)  # it is done; nobody hears of it
                        self.cuts += 1
                        return


# Killed ------------------------------------------------------------------------------------------


def reach_lock(shop: Shop) -> None:
    await_(lambda: shop.sql(UPDATERS))


def reach_authorize(shop: Shop) -> None:
    await_(lambda: shop.webkassa.authorizations)


def reach_probe(shop: Shop) -> None:
    await_(lambda: shop.webkassa.probes)


@pytest.mark.parametrize("reach", [reach_lock, reach_authorize, reach_probe])
def test_sigkill_leaves_the_old_row_and_the_next_run_works_at_once(
    shop: Shop, reach: object
) -> None:
    shop.webkassa.script.append(hang() if reach is not reach_probe else slow(0))
    shop.webkassa.probe_script.append(hang())
    process = shop.start()
    reach(shop)
    process.kill()
    process.communicate()
    assert shop.is_untouched
    shop.webkassa.script.clear()
    shop.webkassa.probe_script.clear()
    start = time.monotonic()
    assert shop.run().code == 0
    assert time.monotonic() - start < 3
    assert shop.holds_the_live_key


def test_sigkill_at_any_moment_leaves_an_old_or_a_new_row(shop: Shop) -> None:
    for step in range(12):
        process = shop.start()
        with contextlib.suppress(Exception):
            process.wait(0.1 + step * 0.025)
        process.kill()
        process.communicate()
        assert shop.key in (shop.old_key, *shop.webkassa.issued)
    assert shop.run().code == 0
    assert shop.holds_the_live_key


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_between_question_and_commit_loses_no_key(shop: Shop, number: int) -> None:
    shop.webkassa.script.append(slow(1))
    process = shop.start()
    reach_authorize(shop)
    process.send_signal(number)
    assert shop.finish(process).code == 0
    assert shop.holds_the_live_key


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_waiting_for_the_next_try_ends_it_and_says_so(shop: Shop, number: int) -> None:
    shop.webkassa.script.append(answer(503, b"", {"Retry-After": "8"}))
    process = shop.start("-v")
    reach_authorize(shop)
    start = time.monotonic()
    process.send_signal(number)
    result = shop.finish(process)
    assert time.monotonic() - start < 3
    assert (result.code, shop.webkassa.authorizations) == (69, 1)
    assert f"{fingerprint(shop.old_key)} still works" in result.err


def test_ctrl_c_ends_the_wait_for_the_lock(shop: Shop) -> None:
    with contextlib.closing(shop.connect()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE")
        process = shop.start()
        await_(lambda: shop.sql(UPDATERS + " AND wait_event_type = 'Lock'"))
        process.send_signal(signal.SIGINT)
        assert shop.finish(process).code == -signal.SIGINT
    assert shop.webkassa.calls == []


# Notify ------------------------------------------------------------------------------------------


def test_consumers_are_notified_once_without_the_key(shop: Shop) -> None:
    with contextlib.closing(shop.connect()) as consumer, consumer.cursor() as cursor:
        cursor.execute("LISTEN webkassa_key_updated")
        assert shop.run("check").code == 0  # a rehearsal tells nobody
        assert shop.run().code == 0
        cursor.execute("SELECT 1")
        consumer.poll()
        heard = [(note.channel, note.payload) for note in consumer.notifies]
    assert heard == [("webkassa_key_updated", "Webkassa")]


def test_log_carries_no_time_or_line_breaks_that_a_journal_adds_itself(shop: Shop) -> None:
    result = shop.finish(shop.start())
    assert re.fullmatch(
        r"INFO: Webkassa: stored the new key \w{8} from \S+ (in place of|where) .*\n", result.err
    )
