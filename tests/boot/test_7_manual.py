"""What the manual tells an administrator to type on a server, typed there; and what it shows of it.

WEBKASSA_RENEW_MANUALS=1 .venv-dev/bin/pytest tests/boot/test_7_manual.py -n 0
writes the outputs into both manuals anew.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

import pytest
import shown
from machine import WHEELS
from shop_server import ALERT, CONFIG, CURRENT, ROOT, SETTINGS, SOURCE, TIMER, UNITS, Site, env_file
from shown import MANUALS, snippet
from world.relay import ConnectProxy
from world.shop import fingerprint
from world.tls import Authority
from world.webkassa_simulator import Simulator

PREDECESSOR = "/etc/cron.d/webkassa"


@pytest.fixture(scope="module")
def desk(site: Site) -> Iterator[Site]:
    """A server without the updater, an earlier script in its crontab, and a Webkassa that is
    reached by its own name."""
    if site.installed:
        site.run(f"{CURRENT}/uninstall.sh", "--purge")
    site.run("sh", "-c", f"rm -rf {CONFIG} /var/backups/webkassa-* {UNITS}/webkassa-*")
    site.run("systemctl", "daemon-reload")
    archived = "/run/log/journal/*/*@*.journal /var/log/journal/*/*@*.journal"
    site.run("sh", "-c", f"journalctl --rotate; rm -f {archived}")  # of the tests before
    authority, earlier = Authority(), site.webkassa
    with (
        Simulator(tls=authority.server_context("*.webkassa.kz")) as site.webkassa,
        ConnectProxy(("127.0.0.1", site.webkassa.port)) as proxy,
    ):
        site.machine.write("/etc/ssl/shop.pem", "")
        authority.write(site.machine.root / "etc/ssl/shop.pem")
        (site.machine.root / "etc/ssl/shop.pem").chmod(0o644)
        name = site.run("uname", "-n").stdout.strip()
        site.run("sh", "-c", f"echo 127.0.1.1 {name} >>/etc/hosts")  # sudo asks for it
        pip = f"[global]\nno-index = true\nfind-links = {WHEELS}\n"
        site.machine.write("/etc/pip.conf", pip)
        site.machine.write("/srv/salon/update_webkassa_key.py", "")
        site.machine.write(
            PREDECESSOR, "0 5 * * * root python3 /srv/salon/update_webkassa_key.py\n"
        )
        site.reset()
        settings = {n: v for n, v in site.settings.items() if n != "WEBKASSA_AUTH_URL"}
        settings |= {"HTTPS_PROXY": proxy.url, "REQUESTS_CA_BUNDLE": "/etc/ssl/shop.pem"}
        site.machine.write(f"{SOURCE}/my.env", env_file(settings | {"WEBKASSA_DEADLINE": ""}))
        nano(site, "")
        yield site
    if site.installed:
        site.run(f"{CURRENT}/uninstall.sh", "--purge")
    site.webkassa = earlier
    site.run("rm", "-f", "/etc/pip.conf", PREDECESSOR)


def nano(site: Site, text: str) -> None:
    """Let the person write this, when an editor opens (nothing: the file is good as it is)."""
    site.machine.write("/root/typed", text)
    site.machine.write(
        "/usr/bin/nano", '#!/bin/sh\n[ ! -s /root/typed ] || cat /root/typed >"$1"\n'
    )
    (site.machine.root / "usr/bin/nano").chmod(0o755)


def typed(site: Site, name: str, code: int = 0) -> str:
    command = f"cd {SOURCE}\n{snippet(f'run: {name}')}"
    done = site.run("bash", "-e", "-c", command, check=False)
    assert done.returncode == code, done.stdout
    return str(done.stdout)


def masked(site: Site, said: str) -> str:
    """Releases are named by their time, and runs of systemd's by its numbers."""
    said = shown.masked(
        said, {str(site.server.port): "5432"}, map(fingerprint, site.webkassa.issued)
    )
    said = re.sub(r"\b2\d{7}-\d{6}(\.\d+)?", "20261125-051201.4242", said)
    for day, shown_day in (("[A-Z][a-z]{2}", "Thu"), ("[а-я]{2}", "чт")):
        moment = rf"\b{day} 2026-11-25 00:12:46 [A-Z]+"
        said = re.sub(moment, f"{shown_day} 2026-11-26 00:12:46 UTC", said)
    said = re.sub(
        r"^[A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d", "Nov 26 00:12:46", said, flags=re.MULTILINE
    )
    said = re.sub(r"(?<=\[)\d+(?=\])", "4242", said)
    return re.sub(r"Python 3\.\d+\.\d+", "Python 3.11.2", said)


def shows(
    site: Site, name: str, said: str, manuals: tuple[shown.Manual, ...] = MANUALS
) -> None:  # fmt: skip
    said = shown.wrapped(masked(site, said))
    if os.environ.get("WEBKASSA_RENEW_MANUALS"):
        shown.renew({name: said}, manuals)
    for manual in manuals:
        assert shown.shown_in(manual).get(name, said) == said


