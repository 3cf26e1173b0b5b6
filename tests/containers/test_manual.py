"""What the manual tells to type for Docker, typed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from shown import snippet

from .common import MODULES, ROOT
from .conftest import Salon
from .engine import DOCKER

pytestmark = pytest.mark.xdist_group("containers")  # one engine, one worker

# sudo of root's own; and the engine of the tests has no other network than the host's
STAND_INS = {
    "sudo": 'exec "$@"',
    "docker": f'[ "$1" != build ] || set -- "$@" --network=host\nexec {DOCKER} "$@"',
}


def test_image_is_built_and_checked_as_written(salon: Salon, tmp_path: Path) -> None:
    for name, does in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    project, etc = tmp_path / "Касса № 1", tmp_path / "etc"
    project.mkdir()
    for name in ("containers", "pyproject.toml", "requirements.txt", "requirements.lock", *MODULES):
        subprocess.run(["cp", "-R", ROOT / name, project], check=True)
    salon.settings_file().rename(project / "my.env")
    command = snippet("run: docker image").replace("/etc/webkassa-key-updater", str(etc))
    done = subprocess.run(
        ["bash", "-e", "-c", command], cwd=project, text=True, stdin=subprocess.DEVNULL,
        env=salon.engine.env | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "write: rehearsed and taken back" in done.stdout
    assert salon.webkassa.authorizations == 0
