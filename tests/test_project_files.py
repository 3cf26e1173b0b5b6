"""The papers of the project agree with the project."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import webkassa_key_updater

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github/workflows/test.yml"
TEMPLATE = ROOT / ".github/ISSUE_TEMPLATE/problem.yml"
PAPERS = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def steps() -> list[str]:
    """Return the commands of the workflow."""
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
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


def test_workflow_is_one_and_runs_existing_scripts_only() -> None:
    tool = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema"]
    subprocess.run([*tool, "vendor.github-workflows", WORKFLOW], check=True)
    assert any("./test.sh" in step for step in steps())
    assert any(".ci/run" in step for step in steps())
    for step in steps():
        for name in re.findall(r"(?:^|\s)(\.[\w./-]+|--ignore=\S+)", step):
            assert (ROOT / name.removeprefix("--ignore=")).exists(), name


def test_workflow_takes_actions_by_their_commit() -> None:
    """A tag can be moved."""
    used = re.findall(r"uses: (\S+)( # v[\d.]+)?$", WORKFLOW.read_text(), re.MULTILINE)
    assert len(used) == WORKFLOW.read_text().count("uses:")
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
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in (*files, *ROOT.glob("*.sh"), *ROOT.glob("*.py")):
        found = re.search(
            r"\bOWNER\b|git(hub|lab)\.com/[\w-]+/webkassa", path.read_text(encoding="utf-8")
        )
        assert not found, path
