"""A Pgpool-II in front of the test's PostgreSQL and a standby of it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from world.postgres import PASSWORD, Postgres, free_port
from world.waiting import await_

PROGRAM = shutil.which("pgpool", path=os.environ["PATH"] + ":/usr/sbin")


class Pgpool:
    """It sends reads to the standby where it may; `settings` are lines of its file."""

    def __init__(self, server: Postgres, standby: Path, settings: str = "") -> None:
        assert PROGRAM, "Pgpool-II is not installed"
        self.port = free_port()
        self.folder = server.folder / "pgpool"
        self.folder.mkdir()
        self.log = self.folder / "log"
        (self.folder / "hba").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        (self.folder / "passwd").write_text(f"postgres:TEXT{PASSWORD}\n", encoding="utf-8")
        (self.folder / "pcp").touch()
        self.file = self.folder / "conf"
        self.file.write_text(
            f"backend_clustering_mode = 'streaming_replication'\nlisten_addresses = '127.0.0.1'\n"
            f"port = {self.port}\npcp_port = {free_port()}\nsocket_dir = '{self.folder}'\n"
            f"pcp_socket_dir = '{self.folder}'\npid_file_name = '{self.folder}/pid'\n"
            f"logdir = '{self.folder}'\nwork_dir = '{self.folder}'\n"
            f"backend_hostname0 = '127.0.0.1'\nbackend_port0 = {server.port}\nbackend_weight0 = 0\n"
            f"backend_hostname1 = '{standby}'\nbackend_port1 = {server.port}\nbackend_weight1 = 1\n"
            "enable_pool_hba = on\npool_passwd = 'passwd'\nload_balance_mode = on\n"
            "sr_check_user = 'postgres'\nsr_check_database = 'shop'\nsr_check_period = 1\n"
            f"num_init_children = 8\n{settings}\n",
            encoding="utf-8",
        )
        if server.user:
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, pwd.getpwnam(server.user).pw_uid, -1)
        conf = ("-f", self.file, "-a", self.folder / "hba", "-F", self.folder / "pcp")
        self.process = subprocess.Popen(
            [PROGRAM, "-n", *conf], user=server.user, cwd=self.folder,
            stdout=subprocess.DEVNULL, stderr=self.log.open("w"),
        )  # fmt: skip

    def __enter__(self) -> Pgpool:
        await_(
            lambda: self.process.poll() is None and "successfully started" in self.log.read_text()
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder)
