"""A monitor is told how it ended; whatever becomes of that is said, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from world.accounts import Accounts
from world.monitor import Monitor
from world.shop import Shop
from world.waiting import within
from world.webkassa_simulator import answer, errors


def test_monitor_is_told_of_success_and_failure_of_updates_alone(
    shop: Shop, monitor: Monitor
) -> None:
    url = f"{monitor.origin}/canary-uuid?x=1"
    assert shop.run(HEALTHCHECK_URL=url).code == 0
    assert shop.run(HEALTHCHECK_URL=url, POSTGRES_PORT="9").code == 75
    for command in ("check", "status"):
        assert shop.run(command, HEALTHCHECK_URL=url).code == 0
    assert monitor.paths == ["/canary-uuid?x=1", "/canary-uuid/fail?x=1"]


def test_uptime_kuma_is_told_in_its_own_dialect(shop: Shop, monitor: Monitor) -> None:
    """It knows no /fail, and takes whatever has no status for "up"."""
    url = f"{monitor.origin}/api/push/canary-token"
    assert shop.run(HEALTHCHECK_URL=f"{url}?status=up&msg=OK&ping=").code == 0
    assert shop.run(HEALTHCHECK_URL=url, POSTGRES_PORT="9").code == 75
    assert monitor.paths == ["/api/push/canary-token?status=up&msg=OK",
                             "/api/push/canary-token?status=down&msg=exit+code+75"]  # fmt: skip


@pytest.mark.slow
def test_monitor_that_hangs_or_is_gone_never_changes_the_outcome(
    shop: Shop, monitor: Monitor
) -> None:
    with within(30):
        result = shop.run(HEALTHCHECK_URL=f"{monitor.origin}/canary-hang")
    assert (result.code, "canary" in result.err) == (0, False)
    assert shop.run(HEALTHCHECK_URL="http://127.0.0.1:9/canary").code == 0


@pytest.mark.parametrize("status", [301, 400, 401, 404, 410, 429, 500, 503])
@pytest.mark.parametrize("fails", [False, True])
def test_monitor_that_did_not_take_it_is_warned_of(
    shop: Shop, monitor: Monitor, status: int, fails: bool
) -> None:
    url = f"{monitor.origin}/{status}/canary-uuid"
    env = {"POSTGRES_PORT": "9"} if fails else {}
    result = shop.main("update", HEALTHCHECK_URL=url, **env)
    assert result.code == (75 if fails else 0)
    assert monitor.paths == [f"/{status}/canary-uuid" + ("/fail" if fails else "")]
    assert f"{status}" in result.err
    assert "WARNING: " in result.err
    assert "HEALTHCHECK_URL" in result.err
    assert "canary" not in result.err


@pytest.mark.parametrize("status", [200, 201, 204])
def test_monitor_that_took_it_is_not_mentioned(shop: Shop, monitor: Monitor, status: int) -> None:
    result = shop.finish(shop.start(HEALTHCHECK_URL=f"{monitor.origin}/{status}/x"))
    assert (result.code, result.err.count("\n")) == (0, 1)


FAULTS: dict[str, tuple[list[str], dict[str, str]]] = {
    "missing": ([], {"WEBKASSA_LOGIN": ""}),
    "two": ([], {"WEBKASSA_LOGIN": "", "WEBKASSA_AUTH_URL": "http://x.example/api/Authorize"}),
    "database": ([], {"DATABASE_URL": "nonsense"}),
    # Whoever deleted it did not mean to silence the monitor
    "a file that is gone": (["--env-file", "/nowhere/x.env"], {}),
}


@pytest.mark.parametrize("case", FAULTS)
def test_fault_of_the_settings_is_told(shop: Shop, monitor: Monitor, case: str) -> None:
    arguments, env = FAULTS[case]
    result = shop.main("update", *arguments, HEALTHCHECK_URL=f"{monitor.origin}/200/x", **env)
    assert (result.code, monitor.paths) == (78, ["/200/x/fail"])


@pytest.mark.parametrize("line", ["BROKEN", "\ufeffX=1", "WEBKASSA_URL=x", "WEBKASSA_LOGIN='x"])
def test_fault_of_a_file_is_told_where_its_url_could_be_read(
    shop: Shop, monitor: Monitor, tmp_path: Path, line: str
) -> None:
    file = tmp_path / "x.env"
    file.write_text(f"HEALTHCHECK_URL={monitor.origin}/200/x\n{line}\n", encoding="utf-8")
    del shop.env["WEBKASSA_AUTH_URL"]
    result = shop.main("update", "--env-file", str(file))
    assert (result.code, monitor.paths) == (78, ["/200/x/fail"])


@pytest.mark.parametrize("command", ["check", "status"])
def test_check_and_status_of_faulty_settings_tell_no_monitor(
    shop: Shop, monitor: Monitor, command: str
) -> None:
    shop.main(command, HEALTHCHECK_URL=f"{monitor.origin}/200/x", WEBKASSA_LOGIN="")
    assert monitor.paths == []


IDLE = ("update", "--if-needed")  # of a young key that works: nothing to do


@pytest.fixture
def state(shop: Shop) -> Path:
    """The folder of notes that systemd, or the image, gives to all runs."""
    folder = shop.home / "state of systemd"
    folder.mkdir()
    shop.env["STATE_DIRECTORY"] = str(folder)
    return folder


@pytest.mark.parametrize(
    ("failed", "kind"),
    [("daily", "net"), ("daily", "heal"), ("daily", "boot"), ("boot", "consumer"), ("hand", "net")],
)
def test_a_run_with_nothing_to_do_hides_no_failure(
    shop: Shop, state: Path, monitor: Monitor, failed: str, kind: str
) -> None:
    """The password was changed: every hour, till the key died, the monitor was told that all is well."""
    shop.env["HEALTHCHECK_URL"] = f"{monitor.origin}/x"
    assert shop.run(WEBKASSA_RUN_KIND=failed).code == 0
    assert shop.run(*IDLE, WEBKASSA_RUN_KIND=kind).code == 0
    assert monitor.paths == ["/x", "/x"]
    shop.webkassa.script.append(answer(200, errors(1)))
    assert shop.run(WEBKASSA_RUN_KIND=failed).code == 77
    assert shop.run(*IDLE, WEBKASSA_RUN_KIND=kind).code == 0
    assert monitor.paths == ["/x", "/x", "/x/fail"]
    assert shop.run(WEBKASSA_RUN_KIND=failed).code == 0
    assert shop.run(*IDLE, WEBKASSA_RUN_KIND=kind).code == 0
    assert monitor.paths == ["/x", "/x", "/x/fail", "/x", "/x"]


def test_what_is_no_failure_of_the_status_is_none_for_the_monitor(
    shop: Shop, state: Path, monitor: Monitor
) -> None:
    """The database was away for a second, as a consumer asked, or at the hourly look before this one."""
    shop.env["HEALTHCHECK_URL"] = f"{monitor.origin}/x"
    shop.run()
    for kind in ("consumer", "net"):
        assert shop.run(*IDLE, WEBKASSA_RUN_KIND=kind, POSTGRES_PORT="9").code == 75
        assert shop.run(*IDLE, WEBKASSA_RUN_KIND="net").code == 0
    (state / "run-daily.json").write_text("{")
    assert shop.run(*IDLE, WEBKASSA_RUN_KIND="net").code == 0
    assert monitor.paths == ["/x", *["/x/fail", "/x"] * 2, "/x"]


def test_of_many_accounts_a_failure_of_one_is_hidden_no_more(
    shop: Shop, state: Path, monitor: Monitor
) -> None:
    accounts = Accounts(shop, "north", "south")
    shop.env["HEALTHCHECK_URL"] = f"{monitor.origin}/all"
    accounts.write("south", HEALTHCHECK_URL=f"{monitor.origin}/south")
    assert shop.run(WEBKASSA_RUN_KIND="daily").code == 0
    assert sorted(monitor.paths) == ["/all", "/south"]
    accounts.script("south").append(answer(200, errors(1)))
    assert shop.run(WEBKASSA_RUN_KIND="daily").code == 77
    monitor.heard.clear()
    assert shop.run(*IDLE, WEBKASSA_RUN_KIND="net").code == 0
    assert monitor.paths == []
    (accounts.folder / "south.env").unlink()  # its row is somebody else's from now on
    assert shop.run(*IDLE, WEBKASSA_RUN_KIND="net").code == 0
    assert monitor.paths == ["/all"]
