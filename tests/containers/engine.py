"""A Docker engine of the tests' own, and the image, built as its user would build it.

The engine has a private socket and private files, and touches neither networks nor firewall. No
image registry is needed: debootstrap makes what Docker Hub calls debian:bookworm-slim, and it is
imported under that name. Containers have the host's network, so the host's loopback is theirs.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .common import ROOT, await_

CACHE = Path("/var/tmp/webkassa-key-updater-container-test")
SUITE = "bookworm"
BASE = "debian:bookworm-slim"
IMAGE = "webkassa-key-updater"
SETTINGS = "/opt/webkassa-key-updater/.env"  # where the image's program reads them
WHEELS = "srv/wheels"
# Debian's own client comes first: others may lack BuildKit, which reads Dockerfile.dockerignore
DOCKER = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"
TOOLS = ("dockerd", "docker", "debootstrap", "tar")
HARDENED = ("--network=host", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")


def missing() -> str:
    """Return why no engine can run here, or nothing."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    return f"needs {', '.join(lacking)}" if lacking else ""


def root_file_system() -> Path:
    """Return the folder of a minimal Debian, made on the first call and kept."""
    root = CACHE / SUITE
    CACHE.mkdir(mode=0o700, exist_ok=True)
    with (CACHE / "lock").open("w") as lock, (CACHE / "log").open("a") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            work = root.with_suffix(".part")
            shutil.rmtree(work, ignore_errors=True)
            command = ["debootstrap", "--variant=minbase", SUITE, work]
            subprocess.run(command, check=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            work.rename(root)
    return root


def download_wheels(folder: Path) -> None:
    """Fill `folder` with what the image's pip shall install, by pip as it is set up on this host."""
    arch = platform.machine()
    glibc = [f"--platform=manylinux_2_{minor}_{arch}" for minor in (34, 28, 17, 5)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", f"--dest={folder}",
               "--only-binary=:all:", "--python-version=3.11", f"--platform=manylinux2014_{arch}",
               *glibc, "--require-hashes", f"--requirement={ROOT / 'requirements.lock'}"]  # fmt: skip
    subprocess.run(command, check=True)


class Engine:
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="webkassa-docker-", dir="/var/tmp"))
        self.socket = f"unix://{self.folder}/socket"
        self.env = {"PATH": os.environ["PATH"], "HOME": str(self.folder),
                    "DOCKER_HOST": self.socket, "DOCKER_BUILDKIT": "1"}  # fmt: skip
        self.log = (self.folder / "log").open("w")
        self.daemon = subprocess.Popen(
            ["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none",
             f"--host={self.socket}", f"--data-root={self.folder}/data",
             f"--exec-root={self.folder}/run", f"--pidfile={self.folder}/pid"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        await_(self.is_up, 60)

    def is_up(self) -> bool:
        assert self.daemon.poll() is None, (self.folder / "log").read_text()
        return self.run("version", check=False).returncode == 0

    def remove_containers(self) -> None:
        if containers := self.run("ps", "--all", "--quiet").stdout.split():
            self.run("rm", "--force", *containers, check=False)  # some are just on their way out

    def close(self) -> None:
        self.remove_containers()
        self.run("network", "prune", "--force")  # Compose's are the host's links
        self.daemon.terminate()
        self.daemon.wait(60)
        self.log.close()
        for mounted in Path("/proc/mounts").read_text().split():  # the host's network, as a file
            if mounted.startswith(f"{self.folder}/"):
                subprocess.run(["umount", mounted], check=True)
        shutil.rmtree(self.folder)

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start Docker's client; what it is told to run is a container's foreground process."""
        return subprocess.Popen(
            [DOCKER, *arguments], env=self.env, stdin=stdin, text=True, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(
        self, *arguments: str, check: bool = True, timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=timeout)
        assert not check or process.returncode == 0, f"{arguments}: {out}{err}"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def inspect(self, name: str, template: str) -> str:
        return self.run("inspect", f"--format={template}", name).stdout.strip()

    def import_base(self) -> None:
        """Import the base image; its pip takes wheels from a folder, since its network is ours."""
        extra = self.folder / "base"
        (extra / WHEELS).mkdir(parents=True)
        (extra / "etc").mkdir()
        download_wheels(extra / WHEELS)
        (extra / "etc/pip.conf").write_text(f"[global]\nno-index = true\nfind-links = /{WHEELS}\n")
        tar = [
            "tar",
            "-c",
            "-C",
            root_file_system(),
            ".",
            "-C",
            extra,
            "./etc/pip.conf",
            f"./{WHEELS}",
        ]
        with subprocess.Popen(tar, stdout=subprocess.PIPE) as packed:
            command = [DOCKER, "import", "-", BASE]
            subprocess.run(command, check=True, env=self.env, stdin=packed.stdout,
                           stdout=subprocess.DEVNULL)  # fmt: skip
        assert packed.returncode == 0

    def build(self, tag: str, context: Path) -> str:
        """Build the image as containers/Dockerfile says to; return what was said."""
        return self.run("build", "--network=host", "--progress=plain", f"--tag={tag}",
                        f"--file={context}/containers/Dockerfile", str(context), timeout=900).stderr  # fmt: skip

    def files(self, image: str, path: str = "") -> list[str]:
        """Return the files and folders of an image below `path`."""
        container = self.run("create", image, "none").stdout.strip()
        try:
            exported = subprocess.Popen(
                [DOCKER, "export", container], env=self.env, stdout=subprocess.PIPE
            )
            with exported:
                listing = subprocess.run(["tar", "-t"], check=True, stdin=exported.stdout,
                                         stdout=subprocess.PIPE, text=True).stdout  # fmt: skip
        finally:
            self.run("rm", container)
        return [file for file in listing.splitlines() if file.startswith(path)]
