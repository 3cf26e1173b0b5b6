"""Bad settings: exit 78, all faults at once, each by its variable's name; nothing is contacted."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from shown import snippet
from world import webkassa_simulator
from world.postgres import PASSWORD as DATABASE_PASSWORD
from world.postgres import free_port
from world.shop import ROOT, Shop, quote

BAD = {
    "WEBKASSA_LOGIN": ["your_login", "<login>", "cash\u200bier@example.kz", "a\tb"],
    "WEBKASSA_PASSWORD": [
        "your_password",
        "changeme",
        "change_me",
        "xxxx",
        "a\nb",
        "a\u202eb",
        "a\u00adb",
    ],
    "WEBKASSA_AUTH_URL": [
        "http://webkassa.example/api/Authorize",
        "ftp://127.0.0.1/api/Authorize",
        "https://api.webkassa.kz",
        "https://api.webkassa.kz/Authorize",
        "https://api.webkassa.kz/api/Authorise",
        "https://user:canary-url@api.webkassa.kz/api/Authorize",
        "https://\u0430pi.webkassa.kz/api/Authorize",
        "https://api.webkassa.kz:port/api/Authorize",
        "https://[::1/api/Authorize",
        "https:///api/Authorize",
        "https://api.webkassa\u200b.kz/api/Authorize",
        "https://api.webkassa.kz/api/Authorize?x=1",
        "http://127.0.0.1.example/api/Authorize",
        "http://localhost.example/api/Authorize",
        " https://api.webkassa.kz/api/Authorize",
        "https://api.webkassa.kz/api/Authorize\n",
        "'https://api.webkassa.kz/api/Authorize'",
    ],
    "WEBKASSA_API_KEY": ["your_api_key", "käy", "two words"],
    "WEBKASSA_PROBE_URL": ["http://webkassa.example/api/references/RefUnits", "of f"],
    "WEBKASSA_MAX_AGE": ["soon", "0", "-1h", "1w", "99999999", "1.5h", "٣h"],
    "WEBKASSA_DEADLINE": ["0s", "1s", "9s", "301s", "6m", "2h", "120 s"],
    "API_KEYS_TABLE": ["a.b.c", ".", "x."],
    "DATABASE_URL": [
        "postgresql://u:canary-url@[host/db",
        "nonsense",
        "postgresql://h:canary/db",
        "postgres://u:first@canary@127.0.0.1:1/shop",
        "postgres://u:123/canary@127.0.0.1/shop",
    ],
    "POSTGRES_PORT": ["canary", "-1"],
    "HEALTHCHECK_URL": ["nonsense://x", "https://u:canary-url@hc.example/uuid"],
    "REQUESTS_CA_BUNDLE": ["/nowhere/ca.pem"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_bad_setting_is_named_and_nothing_is_contacted(shop: Shop, name: str, value: str) -> None:
    result = shop.main("update", **{"POSTGRES_PORT": str(free_port()), name: value})
    assert result.code == 78
    faults = re.findall(r"^  (.*?): ", result.err, re.MULTILINE)
    assert faults, result.err
    assert all(name in fault for fault in faults)
    assert "canary" not in result.err
    assert shop.webkassa.calls == []


def test_all_faults_are_reported_at_once(shop: Shop) -> None:
    bad = {name: values[0] for name, values in BAD.items()}
    result = shop.run(**bad)
    assert (result.code, result.out) == (78, "")
    names = re.findall(r"^  (\w+): ", result.err, re.MULTILINE)
    assert sorted(names) == sorted(set(bad) - {"POSTGRES_PORT"})  # DATABASE_URL wins over it
    assert shop.webkassa.calls == []


def test_fault_that_is_found_twice_is_said_once(shop: Shop) -> None:
    result = shop.main("update", DATABASE_URL="host=a:b user=c:d")
    assert (result.code, result.err.count("DATABASE_URL: holds a character")) == (78, 1)


def test_missing_login_and_password_are_named(shop: Shop) -> None:
    result = shop.run(WEBKASSA_LOGIN="", WEBKASSA_PASSWORD="")
    assert result.code == 78
    assert "WEBKASSA_LOGIN: is not set" in result.err
    assert "WEBKASSA_PASSWORD: is not set" in result.err
    assert "check" in result.err


def test_v4_without_api_key_is_a_fault(shop: Shop) -> None:
    result = shop.run(WEBKASSA_AUTH_URL=shop.webkassa.url_v4)
    assert result.code == 78
    assert "WEBKASSA_API_KEY" in result.err


@pytest.mark.parametrize("path", ["/api/api/Authorize", "//api//Authorize/", "/api/authorize"])
def test_what_is_safe_in_a_url_is_put_right(shop: Shop, path: str) -> None:
    result = shop.main("check", WEBKASSA_AUTH_URL=shop.webkassa.origin + path)
    assert result.code == 0
    assert f"127.0.0.1:{shop.webkassa.port}" in result.out


def test_missing_scheme_means_https() -> None:
    import webkassa_key_updater as program

    read = program.SettingsParser({"WEBKASSA_AUTH_URL": "api.webkassa.kz/api/Authorize"}, [])
    assert read.url("WEBKASSA_AUTH_URL") == program.DEFAULT_AUTH_URL


# The file ----------------------------------------------------------------------------------------


@pytest.fixture
def file(shop: Shop) -> Path:
    """A settings file; login and password are not in the environment."""
    del shop.env["WEBKASSA_LOGIN"], shop.env["WEBKASSA_PASSWORD"]
    return shop.home / "settings"


def good(extra: str = "") -> str:
    return f"WEBKASSA_LOGIN={webkassa_simulator.LOGIN}\nWEBKASSA_PASSWORD='{webkassa_simulator.PASSWORD}'\n{extra}"


def test_dollar_signs_of_a_password_are_characters(shop: Shop, file: Path) -> None:
    assert "$HOME" in webkassa_simulator.PASSWORD
    for text in (good(), good().replace("'", '"'), good().replace("'", ""), "\ufeff" + good()):
        file.write_text(text, encoding="utf-8")
        assert shop.run("update", "--env-file", str(file)).code == 0


def test_environment_wins_and_empty_means_not_set(shop: Shop, file: Path) -> None:
    file.write_text(good("WEBKASSA_SERVICE_NAME=FromFile\nWEBKASSA_DEADLINE=\n"), encoding="utf-8")
    result = shop.run("update", "--env-file", str(file), WEBKASSA_PASSWORD="", HTTPS_PROXY="")
    assert (result.code, shop.row("FromFile")["api_key"]) == (0, shop.webkassa.live)
    result = shop.run("update", "--env-file", str(file), WEBKASSA_SERVICE_NAME="FromEnv")
    assert (result.code, shop.row("FromEnv")["api_key"]) == (0, shop.webkassa.live)


def test_libpq_variables_of_the_file_count(shop: Shop, file: Path) -> None:
    names = {"DB": "PGDATABASE"} | {n: f"PG{n}" for n in ("HOST", "PORT", "USER", "PASSWORD")}
    lines = [f'{pg}="{shop.env.pop("POSTGRES_" + ours)}"' for ours, pg in names.items()]
    file.write_text(good("\n".join(lines)), encoding="utf-8")
    assert shop.run("update", "--env-file", str(file)).code == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (good("\n\n# comment\nBROKEN LINE with canary-text\n").encode(), "line 6 is not NAME=value"),
        (good("LONELY\n").encode(), "line 3 is not NAME=value"),
        (good("A='unfinished canary-text\n").encode(), "line 3 is not NAME=value"),
        (good().replace("\n", "\r\n").encode() + b"\r\nBROKEN LINE\r\n", "line 4 is not NAME=value"),
        (good("'A=B'=1\n").encode(), "line 3 is not NAME=value"),
        (good().encode("cp1251"), "save it as UTF-8"),
        (good().encode("utf-16"), "save it as UTF-8"),
        ("WEBKASSA_LOGIN=x\n".encode("utf-16-le"), "save it as UTF-8"),
    ],
)  # fmt: skip
def test_malformed_file_is_a_fault_that_shows_no_text(
    shop: Shop, file: Path, content: bytes, said: str
) -> None:
    file.write_bytes(content)
    result = shop.run("update", "--env-file", str(file))
    assert result.code == 78
    assert said in result.err
    assert "canary-text" not in result.err
    assert shop.webkassa.calls == []


def test_named_file_must_exist(shop: Shop) -> None:
    result = shop.run("update", "--env-file", "/nowhere/settings")
    assert result.code == 78
    assert re.search("/nowhere/settings:? does not exist", result.err)
    assert shop.run("update", "--env-file", str(shop.home)).code == 78  # a folder
    for command, code in (("update", 78), ("check", 78), ("status", 3)):
        assert shop.run(command, "--env-file", "x" * 300).code == code


def test_no_file_is_searched_for_elsewhere(shop: Shop, file: Path) -> None:
    """python-dotenv would look upward from the calling file or folder."""
    (shop.home / ".env").write_text(good(), encoding="utf-8")
    assert shop.run("update", HOME=str(shop.home), PWD=str(shop.home)).code == 78


# The database ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme", ["postgresql", "postgres", "postgresql+psycopg2", "postgresql+asyncpg"]
)
def test_database_url_wins(shop: Shop, scheme: str) -> None:
    from urllib.parse import quote

    url = (
        f"{scheme}://postgres:{quote(DATABASE_PASSWORD, safe='')}@127.0.0.1:{shop.server.port}/shop"
    )
    assert shop.run(DATABASE_URL=url, POSTGRES_HOST="nowhere.invalid").code == 0


def test_wrong_database_password_is_75_and_says_where(shop: Shop) -> None:
    """The command that is printed works as typed; it asks for the password."""
    result = shop.run(POSTGRES_PASSWORD="canary-wrong")
    assert result.code == 75
    assert "user=postgres" in result.err
    assert "is there, but the connection is rejected" in result.err
    assert "canary-wrong" not in result.err
    typed = re.search(r"^.*To see why: (psql .*)$", result.err, re.MULTILINE)[1]
    psql = subprocess.run(
        ["bash", "-c", typed + " -Atc 'SELECT current_user'"],
        env={"PATH": f"{shop.server.bin}:{os.environ['PATH']}", "PGPASSWORD": DATABASE_PASSWORD},
        capture_output=True, text=True,
    )  # fmt: skip
    assert psql.stdout == "postgres\n", psql.stderr


# The example -------------------------------------------------------------------------------------


def test_example_names_every_setting() -> None:
    example = (ROOT / ".env.example").read_text()
    program = (ROOT / "webkassa_key_updater.py").read_text()
    used = set(re.findall(r'"((?:WEBKASSA|DATABASE|API_KEYS|HEALTHCHECK)_[A-Z_]+)"', program))
    named = set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))
    units = {"WEBKASSA_KEY_COMMAND", "WEBKASSA_RUN_KIND"}  # how it is typed there; what runs
    assert used - units <= named
    assert {f"POSTGRES_{part}" for part in ("HOST", "PORT", "DB", "USER", "PASSWORD")} <= named
    for line in example.splitlines():  # comments on lines of their own
        assert line == "" or line.startswith("#") or "#" not in line


@pytest.mark.parametrize(
    "name",
    ["WEBKASSA_AUTH_URL", "WEBKASSA_PROBE_URL", "WEBKASSA_SERVICE_NAME", "WEBKASSA_MAX_AGE",
     "WEBKASSA_DEADLINE", "API_KEYS_TABLE"],
)  # fmt: skip
def test_default_of_the_example_is_the_programs(name: str) -> None:
    """Setting it to that value changes nothing."""
    import webkassa_key_updater as program

    example = (ROOT / ".env.example").read_text()
    (value,) = re.findall(rf"^#{name}=(.+)$", example, re.MULTILINE)
    least = {"WEBKASSA_LOGIN": "cashier@example.kz", "WEBKASSA_PASSWORD": "x"}
    assert program.read_account(least | {name: value}, []) == program.read_account(least, [])


def test_russian_example_is_what_the_manual_shows_and_is_read(shop: Shop, tmp_path: Path) -> None:
    example = (ROOT / ".env.example.ru").read_text(encoding="utf-8")
    names = re.findall("^([A-Z_]+)=", example, re.MULTILINE)
    assert names.pop(0) == "WEBKASSA_LANG"  # as it is
    assert names == re.findall("^([A-Z_]+)=", snippet("filled"), re.MULTILINE)
    assert {*names} <= {*re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.M)}
    for name in names:
        value = quote(shop.env.pop(name))
        example = re.sub(f"(?m)^{name}=.*", lambda _, line=f"{name}={value}": line, example)
    (tmp_path / "my.env").write_text(example, encoding="utf-8")
    del shop.env["WEBKASSA_LANG"]
    result = shop.run("check", "--env-file", str(tmp_path / "my.env"))
    assert (result.code, "ok    настройки: " in result.out) == (0, True), result.err
    result = shop.run("check", "--env-file", str(ROOT / ".env.example.ru"))
    assert result.code == 78
    assert "WEBKASSA_LOGIN: не задано" in result.err
    assert "WEBKASSA_PASSWORD: не задано" in result.err


def test_example_as_it_is_is_refused(shop: Shop, file: Path) -> None:
    result = shop.run("check", "--env-file", str(ROOT / ".env.example"))
    assert result.code == 78
    assert "WEBKASSA_LOGIN: is still a placeholder" in result.err
    assert "WEBKASSA_PASSWORD: is still a placeholder" in result.err
