"""The image: what is in it, and the program in it as a container's only process."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from .common import FOLDER, MODULES, ROOT, STARTED, USER, await_, hang, needs, slow, tool
from .conftest import NAME, Salon, mount
from .engine import HARDENED, IMAGE, Engine

pytestmark = pytest.mark.xdist_group("containers")  # one engine, one worker


def stop(salon: Salon) -> float:
    """Stop the container as Docker does; return how many seconds it took."""
    start = time.monotonic()
    salon.engine.run("stop", NAME)
    return time.monotonic() - start


# What is in it


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert tool("hadolint", "--no-color", FOLDER / "Dockerfile") == ""


def test_it_holds_the_program_with_its_packages_and_nothing_else_of_ours(engine: Engine) -> None:
    ours = "opt/webkassa-key-updater/"
    files = engine.files(IMAGE, ours)
    packages = {m[1] for file in files if (m := re.search(r"site-packages/([^/-]+)-[^/]+/$", file))}
    assert packages == {"requests", "psycopg2_binary", "python_dotenv", "certifi", "idna", "urllib3",
                        "charset_normalizer", "webkassa_key_updater"}  # fmt: skip
    assert {file for file in files if not file.startswith(f"{ours}venv/")} == {ours}
    modules = [
        file for file in files if re.search(r"webkassa_key_\w+\.(py|cpython-\d+\.pyc)$", file)
    ]
    assert len(modules) == 2 * len(MODULES)  # and compiled
    assert not [file for file in files if file.endswith(("/pip", "/pip3"))]
    (settings,) = (file for file in files if file.endswith(".env"))
    assert settings.endswith("/site-packages/.env")  # a link to where they are mounted


def test_it_has_no_settings_but_where_its_memory_is_and_what_it_is_called(engine: Engine) -> None:
    config = json.loads(engine.inspect(IMAGE, "{{json .Config}}"))
    assert {line.split("=")[0] for line in config["Env"]} == {
        "LANG", "PATH", "STATE_DIRECTORY", "WEBKASSA_KEY_COMMAND"}  # fmt: skip
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["webkassa-key"]  # no shell between Docker and the program
    assert not config["Cmd"]
    assert config["StopSignal"] == "SIGTERM"


def test_only_the_program_and_its_requirements_enter_the_build(
    engine: Engine, tmp_path: Path
) -> None:
    for secret in (".env", ".git/config", ".venv/lib/a.py", "accounts.d/a.env", "tests/a.py"):
        (tmp_path / secret).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / secret).write_text("WEBKASSA_PASSWORD=canary")
    for name in (
        "pyproject.toml",
        "requirements.txt",
        "requirements.lock",
        *MODULES,
        "containers/Dockerfile.dockerignore",
        *STARTED,
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "containers/Dockerfile").write_text("FROM scratch\nCOPY . /context/\n")
    engine.build("context", tmp_path)
    assert set(engine.files("context", "context/")) == {
        "context/", "context/pyproject.toml", "context/requirements.txt", "context/requirements.lock",
        "context/containers/", *(f"context/{name}" for name in (*MODULES, *STARTED))}  # fmt: skip


# What the program does in it


def test_an_update_stores_the_live_key(salon: Salon) -> None:
    result = salon.run("update", "-v")
    assert result.code == 0, result.err
    assert salon.shop.holds_the_live_key
    assert result.out == ""


def test_when_told_nothing_it_asks_nothing_however_often_it_is_started(salon: Salon) -> None:
    options = (f"--name={NAME}", "--detach", "--restart=always", mount(salon.settings_file()))
    salon.engine.run("run", *options, *HARDENED, IMAGE)
    await_(lambda: int(salon.engine.inspect(NAME, "{{.RestartCount}}")) >= 5)
    assert "usage: docker run " in salon.engine.run("logs", NAME).stderr
    assert salon.engine.inspect(NAME, "{{.State.ExitCode}}") in ("0", "2")  # 0 while it runs
    assert salon.webkassa.calls == []


def test_check_and_status_change_nothing(salon: Salon) -> None:
    check, status = salon.run("check"), salon.run("status")
    assert check.code == 0, check.out
    assert "FAIL" not in check.out
    assert status.code == 1  # the shop's key is 30 h old
    assert status.out.startswith("WEBKASSA WARNING")
    assert salon.shop.is_untouched
    assert salon.webkassa.authorizations == 0


def test_settings_may_come_from_the_environment(salon: Salon) -> None:
    options = tuple(f"--env={name}={value}" for name, value in salon.settings.items())
    assert salon.run("check", options=options).code == 0


def test_settings_that_the_user_of_the_image_may_not_read_are_named(salon: Salon) -> None:
    options = (mount(salon.settings_file(owner=0)),)
    result = salon.run("update", options=options)
    assert result.code == 78
    assert "/opt/webkassa-key-updater/.env: cannot be read (Permission denied)" in result.err
    assert salon.webkassa.calls == []


def test_loopback_in_a_container_is_named_for_what_it_is(salon: Salon) -> None:
    salon.settings["POSTGRES_PORT"] = "1"
    result = salon.run("update")
    assert result.code == 75
    assert "In a container 127.0.0.1 is the container itself" in result.err
    salon.settings["POSTGRES_HOST"] = "db"
    assert "has its name in that stack's network alone" in salon.run("check").out


@needs("WEBKASSA_PASSWORD_FILE")
def test_secrets_may_be_files_of_their_own(salon: Salon) -> None:
    options = []
    for name in ("WEBKASSA_LOGIN", "WEBKASSA_PASSWORD", "POSTGRES_PASSWORD"):
        file = salon.secret(name.lower(), salon.settings.pop(name) + "\n")
        target = f"/run/secrets/{file.name}"
        options += [mount(file, target), f"--env={name}_FILE={target}"]
    options += [f"--env={name}={value}" for name, value in salon.settings.items()]
    result = salon.run("update", options=tuple(options))
    assert result.code == 0, result.err
    assert salon.shop.holds_the_live_key


def test_a_failure_reaches_docker_as_the_programs_exit_code(salon: Salon) -> None:
    salon.webkassa.password = "another"
    refused = salon.run("update")
    assert refused.code == 77
    assert salon.shop.is_untouched
    faulty = salon.run("update", options=())
    assert faulty.code == 78
    assert "WEBKASSA_LOGIN" in faulty.err


@needs("--if-key")
def test_messages_name_a_command_that_works_in_the_container(salon: Salon) -> None:
    said = salon.run("check", options=()).err
    assert "webkassa-key check" in said
    options = (mount(salon.settings_file()), "--entrypoint=sh")
    assert salon.run("-c", "webkassa-key check", options=options).code == 0


def test_a_stop_in_the_middle_of_a_login_is_obeyed_after_the_commit(salon: Salon) -> None:
    salon.webkassa.script.append(slow(3))
    process = salon.start("update", "-v")
    await_(lambda: salon.webkassa.authorizations)
    stop(salon)
    result = salon.shop.finish(process)
    assert result.code == 0, result.err
    assert salon.shop.holds_the_live_key


@needs("--if-key")
def test_a_stop_while_waiting_for_the_lock_is_obeyed_at_once(salon: Salon) -> None:
    salon.webkassa.script.append(hang())
    holder = salon.shop.start("update")
    await_(lambda: salon.webkassa.authorizations)
    process = salon.start("update", "-v")
    await_(lambda: salon.shop.has_said(process))
    assert stop(salon) < 5
    result = salon.shop.finish(process)
    holder.kill()
    holder.communicate()
    assert result.code not in (0, 137)
    assert salon.webkassa.authorizations == 1
    assert salon.shop.is_untouched


def test_the_memory_of_refusals_may_be_a_volume(salon: Salon) -> None:
    options = ("--mount=type=volume,source=state,target=/var/lib/webkassa-key-updater",
               "--entrypoint=sh")  # fmt: skip
    salon.run("-c", 'echo refused > "$STATE_DIRECTORY/memory"', options=options)
    result = salon.run("-c", 'cat "$STATE_DIRECTORY/memory"', options=options)
    assert (result.code, result.out) == (0, "refused\n")


@needs("--if-key")
def test_a_refusal_is_remembered_from_one_container_to_the_next(salon: Salon) -> None:
    options = (mount(salon.settings_file()),
               "--mount=type=volume,source=memory,target=/var/lib/webkassa-key-updater")  # fmt: skip
    salon.webkassa.password = "another"
    codes = [salon.run("update", "--if-needed", options=options).code for _ in range(2)]
    assert codes == [77, 77]
    assert salon.webkassa.authorizations == 1


def test_docker_calls_it_healthy_as_long_as_the_stored_key_lives(salon: Salon) -> None:
    assert salon.run("update").code == 0
    options = ("--entrypoint=sleep", mount(salon.settings_file()), "--health-interval=1s",
               "--health-retries=1")  # fmt: skip

    def health() -> str:
        return salon.engine.inspect(NAME, "{{.State.Health.Status}}")

    process = salon.start("infinity", options=options)
    await_(lambda: salon.engine.run("ps", "--quiet").stdout)
    await_(lambda: health() == "healthy")
    salon.webkassa.issue()  # somebody else logs in: the stored key is dead
    await_(lambda: health() == "unhealthy")
    assert "WEBKASSA CRITICAL" in salon.engine.inspect(NAME, "{{json .State.Health.Log}}")
    salon.engine.run("kill", NAME)
    process.communicate()
