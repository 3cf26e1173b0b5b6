"""An upgrade that fails, or is interrupted, changes nothing."""

from __future__ import annotations

import os
import re
import subprocess
import time
from typing import Any

import pytest
from machine import await_
from shop_server import (
    BOOT,
    CONFIG,
    CURRENT,
    OPT,
    SETTINGS,
    SOURCE,
    TIMER,
    UNITS,
    UPDATE,
    Site,
    env_file,
)

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture(scope="module", autouse=True)
def _without_alerts(site: Site, installed: None) -> None:
    """Apprise doubles the time that an upgrade takes."""
    site.run("rm", "-rf", f"{CURRENT}/alerts")


HEAL = "webkassa-key-heal.service"
BROKEN = "/root/broken"
STEPS = [
    "mkdir \"$release\"",
    "build \"$python\" -m venv",
    "systemctl daemon-reload",
    "mkdir -p \"$SNAPSHOT",
    "mv -T \"$HOME_DIR/.next\"",
    "mv -fT \"$SNAPSHOT/$name.new\"",
    "mv -fT \"$COMMAND.new\"",
    "systemctl \"$verb\" \"$unit\"",
    "systemctl start \"$service\"",
    "rm -f \"$HOME_DIR/previous\"",
    "rm -rf \"$1\"",
    "conclude",
]  # fmt: skip


def works(site: Site) -> None:
    """What is installed renews a dead key, and its timer and socket are ready."""
    site.key_of_age(2)
    site.webkassa.issue()
    site.webkassa.calls.clear()
    site.run("systemctl", "start", HEAL)
    assert site.holds_a_new_key
    units = (TIMER, "webkassa-key-renew.socket")
    assert site.run("systemctl", "is-active", *units).stdout == "active\nactive\n"
    assert site.run("webkassa-key", "check").returncode == 0
    units = f"systemd-analyze verify {UNITS}/webkassa-key-*.{{service,timer,socket}}"
    assert site.run("bash", "-c", units).stdout == ""


def state(site: Site) -> dict[str, Any]:
    skipped = ("run", "var/lib", "etc/systemd/system/webkassa-key-command-")
    units = {path: what for path, what in site.machine.tree().items()
             if "webkassa-key" in path and "/releases" not in path and not path.startswith(skipped)}  # fmt: skip
    return {"release": site.release, "releases": site.releases, **units}


def unchanged(site: Site, before: dict[str, Any]) -> bool:
    now = state(site)
    changed = {
        k: (before.get(k), now.get(k)) for k in {*before, *now} if before.get(k) != now.get(k)
    }
    print(changed)
    return not changed


def break_source(site: Site, at_update: str) -> None:
    """A new version that passes its check; its update does this, and its units differ."""
    site.run("sh", "-c", f"rm -rf {BROKEN}; cp -a {SOURCE} {BROKEN}; "
             f"sed -i 's/^Description=/&New: /' {BROKEN}/systemd/*.service")  # fmt: skip
    path = site.machine.root / BROKEN[1:] / "webkassa_key_updater.py"
    text = path.read_text()
    path.write_text(re.sub(r"(?m)^def run_as_program.*\n",
                           rf"\g<0>    if 'update' in sys.argv: {at_update}\n", text))  # fmt: skip


def test_a_failed_install_leaves_the_earlier_one_working(site: Site) -> None:
    site.reset()
    before = state(site)
    result = site.install(PIP_FIND_LINKS="/nowhere")
    assert result.returncode == 1
    assert "pip failed" in result.stdout
    assert "the key, and what renews it, are as they were" in result.stdout
    site.server.stop()
    try:
        result = site.install()
    finally:
        site.server.start()
    assert result.returncode == 1
    assert "The check failed (code 75, see above). The earlier version stays" in result.stdout
    assert unchanged(site, before)
    works(site)


def test_a_release_of_the_first_kind_stays_in_use_when_the_check_fails(site: Site) -> None:
    """Its module lies beside its venv."""
    site.reset()
    as_first = (
        "mv venv/bin/webkassa-key-updater /srv; cp venv/lib/python3*/site-packages/webkassa*.py ."
    )
    site.run("sh", "-c", f"cd {CURRENT}; {as_first}")
    before = state(site)
    site.server.stop()
    try:
        result = site.install()
    finally:
        site.server.start()
    assert "The check failed (code 75, see above). The earlier version stays" in result.stdout
    assert unchanged(site, before)
    site.run("sh", "-c", f"cd {CURRENT}; mv /srv/webkassa-key-updater venv/bin; rm webkassa*.py")


