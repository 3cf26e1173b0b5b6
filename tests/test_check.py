"""check and status say what is wrong, even where nothing has failed yet."""

from __future__ import annotations

import json
import re
import sys

import pytest
from world.shop import PROGRAM, Shop, fingerprint
from world.waiting import within
from world.webkassa_simulator import UNCLEAR, Simulator, answer


def lines(out: str) -> dict[str, str]:
    """Return what `check` says of each thing, by its name: "WARN text"."""
    pairs = (re.fullmatch(r"(ok|WARN|FAIL) +([a-z ]+): (.*)", line) for line in out.splitlines())
    return {pair[2]: f"{pair[1]} {pair[3]}" for pair in pairs if pair}


def test_check_says_what_it_checked_and_changes_nothing(shop: Shop) -> None:
    result = shop.main("check")
    assert result.code == 0
    said = [line.split(":")[0] for line in result.out.splitlines()]
    assert said == [
        *(f"ok    {part}" for part in ("settings", "database", "lock", "write", "webkassa")),
        "WARN  stored key",  # 30 hours old
    ]
    assert "shop.public.api_keys" in result.out
    assert f"127.0.0.1:{shop.webkassa.port}" in lines(result.out)["webkassa"]
    # The same names of database, schema and table are on the test system, too
    assert "127.0.0.1" in lines(result.out)["database"]
    assert fingerprint(shop.old_key) in lines(result.out)["stored key"]
    assert shop.webkassa.authorizations == 0
    assert shop.is_untouched


def test_check_goes_on_after_a_fault_and_names_each(shop: Shop) -> None:
    url = "http://127.0.0.1:9/api/Authorize"
    result = shop.main("check", POSTGRES_PORT="9", WEBKASSA_AUTH_URL=url)
    assert result.code == 75
    assert re.findall("^(ok|WARN|FAIL) ", result.out, re.MULTILINE) == ["ok", "FAIL", "FAIL"]
    assert shop.main("check", WEBKASSA_AUTH_URL=url).code == 69


# what is wrong, of what `check` says so, and what; nothing where an update would say nothing
WARNED = {
    "nothing": ("SELECT 1", "", ""),
    "dead key": ("SELECT 1", "stored key", "is dead.*[Rr]un again now"),
    "no key": ("DELETE FROM api_keys WHERE id = 1", "stored key", "no key is stored"),
    "empty key": ("UPDATE api_keys SET api_key = ''", "stored key", "no key is stored"),
    "old key": ("UPDATE api_keys SET updated_at = updated_at - interval '9 days'",
                "stored key", "old.*[Rr]un again now"),
    "no times": ("ALTER TABLE api_keys DROP created_at, DROP updated_at", "table", "updated_at.*no age is known"),
    "short column": ("ALTER TABLE api_keys ALTER api_key TYPE varchar(63)", "table",
                     "64 characters, could not be stored: .*22001"),
    "column of 64": ("ALTER TABLE api_keys ALTER api_key TYPE varchar(64)", "", ""),
    "column for hex digits": ("ALTER TABLE api_keys ADD CHECK (api_key ~ '^[0-9a-f]{32}$') NOT VALID",
                              "table", "64 characters, could not be stored: .*23514"),
    "padded": ("ALTER TABLE api_keys ALTER api_key TYPE char(64)", "table", "filled up with blanks"),
    "columns that say how long": (
        "ALTER TABLE api_keys ADD expires_at timestamptz NOT NULL DEFAULT now() + interval '24 h',"
        " ADD is_active boolean NOT NULL DEFAULT true, ADD status text DEFAULT 'active'",
        "table", "left as they are: (?=.*expires_at)(?=.*is_active)(?=.*status)"),
    "service of an enumerated type": (
        "CREATE TYPE service AS ENUM ('Webkassa', 'Other'); ALTER TABLE api_keys"
        " ALTER service_name TYPE service USING service_name::service", "", ""),
    "unlogged": ("ALTER TABLE api_keys SET UNLOGGED", "table", "UNLOGGED"),
    "date": ("ALTER TABLE api_keys ALTER updated_at TYPE date", "table", "updated_at is a date"),
    "JSON": ("""UPDATE api_keys SET api_key = '{"Token":"0123456789abcdef"}'""", "table", "looks like no key"),
    "header": ("UPDATE api_keys SET api_key = 'Bearer ' || api_key", "table", "looks like no key"),
    "ciphertext": ("UPDATE api_keys SET api_key = repeat('gAAAAAB', 20)", "table", "looks like no key"),
    "misspelt name": ("UPDATE api_keys SET service_name = 'Webkasa' WHERE id = 1", "table",
                      "no row 'Webkassa' yet, but .*'Webkasa'"),
    "look-alike": ("UPDATE api_keys SET service_name = 'webkassa ' WHERE id = 2", "table", "'webkassa '"),
}  # fmt: skip


@pytest.mark.parametrize("case", WARNED)
def test_check_warns_of_what_an_update_gets_along_with(shop: Shop, case: str) -> None:
    statement, name, said = WARNED[case]
    shop.age("0 s")
    shop.sql(statement)
    if case == "dead key":
        shop.webkassa.live = None
    result = shop.main("check")
    assert result.code == 0  # all that an update needs is there
    assert "FAIL" not in result.out
    assert ("WARN" in result.out) == bool(said), result.out
    assert not said or re.search(f"WARN .*{said}", lines(result.out)[name])
    assert shop.webkassa.authorizations == 0


# Of a gateway in between, or spelt otherwise: neither has the vendor's "Data" or "Errors"
STRANGERS = [{"message": "API rate limit exceeded"}, {"errors": [{"code": 2}]}]


