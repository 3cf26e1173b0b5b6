"""The program as persons start it: with their language, their clock's zone, their Python's settings."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from world.shop import Result, Shop

PERSONS = {
    "in Almaty, with a narrow window": {
        "LANG": "ru_RU.UTF-8", "LANGUAGE": "ru:en", "TZ": "Asia/Almaty", "COLUMNS": "30",
        "PYTHONPATH": "{home}/elsewhere",
    },
    "without a locale": {
        "LC_ALL": "C", "TZ": "Nowhere/City", "PYTHONCOERCECLOCALE": "0", "PYTHONOPTIMIZE": "1",
        "PYTHONUNBUFFERED": "1",
    },
    "who develops": {
        "LC_ALL": "xx_YY.UTF-8", "PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error",
        "FORCE_COLOR": "1", "PYTHON_COLORS": "1", "TERM": "xterm-256color",
    },
    "who is careful": {
        "PYTHONIOENCODING": "ascii", "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1",
        "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
    },
}  # fmt: skip


@pytest.fixture(params=PERSONS)
def person(request: pytest.FixtureRequest, shop: Shop) -> dict[str, str]:
    elsewhere = shop.home / "elsewhere"  # another project's modules, by names of our own
    elsewhere.mkdir()
    for name in ("settings", "shop", "utils", "config"):
        (elsewhere / f"{name}.py").write_text("raise SystemExit('another project')")
    return {
        name: value.format(home=shop.home) for name, value in PERSONS[str(request.param)].items()
    }


def run(shop: Shop, person: dict[str, str], *arguments: str, **env: str) -> Result:
    process = subprocess.Popen(
        shop.command(*arguments, *shop.options), env=shop.env | person | env, text=True, encoding="utf-8",
        errors="backslashreplace", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    return shop.finish(process)


@pytest.mark.slow
def test_a_thousand_inherited_files_are_no_hindrance(shop: Shop) -> None:
    """`select` knows no file above 1,023: it was "a bug of this program"."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("needs a hard limit of 2,000 files")
    code = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (2000, 2000));"
    code += "[os.set_inheritable(os.dup(1), True) for _ in range(1100)]; os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *shop.command("update")], env=shop.env, text=True,
        encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    shop.assert_renewed(process)


@pytest.mark.slow
def test_a_day_of_the_key_is_the_same_for_everybody(shop: Shop, person: dict[str, str]) -> None:
    """Of a row with a Cyrillic name, by a settings file with one."""
    shop.sql("UPDATE api_keys SET service_name = 'Касса № 1' WHERE id = 1")
    file = Path(shop.home, "касса.env")
    file.write_text("WEBKASSA_SERVICE_NAME='Касса № 1'\n", encoding="utf-8")
    shop.options = ("--env-file", str(file))
    assert "WARN  stored key: " in run(shop, person, "check").out
    updated = run(shop, person)
    assert (updated.code, updated.out, updated.err.count("\n")) == (0, "", 1)
    assert "Stored the new key" in updated.err
    row = shop.row("Касса № 1")
    assert row
    assert row["api_key"] == shop.webkassa.live != shop.old_key
    status = run(shop, person, "status")
    assert (status.code, status.err) == (0, "")
    assert status.out.startswith("WEBKASSA OK - key ")
    assert ", 0.0 h old; " in status.out
    again = run(shop, person, "update", "--if-needed")
    assert (again.code, shop.webkassa.authorizations) == (0, 1)
    refused = run(shop, person, WEBKASSA_PASSWORD="wrong")
    assert refused.code == 77
    assert "refused" in refused.err
    assert shop.row("Касса № 1") == row


@pytest.mark.slow
def test_codes_stand_in_the_help_for_everybody(shop: Shop, person: dict[str, str]) -> None:
    """check-status.sh reads there what a code means."""
    shown = run(shop, person, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert "\n  77  Webkassa refuses the login, password or API key\n" in shown.out