@pytest.mark.parametrize(
    ("at_update", "code"),
    [("os._exit(70)", 70), ("sys.exit(1)", 1), ("os.kill(os.getpid(), 11)", 255)],
)
def test_a_new_version_that_breaks_down_is_taken_back(
    site: Site, at_update: str, code: int
) -> None:
    site.reset()
    before = state(site)
    break_source(site, at_update)
    result = site.install(source=BROKEN)
    assert result.returncode == 1, result.stdout
    assert f"The new version failed (code {code}, see above)" in result.stdout
    assert "was not installed: the earlier version is in use again." in result.stdout
    assert unchanged(site, before)
    works(site)


def test_the_earlier_version_stays_until_a_good_run(site: Site) -> None:
    site.reset(WEBKASSA_PASSWORD="canary-wrong")
    earlier = site.release
    result = site.install()
    assert result.returncode == 77, result.stdout
    assert site.release != earlier
    assert site.releases == sorted([earlier, site.release])
    site.machine.write(SETTINGS, env_file(site.settings))
    result = site.install()
    assert result.returncode == 0, result.stdout
    assert site.releases == [site.release]


def test_with_a_young_live_key_an_upgrade_does_not_log_in(site: Site) -> None:
    site.reset()
    key, earlier = site.key_of_age(1), site.release
    # And who reads its first line only gets an upgrade all the same
    result = site.run("bash", "-o", "pipefail", "-c", f"{SOURCE}/install.sh 2>&1 | head -n 1",
                      check=False, **site.offline)  # fmt: skip
    assert result.returncode == 0, result.stdout
    assert site.release != earlier
    assert site.key == key
    assert site.webkassa.authorizations == 0


def test_no_run_runs_nothing(site: Site) -> None:
    site.reset()
    site.machine.drop_in(TIMER, "[Timer]\nPersistent=true\n")
    result = site.install("--no-run", "--with-heal")
    assert result.returncode == 0, result.stdout
    assert site.webkassa.authorizations == 0
    assert site.machine.show(UPDATE, "ActiveState") == "inactive"
    assert site.run("systemctl", "is-active", "webkassa-key-heal.timer").stdout == "active\n"
    site.run("systemctl", "disable", "--now", "webkassa-key-heal.timer")
    site.machine.no_drop_in(TIMER)


def test_a_disabled_timer_stays_disabled_and_that_is_said(site: Site) -> None:
    site.reset()
    site.run("systemctl", "disable", "--now", TIMER)
    result = site.install()
    assert result.returncode == 0, result.stdout
    assert f"{TIMER} was disabled and stays so" in result.stdout
    command = re.search(f"To enable it: (sudo .*{TIMER})", result.stdout)[1]
    assert site.run("systemctl", "is-active", TIMER, check=False).stdout == "inactive\n"
    assert site.paste(command).returncode == 0
    assert site.run("systemctl", "is-active", TIMER).stdout == "active\n"


def test_an_upgrade_takes_over_on_demand_only(site: Site) -> None:
    site.reset()
    site.key_of_age(1)
    line = "5 5 * * * root /srv/salon/update_webkassa_key.py\n"
    site.machine.write("/etc/cron.d/salon", line)
    result = site.install()
    assert result.returncode == 0, result.stdout
    assert "/etc/cron.d/salon:1  (runs update_webkassa_key.py)" in result.stdout
    assert site.run("cat", "/etc/cron.d/salon").stdout == line
    result = site.install("--take-over")
    assert result.returncode == 0, result.stdout
    assert site.run("cat", "/etc/cron.d/salon").stdout.startswith("# moved away by")
    assert "To go back to it" in result.stdout
    assert not (site.machine.root / OPT[1:] / "taking-over").is_symlink()
    site.run("sh", "-c", "rm -r /etc/cron.d/salon /var/backups/webkassa-*")


def test_an_upgrade_stays_unpinned_until_it_is_told_otherwise(site: Site) -> None:
    """The lock names a version that no folder has, as on a processor for which PyPI has no wheel."""
    site.reset()
    lock = f"{BROKEN}/requirements.lock"
    site.run(
        "sh", "-c", f"rm -rf {BROKEN}; cp -a {SOURCE} {BROKEN}; sed -i 's/^requests==/&9/' {lock}"
    )
    for source, options, code in (
        (BROKEN, [], 1),
        (BROKEN, ["--unpinned"], 0),
        (CURRENT, [], 0),  # as the status says to mend it
        (BROKEN, ["--pinned"], 1),
        (SOURCE, ["--pinned"], 0),
    ):
        result = site.install("--no-run", *options, source=source)
        assert result.returncode == code, result.stdout
        unpinned = code == 0 and "--pinned" not in options
        assert ("So will upgrades, until --pinned." in result.stdout) == unpinned
    works(site)


