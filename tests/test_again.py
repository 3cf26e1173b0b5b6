"""Step 7: the connection is gone with a token in hand, and nobody may trust what was true before."""

from __future__ import annotations

import contextlib
import re
import threading
from typing import Any

import pytest
from world import webkassa_simulator as vendor
from world.relay import CutAtCommit, Link
from world.shop import Shop, fingerprint, lock_number, trigger
from world.waiting import await_
from world.webkassa_simulator import ALIVE, DEAD, UNCLEAR, Behaviour, Handler, answer, errors, late

SET_KEY = "UPDATE api_keys SET api_key = %s WHERE service_name = 'Webkassa'"


@pytest.fixture(params=["probe on", "probe off", "probe unclear"])
def env(request: pytest.FixtureRequest, shop: Shop) -> dict[str, str]:
    if request.param == "probe unclear":
        shop.webkassa.verdict = lambda token: UNCLEAR
    return {"WEBKASSA_PROBE_URL": "off"} if request.param == "probe off" else {}


def test_later_login_of_ours_wins_over_the_key_that_another_stored(
    shop: Shop, env: dict[str, str]
) -> None:
    """Theirs is dead; "ours is dead" must not be taken on trust."""
    shop.lose_connection(lambda: shop.sql(SET_KEY, "of an earlier login"))
    shop.renew(logins=2, **env)


def test_login_of_another_that_was_killed_before_it_stored_is_noticed(
    shop: Shop, env: dict[str, str]
) -> None:
    """Ours is dead, theirs is lost, and the row is as it was."""
    shop.lose_connection(shop.webkassa.issue)
    shop.renew(logins=2, **env)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ACCESS EXCLUSIVE", "SHARE"])
def test_lost_key_is_told_with_who_held_the_table(shop: Shop, mode: str) -> None:
    """A migration that holds it; in SHARE mode the row is free, and the write alone waits."""
    shop.hurry(LoginState__STORING_TIME=3)
    with contextlib.ExitStack() as stack:
        migration = f"LOCK TABLE api_keys IN {mode} MODE"
        named = "SET LOCAL application_name = 'migration'; " + migration
        shop.lose_connection(lambda: stack.enter_context(shop.transaction(named)))
        result = shop.finish(shop.start("update"))
    assert result.code == 75
    assert re.search(r"held by PID \d+ \(postgres, migration, .* is lost", result.err)


@pytest.mark.parametrize("verdict", [DEAD, UNCLEAR])
@pytest.mark.parametrize("moment", ["login", "probe"])
def test_key_of_another_that_is_not_called_alive_is_no_reason_to_be_done(
    shop: Shop, verdict: Any, moment: str
) -> None:
    """Ours is dead, and so may be theirs: a third login was made, and its key is lost. The same
    where the probe has just called ours alive: it is in hand, and dies there."""

    def another_stores_a_key() -> None:
        shop.kill_connections()
        shop.sql(SET_KEY, "of another")
        shop.webkassa.issue()
        truth = shop.webkassa.truth
        shop.webkassa.verdict = lambda key: verdict if key == "of another" else truth(key)

    if moment == "login":
        shop.lose_connection(another_stores_a_key)
    else:
        act = lambda handler, good: (another_stores_a_key(), handler.send(200, good))  # noqa: E731
        shop.webkassa.probe_script.append(act)
    shop.renew(logins=2)


def test_row_that_somebody_restored_by_hand_is_no_newer_key(shop: Shop) -> None:
    shop.sql(SET_KEY, "the one before")
    shop.lose_connection(lambda: shop.sql(SET_KEY, shop.old_key))
    shop.renew(logins=2)


@pytest.mark.parametrize("row", ["as it was", "another key"])
@pytest.mark.parametrize(("reply", "code"), [(errors(1), 77), (errors(7), 76)])
def test_second_login_that_fails_never_ends_with_0(
    shop: Shop, row: str, reply: Any, code: int
) -> None:
    """The token in hand may live: it is stored in place of a key that cannot, and of no other."""
    shop.lose_connection(lambda: row == "another key" and shop.sql(SET_KEY, "of another updater"))
    shop.webkassa.verdict = lambda token: UNCLEAR
    shop.webkassa.script.extend([lambda handler, good: handler.send(200, good), answer(200, reply)])
    shop.expect(code, 2)
    assert shop.key == (shop.webkassa.live if row == "as it was" else "of another updater")


