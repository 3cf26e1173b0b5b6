"""A clone on a machine that has nothing of ours yet."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