@pytest.mark.parametrize(
    "probe",
    [answer(500), answer(403, b"<html>"), answer(200, UNCLEAR), *(answer(200, body) for body in STRANGERS)],
)  # fmt: skip
def test_check_warns_when_the_probe_cannot_tell(shop: Shop, probe: object) -> None:
    """What is no answer of the vendor's proves nothing: a dead key was called alive on its word."""
    shop.age("0 s")
    shop.webkassa.probe_script.append(probe)
    result = shop.main("check")
    assert result.code == 0
    assert re.match("WARN .*unclear", lines(result.out)["stored key"])


@pytest.mark.parametrize("url", ["of", "Off!", "https://api.webkassa.kz", "api.webkassa.kz"])
def test_probe_url_that_is_none_is_a_fault(shop: Shop, url: str) -> None:
    result = shop.main("check", WEBKASSA_PROBE_URL=url)
    assert result.code == 78
    assert re.search("WEBKASSA_PROBE_URL: ", result.out + result.err)


@pytest.mark.parametrize("url", ["off", "OFF"])
def test_probe_that_is_off_is_said(shop: Shop, url: str) -> None:
    result = shop.main("check", WEBKASSA_PROBE_URL=url)
    assert result.code == 0
    assert "off" in lines(result.out)["stored key"]
    assert shop.webkassa.probes == 0


@pytest.mark.slow
def test_probe_host_of_its_own_is_blamed_for_its_own_word(shop: Shop) -> None:
    with Simulator() as other:
        url = f"{other.origin}/api/references/RefUnits"
        result = shop.main("update", WEBKASSA_PROBE_URL=url)
        assert result.code == 78
        assert f"the probe at 127.0.0.1:{other.port} refuses every new key" in result.err
        assert "WEBKASSA_PROBE_URL" in result.err
        assert f"127.0.0.1:{shop.webkassa.port} refuses" not in result.err


@pytest.mark.parametrize("command", ["check", "status", "update"])
def test_missing_key_is_never_called_by_a_fingerprint(shop: Shop, command: str) -> None:
    """ "The stored key none is dead" was said once."""
    shop.sql("UPDATE api_keys SET api_key = '' WHERE id = 1")
    shop.webkassa.script.append(answer(503, b"", {"Retry-After": "3600"}))
    result = shop.main(command)
    assert re.search("(?i)no key is stored", result.out + result.err)
    assert not re.search("key none|none is dead", result.out + result.err)


def test_check_has_no_prejudice_against_a_monitor_that_is_gone(shop: Shop) -> None:
    result = shop.main("check", HEALTHCHECK_URL="http://127.0.0.1:9/canary-uuid")
    assert lines(result.out)["monitor"].startswith("FAIL ")
    assert not re.search("monitor: .* update$", result.out, re.MULTILINE)  # that is no help
    assert "canary" not in result.out + result.err


def test_check_warns_of_unknown_names_in_the_settings_file(shop: Shop) -> None:
    file = shop.home / "settings"
    file.write_text("WEBKASSA_LOGN=canary-typo\n")
    result = shop.main("check", "--env-file", str(file))
    assert result.code == 0
    assert "WEBKASSA_LOGN" in result.out + result.err
    assert "WEBKASSA_LOGIN" in result.out + result.err  # the nearest of ours
    assert "canary-typo" not in result.out + result.err


# status ------------------------------------------------------------------------------------------


def test_status_under_a_table_lock_takes_some_seconds(shop: Shop) -> None:
    with shop.transaction("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE"), within(20):
        result = shop.main("status")
    assert result.code == 3
    assert result.out.startswith("WEBKASSA UNKNOWN - ")
    assert "lock" in result.out


@pytest.mark.parametrize("service", ["Касса|1", "a|b=1;2;3", "100%", "x'y\\z"])
def test_service_name_becomes_no_performance_data(shop: Shop, service: str) -> None:
    """After a first | a monitor reads figures, in every line of the output."""
    shop.sql("UPDATE api_keys SET service_name = %s WHERE id = 1", service)
    result = shop.main("status", WEBKASSA_SERVICE_NAME=service)
    assert result.code == 1
    first, *more = result.out.splitlines()
    assert re.search(r"^WEBKASSA WARNING - [^|]*\|age=\d+s;90000;176400$", first)
    assert "|" not in "".join(more)
    report = json.loads(shop.main("status", "--json", WEBKASSA_SERVICE_NAME=service).out)
    assert report["accounts"][0]["service"] == service


def test_status_shows_the_zone_of_its_time(shop: Shop) -> None:
    shop.sql("UPDATE api_keys SET updated_at = '2026-01-02 03:04:05' WHERE id = 1")
    for command in (["status"], ["status", "--json"]):
        assert re.search(r"2026-01-02[ T]03:04:05 ?(UTC|\+00|Z)", shop.main(*command).out)


@pytest.mark.parametrize("command", ["check", "status"])
def test_a_dead_key_is_said_with_what_to_type_now(shop: Shop, command: str) -> None:
    shop.webkassa.live = None
    result = shop.run(command)
    assert result.code == (2 if command == "status" else 0)
    if command == "status":
        assert "it is dead|age=" in result.out  # a command before it would run into a pipe
    typed = re.escape(f"{sys.executable} {PROGRAM} update")
    assert re.search(f"Run again now: {typed}$", result.out, re.MULTILINE)
    assert "later" not in result.out


@pytest.mark.parametrize("row", ["service_name = 'webkassa'", "service_name = 'Webkassa '"])
def test_status_does_not_say_ok_of_a_look_alike(shop: Shop, row: str) -> None:
    shop.sql(f"UPDATE api_keys SET {row} WHERE id = 1")
    result = shop.main("status")
    assert result.code in (2, 3)
    assert "Webkassa" in result.out
