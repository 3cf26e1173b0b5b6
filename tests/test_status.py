"""status, check and the command line: read-only, and true."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pytest
from world.monitor import Monitor
from world.shop import PROGRAM, Shop, fingerprint
from world.webkassa_simulator import UNCLEAR, answer, errors, hang


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
    shop.sql(
        "UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' - %s::interval WHERE id = 1", age
    )
    for command in (["status"], ["status", "--json"]):
        if probe is not None:
            shop.webkassa.probe_script.append(answer(200, probe))
        result = shop.run(*command)
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
        assert f"Run again now: {sys.executable} {PROGRAM} update" in result.out


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE api_keys",
        "DELETE FROM api_keys",
        "UPDATE api_keys SET api_key = '' WHERE id = 1",
    ],
)
def test_missing_key_is_critical(shop: Shop, statement: str) -> None:
    shop.sql(statement)
    result = shop.run("status")
    assert result.code == 2
    assert "no key is stored" in result.out


def test_what_cannot_be_told_is_unknown(shop: Shop) -> None:
    for env in ({"WEBKASSA_LOGIN": ""}, {"POSTGRES_PORT": "9"}):
        result = shop.run("status", **env)
        assert result.code == 3
        assert result.out.startswith("WEBKASSA UNKNOWN - ")
        report = shop.run("status", "--json", **env)
        assert (report.code, json.loads(report.out)["status"]) == (3, "UNKNOWN")
    shop.sql("ALTER TABLE api_keys DROP CONSTRAINT api_keys_service_name_key")
    shop.sql("UPDATE api_keys SET service_name = 'Webkassa'")
    assert shop.run("status").code == 3


def test_status_is_read_only_and_waits_for_no_updater(shop: Shop) -> None:
    shop.sql("ALTER DATABASE shop SET default_transaction_read_only = on")
    shop.webkassa.script.append(hang())
    shop.sql("SELECT pg_advisory_lock(1)")
    start = time.monotonic()
    assert shop.run("status").code == 1
    assert time.monotonic() - start < 40


def test_status_with_webkassa_hanging_takes_5_s(shop: Shop) -> None:
    shop.webkassa.probe_script.append(hang())
    start = time.monotonic()
    result = shop.run("status")
    assert time.monotonic() - start < 40
    assert (result.code, "probe unclear" in result.out) == (1, True)


# check -------------------------------------------------------------------------------------------


def test_check_says_what_it_checked_and_changes_nothing(shop: Shop) -> None:
    result = shop.run("check")
    assert result.code == 0
    lines = result.out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *(f"ok    {part}" for part in ("settings", "database", "lock", "write", "webkassa")),
        "WARN  stored key",  # 30 hours old
    ]
    assert "shop.public.api_keys" in result.out
    assert f"127.0.0.1:{shop.webkassa.port}" in result.out
    assert shop.webkassa.authorizations == 0
    assert shop.is_untouched


def test_check_goes_on_after_a_fault_and_names_each(shop: Shop) -> None:
    url = "http://127.0.0.1:9/api/Authorize"
    result = shop.run("check", POSTGRES_PORT="9", WEBKASSA_AUTH_URL=url)
    assert result.code == 75
    assert re.findall("^(ok|WARN|FAIL) ", result.out, re.MULTILINE) == ["ok", "FAIL", "FAIL"]
    assert shop.run("check", WEBKASSA_AUTH_URL=url).code == 69


def test_check_says_that_the_stored_key_is_dead(shop: Shop) -> None:
    shop.webkassa.live = None
    result = shop.run("check")
    assert result.code == 0  # all that an update needs is there
    assert f"is dead. Run again now: {sys.executable} {PROGRAM} update" in result.out


WARNED = {
    "nothing": ("SELECT 1", {}, ""),
    "no key": ("DELETE FROM api_keys WHERE service_name = 'Webkassa'", {}, "no key is stored"),
    "empty key": ("UPDATE api_keys SET api_key = ''", {}, "no key is stored"),
    "no time columns": (
        "ALTER TABLE api_keys DROP updated_at, DROP created_at",
        {},
        "updated_at",
    ),
    "short column": ("ALTER TABLE api_keys ALTER api_key TYPE varchar(63)", {}, "63"),
    "column of 64": ("ALTER TABLE api_keys ALTER api_key TYPE varchar(64)", {}, ""),
    "a look-alike": ("UPDATE api_keys SET service_name = 'webkassa ' WHERE id = 2", {}, "'webkassa '"),
}  # fmt: skip


@pytest.mark.parametrize("case", WARNED)
def test_check_warns_of_what_an_update_gets_along_with(shop: Shop, case: str) -> None:
    statement, env, said = WARNED[case]
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC'")
    shop.sql(statement)
    result = shop.run("check", **env)
    warnings = [line for line in result.out.splitlines() if line.startswith("WARN  ")]
    assert result.code == 0
    assert bool(warnings) == bool(said), result.out
    assert said in " ".join(warnings)
    assert shop.webkassa.authorizations == 0


def test_check_warns_when_the_probe_cannot_tell(shop: Shop) -> None:
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC'")
    shop.webkassa.verdict = lambda token: UNCLEAR
    result = shop.run("check")
    assert result.code == 0
    assert re.search("^WARN  stored key: .*unclear", result.out, re.MULTILINE)


def test_check_warns_of_unknown_names_in_the_settings_file(shop: Shop) -> None:
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC'")
    file = shop.home / "settings"
    file.write_text("WEBKASSA_LOGN=canary-typo\n")
    result = shop.run("check", "--env-file", str(file))
    assert result.code == 0
    assert "WEBKASSA_LOGN" in result.out + result.err
    assert "WEBKASSA_LOGIN" in result.out + result.err  # the nearest of ours
    assert "canary-typo" not in result.out + result.err


# The command line --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["renew"],
        ["--if-needed", "check"],
        ["--if-key", "0123abcd", "check"],
        ["--if-key", "0123abcd", "--if-needed"],
        ["--if-key", "0123"],
        ["--env-file", ""],
        ["--json"],
        ["--env"],
        ["update", "x"],
    ],
)
def test_wrong_usage_is_2(shop: Shop, arguments: list[str]) -> None:
    result = shop.finish(shop.start(*arguments))
    assert result.code == 2
    assert "--help" in result.err
    assert shop.webkassa.calls == []


@pytest.mark.parametrize("arguments", [["status", "--if-needed"], ["--env-file", "", "status"]])
def test_wrong_usage_of_status_is_unknown(shop: Shop, arguments: list[str]) -> None:
    """For a monitor 2 would be CRITICAL."""
    result = shop.finish(shop.start(*arguments))
    assert result.code == 3
    assert "--help" in result.err
    assert shop.webkassa.calls == []


def test_options_may_stand_before_or_after_the_command(shop: Shop) -> None:
    for arguments in (
        ["-v", "update"],
        ["update", "-v"],
        ["--if-needed", "update"],
        ["update", "--if-needed"],
    ):
        assert shop.finish(shop.start(*arguments)).code == 0


def test_help_and_version() -> None:
    for flag in ("--help", "-h", "--version"):
        run = subprocess.run([sys.executable, str(PROGRAM), flag], capture_output=True, text=True)
        assert run.returncode == 0
        assert run.stderr == ""
        assert ("exit codes" in run.stdout) == (flag != "--version")


# The monitor -------------------------------------------------------------------------------------


def test_monitor_is_told_of_success_and_failure(shop: Shop, monitor: Monitor) -> None:
    url = f"{monitor.origin}/canary-uuid?x=1"
    assert shop.run(HEALTHCHECK_URL=url).code == 0
    assert shop.run(HEALTHCHECK_URL=url, POSTGRES_PORT="9").code == 75
    assert shop.run("check", HEALTHCHECK_URL=url).code == 0
    assert shop.run("status", HEALTHCHECK_URL=url).code == 0
    assert monitor.paths == ["/canary-uuid?x=1", "/canary-uuid/fail?x=1"]


@pytest.mark.parametrize("path", ["broken", "hang"])
def test_monitor_never_changes_the_outcome(shop: Shop, monitor: Monitor, path: str) -> None:
    start = time.monotonic()
    result = shop.run(HEALTHCHECK_URL=f"{monitor.origin}/canary-{path}")
    assert time.monotonic() - start < 40
    assert result.code == 0
    assert "canary" not in result.err
    assert shop.run(HEALTHCHECK_URL="http://127.0.0.1:9/canary").code == 0


def test_exit_code_stands_when_nobody_reads_the_output(shop: Shop) -> None:
    process = shop.start("status")
    process.stdout.close()
    assert process.wait(20) == 1
    assert process.stderr.read() == ""


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


def test_names_that_the_terminal_cannot_show_are_escaped(shop: Shop) -> None:
    env = {"PYTHONIOENCODING": "latin-1", "WEBKASSA_SERVICE_NAME": "Касса"}
    assert shop.run("check", **env).code == 0
    assert shop.run("status", **env).code == 2


@pytest.mark.parametrize("time_of_change", ["infinity", "-infinity"])
def test_time_without_end_tells_nothing(shop: Shop, time_of_change: str) -> None:
    shop.sql("UPDATE api_keys SET updated_at = %s", time_of_change)
    result = shop.run("status")
    assert (result.code, result.out[:16]) == (3, "WEBKASSA UNKNOWN")


# What to type next -------------------------------------------------------------------------------


def printed_commands(text: str) -> list[str]:
    """Return the commands that a message tells to run."""
    return re.findall(r"(?:[Rr]un(?: again now)?|later): (.* (?:update|check|status))\b", text)


@pytest.mark.parametrize("with_file", [False, True])
def test_printed_command_works_as_typed(shop: Shop, with_file: bool) -> None:
    """As the program was called: interpreter and settings file included."""
    file = shop.home / "our shop.env"
    file.write_text(f"WEBKASSA_LOGIN={shop.env.pop('WEBKASSA_LOGIN')}\n")
    options = ["--env-file", str(file)] if with_file else []
    env = {} if with_file else {"WEBKASSA_LOGIN": "cashier@example.kz"}
    shop.webkassa.live = None
    for command in ("check", "status"):
        said = shop.run(*options, command, **env).out
        for typed in printed_commands(said) or ["nothing was printed"]:
            assert typed.endswith(" update")
            run = subprocess.run(
                ["bash", "-c", typed], env=shop.env | env, capture_output=True, text=True
            )
            assert run.returncode == 0, (typed, run.stderr)
        assert shop.holds_the_live_key
        shop.webkassa.live = None


def test_printed_command_of_a_server_is_the_servers(shop: Shop) -> None:
    shop.webkassa.live = None
    result = shop.run("status", WEBKASSA_KEY_COMMAND="sudo webkassa-key")
    assert printed_commands(result.out) == ["sudo webkassa-key update"]
