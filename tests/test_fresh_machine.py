"""A clone on a machine that has nothing of ours yet."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from world.shop import PROGRAM, ROOT

# Makes a virtual environment that is the tests' own: a real one takes seven seconds. Its pip fails
# where a package is asked for, as one does that has no index
PYTHON3 = f"""#!/bin/sh
case $* in
"-m venv --clear "*)
    rm -rf "$4"
    mkdir -p "$4/bin"
    ln -s "$0" "$4/bin/python"
    echo "made $4" ;;
"-m pip "*" install -r "*) ! grep . "$7" >&2 ;;
"-m pip "*) ;;
*) exec {sys.executable} "$@" ;;
esac
"""


@pytest.mark.slow
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
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
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
    shutil.rmtree(tmp_path / "copy/.venv-dev")
    (tmp_path / "copy/.venv-dev").symlink_to(tmp_path / ".venv-dev")  # as into a worktree
    assert make_venv(tmp_path / "copy") == ("", 1)
    assert (tmp_path / ".venv-dev/of-the-user").exists()
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


def run(program: Path, home: Path, *before: str) -> subprocess.CompletedProcess[str]:
    """Run `program check` in its home by a Python without our libraries, after lines of Python."""
    code = f"import runpy, sys; {'; '.join(before)}\nrunpy.run_path({str(program)!r}, {{}}, '__main__')"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, "check"], cwd=home, env={"PATH": "/usr/bin:/bin"},
        text=True, capture_output=True,
    )  # fmt: skip


def test_a_missing_library_is_a_sentence_with_the_command_that_helps(tmp_path: Path) -> None:
    folder = tmp_path / "Касса № 1"
    folder.mkdir()
    program = Path(shutil.copy(PROGRAM, folder))
    done = run(program, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("A library is missing: No module named ")
    first, then = re.findall("[Rr]un: (.+)", done.stderr)
    assert f"cd '{folder}' && {sys.executable} -m venv .venv" in first
    # As typed, with stand-ins for what takes long
    (folder / "requirements.txt").touch()
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/pip").symlink_to("/bin/echo")
    (folder / ".venv/bin/python").symlink_to("/bin/echo")
    typed = f"{first.replace(sys.executable, 'true')}\n{then}"
    done = subprocess.run(["sh", "-c", typed], cwd=tmp_path, text=True, capture_output=True)
    said = "install -r requirements.txt\nwebkassa_key_updater.py check\n"
    assert (done.stdout, done.stderr) == (said, "")


@pytest.mark.slow
@pytest.mark.parametrize("version", [(3, 8), (3, 9)])
def test_an_older_python_is_told_that_it_is_too_old(
    version: tuple[int, int], tmp_path: Path
) -> None:
    """Before it is told of libraries, which it may have."""
    ast.parse(PROGRAM.read_text(encoding="utf-8"), feature_version=version)
    done = run(PROGRAM, tmp_path, f"sys.version_info = {(*version, 2)}")
    said = "webkassa_key_updater.py needs Python 3.10 or newer.\n"
    assert (done.returncode, done.stderr) == (1, said)