def test_settings_that_are_a_link_stay_one(site: Site) -> None:
    site.reset()
    site.run("sh", "-c", f"mv {SETTINGS} /srv/w.env && ln -s /srv/w.env {SETTINGS}")
    site.run("chmod", "640", "/srv/w.env")
    before = site.run("stat", "-c", "%U:%G %a %Y", "/srv/w.env").stdout
    assert site.install().returncode == 0
    assert site.run("readlink", SETTINGS).stdout == "/srv/w.env\n"
    assert site.run("stat", "-c", "%U:%G %a %Y", "/srv/w.env").stdout == before
    site.run("mv", "/srv/w.env", "/srv/away")
    result = site.install()  # its target is away: nothing is put there
    assert result.returncode == 1
    assert site.run("readlink", SETTINGS).stdout == "/srv/w.env\n"
    assert not (site.machine.root / "srv/w.env").exists()
    site.run("sh", "-c", f"rm {SETTINGS}; mv /srv/away {SETTINGS}")
    works(site)


def test_an_upgrade_is_checked_with_the_administrators_drop_ins(site: Site) -> None:
    """As the sandbox file advises; a check in the bare sandbox would block every upgrade."""
    site.run("ln", "-s", "/run/postgresql", "/tmp/pg")
    site.reset(POSTGRES_HOST="/tmp/pg")
    result = site.install()
    assert result.returncode == 1
    assert "/tmp/pg is there, but the service cannot see it" in result.stdout
    for folder in (f"{UPDATE}.d", "webkassa-key-.service.d"):
        drop_in = f"{UNITS}/{folder}/70-tmp.conf"
        site.machine.write(drop_in, "[Service]\nPrivateTmp=false\n")
        site.run("systemctl", "daemon-reload")
        site.key_of_age(1)
        result = site.install(*(["--no-run"] if folder.startswith(UPDATE) else []))
        assert result.returncode == 0, result.stdout
        assert (site.machine.root / drop_in[1:]).exists()
        (site.machine.root / drop_in[1:]).unlink()
    site.run("rm", "/tmp/pg")
    site.reset()
    works(site)


def test_units_that_systemd_refuses_with_a_drop_in_change_nothing(site: Site) -> None:
    site.reset()
    site.machine.drop_in(UPDATE, "[Service]\nType=simple\nExecStart=/bin/true\n")
    before = state(site)
    result = site.install()
    assert result.returncode == 1, result.stdout
    assert "systemd refuses the units of the new version" in result.stdout
    assert unchanged(site, before)
    site.reset()
    works(site)


def test_waiting_for_the_next_retry_does_not_hold_it_up(site: Site) -> None:
    """A plain `systemctl start` hangs for RestartSec then."""
    site.reset()
    site.machine.drop_in(BOOT, "[Service]\nRestartSec=5min\n")
    site.server.stop()
    site.run("systemctl", "start", BOOT, check=False)
    await_(lambda: "auto-restart" in site.machine.show(BOOT, "SubState"))
    site.server.start()
    began = time.monotonic()
    assert site.install().returncode == 0
    assert time.monotonic() - began < 60
    site.machine.no_drop_in(BOOT)


def test_two_at_once(site: Site) -> None:
    first = site.machine.start_process(f"{SOURCE}/install.sh", **site.offline)
    try:
        await_(lambda: len(site.releases) > 1)
        for script in ("install.sh", "uninstall.sh"):
            result = site.run(f"{SOURCE}/{script}", check=False)
            assert result.returncode == 1
            assert "Another install.sh or uninstall.sh is at work." in result.stdout
        reader = site.run(
            "runuser", "-u", "nobody", "cat", "/run/webkassa-key-updater.lock", check=False
        )
        assert reader.returncode == 1  # or anybody could hold it
    finally:
        first.communicate()
    works(site)


def test_the_pip_of_a_killed_installer_holds_no_lock_and_leaves_nothing(site: Site) -> None:
    site.reset()
    first = site.machine.start_process(f"{SOURCE}/install.sh", **site.offline)
    await_(
        lambda: (
            "install --quiet" in site.run("sh", "-c", "cat /proc/*/cmdline | tr '\\0' ' '").stdout
        )
    )
    site.machine.kill("STOP", "disable-pip-version-check")  # it would go on when all is over
    site.machine.kill("KILL", "install.sh")
    result = site.install()
    assert result.returncode == 0, result.stdout
    site.machine.kill("CONT", "disable-pip-version-check")
    first.communicate()
    assert site.releases == [site.release]
    works(site)


@pytest.mark.parametrize("signal", ["KILL", "INT"])
def test_interrupted_at_any_step_the_earlier_version_runs_on(site: Site, signal: str) -> None:
    site.reset()
    steps = STEPS if signal == "KILL" else STEPS[2:10:2]
    for step in steps:
        before = state(site)
        result = site.interrupt_install(step, signal)
        code = {"KILL": -9, "INT": 130}[signal]
        assert result.returncode in (code, 128 - code), (step, result.stdout)
        if signal == "INT":
            assert unchanged(site, before), (step, result.stdout)
        works(site)
    result = site.install()
    assert result.returncode == 0, result.stdout
    assert site.releases == [site.release]
    works(site)
    left = site.run("sh", "-c", f"find /etc /usr/bin /usr/local /opt {CONFIG} -name '*.new' -o -name '.next*';"
                    f" ls -d {UNITS}/.web* /run/trial* /run/systemd/system/trial*", check=False).stdout  # fmt: skip
    assert [line for line in left.splitlines() if not line.startswith("ls:")] == []


