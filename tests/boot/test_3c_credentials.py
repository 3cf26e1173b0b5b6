"""The settings as a credential of systemd's: what the manual says, typed, and the units with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from machine import await_
from shop_server import CONFIG, CURRENT, SETTINGS, SOURCE, UNITS, UPDATE, Site, env_file
from shown import snippet
from world import webkassa_simulator

DROP_IN = f"{UNITS}/webkassa-key-.service.d/50-credentials.conf"
CREDENTIAL = f"{CONFIG}/webkassa.cred"
ASK = 'import socket; s = socket.socket(1); s.connect("/run/webkassa-key/renew.sock"); s.send(b"\\n"); print(s.recv(9).decode())'

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture
def typed(site: Site) -> Iterator[Site]:
    """A server after the manual's block was typed."""
    site.reset()
    done = site.paste("set -e\n" + snippet("run: server credentials"))
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout
    yield site
    site.run("rm", "-f", DROP_IN, CREDENTIAL, "/var/lib/systemd/credential.secret")
    site.machine.write(SETTINGS, env_file(site.settings))
    site.run("systemctl", "daemon-reload")


def read(site: Site, path: str) -> str:
    return (site.machine.root / path[1:]).read_text(encoding="utf-8", errors="replace")


def test_whatever_runs_the_program_has_the_settings_and_nothing_on_the_disk_shows_them(
    typed: Site,
) -> None:
    assert typed.start().returncode == 0
    assert typed.holds_a_new_key
    assert typed.run("webkassa-key", "update").returncode == 0
    assert typed.run("systemctl", "start", "webkassa-key-boot.service").returncode == 0
    assert typed.run("python3", "-c", ASK).stdout.strip() == "0"
    assert typed.webkassa.authorizations == 2
    status = typed.status()
    assert status.returncode == 0, status.stdout
    for path in (SETTINGS, CREDENTIAL, DROP_IN):
        assert webkassa_simulator.PASSWORD not in read(typed, path)
        assert webkassa_simulator.LOGIN not in read(typed, path)


def test_an_upgrade_keeps_them(typed: Site) -> None:
    result = typed.install("--no-run", source=SOURCE)
    assert result.returncode == 0, result.stdout
    assert typed.run("webkassa-key", "check").returncode == 0


def test_they_are_changed_as_written(typed: Site) -> None:
    """systemd-creds refuses to decrypt into another name than the one that is encrypted along."""
    block = snippet("run: server change credentials")
    assert block.count("nano") == 1
    edit = "sed -i '$aWEBKASSA_SERVICE_NAME=Changed'"
    done = typed.paste("set -e\n" + block.replace("nano", edit))
    assert done.returncode == 0, done.stdout
    assert "settings: service Changed" in done.stdout
    assert typed.run("test", "-e", "/root/my.env", check=False).returncode == 1


def test_they_need_not_be_encrypted(typed: Site) -> None:
    """A file of root's alone; the service reads what systemd gives it."""
    typed.machine.write(CREDENTIAL, env_file(typed.settings))
    typed.run("chmod", "600", CREDENTIAL)
    typed.machine.write(
        DROP_IN, read(typed, DROP_IN).replace("LoadCredentialEncrypted=", "LoadCredential=")
    )
    typed.run("systemctl", "daemon-reload")
    assert typed.start().returncode == 0
    assert typed.holds_a_new_key


def test_one_of_another_machine_is_tried_once_and_named(typed: Site) -> None:
    typed.machine.write(CREDENTIAL, "c29tZWJvZHkgZWxzZSdz\n")
    typed.start()
    await_(lambda: typed.state() == "failed")
    assert typed.starts() == 1
    assert "code 243" in typed.status().stdout
    assert typed.webkassa.authorizations == 0
    assert typed.machine.show(UPDATE, "Result") == "exit-code"


def test_no_account_is_added_in_the_place_of_theirs(typed: Site) -> None:
    """The one in the credential would be renewed no more, and all would be OK."""
    other = {"WEBKASSA_LOGIN": "north@example.kz", "WEBKASSA_PASSWORD": "north"}
    typed.machine.write("/root/north.env", env_file(other))
    before = typed.run("ls", CONFIG).stdout
    result = typed.run(f"{CURRENT}/install.sh", "--account", "north", "--env-file",
                       "/root/north.env", check=False)  # fmt: skip
    assert result.returncode == 78, result.stdout
    assert "WEBKASSA_SERVICE_NAME=Webkassa go into main.env" in result.stdout
    assert typed.run("ls", CONFIG).stdout == before
    assert typed.run("webkassa-key", "update").returncode == 0
    assert typed.holds_a_new_key
