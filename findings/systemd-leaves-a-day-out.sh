#!/usr/bin/env bash
# systemd 252: a daily timer leaves a whole day out when spring leaves out its hour
#
# Behaviour: OnCalendar= that names a time which does not exist on one day (the clock jumps from 2
# to 3) has no elapse on that day at all; the zone may be the machine's or named in the calendar.
# cronsim 2.8, croniter 7.0.0 and APScheduler 3.11.3 do run it that day, as cron(8) promises.
# Seen with 252 of Debian 12: "02:30 Europe/Berlin" elapses on 28 and on 30 March 2026, not on 29.
# Why it matters: who moves a job from cron to a timer loses one run a year: 47 h between two
# renewals of a key that lives 24 h. No run failed, so no alert comes; by the timer's own reckoning
# nothing was missed. Take a time that no clock leaves out, or UTC; let a monitor look at the
# age of the key, not at failed runs.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    [[ $(type -P systemd-analyze) ]] || cannot 'no systemd-analyze'
    systemd-analyze --version | head -n 1
    local spec days
    for spec in "02:30 Europe/Berlin" "02:30"; do
        days=$(TZ=$([[ $spec == *Berlin ]] && echo UTC || echo Europe/Berlin) systemd-analyze \
            calendar --iterations=3 --base-time='2026-03-27 20:00:00 UTC' "$spec" |
            sed -nE 's/.*(Next elapse|Iter\. #.): (.*)/\2/p')
        printf '%s\n%s\n' "$spec" "$days"
        [[ $days == *2026-03-28*2026-03-30* && $days != *2026-03-29* ]] || changed 'see above'
    done
    still_so 'there is no run on 29 March 2026'
}

main "$@"
