"""The units as files: what they must say, and what systemd's own tools make of them."""

from __future__ import annotations

import datetime
import itertools
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from world.scripts import after

UNITS = Path(__file__).parents[1] / "systemd"
FILES = sorted(
    path
    for path in UNITS.rglob("*")
    if path.suffix in (".service", ".timer", ".socket")
    or (path.suffix == ".conf" and path.parent != UNITS)
)
SERVICES = sorted(UNITS.glob("*.service"))
RETRIED = ("webkassa-key-update.service", "webkassa-key-boot.service")
LONGEST_DEADLINE = 5 * 60  # of WEBKASSA_DEADLINE
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
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"LC_ALL": "C.UTF-8", "LANGUAGE": ""} | env,
    )  # fmt: skip
    assert result.returncode == 0 or arguments[0] == "verify", result.stdout
    return result.stdout


SANDBOX = directives(UNITS / "webkassa-key-.service.d" / "00-sandbox.conf")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_settings_reach_the_program_only(path: Path) -> None:
    """Everybody can read Environment=: what stands there is known to everybody anyway."""
    assert not {"EnvironmentFile", "PassEnvironment"} & directives(path).keys()
    harmless = {"KEY_COMMAND", "MAX_AGE", "ACCOUNTS_DIR", "RUN_KIND", "PROBE_URL"}
    for value in directives(path).get("Environment", []):
        for setting in shlex.split(value):
            assert setting.partition("=")[0].removeprefix("WEBKASSA_") in harmless


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_unit_bears_the_mark_of_ours(path: Path) -> None:
    mark, *names = after(
        "systemd/common.sh",
        'printf "%s\n" "$MARK" "${UNITS[@]}" "$SANDBOX" "${ACCOUNT_DROPINS[@]}"',
    ).splitlines()
    assert path.read_text().startswith(mark)
    assert path.name in [Path(name).name for name in names]


def test_no_drop_in_hides_another() -> None:
    """Of the drop-ins of one name, systemd reads that of the most special folder alone."""
    names = [path.name for path in FILES if path.suffix == ".conf"]
    assert len(names) == len(set(names)) == 3


def test_every_unit_runs_the_module_in_the_same_way() -> None:
    ways = {
        directives(path)["ExecStart"][0].partition(" update")[0]
        for path in SERVICES
        if path.name != "webkassa-key-alert.service"
    }
    assert len(ways) == 1


def test_a_stopped_run_has_the_time_to_store_its_key() -> None:
    """Signals are held back for twice the deadline and 150 s."""
    assert seconds(SANDBOX["TimeoutStopSec"][0]) >= 2 * LONGEST_DEADLINE + 150


def test_the_longest_run_is_not_cut_short() -> None:
    longest = 2 * (LONGEST_DEADLINE + 120) + 10  # to wait for the lock, to renew the key; the ping
    assert seconds(SANDBOX["TimeoutStartSec"][0]) > longest
    by_command = """setsid() { printf "%s\\n" "$@"; }
    run_module unit /release update"""
    limit = re.search("=RuntimeMaxSec=(.+)", after("systemd/common.sh", by_command))
    assert seconds(limit[1]) > longest


@pytest.mark.parametrize("name", RETRIED)
def test_retries_end_before_the_next_day_even_when_each_takes_its_longest(name: str) -> None:
    unit = directives(UNITS / name)
    burst, pause = int(unit["StartLimitBurst"][0]), seconds(unit["RestartSec"][0])
    longest = seconds(SANDBOX["TimeoutStartSec"][0]) + seconds(SANDBOX["TimeoutStopSec"][0])
    assert burst * pause == 2 * 3600
    assert burst * (pause + longest) < seconds(unit["StartLimitIntervalSec"][0]) < 24 * 3600


def test_a_repetition_for_many_accounts_leaves_good_keys_alone() -> None:
    """Not even the last one finds the first one's keys old, and the next day's run finds all old."""
    unit = directives(UNITS / "accounts" / "webkassa-key-update.service.d" / "10-if-needed.conf")
    assert unit["ExecStart"][0] == ""
    assert unit["ExecStart"][1] == directives(UNITS / RETRIED[0])["ExecStart"][0] + " --if-needed"
    age = seconds(unit["Environment"][0].removeprefix("WEBKASSA_MAX_AGE="))
    run, stop = (seconds(SANDBOX[f"Timeout{name}Sec"][0]) for name in ("Start", "Stop"))
    pauses = (int(unit["StartLimitBurst"][0]) - 1) * (seconds(unit["RestartSec"][0]) + run + stop)
    assert pauses + run < age < 24 * 3600 - pauses - run - stop
    assert pauses + run + stop < seconds(unit["StartLimitIntervalSec"][0])


