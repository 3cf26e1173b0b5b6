"""The engine with the image, once for this folder; and a shop that runs the program in it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .common import ROOT, USER
from .engine import HARDENED, IMAGE, SETTINGS, Engine, missing

NAME = "updater"


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    if reason := missing():
        if os.environ.get("WEBKASSA_REQUIRE_DOCKER"):
            pytest.fail(f"the container test {reason}")
        pytest.skip(f"the container test {reason}")
    with contextlib.closing(Engine()) as engine:
        engine.import_base()
        engine.build(IMAGE, ROOT)
        yield engine


class Salon:
    """A shop, see the tests' `Shop`, that has Docker and nothing else."""

    def __init__(self, engine: Engine, shop: Any, home: Path) -> None:
        self.engine, self.shop, self.webkassa, self.home = engine, shop, shop.webkassa, home
        ours = ("WEBKASSA_", "POSTGRES_")
        self.settings = {name: value for name, value in shop.env.items() if name.startswith(ours)}

    def secret(self, name: str, content: str, owner: int = USER) -> Path:
        """Write a file that `owner` alone may read."""
        file = self.home / name
        file.write_text(content, encoding="utf-8")
        file.chmod(0o400)
        os.chown(file, owner, owner)
        return file

    def write(self, name: str, settings: dict[str, str], owner: int = USER) -> Path:
        """Write a settings file that `owner` alone may read."""

        def quoted(value: str) -> str:
            return value.replace("\\", "\\\\").replace("'", "\\'")

        lines = [f"{key}='{quoted(value)}'\n" for key, value in settings.items()]
        return self.secret(name, "".join(lines), owner)

    def settings_file(self, owner: int = USER) -> Path:
        return self.write("webkassa.env", self.settings, owner)

    def start(self, *command: str, options: tuple[str, ...] | None = None) -> subprocess.Popen[str]:
        """Start a container, hardened, with the settings as a mounted file."""
        if options is None:
            options = (mount(self.settings_file()),)
        names = (f"--name={NAME}", "--stop-timeout=750")
        return self.engine.start("run", "--rm", *names, *HARDENED, *options, IMAGE, *command)

    def run(self, *command: str, options: tuple[str, ...] | None = None) -> Any:
        return self.shop.finish(self.start(*command, options=options))


def mount(file: Path, target: str = SETTINGS) -> str:
    return f"--mount=type=bind,source={file},target={target},readonly"


@pytest.fixture
def salon(engine: Engine, shop: Any, tmp_path: Path) -> Iterator[Salon]:
    yield Salon(engine, shop, tmp_path)
    engine.remove_containers()
