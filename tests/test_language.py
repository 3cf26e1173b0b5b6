"""What the language of a server must not change."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import server_status
from server import ROOT, Box

pytestmark = pytest.mark.xdist_group("language")  # making a locale takes seconds


@pytest.fixture(scope="module")
def russian(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a server in Russia."""
    locales = tmp_path_factory.mktemp("locales")
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


@pytest.mark.slow
def test_a_failure_is_seen_on_a_russian_server(
    russian: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Of a date in Russian, date itself can make nothing."""
    box = Box(tmp_path / "server")
    for name, value in (russian | {"PATH": f"{box.bin}:{os.environ['PATH']}"}).items():
        monkeypatch.setenv(name, value)
    box.ended(server_status.UPDATE, box.now - 3600, 203)
    assert server_status.main([], box) == 2
    first = capsys.readouterr().out.splitlines()[0]
    assert re.match(r"WEBKASSA CRITICAL - last run: failing since [A-Z][a-z]{2} \d{4}-", first)


def test_scripts_read_english(russian: dict[str, str]) -> None:
    """LANGUAGE, which Ubuntu sets, wins over LC_ALL where that is not just C."""
    command = ["bash", "-c", f". {ROOT}/systemd/common.sh; ls /nowhere"]
    done = subprocess.run(command, env=os.environ | russian, stderr=subprocess.PIPE)
    assert done.stderr.endswith(b": No such file or directory\n")
