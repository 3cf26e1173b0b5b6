"""Many accounts in one run: each in a child of its own, and none in another's way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
from world.accounts import Accounts, children, is_pending, login, password, row
from world.monitor import Monitor
from world.nursery import Process
from world.postgres import free_port
from world.shop import PROGRAM, ROOT, UPDATERS, Result, Shop, fingerprint, trigger
from world.waiting import await_, within
from world.webkassa_simulator import Handler, Simulator, answer, errors, hang, held_until, slow

import webkassa_key_updater

DOWN = answer(503, b"", {"Retry-After": "999"})  # longer than any deadline: not tried again
BUSY = answer(429, b"", {"Retry-After": "999"})  # nothing can have come of it
HUNDRED = [f"shop-{number:02}" for number in range(100)]


def summary(text: str) -> dict[str, str]:
    """Return what the last lines say of the accounts that are not done: code and reason."""
    return dict(re.findall(r"^  ([a-z0-9_-]+): (.*)$", text[text.rindex("accounts: done") :], re.M))


def codes(text: str) -> dict[str, int]:
    """Return the exit codes of the accounts that are not done."""
    return {name: int(said.split(",")[0]) for name, said in summary(text).items()}


def start_and_ask(shop: Shop, *arguments: str, logins: int = 1) -> Process:
    """Start an update, and wait until so many logins were asked for."""
    process = shop.start("update", *arguments)
    await_(lambda: shop.webkassa.authorizations == logins)
    return process


def on_terminal(shop: Shop, *arguments: str) -> tuple[Process, int]:
    """Start the program with its errors on a terminal; give that, too."""
    main, terminal = os.openpty()
    process = shop.start_with({"stderr": terminal}, *arguments)
    os.close(terminal)
    return process, main


def type_printed(shop: Shop, result: Result, pattern: str) -> None:
    """Type the command that a run has printed; it must succeed."""
    typed = re.search(pattern, result.err)
    assert typed, result.err
    again = subprocess.run(typed[1], shell=True, env=shop.env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr


# A failure stays one account's -------------------------------------------------------------------


@pytest.mark.slow
def test_five_of_a_hundred_fail_in_five_ways_and_the_other_95_are_updated(shop: Shop) -> None:
    accounts = Accounts(shop, *HUNDRED)
    refused, down, unwritable, faulty, killed = bad = HUNDRED[10:95:20]
    accounts.script(refused).append(answer(200, errors(1)))
    accounts.script(down).append(DOWN)
    shop.sql(trigger(f"IF NEW.service_name = '{row(unwritable)}' THEN RAISE 'no'; END IF; RETURN NEW;"))  # fmt: skip
    accounts.write(faulty, WEBKASSA_PASSWORD="changeme")
    accounts.script(killed).append(hang())

    process = shop.start("update", "--jobs", "16")
    await_(lambda: shop.webkassa.authorizations >= 98 and len(children(process.pid)) == 1, 60)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    result = shop.finish(process)

    assert result.code == 71
    assert accounts.renewed == set(HUNDRED) - set(bad)
    assert {name: accounts.keys[name] for name in bad} == {name: accounts.old[name] for name in bad}
    assert "95 of 100 accounts" in result.err
    assert codes(result.err) == {refused: 77, down: 69, unwritable: 73, faulty: 78, killed: 70}
    assert "killed by signal 9" in summary(result.err)[killed]
    for name in accounts.renewed:  # a line for each, besides
        assert result.err.count(f"{row(name)}: Stored") == 1
    for name in (refused, down, unwritable):
        assert result.err.count(f"{row(name)}: ") == 1
    assert "WEBKASSA_PASSWORD: is still a placeholder" in result.err
    assert (accounts.logins(unwritable), accounts.logins(faulty)) == (0, 0)


@pytest.mark.slow
def test_failures_of_one_kind_give_its_exit_code(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b", "c")
    for name in "ab":
        accounts.script(name).append(DOWN)
    result = shop.run("update")
    assert (result.code, accounts.renewed, set(summary(result.err))) == (69, {"c"}, {"a", "b"})


@pytest.mark.slow
def test_what_heals_of_no_account_by_itself_is_not_tried_again(shop: Shop) -> None:
    """71 is, by units and clusters: with a refused password each time, or an alert two hours late."""
    accounts = Accounts(shop, "a", "b", "c", "d")
    accounts.script("a").append(answer(200, errors(1)))
    accounts.write("b", WEBKASSA_PASSWORD="changeme")
    assert shop.run("update").code == 78
    accounts.script("c").append(DOWN)
    assert shop.run("update").code == 71


@pytest.mark.slow
def test_a_repetition_logs_in_only_for_those_that_failed(shop: Shop) -> None:
    names = HUNDRED[:8]
    accounts = Accounts(shop, *names)
    accounts.script("shop-05").extend([DOWN] * 3)
    shop.env["WEBKASSA_MAX_AGE"] = "1h"
    for _ in range(3):
        assert shop.run("update", "--if-needed", "--jobs", "8").code == 69
        assert accounts.renewed == set(names) - {"shop-05"}
    assert [name for name in names if accounts.logins(name) != 1] == ["shop-05"]
    assert shop.webkassa.authorizations == 7 + 3
    assert shop.run("update", "--if-needed", "--jobs", "8").code == 0
    assert accounts.renewed == set(names)
    assert shop.webkassa.authorizations == 7 + 4


def test_faulty_file_is_78_for_that_account_alone(shop: Shop) -> None:
    accounts = Accounts(shop, *"abcde")
    accounts.write("a", WEBKASSA_DEADLINE="soon")
    accounts.file("b").write_text("this is no setting")
    accounts.file("c").write_bytes("WEBKASSA_LOGIN='кассир'".encode("cp1251"))
    accounts.write("d", WEBKASSA_PASSWORD="")
    result = shop.run("update")
    assert (result.code, accounts.renewed) == (78, {"e"})
    assert accounts.untouched == set("abcd")
    assert set(summary(result.err)) == set("abcd")
    for name, fault in {"a": "WEBKASSA_DEADLINE: is not a duration", "b": "line 1 is not NAME=value",
                        "c": "is not UTF-8", "d": "WEBKASSA_PASSWORD: is not set"}.items():  # fmt: skip
        assert re.search(rf"\b{name}(\.env)?\b(.|\n  )*{re.escape(fault)}", result.err), name
    assert shop.webkassa.authorizations == 1


# What would make accounts disturb one another ----------------------------------------------------


VENDOR = "https://{}.webkassa.kz/api/Authorize"
DATABASE = {"DATABASE_URL": "postgresql://postgres@db.example.kz/shop"}
ROW_OF_A = {"WEBKASSA_SERVICE_NAME": row("a")}
TWINS: dict[str, tuple[dict[str, str], dict[str, str]]] = {  # what a's and b's file hold besides
    "login": ({}, {"WEBKASSA_LOGIN": login("A").upper()}),
    "login with a dot": ({}, {"WEBKASSA_LOGIN": f"{login('a')}."}),
    "login in wide letters": ({}, {"WEBKASSA_LOGIN": login("\uff41")}),
    "login at another host of the vendor": (
        {"WEBKASSA_AUTH_URL": VENDOR.format("api")},
        {"WEBKASSA_AUTH_URL": VENDOR.format("kkm"), "WEBKASSA_LOGIN": login("a")}),
    "login at this machine by another name": (
        {"WEBKASSA_AUTH_URL": "http://127.0.0.1:1/api/Authorize"},
        {"WEBKASSA_AUTH_URL": "http://localhost:1/api/Authorize", "WEBKASSA_LOGIN": login("a")}),
    "row": ({}, ROW_OF_A),
    "row by its schema": ({}, ROW_OF_A | {"API_KEYS_TABLE": "public.api_keys"}),
    "row of a host written otherwise": (
        DATABASE, ROW_OF_A | {"DATABASE_URL": "postgresql://postgres@DB.example.kz.:5432/shop"}),
    "row of one of several hosts": (
        DATABASE, ROW_OF_A | {"DATABASE_URL": "postgresql://x@other.example.kz:5433,db.example.kz:5432/shop"}),
    "row of the database of this machine": (
        {"DATABASE_URL": "postgresql://postgres@localhost/shop"},
        ROW_OF_A | {"DATABASE_URL": "postgresql:///shop?user=postgres"}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", TWINS)
def test_one_login_or_row_in_two_files_stops_these_two_alone(shop: Shop, case: str) -> None:
    accounts = Accounts(shop, "a", "b", "c")
    for name, settings in zip("ab", TWINS[case], strict=True):
        accounts.write(name, **settings)
    result = shop.run("update")
    assert (result.code, accounts.renewed, accounts.untouched) == (78, {"c"}, {"a", "b"})
    assert set(summary(result.err)) == {"a", "b"}
    kind = case.split()[0]
    assert f"a.env: its {kind} is the one of b.env, too" in result.err
    assert f"b.env: its {kind} is the one of a.env, too" in result.err
    for name in "ab":  # also to who does one of them only
        shop.expect(78, 1, "update", "--account", name)


ALONE: dict[str, tuple[str, dict[str, str], str]] = {  # a file, what it holds besides, what is said
    "libpq's name": ("b", {"PGHOST": "db.example.kz"}, "PGHOST: is not an account's own"),
    "proxy": ("b", {"HTTPS_PROXY": "http://proxy:3128"}, "HTTPS_PROXY: is not an account's own"),
    "proxy in small": ("b", {"https_proxy": "http://p:1"}, "https_proxy: is not an account's own"),
    "folder": ("b", {"WEBKASSA_ACCOUNTS_DIR": "/x"}, "WEBKASSA_ACCOUNTS_DIR: is not an account's"),
    "misspelt": ("b", {"WEBKASSA_LOGINN": "x"}, "line 3: WEBKASSA_LOGINN: is not known; is WEBKASSA_LOGIN meant?"),
    "another's word": ("b", {"WEBKASSA_URL": "x"}, "WEBKASSA_URL: is not known; is WEBKASSA_AUTH_URL meant?"),
    "maybe a password": ("b", {"CanarySecret1": "x"}, "line 3: its name is no setting; not shown"),
    "a name of the application": ("b", {"SHOP_NAME": "Canary"}, "line 3: SHOP_NAME: is no setting of this program"),
    "capital name": ("B2", {}, "the name of an account is a-z, 0-9, - and _, 40 at most"),
    "dotted name": ("b.old", {}, "the name of an account is a-z, 0-9, - and _, 40 at most"),
    "dash": ("-b", {}, "the name of an account is a-z, 0-9, - and _, 40 at most"),
    "Cyrillic name": ("салон", {}, "the name of an account is a-z, 0-9, - and _, 40 at most"),
    "name that is no text": ("b\udcff", {}, "the name of an account is a-z, 0-9, - and _, 40 at most"),
    "long name": ("b" * 41, {}, "the name of an account is a-z, 0-9, - and _, 40 at most"),
}  # fmt: skip


@pytest.mark.parametrize("case", ALONE)
def test_a_wrong_file_stops_its_account_alone(shop: Shop, case: str) -> None:
    file, settings, said = ALONE[case]
    accounts = Accounts(shop, "a", "c")
    login = {"WEBKASSA_LOGIN": "b@example.kz", "WEBKASSA_PASSWORD": "x"}
    accounts.write(file, **login, **settings)
    result = shop.run("update")
    assert (result.code, accounts.renewed, shop.webkassa.authorizations) == (78, {"a", "c"}, 2)
    assert said in result.err
    assert "2 of 3 accounts: done; not done:" in result.err
    assert "Canary" not in result.err


def clear(folder: Path) -> None:
    for file in folder.iterdir():
        file.rename(file.with_suffix(".txt"))


SPOILED: dict[str, Callable[[Accounts], object]] = {
    "folder is empty": lambda accounts: clear(accounts.folder),
    "no folder": lambda accounts: accounts.folder.rename(accounts.folder.with_name("elsewhere")),
    "base": lambda accounts: accounts.shop.env.update(HEALTHCHECK_URL="monitor at home"),
}


@pytest.mark.parametrize("what", SPOILED)
@pytest.mark.parametrize("shard", ["0/1", "7/9"])
def test_without_an_account_or_settings_for_all_nothing_is_contacted(
    shop: Shop, what: str, shard: str
) -> None:
    accounts = Accounts(shop, "a", "b", "c")
    with shop.relay() as relay:
        SPOILED[what](accounts)
        result = shop.main("update", "--shard", shard)
        assert relay.links == []
    assert (result.code, shop.webkassa.calls) == (78, [])
    assert "Nothing was asked of Webkassa" in result.err


def test_a_folder_that_cannot_be_read_is_not_called_empty(shop: Shop) -> None:
    """As one of root's alone was (chmod 700): its files are there, and nothing is wrong with them."""
    accounts = Accounts(shop, "a")
    accounts.folder.rename(accounts.folder.with_name("elsewhere"))
    accounts.folder.touch()  # of a folder's rights root takes no notice
    for command in ("update", "check", "status"):
        said = shop.run(command)
        assert f"{accounts.folder}: cannot be read (Not a directory)\n" in said.out + said.err


