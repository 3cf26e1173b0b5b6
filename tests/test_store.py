"""Once given, a key is stored, whatever happens."""

from __future__ import annotations

import contextlib
import os
import resource
import threading

import psycopg2
import pytest
from world.relay import CutAtCommit
from world.shop import Shop, fingerprint, trigger
from world.waiting import within
from world.webkassa_simulator import Handler, late


def test_connection_killed_after_the_answer_loses_no_key(shop: Shop) -> None:
    shop.lose_connection()
    shop.renew()


@pytest.mark.slow
def test_server_restarted_for_6_s_after_the_answer_loses_no_key(shop: Shop) -> None:
    def restart(token: str) -> None:
        shop.server.stop("immediate")
        threading.Timer(6, shop.server.start).start()

    shop.webkassa.script.append(late(8, reply=True))
    shop.webkassa.on_issue = restart
    result = shop.run(WEBKASSA_DEADLINE="10s")  # which has 2 s left then; the storing has 60
    assert (result.code, shop.webkassa.authorizations) == (0, 1)
    assert shop.holds_the_live_key


def test_key_is_stored_though_no_file_can_be_opened_any_more(shop: Shop) -> None:
    """A codec was imported after the answer, which failed, and the token was thrown away."""

    def forbid(token: str) -> None:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, 3))

    shop.webkassa.on_issue = forbid
    process = shop.start("update")
    shop.assert_renewed(process)


def test_column_for_upper_case_keys_gets_one(shop: Shop) -> None:
    """What is rehearsed is written like the key that is there."""
    shop.sql("UPDATE api_keys SET api_key = upper(api_key) WHERE id = 1")
    shop.sql("ALTER TABLE api_keys ADD CHECK (api_key = upper(api_key)) NOT VALID")
    shop.webkassa.new_token = lambda: os.urandom(16).hex().upper()
    shop.renew()


def test_sequence_with_one_value_for_the_rehearsal_and_one_for_the_store_suffices(
    keeper: Shop,
) -> None:
    """Others are not looked at: one may be used up, and in the hands of a migration."""
    keeper.sql("CREATE SEQUENCE used_up START 2 MAXVALUE 2; SELECT nextval('used_up')")
    keeper.sql("CREATE SEQUENCE audit MAXVALUE 2; GRANT USAGE ON SEQUENCE audit TO keeper;")
    keeper.sql(trigger("PERFORM nextval('audit'); RETURN NEW;"))
    with contextlib.closing(keeper.connect()) as migration, migration.cursor() as cursor:
        cursor.execute("BEGIN; ALTER SEQUENCE used_up RENAME TO old")
        keeper.renew()
    keeper.expect(73, 1)


def test_sequence_of_a_trigger_that_has_more_rights_is_not_looked_at(keeper: Shop) -> None:
    keeper.sql("CREATE SEQUENCE audit; REVOKE ALL ON SEQUENCE audit FROM public")
    keeper.sql(trigger("PERFORM nextval('audit'); RETURN NEW;"))
    keeper.sql("ALTER FUNCTION f() SECURITY DEFINER")
    keeper.renew()


def test_column_of_unique_keys(shop: Shop) -> None:
    """No two stand-ins are alike, nor is one like a key; a vendor may give a key again."""
    shop.sql("ALTER TABLE api_keys ADD UNIQUE (api_key)")
    shop.renew()
    shop.webkassa.new_token = lambda: shop.key
    shop.run()
    assert shop.holds_the_live_key


def test_short_column_is_told_of_before_a_longer_key_comes(shop: Shop) -> None:
    shop.sql("ALTER TABLE api_keys ALTER api_key TYPE varchar(32)")
    result = shop.run()
    assert result.code == 0
    assert "WARNING: Webkassa: The column api_key holds 32 characters: a longer" in result.err


def test_write_refused_after_the_answer_is_tried_again(shop: Shop) -> None:
    """Somebody breaks the table after the rehearsal, and mends it before the deadline."""

    def break_for_a_while() -> None:
        shop.sql("ALTER TABLE api_keys RENAME api_key TO k")
        threading.Timer(1.5, shop.sql, ["ALTER TABLE api_keys RENAME k TO api_key"]).start()

    shop.lose_connection(break_for_a_while)
    shop.renew()


