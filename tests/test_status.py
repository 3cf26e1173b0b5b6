"""status and the command line: read-only, and true."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from world.shop import PROGRAM, Shop, fingerprint
from world.waiting import within
from world.webkassa_simulator import answer, errors, hang


@pytest.mark.parametrize(
    ("age", "probe", "code", "word"),
    [
        ("1 hour", None, 0, "OK"),
        ("24 hours 59 minutes", None, 0, "OK"),
        ("25 hours 1 minute", None, 1, "WARNING"),
        ("49 hours 1 minute", None, 2, "CRITICAL"),
        ("1 hour", errors(2), 2, "CRITICAL"),
        ("1 hour", errors(3), 2, "CRITICAL"),
        ("1 hour", errors(4), 0, "OK"),
        ("1 hour", errors(-1), 1, "WARNING"),  # "not called dead" is not "alive"
        ("-1 hour", None, 3, "UNKNOWN"),
    ],
)
def test_status_levels(shop: Shop, age: str, probe: object, code: int, word: str) -> None:
    shop.age(age)
    for command in (["status"], ["status", "--json"]):
        if probe is not None:
            shop.webkassa.probe_script.append(answer(200, probe))
        result = shop.main(*command)
        assert result.code == code
        if command == ["status"]:
            first, *_, second = result.out.splitlines()
            assert first.startswith(f"WEBKASSA {word} - ")
            assert ("|age=" in first) == (word != "UNKNOWN")
            assert fingerprint(shop.old_key) in second
        else:
            report = json.loads(result.out)
            assert report["status"] == word
            assert report["accounts"][0]["fingerprint"] == fingerprint(shop.old_key)
            assert report["accounts"][0]["service"] == "Webkassa"
    assert shop.is_untouched
    assert shop.webkassa.authorizations == 0
    if code in (1, 2) and probe != errors(-1):
        assert re.search("Run again now: .* update", result.out)


def test_last_change_of_the_row_is_said_in_utc(shop: Shop) -> None:
    shop.age("1 hour")
    select = "SELECT to_char(updated_at, 'YYYY-MM-DD HH24:MI:SS') FROM api_keys WHERE id = 1"
    ((changed,),) = shop.sql(select)
    result = shop.main("status", "--json", PGTZ="Asia/Almaty")
    assert json.loads(result.out)["accounts"][0]["changed"] == f"{changed} UTC"


def test_age_is_never_less_than_none(shop: Shop) -> None:
    """Whoever wrote the row has a clock that is a little ahead: "-0.1 h old"."""
    shop.age("-4 minutes")
    status = shop.main("status", "--json")
    assert (status.code, ", 0.0 h old; the probe says alive" in status.out) == (0, True)
    assert json.loads(status.out)["accounts"][0]["age_seconds"] == 0


@pytest.mark.parametrize(
    "statement", ["DROP TABLE api_keys", "DELETE FROM api_keys", "UPDATE api_keys SET api_key = ''"]
)
def test_missing_key_is_critical(shop: Shop, statement: str) -> None:
    shop.sql(statement)
    result = shop.main("status")
    assert result.code == 2
    assert "no key is stored" in result.out


def test_what_cannot_be_told_is_unknown(shop: Shop) -> None:
    for env in ({"WEBKASSA_LOGIN": ""}, {"POSTGRES_PORT": "9"}):
        result = shop.main("status", **env)
        assert result.code == 3
        assert result.out.startswith("WEBKASSA UNKNOWN - ")
        report = shop.main("status", "--json", **env)
        assert (report.code, json.loads(report.out)["status"]) == (3, "UNKNOWN")
    shop.sql("ALTER TABLE api_keys DROP CONSTRAINT api_keys_service_name_key")
    shop.sql("UPDATE api_keys SET service_name = 'Webkassa'")
    assert shop.main("status").code == 3


def test_status_is_read_only_and_waits_for_no_updater(shop: Shop) -> None:
    shop.sql("ALTER DATABASE shop SET default_transaction_read_only = on")
    shop.webkassa.script.append(hang())
    shop.sql("SELECT pg_advisory_lock(1)")
    with within(40):
        assert shop.main("status").code == 1


def test_status_with_webkassa_hanging_takes_5_s(shop: Shop) -> None:
    shop.webkassa.probe_script.append(hang())
    with within(40):
        result = shop.main("status")
    assert (result.code, "probe unclear" in result.out) == (1, True)


# The command line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["renew"], 2),
        (["--if-needed", "check"], 2),
        (["--if-key", "0123abcd", "check"], 2),
        (["--if-key", "0123"], 2),
        (["--env-file", ""], 2),
        (["check", "--json"], 2),
        (["--env"], 2),
        (["update", "x"], 2),
        # For a monitor 2 would be CRITICAL, and wake somebody
        (["status", "--if-needed"], 3),
        (["--env-file", "", "status"], 3),
        (["status", "--jsn"], 3),
        (["status", "x"], 3),
        (["-q", "status"], 3),
        (["status", "--env-file"], 3),
    ],
)
def test_wrong_usage_is_2_and_for_a_monitor_unknown(
    shop: Shop, arguments: list[str], code: int
) -> None:
    result = shop.finish(shop.start(*arguments))
    assert (result.code, shop.webkassa.calls) == (code, [])
    assert "--help" in result.err


def test_options_may_stand_before_or_after_the_command(shop: Shop) -> None:
    for line in ("-v update", "update -v", "--if-needed update", "update --if-needed"):
        assert shop.finish(shop.start(*line.split())).code == 0


@pytest.mark.slow
def test_help_and_version() -> None:
    for flag in ("--help", "-h", "--version"):
        run = subprocess.run([sys.executable, str(PROGRAM), flag], capture_output=True, text=True)
        assert run.returncode == 0
        assert run.stderr == ""
        assert ("exit codes" in run.stdout) == (flag != "--version")


# Whatever becomes of the output ------------------------------------------------------------------


def test_exit_code_stands_when_nobody_reads_the_output(shop: Shop) -> None:
    process = shop.start("status")
    process.stdout.close()
    assert process.wait(20) == 1
    assert process.stderr.read() == ""


@pytest.mark.slow
@pytest.mark.parametrize(("command", "code"), [("check", 0), ("status", 1), ("update", 0)])
@pytest.mark.parametrize("sink", [">/dev/full", ">&-", "| true"])
def test_exit_code_stands_whatever_becomes_of_the_output(
    shop: Shop, command: str, code: int, sink: str
) -> None:
    script = f'"$0" "$1" {command} {sink}; exit ${{PIPESTATUS[0]}}'
    run = subprocess.run(
        ["bash", "-c", script, sys.executable, str(PROGRAM)],
        env=shop.env | {"PYTHONUNBUFFERED": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    assert "bug" not in run.stderr


@pytest.mark.parametrize("time_of_change", ["infinity", "-infinity"])
def test_time_without_end_tells_nothing(shop: Shop, time_of_change: str) -> None:
    shop.sql("UPDATE api_keys SET updated_at = %s", time_of_change)
    result = shop.main("status")
    assert (result.code, result.out[:16]) == (3, "WEBKASSA UNKNOWN")
