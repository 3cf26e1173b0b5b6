"""A clone on a machine that has nothing of ours yet."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


# Makes a virtual environment that is the tests' own: a real one takes seven seconds
PYTHON3 = f"""#!/bin/sh
case $* in
"-m venv --clear "*)
    rm -rf "$4"
    mkdir -p "$4/bin"
    ln -s "$0" "$4/bin/python"
    echo "made $4" ;;
*) exec {sys.executable} "$@" ;;
esac
"""


def test_demo_and_tests_keep_to_a_folder_of_their_own(tmp_path: Path) -> None:
    """.venv is what the README has people make for their shop; nothing can be downloaded here."""
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests/venv.sh", tmp_path / "tests")
    for name in ("requirements.txt", "requirements-dev.txt", ".venv"):
        (tmp_path / name).write_text("")
    (tmp_path / "python3").write_text(PYTHON3)
    (tmp_path / "python3").chmod(0o755)

    def make_venv(folder: Path = tmp_path) -> tuple[str, int]:
        """Return what it says on standard output, and its exit code."""
        script = ". tests/venv.sh; make_venv -r requirements.txt"
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "PIP_NO_INDEX": "1"}
        command = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE)
        return done.stdout, done.returncode

    assert make_venv() == ("made .venv-dev\n", 0)
    (tmp_path / ".venv-dev/of-the-user").touch()
    # What cannot be had does not cost what is there
    (tmp_path / "requirements.txt").write_text("webkassa-has-no-such-package==1")
    assert make_venv() == ("", 1)
    (tmp_path / "requirements.txt").write_text("")
    assert make_venv() == ("", 0)
    assert (tmp_path / ".venv-dev/of-the-user").exists()
    # Programs in a virtual environment do not start from another place
    shutil.copytree(tmp_path, tmp_path / "copy", symlinks=True)
    assert make_venv(tmp_path / "copy") == ("made .venv-dev\n", 0)
    assert (tmp_path / ".venv").read_text() == ""


def test_a_clone_of_windows_has_the_same_line_ends(tmp_path: Path) -> None:
    """core.autocrlf=true, git's default there, made `bash\\r` of each script's first line."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    clone = tmp_path / "clone"
    shutil.copytree(
        ROOT, clone, ignore=shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache")
    )

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "core.autocrlf=true", *arguments], cwd=clone, check=True)

    git("init", "--quiet")
    git("add", ".")
    git("checkout-index", "--all", "--prefix=again/")
    files = [path for path in (clone / "again").rglob("*") if path.is_file()]
    assert len(files) > 100
    for path in files:
        name = path.relative_to(clone / "again")
        assert path.read_bytes() == (clone / name).read_bytes(), name
