"""Whatever keeps the daily timer from its work: the net below it, and what the status says.

The machine has the host's clock, which a test must not set: tests/boot/test_9_clock.py does that on a
machine with a clock of its own.
"""

from __future__ import annotations

import re
import time

import pytest
from machine import await_
from shop_server import ALERT, TIMER, UNITS, UPDATE, Site

pytestmark = pytest.mark.usefixtures("installed")

NET, NET_TIMER = "webkassa-key-net.service", "webkassa-key-net.timer"
NET_SOON = "[Timer]\nOnActiveSec=\nOnActiveSec=1s\nOnUnitInactiveSec=1h\nAccuracySec=1ms\n"
FAR = "[Timer]\nOnCalendar=\nOnCalendar=2099-01-01 05:00:00 Asia/Almaty\n"


def test_the_net_asks_webkassa_for_nothing_while_the_key_is_young(site: Site) -> None:
    site.reset()  # a key of 24 hours
    site.run("systemctl", "start", NET)
    assert site.webkassa.calls == []
    site.webkassa.issue()  # not even where it is dead: that is the work of others
    site.run("systemctl", "start", NET)
    assert site.webkassa.calls == []


def test_the_net_renews_what_the_daily_timer_left(site: Site) -> None:
    """By its own timer, shortly after that one was started."""
    site.reset()
    site.run("systemctl", "stop", TIMER)
    site.key_of_age(25.1)
    site.machine.drop_in(NET_TIMER, NET_SOON)
    site.run("systemctl", "restart", NET_TIMER)
    await_(lambda: site.holds_a_new_key)
    assert site.webkassa.authorizations == 1
    await_(lambda: site.machine.show(NET, "ActiveState") == "inactive")
    assert site.machine.show(NET_TIMER, "NextElapseUSecMonotonic") not in ("", "infinity")
    assert site.machine.show(NET_TIMER, "SubState") == "waiting"
    site.machine.no_drop_in(NET_TIMER)
    site.run("systemctl", "restart", TIMER, NET_TIMER)
    assert site.status().returncode == 0


def test_a_net_that_fails_every_hour_is_alerted_of_once(site: Site) -> None:
    site.reset(WEBKASSA_PASSWORD="canary-wrong")
    site.key_of_age(25.1)
    site.send_alerts_to(site.receiver.server_port)
    for _ in range(3):
        site.run("systemctl", "start", NET, check=False)
        await_(lambda: site.machine.show(NET, "ActiveState") == "failed")
        await_(lambda: site.machine.show(ALERT, "ActiveState") in ("inactive", "failed"))
        site.run("sh", "-c", "while systemctl list-jobs | grep -q webkassa; do sleep .1; done")
    assert len(site.receiver.alerts) == 1
    assert "net run: failing since " in site.receiver.alerts[0]["message"]
    assert site.webkassa.authorizations == 1  # the refusal is remembered
    site.reset()
    assert site.run("webkassa-key", "update").returncode == 0


def test_a_next_run_that_is_far_away_is_critical_and_no_installation(site: Site) -> None:
    site.reset()
    site.key_of_age(1)
    assert site.run("webkassa-key", "update").returncode == 0
    release = site.release
    site.machine.drop_in(TIMER, FAR)
    site.run("systemctl", "restart", TIMER)
    status = site.status()
    assert status.returncode == 2
    assert re.search("^CRITICAL +timer +its next run is as late as .*2099", status.stdout, re.M)
    result = site.install("--no-run")
    assert result.returncode == 1, result.stdout
    assert "A timer would not start its run in time" in result.stdout
    assert site.release == release
    site.machine.no_drop_in(TIMER)
    command = re.search(f"-> (sudo systemctl restart {TIMER}; .+)", status.stdout)[1]
    assert site.paste(command).returncode == 0
    assert site.status().returncode == 0


def test_a_service_that_was_masked_when_its_time_came_is_told_with_the_cure(site: Site) -> None:
    """The timer has failed for good, and is "enabled" as before."""
    site.reset()
    assert site.start().returncode == 0
    unit = f"{UNITS}/{UPDATE}"
    soon = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() + 15))
    site.machine.drop_in(TIMER, f"[Timer]\nOnCalendar=\nOnCalendar={soon}\nRandomizedDelaySec=0\n")
    site.run("systemctl", "restart", TIMER)
    site.run(
        "sh", "-c", f"mv {unit} /srv/unit && ln -s /dev/null {unit} && systemctl daemon-reload"
    )
    assert f"{UPDATE} is masked" in site.status().stdout
    await_(lambda: site.machine.show(TIMER, "ActiveState") == "failed")
    site.machine.no_drop_in(TIMER)
    site.run("sh", "-c", f"rm {unit} && mv /srv/unit {unit} && systemctl daemon-reload")
    assert site.run("systemctl", "is-enabled", TIMER).stdout == "enabled\n"
    status = site.status()
    assert status.returncode == 2
    assert "CRITICAL  timer      enabled, but failed (" in status.stdout
    cure = re.search(f"-> (sudo systemctl restart {TIMER})$", status.stdout, re.M)[1]
    assert site.paste(cure).returncode == 0
    assert site.status().returncode == 0
    assert site.webkassa.authorizations == 1


def test_a_missing_credential_is_not_tried_24_times(site: Site) -> None:
    site.reset()
    site.machine.drop_in(UPDATE, "[Service]\nRestartSec=1\nLoadCredential=login:/srv/away\n")
    site.fail_for_good()
    assert site.starts() == 1
    status = site.status()
    assert "code 243: a file that LoadCredential= names is missing" in status.stdout
    site.reset()
    assert site.run("webkassa-key", "update").returncode == 0
    assert site.status().returncode == 0


def test_an_upgrade_restarts_no_timer_that_is_as_it_was(site: Site) -> None:
    """Between 05:00 and its own minute a restarted timer says "today", and a reload "tomorrow"."""
    site.reset()
    site.key_of_age(1)
    since = [
        site.machine.show(name, "ActiveEnterTimestampMonotonic") for name in (TIMER, NET_TIMER)
    ]
    assert site.install("--no-run").returncode == 0
    assert since == [
        site.machine.show(name, "ActiveEnterTimestampMonotonic") for name in (TIMER, NET_TIMER)
    ]
