"""Install, schedule, fail, alert, heal, remove: on a machine that really booted, as its owner would.

The tests of one machine are one story and run in this order. PostgreSQL, Webkassa and the receiver
of alerts are on the host's loopback, which is the machine's too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import machine as machines
import psycopg2
import pytest
import trustme
from machine import WHEELS, Machine, await_
from world import webkassa_simulator
from world.postgres import PASSWORD as DATABASE_PASSWORD
from world.postgres import Postgres
from world.webkassa_simulator import Simulator, slow

ROOT = Path(__file__).parents[2]
SOURCE = "/root/webkassa-key-updater"
OPT = "/opt/webkassa-key-updater"
SETTINGS = "/etc/webkassa-key-updater/webkassa.env"
UPDATE = "webkassa-key-update.service"
TIMER = "webkassa-key-update.timer"
ALERT = "webkassa-key-alert.service"
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS}
# systemd 252 comes to the alert when retries have ended, 257 on every retry
SUITES = os.environ.get("WEBKASSA_BOOT_SUITES", "bookworm trixie").split()

TABLE = """CREATE TABLE api_keys (id serial PRIMARY KEY, service_name varchar(50) UNIQUE NOT NULL,
    api_key varchar(255) NOT NULL, user_id varchar(255), created_at timestamp NOT NULL,
    updated_at timestamp NOT NULL)"""

pytestmark = pytest.mark.xdist_group("boot")  # one worker, in this order


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    if reason := machines.missing():
        if os.environ.get("WEBKASSA_REQUIRE_BOOT"):
            pytest.fail(f"the boot test {reason}")
        pytest.skip(f"the boot test {reason}")


class Receiver(ThreadingHTTPServer):
    """Keeps what Apprise's json:// addresses send."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), ReceiverHandler)


class ReceiverHandler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.alerts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Site:
    """The machine, and what it works with."""

    def __init__(
        self, machine: Machine, server: Postgres, webkassa: Simulator, receiver: Receiver
    ) -> None:
        self.machine, self.server, self.webkassa = machine, server, webkassa
        self.receiver = receiver
        self.run = machine.run
        self.settings = {
            "WEBKASSA_LOGIN": webkassa_simulator.LOGIN,
            "WEBKASSA_PASSWORD": webkassa_simulator.PASSWORD,
            "WEBKASSA_AUTH_URL": webkassa.url,
            "WEBKASSA_DEADLINE": "20s",
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(server.port),
            "POSTGRES_DB": "postgres",
            "POSTGRES_USER": "postgres",
            "POSTGRES_PASSWORD": DATABASE_PASSWORD,
        }

    def sql(self, statement: str, *values: Any) -> list[Any]:
        connection = psycopg2.connect(host="127.0.0.1", port=self.server.port, dbname="postgres",
                                      user="postgres", password=DATABASE_PASSWORD)  # fmt: skip
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def reset(self, **settings: str) -> None:
        """An old key of ours that works, good settings, quick retries, no alerts so far."""
        key = self.webkassa.issue()
        self.webkassa.calls.clear()
        self.receiver.alerts.clear()
        self.sql("DROP TABLE IF EXISTS api_keys")
        self.sql(TABLE)
        self.sql("INSERT INTO api_keys (service_name, api_key, created_at, updated_at) VALUES"
                 " ('Webkassa', %s, now(), now() AT TIME ZONE 'UTC' - interval '24 h')", key)  # fmt: skip
        self.machine.write("/root/my.env", env_file(self.settings | settings))
        if (self.machine.root / "opt/webkassa-key-updater").is_symlink():
            self.machine.write(SETTINGS, env_file(self.settings | settings))
            self.machine.drop_in(UPDATE, "[Unit]\nStartLimitBurst=3\n[Service]\nRestartSec=2\n")
            self.run("systemctl", "stop", UPDATE, ALERT)
            self.run("systemctl", "reset-failed")

    @property
    def key(self) -> str | None:
        rows = self.sql("SELECT api_key FROM api_keys WHERE service_name = 'Webkassa'")
        return rows[0][0] if rows else None

    @property
    def holds_a_new_key(self) -> bool:
        return self.key == self.webkassa.live and self.webkassa.authorizations > 0

    def install(self, *options: str, source: str = SOURCE, **env: str) -> Any:
        return self.run(f"{source}/install.sh", *options, check=False, **(OFFLINE | env))

    def status(self) -> Any:
        return self.run(f"{OPT}/check-status.sh", check=False)

    def state(self) -> str:
        return self.machine.show(UPDATE, "SubState")

    def starts(self) -> int:
        """How often systemd has started it since `start`."""
        journal = self.machine.journal(f"UNIT={UPDATE}", f"--since=@{self.since}")
        return len(re.findall("^Starting ", journal, re.M))

    def start(self) -> Any:
        self.since = f"{time.time():.3f}"
        return self.run("systemctl", "start", UPDATE, check=False)

    def fail_for_good(self) -> None:
        """Start an update, wait until retries have ended and the alert has been dealt with."""
        self.start()
        await_(lambda: self.state() == "failed", 60)
        await_(lambda: self.machine.show(ALERT, "ActiveState") in ("inactive", "failed"), 60)
        self.run("sh", "-c", "while systemctl list-jobs | grep -q webkassa; do sleep .1; done")


