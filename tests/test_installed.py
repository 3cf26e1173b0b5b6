"""The program as pip and pipx install it: a module and a command."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from world.shop import ROOT, UPDATERS, Shop
from world.waiting import await_

pytestmark = pytest.mark.xdist_group("installed")  # built and installed once
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `pip install .` does it, with the setuptools that is here."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "requirements.txt", *ROOT.glob("webkassa_key_*.py")):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "locale", source / "locale")
    options = ["--no-deps", "--no-index", "--no-build-isolation", f"--wheel-dir={folder}"]
    subprocess.run([*PIP, "wheel", *options, source], check=True)
    (wheel,) = folder.iterdir()
    return wheel


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installed by pip, beside the libraries that are here."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--no-index", f"--target={folder}"]
    subprocess.run([*PIP, "install", *options, wheel], check=True)
    return folder / "bin/webkassa-key-updater"


def run(command: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], **env, "PYTHONPATH": str(command.parents[1])}
    return subprocess.run(
        [command, *arguments], env=env, cwd=command.parent, text=True, capture_output=True
    )


@pytest.mark.slow
def test_the_wheel_holds_the_modules_and_asks_for_what_they_need(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        (described,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        text = file.read(described).decode()
    catalogue = "webkassa_key_locale/ru/LC_MESSAGES/webkassa_key_updater.mo"
    assert names == {catalogue, *(path.name for path in ROOT.glob("webkassa_key_*.py"))}

    def parts(requirement: str) -> set[str]:
        return {*re.split("[,;]|(?=[<>])", requirement)}

    wanted = (ROOT / "requirements.txt").read_text().split()
    needed = re.findall("^Requires-Dist: (.+)$", text, re.M)
    assert [parts(line) for line in needed] == [parts(line) for line in wanted]


def locked(name: str) -> list[tuple[Requirement, int]]:
    """Return what a lock names, with the number of its hashes."""
    text = (ROOT / f"{name}.lock").read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line.split(" --hash=sha256:") for line in re.findall("^[a-z].+", text, re.M)]
    return [(Requirement(line[0]), len(line) - 1) for line in lines]


@pytest.mark.parametrize("name", ["requirements", "requirements-alerts"])
def test_a_lock_names_versions_that_are_allowed_each_with_hashes(name: str) -> None:
    wanted = [Requirement(line) for line in (ROOT / f"{name}.txt").read_text().split()]
    if name == "requirements":  # what builds the program is taken from there, too
        build = re.search(r'"(setuptools\b.*)"', (ROOT / "pyproject.toml").read_text())[1]
        wanted.append(Requirement(build))
    for requirement, hashes in locked(name):
        assert re.fullmatch(r"==\d[\w.]*", str(requirement.specifier)), requirement
        assert hashes > 0, requirement
    for requirement in wanted:
        pinned = [found for found, _ in locked(name) if found.name == requirement.name]
        assert pinned
        for found in pinned:
            assert requirement.specifier.contains(str(found.specifier).removeprefix("=="))


def test_all_that_the_program_needs_is_locked() -> None:
    """As far as what is installed here tells; pip refuses to install what lacks a hash."""
    names = {canonicalize_name(found.name) for found, _ in locked("requirements")}
    needed = {"requests", "psycopg2-binary", "python-dotenv"}
    for name in sorted(needed):
        lines = [Requirement(line) for line in metadata.requires(name) or []]
        needed |= {canonicalize_name(line.name) for line in lines
                   if line.marker is None or line.marker.evaluate({"extra": ""})}  # fmt: skip
    assert names == {*needed, "setuptools"}


@pytest.mark.slow
def test_the_installed_command_renews_the_key(command: Path, shop: Shop) -> None:
    result = run(command, **shop.env)
    assert result.returncode == 0, result.stderr
    assert shop.holds_the_live_key
    compiled = [*command.parents[1].glob("__pycache__/webkassa_key_updater.*.pyc")]
    assert len(compiled) == 1  # at the installation, and not at each start


@pytest.mark.slow
def test_the_installed_command_speaks_russian(command: Path, shop: Shop) -> None:
    result = run(command, "status", **shop.env | {"WEBKASSA_LANG": "ru"})
    assert result.stdout.startswith("WEBKASSA WARNING - ключ "), result.stderr


@pytest.mark.slow
def test_installed_it_says_how_it_gets_settings_and_what_to_type(command: Path) -> None:
    """No .env lies beside a module in site-packages."""
    result = run(command, "check", HOME="/nonexistent")
    assert result.returncode == 78
    assert "  .env: is missing; use --env-file FILE or the environment\n" in result.stderr
    (then,) = re.findall("then run: (.+)", result.stderr)
    assert then == f"{sys.executable} {command} check"


@pytest.mark.slow
def test_ctrl_c_ends_the_installed_command_at_once(command: Path, shop: Shop) -> None:
    """As a program, not as a module that Python interrupts."""
    env = shop.env | {"PYTHONPATH": str(command.parents[1])}
    with shop.lock_held():
        process = subprocess.Popen(
            ["env", "--default-signal=INT", command], env=env, stderr=subprocess.PIPE
        )
        await_(lambda: shop.sql(UPDATERS))
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1].count(b"Traceback") == 0
    assert process.returncode == -signal.SIGINT
