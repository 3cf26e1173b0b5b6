"""The first install, the status screen, and the command for people."""

from __future__ import annotations

import json
import re
from pathlib import Path

import psycopg2
import pytest
from machine import await_
from shop_server import (
    CONFIG,
    CURRENT,
    SETTINGS,
    TIMER,
    UNITS,
    UPDATE,
    Site,
    env_file,
)
from shown import snippet
from world.postgres import PASSWORD as DATABASE_PASSWORD
from world.webkassa_simulator import slow

# Press Ctrl-C (or hang up) on a terminal in which a command runs, when /tmp/press appears
TERMINAL = """
import os, pty, sys, time
pid, terminal = pty.fork()
if not pid:
    os.execvp(sys.argv[2], sys.argv[2:])
os.set_blocking(terminal, False)
said = b""
while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
    try:
        said += os.read(terminal, 9999)
    except OSError:
        pass
    if os.path.exists("/tmp/press"):
        os.remove("/tmp/press")
        os.write(terminal, b"\\x03") if sys.argv[1] == "ctrl-c" else os.close(terminal)
    time.sleep(0.02)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(said.decode(), f"code {code}")
"""


def test_install_with_the_examples_settings_says_what_to_fill_in(site: Site) -> None:
    site.reset()
    result = site.install("--no-run")
    assert result.returncode == 78, result.stdout
    assert "WEBKASSA_LOGIN: is still a placeholder" in result.stdout
    assert f"Mend it (settings: {SETTINGS}), then run: sudo webkassa-key check" in result.stdout
    assert site.webkassa.calls == []
    assert site.machine.show(TIMER, "NextElapseUSecRealtime")


def test_install_where_the_group_exists(site: Site) -> None:
    """Users stay when it is uninstalled, as with packages; --purge removes them."""
    site.run(f"{CURRENT}/uninstall.sh", "--purge")
    assert site.run("id", "webkassa-key-updater", check=False).returncode == 1
    site.run("groupadd", "--gid", "4711", "webkassa-key-updater")
    result = site.install("--no-run")
    assert result.returncode == 78, result.stdout
    site.run(f"{CURRENT}/uninstall.sh")
    assert "gid=4711(webkassa-key-updater)" in site.run("id", "webkassa-key-updater").stdout
    assert site.install("--no-run").returncode == 78
    site.run(f"{CURRENT}/uninstall.sh", "--purge")
    for name in ("webkassa-key-updater", "webkassa-key-clients"):
        assert site.run("getent", "group", name, check=False).returncode == 2


def test_install_checks_updates_and_proves_the_timer(site: Site) -> None:
    site.reset()
    result = site.install("--env-file", "/root/my.env", "--with-alerts")
    assert result.returncode == 0, result.stdout
    assert "ok    write: rehearsed" in result.stdout
    assert "Next run: " in result.stdout
    assert site.holds_a_new_key
    assert site.webkassa.authorizations == 1
    modes = site.run("stat", "-c", "%U:%G %a", SETTINGS, CONFIG).stdout
    assert modes == "root:webkassa-key-updater 640\nroot:webkassa-key-updater 750\n"
    assert site.run("systemctl", "is-enabled", TIMER).stdout == "enabled\n"
    modules = site.run("find", f"{CURRENT}/", "-name", "webkassa_key_updater*.py*").stdout.split()
    assert len(modules) == 2, modules  # one, and compiled
    assert all("/venv/lib/python3" in module for module in modules)
    heal = site.run("systemctl", "is-enabled", "webkassa-key-heal.timer", check=False)
    assert heal.stdout == "disabled\n"
    print(result.stdout)


def test_status_is_one_screen_and_a_monitors_code(site: Site) -> None:
    result = site.status()
    assert result.returncode == 0, result.stdout
    assert re.match(r"WEBKASSA OK - key .*\|age=\d+s;90000;176400\n", result.stdout)
    assert re.search(r"^OK        key        [0-9a-f]{8}, 0\.0 h old", result.stdout, re.M)
    assert "next run" in result.stdout
    assert len(result.stdout.splitlines()) <= 24
    report = json.loads(site.run("webkassa-key", "status", "--json").stdout)
    assert report["status"] == report["key"]["status"] == "OK"
    assert (
        site.run(f"{CURRENT}/check-status.sh").stdout.splitlines()[1:9]
        == result.stdout.splitlines()[1:9]
    )
    print(result.stdout)


