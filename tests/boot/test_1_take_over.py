"""A machine on which something else renews the key: it is listed, moved on demand, and put back."""

from __future__ import annotations

import re
from typing import Any

import pytest
from machine import await_
from shop_server import CONFIG, CURRENT, OPT, TIMER, UNITS, UPDATE, Site
from world.webkassa_simulator import slow

UPDATER = "/srv/salon/update_webkassa_key.py"
# What the public web application for salons ships, as far as it matters here
PREDECESSOR = {
    UPDATER: "import sys, time\ntime.sleep(float((sys.argv + ['0'])[1]))\n",
    "/srv/salon/app.py": "import time\ntime.sleep(9999)\n",
    f"{UNITS}/{UPDATE}": f"[Service]\nType=oneshot\nExecStart=/usr/bin/python3 {UPDATER}\n"
    "[Install]\nWantedBy=multi-user.target\n",
    f"{UNITS}/{UPDATE}.d/more.conf": "[Service]\nEnvironment=SALON=1\n",
    f"{UNITS}/{TIMER}": "[Timer]\nOnCalendar=03:00\n[Install]\nWantedBy=timers.target\n",
    f"{UNITS}/webkassa-key-renew.service": "[Service]\nType=oneshot\n"
    'ExecStart=/bin/sh -c "cd /srv/salon && \\\n  python3 update_webkassa_key.py"\n',
    f"{UNITS}/salon-night.service": "[Service]\nType=oneshot\n"
    f"ExecStartPre=/usr/bin/python3 {UPDATER}\nExecStart=/usr/bin/python3 -c 'print(1)'\n",
    "/etc/cron.d/webkassa-key-updater": f"SHELL=/bin/sh\n# 1 5 * * * root {UPDATER}\n"
    f"5 5 * * * root cd /srv/salon && python3 update_webkassa_key.py >> /var/log/x.log\n",
    "/var/spool/cron/crontabs/root": "0 1 * * * /srv/salon/backup.sh\n"
    f"30 5 * * * LOGIN=canary-login /usr/bin/python3 {UPDATER}\n0 2 * * * /srv/salon/report.sh\n",
}
# The shop's own: never to be touched, never to be accused
SHOP = {
    f"{UNITS}/salon.service": f"[Unit]\nAfter={UPDATE}\n[Service]\nExecStart=/usr/bin/python3 "
    f"/srv/salon/app.py --webkassa --settings {CONFIG}/webkassa.env\n"
    "[Install]\nWantedBy=multi-user.target\n",
    "/etc/cron.d/salon": "0 3 * * * root /srv/salon/send_receipts.py --to webkassa"
    " --log /var/log/webkassa_key_update.log\n",
    "/etc/cron.d/webkassa-key.bak": f"0 3 * * * root {UPDATER}\n",
}
USERS = {f"/etc/{name}" for name in ("passwd", "group", "shadow", "gshadow")}
LISTED = {
    f"unit  {UNITS}/{UPDATE}",
    f"dropins  {UNITS}/{UPDATE}.d",
    f"unit  {UNITS}/{TIMER}",
    f"unit  {UNITS}/webkassa-key-renew.service",
    f"link  {UNITS}/multi-user.target.wants/{UPDATE}",
    f"link  {UNITS}/timers.target.wants/{TIMER}",
    "line  /etc/cron.d/webkassa-key-updater:3",
    "line  /var/spool/cron/crontabs/root:2",
    f"look  {UNITS}/salon-night.service",
}


def listed(text: str) -> set[str]:
    return set(re.findall(r"^  (\w+  \S+)  \(", text, re.M))


@pytest.fixture(scope="module")
def before(site: Site) -> dict[str, str]:
    """The machine with its predecessor."""
    site.machine.write("/srv/salon/x", "")
    for path, text in (PREDECESSOR | SHOP).items():
        site.machine.write(path, text)
    site.run("sh", "-c", "cd /var/spool/cron/crontabs && chmod 600 root && chgrp crontab root")
    site.run("systemctl", "daemon-reload")
    site.run("systemctl", "enable", "--now", UPDATE, TIMER, "salon.service")
    return site.machine.tree()


def take_over(site: Site, *options: str) -> Any:
    return site.install("--env-file", "/root/my.env", "--take-over", *options)


