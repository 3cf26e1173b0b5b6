"""A PgBouncer in transaction mode in front of the test's PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess

from world.postgres import PASSWORD, Postgres, free_port
from world.waiting import await_

PROGRAM = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")


class PgBouncer:
    """Four server connections for up to 200 clients of the database `shop`."""

    def __init__(self, server: Postgres, settings: str = "pool_mode = transaction") -> None:
        assert PROGRAM, "PgBouncer is not installed"
        self.port = free_port()
        self.folder = server.folder / "pgbouncer"
        self.folder.mkdir()
        quoted = PASSWORD.replace('"', '""')
        (self.folder / "users").write_text(f'"postgres" "{quoted}"\n', encoding="utf-8")
        self.log = self.folder / "log"
        self.log.touch()
        file = self.folder / "pgbouncer.ini"
        file.write_text(
            f"[databases]\nshop = host=127.0.0.1 port={server.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {self.folder}/users\n{settings}\n"
            f"default_pool_size = 4\nmax_client_conn = 200\nlogfile = {self.log}\n",
            encoding="utf-8",
        )
        if server.user:
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, pwd.getpwnam(server.user).pw_uid, -1)
        self.process = subprocess.Popen([PROGRAM, "-q", str(file)], user=server.user)

    def __enter__(self) -> PgBouncer:
        await_(lambda: self.process.poll() is None and "up" in self.log.read_text())
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)