def test_status_without_root_says_what_it_could_not_see(site: Site) -> None:
    result = site.run("runuser", "-u", "nobody", "--", "webkassa-key", "status", check=False)
    assert result.returncode == 3
    assert "key        not visible to nobody without sudo" in result.stdout
    assert (
        "triggers   not visible to nobody without sudo: /var/spool/cron/crontabs" in result.stdout
    )
    assert "enabled, active, next run" in result.stdout
    print(result.stdout)


def test_a_monitors_user_may_ask_for_the_status_and_nothing_else(site: Site) -> None:
    """By the lines of the manual, and by what named the command of version 1. Debian 13's sudo tells a
    command from a link to it, and sid's finds a plain name in /usr/bin."""
    link = "/usr/local/bin/webkassa-key"
    of_version_1 = f"nagios ALL=(root) NOPASSWD: {link} status, {link} status --json\n"
    for lines, typed in (
        (of_version_1, (link,)),
        (snippet("sudoers"), ("webkassa-key", link, "/usr/bin/webkassa-key")),
    ):
        site.machine.write("/etc/sudoers.d/monitor", lines.replace("nagios", "nobody"))
        for command in typed:
            ask = ("runuser", "-u", "nobody", "--", "sudo", "-n", command)
            assert "WEBKASSA OK" in site.run(*ask, "status").stdout
            assert site.run(*ask, "status", "--json").returncode == 0
            for more in (["update"], ["check"], ["status", "-v"]):
                assert site.run(*ask, *more, check=False).returncode == 1
    (site.machine.root / "etc/sudoers.d/monitor").unlink()


def test_units_please_systemd_and_are_locked_down(site: Site) -> None:
    units = site.run("sh", "-c", f"ls {UNITS}/webkassa-key-* -d | grep -v [.]d$").stdout.split()
    assert len(units) == 11
    assert site.run("systemd-analyze", "verify", *units).stdout == ""
    for name in ("update", "boot", "net", "heal", "alert", "renew@x"):
        result = site.run(
            "systemd-analyze", "security", "--no-pager", f"webkassa-key-{name}.service"
        ).stdout
        assert float(re.search(r"Overall exposure level .*: ([0-9.]+)", result)[1]) <= 1.3


def test_the_command_tells_what_the_night_will_do(site: Site) -> None:
    """Drop-ins of the daily run and of all units reach it; a plain shell's check would be green."""
    site.reset()
    for folder in (f"{UPDATE}.d", "webkassa-key-.service.d"):
        site.machine.write(f"{UNITS}/{folder}/50-local.conf",
                           "[Service]\nEnvironment=WEBKASSA_AUTH_URL=ftp://nowhere\n")  # fmt: skip
        site.run("systemctl", "daemon-reload")
        assert site.start().returncode == 1
        assert site.machine.show(UPDATE, "ExecMainStatus") == "78"
        result = site.run("webkassa-key", "check", check=False)
        assert result.returncode == 78
        assert "WEBKASSA_AUTH_URL" in result.stdout
        (site.machine.root / UNITS[1:] / folder / "50-local.conf").unlink()
        site.reset()


def test_nothing_of_the_caller_goes_through(site: Site, tmp_path: Path) -> None:
    site.machine.write("/root/evil.sh", "touch /root/was-here\n")
    env = {"WEBKASSA_AUTH_URL": "ftp://nowhere", "BASH_ENV": "/root/evil.sh", "PATH": "/nowhere:/usr/bin",
           "SYSTEMD_UNIT_PATH": "/nowhere", "PYTHONPATH": "/nowhere"}  # fmt: skip
    assert site.run("/usr/local/bin/webkassa-key", "check", **env).returncode == 0
    assert not (site.machine.root / "root/was-here").exists()
    for wrong in (["check", "--env-file", "/root/my.env"], ["update", "-v"], ["update", "check"],
                  ["update", "--if-key", "-"], ["--env-file", "/x", "update"], [], ["status", "x"]):  # fmt: skip
        result = site.run("webkassa-key", *wrong, check=False)
        assert result.returncode == (3 if wrong[:1] == ["status"] else 2), wrong
    result = site.run("runuser", "-u", "nobody", "webkassa-key", "check", check=False)
    assert result.stdout == "webkassa-key: must be run by root: sudo webkassa-key check\n"


