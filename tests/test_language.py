"""What the language of a server must not change."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from test_scripts import ROOT, Stub, installed, stub

__all__ = ["installed", "stub"]  # fixtures


@pytest.fixture
def russian(tmp_path: Path) -> dict[str, str]:
    """The environment of a server in Russia."""
    locales = tmp_path / "locales"
    locales.mkdir()
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(
            ["localedef", "--no-archive", "-i", "ru_RU", "-f", "UTF-8", locales / "ru_RU.UTF-8"],
            capture_output=True,
        )
    env = dict.fromkeys(("LANG", "LC_ALL"), "ru_RU.UTF-8") | {"LANGUAGE": "ru"}
    if list(locales.iterdir()):  # else the machine's own, if it has one
        env["LOCPATH"] = str(locales)
    monday = ["date", "--date=2026-01-05", "+%a"]
    if subprocess.run(monday, env=os.environ | env, capture_output=True).stdout != "Пн\n".encode():
        pytest.skip("there is no Russian locale here, and it cannot be made")
    return env


@pytest.mark.parametrize("script", ["check-status.sh", "systemd/send-alert.sh"])
def test_a_failure_is_seen_on_a_russian_server(
    script: str, installed: Path, stub: Stub, russian: dict[str, str], tmp_path: Path
) -> None:
    """systemd has forgotten the last run; the journal knows that it failed since the key was
    renewed. Of a date in Russian, date itself can make nothing."""
    stub(
        "systemctl",
        """case $* in
        *--quiet*) ;;
        is-active*) echo active ;;
        is-enabled*) echo enabled ;;
        *NextElapse*) echo tomorrow ;;
        esac""",
    )
    failed = f"{time.time() - 3600:.6f} shop systemd[1]: Failed"
    stub("journalctl", f"case $* in *MESSAGE_ID=d9b3*) echo '{failed}' ;; esac")
    for tool in ("mv", "rm"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        [tmp_path / "bash", installed / script], text=True, capture_output=True, encoding="utf-8",
        env={"PATH": str(tmp_path), "STATE_DIRECTORY": str(tmp_path)} | russian,
    )  # fmt: skip
    first = done.stdout.splitlines()[0].removeprefix("<3>")
    assert re.match(r"WEBKASSA CRITICAL - last run: failing since [A-Z][a-z]{2} \d{4}-", first)
    assert done.stderr == ""


def test_scripts_read_english(russian: dict[str, str]) -> None:
    """LANGUAGE, which Ubuntu sets, wins over LC_ALL where that is not just C."""
    command = ["bash", "-c", f". {ROOT}/systemd/common.sh; ls /nowhere"]
    done = subprocess.run(command, env=os.environ | russian, stderr=subprocess.PIPE)
    assert done.stderr.endswith(b": No such file or directory\n")