@pytest.mark.parametrize("name", RETRIED)
def test_what_does_not_heal_is_not_retried(name: str) -> None:
    unit = directives(UNITS / name)
    assert unit["Restart"] == ["on-failure"]
    never = set(unit["RestartPreventExitStatus"][0].split())
    assert {"1", "2", "73", "77", "78", "203", "217", "243"} <= never
    assert not {"69", "70", "75", "76"} & never


def test_timer_does_not_pull_the_service_in() -> None:
    for path in UNITS.glob("*.timer"):
        assert not {"Requires", "Wants", "BindsTo"} & directives(path).keys()


def test_a_missed_run_is_made_up_for_once() -> None:
    """By the timer of its own, at a fixed time after the boot, and not by Persistent=, too."""
    for path in UNITS.glob("*.timer"):
        assert "Persistent" not in directives(path)
    boot = directives(UNITS / "webkassa-key-boot.timer")
    assert boot["OnBootSec"] == ["1min"]
    assert "RandomizedDelaySec" not in boot


def test_the_net_goes_by_no_clock_that_can_be_set() -> None:
    timer = directives(UNITS / "webkassa-key-net.timer")
    assert (timer["OnActiveSec"], timer["OnUnitInactiveSec"]) == (["10min"], ["1h"])
    assert not {"OnCalendar", "OnBootSec"} & timer.keys()  # by OnBootSec an install would run it
    service = directives(UNITS / "webkassa-key-net.service")
    assert service["ExecStart"][0].endswith(" update --if-needed")
    assert "WEBKASSA_MAX_AGE=25h WEBKASSA_PROBE_URL=off" in service["Environment"]
    assert "Restart" not in service


def test_the_timer_of_a_container_comes_though_its_clock_was_ahead_at_boot() -> None:
    """Persistent= runs it then, and from that run on it goes by the monotonic clock, too."""
    timer = directives(UNITS.parent / "containers" / "webkassa-docker.timer")
    assert timer["Persistent"] == ["true"]
    assert timer["OnUnitInactiveSec"] == ["25h"]


@pytest.mark.parametrize("name", [*RETRIED, "webkassa-key-net.service"])
def test_what_is_alerted_of_tells_when_all_is_well_again(name: str) -> None:
    unit = directives(UNITS / name)
    assert unit["OnFailure"] == unit["OnSuccess"] == ["webkassa-key-alert.service"]


def test_alert_is_tried_again_and_alerts_of_nothing_itself() -> None:
    unit = directives(UNITS / "webkassa-key-alert.service")
    assert unit["Restart"] == ["on-failure"]
    assert unit["StartLimitIntervalSec"] == ["0"]
    assert "OnFailure" not in unit


def test_the_socket_is_for_the_group_alone_and_survives_floods() -> None:
    unit = directives(UNITS / "webkassa-key-renew.socket")
    assert unit["SocketMode"] == ["0660"]
    assert unit["SocketGroup"] == ["webkassa-key-clients"]
    assert unit["TriggerLimitIntervalSec"] == ["0"]


@needs_systemd
def test_systemd_finds_no_fault() -> None:
    faults = analyze("verify", *SERVICES, *UNITS.glob("*.timer"), *UNITS.glob("*.socket"))
    ours = [line for line in faults.splitlines() if "webkassa" in line]
    assert [line for line in ours if not line.endswith("No such file or directory")] == []


@needs_systemd
@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_exposure_is_at_most_1_3(path: Path) -> None:
    result = analyze("security", "--offline=true", "--no-pager", path)
    assert float(re.search(r"exposure level .*: ([0-9.]+)", result)[1]) <= 1.3


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("systemd-sysusers"), reason="needs root and systemd"
)
def test_users_and_folders_are_made_and_kept_settings_readable(tmp_path: Path) -> None:
    config = tmp_path / "etc/webkassa-key-updater"
    (config / "accounts.d").mkdir(parents=True)
    files = [config / name for name in ("webkassa.env", "apprise.conf", "accounts.d/main.env")]
    for path in files:
        path.touch(0o600)
    os.chown(files[0], 4711, 4711)  # somebody else's: it stays his
    (config / "accounts.d/link.env").symlink_to(files[0])
    for tool, options, name in (
        ("sysusers", [], "sysusers.conf"),
        ("tmpfiles", ["--create"], "tmpfiles.conf"),
    ):
        command = [f"systemd-{tool}", f"--root={tmp_path}", *options, UNITS / name]
        subprocess.run(command, check=True)
    users = (tmp_path / "etc/passwd").read_text()
    group = int(
        re.search(r"^webkassa-key-updater:x:\d+:(\d+):.*:/usr/sbin/nologin$", users, re.M)[1]
    )
    assert "webkassa-key-clients:x:" in (tmp_path / "etc/group").read_text()
    for path in (config, config / "accounts.d", *files):
        found = path.stat()
        assert found.st_gid == group
        assert found.st_uid == (4711 if path == files[0] else 0)
        assert f"{found.st_mode & 0o777:o}" == ("640" if path in files else "750")


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
