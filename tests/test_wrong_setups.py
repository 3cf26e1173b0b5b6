"""Wrong set-ups of a new user: the message alone names what to mend, and nothing is asked.

What can be wrong with a right set-up, a server or a table, too, is in test_messages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
from world import webkassa_simulator
from world.postgres import PASSWORD as DATABASE_PASSWORD
from world.shop import PROGRAM, Shop, trigger

import webkassa_key_updater


@pytest.fixture
def settings(shop: Shop) -> Path:
    """A settings file with all that the shop needs; nothing of it is in the environment."""
    shop.env["HTTPS_PROXY"] = "http://127.0.0.1:9"  # should a fault go unseen: nobody is asked
    return shop.move_settings(shop.home / "new.env")


def edited(text: str, wrong: str) -> str:
    """Put the lines of `wrong` in the place of those of the same name; "-NAME" takes one out."""
    for line in wrong.splitlines():
        name = re.escape(line.lstrip("-").partition("=")[0])
        text = re.sub(f"^{name}=.*\n", "", text, flags=re.MULTILINE)
        if not line.startswith("-"):
            text += f"{line}\n"
    return text


def database_url(shop: Shop, scheme: str = "postgresql", query: str = "") -> str:
    password = quote(DATABASE_PASSWORD, safe="")
    url = f"{scheme}://postgres:{password}@127.0.0.1:{shop.server.port}/shop{query}"
    return f"DATABASE_URL='{url}'\n-POSTGRES_HOST\n-POSTGRES_DB"


class Wrong(NamedTuple):
    code: int
    said: str  # a pattern
    lines: str | Callable[[Shop], str] = ""  # in place of the right ones
    sql: str = ""


REFERENCES = (
    "op://canary/webkassa/password", "vault:secret/data/canary#password", "ref+vault://canary/x",
    "ENC[AES256_GCM,data:canary,iv:AAAA,tag:AAAA,type:str]", "ENC(canary)", "!vault", "sm://canary/x",
    "arn:aws:secretsmanager:eu-central-1:000000000000:secret:canary", "projects/1/secrets/canary/versions/1",
    "${{ secrets.CANARY }}", "{{ canary }}", "$(CANARY)", "${CANARY}", "${CANARY:-x}",
    "$WEBKASSA_PASSWORD", "@Microsoft.KeyVault(SecretUri=canary)",
)  # fmt: skip
LEFT_BEHIND = ("null", "None", "REDACTED", "[REDACTED]", "TODO", "undefined")
URL = "https://devkkm.webkassa.kz/api/Authorize"
SET_UPS = {
    # The account
    "name in lower case": Wrong(78, "WEBKASSA_LOGIN: is not set", "-WEBKASSA_LOGIN\nwebkassa_login=x"),
    "placeholder": Wrong(78, "WEBKASSA_PASSWORD: is still a placeholder", "WEBKASSA_PASSWORD=your_password"),
    "password with a line's end": Wrong(
        78, r"WEBKASSA_PASSWORD: .*invisible.*U\+000A", 'WEBKASSA_PASSWORD="canary\\n"'),
    "database password with a line's end": Wrong(
        78, r"POSTGRES_PASSWORD: .*invisible.*U\+000A", 'POSTGRES_PASSWORD="canary\\n"'),
    **{f"{name}={reference}": Wrong(78, f"{name}: is a reference to a secret", f"{name}='{reference}'")
       for reference in REFERENCES for name in ("WEBKASSA_PASSWORD", "POSTGRES_PASSWORD")},
    **{f"password {word}": Wrong(78, "WEBKASSA_PASSWORD: is still a placeholder", f"WEBKASSA_PASSWORD={word}")
       for word in LEFT_BEHIND},
    "path of a secret that is not there": Wrong(
        78, "WEBKASSA_PASSWORD: .*WEBKASSA_PASSWORD_FILE", "WEBKASSA_PASSWORD=/run/secrets/canary"),
    "path of a file": Wrong(
        78, "POSTGRES_PASSWORD: .*POSTGRES_PASSWORD_FILE", f"POSTGRES_PASSWORD={PROGRAM}"),
    "wrong password with quotes": Wrong(
        77, "WARNING: .*WEBKASSA_PASSWORD: has a quote", """WEBKASSA_PASSWORD="'canary'" """),
    "wrong password with a blank": Wrong(
        77, "WARNING: .*WEBKASSA_PASSWORD: .*blank at its", "WEBKASSA_PASSWORD='canary '"),
    "wrong password": Wrong(77, "refused.*WEBKASSA_PASSWORD", "WEBKASSA_PASSWORD=canary"),
    # Webkassa's address
    "http": Wrong(78, "WEBKASSA_AUTH_URL: must be https", f"WEBKASSA_AUTH_URL={URL.replace('https', 'http')}"),
    "no path": Wrong(78, "WEBKASSA_AUTH_URL: must end in /api/Authorize", "WEBKASSA_AUTH_URL=devkkm.webkassa.kz"),
    "v4 without a key": Wrong(78, "WEBKASSA_API_KEY: is not set",
                              lambda shop: f"WEBKASSA_AUTH_URL={shop.webkassa.url_v4}"),
    "dot too many": Wrong(78, "WEBKASSA_AUTH_URL: is no URL", "WEBKASSA_AUTH_URL=https://api..webkassa.kz/api/Authorize"),
    "host with a star": Wrong(78, "WEBKASSA_AUTH_URL: is no URL", "WEBKASSA_AUTH_URL=*.webkassa.kz/api/Authorize"),
    "quoted URL": Wrong(78, "WEBKASSA_AUTH_URL: has a quote", f"""WEBKASSA_AUTH_URL="'{URL}'" """),
    **{name: Wrong(78, f"{name}: .*WEBKASSA_AUTH_URL", f"-WEBKASSA_AUTH_URL\n{name}={URL}")
       for name in ("WEBKASSA_URL", "WEBKASSA_BASE_URL", "WEBKASSA_API_URL", "WEBKASSA_AUTH_UR",
                    "WEBKASSA_API_BASE_URL")},
    "probe of": Wrong(78, "WEBKASSA_PROBE_URL: .*off", "WEBKASSA_PROBE_URL=of"),
    "deadline too short": Wrong(78, "WEBKASSA_DEADLINE: .*10s to 300s", "WEBKASSA_DEADLINE=5s"),
    "no such CA file": Wrong(78, "REQUESTS_CA_BUNDLE: ", "REQUESTS_CA_BUNDLE=/nowhere/ca.pem"),
    # The database's address
    **{
        name: Wrong(78, f"{name}: .*{ours}", f"-{ours}\n{name}=shop")
        for name, ours in {
            "POSTGRES_DATABASE": "POSTGRES_DB", "POSTGRES_NAME": "POSTGRES_DB", "POSTGRES_DBS": "POSTGRES_DB",
            "POSTGRES_SERVER": "POSTGRES_HOST", "POSTGRES_HOSTS": "POSTGRES_HOST",
            "POSTGRES_USERNAME": "POSTGRES_USER", "POSTGRES_PROT": "POSTGRES_PORT",
            "POSTGRES_URL": "DATABASE_URL",
            "API_KEYS_TABEL": "API_KEYS_TABLE",
        }.items()
    },
    **{line: Wrong(78, f"{line.partition('=')[0]}: .*not shown", line) for line in (
        "POSTGRES_HOST=postgresql://u:canary@127.0.0.1/shop", "POSTGRES_HOST=postgres:canary@127.0.0.1",
        "POSTGRES_HOST=127.0.0.1:5432", "POSTGRES_DB=postgres://u:canary@h/shop",
        "POSTGRES_DB='dbname=shop password=canary'", "POSTGRES_USER=postgres:canary")},
    "URL as table": Wrong(78, "API_KEYS_TABLE: ", "API_KEYS_TABLE=postgresql://u:canary@localhost/shop"),
    "URL as libpq's host": Wrong(
        78, "PGHOST: .*not shown", "-POSTGRES_HOST\nPGHOST=postgresql://u:canary@127.0.0.1/shop"),
    "password in libpq's database": Wrong(
        78, "PGDATABASE: .*not shown", "-POSTGRES_DB\nPGDATABASE='dbname=shop password=canary'"),
    "dot too many in a host": Wrong(
        75, r"host=db\.\.shop\.kz .*cannot be resolved", "POSTGRES_HOST=db..shop.kz"),
    "port is a word": Wrong(78, "POSTGRES_PORT: .*number", "POSTGRES_PORT=canary"),
    "port is too large": Wrong(78, "POSTGRES_PORT: ", "POSTGRES_PORT=99999"),
    "port of somebody else": Wrong(
        75, "port=.*(is there|does not answer)", lambda shop: f"POSTGRES_PORT={shop.webkassa.port}"),
    "wrong password at the first of two hosts": Wrong(
        75, "host=127.0.0.1 .*password", "POSTGRES_HOST=127.0.0.1,127.0.0.2\nPOSTGRES_PASSWORD=canary"),
    "monitor of the example": Wrong(
        78, "HEALTHCHECK_URL: is still a placeholder", "HEALTHCHECK_URL=https://hc-ping.com/your-uuid"),
    "database of the example": Wrong(
        78, "DATABASE_URL: is still a placeholder",
        "DATABASE_URL=postgresql://user:password@localhost:5432/shop"),
    "no such sslmode": Wrong(78, "PGSSLMODE: sslmode must be one of .*require", "PGSSLMODE=requires"),
    **{f"sslmode of another library: {mode}": Wrong(
           78, "DATABASE_URL: sslmode must be one of .*require",
           lambda shop, mode=mode: database_url(shop, query=f"?sslmode={mode}"))
       for mode in ("true", "no-verify")},
    "reference in a URL": Wrong(
        78, "DATABASE_URL: holds a reference", "DATABASE_URL='postgresql://u:${CANARY}@127.0.0.1/shop'"),
    "bad DATABASE_URL, @ in the password": Wrong(
        78, "DATABASE_URL: .*percent-encoded", "DATABASE_URL='postgres://u:first@canary@127.0.0.1/shop'"),
    "JDBC": Wrong(78, "DATABASE_URL: ", "DATABASE_URL='jdbc:postgresql://127.0.0.1/shop?password=canary'"),
    "ADO.NET": Wrong(78, "DATABASE_URL: ", "DATABASE_URL='Host=h;Username=u;Password=canary;Database=shop'"),
    "MySQL": Wrong(78, "DATABASE_URL: ", "DATABASE_URL='mysql://u:canary@127.0.0.1/shop'"),
    "Prisma": Wrong(
        78, "DATABASE_URL: .*connection_limit", lambda shop: database_url(shop, query="?connection_limit=5")),
    "Prisma's schema": Wrong(
        78, "DATABASE_URL: .*API_KEYS_TABLE=schema.table", lambda shop: database_url(shop, query="?schema=s")),
    "parameters of an ORM, two": Wrong(
        78, "(?s)DATABASE_URL: .*pgbouncer.*pool_timeout",
        lambda shop: database_url(shop, query="?pgbouncer=true&sslmode=prefer&pool_timeout=2")),
    # The table
    "schema in another case": Wrong(
        73, "API_KEYS_TABLE=s.api_keys", "API_KEYS_TABLE=S.api_keys",
        sql="CREATE SCHEMA s; ALTER TABLE api_keys SET SCHEMA s"),
    "quoted table": Wrong(78, "API_KEYS_TABLE: has a quote", """API_KEYS_TABLE='"api_keys"' """),
    "quoted schema and table": Wrong(78, "API_KEYS_TABLE: ", """API_KEYS_TABLE='public."api_keys"' """),
    "table with a blank": Wrong(78, "API_KEYS_TABLE: .*blank", "API_KEYS_TABLE='api_keys '"),
    "schema with a blank": Wrong(78, "API_KEYS_TABLE: ", "API_KEYS_TABLE='public. api_keys'"),
    "quoted service": Wrong(78, "WEBKASSA_SERVICE_NAME: has a quote", """WEBKASSA_SERVICE_NAME="'Webkassa'" """),
    "service in quotes of a word processor": Wrong(
        78, "WEBKASSA_SERVICE_NAME: has a quote", "WEBKASSA_SERVICE_NAME=“Webkassa”"),
    "service with a no-break space": Wrong(
        78, "WEBKASSA_SERVICE_NAME: .*blank", "WEBKASSA_SERVICE_NAME='Webkassa\u00a0'"),
    "service in another case": Wrong(73, "'webkassa'.*'Webkassa'", "WEBKASSA_SERVICE_NAME=webkassa"),
    "row in another case": Wrong(
        73, "'Webkassa'.*'WEBKASSA '", sql="UPDATE api_keys SET service_name = 'WEBKASSA ' WHERE id = 1"),
    "service column too short": Wrong(
        73, r"service_name.*\(8\)", "WEBKASSA_SERVICE_NAME=Webkassa:two",
        sql="ALTER TABLE api_keys ALTER service_name TYPE varchar(8)"),
    # The file
    "YAML": Wrong(78, r"line \d+ is not NAME=value", "-WEBKASSA_LOGIN\nWEBKASSA_LOGIN: canary"),
    "quote without an end": Wrong(78, r"line \d+ is not NAME=value", "WEBKASSA_PASSWORD='canary"),
    "byte order mark in the middle": Wrong(
        78, r"line \d+: .*name has a character", "-WEBKASSA_LOGIN\n\ufeffWEBKASSA_LOGIN=x"),
    "Cyrillic letter in a name": Wrong(
        78, r"line \d+: .*name has a character", "-WEBKASSA_LOGIN\nWЕBKASSA_LOGIN=x"),
    "a dash in a name": Wrong(78, r"line \d+: .*name has a character", "WEBKASSA-DEADLINE=20s"),
}  # fmt: skip


@pytest.mark.parametrize("name", SET_UPS)
def test_wrong_setup_is_named_and_nothing_is_changed(shop: Shop, settings: Path, name: str) -> None:
    wrong = SET_UPS[name]
    lines = wrong.lines if isinstance(wrong.lines, str) else wrong.lines(shop)
    settings.write_text(edited(settings.read_text(encoding="utf-8"), lines), encoding="utf-8")
    if wrong.sql:
        shop.sql(wrong.sql)
    tables = shop.sql("SELECT count(*) FROM pg_class WHERE relkind = 'r'")
    result = shop.main("update", "--env-file", str(settings))
    print(f"\n{name} [{result.code}]\n    " + result.err.replace("\n", "\n    "))
    assert result.code == wrong.code
    assert re.search(wrong.said, result.err)
    assert "canary" not in result.err
    assert shop.webkassa.authorizations == (wrong.code == 77)
    assert shop.webkassa.live == shop.old_key
    assert shop.sql("SELECT count(*) FROM pg_class WHERE relkind = 'r'") == tables
    if wrong.code == 78:
        assert all(re.match("  [^ ]+: ", line) for line in faults(result.err)), result.err


def test_no_setting_of_the_database_at_all_is_named() -> None:
    """All lines POSTGRES_ of the example still begin with #; psql '' would fail for another reason."""
    settings = {"WEBKASSA_LOGIN": "cashier@example.kz", "WEBKASSA_PASSWORD": "canary"}
    account = webkassa_key_updater.read_account(settings, [])
    failure = webkassa_key_updater.connect_failure(account, {}, OSError())  # whoever listens here
    assert "at the default address" in str(failure)
    assert str(failure.advice).startswith("No database is set: is the # still before POSTGRES_")
    assert "psql" not in str(failure.advice)
    assert str(failure.advice).endswith("\nThen run: `check`")


