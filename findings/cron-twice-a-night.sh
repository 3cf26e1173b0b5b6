#!/usr/bin/env bash
# croniter 7.0.0 and APScheduler 3.11.3 run a daily job twice in the night when the clock goes back
#
# Behaviour: with a time zone, "30 23 * * *" fires in both of the two hours that bear the same name.
# cronsim 2.8 fires once, as cron(8) of Debian promises (and croner, cron-parser and cron of npm).
# Seen: Asia/Almaty set its clock back on 29 February 2024, at midnight. In those three days
# croniter and APScheduler fire four times, cronsim three times; two of the four are one hour apart.
# Why it matters: a daily job of which "once a day" is taken for granted (a login that kills the key
# before it, an invoice, a report) runs twice in an hour. Give it a guard of its own ("not if the
# last run is younger than 12 h"), a schedule in UTC, or an hour that no clock repeats.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install croniter==7.0.0 APScheduler==3.11.3 cronsim==2.8 tzdata==2026.6
    "$PYTHON" - << 'PYTHON' || changed 'see above'
from datetime import datetime, timezone
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger
from croniter import croniter
from cronsim import CronSim

zone, job = ZoneInfo("Asia/Almaty"), "30 23 * * *"
start = datetime(2024, 2, 28, 12, tzinfo=zone)
end = datetime(2024, 3, 2, 0, tzinfo=zone)


def apscheduler():
    trigger, last = CronTrigger.from_crontab(job, timezone=zone), None
    while True:
        last = trigger.get_next_fire_time(last, last or start)
        yield last


def fired(moments):
    found = []
    for moment in moments:
        moment = moment.astimezone(timezone.utc)
        if moment >= end:
            return found
        found.append(moment)


seen = {
    "croniter": fired(croniter(job, start).all_next(datetime)),
    "APScheduler": fired(apscheduler()),
    "cronsim": fired(CronSim(job, start)),
}
for name, moments in seen.items():
    print(f"{name:12}", *(f"{moment.astimezone(zone):%d %H:%M %z}" for moment in moments), sep="  ")
raise SystemExit([len(moments) for moments in seen.values()] != [4, 4, 3])
PYTHON
    still_so 'croniter and APScheduler fire twice on 29 February 2024, cronsim once'
}

main "$@"
