"""Nothing is asked of Webkassa until its answer can be kept."""

from __future__ import annotations

import contextlib
import re
import socket

import psycopg2.errors
import pytest
from world import pgbouncer
from world.postgres import PASSWORD
from world.shop import CONSUMERS_TABLE, LOCK_WAITERS, UPDATERS, Shop, lock_number, trigger
from world.waiting import await_, within
from world.webkassa_simulator import slow


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


@pytest.mark.slow
def test_database_that_says_nothing_is_given_up(shop: Shop) -> None:
    """After 5 s and, since somebody listens, after 10 s more."""
    with socket.create_server(("127.0.0.1", 0)) as silent, within(60, least=14):
        shop.run_in_vain(75, POSTGRES_PORT=str(silent.getsockname()[1]))


RAISE = "RAISE 'no: %', NEW.api_key USING COLUMN = OLD.api_key, DETAIL = NEW.api_key;"
NO_ROW = "DELETE FROM api_keys WHERE service_name = 'Webkassa';"
TABLE_GRANTS = "GRANT SELECT, INSERT, UPDATE ON public.api_keys TO keeper"
# what is in the way of the write, and what is said of it
UNWRITABLE = {
    "no UPDATE": ("REVOKE UPDATE ON api_keys FROM keeper", TABLE_GRANTS),
    "no SELECT": ("REVOKE SELECT ON api_keys FROM keeper", TABLE_GRANTS),
    "no schema of the setting": ("REVOKE USAGE ON SCHEMA public FROM public",
                                 "GRANT USAGE ON SCHEMA public TO keeper"),
    "no schema": ("CREATE SCHEMA s; ALTER TABLE api_keys SET SCHEMA s;"
                  "ALTER ROLE keeper SET search_path = s", "GRANT USAGE ON SCHEMA s TO keeper"),
    "other schema": ("CREATE SCHEMA s; ALTER TABLE api_keys SET SCHEMA s", "API_KEYS_TABLE=s.api_keys"),
    "other case": ('ALTER TABLE api_keys RENAME TO "Api_Keys"', "API_KEYS_TABLE=public.Api_Keys"),
    "short column": ("UPDATE api_keys SET api_key = 'x';"
                     "ALTER TABLE api_keys ALTER api_key TYPE varchar(31)", "22001"),
    "no sequence": (NO_ROW + "REVOKE USAGE ON api_keys_id_seq FROM keeper",
                    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO keeper"),
    "no default": (NO_ROW + "ALTER TABLE api_keys ALTER user_id SET NOT NULL", "user_id"),
    "no key column": ("ALTER TABLE api_keys RENAME api_key TO key", "no column api_key"),
    "no service column": ("ALTER TABLE api_keys RENAME service_name TO s", "no column service_name"),
    "two rows": ("ALTER TABLE api_keys DROP CONSTRAINT api_keys_service_name_key;"
                 "UPDATE api_keys SET service_name = 'Webkassa'", "2 rows"),
    "trigger raises": (trigger(RAISE), "P0001"),
    "deferred trigger raises": (trigger(RAISE, "CONSTRAINT", "AFTER UPDATE", "INITIALLY DEFERRED"), "P0001"),
    "trigger swallows": (trigger("RETURN NULL;"), "trigger"),
    "trigger changes": (trigger("NEW.api_key := upper(NEW.api_key); RETURN NEW;"), "trigger"),
    "trigger empties": ("ALTER TABLE api_keys ALTER api_key DROP NOT NULL;"
                        + trigger("NEW.api_key := NULL; RETURN NEW;"), "drops or changes the new key"),
    "trigger divides by zero": (trigger("PERFORM 1 / 0; RETURN NEW;"),
                                "refuses the write: division_by_zero 22012"),
    "sequence without a further value": (
        "CREATE SEQUENCE audit START 2 MAXVALUE 2; GRANT USAGE ON SEQUENCE audit TO keeper;"
        + trigger("PERFORM nextval('audit'); RETURN NEW;"),
        "a sequence that the write uses has no value left (sequence_generator_limit_exceeded 2200H"),
    "row-level security": ("ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;"
                           "CREATE POLICY p ON api_keys FOR SELECT USING (true)",
                           "has a row 'Webkassa' that may be seen, but not locked"),
    "policy for what is written": (
        "ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY; CREATE POLICY r ON api_keys FOR SELECT USING (true);"
        "CREATE POLICY w ON api_keys FOR UPDATE USING (true) WITH CHECK (user_id = 'user-9')",
        "a trigger or row-level security refuses, drops or changes the new key (insufficient_privilege 42501"),
    "policy for new rows": (
        NO_ROW + "ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY; CREATE POLICY r ON api_keys FOR SELECT USING (true)",
        "row-level security refuses"),
    "row_security off": ("ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON api_keys USING (true);"
                         "ALTER ROLE keeper SET row_security = off", "row-level security refuses"),
    "row that cannot be seen": (
        "ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY p ON api_keys USING (service_name = 'Other') WITH CHECK (true)",
        "23505"),
    "materialized view": (
        "ALTER TABLE api_keys RENAME TO t; CREATE MATERIALIZED VIEW api_keys AS SELECT * FROM t;"
        "GRANT ALL ON api_keys TO keeper",
        "42809"),
    "sequence": (
        "ALTER TABLE api_keys RENAME TO t; CREATE SEQUENCE api_keys",
        "no column service_name"),
    "index": (
        "ALTER TABLE api_keys RENAME TO t; CREATE INDEX api_keys ON t (service_name, api_key)",
        "42809"),
    "type": (
        "ALTER TABLE api_keys RENAME TO t; CREATE TYPE api_keys AS ENUM ('x');"
        "GRANT CREATE ON SCHEMA public TO keeper",
        "42710"),
    "two tables on the search path": (
        "CREATE SCHEMA keeper; CREATE TABLE keeper.api_keys (LIKE public.api_keys INCLUDING ALL);"
        "INSERT INTO keeper.api_keys SELECT * FROM public.api_keys;"
        "GRANT ALL ON SCHEMA keeper TO keeper; GRANT ALL ON keeper.api_keys TO keeper",
        "public.api_keys has a row 'Webkassa'"),
    "row in another schema": (
        "CREATE SCHEMA app; CREATE TABLE app.api_keys AS SELECT * FROM public.api_keys;"
        "DELETE FROM public.api_keys WHERE service_name = 'Webkassa';"
        "GRANT USAGE ON SCHEMA app TO keeper; GRANT SELECT ON app.api_keys TO keeper",
        "app.api_keys has a row 'Webkassa'"),
    "view": ("ALTER TABLE api_keys RENAME TO t; CREATE VIEW api_keys AS SELECT DISTINCT * FROM t;"
             "GRANT ALL ON api_keys TO keeper", "refuses"),
}  # fmt: skip


POOLERS = {
    "pool_mode = statement": "allows no transactions",
    "disable_pqexec = 1": "allows no simple queries",
}


@pytest.mark.skipif(pgbouncer.PROGRAM is None, reason="PgBouncer is not installed")
@pytest.mark.parametrize("setting", POOLERS)
def test_pooler_that_never_serves_is_a_fault_of_the_settings(shop: Shop, setting: str) -> None:
    """It was called away: "when it is back", tried again for hours."""
    with pgbouncer.PgBouncer(shop.server, setting) as pooler:
        result = shop.run(POSTGRES_PORT=str(pooler.port))
    assert (result.code, shop.webkassa.calls) == (78, [])
    assert POOLERS[setting] in result.err
    assert "Connect to PostgreSQL itself." in result.err


FAR = {
    "table": "CREATE FOREIGN TABLE api_keys (service_name text, api_key text) {far}",
    "behind a view": "CREATE FOREIGN TABLE f (service_name text, api_key text) {far};"
    "CREATE VIEW api_keys AS SELECT * FROM f",
    "partition": "CREATE TABLE api_keys (service_name text, api_key text) PARTITION BY LIST (service_name);"
    "CREATE FOREIGN TABLE f PARTITION OF api_keys FOR VALUES IN ('Webkassa') {far}",
}


@pytest.mark.parametrize("way", FAR)
def test_foreign_table_asks_webkassa_for_nothing(shop: Shop, way: str) -> None:
    """Its far side has triggers and standbys of its own: four updates ended 0, 0, 75, 75."""
    options = f"host '127.0.0.1', port '{shop.server.port}', dbname 'shop'"
    shop.sql(
        "ALTER TABLE api_keys RENAME TO t; CREATE EXTENSION postgres_fdw;"
        f"CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({options});"
        "CREATE USER MAPPING FOR postgres SERVER far OPTIONS (user 'postgres', password %s);"
        + FAR[way].format(far="SERVER far OPTIONS (table_name 't')"),
        PASSWORD,
    )
    for command in ("check", "update"):
        result = shop.expect(73, 0, command)
        assert "is kept by another server" in result.out + result.err


SECOND_TABLE = "CREATE SCHEMA app; CREATE TABLE app.api_keys AS SELECT * FROM public.api_keys;"
OURS_MISSES = SECOND_TABLE + "DELETE FROM public.api_keys WHERE service_name = 'Webkassa';"
OTHER_TABLES = {
    "of a tenant": SECOND_TABLE + "GRANT USAGE ON SCHEMA app TO keeper;"
    "GRANT SELECT ON app.api_keys TO keeper",
    "that may not be read": OURS_MISSES + "GRANT USAGE ON SCHEMA app TO keeper",
    "with other columns": OURS_MISSES + "ALTER TABLE app.api_keys DROP service_name;"
    "GRANT USAGE ON SCHEMA app TO keeper; GRANT SELECT ON app.api_keys TO keeper",
}


@pytest.mark.parametrize("case", OTHER_TABLES)
def test_table_of_the_same_name_that_nobody_takes_for_ours_is_no_fault(
    keeper: Shop, case: str
) -> None:
    keeper.sql(OTHER_TABLES[case])
    keeper.renew()


@pytest.mark.parametrize("there", ["", "CREATE TABLE keys (LIKE api_keys INCLUDING ALL)"])
def test_misspelt_table_asks_webkassa_for_nothing(shop: Shop, there: str) -> None:
    """A second table was made and got the key; consumers were left with a dead one, and all said OK."""
    shop.sql(there or "SELECT 1")
    for command in ("check", "update"):
        result = shop.expect(73, 0, command, API_KEYS_TABLE="keys")
        assert "public.api_keys has a row 'Webkassa'" in result.out + result.err
    assert shop.sql("SELECT to_regclass('keys') IS NULL") == [(not there,)]
    assert shop.is_untouched
    warned = shop.run("check", API_KEYS_TABLE="public.keys")
    assert "WARN  table: public.api_keys has such a row, too" in warned.out
    assert shop.run(API_KEYS_TABLE="public.keys").code == 0  # it is what the advice says
    assert shop.row(table="keys")["api_key"] == shop.webkassa.live


def test_renamed_table_costs_no_token(shop: Shop) -> None:
    """With a token in hand it is better stored in a new table than lost."""
    shop.lose_connection(lambda: shop.sql("ALTER TABLE api_keys RENAME TO keys"))
    shop.renew(logins=None)


def test_locked_table_of_the_same_name_is_not_waited_for(shop: Shop) -> None:
    shop.sql(OURS_MISSES)
    with shop.transaction("LOCK TABLE app.api_keys IN ACCESS EXCLUSIVE MODE"):
        shop.renew()


def setting_at_the_write(shop: Shop, name: str) -> int:
    """Run an update, and return a setting of the server in milliseconds as the write finds it."""
    shop.sql("CREATE TABLE found (setting int)")
    body = f"INSERT INTO found SELECT setting FROM pg_settings WHERE name = '{name}'; RETURN NEW;"
    shop.sql(trigger(body=body.replace("SELECT setting", "SELECT setting::int")))
    assert shop.run().code == 0
    ((found,),) = shop.sql("SELECT setting FROM found")
    return int(found)


def test_the_minimal_grants_suffice(keeper: Shop) -> None:
    assert keeper.run().code == 0
    keeper.sql("DELETE FROM api_keys WHERE service_name = 'Webkassa'")
    keeper.renew(logins=2)


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
    [("53100", 73), ("53300", 75), ("40001", 75), ("57014", 75), ("08006", 75), ("XX000", 73), ("T0K3N", 73),
     ("25006", 75)],  # read-only, for some seconds after a failover
)  # fmt: skip
def test_error_of_the_database_is_passing_or_not(shop: Shop, state: str, code: int) -> None:
    """53100 is a full disk: it does not mend itself as a lack of connections does."""
    shop.sql(trigger(f"RAISE 'no' USING ERRCODE = '{state}';"))
    result = shop.run()
    assert (result.code, shop.webkassa.calls) == (code, [])
    assert state in result.err


