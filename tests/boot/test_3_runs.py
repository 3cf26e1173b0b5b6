"""The timers and what they start: good runs, failures, retries, alerts, a boot."""

from __future__ import annotations

import re
import socket
import ssl
import time

import pytest
import trustme
from machine import await_
from shop_server import ALERT, BOOT, CURRENT, SETTINGS, TIMER, UPDATE, Site, env_file
from world import webkassa_simulator
from world.webkassa_simulator import Simulator, slow

pytestmark = pytest.mark.usefixtures("installed")


def reboot(site: Site, off_for: float = 0) -> None:
    site.machine.power_off()
    site.machine.start()


# What an alert says first: can the shop sell, until when, what to type
SELLS = ": WEBKASSA CRITICAL - the shop can sell for now"
REFUSED = (
    r"The shop (can still sell, but the key may end at any moment: the day .* was over at .*"
    r"|can sell for now\. Webkassa promises a key about a day: until about \d\d:\d\d .*)\n"
    r"Renewing the key has failed since .*202\d-.* \(code 77: Webkassa refuses the login, .*\)\.\n"
    r"What to do: put in the right login and password: sudo nano \S+/webkassa\.env; then: sudo"
    r" webkassa-key update\n\n"
)


def test_the_timer_renews_the_key(site: Site) -> None:
    site.reset()
    soon = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() + 4))
    site.machine.drop_in(TIMER, f"[Timer]\nOnCalendar=\nOnCalendar={soon}\nRandomizedDelaySec=0\n")
    site.run("systemctl", "restart", TIMER)
    await_(lambda: site.holds_a_new_key)
    site.machine.no_drop_in(TIMER)
    await_(lambda: site.state() == "dead")
    site.run("systemctl", "restart", TIMER)
    assert site.webkassa.authorizations == 1