def differences(site: Site, before: dict[str, str]) -> set[str]:
    """Return what is not as it was, but for what an install may leave: settings, users, code."""
    now = site.machine.tree()
    ours = ("etc/webkassa-key-updater", "opt/", "etc/passwd", "etc/group", "etc/shadow",
            "etc/gshadow", "var/backups/webkassa", "var/lib/webkassa", "etc/subuid", "etc/subgid")  # fmt: skip
    return {path for path in {*now, *before}
            if now.get(path) != before.get(path) and not path.startswith(ours)}  # fmt: skip


def test_what_is_not_of_the_installer_is_not_touched(site: Site, before: Any) -> None:
    """A folder or a link that somebody else made, under the names that root will run."""
    for make, said in (
        (f"mkdir -p /home/eve/opt && ln -s /home/eve/opt {OPT}", "is a link"),
        (f"mkdir {OPT} && touch {OPT}/mine", "is not of this installer"),
        (f"ln -s /home/eve/etc {CONFIG}", "is a link"),
        ("ln -s /bin/true /usr/local/bin/webkassa-key", "is not of this installer"),
        ("chmod o+w /opt", "can be changed by others than root"),
        (f"mkdir {UNITS}/webkassa-key-.service.d && chown nobody {UNITS}/webkassa-key-.service.d",
         "can be changed by others than root"),
    ):  # fmt: skip
        site.run("sh", "-c", make)
        result = take_over(site)
        assert result.returncode == 1, make
        assert said in result.stdout
        site.run("sh", "-c", f"rm -rf {OPT} {CONFIG} /usr/local/bin/webkassa-key /home/eve;"
                 f"chmod o-w /opt; rm -rf {UNITS}/webkassa-key-.service.d")  # fmt: skip
    assert site.webkassa.calls == []
    assert differences(site, before) == set()


# what is done to the machine, what takes it back, and what the installer says
NO_PLACE = [
    ("mount --bind /etc /etc && mount -o remount,bind,ro /etc", "umount /etc", "/etc is read-only."),
    ("mount -t tmpfs -o nr_inodes=500,mode=755 none /opt", "umount /opt", "8000 are needed."),
    ("mount -t tmpfs -o size=20m,mode=755 none /opt", "umount /opt", "250 are needed."),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "back", "said"), NO_PLACE)
def test_a_place_that_cannot_take_it_is_known_before_building(
    site: Site, before: Any, fault: str, back: str, said: str
) -> None:
    site.run("sh", "-c", fault)
    try:
        result = take_over(site)
        left = site.run("ls", "-A", "/opt").stdout
    finally:
        site.run("sh", "-c", back)
    assert result.returncode == 1
    assert said in result.stdout
    assert "Building" not in result.stdout
    assert left == ""
    assert differences(site, before) == set()


def test_predecessor_is_listed_and_nothing_is_changed(site: Site, before: Any) -> None:
    result = site.install("--env-file", "/root/my.env")
    assert result.returncode == 1
    assert listed(result.stdout) == LISTED
    assert "canary-login" not in result.stdout
    assert "--take-over --env-file /root/my.env" in result.stdout
    assert site.machine.tree() == before
    print(result.stdout)


def test_status_accuses_what_runs_an_updater_and_nothing_else(site: Site, before: Any) -> None:
    """Before anything is installed, by the script beside the installer."""
    result = site.run("/root/webkassa-key-updater/check-status.sh", check=False)
    accused = re.search("another one is (.*): each login", result.stdout)[1]
    assert set(re.findall(r"(/\S+) \(", accused)) == {
        line.split("  ")[1] for line in LISTED if not line.startswith("dropins")
    } - {f"{UNITS}/webkassa-key-renew.service"}  # which nothing starts


def test_take_over_needs_a_good_check(site: Site, before: Any) -> None:
    site.server.stop()
    try:
        result = take_over(site)
    finally:
        site.server.start()
    assert result.returncode == 1
    assert "Nothing was taken over. Mend it, then run: sudo " in result.stdout
    assert "--take-over --env-file /root/my.env\n" in result.stdout
    assert "sudo webkassa-key" not in result.stdout  # which is not there
    assert not (site.machine.root / OPT[1:]).exists()
    assert differences(site, before) == set()


def test_take_over_never_during_a_run(site: Site, before: Any) -> None:
    sleeper = site.machine.start_process("python3", UPDATER, "60")
    try:
        await_(lambda: UPDATER in site.run("sh", "-c", "cat /proc/*/cmdline | tr '\\0' ' '").stdout)
        result = take_over(site)
    finally:
        site.machine.kill("KILL", UPDATER)
        sleeper.communicate()
    assert result.returncode == 1
    assert "is at work: it may have logged in" in result.stdout
    assert differences(site, before) == set()