@pytest.mark.slow
def test_standby_asks_webkassa_for_nothing(shop: Shop) -> None:
    """A server in recovery refuses the write; after a failover it may be the primary soon."""
    with shop.server.standby() as folder:
        result = shop.run(POSTGRES_HOST=str(folder))
        assert shop.run("check", POSTGRES_HOST=str(folder)).code == 75
    assert (result.code, shop.webkassa.authorizations) == (75, 0)
    assert "25006" in result.err


def test_read_only_role_asks_webkassa_for_nothing(keeper: Shop) -> None:
    keeper.sql("ALTER ROLE keeper SET default_transaction_read_only = on")
    result = keeper.run_in_vain(75)
    assert "25006" in result.err


HELD = {
    "table": "LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE",
    "row": "SELECT * FROM api_keys FOR UPDATE",
    "advisory": f"SELECT pg_advisory_xact_lock({lock_number()})",
}


@pytest.mark.parametrize("held", HELD)
def test_who_waits_for_a_lock_waits_as_long_as_a_healthy_holder_may_take(
    shop: Shop, held: str
) -> None:
    """That is the deadline and 87 s, 60 of them to store; here -34 of these, and a deadline of 10."""
    shop.hurry(LoginState__STORING_TIME=-34, LoginState__LAST_TRY=0.5)
    with shop.transaction(HELD[held]), within(40, least=3):
        shop.run_in_vain(75, WEBKASSA_DEADLINE="10s")