@pytest.mark.parametrize(("theirs", "kept"), [(DEAD, True), (UNCLEAR, False)])
def test_token_that_works_replaces_no_key_but_a_dead_one_after_a_second_login_failed(
    shop: Shop, theirs: Any, kept: bool
) -> None:
    shop.lose_connection(lambda: shop.sql(SET_KEY, "of another updater"))
    shop.webkassa.verdict = lambda token: theirs if token == "of another updater" else ALIVE
    shop.webkassa.script.extend(
        [lambda handler, good: handler.send(200, good), answer(200, errors(1))]
    )
    shop.expect(77, 2)
    assert shop.key == (shop.webkassa.live if kept else "of another updater")


def test_second_login_is_the_last_of_a_run(shop: Shop) -> None:
    """Whoever cuts every connection gets no third login out of us."""
    shop.hurry(LoginState__STORING_TIME=4)
    shop.webkassa.verdict = lambda token: UNCLEAR
    shop.webkassa.on_issue = shop.kill_connections
    result = shop.run()
    assert result.code != 0
    assert shop.webkassa.authorizations == 2


def test_lock_is_taken_again_after_a_reconnect(shop: Shop) -> None:
    """Another updater got it in between: we wait until it is done, and find its key."""
    other = shop.connect()
    waited = []

    def log_in_and_store() -> None:
        with contextlib.closing(other), other.cursor() as cursor:
            waited.append(await_(lambda: len(relay.links) > 2))
            cursor.execute(SET_KEY, (shop.webkassa.issue(),))

    def other_updater() -> None:
        other.cursor().execute("SELECT pg_advisory_lock(%s)", (lock_number(),))
        threading.Thread(target=log_in_and_store).start()

    shop.lose_connection(other_updater)
    with shop.relay() as relay:
        assert "nother updater" in shop.renew().err
    assert len(waited) == 1


def test_second_table_that_appears_after_the_login_costs_no_key(shop: Shop) -> None:
    """Before it, such a table is a fault; a token in hand is stored."""

    copy = "CREATE SCHEMA app; CREATE TABLE app.api_keys AS SELECT * FROM api_keys"
    shop.lose_connection(lambda: shop.sql(f"{copy}; DELETE FROM public.api_keys WHERE id = 1"))
    shop.renew()


# The same token twice ----------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [False, True])
def test_vendor_that_gives_the_same_token_again_gets_it_stored_again(shop: Shop, cut: bool) -> None:
    """That the row holds it already does not say that a commit went through: the time moves."""
    shop.webkassa.script.append(vendor.same_token())
    if cut:
        shop.lose_connection()
    before = shop.row()
    result = shop.run()
    assert (result.code, shop.key) == (0, shop.old_key)
    assert shop.key == shop.webkassa.live
    assert shop.row()["updated_at"] > before["updated_at"]


# An earlier login that got no answer -------------------------------------------------------------


def test_unanswered_login_that_kills_the_next_is_noticed_after_the_commit(shop: Shop) -> None:
    """It takes effect after our probe; so one more probe comes after the commit."""

    def answer_then_late_login(handler: Handler, good: bytes) -> None:
        shop.webkassa.issue()  # the first try's, at last
        handler.send(200, good)

    shop.webkassa.script.append(late(60, hang_up=True))
    shop.webkassa.probe_script.append(answer_then_late_login)
    assert "more than one try" not in shop.renew(logins=3).err  # each key was stored at once


def test_logins_of_ours_that_kill_one_another_come_to_an_end(shop: Shop) -> None:
    """Each takes effect once the next one's key has been probed."""

    def answer_then_late_login(handler: Handler, good: bytes) -> None:
        shop.webkassa.issue()
        handler.send(200, good)

    shop.webkassa.script.append(late(60, hang_up=True))
    shop.webkassa.probe_script.extend([answer_then_late_login] * 100)
    result = shop.expect(69, 4)
    assert "one login of ours killed the next" in result.err
    assert f"The stored key {fingerprint(shop.key)} is dead" in result.err