def test_socket_private_ca_and_ipv6_work_in_the_sandbox(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("::1").configure_cert(tls)
    site.machine.write("/etc/ssl/private-ca.pem", ca.cert_pem.bytes().decode())
    monkeypatch.setattr(webkassa_simulator.Server, "address_family", socket.AF_INET6)
    with Simulator("::1", tls=tls) as webkassa:
        site.reset(
            WEBKASSA_AUTH_URL=f"https://[::1]:{webkassa.port}/api/Authorize",
            REQUESTS_CA_BUNDLE="/etc/ssl/private-ca.pem", POSTGRES_HOST="/run/postgresql",
        )  # fmt: skip
        result = site.start()
        assert result.returncode == 0, site.status().stdout
        assert site.key == webkassa.live
        site.webkassa.issued += webkassa.issued
    (site.machine.root / "etc/ssl/private-ca.pem").unlink()


def test_database_down_is_retried_and_then_alerted_of_once(site: Site) -> None:
    site.reset()
    site.send_alerts_to(site.receiver.server_port)
    site.server.stop()
    try:
        site.fail_for_good()
        status = site.status()
    finally:
        site.server.start()
    assert site.machine.show(UPDATE, "Result") in ("exit-code", "start-limit-hit")
    assert site.starts() == 3
    assert len(site.receiver.alerts) == 1
    alert = site.receiver.alerts[0]
    assert alert["title"].endswith(": WEBKASSA CRITICAL - whether the shop can sell is not known")
    assert re.match(
        r"Whether the shop can sell is not known: the stored key could not be looked at\..*\n"
        r"Renewing the key has failed since .*202\d-.* \(code 75: the database cannot be reached, .*\)\.\n"
        r"What to do: sudo webkassa-key update\n\n",
        alert["message"],
    )
    assert "PostgreSQL (" in alert["message"]
    assert site.webkassa.authorizations == 0
    assert status.returncode == 2
    print(status.stdout, site.receiver.alerts[0])


def test_after_retries_have_ended_the_advice_works(site: Site) -> None:
    advice = re.search("-> (sudo webkassa-key update)$", site.status().stdout, re.M)[1]
    assert site.paste(advice).returncode == 0
    assert site.holds_a_new_key
    assert site.status().returncode == 0
    await_(lambda: len(site.receiver.alerts) == 2)
    again = ": WEBKASSA OK - works again: the shop can sell"
    assert site.receiver.alerts[1]["title"].endswith(again)


def test_wrong_password_is_tried_once_and_alerted_of_once(site: Site) -> None:
    site.reset(WEBKASSA_PASSWORD="canary-wrong")
    site.fail_for_good()
    assert site.webkassa.authorizations == 1
    assert site.starts() == 1
    assert len(site.receiver.alerts) == 1
    assert site.receiver.alerts[0]["title"].endswith(SELLS)
    assert re.match(REFUSED, site.receiver.alerts[0]["message"])
    assert site.status().returncode == 2


@pytest.mark.parametrize(
    ("damage", "code"),
    [("rm -r {}/venv/lib/python3*/site-packages/requests", 1), ("rm {}/venv/bin/python*", 203),
     # As an upgrade of the system leaves both: their Python is another one
     ("cd {}; for venv in venv alerts; do mv $venv/lib/python3* $venv/lib/python3.1; done", 1)],
)  # fmt: skip
def test_a_broken_venv_is_alerted_of_at_once(site: Site, damage: str, code: int) -> None:
    """Apprise has a venv of its own; the journal has the report at the priority "err" anyway."""
    site.reset()
    since = f"@{time.time():.3f}"
    venv = f"{CURRENT}/venv"
    site.run("cp", "-a", venv + "/", "/srv/venv")
    site.run("sh", "-c", damage.format(CURRENT))
    site.fail_for_good()
    status = site.status()
    by_hand = site.run("webkassa-key", "update", check=False)
    site.run("sh", "-c", f"rm -r {venv} && mv /srv/venv {venv}")
    site.run(
        "sh",
        "-c",
        f"cd {CURRENT}/alerts/lib && mv python3.1 python{site.machine.python}",
        check=False,
    )
    assert site.starts() == 1
    assert len(site.receiver.alerts) == 1
    assert "WEBKASSA CRITICAL" in site.receiver.alerts[0]["title"]
    assert f"(code {code}: the program does not start)" in site.receiver.alerts[0]["message"]
    told = site.machine.journal(f"_SYSTEMD_UNIT={ALERT}", "--priority=err", f"--since={since}")
    assert "does not start: the virtual environment is broken" in told
    assert by_hand.returncode == 1
    assert ("Nothing was asked of Webkassa" in by_hand.stdout) == (code == 203)
    assert status.returncode == 2
    assert f"-> sudo {CURRENT}/install.sh\n" in status.stdout


def test_an_alert_that_cannot_be_sent_is_tried_again_until_it_goes_out_once(site: Site) -> None:
    site.reset(WEBKASSA_PASSWORD="canary-wrong")
    site.machine.drop_in(ALERT, "[Service]\nRestartSec=1\n")
    site.send_alerts_to(1)  # where nobody listens
    site.start()
    tried = "The alert could not be sent"
    await_(
        lambda: (
            site.machine.journal(f"_SYSTEMD_UNIT={ALERT}", f"--since=@{site.since}").count(tried)
            > 1
        )
    )
    assert "and is tried again" in site.status().stdout
    site.send_alerts_to(site.receiver.server_port)
    await_(lambda: site.receiver.alerts)
    await_(lambda: site.machine.show(ALERT, "ActiveState") == "inactive")
    site.run("systemctl", "restart", TIMER)
    assert len(site.receiver.alerts) == 1
    assert "(code 77: Webkassa refuses the login" in site.receiver.alerts[0]["message"]
    site.machine.no_drop_in(ALERT)


def test_of_two_addresses_each_is_told_once(site: Site) -> None:
    site.reset(WEBKASSA_PASSWORD="canary-wrong")
    site.machine.drop_in(ALERT, "[Service]\nRestartSec=1\n")
    site.send_alerts_to(site.receiver.server_port, 1)  # at the second nobody listens
    site.start()
    tried = "line 2 (json): "
    await_(
        lambda: (
            site.machine.journal(f"_SYSTEMD_UNIT={ALERT}", f"--since=@{site.since}").count(tried)
            > 1
        )
    )
    assert len(site.receiver.alerts) == 1
    assert "line 2 (json): " in site.status().stdout
    site.run("systemctl", "stop", ALERT)
    site.machine.no_drop_in(ALERT)


def test_an_alert_by_hand_is_a_test_and_says_what_came_of_it(site: Site) -> None:
    site.reset()
    site.start()
    site.receiver.alerts.clear()
    site.send_alerts_to(site.receiver.server_port, 1)
    done = site.run("webkassa-key", "alert", check=False)
    assert done.returncode == 1
    assert re.match(r"line 1 \(json\): sent\nline 2 \(json\): .+\n$", done.stdout), done.stdout
    site.send_alerts_to(site.receiver.server_port)
    assert site.run("webkassa-key", "alert").stdout == "line 1 (json): sent\n"
    assert [": TEST, WEBKASSA OK" in alert["title"] for alert in site.receiver.alerts] == [True] * 2


LOCALE = "/etc/default/locale /etc/locale.conf /usr/lib/locale/locale-archive"


def test_a_russian_server_tells_the_truth(site: Site) -> None:
    """Wrong password at night: one alert that is true; mended: one that says so."""
    site.run("sh", "-c", f"mkdir /root/kept; cp -a --parents {LOCALE} /root/kept", check=False)
    site.run("localedef", "-i", "ru_RU", "-f", "UTF-8", "ru_RU.UTF-8")
    for path in LOCALE.split()[:2]:
        site.machine.write(path, "LANG=ru_RU.UTF-8\n")
    site.run("ln", "-sf", "/usr/share/zoneinfo/Asia/Almaty", "/etc/localtime")
    reboot(site)
    site.run("systemctl", "stop", "webkassa-key-boot.timer")  # it would run amid the tests to come
    russian = {"LANG": "ru_RU.UTF-8", "LC_ALL": "ru_RU.UTF-8"}
    assert site.run("date", "-d", "2026-11-29", "+%a", **russian).stdout == "Вс\n"
    site.reset(WEBKASSA_PASSWORD="canary-wrong")
    site.send_alerts_to(site.receiver.server_port)
    site.fail_for_good()
    (alert,) = site.receiver.alerts
    # By the LANG of the machine, which systemd gives to the services
    assert alert["title"].endswith(": WEBKASSA CRITICAL - магазин пока продаёт")
    first = (
        r"Магазин (ещё продаёт, но ключ|пока продаёт)\b.* \d\d:\d\d.*\b\w\w 202\d-\d\d-\d\d \+05\)?\.\n"
        r"Ключ не обновляется с \w\w 202\d-\d\d-\d\d [\d:]{8} \+05 \(код 77: .*\)\.\n"
        r"Что сделать: впишите верные логин и пароль: sudo nano "
    )
    assert re.match(first, alert["message"])
    for who in (("webkassa-key", "status"), (f"{CURRENT}/check-status.sh",)):
        status = site.run(*who, check=False, **russian)
        assert status.returncode == 2
        assert "CRITICAL  запуск        не удаётся с " in status.stdout
        comes = r"следующий запуск \w\w 202\d-\d\d-\d\d 05:[0-2]\d:\d\d \+05$"
        assert re.search(comes, status.stdout, re.M)
        assert "UTC" not in status.stdout
    site.machine.write(SETTINGS, env_file(site.settings))
    assert site.run("webkassa-key", "update", **russian).returncode == 0
    await_(lambda: len(site.receiver.alerts) == 2)
    again = ": WEBKASSA OK - снова работает: магазин продаёт"
    assert site.receiver.alerts[1]["title"].endswith(again)
    assert site.receiver.alerts[1]["type"] == "success"
    assert site.run("webkassa-key", "status", **russian).returncode == 0
    await_(lambda: site.machine.show(ALERT, "ActiveState") == "inactive")
    assert len(site.receiver.alerts) == 2
    site.run("sh", "-c", f"rm -f {LOCALE}; cp -a /root/kept/. /; rm -r /root/kept")
    site.run("ln", "-sf", "/usr/share/zoneinfo/Etc/UTC", "/etc/localtime")
    reboot(site)


def test_killed_in_the_middle_of_a_login_it_comes_again(site: Site) -> None:
    site.reset()
    site.webkassa.script.append(slow(10))
    site.run("systemctl", "start", "--no-block", UPDATE)
    await_(lambda: site.webkassa.authorizations == 1)
    site.run("systemctl", "kill", "--signal=KILL", UPDATE)
    await_(lambda: site.webkassa.authorizations == 2 and site.holds_a_new_key)
    await_(lambda: site.state() == "dead")
    assert site.receiver.alerts == []


def test_stopped_in_the_middle_of_a_login_it_stores_the_key_first(site: Site) -> None:
    site.reset()
    site.webkassa.script.append(slow(3))
    site.run("systemctl", "start", "--no-block", UPDATE)
    await_(lambda: site.webkassa.authorizations == 1)
    site.run("systemctl", "stop", UPDATE)
    assert site.holds_a_new_key
    assert site.webkassa.authorizations == 1


def test_heal_renews_a_dead_key_and_leaves_a_good_one(site: Site) -> None:
    site.reset()
    site.start()
    site.run("systemctl", "start", "webkassa-key-heal")
    assert site.webkassa.authorizations == 1
    site.webkassa.issue()  # somebody else logs in
    site.run("systemctl", "start", "webkassa-key-heal")
    assert site.webkassa.authorizations == 2
    assert site.holds_a_new_key


def boot_run_ended(site: Site) -> bool:
    return site.machine.show(BOOT, "ExecMainExitTimestamp") != ""


def test_a_run_missed_while_switched_off_is_made_up_for_at_boot(site: Site) -> None:
    """One minute after the boot, for a till that is on for a short time; one login."""
    site.reset()
    site.key_of_age(23.9)  # it would be too old before tomorrow's boot
    site.machine.power_off()
    began = time.monotonic()
    site.machine.start()
    await_(lambda: site.holds_a_new_key, 150)
    assert time.monotonic() - began > 55
    await_(lambda: boot_run_ended(site))
    assert site.webkassa.authorizations == 1


def test_starting_the_boot_timer_by_hand_runs_nothing(site: Site) -> None:
    site.reset()
    exited = site.machine.show(BOOT, "ExecMainExitTimestamp")
    for verb in ("start", "restart"):
        site.run("systemctl", verb, "webkassa-key-boot.timer", check=False)
    site.run("systemctl", "daemon-reload")
    assert site.machine.show(BOOT, "ExecMainExitTimestamp") == exited
    assert site.machine.show(BOOT, "ActiveState") == "inactive"
    assert site.webkassa.authorizations == 0


def test_a_boot_run_is_retried_and_alerted_of(site: Site) -> None:
    site.reset()
    site.machine.drop_in("webkassa-key-boot.timer", "[Timer]\nOnBootSec=\nOnBootSec=1s\n")
    site.machine.drop_in(BOOT, "[Unit]\nStartLimitBurst=3\n[Service]\nRestartSec=1\n")
    site.server.stop()
    try:
        reboot(site)
        await_(lambda: site.receiver.alerts)
        status = site.status()
    finally:
        site.server.start()
    assert "CRITICAL  boot run   failing since" in status.stdout
    assert len(site.receiver.alerts) == 1
    assert site.paste("sudo webkassa-key update").returncode == 0
    status = site.status()
    assert status.returncode == 0, status.stdout
    site.machine.no_drop_in("webkassa-key-boot.timer")
    site.machine.no_drop_in(BOOT)


def test_what_the_sandbox_hides_is_named_by_an_install(site: Site) -> None:
    site.machine.write("/home/ca.pem", "")
    site.reset(
        REQUESTS_CA_BUNDLE="/home/ca.pem", WEBKASSA_AUTH_URL="https://127.0.0.1:1/api/Authorize"
    )
    result = site.install()
    assert result.returncode == 1
    assert "/home/ca.pem is there, but the service cannot see it" in result.stdout
    assert "The earlier version stays in use" in result.stdout
    (site.machine.root / "home/ca.pem").unlink()
    site.reset()