@pytest.mark.slow
@pytest.mark.parametrize("held", HELD)
def test_who_waits_holds_no_connection(shop: Shop, held: str) -> None:
    """Eight waiters filled a pool of four, and consumers waited 24 s for a SELECT."""
    with shop.transaction(HELD[held]) as cursor:
        process = shop.start("-v")
        await_(lambda: shop.has_said(process))
        for _ in range(3):
            await_(lambda: not shop.sql(UPDATERS))
            await_(lambda: shop.sql(UPDATERS))
        cursor.execute("ROLLBACK")
    shop.assert_renewed(process)


def test_row_that_was_put_anew_while_it_was_waited_for_is_not_called_hidden(shop: Shop) -> None:
    """Who waited for the old row, finds none; the new one was taken for one of row-level security."""
    with shop.transaction("DELETE FROM api_keys WHERE id = 1") as cursor:
        anew = "INSERT INTO api_keys SELECT 9, 'Webkassa', %s, 'user-1', now(), now()"
        cursor.execute(anew, (shop.old_key,))
        process = shop.start("-v")
        await_(lambda: shop.sql(LOCK_WAITERS))
        cursor.execute("COMMIT")
    shop.assert_renewed(process)


def test_table_that_the_application_makes_meanwhile_is_used(shop: Shop) -> None:
    """Both start together at the first deployment: this was 73, unique_violation in the catalog."""
    shop.sql("DROP TABLE api_keys")
    with shop.transaction(CONSUMERS_TABLE) as cursor:
        process = shop.start("-v")
        await_(lambda: shop.sql(LOCK_WAITERS))
        cursor.execute("COMMIT")
    assert "made the missing table" not in shop.assert_renewed(process).err