@pytest.mark.slow
def test_key_that_cannot_be_stored_in_time_is_reported_lost(shop: Shop) -> None:
    """The time for it is 3 s here, not 60: that it is 60 shows in how long others wait."""
    shop.hurry(LoginState__STORING_TIME=3)
    shop.lose_connection(lambda: shop.sql("ALTER TABLE api_keys RENAME api_key TO k"))
    with within(40, least=3):
        result = shop.expect(73, 1)
    assert f"{fingerprint(shop.webkassa.live)}, but it could not be stored" in result.err
    assert f"{fingerprint(shop.old_key)} is dead" in result.err
    assert "un again now" in result.err


# Whose catalog has no indnkeyatts. Seen with 10.23: each update and check was 73, undefined_column
LIKE_POSTGRESQL_10 = """
    CREATE SCHEMA old; ALTER DATABASE shop SET search_path = old, pg_catalog, public;
    CREATE VIEW old.pg_index AS
        SELECT indexrelid, indrelid, indnatts, indisunique, indkey, indexprs, indpred FROM pg_index;
"""


@pytest.mark.parametrize(
    ("index", "waits"),
    [
        ("", False),
        ("CREATE UNIQUE INDEX ON api_keys (service_name) INCLUDE (api_key);", False),
        ("CREATE UNIQUE INDEX ON api_keys (api_key) WHERE id > 0;", False),
        ("CREATE UNIQUE INDEX ON api_keys (service_name, api_key);", True),
        ("CREATE UNIQUE INDEX ON api_keys (api_key);", True),
        (LIKE_POSTGRESQL_10 + "CREATE UNIQUE INDEX ON api_keys (api_key);", True),
    ],
)
def test_new_row_that_refers_to_ours_holds_no_key_back(shop: Shop, index: str, waits: bool) -> None:
    """Its lock on our row hinders an UPDATE of what a foreign key may refer to, until its transaction
    ends: so it waits then. Elsewhere nobody waits."""
    shop.sql(index + "CREATE TABLE receipts (key_id integer REFERENCES api_keys)")
    shop.hurry(LoginState__STORING_TIME=3)
    waited = []

    with shop.transaction("SET LOCAL lock_timeout = 100") as application:

        def insert(token: str) -> None:
            try:
                application.execute("INSERT INTO receipts VALUES (1)")
            except psycopg2.errors.LockNotAvailable:
                waited.append(token)

        shop.webkassa.on_issue = insert
        shop.renew()
    assert bool(waited) == waits


def test_key_of_somebody_who_logged_in_after_us_is_left_alone(shop: Shop) -> None:
    """Our connection and so our lock are lost after the probe; another updater comes in between."""

    def other_updater(handler: Handler, good: bytes) -> None:
        shop.kill_connections()
        shop.sql("UPDATE api_keys SET api_key = %s WHERE id = 1", shop.webkassa.issue())
        handler.send(200, good)

    shop.webkassa.probe_script.append(other_updater)
    result = shop.run()
    assert result.code == 0
    assert "Another updater logged in after us" in result.err
    assert shop.holds_the_live_key


def test_dead_key_of_somebody_who_logged_in_before_us_is_replaced(shop: Shop) -> None:
    """Two lost their connections; the one whose key is dead came to store it first."""
    theirs = "UPDATE api_keys SET api_key = 'earlier' WHERE id = 1"
    shop.lose_connection(lambda: shop.sql(theirs))
    shop.renew(logins=2)


@pytest.mark.parametrize("emptied", ["DELETE FROM api_keys", "UPDATE api_keys SET api_key = ''"])
def test_new_key_is_stored_where_the_row_was_emptied_meanwhile(shop: Shop, emptied: str) -> None:
    shop.lose_connection(lambda: shop.sql(f"{emptied} WHERE id = 1"))
    shop.renew()


def test_grants_taken_away_for_a_while_after_the_answer_lose_no_key(keeper: Shop) -> None:
    def revoke() -> None:
        keeper.sql("REVOKE UPDATE ON api_keys FROM keeper")
        threading.Timer(1.5, keeper.sql, ["GRANT UPDATE ON api_keys TO keeper"]).start()

    keeper.lose_connection(revoke)
    keeper.renew()


def test_commit_whose_confirmation_is_lost_is_not_made_twice(shop: Shop) -> None:
    """A proxy passes COMMIT on and hangs up; whether it was done shows only when looking again."""
    shop.sql("CREATE TABLE writes (api_key text)")
    shop.sql(trigger("INSERT INTO writes VALUES (NEW.api_key); RETURN NEW;"))
    with shop.relay() as relay:
        commit = CutAtCommit(relay)
        shop.renew()
    assert commit.cuts == 1
    assert shop.sql("SELECT api_key FROM writes") == [(shop.webkassa.live,)]
