"""What the manual tells to type for Docker, typed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from shown import snippet

from .common import MODULES, ROOT, await_
from .conftest import Salon
from .engine import DOCKER

pytestmark = pytest.mark.xdist_group("containers")  # one engine, one worker

# sudo of root's own; and the engine of the tests has no other network than the host's
STAND_INS = {
    "sudo": 'exec "$@"',
    "docker": f'[ "$1" != build ] || set -- "$@" --network=host\nexec {DOCKER} "$@"',
}


def typed(salon: Salon, name: str, folder: Path) -> str:
    """Type a block of the manual in a folder; /etc is beside it. Return what was said."""
    home = folder.parent
    for tool, does in STAND_INS.items():
        (home / tool).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (home / tool).chmod(0o755)
    command = snippet(f"run: {name}").replace("/etc/webkassa-key-updater", f"{home}/etc")
    done = subprocess.run(
        ["bash", "-e", "-c", command], cwd=folder, text=True, stdin=subprocess.DEVNULL,
        env=salon.engine.env | {"PATH": f"{home}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_image_is_built_and_checked_as_written(salon: Salon, tmp_path: Path) -> None:
    project = tmp_path / "Касса № 1"
    project.mkdir()
    for name in (
        "containers",
        "locale",
        "pyproject.toml",
        "requirements.txt",
        "requirements.lock",
        *MODULES,
    ):
        subprocess.run(["cp", "-R", ROOT / name, project], check=True)
    salon.settings_file().rename(project / "my.env")
    said = typed(salon, "docker image", project)
    assert "write: rehearsed and taken back" in said
    assert salon.webkassa.authorizations == 0


def test_container_that_renews_is_started_as_written_and_its_messages_name_what_works(
    salon: Salon, tmp_path: Path
) -> None:
    (tmp_path / "etc").mkdir()
    salon.settings_file().rename(tmp_path / "etc/webkassa.env")
    (tmp_path / "project").mkdir()
    typed(salon, "docker serve", tmp_path / "project")
    await_(lambda: salon.shop.holds_the_live_key)
    salon.webkassa.password = "another"
    salon.webkassa.issue()
    in_container = ("exec", "webkassa-key", "webkassa-key")
    said = salon.engine.run(*in_container, "status", check=False).stdout
    assert "docker exec webkassa-key webkassa-key update" in said
    assert salon.engine.run(*in_container, "update", check=False).returncode == 77
    assert salon.engine.inspect("webkassa-key", "{{.Config.StopTimeout}}") == "750"
    salon.engine.remove_containers()
    salon.engine.run("volume", "rm", "webkassa-key-renew", "webkassa-key-state")