@pytest.mark.slow
def test_migration_is_waited_for_without_a_connection(shop: Shop) -> None:
    with shop.transaction("LOCK TABLE api_keys IN SHARE MODE") as cursor:
        process = shop.start()
        for _ in range(2):
            await_(lambda: shop.sql(UPDATERS))
            await_(lambda: not shop.sql(UPDATERS))
        cursor.execute("ROLLBACK")
    shop.assert_renewed(process)


def test_who_may_not_see_the_holder_of_a_lock_waits_all_the_same(keeper: Shop) -> None:
    keeper.sql("REVOKE SELECT ON pg_locks FROM public")
    try:
        with keeper.lock_held():
            process = keeper.start("update", "-v")
            await_(lambda: keeper.has_said(process))
        assert keeper.finish(process).code == 0
    finally:
        keeper.sql("GRANT SELECT ON pg_locks TO public")
    assert keeper.holds_the_live_key


def test_full_server_is_waited_out_by_who_waits(shop: Shop) -> None:
    """What refuses a connection meanwhile is no reason to give up."""
    with shop.relay() as relay:
        with shop.lock_held():
            process = shop.start("-v")
            await_(lambda: shop.has_said(process))
            relay.to_server = lambda link, data: link.cut()  # nobody is let in
            known = len(relay.links)
            await_(lambda: len(relay.links) > known + 3)  # two for each try: its address is known
            relay.to_server = lambda link, data: data
        shop.assert_renewed(process)


