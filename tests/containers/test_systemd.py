"""The units that run a container: what they must say, and their commands run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest

from .common import (
    FOLDER,
    HOLD,
    HOPELESS,
    ROOT,
    Simulator,
    answer,
    await_,
    directives,
    needs,
    seconds,
    slow,
)
from .conftest import Salon

pytestmark = pytest.mark.xdist_group("containers")  # one engine, one worker

SERVICE, TIMER = FOLDER / "webkassa-docker.service", FOLDER / "webkassa-docker.timer"
SETTINGS_ON_HOST = "/etc/webkassa-key-updater/webkassa.env"


@pytest.mark.skipif(
    not (shutil.which("systemd-analyze") and shutil.which("docker")), reason="needs systemd, docker"
)
def test_systemd_finds_nothing_in_the_units() -> None:
    command = ["systemd-analyze", "verify", SERVICE, TIMER]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ours = [line for line in result.stdout.splitlines() if "webkassa" in line]  # it reads all
    assert (result.returncode, ours) == (0, [])


def test_the_sandbox_of_the_other_units_does_not_reach_the_unit_that_needs_docker() -> None:
    assert not SERVICE.name.startswith("webkassa-key-")


def test_the_units_give_time_for_the_commit() -> None:
    unit = directives(SERVICE)
    stop_timeout = int(re.search(r"--stop-timeout=(\d+) --read-only", SERVICE.read_text())[1])
    assert HOLD <= stop_timeout < seconds(unit["TimeoutStopSec"])


def test_the_units_retry_like_those_without_a_container() -> None:
    unit, other = directives(SERVICE), directives(ROOT / "systemd/webkassa-key-update.service")
    assert {*map(str, HOPELESS)} <= {*unit["RestartPreventExitStatus"].split()}
    assert (unit["Restart"], unit["RestartSec"]) == (other["Restart"], other["RestartSec"])
    longest = sum(
        seconds(unit[name]) for name in ("TimeoutStartSec", "TimeoutStopSec", "RestartSec")
    )
    burst, interval = int(unit["StartLimitBurst"]), seconds(unit["StartLimitIntervalSec"])
    assert burst * longest < interval < 24 * 3600


def test_the_timer_fires_like_the_one_without_a_container() -> None:
    timer, other = directives(TIMER), directives(ROOT / "systemd/webkassa-key-update.timer")
    for name in ("OnCalendar", "RandomizedDelaySec", "FixedRandomDelay", "AccuracySec"):
        assert timer[name] == other[name]
    assert timer["Persistent"] == "true"  # a run that was missed is made up for at boot


def environment(marked: str = "") -> dict[str, str]:
    """Return what the unit's Environment= lines set, or those that are there as comments."""
    lines = re.findall(rf"^{marked}Environment=(.*)$", SERVICE.read_text(), re.M)
    return dict(word.split("=", 1) for line in lines for word in shlex.split(line))


def unit_command(salon: Salon, name: str, **changes: str) -> list[str]:
    """Return a command of the unit as systemd reads it, with the files of the test."""
    text = re.sub(r"\\\n\s*", "", SERVICE.read_text())
    line = re.search(rf"^{name}=-?(.*)$", text, re.M)[1]
    for key, value in (environment() | changes).items():
        line = line.replace(f"${{{key}}}", value).replace(f"${key}", value)
    assert "$" not in line
    line = line.replace(SETTINGS_ON_HOST, str(salon.settings_file()))
    return shlex.split(line.replace("/etc/webkassa-key-updater", str(salon.home)))


def start_unit(salon: Salon, **changes: str) -> subprocess.Popen[str]:
    return salon.engine.start(*unit_command(salon, "ExecStart", **changes)[1:])


def test_the_unit_updates_the_key(salon: Salon) -> None:
    result = salon.shop.finish(start_unit(salon))
    assert result.code == 0, result.err
    assert salon.shop.holds_the_live_key
    assert salon.settings["WEBKASSA_AUTH_URL"].split("/")[2] in result.err  # for the journal


def test_the_unit_ends_with_the_programs_exit_code(salon: Salon) -> None:
    salon.webkassa.password = "another"
    assert salon.shop.finish(start_unit(salon)).code == 77


def test_a_stop_of_the_unit_in_the_middle_of_a_login_is_obeyed_after_the_commit(
    salon: Salon,
) -> None:
    salon.webkassa.script.append(slow(3))
    process = start_unit(salon)
    await_(lambda: salon.webkassa.authorizations)
    process.terminate()  # as systemd does: it knows Docker's client only
    result = salon.shop.finish(process)
    assert result.code == 0, result.err
    assert salon.shop.holds_the_live_key


def test_a_container_whose_client_was_killed_stores_its_key_before_the_unit_ends(
    salon: Salon,
) -> None:
    salon.settings["WEBKASSA_DEADLINE"] = "60s"
    salon.webkassa.script.append(slow(12))  # longer than the 10 s that Docker gives by default
    process = start_unit(salon)
    await_(lambda: salon.webkassa.authorizations)
    process.kill()
    process.communicate()
    subprocess.run(unit_command(salon, "ExecStopPost"), env=salon.engine.env, check=True)
    assert salon.shop.holds_the_live_key


def test_the_command_that_the_units_messages_name_works_as_typed(salon: Salon) -> None:
    prefix = "--env=WEBKASSA_KEY_COMMAND=sudo docker "
    (named,) = [a for a in unit_command(salon, "ExecStart") if a.startswith(prefix)]
    command = [*shlex.split(named.removeprefix(prefix)), "check"]
    result = salon.shop.finish(salon.engine.start(*command))
    assert result.code == 0, result.out
    assert "FAIL" not in result.out


@needs("--if-key")
def test_the_units_messages_name_that_command(salon: Salon) -> None:
    salon.webkassa.password = "another"
    result = salon.shop.finish(start_unit(salon))
    assert "run: sudo docker run --rm " in result.err


@needs("--accounts-dir")
def test_with_the_lines_for_many_accounts_a_repetition_logs_in_for_those_only_that_failed(
    salon: Salon,
) -> None:
    login = {name: salon.settings.pop(name) for name in ("WEBKASSA_LOGIN", "WEBKASSA_PASSWORD")}
    del salon.settings["WEBKASSA_AUTH_URL"]
    (salon.home / "accounts.d").mkdir()
    with Simulator("127.0.0.2") as good, Simulator("127.0.0.3") as failing:
        failing.script.extend([answer(500)] * 99)
        for name, vendor in (("good", good), ("failing", failing)):
            salon.write(f"accounts.d/{name}.env", login | {"WEBKASSA_AUTH_URL": vendor.url})
        salon.settings["WEBKASSA_DEADLINE"] = "10s"
        codes = []
        for _ in range(2):
            codes.append(salon.shop.finish(start_unit(salon, **environment("#"))).code)
            failing.script.clear()
        assert codes == [69, 0]
        assert len(good.issued) == len(failing.issued) == 1
        assert salon.shop.row("Webkassa:failing")["api_key"] == failing.live