def env_file(settings: dict[str, str]) -> str:
    return "".join(f"{name}='{quoted(value)}'\n" for name, value in settings.items())


def quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


@pytest.fixture(scope="module", params=SUITES)
def site(request: pytest.FixtureRequest, _possible: None) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        server = Postgres("fsync=off")
        stack.callback(server.remove)
        webkassa = stack.enter_context(Simulator())
        receiver = Receiver()
        machines.threading.Thread(target=receiver.serve_forever, args=(0.05,), daemon=True).start()
        stack.callback(receiver.server_close)
        stack.callback(receiver.shutdown)
        machine = Machine(request.param, f"{server.folder}:/run/postgresql")
        stack.callback(machine.remove)
        wheels = machine.root / WHEELS[1:]
        apprise = re.search("^readonly APPRISE='(.+)'$", (ROOT / "install.sh").read_text(), re.M)[1]
        requirements = [*(ROOT / "requirements.txt").read_text().split(), apprise]
        machines.download_wheels(requirements, machine.python, wheels)
        files = ["webkassa_key_updater.py", "requirements.txt", ".env.example", "install.sh",
                 "uninstall.sh", "check-status.sh"]  # fmt: skip
        (machine.root / SOURCE[1:]).mkdir(mode=0o700)
        for file in files:
            shutil.copy(ROOT / file, machine.root / SOURCE[1:])
        shutil.copytree(ROOT / "systemd", machine.root / SOURCE[1:] / "systemd")
        site = Site(machine, server, webkassa, receiver)
        site.reset()
        site.pristine = machine.tree()
        yield site


@pytest.fixture(autouse=True)
def _silence_about_secrets(site: Site) -> Iterator[None]:
    """Whatever a test did: no secret in the journal, in what systemd shows, or in the alerts."""
    yield
    seen = site.machine.journal() + site.run("systemctl", "show", "*", check=False).stdout
    seen += json.dumps(site.receiver.alerts)
    for secret in (webkassa_simulator.PASSWORD, DATABASE_PASSWORD, *site.webkassa.issued):
        assert secret not in seen
    assert "canary-" not in seen
    assert "A bug of this program" not in seen


def test_install_with_the_examples_settings_says_what_to_fill_in(site: Site) -> None:
    result = site.install()
    assert result.returncode == 78, result.stdout
    assert "WEBKASSA_LOGIN: is still a placeholder" in result.stdout
    assert f"Mend it (settings: {SETTINGS}), then run again" in result.stdout
    assert site.webkassa.calls == []
    assert site.machine.show(TIMER, "NextElapseUSecRealtime")


def test_install_checks_updates_and_proves_the_timer(site: Site) -> None:
    result = site.install("--env-file", "/root/my.env", "--with-alerts")
    assert result.returncode == 0, result.stdout
    assert "ok    write: rehearsed" in result.stdout
    assert "Next run: " in result.stdout
    assert site.holds_a_new_key
    assert site.webkassa.authorizations == 1
    modes = site.run("stat", "-c", "%U:%G %a", SETTINGS, str(Path(SETTINGS).parent)).stdout
    assert modes == "root:webkassa-key-updater 640\nroot:webkassa-key-updater 750\n"
    assert site.run("systemctl", "is-enabled", TIMER).stdout == "enabled\n"
    heal = site.run("systemctl", "is-enabled", "webkassa-key-heal.timer", check=False)
    assert heal.stdout == "disabled\n"
    print(result.stdout)