def test_looking_changes_nothing(site: Site) -> None:
    """Nor does the command get drop-ins otherwise than the daily run does: at a daemon-reload."""
    site.reset()
    path = f"{UNITS}/{UPDATE}.d/50-local.conf"
    site.machine.write(path, "[Service]\nEnvironment=WEBKASSA_AUTH_URL=ftp://nowhere\n")
    assert site.start().returncode == 0
    before = site.machine.tree()
    assert site.run("webkassa-key", "check").returncode == 0
    assert "systemctl daemon-reload" in site.status().stdout
    assert site.run("webkassa-key", "status", "--json", check=False).returncode == 1
    assert site.machine.tree() == before
    site.run("systemctl", "daemon-reload")
    assert site.run("webkassa-key", "check", check=False).returncode == 78
    (site.machine.root / path[1:]).unlink()
    site.run("systemctl", "daemon-reload")
    assert site.run("webkassa-key", "check").returncode == 0


def test_consumers_cannot_ask_where_the_folder_was_removed(site: Site) -> None:
    site.reset()
    assert site.start().returncode == 0
    site.run("rm", "-r", "/run/webkassa-key")
    status = site.status()
    assert "WARNING   consumers  cannot ask for a new key" in status.stdout
    assert site.paste(re.search("-> (sudo systemctl restart .+)", status.stdout)[1]).returncode == 0
    assert site.status().returncode == 0


def test_a_drop_in_cannot_make_a_login_of_a_check(site: Site) -> None:
    site.reset()
    site.machine.drop_in(UPDATE, f"[Service]\nExecStart=\nExecStart={CURRENT}/venv/bin/"
                         f"webkassa-key-updater --env-file {SETTINGS} -v update\n")  # fmt: skip
    result = site.run("webkassa-key", "check", check=False)
    assert result.returncode == 78
    assert f"{UPDATE}.d/test.conf sets ExecStart=" in result.stdout
    assert site.webkassa.authorizations == 0
    site.reset()


def press(site: Site, how: str, *command: str) -> str:
    site.machine.write("/srv/terminal.py", TERMINAL)
    process = site.machine.start_process("python3", "/srv/terminal.py", how, *command)
    site.press = lambda: site.machine.run("touch", "/tmp/press")
    return process


@pytest.mark.parametrize("how", ["ctrl-c", "hang-up"])
def test_who_interrupts_a_login_gets_the_key_stored_first(site: Site, how: str) -> None:
    site.reset()
    site.webkassa.script.append(slow(2))
    process = press(site, how, "webkassa-key", "update")
    await_(lambda: site.webkassa.authorizations == 1)
    site.press()
    process.communicate()
    assert site.holds_a_new_key
    assert site.webkassa.authorizations == 1
    assert "webkassa-key-command" not in site.run("systemctl", "list-units").stdout