def test_what_is_wrong_with_many_files_is_said_at_once(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b", "c", "d", "e")
    accounts.write("b", WEBKASSA_LOGIN=login("a"))
    accounts.write("c", PGHOST="db.example.kz", WEBKASSA_LOGINN="x", WEBKASSA_MAX_AGE="soon")
    accounts.write("d", WEBKASSA_SERVICE_NAME=row("a"))
    accounts.file("e").write_bytes("WEBKASSA_LOGIN='кассир'".encode("cp1251"))
    result = shop.run_in_vain(78)
    for said in ("a.env: its login is the one of b.env", "a.env: its row is the one of d.env",
                 "PGHOST: is not an", "WEBKASSA_LOGINN: is not known", "WEBKASSA_MAX_AGE: is not a",
                 "e.env: is not UTF-8"):  # fmt: skip
        assert said in result.err, said


def test_files_that_are_no_account_are_named_once(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b")
    for name in ("new-till.env.txt", "c.ENV", "d", "a.env~"):
        (accounts.folder / name).write_text("WEBKASSA_LOGIN=x")
    result = shop.run("update")
    assert (result.code, accounts.renewed) == (0, {"a", "b"})
    said = "no NAME.env, so no account: a.env~, c.ENV, d, new-till.env.txt\n"
    assert (result.err.count(said), result.err.count("c.ENV")) == (1, 1)


def test_what_an_editor_or_a_system_leaves_beside_the_files_is_no_account(shop: Shop) -> None:
    accounts = Accounts(shop, "a")
    (accounts.folder / ".#a.env").symlink_to("shop@pc.1234:1700000000")
    (accounts.folder / "._a.env").write_bytes(b"\0\5\x16\7")
    (accounts.folder / ".env").write_text("WEBKASSA_LOGIN=b@example.kz\n")
    assert (shop.run("update").code, accounts.renewed) == (0, {"a"})


@pytest.mark.parametrize("command", ["update", "check", "status"])
@pytest.mark.parametrize("arguments", [("--shard", "1/2"), ("--account", "a")])
def test_a_share_without_the_folder_is_no_update_of_the_one_account(
    shop: Shop, command: str, arguments: tuple[str, ...]
) -> None:
    """Else each index of a job that lost its WEBKASSA_ACCOUNTS_DIR would log the one in."""
    result = shop.run(command, *arguments)
    assert result.code == (3 if command == "status" else 2)
    assert "WEBKASSA_ACCOUNTS_DIR is not set; see --help" in result.err
    assert shop.webkassa.calls == []


@pytest.mark.parametrize(
    "settings",
    [{"WEBKASSA_LOGIN": login("a"), "WEBKASSA_AUTH_URL": "http://127.0.0.1:1/api/Authorize"},
     ROW_OF_A | {"POSTGRES_DB": "other"}, ROW_OF_A | {"API_KEYS_TABLE": "keys_of_b"}],
)  # fmt: skip
def test_same_login_at_another_host_and_same_row_of_another_table_are_no_fault(
    shop: Shop, settings: dict[str, str]
) -> None:
    accounts = Accounts(shop, "a", "b")
    accounts.write("b", **settings)
    result = shop.run("update", "--account", "a")
    assert (result.code, accounts.renewed) == (0, {"a"})


@pytest.fixture
def schemas(shop: Shop) -> Accounts:
    """Accounts whose rows have one name, each in a schema of its own, as many applications have one
    for each customer; the table of one is there."""
    accounts = Accounts(shop, "a", "b")
    for name in "ab":
        shop.sql(f"CREATE SCHEMA {name}")
        table = f"{name}.api_keys"
        accounts.write(name, WEBKASSA_SERVICE_NAME="Webkassa", API_KEYS_TABLE=table)
    shop.sql("CREATE TABLE b.api_keys (LIKE api_keys INCLUDING ALL)")
    return accounts


@pytest.mark.slow
def test_rows_of_one_name_do_not_forget_one_anothers_refusals(
    shop: Shop, schemas: Accounts
) -> None:
    for name in "ab":
        schemas.script(name).extend([answer(200, errors(1))] * 4)
    for _ in range(3):
        assert shop.run("update", "--if-needed").code == 77
    assert (schemas.logins("a"), schemas.logins("b")) == (1, 1)


@pytest.mark.slow
def test_accounts_of_one_rows_name_are_told_apart(shop: Shop, schemas: Accounts) -> None:
    result = shop.run("update")
    assert result.code == 0
    assert all(f": {name}, Webkassa: Stored the new key" in result.err for name in "ab")
    stored = {name: shop.row("Webkassa", f"{name}.api_keys")["api_key"] for name in "ab"}
    assert stored == schemas.live
    checked = shop.run("check").out
    assert all(f"{name}, Webkassa: settings" in checked for name in "ab")
    shop.webkassa.issue(login=login("b"))
    status = shop.run("status").out
    assert "1 of 2 accounts are well; b: key" in status
    assert "\naccount b, service Webkassa, " in status


# Where settings come from ------------------------------------------------------------------------


def test_login_password_and_row_are_never_inherited(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b", "c")
    shop.env["WEBKASSA_SERVICE_NAME"] = "Webkassa"  # and a login with its password
    accounts.write("a", WEBKASSA_LOGIN="")
    accounts.write("b", WEBKASSA_PASSWORD="")
    result = shop.run("update")
    assert (result.code, accounts.renewed) == (78, {"c"})
    assert "WEBKASSA_LOGIN: is not set" in result.err
    assert "WEBKASSA_PASSWORD: is not set" in result.err
    assert shop.is_untouched  # the row of the base settings
    assert shop.webkassa.authorizations == 1


@pytest.mark.slow
def test_the_only_account_of_before_is_not_forgotten_silently(shop: Shop) -> None:
    """All was OK, and its shop could sell no more after a day."""
    alone = shop.env.copy()
    accounts = Accounts(shop, "a", "b")
    shop.env = alone
    for command, code in (("check", 78), ("update", 78), ("status", 3)):
        result = shop.run(command)
        assert result.code == code
        assert "WEBKASSA_SERVICE_NAME=Webkassa go into main.env" in result.out + result.err
        assert re.search("Correct them, then run: .+ check --account main", result.out + result.err)
    assert (accounts.renewed, shop.is_untouched) == ({"a", "b"}, True)
    own = {name: alone[name] for name in ("WEBKASSA_LOGIN", "WEBKASSA_PASSWORD")}
    accounts.write("main", WEBKASSA_SERVICE_NAME="Webkassa", **own)
    assert shop.run("check", "--account", "main").code == 0  # as was printed
    assert shop.run("update", "--account", "main").code == 0
    assert shop.holds_the_live_key
    assert shop.run("check", WEBKASSA_LOGIN="your_login").code == 0  # as .env.example has it
    accounts.write("main", **own | {"WEBKASSA_PASSWORD": "changeme"})  # a fault is no other account
    assert "settings of all" not in shop.run("check").err
    accounts.write("main")
    accounts.write("main-0")
    assert "go into main-1.env" in shop.run("check").err


@pytest.mark.slow
def test_account_file_wins_over_the_environment_and_that_over_the_base(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b")
    base = shop.home / "base.env"
    base.write_text(f"API_KEYS_TABLE=public.base\nWEBKASSA_ACCOUNTS_DIR='{accounts.folder}'\n")
    shop.options = ("--env-file", str(base))
    accounts.write("a", API_KEYS_TABLE="public.own")
    accounts.write("b")
    assert shop.run("update", API_KEYS_TABLE="public.environment").code == 0
    assert shop.row(row("a"), "own")["api_key"] == accounts.live["a"]
    assert shop.row(row("b"), "environment")["api_key"] == accounts.live["b"]
    accounts.write("a")
    assert shop.run("update", "--account", "a").code == 0
    assert shop.row(row("a"), "base")["api_key"] == accounts.live["a"]


def test_database_of_an_account_wins_over_the_url_of_the_base(shop: Shop) -> None:
    """Or it is said that it does not: a key in the wrong database serves nobody."""
    accounts = Accounts(shop, "a")
    env = {f"POSTGRES_{part}": "" for part in ("HOST", "PORT", "DB", "USER")}
    url = f"postgresql://postgres@127.0.0.1:{shop.server.port}/shop"
    accounts.write("a", POSTGRES_DB="nowhere")
    result = shop.run("update", DATABASE_URL=url, **env)
    assert result.code in (75, 78)
    assert (accounts.untouched, shop.webkassa.calls) == ({"a"}, [])


@pytest.mark.slow
def test_the_monitor_of_the_base_hears_of_all_and_an_accounts_own_of_it_alone(
    shop: Shop, monitor: Monitor
) -> None:
    accounts = Accounts(shop, "a", "b", "c")
    accounts.write("b", HEALTHCHECK_URL=f"{monitor.origin}/b")
    accounts.write("c", HEALTHCHECK_URL=f"{monitor.origin}/c")
    accounts.script("c").append(DOWN)
    assert shop.run("update", HEALTHCHECK_URL=f"{monitor.origin}/all").code == 69
    assert sorted(monitor.paths) == ["/all/fail", "/b", "/c/fail"]
    assert monitor.paths[-1] == "/all/fail"


def test_the_monitor_of_all_hears_nothing_of_a_run_for_some(shop: Shop, monitor: Monitor) -> None:
    """The success of one would end the alarm about another."""
    accounts = Accounts(shop, "a", "b")
    accounts.write("a", HEALTHCHECK_URL=f"{monitor.origin}/a")
    both = [*("--account", "a"), *("--account", "b")]
    assert shop.run("update", *both, HEALTHCHECK_URL=f"{monitor.origin}/all").code == 0
    assert monitor.paths == ["/a"]


def test_login_and_password_of_an_account_may_lie_in_files_of_their_own(
    shop: Shop, monitor: Monitor
) -> None:
    """As clusters hand secrets over; the file NAME.env then holds none."""
    accounts = Accounts(shop, "a", "b", "c")
    secrets = {"WEBKASSA_LOGIN": login("a"), "WEBKASSA_PASSWORD": password("a"),
               "HEALTHCHECK_URL": f"{monitor.origin}/a"}  # fmt: skip
    for name, value in secrets.items():
        (shop.home / name).write_text(f"{value}\n")
    files = {f"{name}_FILE": str(shop.home / name) for name in secrets}
    accounts.write("a", WEBKASSA_LOGIN="", WEBKASSA_PASSWORD="", **files)
    accounts.write("b", WEBKASSA_PASSWORD="", WEBKASSA_PASSWORD_FILE=str(shop.home / "missing"))
    accounts.write("c", WEBKASSA_PASSWORD_FILE=files["WEBKASSA_PASSWORD_FILE"])
    result = shop.run("update")
    assert (result.code, accounts.renewed, monitor.paths) == (78, {"a"}, ["/a"])
    assert "WEBKASSA_PASSWORD_FILE: its file does not exist" in result.err
    assert "WEBKASSA_PASSWORD_FILE: WEBKASSA_PASSWORD is set, too: which counts?" in result.err


# TLS ---------------------------------------------------------------------------------------------


COUNTED = """
import os, ssl
load = ssl.SSLContext.load_verify_locations

def load_and_tell(context, *arguments, **more):
    os.write(2, b"READ THE BUNDLE\\n")
    return load(context, *arguments, **more)

ssl.SSLContext.load_verify_locations = load_and_tell
"""


def close(handler: Handler, good: bytes) -> None:
    handler.send(200, good, {"Connection": "close"})


@pytest.mark.slow
def test_the_certificates_are_read_once_for_all_accounts_and_connections(tls_shop: Shop) -> None:
    settings = tls_shop.options
    accounts = Accounts(tls_shop, *"abcdef")
    tls_shop.options += settings
    for name in accounts.names:  # a connection of its own for each question
        accounts.script(name).append(close)
    tls_shop.run_after(COUNTED)
    result = tls_shop.run("update")
    assert (result.code, accounts.renewed) == (0, set("abcdef"))
    assert len(tls_shop.proxy.hosts) == 2 * 6
    assert result.err.count("READ THE BUNDLE") == 1


@pytest.mark.slow
def test_a_bundle_that_is_none_stops_those_alone_who_use_it(
    tls_shop: Shop, webkassa: Simulator
) -> None:
    """The one that is asked without TLS is this very machine."""
    settings = tls_shop.options
    accounts = Accounts(tls_shop, "a", "b", "c")
    tls_shop.options += settings
    webkassa.enroll(login("b"), password("b"))
    accounts.write("b", WEBKASSA_AUTH_URL=webkassa.url)
    junk = tls_shop.home / "junk.pem"
    junk.write_text("junk")
    result = tls_shop.run("update", REQUESTS_CA_BUNDLE=str(junk), WEBKASSA_DEADLINE="10s")
    assert (result.code, set(codes(result.err)), accounts.untouched) == (69, {"a", "c"}, {"a", "c"})
    assert accounts.keys["b"] == webkassa.tokens[login("b")]
    said = re.findall(
        "ERROR: .*Webkassa:(.): .*REQUESTS_CA_BUNDLE holds no certificate", result.err
    )
    assert sorted(said) == ["a", "c"]


# At the same time --------------------------------------------------------------------------------


@pytest.mark.slow
def test_so_many_at_a_time_as_jobs_says_and_so_many_connections(shop: Shop) -> None:
    accounts = Accounts(shop, *"abcdef")
    together, connections = threading.Barrier(3, timeout=20), []

    def act(handler: Handler, good: bytes) -> None:
        together.wait()  # three are there ...
        connections.append(len(shop.sql(UPDATERS)))
        together.wait()
        handler.send(200, good)

    for name in accounts.names:
        accounts.script(name).append(act)
    assert shop.run("update", "--jobs", "3").code == 0
    assert connections == [3] * 6  # ... and never a fourth
    assert accounts.renewed == set("abcdef")


@pytest.fixture
def few_places(shop: Shop) -> Iterator[None]:
    """A role for which the server has three connections."""
    with shop.role("few", "CONNECTION LIMIT 3"):
        shop.sql(
            "GRANT ALL ON SCHEMA public TO few; GRANT ALL ON ALL TABLES IN SCHEMA public TO few"
        )
        shop.sql("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO few")
        yield


@pytest.mark.slow
@pytest.mark.parametrize("command", ["update", "check"])
@pytest.mark.usefixtures("few_places")
def test_more_jobs_than_connections_wait_for_a_place(shop: Shop, command: str) -> None:
    accounts = Accounts(shop, *(f"shop-{number:02}" for number in range(14)))
    shop.webkassa.latency = 0.1
    result = shop.run(command, "--jobs", "14")
    assert result.code == 0
    assert "rejected" not in result.out + result.err
    assert accounts.renewed == (set(accounts.names) if command == "update" else set())


@pytest.mark.slow
@pytest.mark.usefixtures("few_places")
def test_status_of_more_tables_than_connections_reads_all(shop: Shop) -> None:
    accounts = Accounts(shop, *(f"shop-{number:02}" for number in range(14)))
    for number, name in enumerate(accounts.names):
        shop.sql(f"CREATE TABLE keys_{number} AS SELECT * FROM api_keys")
        shop.sql(f"GRANT SELECT ON keys_{number} TO few")
        accounts.write(name, API_KEYS_TABLE=f"public.keys_{number}")
    result = shop.run("status")
    assert (result.code, "UNKNOWN" in result.out) == (1, False), result.out
    assert "rejected" in shop.run("status", POSTGRES_PASSWORD="canary").out


@pytest.mark.slow
@pytest.mark.usefixtures("few_places")
def test_places_that_others_hold_are_waited_for_while_one_of_ours_is_in(shop: Shop) -> None:
    accounts, go = Accounts(shop, "a", "b", "c"), threading.Event()
    for name in accounts.names:
        accounts.script(name).append(held_until(go))
    with contextlib.ExitStack() as stack:
        for _ in range(2):  # strangers, who stay
            stranger = psycopg2.connect(
                host="127.0.0.1", port=shop.server.port, dbname="shop", user="few",
                password=shop.env["POSTGRES_PASSWORD"],
            )  # fmt: skip
            stack.callback(stranger.close)
        process = shop.start("update", "--jobs", "3")
        await_(lambda: len(shop.webkassa.calls) == 1)
        await_(lambda: len(children(process.pid)) == 3)
        go.set()
        assert shop.finish(process).code == 0
    assert accounts.renewed == {"a", "b", "c"}


def test_who_is_rejected_while_others_are_in_tries_again_ever_more_seldom(shop: Shop) -> None:
    """Seen: ten wrong passwords a second, for as long as the others took; servers lock out for less."""
    accounts = Accounts(shop, "a", "b")
    accounts.script("b").append(slow(1))
    with shop.relay() as relay:
        wrong = f"postgresql://postgres:canary@127.0.0.1:{relay.port}/shop"
        accounts.write("a", DATABASE_URL=wrong)
        result = shop.run("update", "--jobs", "2")
        assert 2 * 3 < len(relay.links) < 2 * 20  # each try has two; there were 55 tries
    assert (result.code, codes(result.err), accounts.renewed) == (75, {"a": 75}, {"b"})


def test_who_is_let_in_nowhere_is_told_so_at_once_and_tries_once(shop: Shop) -> None:
    accounts = Accounts(shop, *"abcdef")
    with shop.relay() as relay:
        result = shop.run("update", "--jobs", "6", POSTGRES_PASSWORD="canary")
        assert len(relay.links) == 2 * 6  # one that was rejected; one to see whether it is there
    assert (result.code, result.err.count("the connection is rejected")) == (75, 6)
    assert accounts.untouched == set("abcdef")


@pytest.mark.slow
def test_machines_whose_folders_differ_do_every_account_once(shop: Shop) -> None:
    """One has a file more, or another order: what both have, is done by one of them."""
    accounts = Accounts(shop, *"abcdefgh")
    assert shop.run("update", "--shard", "0/2").code == 0
    first = accounts.renewed
    assert first == {name for name in "abcdefgh" if shard(name, 2) == 0}
    accounts.write("a0")
    accounts.file("h").unlink()
    result = shop.run("update", "--shard", "1/2", "--account", "[a-h]")
    assert (result.code, accounts.renewed) == (0, set("abcdefgh") - ({"h"} - first))
    assert all(accounts.logins(name) <= 1 for name in accounts.names)


def shard(name: str, shards: int) -> int:
    """The share of an account, as the manual says it is counted."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) % shards


def test_shard_without_an_account_is_done_and_said(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b")
    (empty, *_) = {*range(3)} - {shard("a", 3), shard("b", 3)}
    for command in ("update", "check", "status"):
        result = shop.run(command, "--shard", f"{empty}/3")
        assert result.code == 0
        assert f"0 accounts here: none of the 2 that are meant is in shard {empty}/3." in result.err
    assert (accounts.untouched, shop.webkassa.calls) == ({"a", "b"}, [])


@pytest.mark.parametrize("has_folder", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [("--shard", text) for text in ("2/2", "5/3", "0/0", "1", "-1/2", "a/b", "x", "", "٠/١")]
    + [("--jobs", text) for text in ("0", "-1", "many", "1000")],
)
def test_wrong_share_or_number_is_wrong_usage(
    shop: Shop, arguments: tuple[str, ...], has_folder: bool
) -> None:
    if has_folder:
        Accounts(shop, "a")
    for command, code in (("update", 2), ("check", 2), ("status", 3)):
        with pytest.raises(SystemExit) as ended:
            shop.main(command, *arguments)
        assert (ended.value.code, shop.webkassa.calls) == (code, [])


# Told to stop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_starts_no_more_and_stores_what_was_asked_for(
    shop: Shop, number: int
) -> None:
    accounts, go = Accounts(shop, *"abcdef"), threading.Event()
    for name in "ab":
        accounts.script(name).append(held_until(go))
    process = start_and_ask(shop, "--jobs", "2", logins=2)
    process.send_signal(number)
    await_(lambda: all(is_pending(pid, number) for pid in children(process.pid)))
    go.set()
    result = shop.finish(process)
    assert (result.code, accounts.renewed) == (75, set("ab"))
    assert accounts.untouched == set("cdef")
    assert shop.webkassa.authorizations == 2
    said = summary(result.err)
    assert set(said) == set("cdef")
    assert all("not tried" in text for text in said.values())
    assert "2 of 6 accounts" in result.err


def test_hangup_that_was_ignored_from_the_start_stops_nothing(shop: Shop) -> None:
    """As under nohup."""
    accounts, go = Accounts(shop, "a", "b"), threading.Event()
    accounts.script("a").append(held_until(go))
    ignoring = ["bash", "-c", "trap '' HUP; exec \"$@\"", "-", sys.executable, str(PROGRAM)]
    process = subprocess.Popen(
        [*ignoring, "update", "--jobs", "1", *shop.options],
        env=shop.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    await_(lambda: shop.webkassa.authorizations == 1)
    process.send_signal(signal.SIGHUP)
    go.set()
    assert shop.finish(process).code == 0
    assert accounts.renewed == {"a", "b"}


def test_who_waits_for_a_lock_ends_at_once_and_is_reported_as_not_tried(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b")
    with shop.lock_held(row("a")):
        process = shop.start("update", "--jobs", "1", "-v")
        await_(lambda: shop.has_said(process))
        with within(30):
            process.terminate()
            result = shop.finish(process)
    assert (result.code, set(summary(result.err))) == (75, {"a", "b"})
    assert (accounts.untouched, shop.webkassa.calls) == ({"a", "b"}, [])


def test_a_child_killed_while_all_are_told_to_stop_is_no_account_that_was_not_tried(
    shop: Shop,
) -> None:
    """Its login may have killed the stored key; of one that was not tried the key is as it was."""
    accounts = Accounts(shop, "a", "b", "c")
    accounts.script("a").append(hang())
    with shop.lock_held(row("b")):
        process = start_and_ask(shop, "--jobs", "2")
        process.terminate()
        await_(lambda: len(children(process.pid)) == 1)
        os.kill(children(process.pid)[0], signal.SIGKILL)
        result = shop.finish(process)
    said = summary(result.err)
    assert said.pop("a").startswith("70, killed by signal 9. Its stored key may be dead. Run again")
    assert (result.code, said) == (
        71,
        {"b": "75, told to stop", "c": "75, not tried: told to stop"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["on", "off"])
def test_who_reads_that_a_child_was_killed_can_type_what_heals_its_key(
    shop: Shop, probe: str
) -> None:
    accounts = Accounts(shop, "a", "b")
    if probe == "off":
        shop.env["WEBKASSA_PROBE_URL"] = "off"
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC'")
    accounts.script("a").append(hang())
    process = start_and_ask(shop, "--jobs", "1")
    shop.webkassa.issue(login=login("a"))  # the login takes effect
    os.kill(children(process.pid)[0], signal.SIGKILL)
    result = shop.finish(process)
    assert (result.code, accounts.renewed) == (70, {"b"})
    type_printed(shop, result, r"may be dead\. Run again now: (.*)")
    assert (accounts.renewed, accounts.logins("b")) == ({"a", "b"}, 1)


SCARCE = """
import os
fork, living = os.fork, {living}

def scarce():
    if len(open(f"/proc/self/task/{{os.getpid()}}/children").read().split()) >= living:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()

os.fork = scarce
"""


@pytest.mark.slow
def test_a_machine_short_of_processes_does_so_many_at_a_time_as_it_can(shop: Shop) -> None:
    accounts = Accounts(shop, *"abcde")
    shop.run_after(SCARCE.format(living=2))
    result = shop.run("update", "--jobs", "4")
    assert (result.code, accounts.renewed) == (0, set("abcde"))


def test_accounts_for_which_there_is_no_process_are_reported_as_not_tried(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b")
    shop.run_after(SCARCE.format(living=0))
    result = shop.run("update")
    assert (result.code, accounts.untouched) == (75, {"a", "b"})
    said = summary(result.err)
    assert set(said) == {"a", "b"}
    assert all("not tried: " in text and "unavailable" in text for text in said.values())


TWICE = """
import os, random, select, signal, sys, time
sys.path.insert(0, {root!r})
import webkassa_key_updater as program

for _ in range(60):
    pid = os.fork()
    if not pid:
        accounts = [(str(n), None) for n in range(2000)]
        pool = program.load_module("accounts").ProcessPool(accounts, 1, lambda _: 90, lambda: None)
        for _ in pool.run(lambda name, account: signal.pause()):
            pass
        os._exit(len(pool.codes) != 2000)
    while not open(f"/proc/{{pid}}/task/{{pid}}/children").read():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # it has not broken down
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(pid, number)
        time.sleep(random.random() * 3e-4)
    ended, _, _ = select.select([os.pidfd_open(pid)], [], [], 60)  # no signal was missed
    if not ended:
        os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == 0
"""
HANGING = """
import os, signal, sys
sys.path.insert(0, {root!r})
import webkassa_key_updater as program

def work(name, bound):
    if bound < 90:
        os.kill(os.getpid(), signal.SIGSTOP)
    return 0

accounts = [("a", 90), ("b", 0.5), ("c", 0.5), ("d", 90), ("e", 90)]
pool = program.load_module("accounts").ProcessPool(accounts, 2, lambda bound: bound, lambda: None)
assert sorted(pool.run(work)) == ["a", "b", "c", "d", "e"]
assert pool.codes == {{"a": 0, "b": 70, "c": 70, "d": 0, "e": 0}}, pool.codes
assert str(pool.reasons["b"]) == "killed: it did not end in time"
"""


def run_alone(program: str) -> None:
    """Run Python that forks; end what it leaves."""
    command = [sys.executable, "-c", program.format(root=str(ROOT))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, said = process.communicate(timeout=100)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said


@pytest.mark.slow
def test_signals_close_together_are_one_and_none_is_missed(shop: Shop) -> None:
    """coreutils' timeout sends two. A parent that broke down would leave its children to die."""
    run_alone(TWICE)


@pytest.mark.slow
def test_a_child_that_hangs_is_killed_and_the_others_go_on(shop: Shop) -> None:
    run_alone(HANGING)


@pytest.mark.parametrize("deadline", [10.0, 300.0])
def test_a_child_is_not_taken_for_hanging_before_the_longest_run_is_over(deadline: float) -> None:
    """It waits for a lock, asks, stores, and tells its monitor, each for as long as it may."""
    program = webkassa_key_updater
    holder = deadline + program.LoginState.STORING_TIME + program.PROBE_TIME
    last_try = program.KeyStore.COMMIT_TIME + 2 * program.PROBE_TIME + program.CHECK_TIME
    account: Any = SimpleNamespace(account=SimpleNamespace(deadline=deadline))
    assert program.load_module("accounts").longest_run(account) > 2 * holder + last_try


def test_told_to_stop_after_a_login_that_failed_it_still_says_how_the_key_stands(
    shop: Shop,
) -> None:
    accounts = Accounts(shop, "a", "b")
    accounts.script("a").append(DOWN)
    shop.webkassa.probe_scripts[login("a")].append(hang())
    process = shop.start("update", "--jobs", "1")
    await_(lambda: shop.webkassa.probes == 1)
    process.terminate()
    result = shop.finish(process)
    assert codes(result.err) == {"a": 69, "b": 75}
    assert f"The stored key {fingerprint(accounts.old['a'])} may be dead" in result.err


def test_told_to_stop_while_the_monitor_is_told_it_does_not_say_that_a_stored_key_is_none(
    shop: Shop, monitor: Monitor
) -> None:
    accounts = Accounts(shop, "a", "b")
    accounts.write("a", HEALTHCHECK_URL=f"{monitor.origin}/hang")
    process = shop.start("update", "--jobs", "1")
    await_(lambda: monitor.paths)
    process.terminate()
    result = shop.finish(process)
    assert summary(result.err) == {"a": "75, told to stop", "b": "75, not tried: told to stop"}
    assert f"{row('a')}: Stored the new key" in result.err
    assert accounts.renewed == {"a"}


def test_who_presses_ctrl_c_is_told_that_it_was_heard(shop: Shop) -> None:
    accounts, go = Accounts(shop, "a"), threading.Event()
    accounts.script("a").append(held_until(go))
    process, main = on_terminal(shop, "update")
    await_(lambda: shop.webkassa.authorizations == 1)
    process.send_signal(signal.SIGINT)
    shown = b""
    while b"It ends as soon as no key can be lost any more" not in shown:
        shown += os.read(main, 65536)
    assert shown.startswith(b"\r\n")  # not behind ^C
    go.set()
    assert process.wait(30) == 0
    assert accounts.renewed == {"a"}
    os.close(main)


def test_killed_parent_costs_no_key(shop: Shop) -> None:
    accounts, go = Accounts(shop, "a", "b"), threading.Event()
    accounts.script("a").append(held_until(go))
    process = start_and_ask(shop, "--jobs", "1")
    process.kill()
    process.wait()
    go.set()
    await_(lambda: not shop.sql(UPDATERS))
    assert (accounts.renewed, accounts.untouched) == ({"a"}, {"b"})
    process.communicate()


# By name ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "renewed"),
    [(("--account", "b"), {"b"}), (("--account", "almaty-*"), {"almaty-1", "almaty-2"}),
     (("--account", "a*-[!1]", "--account", "b"), {"almaty-2", "b"}),
     (("--account", "*"), {"almaty-1", "almaty-2", "b"})],
)  # fmt: skip
def test_only_the_accounts_that_are_named_are_updated(
    shop: Shop, arguments: tuple[str, ...], renewed: set[str]
) -> None:
    accounts = Accounts(shop, "almaty-1", "almaty-2", "b")
    result = shop.run("update", *arguments)
    assert (result.code, accounts.renewed) == (0, renewed)
    assert accounts.untouched == {*accounts.names} - renewed
    assert shop.webkassa.authorizations == len(renewed)
    checked = {*re.findall(r"Webkassa:([\w-]+)", shop.run("check", *arguments).out)}
    assert checked == renewed
    found = json.loads(shop.run("status", "--json", *arguments).out)["accounts"]
    assert {one["account"] for one in found if "probe" in one} == renewed


@pytest.mark.parametrize("command", ["update", "check", "status"])
@pytest.mark.parametrize("arguments", [("-a", "b"), ("b", "-a"), ("alma-*",), ("Almaty-1",), ("",)])
def test_a_name_that_no_account_has_is_wrong_usage_and_the_nearest_is_named(
    shop: Shop, command: str, arguments: tuple[str, ...]
) -> None:
    accounts = Accounts(shop, "almaty-1", "b")
    named = [f"--account={name}" for name in arguments]
    result = shop.finish(shop.start(command, *named))
    assert result.code == (3 if command == "status" else 2)
    said = f"--account {arguments[-1 if arguments[0] == 'b' else 0]}: there is no such account in"
    assert said in result.err
    assert ("is almaty-1 meant?" in result.err) == (arguments[0] in ("alma-*", "Almaty-1"))
    assert (accounts.untouched, shop.webkassa.calls) == ({"almaty-1", "b"}, [])


def ask(shop: Shop, line: str) -> Result:
    """Ask for a new key as a consumer does at the socket."""
    command = ("update", "--if-key", "-", "-v")
    return shop.finish(shop.start_with({"stdin": line.encode()}, *command))


def test_a_consumer_names_its_account_and_its_dead_key(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b")
    result = ask(shop, f"b {fingerprint(accounts.old['b'])}\n")
    assert (result.code, accounts.renewed, accounts.untouched) == (0, {"b"}, {"a"})
    result = ask(shop, f"b {fingerprint(accounts.old['b'])}\n")  # the next one that has it
    assert (result.code, shop.webkassa.authorizations) == (0, 1)


@pytest.mark.parametrize(
    "line", ["\n", "", "c {key}", "* {key}", "a b {key}", "b", "b x", "-b {key}"]
)
def test_a_consumers_line_that_names_no_account_or_key_is_wrong_usage(
    shop: Shop, line: str
) -> None:
    """An empty one would be a login for each account whose key is old."""
    accounts = Accounts(shop, "a", "b")
    result = ask(shop, line.format(key=fingerprint(accounts.old["b"])))
    assert (result.code, accounts.untouched, shop.webkassa.calls) == (2, {"a", "b"}, [])


def test_a_name_for_one_account_alone_is_wrong_usage(shop: Shop) -> None:
    result = ask(shop, f"b {fingerprint(shop.old_key)}\n")
    assert (result.code, shop.webkassa.calls) == (2, [])


@pytest.mark.slow
def test_a_consumer_that_names_its_key_alone_waits_for_no_other_account(shop: Shop) -> None:
    """With 300 accounts it waited 6 s, for 299 lines of the others."""
    accounts = Accounts(shop, *HUNDRED[:20])
    accounts.write("shop-07", POSTGRES_DB="shop", API_KEYS_TABLE="public.api_keys")
    accounts.write("shop-09", WEBKASSA_PASSWORD="")
    for name in ("shop-03", "shop-07"):
        key = fingerprint(accounts.old[name])
        with shop.relay() as relay:
            result = ask(shop, f"{key}\n")
            assert len(relay.links) == 3  # a connection for each table, and the child's own
        assert result.code == 0
        assert "1 of 1 accounts: done." in result.err
    assert accounts.renewed == {"shop-03", "shop-07"}
    assert ask(shop, "0badc0de\n").code == 0  # of a row that holds another one by now
    assert ask(shop, f"{fingerprint(accounts.old['shop-09'])}\n").code == 78
    accounts.write("shop-10", POSTGRES_DB="nowhere")  # whether it holds it, nobody can tell
    assert ask(shop, "0badc0de\n").code in (75, 78)
    assert shop.webkassa.authorizations == 2


@pytest.mark.slow
def test_a_consumer_whose_row_nobody_renews_is_not_told_that_it_holds_another_key(
    shop: Shop, monitor: Monitor
) -> None:
    """Its account's file had been given another name, say; it was told 0, and read the dead key anew."""
    accounts = Accounts(shop, "a", "gone")
    accounts.file("gone").unlink()
    shop.env["HEALTHCHECK_URL"] = f"{monitor.origin}/all"
    dead = f"{fingerprint(accounts.old['gone'])}\n"
    result = ask(shop, dead)
    assert (result.code, shop.webkassa.calls, monitor.paths) == (78, [], [])
    assert "Webkassa:gone: no file in the folder is for this row" in result.err
    before = ask(shop, f"{fingerprint(shop.old_key)}\n")  # in the row of one account
    assert (before.code, "Webkassa: no file in the folder" in before.err) == (78, True)
    assert ask(shop, "0badc0de\n").code == 0  # all rows hold other keys
    accounts.write("new", WEBKASSA_SERVICE_NAME="Webkassa:gone", WEBKASSA_PASSWORD="changeme")
    assert "no file" not in (result := ask(shop, dead)).err
    assert (result.code, shop.webkassa.calls) == (78, [])


def test_a_consumer_that_reads_a_padded_key_may_name_it_so(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b")
    shop.sql("ALTER TABLE api_keys ALTER api_key TYPE char(40)")
    assert ask(shop, f"{fingerprint(accounts.keys['b'])}\n").code == 0
    assert (accounts.logins("a"), accounts.logins("b")) == (0, 1)


# For a person and a monitor ----------------------------------------------------------------------


@pytest.mark.slow
def test_check_says_a_line_per_account_and_finding(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b", "c")
    accounts.write("b", API_KEYS_TABLE="nowhere.api_keys")
    accounts.write("c", WEBKASSA_PASSWORD="changeme")
    result = shop.run("check")
    assert result.code == 78
    assert codes(result.err) == {"b": 73, "c": 78}
    lines = result.out.splitlines()
    assert all(re.match(r"(ok|WARN|FAIL) +Webkassa:[ab]: ", line) for line in lines)
    assert f"WARN  {row('a')}: stored key: key {fingerprint(accounts.old['a'])}" in result.out
    assert (accounts.untouched, shop.webkassa.authorizations) == (set("abc"), 0)


@pytest.mark.slow
def test_check_of_good_accounts_says_a_line_of_each_and_v_every_step(shop: Shop) -> None:
    """Three faults of 300 accounts stood among 1,805 lines."""
    accounts = Accounts(shop, "a", "b", "c")
    assert shop.run("update").code == 0
    accounts.write("c", WEBKASSA_AUTH_URL=f"http://127.0.0.1:{free_port()}/api/Authorize")
    result = shop.finish(shop.start("check"))
    said = [re.sub(r"key [0-9a-f]{8}, .*", "", line) for line in result.out.splitlines()]
    good = [f"ok    {row(name)}: stored key: " for name in "ab"]
    assert sorted(line for line in said if "Webkassa:c" not in line) == good
    levels = [line.split()[0] for line in said if "Webkassa:c" in line]
    assert (result.code, levels) == (69, ["FAIL", "WARN"])
    assert shop.run("check").out.count(f"ok    {row('a')}: ") > 4


def test_a_first_update_does_not_warn_of_every_row_that_it_is_new(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b")
    shop.sql("DELETE FROM api_keys WHERE service_name LIKE 'Webkassa:%%'")
    result = shop.finish(shop.start("update"))
    assert (result.code, accounts.keys) == (0, accounts.live)
    assert "WARNING" not in result.err
    assert result.err.count("where none was") == 2


def test_status_says_how_every_account_stands_and_the_worst_first(shop: Shop) -> None:
    accounts = Accounts(shop, "good", "dead", "old", "faulty")
    accounts.write("faulty", WEBKASSA_PASSWORD="")
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' WHERE service_name <> %s", row("old"))  # fmt: skip
    shop.webkassa.issue(login=login("dead"))  # somebody else logs in
    result = shop.run("status")
    first, *lines = result.out.splitlines()
    assert result.code == 2
    assert re.match(r"WEBKASSA CRITICAL - 1 of 4 accounts .*; dead: .*\|age=1\d{5}s;", first)
    found = json.loads(shop.run("status", "--json").out)
    assert found["status"] == "CRITICAL"
    levels = {"good": "OK", "dead": "CRITICAL", "old": "WARNING", "faulty": "UNKNOWN"}
    for name, level in levels.items():
        assert len([line for line in lines if name in line and level in line]) == 1, name
        entry = [entry for entry in found["accounts"] if entry["account"] == name]
        assert [entry["status"] for entry in entry] == [level]
    assert fingerprint(accounts.old["good"]) in result.out
    assert shop.webkassa.authorizations == 0


@pytest.mark.slow
def test_status_reads_all_rows_of_a_table_at_once_and_probes_them_side_by_side(shop: Shop) -> None:
    """300 accounts took 22 s, and a monitor ended it after 10."""
    accounts = Accounts(shop, *HUNDRED)
    accounts.write("shop-98", API_KEYS_TABLE="nowhere.api_keys")
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC'")
    together = threading.Barrier(16, timeout=20)

    def act(handler: Handler, good: bytes) -> None:
        together.wait()  # so many are there at a time
        handler.send(200, good)

    for name in HUNDRED[:16]:
        shop.webkassa.probe_scripts[login(name)].append(act)
    with shop.relay() as relay:
        result = shop.run("status")
        assert len(relay.links) == 2  # a connection for each table
        assert relay.round_trips < 30
    assert (result.code, shop.webkassa.probes) == (2, 99)
    assert result.out.startswith("WEBKASSA CRITICAL - 99 of 100 accounts are well; shop-98: no key")


@pytest.mark.slow
def test_status_of_many_has_the_time_of_one_whatever_the_vendor_does(shop: Shop) -> None:
    accounts = Accounts(shop, *HUNDRED)
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC'")
    for name in accounts.names:
        shop.webkassa.probe_scripts[login(name)].append(hang())
    with within(30):  # one after another, of each four, it would be 125 s
        result = shop.run("status", "--json")
    *found, of_no_account = json.loads(result.out)["accounts"]
    assert (result.code, len(found), of_no_account["account"]) == (1, 100, "Webkassa")
    assert {one["probe"] for one in found} == {"unclear"}
    assert {one["fingerprint"] for one in found} == {
        fingerprint(key) for key in accounts.old.values()
    }


def test_status_without_a_probe_asks_the_database_alone(shop: Shop) -> None:
    alone = shop.env.copy()
    accounts = Accounts(shop, "a", "b")
    accounts.write("b", WEBKASSA_PROBE_URL=f"{shop.webkassa.origin}/api/references/RefUnits")
    shop.webkassa.issue(login=login("a"))  # whoever asked would hear that the key is dead
    for how, env in ((shop.options, shop.env), ((), alone)):  # of many, of one
        shop.options, shop.env = how, env
        result = shop.run("status", "--no-probe")
        assert (result.code, "the probe says off" in result.out) == (1, True)
    assert shop.webkassa.calls == []
    with pytest.raises(SystemExit) as ended:
        shop.main("check", "--no-probe")
    assert ended.value.code == 2


def test_status_says_of_each_database_why_it_cannot_be_read(shop: Shop) -> None:
    accounts = Accounts(shop, *"abcd")
    accounts.write("b", POSTGRES_DB="nowhere")
    accounts.write("c", API_KEYS_TABLE="twice")
    accounts.write("d", API_KEYS_TABLE="twice")
    shop.sql("CREATE TABLE twice AS SELECT * FROM api_keys")
    shop.sql("INSERT INTO twice SELECT * FROM twice WHERE service_name = %s", row("c"))
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC'")
    report = json.loads(shop.run("status", "--json").out)
    found = {one["account"]: one for one in report["accounts"]}
    levels = {name: one["status"] for name, one in found.items()}
    assert levels == {
        "a": "OK", "b": "UNKNOWN", "c": "UNKNOWN", "d": "WARNING", "Webkassa": "OK",
    }  # fmt: skip
    assert "nowhere" in found["b"]["message"]
    assert "2 rows are of this service" in found["c"]["message"]


@pytest.mark.slow
def test_status_names_rows_whose_file_is_gone_and_takes_them_for_no_fault(shop: Shop) -> None:
    """Somebody may have removed the account, or another machine may renew it."""
    accounts = Accounts(shop, "a", "b", "c")
    accounts.file("b").unlink()
    accounts.write("c", WEBKASSA_SERVICE_NAME="Webkassa:b2")
    assert shop.run("update").code == 0
    result = shop.run("status")
    assert (result.code, result.out.count("2 of 2 accounts are well")) == (0, 1)
    said = [line for line in result.out.splitlines() if "is not renewed from here" in line]
    assert [line.split()[1] for line in said] == ["Webkassa,", f"{row('b')},", f"{row('c')},"]
    assert "is not renewed" not in shop.run("status", "--account", "a").out


@pytest.mark.parametrize("arguments", [("status",), ("status", "--json")])
def test_status_of_none_or_of_wrong_accounts_has_no_name_in_it(
    shop: Shop, arguments: tuple[str, ...]
) -> None:
    accounts = Accounts(shop, "a", "b")
    (empty, *_) = {*range(3)} - {shard("a", 3), shard("b", 3)}
    good = shop.run(*arguments, "--shard", f"{empty}/3")
    assert good.code == 0
    clear(accounts.folder)
    bad = shop.run(*arguments)
    assert bad.code == 3
    assert "holds no account" in bad.out
    assert "None" not in good.out + bad.out


def test_steps_of_many_accounts_bear_their_names(shop: Shop) -> None:
    Accounts(shop, "a", "b")
    steps = [line for line in shop.run("update").err.splitlines() if line.startswith("DEBUG")]
    assert {line.split()[1] for line in steps} == {"a:", "b:"}


@pytest.mark.slow
def test_many_good_accounts_are_ok(shop: Shop) -> None:
    Accounts(shop, "a", "b")
    assert shop.run("update").code == 0
    assert shop.run("check").code == 0
    result = shop.run("status")
    assert (result.code, result.out[:14]) == (0, "WEBKASSA OK - ")
    assert len(result.out.splitlines()) == 4  # in all, two accounts, the row from before


@pytest.mark.slow
def test_progress_is_for_a_terminal_alone(shop: Shop) -> None:
    Accounts(shop, "a", "b")
    assert "\r" not in shop.run("update").err
    process, main = on_terminal(shop, "update")
    shown = b""
    while data := read_terminal(main):
        shown += data
    assert process.wait() == 0
    assert process.communicate()[0] == ""
    assert b"1 of 2 accounts\r" in shown
    assert b"2 of 2 accounts" in shown


def read_terminal(main: int) -> bytes:
    try:
        return os.read(main, 65536)
    except OSError:  # the other side has ended
        return b""


@pytest.mark.slow
def test_terminal_that_goes_away_stops_nothing(shop: Shop) -> None:
    accounts, go = Accounts(shop, "a", "b", "c"), threading.Event()
    accounts.script("a").append(held_until(go))
    process, main = on_terminal(shop, "update", "--jobs", "1")
    await_(lambda: shop.webkassa.authorizations == 1)
    os.close(main)
    go.set()
    assert process.wait(30) == 0
    assert accounts.renewed == set("abc")


@pytest.mark.slow
def test_a_printed_command_leaves_good_keys_alone(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b")
    accounts.script("a").append(BUSY)
    result = shop.run("update", "--jobs", "2")
    type_printed(shop, result, r"(\S+ \S+webkassa_key_updater\.py .* update[^.\n]*)")
    assert (accounts.logins("a"), accounts.logins("b")) == (2, 1)
    assert accounts.renewed == {"a", "b"}


@pytest.mark.slow
def test_a_printed_command_overcomes_the_memory_of_a_refusal(shop: Shop) -> None:
    """The login was right, and Webkassa has let it in again."""
    accounts = Accounts(shop, "a", "b")
    accounts.script("a").append(answer(200, errors(1)))
    assert shop.run("update", "--if-needed").code == 77
    result = shop.run("update", "--if-needed")
    assert (result.code, accounts.logins("a")) == (77, 1)
    type_printed(shop, result, r"then run: (.* update.*)")
    assert (accounts.logins("a"), accounts.logins("b")) == (2, 1)
    assert accounts.renewed == {"a", "b"}


@pytest.mark.slow
def test_a_command_of_its_own_is_printed_with_the_folder_that_was_given(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b")
    accounts.script("b").append(BUSY)
    result = shop.run("update", WEBKASSA_KEY_COMMAND="webkassa-key")
    assert f": webkassa-key --accounts-dir {accounts.folder} update --account b\n" in result.err
    accounts.script("b").append(BUSY)
    shop.options, env = (), {"WEBKASSA_ACCOUNTS_DIR": str(accounts.folder)}
    result = shop.run("update", WEBKASSA_KEY_COMMAND="webkassa-key", **env)
    assert ": webkassa-key update --account b\n" in result.err


@pytest.mark.slow
def test_a_printed_command_is_for_the_same_account_whatever_files_come(shop: Shop) -> None:
    """By its place in the folder it was for another one, whose key was good, once one was added."""
    accounts = Accounts(shop, "a", "b")
    accounts.script("b").append(BUSY)
    result = shop.run("update")
    accounts.write("a0", WEBKASSA_SERVICE_NAME="Webkassa:a0")
    type_printed(shop, result, r"(\S+ \S+webkassa_key_updater\.py .* update[^.\n]*)")
    assert accounts.renewed == {"a", "b"}
    assert (accounts.logins("a"), accounts.logins("a0"), accounts.logins("b")) == (1, 0, 2)


@pytest.mark.slow
def test_commands_that_check_and_status_print_name_the_account(shop: Shop) -> None:
    accounts, seen = Accounts(shop, "a", "b"), r"(\S+ \S+webkassa_key_updater\.py .*)$"
    accounts.write("b", API_KEYS_TABLE="nowhere.api_keys")
    shop.webkassa.issue(login=login("a"))
    for command in ("check", "status"):
        printed = set(re.findall(seen, shop.run(command).out, re.MULTILINE))
        ends = {tuple(shlex.split(line)[-2:]) for line in printed}
        assert ends == {("--account", "a"), ("--account", "b")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["касса 1", "-x", "a.b", "b'c"])
def test_a_command_for_a_file_whose_name_is_wrong_names_it_not(shop: Shop, name: str) -> None:
    """The command of a server takes no such name, and once the file is renamed there is none."""
    accounts = Accounts(shop, "a")
    accounts.write(name)
    for command in ("check", "update", "status"):
        result = shop.run(command, WEBKASSA_KEY_COMMAND="sudo webkassa-key")
        (typed,) = {
            *re.findall(r"Correct them, then run: (.+?)\"?$", result.out + result.err, re.M)
        }
        assert typed == f"sudo webkassa-key --accounts-dir {accounts.folder} check"


def test_folder_may_be_named_by_a_relative_path(shop: Shop) -> None:
    accounts = Accounts(shop, "a")
    shop.options = ("--accounts-dir", accounts.folder.name)
    process = shop.start_with({"cwd": accounts.folder.parent}, "update")
    assert (shop.finish(process).code, accounts.renewed) == (0, {"a"})


# A file of its own -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("command", ["update", "check", "status"])
def test_the_one_file_alone_serves_one_account_and_says_what_many_need(
    shop: Shop, monitor: Monitor, command: str
) -> None:
    alone = Path(shutil.copy(PROGRAM, shop.home))
    shop.program = [str(alone)]
    shop.renew("update")
    accounts, asked = Accounts(shop, "a", "b"), len(shop.webkassa.calls)
    result = shop.run(command, HEALTHCHECK_URL=f"{monitor.origin}/all")
    assert result.code == (3 if command == "status" else 78)
    missing = alone.with_name("webkassa_key_accounts.py")
    assert f"{missing} is missing; --metrics, --accounts-dir" in result.out + result.err
    assert (accounts.untouched, len(shop.webkassa.calls)) == ({"a", "b"}, asked)
    assert monitor.paths == (["/all/fail"] if command == "update" else [])
    shutil.copy(ROOT / missing.name, missing)
    assert shop.run("check").code == 0


@pytest.mark.slow
def test_isolated_python_finds_the_file_for_many_accounts(shop: Shop) -> None:
    """As the units start it: no folder of the program is looked in for modules."""
    accounts = Accounts(shop, "a", "b")
    command = [sys.executable, "-I", str(PROGRAM), "update", *shop.options]
    done = subprocess.run(command, env=shop.env, cwd="/", capture_output=True, text=True)
    assert (done.returncode, accounts.renewed) == (0, {"a", "b"}), done.stderr
