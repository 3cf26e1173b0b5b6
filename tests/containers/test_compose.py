"""compose.yaml: the schema, what it must say, and its job run by Compose."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from .common import FOLDER, HOLD, needs, seconds, tool
from .conftest import Salon

FILE = FOLDER / "compose.yaml"
STACK = yaml.safe_load(FILE.read_text())
JOB, UPDATER = (STACK["services"][name] for name in ("webkassa-key", "webkassa-key-serve"))

pytestmark = pytest.mark.xdist_group("containers")  # one engine, one worker


@pytest.fixture
def compose() -> list[str]:
    """Return the command of the Compose that is here; Debian 12 has the older one only."""
    for command in (["docker", "compose"], ["docker-compose"]):
        test = [*command, "version"]
        if shutil.which(command[0]) and subprocess.run(test, capture_output=True).returncode == 0:
            return command
    if os.environ.get("WEBKASSA_REQUIRE_DOCKER"):
        pytest.fail("the test needs docker compose or docker-compose")
    pytest.skip("the test needs docker compose or docker-compose")


def test_the_file_fits_the_schema() -> None:
    tool("check-jsonschema", "--builtin-schema=vendor.compose-spec", FILE)


def test_compose_finds_nothing_in_the_file(compose: list[str]) -> None:
    result = subprocess.run(
        [*compose, f"--file={FILE}", "config", "--quiet"], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@pytest.mark.parametrize("service", [JOB, UPDATER], ids=["job", "serve"])
def test_the_updater_has_no_privileges_and_time_for_the_commit(service: dict[str, Any]) -> None:
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges"]
    assert seconds(service["stop_grace_period"]) >= HOLD


def test_a_start_of_the_stack_logs_in_where_that_is_needed_only() -> None:
    assert UPDATER["command"] == ["serve"]
    assert (JOB["command"], JOB["profiles"]) == (["update"], ["job"])
    assert "restart" not in JOB


def test_no_secret_is_in_the_environment() -> None:
    secrets = re.compile("LOGIN|PASSWORD|API_KEY|URL$|TOKEN")
    for service in STACK["services"].values():
        for name, value in service["environment"].items():
            if secrets.search(name):
                assert (name[-5:], value[:13]) == ("_FILE", "/run/secrets/")
                assert value.removeprefix("/run/secrets/") in service["secrets"]


@needs("WEBKASSA_PASSWORD_FILE")
def test_compose_runs_an_update(compose: list[str], salon: Salon) -> None:
    (salon.home / "secrets").mkdir()
    for name in ("WEBKASSA_LOGIN", "WEBKASSA_PASSWORD", "POSTGRES_PASSWORD"):
        salon.secret(f"secrets/{name.lower()}", salon.settings.pop(name) + "\n")
    shutil.copy(FILE, salon.home)
    world: dict[str, Any] = {"network_mode": "host", "environment": salon.settings}
    override = {"services": {"webkassa-key": world}}  # the database of the tests is the host's
    (salon.home / "override.yaml").write_text(json.dumps(override))
    files = [f"--file={salon.home / name}" for name in ("compose.yaml", "override.yaml")]
    process = subprocess.Popen(
        [*compose, *files, "run", "--rm", "-T", "--no-deps", "webkassa-key"], env=salon.engine.env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    result = salon.shop.finish(process)
    assert result.code == 0, result.err
    assert salon.shop.holds_the_live_key
