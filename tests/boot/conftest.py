"""The tests of one booted machine are one story and run in the order of their files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import machine as machines
import pytest
from shop_server import Site, new_site
from world import webkassa_simulator
from world.postgres import PASSWORD as DATABASE_PASSWORD

# systemd 252 comes to the alert when retries have ended, 257 on every retry: try "trixie", too
SUITES = os.environ.get("WEBKASSA_BOOT_SUITES", "bookworm").split()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for the mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == machines.HERE:
            item.add_marker(pytest.mark.xdist_group("boot"))  # one worker, in this order


@pytest.fixture(scope="session", params=SUITES)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if reason := machines.missing():
        if os.environ.get("WEBKASSA_REQUIRE_BOOT"):
            pytest.fail(f"the boot test {reason}")
        pytest.skip(f"the boot test {reason}")
    with new_site(request.param) as site:
        yield site


@pytest.fixture(scope="module")
def installed(site: Site) -> None:
    """For a file that is run alone."""
    if not site.installed:
        result = site.install("--env-file", "/root/my.env", "--with-alerts")
        assert result.returncode == 0, result.stdout


@pytest.fixture(autouse=True)
def _silence_about_secrets(site: Site) -> Iterator[None]:
    """Whatever a test did: no secret in the journal, in what systemd shows, or in the alerts."""
    yield
    seen = site.machine.journal() + site.run("systemctl", "show", "*", check=False).stdout
    seen += json.dumps(site.receiver.alerts)
    for secret in (webkassa_simulator.PASSWORD, DATABASE_PASSWORD, *site.webkassa.issued):
        assert secret not in seen
    assert "canary-" not in seen
    assert "A bug of this program" not in seen
