#!/usr/bin/env bash
# aiocron 2.1: the clock is set once, and from then on every run comes at a wrong time, for good
#
# Behaviour: it reads the time of day and the loop's monotonic clock once, at the start, and reckons
# all times from these two. A step of the clock is never seen: every later run is off by the sum of
# all steps since the start. The loop's clock stands still while a machine sleeps, so that a sleep
# counts as such a step. APScheduler 3.11.3 leaves out or delays the one run for which it sleeps
# (misfire_grace_time, documented), and is right from the next on.
# Seen: a job of each fifth second; the clock is set forward by 2 s (libfaketime, which leaves the
# monotonic clock alone). Before it runs come at seconds 0 or 5, after it all at 2 or 7. The same
# with APScheduler: at 0 or 5 again from the second run on.
# Why it matters: a board or a virtual machine without a clock of its own starts in the past, and
# NTP sets it after the program has started; a laptop or a paused machine sleeps for three hours.
# The job of 05:00 is from then on the job of 08:00, or of any hour, until the program is started
# again: no error, and once a day as before. Let a loop look at the time each minute, or start after
# time-sync.target and watch the hour of the last run.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install aiocron==2.1 cronsim==2.8 tzlocal==5.4.4 APScheduler==3.11.3
    unpack libfaketime=0.9.10-2.1
    cd "$TMP"
    echo +0 > offset
    local library
    library=$(echo "$TMP"/debian/usr/lib/*/faketime/libfaketimeMT.so.1)
    LD_PRELOAD=$library FAKETIME_TIMESTAMP_FILE=$TMP/offset FAKETIME_NO_CACHE=1 \
        FAKETIME_DONT_FAKE_MONOTONIC=1 "$PYTHON" - << 'PYTHON' || changed 'see above'
import asyncio
import collections
import datetime
import pathlib
import time

import aiocron
from apscheduler.schedulers.asyncio import AsyncIOScheduler

UTC = datetime.timezone.utc
runs = collections.defaultdict(list)


def run(name):
    runs[name].append(round(time.time() % 5, 1))


async def wait_for(number):
    """Wait until each has run so often since now; return when these runs began, modulo 5 s."""
    before = {name: len(runs[name]) for name in ("aiocron", "APScheduler")}
    while any(len(runs[name]) < before[name] + number for name in before):
        await asyncio.sleep(0.05)
    return {name: runs[name][before[name] : before[name] + number] for name in before}


async def main():
    scheduler = AsyncIOScheduler(timezone=UTC)
    scheduler.add_job(run, "cron", ["APScheduler"], second="*/5")
    scheduler.start()
    aiocron.crontab("*/5 * * * * *", func=lambda: run("aiocron"), tz=UTC)
    before = await wait_for(2)
    wall, monotonic = time.time(), time.monotonic()
    pathlib.Path("new").write_text("+2")
    pathlib.Path("new").rename("offset")
    assert 1.5 < time.time() - wall < 3, "the clock was not set"
    assert time.monotonic() - monotonic < 1, "the monotonic clock was set, too"
    after = await wait_for(4)
    for name in before:
        print(f"{name:11}  seconds modulo 5, before: {before[name]}, after: {after[name]}")
    late = [*before["aiocron"], *before["APScheduler"], *after["APScheduler"][1:]]
    late += [begun - 2 for begun in after["aiocron"]]
    return all(0 <= seconds < 2 for seconds in late)


raise SystemExit(not asyncio.run(asyncio.wait_for(main(), 120)))
PYTHON
    still_so 'every run after the step is off by it'
}

main "$@"