def test_all_comes_back_if_the_first_run_fails(site: Site, before: Any) -> None:
    site.reset(WEBKASSA_PASSWORD="canary-wrong")
    result = take_over(site)
    assert result.returncode == 1, result.stdout
    assert "The first update failed (code 77" in result.stdout
    assert "sudo webkassa-key" not in result.stdout
    assert differences(site, before) == set()
    assert site.run("systemctl", "is-active", TIMER, "salon").stdout == "active\nactive\n"
    assert not site.installed
    print(result.stdout)


@pytest.mark.parametrize("signal", ["KILL", "INT"])
def test_interrupted_take_over_is_put_back(site: Site, before: Any, signal: str) -> None:
    site.reset()
    site.webkassa.script.append(slow(3))
    installer = site.machine.start_process(
        "/root/webkassa-key-updater/install.sh", "--env-file", "/root/my.env", "--take-over",
        **site.offline,
    )  # fmt: skip
    await_(lambda: site.webkassa.authorizations == 1)
    site.machine.kill(signal, "install.sh")
    installer.communicate()
    if signal == "KILL":
        await_(lambda: site.holds_a_new_key)  # the service goes on
        result = site.install()
        assert "An earlier take-over was cut short" in result.stdout
        assert listed(result.stdout) == LISTED
        assert result.returncode == 1
    assert site.holds_a_new_key
    assert differences(site, before) == set()
    assert site.run("systemctl", "is-active", TIMER, "salon").stdout == "active\nactive\n"


def test_take_over_moves_exactly_the_list(site: Site, before: Any) -> None:
    site.reset()
    result = take_over(site)
    assert result.returncode == 0, result.stdout
    assert listed(result.stdout) == LISTED
    assert site.holds_a_new_key
    moved = {line.split("  ")[1].partition(":")[0] for line in LISTED if line[:4] != "look"}
    moved |= {f"{UNITS}/{UPDATE}.d/more.conf"}
    moved -= {f"{UNITS}/timers.target.wants/{TIMER}"}  # now of ours, and the same
    now = site.machine.tree()
    assert {f"/{path}" for path in before if now.get(path) != before[path]} - USERS == moved
    crontab = site.run("cat", "/var/spool/cron/crontabs/root").stdout
    assert re.fullmatch("0 1 .*\n# moved away by webkassa-key-updater: 30 5 .*\n0 2 .*\n", crontab)
    status = site.status()
    assert re.search(r"^WARNING   triggers   another one is \S+salon-night", status.stdout, re.M)
    print(result.stdout)


def test_after_a_take_over_a_boot_makes_no_login(site: Site, before: Any) -> None:
    site.reset()
    key = site.key_of_age(1)
    site.machine.drop_in("webkassa-key-boot.timer", "[Timer]\nOnBootSec=\nOnBootSec=1s\n")
    site.machine.power_off()
    site.machine.start()
    await_(lambda: site.machine.show("webkassa-key-boot.service", "ExecMainExitTimestamp"), 90)
    assert site.webkassa.authorizations == 0
    assert site.key == key


def test_the_way_back_is_as_printed(site: Site, before: Any) -> None:
    printed = site.run("sh", "-c", "ls -d /var/backups/webkassa-key-updater-*/put-back.sh").stdout
    back = printed.split()[-1]
    assert site.paste(f"sudo {back}").returncode == 1  # two would renew the key
    for unit in (UPDATE, "webkassa-key-boot.timer"):
        site.run("rm", "-r", f"{UNITS}/{unit}.d")  # of these tests
    result = site.paste(f"sudo {CURRENT}/uninstall.sh && sudo {back}")
    assert result.returncode == 0, result.stdout
    assert differences(site, before) == set()
    assert site.run("systemctl", "is-active", TIMER).stdout == "active\n"
    remove_predecessor(site)


def remove_predecessor(site: Site) -> None:
    site.run("systemctl", "disable", "--now", UPDATE, TIMER, "salon.service")
    for path in PREDECESSOR | SHOP:
        (site.machine.root / path[1:]).unlink()
    site.run("sh", "-c", f"rm -r /srv/salon {UNITS}/{UPDATE}.d /var/backups/webkassa-* {CONFIG}")
    site.run("systemctl", "daemon-reload")