def test_status_is_one_screen_and_a_monitors_code(site: Site) -> None:
    result = site.status()
    assert result.returncode == 0, result.stdout
    assert re.match(r"WEBKASSA OK - key .*\|age=\d+s;90000;176400\n", result.stdout)
    assert "next run" in result.stdout
    assert len(result.stdout.splitlines()) <= 24
    report = json.loads(site.run(f"{OPT}/check-status.sh", "--json").stdout)
    assert report["status"] == report["key"]["status"] == "OK"
    print(result.stdout)


def test_status_without_root_says_what_it_could_not_see(site: Site) -> None:
    result = site.run("runuser", "-u", "nobody", "--", f"{OPT}/check-status.sh", check=False)
    assert result.returncode == 3
    assert "key       not visible to nobody without sudo" in result.stdout
    assert "triggers  not visible to nobody without sudo: /var/spool/cron/crontabs" in result.stdout
    assert "enabled, active, next run" in result.stdout
    print(result.stdout)


def test_units_please_systemd_and_are_locked_down(site: Site) -> None:
    units = [f"/etc/systemd/system/webkassa-key-{name}" for name in (
        "update.service", "update.timer", "heal.service", "heal.timer", "alert.service")]  # fmt: skip
    assert site.run("systemd-analyze", "verify", *units).stdout == ""
    for name in ("update", "heal", "alert"):
        result = site.run(
            "systemd-analyze", "security", "--no-pager", f"webkassa-key-{name}"
        ).stdout
        assert float(re.search(r"Overall exposure level .*: ([0-9.]+)", result)[1]) <= 1.3


def test_the_timer_renews_the_key(site: Site) -> None:
    site.reset()
    soon = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time() + 6))
    site.machine.drop_in(TIMER, f"[Timer]\nOnCalendar=\nOnCalendar={soon}\nRandomizedDelaySec=0\n")
    site.run("systemctl", "restart", TIMER)
    await_(lambda: site.holds_a_new_key)
    (site.machine.root / f"etc/systemd/system/{TIMER}.d/test.conf").unlink()
    await_(lambda: site.state() == "dead")
    site.run("systemctl", "daemon-reload")
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
    addresses = "/etc/webkassa-key-updater/apprise.conf"
    port = site.receiver.server_port
    site.machine.write(addresses, f"json://alert:canary-alert@127.0.0.1:{port}/\n")
    site.run("chown", "root:webkassa-key-updater", addresses)
    site.run("chmod", "640", addresses)
    site.server.stop()
    try:
        site.fail_for_good()
        status = site.status()
    finally:
        site.server.start()
    assert site.machine.show(UPDATE, "Result") in ("exit-code", "start-limit-hit")
    assert site.starts() == 3
    assert len(site.receiver.alerts) == 1
    title = site.receiver.alerts[0]["title"]
    assert re.search(
        r": WEBKASSA CRITICAL - last run: failing since .*202\d-.* \(code 75\)$", title
    )
    assert "PostgreSQL cannot be reached" in site.receiver.alerts[0]["message"]
    assert site.webkassa.authorizations == 0
    assert status.returncode == 2
    print(status.stdout, site.receiver.alerts[0])


def test_after_retries_have_ended_the_advice_works(site: Site) -> None:
    advice = re.search("-> see the lines below, then: (.+)", site.status().stdout)[1]
    site.run("sh", "-c", advice.replace("sudo ", ""))
    assert site.holds_a_new_key
    assert site.status().returncode == 0


def test_wrong_password_is_tried_once_and_alerted_of_once(site: Site) -> None:
    site.reset(WEBKASSA_PASSWORD="canary-wrong")
    site.fail_for_good()
    assert site.webkassa.authorizations == 1
    assert site.starts() == 1
    assert len(site.receiver.alerts) == 1
    assert "(code 77)" in site.receiver.alerts[0]["title"]
    assert site.status().returncode == 2


def test_alert_that_cannot_be_sent_is_seen_and_does_not_loop(site: Site) -> None:
    site.reset(WEBKASSA_PASSWORD="canary-wrong")
    addresses = site.machine.root / "etc/webkassa-key-updater/apprise.conf"
    good = addresses.read_text()
    addresses.write_text("json://alert:canary-alert@127.0.0.1:1/\n")
    site.fail_for_good()
    addresses.write_text(good)
    assert "the last one could not be sent" in site.status().stdout


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


def test_a_run_missed_while_switched_off_is_made_up_for(site: Site) -> None:
    site.reset()
    site.machine.drop_in(TIMER, "[Timer]\nRandomizedDelaySec=0\n")
    site.machine.power_off()
    stamp = site.machine.root / f"var/lib/systemd/timers/stamp-{TIMER}"
    os.utime(stamp, (time.time() - 2 * 86400,) * 2)
    site.machine.start()
    await_(lambda: site.holds_a_new_key)
    (site.machine.root / f"etc/systemd/system/{TIMER}.d/test.conf").unlink()
    await_(lambda: site.state() == "dead")
    site.run("systemctl", "daemon-reload")
    assert site.webkassa.authorizations == 1