@pytest.mark.parametrize("held", HELD)
def test_check_names_the_holder_of_a_lock_and_changes_nothing(shop: Shop, held: str) -> None:
    """It waits for 10 s, here for 4; an update waits in the same way, but longer."""
    shop.hurry(CHECK_TIME=4)
    with shop.transaction("SET application_name = 'the other one'; " + HELD[held]) as cursor:
        with within(40, least=2):
            result = shop.run("check")
        pid = cursor.connection.info.backend_pid
    assert (result.code, shop.webkassa.authorizations) == (75, 0)
    assert re.search(rf"FAIL .*PID {pid} .*the other one.*, \d\d:\d\d:\d\d", result.out)
    assert shop.is_untouched


def test_lock_held_by_somebody_asks_webkassa_for_nothing(shop: Shop) -> None:
    """The wait is cut short to 3 s here: 10 for the deadline, 5 for the probe, and these."""
    shop.hurry(LoginState__STORING_TIME=-34)
    with shop.transaction(HELD["advisory"]) as cursor:
        with within(40, least=2.4):
            result = shop.run_in_vain(75, WEBKASSA_DEADLINE="10s")
        assert f"PID {cursor.connection.info.backend_pid}" in result.err
    assert shop.is_untouched


def test_lock_is_held_and_write_is_rehearsed_when_webkassa_is_asked(shop: Shop) -> None:
    shop.sql("CREATE SEQUENCE writes")
    shop.sql(trigger("PERFORM nextval('writes'); RETURN NEW;"))
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


MIGRATIONS = {
    "index": "CREATE INDEX i ON api_keys (user_id)",
    "trigger": trigger("RAISE 'too late';"),
    "lock": "LOCK TABLE api_keys IN SHARE MODE",
    "table of a trigger": "LOCK TABLE audit IN SHARE MODE",
}


