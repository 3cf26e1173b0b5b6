"""What uninstall.sh takes away, and what it leaves."""

from __future__ import annotations

import re

import pytest
from machine import await_
from shop_server import CURRENT, OFFLINE, OPT, SOURCE, TIMER, UNITS, UPDATE, Site

pytestmark = pytest.mark.usefixtures("installed")

USERS = {f"etc/{name}" for name in ("passwd", "group", "shadow", "gshadow")}
FOREIGN = (f"{OPT}.bak", f"{OPT}.old/settings", f"{OPT}/releases/mine/notes")


def changes(site: Site) -> dict[str, str]:
    """Return what is not as it was before the first install, and how it is now."""
    now = site.machine.tree()
    paths = {*now, *site.pristine}
    changed = {p: now.get(p, "gone") for p in paths if now.get(p) != site.pristine.get(p)}
    return {p: " ".join(what.split(" ")[:2]) if ".env" in p or ".conf" in p else what
            for p, what in changed.items()}  # fmt: skip


def test_folders_of_somebody_else_are_not_deleted(site: Site) -> None:
    """Beside ours, or in it: an upgrade and an uninstall leave what bears no mark."""
    site.reset()
    for path in FOREIGN:
        site.machine.write(path, "mine")
    copy = f"{OPT}/releases/kept"
    site.run("cp", "-a", f"{OPT}/releases/{site.release}", copy)
    assert site.install().returncode == 0
    result = site.run(f"{SOURCE}/uninstall.sh")
    assert f"Kept: {OPT}\n" in result.stdout
    for path in (*FOREIGN, f"{copy}/install.sh"):
        assert (site.machine.root / path[1:]).exists(), path
    site.run("rm", "-r", f"{OPT}.bak", f"{OPT}.old", OPT)
    assert site.install("--no-run").returncode == 0


def test_uninstall_waits_for_who_runs_it_by_hand(site: Site) -> None:
    process = site.machine.start_process(
        "runuser", "-u", "webkassa-key-updater", "--", "sleep", "99"
    )
    await_(lambda: "99" in site.run("sh", "-c", "cat /proc/*/cmdline | tr '\\0' ' '").stdout)
    result = site.run(f"{SOURCE}/uninstall.sh", check=False)
    site.machine.kill("KILL", "sleep")
    process.communicate()
    assert result.returncode == 1
    assert "webkassa-key-updater still has a process" in result.stdout
    assert site.installed
    assert site.install("--no-run").returncode == 0


def test_uninstall_leaves_the_machine_as_before_and_the_settings(site: Site) -> None:
    site.run("sh", "-c", f"rm -rf {UNITS}/webkassa-key-*.d/test.conf; rmdir {UNITS}/webkassa-key-*.d"
             " 2>/dev/null; userdel shop; userdel stranger; rm -rf /var/backups/webkassa-*")  # fmt: skip
    site.machine.write("/etc/webkassa-key-updater/apprise.conf", "json://127.0.0.1:1\n")
    site.run("chown", "root:webkassa-key-updater", "/etc/webkassa-key-updater/apprise.conf")
    site.run("chmod", "640", "/etc/webkassa-key-updater/apprise.conf")
    key = site.key
    killed = site.interrupt_install('mv -fT "$SNAPSHOT/$name.new"', "KILL")
    assert killed.returncode in (-9, 137)  # what it leaves behind goes, too
    result = site.run(f"{CURRENT}/uninstall.sh", PATH="/usr/bin:/usr/sbin:/with a blank")
    assert "Kept: /etc/webkassa-key-updater" in result.stdout
    group = site.run("id", "-g", "webkassa-key-updater").stdout.strip()
    assert {path: what for path, what in changes(site).items() if path not in USERS} == {
        "etc/webkassa-key-updater": f"40750 0:{group} ",
        "etc/webkassa-key-updater/webkassa.env": f"100640 0:{group}",
        "etc/webkassa-key-updater/apprise.conf": f"100640 0:{group}",
    }
    left = site.run("sh", "-c", "ls /run /run/systemd/system").stdout
    assert not re.search("webkassa-key$|trial-of", left, re.MULTILINE), left
    assert site.key == key
    assert site.run(f"{SOURCE}/uninstall.sh").returncode == 0


def test_install_after_uninstall_takes_up_the_kept_settings(site: Site) -> None:
    site.reset()
    result = site.run(
        "sh", "-c", f"umask 077; {SOURCE}/install.sh --with-heal --with-alerts", **OFFLINE
    )
    assert result.returncode == 0, result.stdout
    assert site.holds_a_new_key
    assert site.run("systemctl", "is-active", "webkassa-key-heal.timer").stdout == "active\n"
    status = site.status()  # alerts' addresses are readable again, too
    assert "OK        alerts     /etc/webkassa-key-updater/apprise.conf" in status.stdout
    assert site.run("systemctl", "is-active", TIMER).stdout == "active\n"


def test_purge_leaves_nothing(site: Site) -> None:
    site.machine.drop_in(UPDATE, "[Service]\nRestartSec=2\n")
    site.run(f"{SOURCE}/uninstall.sh", "--purge")
    assert changes(site) == {}
