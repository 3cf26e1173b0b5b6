#!/usr/bin/env bash
# schedule 1.2.2: a daily job that raises runs again every second, and the jobs behind it never
#
# Behaviour: run_pending() goes through the jobs that are due, in the order of their times. Only a
# job that returns is put off to its next time; one that raises stays due. So a loop that catches
# and logs what run_pending() raises runs it again at each turn, and what was due after it never
# has its turn. The manual says that exceptions are not caught, but not this. APScheduler 3.11.3
# waits for the next day.
# Seen: two daily jobs are due, and the first raises. Ten turns of the loop: ten logins, no check.
# Why it matters: a refused login of once a day is sent 86,400 times, until the account is closed,
# and the check that was to send the alert stands behind it. Catch inside of the job, not around
# run_pending().

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install schedule==1.2.2 APScheduler==3.11.3
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import collections
import datetime
import logging
import time

import schedule
from apscheduler.schedulers.background import BackgroundScheduler

runs = collections.Counter()


def log_in():
    runs["login"] += 1
    raise OSError("refused")


def check():
    runs["check"] += 1


for job in (log_in, check):  # both are due
    schedule.every().day.do(job).next_run = datetime.datetime.now()
for _ in range(10):
    try:
        schedule.run_pending()
    except OSError:
        runs["caught"] += 1
    time.sleep(1)
by_schedule = [runs[name] for name in ("login", "check", "caught")]
print("schedule, ten turns: logins {}, checks {}, errors caught {}".format(*by_schedule))

runs.clear()
logging.disable()
utc = datetime.timezone.utc
scheduler = BackgroundScheduler(timezone=utc, job_defaults={"misfire_grace_time": None})
for job in (log_in, check):
    scheduler.add_job(job, "interval", days=1, next_run_time=datetime.datetime.now(utc))
scheduler.start()
time.sleep(5)
print(f"APScheduler, five seconds: logins {runs['login']}, checks {runs['check']}")
raise SystemExit(by_schedule != [10, 0, 10] or runs != {"login": 1, "check": 1})
PYTHON
    still_so 'the login runs at every turn, the check at none'
}

main "$@"
