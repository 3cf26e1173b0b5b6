"""The table is found by looking; every other column and row is left alone."""

from __future__ import annotations

import contextlib
import re

import pytest
from world.postgres import PASSWORD
from world.shop import Shop, connect, seconds_ago
from world.webkassa_simulator import ALIVE

ZONES = ["UTC", "Asia/Almaty", "America/New_York"]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("kind", ["timestamp", "timestamptz"])
@pytest.mark.parametrize("insert", [False, True])
def test_times_are_utc_in_any_session_zone(shop: Shop, zone: str, kind: str, insert: bool) -> None:
    shop.sql(f"ALTER DATABASE shop SET timezone = '{zone}'")
    for column in ("created_at", "updated_at"):
        shop.sql(
            f"ALTER TABLE api_keys ALTER {column} TYPE {kind} USING {column} AT TIME ZONE 'UTC'"
        )
    if insert:
        shop.sql("DELETE FROM api_keys WHERE service_name = 'Webkassa'")
    before = shop.row()
    assert shop.main().code == 0
    row = shop.row()
    assert abs(seconds_ago(row["updated_at"])) < 10
    if insert:
        assert abs(seconds_ago(row["created_at"])) < 10
    else:
        assert row["created_at"] == before["created_at"]
    status = shop.main("status")
    assert status.code == 0
    assert int(re.search(r"age=(\d+)s", status.out)[1]) < 10


@pytest.mark.parametrize("insert", [False, True])
def test_only_created_at(shop: Shop, insert: bool) -> None:
    shop.sql("ALTER TABLE api_keys DROP updated_at")
    if insert:
        shop.sql("DELETE FROM api_keys WHERE service_name = 'Webkassa'")
    assert shop.run().code == 0
    assert abs(seconds_ago(shop.row()["created_at"])) < 10
    assert shop.holds_the_live_key


def test_no_times_at_all(shop: Shop) -> None:
    shop.sql("ALTER TABLE api_keys DROP updated_at, DROP created_at")
    shop.renew()
    assert shop.run("status").code == 0  # its age was noted
    shop.sql("UPDATE api_keys SET api_key = 'of somebody else' WHERE service_name = 'Webkassa'")
    shop.webkassa.verdict = lambda token: ALIVE
    assert shop.run("status").code == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows", ["DELETE FROM api_keys WHERE service_name = 'Webkassa'", "SELECT 1"]
)
def test_without_a_unique_index_the_result_is_one_row(shop: Shop, rows: str) -> None:
    shop.sql("ALTER TABLE api_keys DROP CONSTRAINT api_keys_service_name_key")
    shop.sql(rows)
    runs = [shop.start() for _ in range(5)]
    assert [shop.finish(run).code for run in runs] == [0] * 5
    assert shop.holds_the_live_key  # `row` would have failed on two


@pytest.mark.parametrize("index", ["(service_name) WHERE api_key <> ''", "(lower(service_name))"])
def test_unique_index_of_another_kind_serves_as_well(shop: Shop, index: str) -> None:
    shop.sql("ALTER TABLE api_keys DROP CONSTRAINT api_keys_service_name_key")
    shop.sql(f"CREATE UNIQUE INDEX i ON api_keys {index}")
    shop.renew()


def test_index_with_the_name_of_a_foreign_thing_is_not_taken_for_one(shop: Shop) -> None:
    shop.sql('ALTER INDEX api_keys_service_name_key RENAME TO "Foreign name of a service"')
    shop.sql("ALTER DATABASE shop SET enable_seqscan = off")  # so that the plan names it
    shop.renew()


def test_existing_row_is_updated_whatever_other_columns_want(shop: Shop) -> None:
    shop.sql(
        "ALTER TABLE api_keys ALTER user_id SET NOT NULL, ADD note text NOT NULL DEFAULT 'ours'"
    )
    before = shop.row()
    assert shop.run().code == 0
    after = shop.row()
    assert {n for n in after if after[n] != before[n]} == {"api_key", "updated_at"}
    assert shop.row("Other")["api_key"] == "foreign"


def test_missing_table_is_created_with_the_row(shop: Shop) -> None:
    shop.sql("DROP TABLE api_keys")
    assert shop.run("check").code == 0
    assert shop.sql("SELECT to_regclass('api_keys')") == [(None,)]  # a rehearsal leaves nothing
    runs = [shop.start() for _ in range(3)]
    assert [shop.finish(run).code for run in runs] == [0] * 3
    assert shop.key == shop.webkassa.live
    columns = shop.sql(
        "SELECT column_name, data_type, is_nullable FROM information_schema.columns"
        " WHERE table_name = 'api_keys' ORDER BY ordinal_position"
    )
    assert columns == [
        ("id", "integer", "NO"),
        ("service_name", "character varying", "NO"),
        ("api_key", "character varying", "NO"),
        ("user_id", "character varying", "YES"),
        ("created_at", "timestamp with time zone", "NO"),
        ("updated_at", "timestamp with time zone", "NO"),
    ]
    shop.sql("INSERT INTO api_keys (service_name, api_key) VALUES ('Another', 'x')")  # defaults