def faults(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("  ")]


def test_faults_line_is_the_one_in_the_editor(shop: Shop, settings: Path) -> None:
    good = settings.read_text(encoding="utf-8")
    settings.write_text(f"# one\n\n\ufeffTHREE=1\nFOUR\n{good}\nWЕBKASSA=1", encoding="utf-8")
    last = len(f"# one\n\n\n\n{good}\n\n".splitlines())
    result = shop.main("update", "--env-file", str(settings))
    assert re.findall(r"line (\d+)", result.err) == ["3", "4", str(last)]


UNDERSTOOD = {
    "Heroku": ("postgres", ""),
    "SQLAlchemy": ("postgresql+psycopg2", ""),
    "SQLAlchemy, asynchronous": ("postgresql+asyncpg", ""),
    "Neon": ("postgresql", "?sslmode=prefer&channel_binding=prefer"),
    "search path": ("postgresql", "?options=-c%20search_path%3Dpublic"),
    "application's name": ("postgresql", "?application_name=x"),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_other_spellings_of_a_url_are_understood(shop: Shop, settings: Path, name: str) -> None:
    lines = database_url(shop, *UNDERSTOOD[name])
    settings.write_text(edited(settings.read_text(encoding="utf-8"), lines), encoding="utf-8")
    assert shop.main("update", "--env-file", str(settings)).code == 0


GOOD_FILES = {
    "as it is": lambda text: text,
    "byte order mark": lambda text: "\ufeff" + text,
    "Windows": lambda text: text.replace("\n", "\r\n"),
    "export": lambda text: text.replace("WEBKASSA_LOGIN=", "export WEBKASSA_LOGIN="),
    "blanks": lambda text: text.replace("=", " = "),
    "no last line end": lambda text: text.rstrip("\n"),
    "names of others": lambda text: text + "DJANGO_SECRET=x\nPOSTGRES_INITDB_ARGS=y\n",
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_right_file_is_read_however_it_was_saved(shop: Shop, settings: Path, name: str) -> None:
    text = GOOD_FILES[name](settings.read_text(encoding="utf-8"))
    settings.write_bytes(text.encode())
    assert shop.main("check", "--env-file", str(settings)).code == 0


def test_name_that_decides_nothing_is_warned_of_with_the_nearest(
    shop: Shop, settings: Path
) -> None:
    more = "WEBKASSA_DEADLINES=20s\nHEALTHCHECKS_URL=https://hc.example/x\nWEBKASSA_URL=x\n"
    settings.write_text(settings.read_text(encoding="utf-8") + more, encoding="utf-8")
    for command in ("update", "check"):
        result = shop.main(command, "--env-file", str(settings))
        assert result.code == 0  # WEBKASSA_AUTH_URL is set, so WEBKASSA_URL decides nothing
        for names in ("DEADLINES: .*WEBKASSA_DEADLINE", "HEALTHCHECKS_URL: .*HEALTHCHECK_URL",
                      "WEBKASSA_URL: .*WEBKASSA_AUTH_URL"):  # fmt: skip
            assert re.search(f"WARN.*{names} meant", result.out + result.err)


NEAREST = {
    "WEBKASSA_CASHBOX_ID": "", "WEBKASSA_TOKEN": "", "WEBKASSA_TIMEOUT": "", "POSTGRES_SCHEMA": "",
    "POSTGRES_INITDB_ARGS": "", "POSTGRES_MAX_CONNECTIONS": "", "POSTGRES_PW": "",
    "WEBKASSA_PASS_FILE": "WEBKASSA_PASSWORD_FILE", "WEBKASSA_PASSFILE": "WEBKASSA_PASSWORD_FILE",
    "WEBKASSA_PASS": "WEBKASSA_PASSWORD", "WEBKASSA_USERNAME": "WEBKASSA_LOGIN",
    "WEBKASSA_KEY": "WEBKASSA_API_KEY", "POSTGRES_USERNAME": "POSTGRES_USER",
}  # fmt: skip


@pytest.mark.parametrize("name", NEAREST)
def test_unknown_name_is_answered_with_what_it_may_mean_or_with_nothing(name: str) -> None:
    assert webkassa_key_updater.nearest_setting(name) == NEAREST[name]


def test_names_of_others_stop_nothing_where_the_default_is_meant(
    shop: Shop, settings: Path
) -> None:
    """They were taken for POSTGRES_PORT and POSTGRES_DB, which are not set, and so for faults."""
    text = edited(settings.read_text(encoding="utf-8"), "-POSTGRES_PORT\n-POSTGRES_DB")
    more = f"POSTGRES_MAX_CONNECTIONS=100\nPOSTGRES_INITDB_ARGS=x\nPGPORT={shop.server.port}\n"
    settings.write_text(f"{text}{more}PGDATABASE=shop\n", encoding="utf-8")
    assert shop.main("update", "--env-file", str(settings)).code == 0


OVERRULED = {
    "database": ("POSTGRES_DB", {"POSTGRES_DB": "postgres"}),
    "host": ("POSTGRES_HOST", {"POSTGRES_HOST": "localhost"}),
    "Webkassa": ("WEBKASSA_AUTH_URL", {"WEBKASSA_AUTH_URL": "{origin}/api//Authorize"}),
    "table": ("WEBKASSA_SERVICE_NAME", {"WEBKASSA_SERVICE_NAME": "Webkassa"}),
    "a URL left over": ("DATABASE_URL", {"DATABASE_URL": "postgresql:///postgres?application_name=x"}),
}  # fmt: skip


@pytest.mark.parametrize("case", OVERRULED)
def test_environment_that_overrules_a_named_file_is_said(
    shop: Shop, settings: Path, case: str
) -> None:
    """Both hold a database; the key went into the other one without a word."""
    name, env = OVERRULED[case]
    text = settings.read_text(encoding="utf-8") + "WEBKASSA_SERVICE_NAME=Webkassa-test\n"
    settings.write_text(text, encoding="utf-8")
    env = {n: value.format(origin=shop.webkassa.origin) for n, value in env.items()}
    said = f"WARNING: {name}: what the environment says counts, and not what {settings} says"
    assert said in shop.main("check", "--env-file", str(settings), **env).err


def test_environment_that_says_the_same_or_nothing_is_not_mentioned(
    shop: Shop, settings: Path
) -> None:
    env = {"POSTGRES_DB": "shop", "POSTGRES_HOST": "", "WEBKASSA_SERVICE_NAME": "Webkassa"}
    result = shop.main("update", "--env-file", str(settings), **env)
    assert (result.code, "WARNING" in result.err) == (0, False)


def test_mending_what_is_meant_makes_it_work(shop: Shop, settings: Path) -> None:
    """A person who does what the message says is done."""
    good = settings.read_text(encoding="utf-8")
    text = good.replace("WEBKASSA_AUTH_URL", "WEBKASSA_BASE_URL").replace("_DB=", "_DATABASE=")
    settings.write_text(text, encoding="utf-8")
    result = shop.main("update", "--env-file", str(settings))
    assert result.code == 78
    for wrong, right in re.findall(r"  (\w+): .* is (\w+) meant", result.err):
        text = text.replace(wrong, right)
    assert text == good


# What is no readable file ------------------------------------------------------------------------


def test_fifo_as_file_does_not_hang(shop: Shop) -> None:
    os.mkfifo(shop.home / "fifo")
    fifo = shop.home / "fifo"
    process = shop.start("update", "--env-file", str(fifo))
    threading.Timer(10, process.kill).start()  # a hang must not stay
    result = shop.finish(process)
    assert result.code == 78
    assert re.search(f"{fifo}: is (no|not a) ", result.err)


def without_root(*command: str) -> list[str]:
    """Take from root the right to read any file."""
    if os.geteuid():
        return list(command)
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["file", "folder"])
@pytest.mark.parametrize("command", ["update", "status"])
def test_unreadable_file_is_called_so_and_nothing_else(
    shop: Shop, settings: Path, closed: str, command: str
) -> None:
    folder = shop.home / "closed"
    folder.mkdir()
    file = settings.rename(folder / "new.env")
    (file if closed == "file" else folder).chmod(0)
    program = without_root(sys.executable, str(PROGRAM), command, "--env-file", str(file))
    run = subprocess.run(program, env=shop.env, capture_output=True, text=True)
    folder.chmod(0o700)
    assert run.returncode == (78 if command == "update" else 3)
    assert f"{file}: cannot be read (Permission denied)" in run.stdout + run.stderr
    assert "is not set" not in run.stdout + run.stderr
    assert "does not exist" not in run.stdout + run.stderr


# Secrets of one letter ---------------------------------------------------------------------------


@pytest.mark.parametrize("secret", ["0", "P", "a", "4"])
def test_short_secret_hides_no_sqlstate(shop: Shop, secret: str) -> None:
    with shop.role("short", password=secret):
        result = shop.main("update", WEBKASSA_API_KEY=secret)
    assert result.code == 73
    assert "42501" in result.err
    assert "insufficient_privilege" in result.err


def test_name_that_a_trigger_makes_up_is_not_shown(shop: Shop) -> None:
    """Of names only those that the catalog has: a made-up one can be the key."""
    shop.sql(trigger("""
        RAISE 'canary' USING COLUMN = 'canary-' || NEW.api_key, CONSTRAINT = 'canary',
            TABLE = 'api_keys', SCHEMA = 'canary', DATATYPE = 'canary', DETAIL = 'canary',
            HINT = 'canary';"""))  # fmt: skip
    result = shop.main("update")
    assert result.code == 73
    assert re.search("(?=.*P0001).*raise_exception.*, api_keys", result.err)
    assert "canary" not in result.err


def test_wrong_password_of_webkassa_is_asked_once(shop: Shop) -> None:
    assert shop.main("update", WEBKASSA_LOGIN=webkassa_simulator.LOGIN + "x").code == 77
    assert shop.webkassa.authorizations == 1
