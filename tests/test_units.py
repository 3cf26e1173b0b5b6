"""The units as files: what they must say, and what systemd's own tools make of them."""

from __future__ import annotations

import datetime
import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[1] / "systemd"
FILES = sorted(path for path in UNITS.rglob("*") if path.suffix in (".service", ".timer", ".conf"))
SERVICES = sorted(UNITS.glob("*.service"))
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")


def directives(path: Path) -> dict[str, list[str]]:
    """Return the directives of a unit, with their values in order."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", path.read_text(), re.M):
        found.setdefault(name, []).append(value)
    return found


def seconds(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(min|h)", text).groups()
    return int(number) * {"min": 60, "h": 3600}[unit]


def analyze(*arguments: str | Path, **env: str) -> str:
    command = ["systemd-analyze", *map(str, arguments)]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | env
    )
    assert result.returncode == 0 or arguments[0] == "verify", result.stdout
    return result.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_settings_reach_the_program_only(path: Path) -> None:
    assert not {"EnvironmentFile", "Environment", "PassEnvironment"} & directives(path).keys()


def test_retries_end_before_the_next_day_even_when_each_takes_its_longest() -> None:
    unit = directives(UNITS / "webkassa-key-update.service")
    sandbox = directives(UNITS / "webkassa-key-.service.d" / "00-sandbox.conf")
    burst, pause = int(unit["StartLimitBurst"][0]), seconds(unit["RestartSec"][0])
    longest = seconds(sandbox["TimeoutStartSec"][0]) + seconds(sandbox["TimeoutStopSec"][0])
    assert burst * pause == 2 * 3600
    assert burst * (pause + longest) < seconds(unit["StartLimitIntervalSec"][0]) < 24 * 3600


def test_what_does_not_heal_is_not_retried() -> None:
    unit = directives(UNITS / "webkassa-key-update.service")
    assert unit["Restart"] == ["on-failure"]
    never = set(unit["RestartPreventExitStatus"][0].split())
    assert {"2", "73", "77", "78"} <= never
    assert not {"69", "70", "75", "76"} & never


def test_timer_does_not_pull_the_service_in() -> None:
    for path in UNITS.glob("*.timer"):
        assert not {"Requires", "Wants", "BindsTo"} & directives(path).keys()


def test_alert_neither_alerts_of_itself_nor_comes_again() -> None:
    unit = directives(UNITS / "webkassa-key-alert.service")
    assert not {"OnFailure", "Restart"} & unit.keys()


@needs_systemd
def test_systemd_finds_no_fault() -> None:
    faults = analyze("verify", *SERVICES, *UNITS.glob("*.timer"))
    ours = [line for line in faults.splitlines() if "webkassa" in line]
    assert [line for line in ours if not line.endswith("No such file or directory")] == []


@needs_systemd
@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_exposure_is_at_most_1_3(path: Path) -> None:
    result = analyze("security", "--offline=true", "--no-pager", path)
    assert float(re.search(r"exposure level .*: ([0-9.]+)", result)[1]) <= 1.3


@needs_systemd
@pytest.mark.parametrize("zone", ["UTC", "Asia/Almaty", "Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize("month", range(1, 13))
def test_runs_are_24_hours_apart_whatever_the_machines_zone(zone: str, month: int) -> None:
    (calendar,) = directives(UNITS / "webkassa-key-update.timer")["OnCalendar"]
    # By the base time's month, ten days each on both sides of every zone change
    base = f"--base-time=2026-{month:02}-25 00:00:00 UTC"
    said = analyze("calendar", "--iterations=10", base, calendar, TZ=zone)
    pattern = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?= UTC)"
    times = [datetime.datetime.fromisoformat(text) for text in re.findall(pattern, said)]
    assert len(times) == 10
    assert {later - sooner for sooner, later in itertools.pairwise(times)} == {
        datetime.timedelta(hours=24)
    }
    assert {f"{moment:%H:%M}" for moment in times} == {"00:00"}  # 05:00 in Almaty
