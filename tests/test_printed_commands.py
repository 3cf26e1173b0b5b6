"""A printed command is run by a shell as it stands, where it was printed, and does what it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from world import webkassa_simulator
from world.nursery import quick_python
from world.postgres import PASSWORD as DATABASE_PASSWORD
from world.shop import PROGRAM, ROOT, Shop
from world.webkassa_simulator import answer

PRINTED = re.compile(
    r"(?:[Rr]un(?: again now)?|later|minutes): (.*(?:update|check|status)\S*)$", re.M
)


class Typed(NamedTuple):
    """A command line, and the folder in which it is typed."""

    command: str
    folder: str


PYTHON = shlex.quote(sys.executable)
AS_TYPED = {
    "whole paths": Typed(f"$QUICK {PROGRAM}", "/"),
    "from the project": Typed(f"{PYTHON} {PROGRAM.name}", str(ROOT)),
    "from the folder below": Typed(f"$QUICK ../{PROGRAM.name}", str(ROOT / "tests")),
    "by the shebang": Typed(f"./{PROGRAM.name}", str(ROOT)),
    "by the shebang, whole path": Typed(str(PROGRAM), "/"),
    "with options of Python": Typed(f"{PYTHON} -X dev -u {PROGRAM}", "/"),
    "as a module": Typed(f"{PYTHON} -m {PROGRAM.stem}", str(ROOT)),
}


@pytest.fixture(autouse=True)
def _quick_python(shop: Shop) -> None:
    """What is printed is typed into a shell."""
    shop.python = shop.env["QUICK"] = quick_python()


@pytest.fixture
def settings(shop: Shop) -> Path:
    """Settings in a file alone, whose path has a blank, a quote and a dollar sign."""
    folder = shop.home / "my $HOME's settings"
    folder.mkdir()
    # The shebang finds the Python of the test, as with an activated virtual environment
    shop.env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return shop.move_settings(folder / "shop one.env")


def shell(shop: Shop, command: str, folder: str = "/") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=shop.env,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", AS_TYPED)
def test_command_printed_by_a_failed_update_works_as_it_stands(
    shop: Shop, settings: Path, way: str
) -> None:
    command, folder = AS_TYPED[way]
    shop.webkassa.password = "changed"
    relative = os.path.relpath(settings, folder)
    failed = shell(shop, f"{command} --env-file {shlex.quote(relative)} -v", folder)
    assert failed.returncode == 77
    (printed,) = PRINTED.findall(failed.stderr)
    shop.webkassa.password = webkassa_simulator.PASSWORD
    assert shell(shop, printed, folder).returncode == 0
    assert shop.holds_the_live_key


def test_command_printed_after_a_login_that_may_yet_count_works_as_it_stands(
    shop: Shop, settings: Path
) -> None:
    shop.webkassa.script.append(answer(503, b"", {"Retry-After": "3600"}))
    (printed,) = PRINTED.findall(shop.run("--env-file", str(settings)).err)
    run = shell(shop, printed)
    assert (run.returncode, run.stdout[:8]) == (1, "WEBKASSA"), printed  # 30 h old: a warning


@pytest.mark.parametrize("command", ["check", "status"])
def test_command_of_a_server_is_the_one_that_the_installer_gives(shop: Shop, command: str) -> None:
    shop.webkassa.live = None
    said = shop.run(command, WEBKASSA_KEY_COMMAND="sudo webkassa-key").out
    assert re.findall("Run again now: (.*update)$", said, re.M) == ["sudo webkassa-key update"]
    shop.webkassa.password = "changed"
    result = shop.run(WEBKASSA_KEY_COMMAND="sudo webkassa-key")
    assert PRINTED.findall(result.err) == ["sudo webkassa-key update"]


@pytest.mark.parametrize("where", ["file", "environment"])
@pytest.mark.parametrize("command", ["check", "status", "status --json"])
def test_command_printed_about_a_dead_key_works_as_it_stands(
    shop: Shop, request: pytest.FixtureRequest, command: str, where: str
) -> None:
    shop.webkassa.live = None
    if where == "file":
        shop.options = ("--env-file", str(request.getfixturevalue("settings")))
    shown = shop.run(*command.split()).out
    if "--json" in command:
        shown = json.loads(shown)["message"]
    assert re.search("is dead.*Run again now", shown, re.DOTALL)
    printed = re.findall(r"Run again now: (.*? update)", shown)[0]
    assert ("--env-file" in printed) == (where == "file")
    assert shell(shop, printed).returncode == 0
    assert shop.holds_the_live_key


def test_settings_fault_names_the_file_that_was_read(shop: Shop, settings: Path) -> None:
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("WEBKASSA_LOGIN=", "WEBKASSA_LOGIM="), encoding="utf-8")
    failed = shop.run("--env-file", str(settings))
    assert failed.code == 78
    settings.write_text(text, encoding="utf-8")
    assert shell(shop, PRINTED.findall(failed.err)[0]).returncode == 0
    assert shop.is_untouched


# The hint that shows why PostgreSQL lets nobody in: it must knock at the same door -----------------


def psql_of(shop: Shop, text: str) -> str:
    shop.env["PATH"] = f"{shop.server.bin}:{shop.env['PATH']}"
    (command,) = re.findall(r"(psql .*)$", text, re.MULTILINE)
    return str(command)


def answered(shop: Shop, command: str, query: str) -> str:
    """Add a query to the command, and the right password, as a person types it."""
    shop.env |= {"PGPASSWORD": DATABASE_PASSWORD}
    run = shell(shop, f"{command} -X -w -At -c {shlex.quote(query)}")
    return (run.stdout + run.stderr).strip()


WHERE = "SELECT current_user, current_database(), current_setting('search_path')"


def test_psql_of_the_hint_connects_as_the_program_does(shop: Shop, settings: Path) -> None:
    """By names of the settings' file alone, and with options that decide what is found."""
    names = {"HOST": "PGHOST", "PORT": "PGPORT", "DB": "PGDATABASE", "USER": "PGUSER"}
    text = settings.read_text(encoding="utf-8")
    for ours, libpqs in names.items():
        text = text.replace(f"POSTGRES_{ours}=", f"{libpqs}=")
    text = re.sub("POSTGRES_PASSWORD=.*", "PGPASSWORD=wrong-canary", text)
    settings.write_text(text + "PGOPTIONS='-c search_path=s'\n", encoding="utf-8")
    result = shop.run("--env-file", str(settings))
    assert (result.code, "canary" in result.err) == (75, False)
    assert answered(shop, psql_of(shop, result.err), WHERE) == "postgres|shop|s"