@pytest.mark.parametrize("how", ["ctrl-c", "hang-up"])
def test_who_interrupts_a_wait_ends_the_run(site: Site, how: str) -> None:
    """With a bare systemd-run it would go on unseen."""
    site.reset()
    blocker = psycopg2.connect(host="127.0.0.1", port=site.server.port, dbname="postgres",
                               user="postgres", password=DATABASE_PASSWORD)  # fmt: skip
    blocker.cursor().execute("LOCK TABLE api_keys")
    process = press(site, how, "webkassa-key", "update")
    await_(lambda: site.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
    site.press()
    said, _ = process.communicate()
    blocker.close()
    assert how == "hang-up" or "code 130" in said
    await_(lambda: "webkassa-key-command" not in site.run("systemctl", "list-units").stdout)
    assert site.webkassa.authorizations == 0


def test_status_does_not_forget_a_failure(site: Site) -> None:
    site.reset(WEBKASSA_PASSWORD="canary-wrong")
    site.start()
    await_(lambda: site.state() == "failed")
    site.run("systemctl", "reset-failed", UPDATE)
    result = site.status()
    assert result.returncode == 2, result.stdout
    assert "failing since" in result.stdout
    assert "(code 77: Webkassa refuses the login" in result.stdout
    site.machine.power_off()  # nor over a boot, which makes systemd forget
    site.machine.start()
    site.run("systemctl", "stop", "webkassa-key-boot.timer")  # it would run amid the tests to come
    result = site.status()
    assert result.returncode == 2, result.stdout
    assert "failing since" in result.stdout
    site.machine.write(SETTINGS, env_file(site.settings))
    (cure,) = re.findall("-> (.+)", result.stdout)
    assert cure.startswith(f"put in the right login and password: sudo nano {SETTINGS}; then: ")
    assert site.paste(cure.partition("; then: ")[2]).returncode == 0
    assert site.status().returncode == 0


def test_a_good_run_by_hand_ends_the_retries(site: Site) -> None:
    site.reset()
    site.machine.drop_in(UPDATE, "[Service]\nRestartSec=5min\n")
    site.server.stop()
    try:
        site.start()
        await_(lambda: "auto-restart" in site.state())
        status = site.status()
    finally:
        site.server.start()
    assert "It is tried again by itself." in status.stdout
    command = re.search("-> (sudo webkassa-key .+)", status.stdout)[1]
    assert site.paste(command).returncode == 0
    assert site.paste("sudo webkassa-key update").returncode == 0
    assert site.state() == "dead"
    status = site.status()
    assert status.returncode == 0, status.stdout
    assert re.search("^OK +last run +good: renewed by hand ", status.stdout, re.M)


# what is done to the settings, what the status says, whether the printed command mends it
SETTINGS_FAULTS = [
    (f"chmod 600 {SETTINGS}", "CRITICAL", "the service cannot read it", True),
    (f"chmod 644 {SETTINGS}", "WARNING", "not root:webkassa-key-updater 640", True),
    (f"rm {SETTINGS}", "CRITICAL", "is missing", True),
    (f"mv {SETTINGS} /home/w.env; ln -s /home/w.env {SETTINGS}", "CRITICAL", "hidden", False),
    (f"ln -sfn /srv/away {SETTINGS}", "CRITICAL", "which is not there", False),
]


@pytest.mark.parametrize(("fault", "level", "said", "mendable"), SETTINGS_FAULTS)
def test_settings_that_the_service_cannot_read_are_critical(
    site: Site, fault: str, level: str, said: str, mendable: bool
) -> None:
    site.reset()
    site.run("sh", "-c", fault)
    result = site.status()
    assert re.search(f"^{level} +settings .*{said}", result.stdout, re.M), result.stdout
    assert "install.sh" not in result.stdout  # which would not mend it
    for command in re.findall("-> (sudo (?:chown|install) .+)", result.stdout):
        assert site.paste(command).returncode == 0
    result = site.status()
    assert bool(re.search("^OK +settings", result.stdout, re.M)) == mendable, result.stdout
    site.run("rm", "-f", SETTINGS, "/home/w.env")
    site.reset()
    site.run("chown", "root:webkassa-key-updater", SETTINGS)
    site.run("chmod", "640", SETTINGS)


def test_settings_that_are_a_link_are_judged_by_their_target(site: Site) -> None:
    site.reset()
    site.run("sh", "-c", f"mv {SETTINGS} /srv/w.env && ln -s /srv/w.env {SETTINGS}")
    result = site.status()
    assert "OK        settings   /srv/w.env, root:webkassa-key-updater 640" in result.stdout
    site.run("sh", "-c", f"rm {SETTINGS} && mv /srv/w.env {SETTINGS}")


def test_status_names_each_fault_and_what_mends_it(site: Site) -> None:
    site.reset()
    site.run("chmod", "644", SETTINGS)
    site.run("systemctl", "disable", "--now", TIMER, "webkassa-key-renew.socket")
    site.run("systemctl", "disable", "webkassa-key-boot.timer")
    site.machine.write("/etc/cron.d/keys", "5 5 * * * root webkassa_key_updater.py\n")
    result = site.status()
    assert result.returncode == 2
    print(result.stdout)
    assert "another one is /etc/cron.d/keys:1" in result.stdout
    (site.machine.root / "etc/cron.d/keys").unlink()
    for command in re.findall("-> (sudo .+)", result.stdout):
        if "--take-over" not in command:
            site.paste(command)
    result = site.status()
    assert result.returncode == 0, result.stdout
