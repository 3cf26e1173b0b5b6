"""The papers of the project agree with the project."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from world.scripts import quick_python3

import webkassa_key_updater

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github/workflows/test.yml"
WORKFLOWS = [WORKFLOW, WORKFLOW.with_name("release.yml")]
TEMPLATE = ROOT / ".github/ISSUE_TEMPLATE/problem.yml"
PAPERS = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def steps() -> list[str]:
    """Return the commands of the workflows."""
    jobs = [job for path in WORKFLOWS for job in yaml.safe_load(path.read_text())["jobs"].values()]
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def project_paths(said: str) -> set[str]:
    """Return what a text names of the project: files and folders, as somebody would type them."""
    first = "|".join(
        re.escape(path.name) for path in ROOT.iterdir() if not path.name.startswith(".venv")
    )
    known = re.findall(rf"(?<![\w./-])(?:\./)?((?:{first})(?:/[\w./-]*\w)?)(?![\w-])", said)
    scripts = re.findall(r"(?<![\w/])\./([\w./-]*\w)", said)
    files = re.findall(r"(?<![\w./*-])(\w[\w./-]*\.(?:py|sh|md|txt|yml))\b", said)
    return {*known, *scripts, *files}


@pytest.mark.parametrize("paper", PAPERS)
def test_every_file_that_a_paper_names_exists(paper: str) -> None:
    named = project_paths(text(paper))
    inside = [ROOT, ROOT / "systemd"]  # parts of the scripts are named without their folder
    assert named
    assert {name for name in named if not any((at / name).exists() for at in inside)} == set()


@pytest.mark.parametrize("paper", PAPERS)
def test_every_link_of_a_paper_leads_somewhere(paper: str) -> None:
    for target in re.findall(r"\]\((?!https://)([^)#]+)", text(paper)):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (r"`update` begins before line (\d+)", r"def update.* < (\d+)"),
        (r"ends before line (\d+)", r"BORDER\}\"\) < (\d+)"),
        (r"at most (\d+) lines", r"len\(LINES\) <= (\d+)"),
        (r"more than (\d+) lines", r"length\(f\) > (\d+)"),
    ],
)
def test_ceilings_are_those_that_the_test_of_the_shape_keeps(said: str, kept: str) -> None:
    (ceiling,) = re.findall(said, text("CONTRIBUTING.md"))
    (kept_at,) = re.findall(kept, text("tests/test_shape.py"))
    assert ceiling == kept_at


def test_behaviours_that_contributing_shows_are_the_simulators() -> None:
    used = re.search("```python\n(.*?)```", text("CONTRIBUTING.md"), re.DOTALL)[1]
    program = f"""
from types import SimpleNamespace
from world.webkassa_simulator import *
with Simulator() as webkassa:
    shop = SimpleNamespace(webkassa=webkassa)
    {used.replace(chr(10), chr(10) + "    ")}
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT / "tests", check=True)
    shown = re.search(r"--authorize (\S+?)`", text("CONTRIBUTING.md"))[1]
    parse = f"from world.webkassa_simulator import behaviours; behaviours({shown!r})"
    subprocess.run([sys.executable, "-c", parse], cwd=ROOT / "tests", check=True)


