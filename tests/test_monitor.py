"""A monitor is told how it ended; whatever becomes of that is said, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from world.shop import Shop
from world.webkassa_simulator import Handler, Simulator


class Monitor(Simulator):
    """A monitor that answers with the status in its URL."""

    def act(self, handler: Handler, body: object) -> None:
        status = int(handler.path.split("/")[1])
        handler.send(status, b"", {"Location": self.url} if status == 301 else None)

    @property
    def paths(self) -> list[str]:
        return [call.path for call in self.calls]


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    with Monitor() as monitor:
        yield monitor


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


FAULTS = {
    "missing": {"WEBKASSA_LOGIN": ""},
    "two": {"WEBKASSA_LOGIN": "", "WEBKASSA_AUTH_URL": "http://x.example/api/Authorize"},
    "database": {"DATABASE_URL": "nonsense"},
}


@pytest.mark.parametrize("case", FAULTS)
def test_fault_of_the_settings_is_told(shop: Shop, monitor: Monitor, case: str) -> None:
    result = shop.main("update", HEALTHCHECK_URL=f"{monitor.origin}/200/x", **FAULTS[case])
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


def test_monitor_of_the_environment_is_told_of_a_file_that_is_gone(
    shop: Shop, monitor: Monitor
) -> None:
    """Whoever deleted the file did not mean to silence the monitor."""
    url = f"{monitor.origin}/200/x"
    result = shop.main("update", "--env-file", "/nowhere/x.env", HEALTHCHECK_URL=url)
    assert (result.code, monitor.paths) == (78, ["/200/x/fail"])


@pytest.mark.parametrize("command", ["check", "status"])
def test_check_and_status_tell_no_monitor(shop: Shop, monitor: Monitor, command: str) -> None:
    url = f"{monitor.origin}/200/x"
    for env in ({}, {"WEBKASSA_LOGIN": ""}):
        shop.main(command, HEALTHCHECK_URL=url, **env)
    assert "/200/x" not in [path.removesuffix("/fail") for path in monitor.paths]