@pytest.mark.parametrize("where", ["DATABASE_URL", "file"])
def test_psql_of_the_hint_asks_for_tls_as_the_program_does(
    shop: Shop, settings: Path, where: str
) -> None:
    """Without TLS it would get in, and the person would see no reason."""
    (shop.home / "ca.pem").write_text("", encoding="utf-8")
    more = {"sslmode": "verify-full", "sslrootcert": str(shop.home / "ca.pem")}
    if where == "file":
        lines = f"PGSSLMODE={more['sslmode']}\nPGSSLROOTCERT={more['sslrootcert']}\n"
    else:
        query = "&".join(f"{name}={value}" for name, value in more.items())
        lines = f"DATABASE_URL=postgresql://postgres:x@127.0.0.1:{shop.server.port}/shop?{query}\n"
    with settings.open("a", encoding="utf-8") as file:
        file.write(lines)
    result = shop.run("--env-file", str(settings))
    assert result.code == 75
    said = answered(shop, psql_of(shop, result.err), WHERE)
    assert "postgres|shop" not in said
    assert "SSL" in said


@pytest.mark.parametrize("odd", ["o'hara", 'say "hi"', "a b", "back\\slash", "$HOME", "Касса"])
def test_psql_of_the_hint_quotes_any_name(shop: Shop, odd: str) -> None:
    with shop.role(odd, password=DATABASE_PASSWORD):
        result = shop.run(POSTGRES_PASSWORD="wrong-canary")
        assert result.code == 75
        assert answered(shop, psql_of(shop, result.err), "SELECT current_user") == odd


# What a database administrator is to type --------------------------------------------------------

OTHER_SCHEMA = 'CREATE SCHEMA "Our Shop"; ALTER TABLE api_keys SET SCHEMA "Our Shop";'
NO_ROW = "DELETE FROM api_keys WHERE service_name = 'Webkassa';"
# the role, what it meets, the name of the table in the settings, and in SQL
NO_GRANTS = {
    "no privilege": ("web-upd", "", "", "api_keys"),
    "no privilege, no row": ("updater", NO_ROW, "", "api_keys"),
    "no privilege of a role of odd name": ('a"b', "", "", "api_keys"),
    "of names that are words of SQL": (
        "user", 'CREATE SCHEMA "lateral"; ALTER TABLE api_keys SET SCHEMA "lateral"', "lateral.api_keys", '"lateral".api_keys'),
    "in another schema": ("updater", OTHER_SCHEMA, "Our Shop.api_keys", '"Our Shop".api_keys'),
    "in another schema, no row": ('a"b', NO_ROW + OTHER_SCHEMA, "Our Shop.api_keys", '"Our Shop".api_keys'),
    "on a table of odd name": (
        "web-upd", OTHER_SCHEMA + 'ALTER TABLE "Our Shop".api_keys RENAME TO "Ключи"',
        "Our Shop.Ключи", '"Our Shop"."Ключи"',
    ),
    "no table, and no right to make it": ("web-upd", "DROP TABLE api_keys", "", "api_keys"),
    "schema that is out of reach": (
        "web-upd", "CREATE SCHEMA s; ALTER TABLE api_keys SET SCHEMA s", "", "s.api_keys"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_GRANTS)
def test_printed_grants_run_as_they_stand_and_suffice(shop: Shop, case: str) -> None:
    role, met, setting, table = NO_GRANTS[case]
    shop.sql(met or "SELECT 1")
    shop.env["API_KEYS_TABLE"] = setting
    with shop.role(role):
        result = shop.run_in_vain(73)
        grants = re.findall(r"GRANT [^;]*;", result.err)
        assert grants
        shop.env |= re.findall(r"[Ss]et (API_KEYS_TABLE)=(\S+?),? ", result.err)
        shop.sql(" ".join(grants))
        assert shop.run("check").code == 0
        assert shop.run().code == 0
        assert shop.row(table=table)["api_key"] == shop.webkassa.live