@pytest.mark.parametrize("migration", MIGRATIONS)
def test_no_migration_comes_in_between_rehearsal_and_store(keeper: Shop, migration: str) -> None:
    """It waits until the key is stored; else the token could not be."""
    keeper.sql("CREATE TABLE audit (at timestamptz); GRANT INSERT ON audit TO keeper")
    if migration == "table of a trigger":
        keeper.sql(trigger("INSERT INTO audit VALUES (now()); RETURN NEW;"))
    states = []

    def migrate(token: str) -> None:
        with contextlib.closing(keeper.connect()) as other, other.cursor() as cursor:
            cursor.execute("SET lock_timeout = '200ms'; BEGIN")
            with contextlib.suppress(psycopg2.errors.LockNotAvailable):
                cursor.execute(MIGRATIONS[migration])
                states.append("came in")

    keeper.webkassa.on_issue = migrate
    result = keeper.run()
    assert (result.code, states) == (0, [])
    assert keeper.holds_the_live_key


def test_part_of_a_triggers_table_that_it_does_not_write_hinders_nobody(shop: Shop) -> None:
    """An index is made on last month's log."""
    shop.sql("""
        CREATE TABLE log (month int) PARTITION BY LIST (month);
        CREATE TABLE log_11 PARTITION OF log FOR VALUES IN (11);
        CREATE TABLE log_12 PARTITION OF log FOR VALUES IN (12)""")
    shop.sql(trigger("INSERT INTO log VALUES (12); RETURN NEW;"))
    with shop.transaction("LOCK TABLE log_11 IN SHARE MODE"):
        shop.renew()


def test_migration_that_comes_in_at_the_rehearsals_end_is_waited_for(shop: Shop) -> None:
    """It waits for the table that the trigger writes, and has it before us."""
    shop.sql("CREATE TABLE audit (at timestamptz); CREATE SEQUENCE writes")
    is_waiting = "EXISTS (SELECT FROM pg_locks WHERE relation = 'audit'::regclass AND NOT granted)"
    shop.sql(
        trigger(f"""
            INSERT INTO audit VALUES (now());
            WHILE nextval('writes') = 1 OR NOT {is_waiting} AND currval('writes') < 1000 LOOP
                PERFORM pg_sleep(0.01);
            END LOOP;
            RETURN NEW;""")
    )
    process = shop.start()
    with shop.transaction() as migration:
        await_(lambda: shop.sql("SELECT 1 FROM writes WHERE is_called"))
        migration.execute("LOCK TABLE audit IN SHARE MODE")
        shop.sql("SELECT setval('writes', 1000)")  # from now on the trigger does not wait
        await_(lambda: not shop.sql(UPDATERS))
        assert shop.webkassa.authorizations == 0
        migration.execute("COMMIT")
    shop.assert_renewed(process)


@pytest.mark.parametrize(
    "body",
    [
        "CREATE TABLE IF NOT EXISTS log_of_december (n int); INSERT INTO log_of_december VALUES (1);",
        "SET LOCAL search_path = app; INSERT INTO log VALUES (1);",
    ],
)
def test_what_a_trigger_writes_may_be_its_own_work_or_on_a_path_of_its_own(
    shop: Shop, body: str
) -> None:
    """The rehearsal's end takes both back: then there is no table of that name to lock."""
    shop.sql("CREATE SCHEMA app; CREATE TABLE app.log (n int);" + trigger(body + "RETURN NEW;"))
    shop.renew()


def test_what_a_trigger_writes_may_be_temporary_or_of_an_odd_name_or_forbidden_to_us(
    keeper: Shop,
) -> None:
    """The locks of such tables cannot be kept."""
    body = "CREATE TEMPORARY TABLE s (n int) ON COMMIT DROP; GRANT INSERT ON s TO keeper;"
    body += "INSERT INTO s VALUES (1);"
    for table in ('"100%{s}".t', "hidden.t", "forbidden"):
        keeper.sql(f"CREATE SCHEMA {table.removesuffix('.t')}; CREATE TABLE {table} (n int)")
        body += f"INSERT INTO {table} VALUES (1);"
    keeper.sql(trigger(body + "RETURN NEW;") + "; ALTER FUNCTION f() SECURITY DEFINER")
    keeper.sql("""
        GRANT TEMPORARY ON DATABASE shop TO keeper; GRANT USAGE ON SCHEMA "100%{s}" TO keeper;
        GRANT INSERT ON "100%{s}".t, hidden.t TO keeper""")
    keeper.renew()


