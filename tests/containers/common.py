"""What the tests of this folder share without an engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from world.waiting import await_
from world.webkassa_simulator import Simulator, answer, hang, slow

__all__ = ["Simulator", "answer", "await_", "hang", "slow"]  # of the tests' world

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "containers"
MODULES = ("webkassa_key_updater.py", "webkassa_key_accounts.py", "webkassa_key_metrics.py")
STARTED = ("containers/webkassa-key.sh", "containers/serve.py")  # what the image starts
USER = 10001  # the image's
HOLD = 2 * 300 + 150  # seconds that a stop may have to wait with the longest WEBKASSA_DEADLINE
HOPELESS = [2, 73, 77, 78]  # exit codes that do not heal by themselves


def said(*arguments: str, **env: str) -> str:
    command = [sys.executable, str(ROOT / "webkassa_key_updater.py"), *arguments]
    result = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return result.stdout


def needs(word: str) -> pytest.MarkDecorator:
    """Skip a test until the program offers an option, or reads a setting from a file."""
    if word.endswith("_FILE"):
        text = said("check", "--env-file", str(ROOT / ".env.example"), **{word: "/nowhere"})
    else:
        text = said("--help")
    return pytest.mark.skipif(word not in text, reason=f"the program does not offer {word} yet")


def tool(name: str, *arguments: object) -> str:
    """Run a tool of this Python's environment; return what it says, and fail when it does."""
    command = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    return result.stdout


def seconds(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(m|min|h)", text).groups()
    return int(number) * {"m": 60, "min": 60, "h": 3600}[unit]


def directives(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.M))
