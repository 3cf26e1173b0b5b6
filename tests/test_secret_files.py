"""A secret in a file that NAME_FILE names, as container engines and clusters hand it over."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from world.monitor import Monitor
from world.postgres import PASSWORD as DATABASE_PASSWORD
from world.shop import Shop
from world.webkassa_simulator import API_KEY, LOGIN, PASSWORD

LIMIT = 65536  # bytes


@pytest.fixture
def filed(shop: Shop, monitor: Monitor) -> Shop:
    """The shop with every secret in a file, and none in the environment."""
    secrets = {
        "WEBKASSA_LOGIN": LOGIN,
        "WEBKASSA_PASSWORD": PASSWORD,
        "WEBKASSA_API_KEY": API_KEY,
        "POSTGRES_PASSWORD": DATABASE_PASSWORD,
        "HEALTHCHECK_URL": f"{monitor.origin}/filed",
    }
    shop.env["WEBKASSA_AUTH_URL"] = shop.webkassa.url_v4  # wants the API key
    for name, value in secrets.items():
        move(shop, name, value)
    return shop


def move(shop: Shop, name: str, value: str) -> Path:
    """Put a setting into a file with a final newline."""
    file = shop.home / name.lower()
    file.write_text(f"{value}\n", encoding="utf-8")
    shop.env.pop(name, None)
    shop.env[f"{name}_FILE"] = str(file)
    return file


def file_of(shop: Shop, name: str) -> Path:
    return Path(shop.env[f"{name}_FILE"])


def test_every_secret_may_lie_in_a_file(filed: Shop, monitor: Monitor) -> None:
    result = filed.renew()
    assert monitor.paths == ["/filed"]
    assert "is not known" not in result.err


def test_database_url_may_lie_in_a_file(filed: Shop) -> None:
    del filed.env["POSTGRES_PASSWORD_FILE"]
    password = quote(DATABASE_PASSWORD, safe="")
    url = f"postgresql://postgres:{password}@127.0.0.1:{filed.server.port}/shop"
    move(filed, "DATABASE_URL", url)
    filed.env["POSTGRES_HOST"] = "nowhere.example.kz"  # the URL wins
    result = filed.renew()
    assert password not in result.err


def test_settings_file_may_name_the_files(filed: Shop) -> None:
    settings = filed.home / "base.env"
    names = [name for name in filed.env if name.endswith("_FILE")]
    settings.write_text("".join(f"{name}='{filed.env.pop(name)}'\n" for name in names))
    result = filed.run("update", "--env-file", str(settings))
    assert (result.code, filed.holds_the_live_key) == (0, True)
    assert "is not known" not in result.err


@pytest.mark.parametrize("end", ["", "\n"])
def test_one_final_newline_is_not_of_the_secret(filed: Shop, end: str) -> None:
    file_of(filed, "WEBKASSA_PASSWORD").write_bytes((PASSWORD + end).encode())
    filed.renew()


@pytest.mark.parametrize("end", ["\n\n", "\r\n", "\t"])
def test_any_other_invisible_end_is_a_fault(filed: Shop, end: str) -> None:
    file_of(filed, "WEBKASSA_PASSWORD").write_bytes((PASSWORD + end).encode())
    result = filed.main("update")
    assert (result.code, filed.webkassa.calls) == (78, [])
    assert "WEBKASSA_PASSWORD: contains the invisible character" in result.err


def test_blank_at_the_end_of_a_password_is_of_it(filed: Shop) -> None:
    filed.webkassa.password = PASSWORD + " "
    file_of(filed, "WEBKASSA_PASSWORD").write_text(f"{PASSWORD} \n", encoding="utf-8")
    filed.renew()


@pytest.mark.parametrize(
    "name",
    ["WEBKASSA_LOGIN", "WEBKASSA_PASSWORD", "WEBKASSA_API_KEY", "POSTGRES_PASSWORD", "HEALTHCHECK_URL"],
)  # fmt: skip
def test_secret_in_a_file_and_in_plain_is_a_fault(filed: Shop, name: str) -> None:
    plain = file_of(filed, name).read_text(encoding="utf-8").strip()
    result = filed.main("update", **{name: plain})
    assert (result.code, filed.webkassa.calls) == (78, [])
    assert f"{name}_FILE" in result.err


SPOILED: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: file.rename(file.with_suffix(".away")),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "pipe": lambda file: (file.unlink(), os.mkfifo(file)),  # reading it would wait for ever
    "too large": lambda file: file.write_bytes(b"p" * (LIMIT + 1)),
    "not UTF-8": lambda file: file.write_bytes("пароль".encode("cp1251")),
}


@pytest.mark.parametrize("name", ["WEBKASSA_PASSWORD", "WEBKASSA_API_KEY", "HEALTHCHECK_URL"])
@pytest.mark.parametrize("how", SPOILED)
def test_file_that_cannot_be_read_is_a_fault_by_its_name(filed: Shop, how: str, name: str) -> None:
    SPOILED[how](file_of(filed, name))
    result = filed.main("update")
    assert (result.code, filed.webkassa.calls) == (78, [])
    assert f"{name}_FILE: " in result.err
    assert filed.is_untouched


@pytest.mark.parametrize("text", ["", "\n"])
def test_empty_file_is_a_setting_that_is_not_set(filed: Shop, text: str) -> None:
    file_of(filed, "WEBKASSA_PASSWORD").write_text(text)
    result = filed.main("update")
    assert (result.code, filed.webkassa.calls) == (78, [])
    assert "WEBKASSA_PASSWORD: is not set" in result.err


def test_file_of_64_kib_is_read_whole(filed: Shop) -> None:
    filed.webkassa.password = "p" * LIMIT
    file_of(filed, "WEBKASSA_PASSWORD").write_text(filed.webkassa.password)
    filed.renew()


def test_device_is_never_read(filed: Shop) -> None:
    filed.env["WEBKASSA_PASSWORD_FILE"] = "/dev/zero"
    assert filed.main("update").code == 78


def test_link_to_a_file_is_followed_as_clusters_make_them(filed: Shop) -> None:
    file = file_of(filed, "WEBKASSA_PASSWORD")
    file.rename(file.with_name("..data"))
    file.symlink_to("..data")
    filed.renew()


def test_secret_that_changes_is_read_anew(filed: Shop) -> None:
    filed.renew()
    filed.webkassa.password = "another"
    file_of(filed, "WEBKASSA_PASSWORD").write_text("another\n")
    filed.renew(logins=2)


def test_faults_of_files_are_said_with_all_others(filed: Shop) -> None:
    for name in ("WEBKASSA_LOGIN", "WEBKASSA_PASSWORD"):
        file_of(filed, name).unlink()
    result = filed.main("update", WEBKASSA_DEADLINE="soon")
    assert result.code == 78
    for name in ("WEBKASSA_LOGIN_FILE", "WEBKASSA_PASSWORD_FILE", "WEBKASSA_DEADLINE"):
        assert f"{name}: " in result.err


def test_monitor_in_a_file_hears_of_faulty_settings(filed: Shop, monitor: Monitor) -> None:
    assert filed.main("update", WEBKASSA_DEADLINE="soon").code == 78
    assert monitor.paths == ["/filed/fail"]


@pytest.mark.parametrize("command", ["check", "status"])
def test_check_and_status_read_the_files_too(filed: Shop, command: str) -> None:
    filed.renew()
    assert filed.run(command).code == 0
