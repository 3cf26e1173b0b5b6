"""A small Debian machine, booted with the real systemd as PID 1, for the test of units and scripts.

debootstrap makes its root file system once (kept in CACHE); systemd-nspawn boots a copy. It has the
host's network, so the host's loopback is its own; nsenter runs commands in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CACHE = Path("/var/tmp/webkassa-key-updater-boot-test")
PACKAGES = "systemd,systemd-sysv,dbus,python3-venv,tzdata,cron,sudo,locales"
TOOLS = ("debootstrap", "systemd-nspawn", "nsenter", "setpriv")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WHEELS = "/srv/wheels"
# What a machine writes by itself, and the account tools' backups
RESTLESS = ("dev", "proc", "run", "sys", "tmp", "root", "srv", "var/log", "var/tmp", "var/cache",
            "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-",
            "etc/subgid-", "etc/.pwd.lock", "etc/mtab", "var/lib/systemd/random-seed")  # fmt: skip
# They write whenever their hour comes, and that depends on when the machine is booted
RESTLESS_TIMERS = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer")


def missing() -> str:
    """Return why no machine can be booted here, or nothing."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    return f"needs {', '.join(lacking)}" if lacking else ""


def await_(condition: Callable[[], Any], seconds: float = 180) -> Any:
    """Wait until `condition` holds, and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        threading.Event().wait(0.1)
    return value


def root_file_system(suite: str) -> Path:
    """Return the folder of a pristine Debian `suite`, made on the first call."""
    root = CACHE / f"{suite}-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"
    work = root.with_suffix(".part")
    if not root.exists():
        shutil.rmtree(work, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, work]
        with root.with_suffix(".log").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        work.rename(root)
    return root


def download_wheels(locks: list[Path], python: str, folder: Path) -> None:
    """Fill `folder` with the wheels of these locks for Python `python` ("3.11"), by pip as it is set
    up on this host."""
    arch = platform.machine()
    glibc = [f"--platform=manylinux_2_{minor}_{arch}" for minor in (34, 28, 17, 5)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", f"--dest={folder}",
               "--require-hashes", "--only-binary=:all:", f"--python-version={python}", *glibc,
               f"--platform=manylinux2014_{arch}"]  # fmt: skip
    for lock in locks:  # each for itself: what they share may differ
        subprocess.run([*command, f"--requirement={lock}"], check=True)


class Machine:
    def __init__(self, suite: str, *binds: str) -> None:
        CACHE.mkdir(mode=0o700, exist_ok=True)
        self.lock = (CACHE / "lock").open("w")  # two machines would share a control group
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        base = root_file_system(suite)
        self.folder = Path(tempfile.mkdtemp(prefix="webkassa-machine-", dir="/var/tmp"))
        self.root = self.folder / "root"
        self.binds = binds
        subprocess.run(["cp", "-a", "--reflink=auto", base, self.root], check=True)
        (self.root / "var/log/journal").mkdir(exist_ok=True)  # one that survives a reboot
        for timer in RESTLESS_TIMERS:
            (self.root / "etc/systemd/system" / timer).symlink_to("/dev/null")
        self.start()

    @property
    def python(self) -> str:
        """Its Python's version, like 3.11."""
        return (self.root / "usr/bin/python3").readlink().name.removeprefix("python")

    def start(self) -> None:
        """Boot, until systemd says that it is up."""
        options = ["--register=no", "--keep-unit", "--console=pipe", "--link-journal=no",
                   "--resolv-conf=off", "--timezone=off", "--quiet"]  # fmt: skip
        binds = [f"--bind-ro={bind}" for bind in self.binds]
        self.console = (self.folder / "console").open("a")
        # Of cgroups give it version 2, which systemd 257 insists on, whatever the host has
        self.nspawn = subprocess.Popen(
            ["systemd-nspawn", "--boot", f"--directory={self.root}", *options, *binds],
            stdin=subprocess.DEVNULL, stdout=self.console, stderr=self.console,
            env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )  # fmt: skip
        await_(self.is_up)

    def is_up(self) -> bool:
        # nspawn's first child is not the machine yet: it makes that, and ends
        children = Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children")
        self.pid = children.read_text().strip()
        return self.state() in ("running", "degraded")

    def state(self) -> str:
        assert self.nspawn.poll() is None, (self.folder / "console").read_text()
        return self.run("systemctl", "is-system-running", check=False).stdout.strip()

    def power_off(self) -> None:
        self.run("systemctl", "poweroff", check=False)
        self.nspawn.wait(240)

    def remove(self) -> None:
        try:
            self.power_off()
        finally:
            self.nspawn.kill()
            self.nspawn.wait()
            self.console.close()
            shutil.rmtree(self.folder)
            self.lock.close()

    def run(
        self, *command: str, check: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine; its output, errors among it, is `stdout`."""
        result = subprocess.run(
            [*self.enter(env), *command], text=True, encoding="utf-8", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert not check or result.returncode == 0, f"{command}: {result.stdout}"
        return result

    def enter(self, env: dict[str, str]) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--all", "env", "--default-signal", "-i", f"PATH={PATH}",
                "LANG=C.UTF-8", "HOME=/root", *(f"{k}={v}" for k, v in env.items())]  # fmt: skip

    def start_process(self, *command: str, **env: str) -> subprocess.Popen[str]:
        """Start a command in the machine; both its outputs are `stdout`."""
        return subprocess.Popen(
            [*self.enter(env), *command], text=True, encoding="utf-8", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def kill(self, signal: str, word: str) -> None:
        """Send a signal to every process in the machine with this word in its command."""
        self.run("sh", "-c", f"for p in /proc/[0-9]*; do [ $p = /proc/$$ ] ||"
                 f" ! grep -qse {word} $p/cmdline || kill -{signal} ${{p#/proc/}}; done")  # fmt: skip

    def show(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).stdout.strip()

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def drop_in(self, unit: str, text: str) -> None:
        self.write(f"/etc/systemd/system/{unit}.d/test.conf", text)
        self.run("systemctl", "daemon-reload")

    def no_drop_in(self, unit: str) -> None:
        (self.root / f"etc/systemd/system/{unit}.d/test.conf").unlink(missing_ok=True)
        self.run("systemctl", "daemon-reload")

    def journal(self, *matches: str) -> str:
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--output=cat", *matches).stdout

    def tree(self) -> dict[str, str]:
        """Return every file and folder, with its type and content, but for what never rests."""
        restless = tuple(f"{self.root}/{path}" for path in RESTLESS)
        found = {}
        for folder, folders, files in os.walk(self.root):
            folders[:] = [f for f in folders if not f"{folder}/{f}".startswith(restless)]
            for path in (Path(folder, name) for name in folders + files):
                if not str(path).startswith(restless):
                    is_file = path.is_file() and not path.is_symlink()
                    content = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else ""
                    owner = path.lstat()
                    found[str(path.relative_to(self.root))] = (
                        f"{owner.st_mode:o} {owner.st_uid}:{owner.st_gid} {content}"
                    )
        return found
