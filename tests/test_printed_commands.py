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
    "whole paths": Typed(f"{PYTHON} {PROGRAM}", "/"),
    "from the project": Typed(f"{PYTHON} {PROGRAM.name}", str(ROOT)),
    "from the folder below": Typed(f"{PYTHON} ../{PROGRAM.name}", str(ROOT / "tests")),
    "by the shebang": Typed(f"./{PROGRAM.name}", str(ROOT)),
    "by the shebang, whole path": Typed(str(PROGRAM), "/"),
    "with options of Python": Typed(f"{PYTHON} -X dev -u {PROGRAM}", "/"),
    "as a module": Typed(f"{PYTHON} -m {PROGRAM.stem}", str(ROOT)),
}


@pytest.fixture
def settings(shop: Shop) -> Path:
    """Settings in a file alone, whose path has a blank, a quote and a dollar sign."""
    folder = shop.home / "my $HOME's settings"
    folder.mkdir()
    path = folder / "shop one.env"
    names = [name for name in shop.env if name.startswith(("WEBKASSA_", "POSTGRES_"))]
    lines = []
    for name in names:
        value = shop.env.pop(name).replace("\\", "\\\\").replace("'", "\\'")
        lines.append(f"{name}='{value}'\n")
    path.write_text("".join(lines), encoding="utf-8")
    # The shebang finds the Python of the test, as with an activated virtual environment
    shop.env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return path


def shell(shop: Shop, command: str, folder: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=shop.env,
        capture_output=True,
        text=True,
        timeout=60,
    )


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
    command = f"{PYTHON} {PROGRAM} --env-file {shlex.quote(str(settings))}"
    (printed,) = PRINTED.findall(shell(shop, command, "/").stderr)
    run = shell(shop, printed, "/")
    assert (run.returncode, run.stdout[:8]) == (1, "WEBKASSA"), printed  # 30 h old: a warning


def test_command_of_a_server_is_the_one_that_the_installer_gives(shop: Shop) -> None:
    shop.webkassa.password = "changed"
    result = shop.run(WEBKASSA_KEY_COMMAND="sudo webkassa-key")
    assert PRINTED.findall(result.err) == ["sudo webkassa-key update"]


@pytest.mark.parametrize("command", ["check", "status", "status --json"])
def test_command_printed_about_a_dead_key_works_as_it_stands(
    shop: Shop, settings: Path, command: str
) -> None:
    shop.webkassa.live = None
    file = shlex.quote(str(settings))
    shown = shell(shop, f"{PYTHON} {PROGRAM} {command} --env-file {file}", "/").stdout
    if "--json" in command:
        shown = json.loads(shown)["message"]
    assert re.search("is dead.*Run again now", shown, re.DOTALL)
    printed = re.findall(r"Run again now: (.*? update)", shown)[0]
    assert shell(shop, printed, "/").returncode == 0
    assert shop.holds_the_live_key


def test_settings_fault_names_the_file_that_was_read(shop: Shop, settings: Path) -> None:
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("WEBKASSA_LOGIN=", "WEBKASSA_LOGIM="), encoding="utf-8")
    failed = shell(shop, f"{PYTHON} {PROGRAM} --env-file {shlex.quote(str(settings))}", "/")
    assert failed.returncode == 78
    settings.write_text(text, encoding="utf-8")
    assert shell(shop, PRINTED.findall(failed.stderr)[0], "/").returncode == 0
    assert shop.is_untouched


# The hint that shows why PostgreSQL lets nobody in: it must knock at the same door -----------------


def psql_of(shop: Shop, text: str) -> str:
    shop.env["PATH"] = f"{shop.server.bin}:{shop.env['PATH']}"
    (command,) = re.findall(r"(psql .*)$", text, re.MULTILINE)
    return str(command)


def answered(shop: Shop, command: str, query: str) -> str:
    """Add a query to the command, and the right password, as a person types it."""
    shop.env |= {"PGPASSWORD": DATABASE_PASSWORD}
    run = shell(shop, f"{command} -X -w -At -c {shlex.quote(query)}", "/")
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
    result = shell(shop, f"{PYTHON} {PROGRAM} --env-file {shlex.quote(str(settings))}", "/")
    assert (result.returncode, "canary" in result.stderr) == (75, False)
    assert answered(shop, psql_of(shop, result.stderr), WHERE) == "postgres|shop|s"


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
    result = shell(shop, f"{PYTHON} {PROGRAM} --env-file {shlex.quote(str(settings))}", "/")
    assert result.returncode == 75
    hint = psql_of(shop, result.stderr)
    said = answered(shop, hint, WHERE)
    assert "postgres|shop" not in said
    assert "SSL" in said


@pytest.mark.parametrize("odd", ["o'hara", 'say "hi"', "a b", "back\\slash", "$HOME", "Касса"])
def test_psql_of_the_hint_quotes_any_name(shop: Shop, odd: str) -> None:
    role = '"' + odd.replace('"', '""') + '"'
    shop.sql(f"DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN PASSWORD %s", DATABASE_PASSWORD)
    result = shop.run(POSTGRES_USER=odd, POSTGRES_PASSWORD="wrong-canary")
    assert result.code == 75
    assert answered(shop, psql_of(shop, result.err), "SELECT current_user") == odd
    shop.sql(f"DROP ROLE {role}")


# What a database administrator is to type --------------------------------------------------------

NO_GRANTS = {
    "no privilege": "SELECT 1",
    "no privilege on a table of odd names":
        'CREATE SCHEMA "s p"; ALTER TABLE api_keys SET SCHEMA "s p"; ALTER TABLE "s p".api_keys RENAME TO "Ключи"',
    "no table, and no right to make it": "DROP TABLE api_keys",
    "schema that is out of reach": "CREATE SCHEMA s; ALTER TABLE api_keys SET SCHEMA s",
}  # fmt: skip


@pytest.mark.parametrize("case", NO_GRANTS)
def test_printed_grants_run_as_they_stand_and_suffice(shop: Shop, case: str) -> None:
    shop.sql('DROP ROLE IF EXISTS "web-upd"; CREATE ROLE "web-upd" LOGIN PASSWORD \'odd-canary\'')
    shop.sql(NO_GRANTS[case])
    shop.env |= {"POSTGRES_USER": "web-upd", "POSTGRES_PASSWORD": "odd-canary"}
    if "odd names" in case:
        shop.env["API_KEYS_TABLE"] = "s p.Ключи"
    result = shop.run()
    assert result.code == 73
    grants = re.findall(r"GRANT [^;]*;", result.err)
    assert grants
    for setting in re.findall(r"[Ss]et (API_KEYS_TABLE)=(\S+?),? ", result.err):
        shop.env |= [setting]
    try:
        for grant in grants:
            shop.sql(grant)
        assert shop.run().code == 0
    finally:
        shop.sql('DROP OWNED BY "web-upd" CASCADE; DROP ROLE "web-upd"')
