"""compose.yaml: the schema, what it must say, and its job run by Compose."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from shown import MANUALS, snippet

from .common import FOLDER, HOLD, ROOT, await_, seconds, tool
from .conftest import Salon
from .engine import Engine
from .stack import Stack, time_a_sale

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


def test_an_application_in_another_file_joins_as_the_manual_says(
    compose: list[str], tmp_path: Path
) -> None:
    for manual in MANUALS:
        (tmp_path / "manual.yaml").write_text(snippet("renew compose", manual))
        (tmp_path / "shop.yaml").write_text("services: {shop: {image: shop}}")
        files = [f"--file={tmp_path / name}" for name in ("manual.yaml", "shop.yaml")]
        result = subprocess.run([*compose, *files, "config"], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        joined = yaml.safe_load(result.stdout)
        assert joined["networks"].keys() == {STACK["networks"]["default"]["name"]}
        assert joined["volumes"].keys() == {STACK["volumes"]["renew"]["name"]}
        assert "/run/webkassa-key" in str(joined["services"]["shop"]["volumes"])


Compose = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def stack(compose: list[str], salon: Salon) -> Iterator[Compose]:
    """Compose with the file, and the database and the Webkassa of the tests, which are the host's.
    The secrets are as the file's first lines make them."""
    folder = salon.home / "containers"
    (folder / "secrets").mkdir(parents=True, mode=0o700)
    shutil.copy(FILE, folder)
    for name in ("WEBKASSA_LOGIN", "WEBKASSA_PASSWORD", "POSTGRES_PASSWORD"):
        file = folder / "secrets" / name.lower()
        file.write_text(salon.settings.pop(name) + "\n", encoding="utf-8")
        file.chmod(0o444)
    os.chown(folder / "secrets", 54321, 54321)
    world: dict[str, Any] = {"network_mode": "host", "environment": salon.settings}
    override = {"services": dict.fromkeys(("webkassa-key", "webkassa-key-serve"), world)}
    (folder / "override.yaml").write_text(json.dumps(override))
    files = [f"--file={folder / name}" for name in ("compose.yaml", "override.yaml")]

    def stack(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*compose, *files, *arguments], env=salon.engine.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    yield stack
    stack("down", "--volumes").communicate()


def test_compose_runs_an_update(stack: Compose, salon: Salon) -> None:
    result = salon.shop.finish(stack("run", "--rm", "-T", "--no-deps", "webkassa-key"))
    assert result.code == 0, result.err
    assert salon.shop.holds_the_live_key


def test_compose_serves_and_its_messages_name_a_command_of_compose(
    stack: Compose, salon: Salon
) -> None:
    salon.webkassa.password = "another"
    result = salon.shop.finish(stack("up", "--detach", "--no-deps", "webkassa-key-serve"))
    assert result.code == 0, result.err

    def log() -> str:
        return stack("logs", "webkassa-key-serve").communicate()[0]

    await_(lambda: "exit code 77, not tried again" in log(), pause=1)
    assert "run: docker compose run --rm webkassa-key update" in log()
    job = ("run", "--rm", "-T", "--no-deps", "webkassa-key", "update", "--if-needed")
    assert salon.shop.finish(stack(*job)).code == 77
    assert salon.webkassa.authorizations == 1  # both have the volume with the memory of refusals


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
def test_a_shop_beside_a_clean_clone_sells_again_after_one_login(
    compose: list[str], engine: Engine, tmp_path: Path
) -> None:
    with Stack(engine, compose, tmp_path) as stack:
        shop = stack.shop()
        time_a_sale(shop)
        stack.webkassa.issue()  # somebody else's login has killed the key
        print(f"It sold again after {time_a_sale(shop):.1f} s")
        shop.communicate()
        assert stack.webkassa.authorizations == 2  # the first key, and this one