def test_failed_install_leaves_the_earlier_one_working(site: Site) -> None:
    site.reset()
    before = site.run("readlink", OPT).stdout
    result = site.install(PIP_FIND_LINKS="/nowhere")
    assert result.returncode == 1
    assert "pip failed" in result.stdout
    site.server.stop()
    try:
        result = site.install()
    finally:
        site.server.start()
    assert result.returncode == 1
    assert "The check failed (code 75, see above). The earlier version stays" in result.stdout
    assert site.run("readlink", OPT).stdout == before
    assert len(site.run("sh", "-c", f"ls -d {OPT}*").stdout.split()) == 2
    site.start()
    assert site.holds_a_new_key


def test_install_again_heals_a_broken_venv_and_keeps_settings(site: Site) -> None:
    site.reset(WEBKASSA_MAX_AGE="23h")
    settings = (site.machine.root / SETTINGS[1:]).read_text()
    site.run("sh", "-c", f"rm -r {OPT}/venv/lib/python3*/site-packages/requests")
    status = site.status()
    assert status.returncode == 2
    assert f"-> sudo {OPT}/install.sh" in status.stdout
    result = site.install(source=OPT)
    assert result.returncode == 0, result.stdout
    assert f"Keeping {SETTINGS}" in result.stdout
    assert (site.machine.root / SETTINGS[1:]).read_text() == settings
    assert site.holds_a_new_key
    site.run("sh", "-c", f"ls -d {OPT}/venv/lib/python3*/site-packages/apprise")  # kept, too
    assert site.status().returncode == 0


def test_status_names_each_fault_and_what_mends_it(site: Site) -> None:
    site.run("chmod", "644", SETTINGS)
    site.run("systemctl", "disable", "--now", TIMER)
    site.machine.write("/etc/cron.d/keys", "5 5 * * * root webkassa_key_updater.py\n")
    result = site.status()
    assert result.returncode == 2
    print(result.stdout)
    assert "another one is in /etc/cron.d/keys" in result.stdout
    (site.machine.root / "etc/cron.d/keys").unlink()
    for line in re.findall("-> (sudo .+)", result.stdout):
        site.run("sh", "-c", line.replace("sudo ", ""))
    result = site.status()
    assert result.returncode == 0, result.stdout


def test_uninstall_leaves_the_machine_as_before_and_the_settings(site: Site) -> None:
    (site.machine.root / f"etc/systemd/system/{UPDATE}.d/test.conf").unlink()
    (site.machine.root / f"etc/systemd/system/{UPDATE}.d").rmdir()
    (site.machine.root / f"etc/systemd/system/{TIMER}.d").rmdir()
    key = site.key
    result = site.run(f"{OPT}/uninstall.sh")
    assert "Kept: /etc/webkassa-key-updater" in result.stdout
    assert changes(site) == {
        "etc/webkassa-key-updater": "40750 0:0 ",
        "etc/webkassa-key-updater/webkassa.env": "100640 0:0",
        "etc/webkassa-key-updater/apprise.conf": "100640 0:0",
    }
    assert site.key == key
    assert site.run(f"{SOURCE}/uninstall.sh").returncode == 0


def changes(site: Site) -> dict[str, str]:
    """Return what is not as it was before the first install, and how it is now."""
    now = site.machine.tree()
    paths = {*now, *site.pristine}
    changed = {p: now.get(p, "gone") for p in paths if now.get(p) != site.pristine.get(p)}
    return {p: " ".join(what.split(" ")[:2]) if ".env" in p or ".conf" in p else what
            for p, what in changed.items()}  # fmt: skip


def test_install_after_uninstall_takes_up_the_kept_settings(site: Site) -> None:
    site.reset()
    result = site.run("sh", "-c", f"umask 077; {SOURCE}/install.sh --with-heal", **OFFLINE)
    assert result.returncode == 0, result.stdout
    assert site.holds_a_new_key
    assert site.run("systemctl", "is-active", "webkassa-key-heal.timer").stdout == "active\n"


def test_purge_leaves_nothing(site: Site) -> None:
    site.run(f"{SOURCE}/uninstall.sh", "--purge")
    assert changes(site) == {}