def test_other_things_that_renew_the_key_are_listed_as_shown(desk: Site) -> None:
    said = desk.paste(f"cd {SOURCE}; sudo ./install.sh --env-file my.env")
    assert said.returncode == 1
    shows(desk, "server others", said.stdout)
    assert desk.webkassa.authorizations == 0


def test_take_over_and_the_way_back_go_as_written(desk: Site) -> None:
    said = typed(desk, "server take over")
    assert desk.holds_a_new_key
    shows(desk, "server take over", said)
    back = re.findall(r"^To go back to it: (.+)$", said, re.MULTILINE)
    assert desk.paste(back[-1]).returncode == 0
    assert not desk.installed
    assert "update_webkassa_key" in desk.run("cat", PREDECESSOR).stdout
    desk.run("rm", "-r", PREDECESSOR, CONFIG)


def test_install_goes_as_written(desk: Site) -> None:
    desk.webkassa.calls.clear()
    nano(desk, (desk.machine.root / SOURCE[1:] / "my.env").read_text(encoding="utf-8"))
    shows(desk, "server install", typed(desk, "server install"))
    nano(desk, "")
    assert desk.holds_a_new_key
    assert desk.webkassa.authorizations == 1


def test_commands_of_the_server_go_as_written(desk: Site) -> None:
    said = typed(desk, "server commands")
    assert "Stored the new key" in said
    assert typed(desk, "server look").startswith("WEBKASSA OK")
    shows(desk, "server status", desk.run("webkassa-key", "status").stdout, MANUALS[:1])


def test_screen_of_a_russian_server_is_as_shown(desk: Site) -> None:
    settings = (desk.machine.root / SETTINGS[1:]).read_text(encoding="utf-8")
    desk.machine.write(SETTINGS, f"{settings}\nWEBKASSA_LANG=ru\n")
    assert desk.start().returncode == 0
    assert desk.run("webkassa-key", "update").returncode == 0
    said = desk.run("webkassa-key", "status").stdout
    desk.machine.write(SETTINGS, settings)
    shows(desk, "server status", said, MANUALS[1:])


def test_other_time_of_day_goes_as_written(desk: Site) -> None:
    desk.machine.drop_in(TIMER, snippet("timer"))
    said = desk.run("systemctl", "show", "--property=TimersCalendar", TIMER).stdout
    assert said.count("OnCalendar=") == 1
    assert "04:30:00 Asia/Almaty" in said
    desk.machine.no_drop_in(TIMER)


def test_application_is_let_in_as_written(desk: Site) -> None:
    typed(desk, "server clients")
    assert "www-data" in desk.run("getent", "group", "webkassa-key-clients").stdout


def test_monitor_is_let_in_as_written(desk: Site) -> None:
    desk.machine.write("/etc/sudoers.d/monitor", snippet("sudoers"))
    desk.run("useradd", "--system", "nagios")
    command = "sudo -n /usr/bin/webkassa-key status"
    for more in ("", " --json"):
        assert "OK" in desk.run("runuser", "-u", "nagios", "--", "sh", "-c", command + more).stdout
    command = "sudo -n /usr/bin/webkassa-key update"
    done = desk.run("runuser", "-u", "nagios", "--", "sh", "-c", command, check=False)
    assert done.returncode == 1
    desk.run("sh", "-c", "userdel nagios; rm /etc/sudoers.d/monitor")


def test_alerts_go_as_written(desk: Site) -> None:
    desk.receiver.alerts.clear()
    nano(desk, f"json://127.0.0.1:{desk.receiver.server_port}/\n")
    assert typed(desk, "server alerts").endswith("line 1 (json): sent\n")
    assert ": TEST, WEBKASSA OK" in desk.receiver.alerts[0]["title"]
    desk.machine.drop_in(ALERT, snippet("proxy of alerts"))
    assert desk.machine.show(ALERT, "Environment").endswith("HTTPS_PROXY=http://proxy:3128")
    by_hand = "/run/systemd/generator.early/webkassa-key-alert-.service.d/test.conf"
    assert desk.run("cat", by_hand).stdout == snippet("proxy of alerts")
    desk.machine.no_drop_in(ALERT)


def test_removing_goes_as_written(desk: Site) -> None:
    typed(desk, "server remove")
    assert not desk.installed
    assert desk.run("test", "-e", SETTINGS).returncode == 0


def test_units_of_a_container_go_as_written(desk: Site) -> None:
    """Without Docker in the machine: the timer is what is started."""
    folder = desk.machine.root / SOURCE[1:] / "containers"
    shutil.copytree(ROOT / "containers", folder)
    typed(desk, "docker units")
    assert desk.machine.show("webkassa-docker.timer", "NextElapseUSecRealtime")
    desk.run("systemctl", "disable", "--now", "webkassa-docker.timer")
    desk.run("sh", "-c", f"rm {UNITS}/webkassa-docker.*; systemctl daemon-reload")
    shutil.rmtree(folder)