@pytest.mark.parametrize("verdict", ["unclear", "off"])
def test_unanswered_login_that_may_have_killed_the_next_is_no_success(
    shop: Shop, verdict: str
) -> None:
    """The probe cannot tell after the commit: the key is stored, and the retry makes certain."""

    def answer_then_late_login(handler: Handler, good: bytes) -> None:
        handler.send(200, good)
        shop.webkassa.issue()  # the first try's, at last

    shop.webkassa.script.append(late(60, hang_up=True))
    shop.webkassa.script.append(answer_then_late_login)
    shop.webkassa.verdict = lambda token: UNCLEAR
    env = {"WEBKASSA_PROBE_URL": "off"} if verdict == "off" else {}
    result = shop.expect(69, 2, **env)
    assert shop.key == shop.webkassa.issued[1]
    assert "tored the new key" in result.err
    assert "lost" not in result.err


def test_unanswered_login_may_yet_kill_the_key_of_another(shop: Shop) -> None:
    """Ours is dead and theirs alive; but a login of ours is on its way, and kills theirs."""

    def other_updater(handler: Handler, good: bytes) -> None:
        handler.send(200, good)
        shop.kill_connections()
        shop.sql(SET_KEY, shop.webkassa.issue())

    shop.webkassa.script.append(late(60, hang_up=True))
    shop.webkassa.script.append(other_updater)
    shop.renew(logins=3)


@pytest.mark.parametrize("is_unanswered", [True, False])
def test_key_that_was_killed_while_the_answer_to_its_commit_was_lost_is_replaced(
    shop: Shop, is_unanswered: bool
) -> None:
    """By a login of ours that takes effect late, or by a stranger: the row holds our token."""
    logins = 3 if is_unanswered else 2
    shop.webkassa.script += [late(60, hang_up=True)] * is_unanswered
    with shop.relay() as relay:
        cut = CutAtCommit(relay)

        def answer_and_kill(link: Link, data: bytes) -> bytes | None:
            passed = cut.answer(link, data)
            if "commit" in link.notes and cut.cuts == 1 and len(shop.webkassa.issued) == 2:
                shop.webkassa.issue()
            return passed

        relay.to_client = answer_and_kill
        shop.renew(logins=logins)
    assert cut.cuts == 1


def test_token_stored_after_the_last_login_failed_is_not_said_to_be_as_it_was(shop: Shop) -> None:
    """It was called dead, the next login is refused, and the answer to the commit is lost."""
    shop.webkassa.verdict = lambda token: errors(2)
    shop.webkassa.script.append(lambda handler, good: handler.send(200, good))
    shop.webkassa.script.append(answer(200, errors(1)))
    with shop.relay() as relay:
        cut = CutAtCommit(relay)
        relay.to_client = cut.answer
        result = shop.run()
    assert (result.code, cut.cuts) == (77, 1)
    assert shop.holds_the_live_key
    assert f"The stored key {fingerprint(shop.key)} may be dead." in result.err


def test_row_before_the_token_is_the_one_of_its_own_login(shop: Shop) -> None:
    """A second login was prepared and never sent: the key that another stored meanwhile lives,
    and a probe that calls every key alive must not have ours written over it."""
    probes: list[str] = []

    def verdict(token: str) -> Any:
        """At the second look at our own token (step 7) it is unclear, later alive."""
        probes.append(token)
        return UNCLEAR if probes.count(token) == 2 else ALIVE

    def lose_lock_again(link: Link, data: bytes) -> bytes:
        """At the rehearsal before the second login."""
        if b"SAVEPOINT rehearsal" in data and len(shop.webkassa.issued) == 2 and not others:
            others.append(shop.webkassa.issue())
            shop.kill_connections()
            shop.sql(SET_KEY, others[0])
        return data

    others: list[str] = []
    shop.lose_connection()
    shop.webkassa.verdict = verdict
    with shop.relay(to_server=lose_lock_again):
        result = shop.run()
    assert len(others) == 1
    assert shop.key == shop.webkassa.live
    assert (result.code, shop.webkassa.authorizations) == (0, 2)


