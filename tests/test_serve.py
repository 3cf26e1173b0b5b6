"""What the image starts, without an engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from world.shop import PROGRAM, ROOT, Shop

SERVE = ROOT / "containers/serve.py"


@pytest.fixture
def salon(shop: Shop, tmp_path: Path) -> Shop:
    """A shop whose program has the name that it has in the image."""
    program = tmp_path / "bin/webkassa-key-updater"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {PROGRAM} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    shop.env["PATH"] = f"{program.parent}:{os.environ['PATH']}"
    return shop


def start(salon: Shop, *arguments: str) -> subprocess.Popen[str]:
    """Start what the image starts, with the shop's settings."""
    process = subprocess.Popen(
        [sys.executable, str(SERVE), *arguments], env=salon.env, stdin=subprocess.DEVNULL, text=True,
        encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    salon.started.append(process)
    return process


# The commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("-v",), ("--if-needed",), ("serv",)])
def test_without_a_command_nothing_is_asked_of_webkassa(
    salon: Shop, arguments: tuple[str, ...]
) -> None:
    result = salon.finish(start(salon, *arguments))
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("usage: docker run ")
    assert salon.webkassa.calls == []


def test_a_command_goes_to_the_program_as_it_is(salon: Shop) -> None:
    assert "usage: webkassa_key_updater.py" in salon.finish(start(salon, "--help")).out
    assert salon.finish(start(salon, "-v", "update", "--if-needed")).code == 0
    assert salon.holds_the_live_key
    assert salon.finish(start(salon, "status")).out.startswith("WEBKASSA OK")
    salon.webkassa.password = "another"
    assert salon.finish(start(salon, "update")).code == 77
