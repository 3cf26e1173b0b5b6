"""check and status say what is wrong, even where nothing has failed yet."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator

import pytest
from world.shop import Shop, fingerprint
from world.webkassa_simulator import Simulator, answer, errors


def lines(out: str) -> dict[str, str]:
    """Return what `check` says of each thing, by its name: "WARN text"."""
    pairs = (re.fullmatch(r"(ok|WARN|FAIL) +([a-z ]+): (.*)", line) for line in out.splitlines())
    return {pair[2]: f"{pair[1]} {pair[3]}" for pair in pairs if pair}


WARNED = {
    "dead key": ("stored key", "is dead.*[Rr]un again now", "SELECT 1"),
    "no key": ("stored key", "no key is stored", "DELETE FROM api_keys WHERE id = 1"),
    "old key": (
        "stored key",
        "old.*[Rr]un again now",
        "UPDATE api_keys SET updated_at = updated_at - interval '9 days'",
    ),
    "no times": ("table", "age", "ALTER TABLE api_keys DROP created_at, DROP updated_at"),
    "short column": (
        "table",
        r"64 characters, could not be stored: .*22001",
        "ALTER TABLE api_keys ALTER api_key TYPE varchar(63)",
    ),
    "column for hex digits": (
        "table",
        r"64 characters, could not be stored: .*23514",
        "ALTER TABLE api_keys ADD CHECK (api_key ~ '^[0-9a-f]{32}$') NOT VALID",
    ),
    "look-alike": (
        "table",
        "'webkassa '",
        "UPDATE api_keys SET service_name = 'webkassa ' WHERE id = 2",
    ),
}


@pytest.mark.parametrize("case", WARNED)
def test_check_warns_of_what_an_update_gets_along_with(shop: Shop, case: str) -> None:
    name, said, statement = WARNED[case]
    shop.sql(statement)
    if case == "dead key":
        shop.webkassa.live = None
    result = shop.main("check")
    assert result.code == 0
    assert re.search(f"WARN .*{said}", lines(result.out)[name])
    assert shop.webkassa.authorizations == 0


def test_check_of_a_good_system_warns_of_nothing(shop: Shop) -> None:
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' WHERE id = 1")
    result = shop.main("check")
    assert (result.code, "WARN" in result.out, "FAIL" in result.out) == (0, False, False)
    where = f"127.0.0.1:{shop.webkassa.port}"
    assert where in result.out
    assert "shop.public.api_keys" in result.out
    assert fingerprint(shop.old_key) in result.out


def test_check_names_the_databases_host(shop: Shop) -> None:
    """The same names of database, schema and table are on the test system, too."""
    assert "127.0.0.1" in lines(shop.main("check").out)["database"]


@pytest.mark.parametrize("probe", [answer(500), answer(403, b"<html>"), answer(200, errors(-1))])
def test_check_warns_when_the_probe_cannot_tell(shop: Shop, probe: object) -> None:
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' WHERE id = 1")
    shop.webkassa.probe_script.append(probe)
    assert lines(shop.main("check").out)["stored key"].startswith("WARN ")


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


# status ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def table_locked(shop: Shop) -> Iterator[None]:
    with contextlib.closing(shop.connect()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE")
        yield


def test_status_under_a_table_lock_takes_some_seconds(shop: Shop) -> None:
    with table_locked(shop):
        start = time.monotonic()
        result = shop.main("status")
        assert time.monotonic() - start < 40
    assert result.code == 3
    assert result.out.startswith("WEBKASSA UNKNOWN - ")
    assert "lock" in result.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--jsn"],
        ["status", "x"],
        ["--env-file", "", "status"],
        ["-q", "status"],
        ["status", "--if-needed"],
        ["status", "--env-file"],
    ],
)
def test_wrong_usage_of_status_is_unknown_to_a_monitor(shop: Shop, arguments: list[str]) -> None:
    """2 would be read as CRITICAL, and wake somebody."""
    result = shop.finish(shop.start(*arguments))
    assert result.code == 3


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


def test_status_of_a_dead_key_says_what_to_type_now(shop: Shop) -> None:
    shop.webkassa.live = None
    result = shop.main("status")
    assert result.code == 2
    assert "it is dead|age=" in result.out  # a command before it would run into a pipe
    assert re.search("^Run again now: .* update$", result.out, re.MULTILINE)
    assert "later" not in result.out


@pytest.mark.parametrize("row", ["service_name = 'webkassa'", "service_name = 'Webkassa '"])
def test_status_does_not_say_ok_of_a_look_alike(shop: Shop, row: str) -> None:
    shop.sql(f"UPDATE api_keys SET {row} WHERE id = 1")
    result = shop.main("status")
    assert result.code in (2, 3)
    assert "Webkassa" in result.out