def test_without_an_unanswered_login_one_probe_is_enough(shop: Shop) -> None:
    """429 says that nothing was done."""
    shop.webkassa.script.append(answer(429))
    assert shop.run().code == 0
    assert shop.webkassa.probes == 1


def test_unanswered_login_is_not_forgotten_by_the_next_try(shop: Shop) -> None:
    """The stored key works when it is looked at last; it may die yet, and that is said."""
    shop.webkassa.script.append(late(60, hang_up=True))
    shop.webkassa.script.extend([answer(429, b"", {"Retry-After": "60"})] * 9)
    result = shop.expect(69, 2, WEBKASSA_DEADLINE="10s")
    assert f"{fingerprint(shop.old_key)} still works" in result.err
    assert re.search("may (still )?(kill|end) it", result.err)


def test_stored_key_of_another_is_not_enough_after_an_unanswered_login(shop: Shop) -> None:
    """The late login may kill that one, too: so we log in under the lock all the same."""

    def lose_lock(handler: Handler, good: bytes) -> None:
        shop.kill_connections()
        shop.sql(SET_KEY, shop.webkassa.issue())
        handler.hang_up()

    shop.webkassa.script.append(lose_lock)
    shop.renew(logins=2)


def test_key_that_another_stored_while_our_login_was_put_off_is_enough(shop: Shop) -> None:
    """429 says that we were not logged in; then the connection was lost, and another came first."""

    def lose_lock(handler: Handler, good: bytes) -> None:
        shop.kill_connections()
        shop.sql(SET_KEY, shop.webkassa.issue())
        handler.send(429, b"")

    shop.webkassa.script.append(Behaviour(lose_lock, refuses=True))
    shop.renew()


# What PostgreSQL says, spoiled on its way ----------------------------------------------------------


def test_rollback_that_answers_a_commit_is_no_commit(shop: Shop) -> None:
    """PostgreSQL answers COMMIT of an aborted transaction so, without an error."""
    rolled_back = []

    def roll_back(link: Link, data: bytes) -> bytes:
        match = re.search(rb"COMMIT;?\s*\0$", data)
        if not match or rolled_back or data[:1] != b"Q" or b"pg_notify" not in data:
            return data
        rolled_back.append(link)
        text = data[5 : match.start()] + b"ROLLBACK\0"
        return b"Q" + (len(text) + 4).to_bytes(4, "big") + text

    with shop.relay(to_server=roll_back):
        shop.renew()
    assert len(rolled_back) == 1


def test_bug_of_ours_in_the_store_does_not_cost_the_token(shop: Shop) -> None:
    """What no Failure was thought of for: the catalog's JSON comes spoiled, once."""
    spoiled: list[Link] = []

    def spoil(link: Link, data: bytes) -> bytes:
        if relay.links.index(link) == 1 and b'{ "id"' in data:
            spoiled.append(link)
            return data.replace(b'{ "id"', b'{{ "id')
        return data

    shop.webkassa.on_issue = shop.kill_connections
    with shop.relay(to_client=spoil) as relay:
        shop.renew()
    assert len(spoiled) == 1


def test_write_that_is_changed_at_the_commit_alone_is_noticed(shop: Shop) -> None:
    """A deferred trigger restores the old key, but not in the rehearsal."""
    shop.sql("CREATE SEQUENCE writes")
    body = """
        IF pg_trigger_depth() = 1 AND nextval('writes') = 2 THEN
            UPDATE api_keys SET api_key = OLD.api_key WHERE id = NEW.id;
        END IF; RETURN NULL;"""
    shop.sql(
        trigger(body=body, kind="CONSTRAINT", when="AFTER UPDATE", deferred="INITIALLY DEFERRED")
    )
    shop.renew()


def test_other_search_path_after_a_lost_connection_leads_to_no_other_table(shop: Shop) -> None:
    """A session of PgBouncer's has the path that its last client set: the key went to a tenant's
    table, with exit code 0, and the row that consumers read held a dead one."""
    shop.sql("CREATE SCHEMA tenant; CREATE TABLE tenant.api_keys (LIKE api_keys INCLUDING ALL)")
    shop.lose_connection(lambda: shop.sql("ALTER DATABASE shop SET search_path = tenant, public"))
    shop.renew()
    assert shop.row(table="tenant.api_keys") is None