def test_newest_change_is_of_this_version() -> None:
    newest = re.search(r"^## (\S+)", text("CHANGELOG.md"), re.MULTILINE)[1]
    assert newest == webkassa_key_updater.__version__


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
def test_a_release_is_made_of_a_clean_commit_with_its_tag_alone(tmp_path: Path) -> None:
    clone, version = tmp_path / "clone", webkassa_key_updater.__version__
    subprocess.run(["git", "clone", "--quiet", "--no-tags", ROOT, clone], check=True)
    quick_python3(tmp_path / "bin")

    def release() -> subprocess.CompletedProcess[str]:
        path = f"{tmp_path}/bin:{os.environ['PATH']}"
        env = {**os.environ, "DOCKER_HOST": "unix:///nowhere", "PATH": path}
        command = [clone / ".ci/release", tmp_path / "dist"]
        return subprocess.run(command, env=env, text=True, capture_output=True)

    refused = release()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"no tag v{version}" in refused.stderr
    subprocess.run(["git", "-C", clone, "tag", f"v{version}"], check=True)
    (clone / "new").touch()
    assert "git status" in release().stderr
    (clone / "new").unlink()
    made = release()
    assert made.returncode == 0, made.stderr
    name = f"webkassa_key_updater-{version}-py3-none-any.whl"
    assert made.stdout.split() == sorted(
        ["SHA256SUMS", f"webkassa-key-updater-{version}.tar.gz", name]
    )
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    subprocess.run(check, cwd=tmp_path / "dist", check=True)
    with zipfile.ZipFile(tmp_path / "dist" / name) as wheel:
        readable = [file.external_attr >> 16 & 0o444 for file in wheel.infolist()]
    assert {*readable} == {0o444}  # whatever the maker's umask is


def test_workflows_run_existing_scripts_only() -> None:
    tool = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema"]
    subprocess.run([*tool, "vendor.github-workflows", *WORKFLOWS], check=True)
    for script in ("./test.sh", ".ci/run", ".ci/release"):
        assert any(script in step for step in steps())
    for step in steps():
        for name in re.findall(r"(?:^|\s)(\.[\w./-]+|--ignore=\S+)", step):
            assert (ROOT / name.removeprefix("--ignore=")).exists(), name


def test_workflow_takes_actions_by_their_commit() -> None:
    """A tag can be moved."""
    workflows = "".join(path.read_text() for path in WORKFLOWS)
    used = re.findall(r"uses: (\S+)( # v[\d.]+)?$", workflows, re.MULTILINE)
    assert len(used) == workflows.count("uses:")
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) and tag for action, tag in used)


def test_workflow_says_weekly_whether_newer_versions_serve_and_what_advisories_name() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    assert "'newest'" in jobs["python"]["env"]["VERSIONS"]
    assert {"python": "3.10", "versions": "lowest"} in jobs["python"]["strategy"]["matrix"][
        "include"
    ]
    (audit,) = (step["run"] for step in jobs["advisories"]["steps"] if "run" in step)
    for lock in ROOT.glob("*.lock"):
        assert lock.name in audit


def test_workflow_tests_every_python_from_the_oldest_that_serves() -> None:
    pythons = yaml.safe_load(WORKFLOW.read_text())["jobs"]["python"]["strategy"]["matrix"]["python"]
    oldest = re.search(r'python_version = "(.+)"', text("pyproject.toml"))[1]
    assert pythons[0] == oldest
    assert pythons == [f"3.{minor}" for minor in range(10, 10 + len(pythons))]


def test_template_asks_for_the_status_by_commands_that_exist() -> None:
    tool = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema"]
    subprocess.run([*tool, "vendor.github-issue-forms", TEMPLATE], check=True)
    (status,) = (part for part in yaml.safe_load(TEMPLATE.read_text())["body"]
                 if part.get("id") == "status")  # fmt: skip
    assert status["validations"]["required"]
    said = status["attributes"]["description"]
    assert "`sudo webkassa-key status`" in said
    for script in re.findall(r"\./([\w-]+\.sh)", said):
        assert (ROOT / script).exists()


def test_nothing_but_the_manual_needs_the_repositorys_address() -> None:
    """It is not known yet: a command with OWNER in it cannot be typed."""
    files = [ROOT / name for name in (*PAPERS, ".env.example", "pyproject.toml")]
    for folder in (".github", "systemd", "containers"):
        files += [at for at in (ROOT / folder).rglob("*") if at.is_file() and at.suffix != ".pyc"]
    for path in (*files, *ROOT.glob("*.sh"), *ROOT.glob("*.py")):
        found = re.search(
            r"\bOWNER\b|git(hub|lab)\.com/[\w-]+/webkassa", path.read_text(encoding="utf-8")
        )
        assert not found, path