def test_rights_on_the_columns_alone_suffice(keeper: Shop) -> None:
    keeper.sql("""
        REVOKE ALL ON api_keys FROM keeper;
        GRANT SELECT (service_name, api_key, created_at, updated_at),
            UPDATE (api_key, updated_at) ON api_keys TO keeper""")
    keeper.renew()


def test_rehearsal_is_as_long_as_the_stored_key(shop: Shop) -> None:
    """Should the vendor change to longer keys, a column that is too short shows in time."""
    shop.sql("UPDATE api_keys SET api_key = repeat('k', 80)")
    shop.sql("ALTER TABLE api_keys ADD CHECK (length(api_key) NOT BETWEEN 33 AND 80) NOT VALID")
    shop.expect(73, 0)


def test_servers_own_timeouts_do_not_break_the_lock(shop: Shop) -> None:
    for setting in ("idle_in_transaction_session", "transaction", "statement"):
        shop.sql(f"ALTER DATABASE shop SET {setting}_timeout = '1s'")
    shop.webkassa.script.append(slow(2))
    assert "broke" not in shop.renew().err


def test_write_that_takes_longer_than_the_store_may_asks_webkassa_for_nothing(shop: Shop) -> None:
    """A trigger that took 16 s passed the rehearsal, and then no store: each time a key was lost."""
    shop.hurry(KeyStore__COMMIT_TIME=4)
    shop.sql(trigger("PERFORM pg_sleep(3); RETURN NEW;"))
    shop.run_in_vain(75)


def test_lock_of_a_host_that_lost_its_power_is_bounded(shop: Shop) -> None:
    """The server itself ends a transaction of ours that falls silent; it is asked inside it."""
    shop.sql("ALTER DATABASE shop SET idle_in_transaction_session_timeout = '0'")
    assert 0 < setting_at_the_write(shop, "idle_in_transaction_session_timeout") <= 30_000


def test_nothing_is_left_to_prepare_when_webkassa_is_asked(shop: Shop) -> None:
    last = []
    shop.webkassa.on_issue = lambda token: last.extend(
        shop.sql("SELECT query FROM pg_stat_activity WHERE state = 'idle in transaction'")
    )
    assert shop.run().code == 0
    ((statement,),) = last
    assert "SAVEPOINT rehearsal" in statement  # nothing else comes between


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_other_isolation_by_default_changes_nothing(shop: Shop, level: str) -> None:
    shop.sql(f"ALTER DATABASE shop SET default_transaction_isolation = '{level}'")
    runs = [shop.start() for _ in range(4)]
    assert [shop.finish(run).code for run in runs] == [0] * 4
    assert shop.holds_the_live_key


THREADLESS = """
import threading

start, more = threading.Thread.start, {more}

def scarce(thread):
    global more
    more -= 1
    if more < 0:
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = scarce
"""


def test_a_machine_that_can_start_no_thread_is_tried_again_later(shop: Shop) -> None:
    shop.run_after(THREADLESS.format(more=0))
    result = shop.run_in_vain(75)
    assert "This machine cannot start another thread." in result.err
    assert "the stored key" in result.err.lower()
    assert "dead" not in result.err
    assert shop.is_untouched


def test_one_thread_does_all_that_has_a_bound(shop: Shop) -> None:
    """PostgreSQL, notes, login, probe: of many accounts, a thread for each took a tenth of the CPU."""
    shop.run_after(THREADLESS.format(more=1))
    assert shop.run().code == 0
    assert shop.holds_the_live_key
