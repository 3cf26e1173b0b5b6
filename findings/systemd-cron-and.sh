#!/usr/bin/env bash
# systemd-cron 1.15.19 of Debian 12 runs "0 5 1 * 1" on few of the days on which cron runs it
#
# Behaviour: where a line names days of the month and days of the week, cron runs it on days that
# match one of the two. systemd-cron, which takes cron's place and reads its crontabs, makes a timer
# of it that wants both: OnCalendar=Mon *-*-1. And a % in the command, for cron the end of the
# command and the beginning of its input, is just a %.
# Seen: of 61 runs in 2027 (counted with cronsim 2.8) 3 are left.
# Why it matters: `apt install systemd-cron` takes 58 of 61 runs away; no job fails, so no mail
# comes. Write two lines in the place of such a one, let a monitor look at the age of what the job
# makes, and look for jobs among the timers, not only in the crontabs.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install cronsim==2.8
    unpack systemd-cron=1.15.19-5
    # The same program, but with folders of ours in the place of /etc, /var and /run
    mkdir -p "$TMP/etc" "$TMP/run/systemd" "$TMP/units"
    echo '0 5 1 * 1 root echo 1%2' > "$TMP/etc/crontab"
    sed -E "s#'/(etc|var|run)/#'$TMP/\1/#g" \
        "$TMP/debian/lib/systemd/system-generators/systemd-crontab-generator" > "$TMP/generator"
    "$PYTHON" "$TMP/generator" "$TMP/units" > "$TMP/log" 2>&1 || cannot "$(tail -n 1 "$TMP/log")"

    local timer command
    timer=$(sed -n 's/^OnCalendar=//p' "$TMP"/units/cron-crontab-root-0.timer)
    command=$(cat "$TMP"/units/cron-crontab-root-0.sh)
    printf 'crontab: %s\n' "$(< "$TMP/etc/crontab")"
    printf 'timer:   OnCalendar=%s\ncommand: %s\n' "$timer" "$command"
    "$PYTHON" - << 'PYTHON'
import datetime as d

from cronsim import CronSim

end = d.datetime(2028, 1, 1)
cron = [day for day, _ in zip(CronSim("0 5 1 * 1", d.datetime(2027, 1, 1)), range(99)) if day < end]
both = [day for day in cron if day.day == 1 and day.weekday() == 0]
print(f"runs in 2027: cron {len(cron)}, the timer {len(both)}")
PYTHON
    [[ $timer == 'Mon *-*-1 5:0:00' && $command == *1%2* ]] || changed 'see above'
    still_so 'the timer wants both days, and the % stays'
}

main "$@"