def test_schema_qualified_table_with_odd_names(shop: Shop) -> None:
    shop.sql('CREATE SCHEMA "Кассы ""x"" %s"; ALTER TABLE api_keys SET SCHEMA "Кассы ""x"" %s"')
    shop.sql('ALTER TABLE "Кассы ""x"" %s".api_keys RENAME TO "select %(x)s; --"')
    assert shop.run(API_KEYS_TABLE='Кассы "x" %s.select %(x)s; --').code == 0
    rows = shop.sql('SELECT api_key FROM "Кассы ""x"" %s"."select %(x)s; --" ORDER BY service_name'.replace("%", "%%"), "x")  # fmt: skip
    assert rows == [("foreign",), (shop.webkassa.live,)]


def test_table_of_a_long_name_in_cyrillic_is_found_in_its_own_case_alone(shop: Shop) -> None:
    """PostgreSQL cuts a name to 63 bytes, and knows of the capitals in it those of ASCII alone, unless
    it is told to take the database's."""
    name = "Ключи_от_магазинов_и_касс_города_Алматы"
    shop.sql(f'ALTER TABLE api_keys RENAME TO "{name}"')
    shop.run_in_vain(73, "update", API_KEYS_TABLE=name.lower())
    assert shop.run(API_KEYS_TABLE=name).code == 0
    assert shop.row(table=f'"{name}"')["api_key"] == shop.webkassa.live


def test_odd_service_names(shop: Shop) -> None:
    for name in ("Касса № 1", "a'b\"c\\d %s {}"):
        assert shop.run(WEBKASSA_SERVICE_NAME=name).code == 0
        assert shop.row(name)["api_key"] == shop.webkassa.live


@pytest.mark.slow
def test_server_of_another_encoding_serves_as_well(shop: Shop) -> None:
    with contextlib.closing(connect(shop.server, "postgres")) as admin, admin.cursor() as cursor:
        cursor.execute("DROP DATABASE IF EXISTS old")
        cursor.execute(
            "CREATE DATABASE old ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc TEMPLATE template0"
        )
    old = {"POSTGRES_DB": "old", "WEBKASSA_SERVICE_NAME": "Касса"}
    assert shop.run(**old).code == 0
    with contextlib.closing(connect(shop.server, "old")) as admin, admin.cursor() as cursor:
        cursor.execute(r"INSERT INTO api_keys (service_name, api_key) VALUES (E'\312\340', 'x')")
    for command in ("check", "update"):  # a row of somebody else, in cp1251, is in nobody's way
        assert shop.run(command, **old).code == 0


# Through PgBouncer -------------------------------------------------------------------------------


@pytest.mark.slow
def test_pgbouncer_in_transaction_mode_one_winner_and_nothing_leaks(pooled: Shop) -> None:
    pooled.webkassa.live = None
    runs = [pooled.start("update", "--if-needed") for _ in range(12)]
    results = [pooled.finish(run) for run in runs]
    assert [result.code for result in results] == [0] * 12
    assert pooled.webkassa.authorizations == 1
    assert pooled.holds_the_live_key
    assert pooled.run("check").code == 0
    assert pooled.run("status").code == 0
    port = int(pooled.env["POSTGRES_PORT"])
    import psycopg2

    for _ in range(8):  # the next client finds the server connections as they were
        with contextlib.closing(
            psycopg2.connect(host="127.0.0.1", port=port, dbname="shop", user="postgres", password=PASSWORD)
        ) as client, client.cursor() as cursor:  # fmt: skip
            cursor.execute(
                "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
            )
            assert cursor.fetchone() == ("0", "0")
            cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            assert cursor.fetchone() == (0,)


def test_pgbouncers_idle_session_shows_no_key(pooled: Shop) -> None:
    """Its last statement is seen in pg_stat_activity by members of pg_monitor, for hours."""
    assert pooled.run("update").code == 0
    statements = pooled.sql("SELECT query FROM pg_stat_activity WHERE datname = 'shop'")
    assert len(statements) > 1
    assert not any(pooled.key in statement for (statement,) in statements)