def test_a_full_disk_changes_nothing(site: Site) -> None:
    site.reset()
    before = state(site)
    site.run("sh", "-c", f"mount -t tmpfs -o size=120k none /mnt && cp -a {UNITS}/. /mnt && "
             f"(cat /dev/zero > /mnt/full || true) && mount --bind /mnt {UNITS}")  # fmt: skip
    try:
        result = site.install()
    finally:
        site.run("sh", "-c", f"umount {UNITS} /mnt")
    assert result.returncode == 1, result.stdout
    assert f"The disk of {UNITS} is full" in result.stdout
    assert unchanged(site, before)
    works(site)


def test_no_empty_settings_are_left_by_a_full_disk(site: Site) -> None:
    site.reset()
    site.run(
        "sh",
        "-c",
        f"mount -t tmpfs -o size=4k,mode=755 none {CONFIG} && (cat /dev/zero > {CONFIG}/full || true)",
    )
    try:
        result = site.install("--env-file", "/root/my.env")
        assert result.returncode == 1, result.stdout
        assert f"The disk of {CONFIG} is full" in result.stdout
        assert site.run("ls", CONFIG).stdout == "full\n"
    finally:
        site.run("umount", CONFIG)
    works(site)


def test_a_place_without_room_or_execution_is_named(site: Site) -> None:
    for options, said in (
        ("noexec,mode=755", "noexec"),
        ("size=20m,mode=755", "The disk of /opt is full"),
    ):
        site.run("mount", "-t", "tmpfs", "-o", options, "none", "/opt")
        try:
            result = site.install()
        finally:
            site.run("umount", "/opt")
        assert result.returncode == 1
        assert said in result.stdout
    works(site)


def allow_user_namespaces(number: str) -> str:
    """Set how many this host allows; return how many it did. /proc/sys may be read-only."""
    script = 'mount -t proc proc /mnt && cat "$0" && echo "$1" > "$0"'
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "/mnt/sys/user/max_user_namespaces",
        number,
    ]
    return subprocess.check_output(command, text=True).strip()


@pytest.mark.skipif(
    not os.environ.get("WEBKASSA_BOOT_USERNS"),
    reason="WEBKASSA_BOOT_USERNS=1: this host is to allow no user namespaces for some minutes",
)
def test_a_host_that_forbids_user_namespaces_is_served_without(site: Site) -> None:
    site.reset()
    sandbox = site.machine.root / f"{UNITS}/webkassa-key-.service.d/00-sandbox.conf"[1:]
    before = allow_user_namespaces("0")
    try:
        site.start()
        await_(lambda: site.state() == "failed")
        status = site.status()
        assert "code 217: " in status.stdout
        assert f"-> sudo {CURRENT}/install.sh\n" in status.stdout
        result = site.install()
        assert result.returncode == 0, result.stdout
        assert (
            "allows no user namespaces, so the services run without PrivateUsers=" in result.stdout
        )
        assert "\nPrivateUsers=" not in sandbox.read_text()
        assert site.start().returncode == 0
        assert site.status().returncode == 0
    finally:
        allow_user_namespaces(before)
    assert site.install("--no-run").returncode == 0
    assert "\nPrivateUsers=true\n" in sandbox.read_text()


def test_install_again_heals_a_broken_venv_and_keeps_settings(site: Site) -> None:
    site.reset(WEBKASSA_MAX_AGE="23h")
    assert site.install("--no-run", "--with-alerts").returncode == 0
    settings = (site.machine.root / SETTINGS[1:]).read_text()
    site.run("sh", "-c", f"rm -r {CURRENT}/venv/lib/python3*/site-packages/*")
    status = site.status()
    assert status.returncode == 2
    command = re.search(f"-> (sudo {CURRENT}/install.sh)$", status.stdout, re.M)[1]
    result = site.paste(
        " ".join([command.replace("sudo ", "sudo PIP_NO_INDEX=1 PIP_FIND_LINKS=/srv/wheels ")])
    )
    assert result.returncode == 0, result.stdout
    assert f"Keeping {SETTINGS}" in result.stdout
    assert (site.machine.root / SETTINGS[1:]).read_text() == settings
    assert site.holds_a_new_key
    assert (site.machine.root / CURRENT[1:] / "alerts/bin/apprise").exists()  # kept, too
    assert site.status().returncode == 0
