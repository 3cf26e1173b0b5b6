"""Many accounts on one server, added one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from shop_server import (
    BOOT,
    CONFIG,
    CURRENT,
    OFFLINE,
    SETTINGS,
    SOURCE,
    UNITS,
    UPDATE,
    Site,
    env_file,
)
from world import webkassa_simulator
from world.webkassa_simulator import Simulator

pytestmark = pytest.mark.usefixtures("installed")

ACCOUNTS = f"{CONFIG}/accounts.d"
LOGIN = ("WEBKASSA_LOGIN", "WEBKASSA_PASSWORD")
DROP_INS = (
    f"{UNITS}/webkassa-key-.service.d/10-accounts.conf",
    f"{UNITS}/{UPDATE}.d/10-if-needed.conf",
)


@pytest.fixture(scope="module")
def north() -> Iterator[Simulator]:
    """A Webkassa of its own: a simulator knows one login."""
    with Simulator() as webkassa:
        yield webkassa


def add(site: Site, name: str, **settings: str) -> str:
    site.machine.write("/root/account.env", env_file(settings))
    return install(site, "--account", name, "--env-file", "/root/account.env")


def install(site: Site, *arguments: str) -> str:
    result = site.run(f"{CURRENT}/install.sh", *arguments, check=False)
    print(result.stdout)
    return f"{result.stdout}code {result.returncode}\n"


def account(webkassa: Simulator) -> dict[str, str]:
    return {"WEBKASSA_LOGIN": webkassa_simulator.LOGIN, "WEBKASSA_AUTH_URL": webkassa.url,
            "WEBKASSA_PASSWORD": webkassa_simulator.PASSWORD, "WEBKASSA_DEADLINE": "10s"}  # fmt: skip


def rows(site: Site) -> dict[str, str]:
    return dict(site.sql("SELECT service_name, api_key FROM api_keys"))


def base(site: Site) -> str:
    return (site.machine.root / SETTINGS[1:]).read_text()


def test_what_the_check_refuses_does_not_count(site: Site, north: Simulator) -> None:
    site.reset()
    before = base(site)
    wrong = account(site.webkassa) | {"WEBKASSA_LOGIN": webkassa_simulator.LOGIN.upper()}
    said = add(site, "again", **wrong)
    for one, other in (("again", "main"), ("main", "again")):
        assert f"{one}.env: its login is the one of {other}.env, too" in said
    assert "Nothing was changed." in said
    assert "code 78\n" in said
    assert "install.sh --account again --env-file /root/account.env\n" in said
    assert 'main" is the account of' in add(site, "main", **account(north))
    assert base(site) == before
    assert "accounts" not in site.run("ls", "-A", CONFIG).stdout
    assert site.webkassa.authorizations == north.authorizations == 0
    assert site.run("webkassa-key", "check").returncode == 0


def test_the_first_account_moves_the_one_that_is_there(site: Site, north: Simulator) -> None:
    old = site.key
    said = add(site, "north", **account(north))
    assert said.endswith("sudo webkassa-key status\ncode 0\n")
    assert f"The account of {SETTINGS} is now {ACCOUNTS}/main.env" in said
    assert "Accounts: main north" in said
    assert rows(site) == {"Webkassa": old, "Webkassa:north": north.live}
    assert not any(name in base(site) for name in LOGIN)
    assert "POSTGRES_PASSWORD" in base(site)
    modes = site.run(
        "stat",
        "-c",
        "%U:%G %a",
        ACCOUNTS,
        f"{ACCOUNTS}/main.env",
        f"{ACCOUNTS}/north.env",
        SETTINGS,
    )
    assert modes.stdout.splitlines() == [
        f"root:webkassa-key-updater {mode}" for mode in (750, 640, 640, 640)
    ]


def test_an_account_that_is_there_is_not_overwritten(site: Site, north: Simulator) -> None:
    said = add(site, "north", **account(north) | {"WEBKASSA_PASSWORD": "canary-other"})
    assert "There is an account of this name, which stays as it is: north" in said
    assert "code 1\n" in said
    assert "canary-other" not in site.run("cat", f"{ACCOUNTS}/north.env").stdout


def test_the_same_once_more_ends_what_was_cut_short(site: Site, north: Simulator) -> None:
    """As if it had been killed before the drop-ins were placed and the base settings changed."""
    site.run("rm", *DROP_INS)
    site.machine.write(SETTINGS, env_file(site.settings))
    logins = north.authorizations
    assert add(site, "north", **account(north)).endswith("code 0\n")
    assert not any(name in base(site) for name in LOGIN)
    assert site.run("ls", *DROP_INS).returncode == 0
    assert north.authorizations == logins


def test_all_speak_of_all_accounts(site: Site) -> None:
    assert site.start().returncode == 0, site.machine.journal(f"_SYSTEMD_UNIT={UPDATE}")[-2000:]
    assert rows(site)["Webkassa"] == site.webkassa.live
    for ask in (("webkassa-key", "status"), (f"{CURRENT}/check-status.sh",)):
        said = site.run(*ask).stdout
        assert said.startswith("WEBKASSA OK - key: 2 of 2 accounts are well; ")
        assert re.search("^ +OK: main: key [0-9a-f]{8}", said, re.M), said
        assert re.search("^ +OK: north: key [0-9a-f]{8}", said, re.M), said
        assert "no other one found" in said
    print(said)
    report = json.loads(site.run("webkassa-key", "status", "--json").stdout)
    assert len(report["key"]["accounts"]) == 2
    assert "Webkassa:north: " in site.run("webkassa-key", "check").stdout


def test_a_repetition_logs_in_for_those_that_failed_only(site: Site, north: Simulator) -> None:
    site.let_keys_age(24)
    good = site.webkassa.authorizations
    old = rows(site)["Webkassa:north"]
    north.script += [webkassa_simulator.answer(503)] * 200
    site.machine.drop_in(UPDATE, "[Unit]\nStartLimitBurst=2\n[Service]\nRestartSec=2\n")
    site.fail_for_good()
    assert site.starts() == 2
    assert site.webkassa.authorizations == good + 1
    assert rows(site) == {"Webkassa": site.webkassa.live, "Webkassa:north": old}
    status = site.status()
    again = "webkassa-key update --account north; sudo webkassa-key update --if-needed"
    assert f"-> sudo {again}\n" in status.stdout
    assert "-> sudo webkassa-key update\n" not in status.stdout
    print(status.stdout)
    north.script.clear()
    assert site.run("sh", "-ec", again.replace("sudo ", "")).returncode == 0
    assert rows(site)["Webkassa:north"] == north.live
    assert site.webkassa.authorizations == good + 1
    assert site.status().returncode == 0


def units_left(site: Site) -> str:
    """Return what is left of the units and of their drop-ins that are not an administrator's."""
    places = f"{UNITS}/webkassa-key-* {UNITS}/webkassa-key-.service.d/*"
    ours = rf"ls -d {places} 2> /dev/null | grep -v '\.d$'"
    return str(site.run("sh", "-c", ours, check=False).stdout)


def test_uninstall_keeps_the_accounts_and_install_takes_them_up(
    site: Site, north: Simulator
) -> None:
    site.machine.no_drop_in(UPDATE)
    site.run("rmdir", f"{UNITS}/{UPDATE}.d", check=False)
    logins = site.webkassa.authorizations, north.authorizations
    assert f"Kept: {CONFIG}" in site.run(f"{CURRENT}/uninstall.sh").stdout
    assert not units_left(site)
    assert site.run("ls", ACCOUNTS).stdout == "main.env\nnorth.env\n"
    result = site.run(f"{SOURCE}/install.sh", "--no-run", "--with-alerts", **OFFLINE)
    assert "Webkassa:north: " in result.stdout
    assert site.status().stdout.startswith("WEBKASSA OK - key: 2 of 2 accounts are well; ")
    assert (site.webkassa.authorizations, north.authorizations) == logins
    assert site.run("systemctl", "start", BOOT).returncode == 0


def test_one_alert_names_the_accounts_that_failed_and_those_alone(
    site: Site, north: Simulator
) -> None:
    site.send_alerts_to(site.receiver.server_port)
    site.receiver.alerts.clear()
    site.let_keys_age(26)
    north.script.append(webkassa_simulator.answer(200, webkassa_simulator.errors(1)))
    site.fail_for_good()
    assert len(site.receiver.alerts) == 1
    alert = site.receiver.alerts[0]
    print(alert)
    refused = "north: Webkassa refused this login at "
    assert alert["title"].endswith(": WEBKASSA CRITICAL - all 2 accounts can sell for now")
    assert alert["message"].startswith(
        "Can sell for now: 2 of 2 accounts; the promised day of 1 is over."
    )
    assert (
        f"sudo nano {ACCOUNTS}/north.env; then: sudo webkassa-key update --account north; "
        in alert["message"]
    )
    assert f"1 of 2 accounts are well; {refused}" in alert["message"]
    assert f"CRITICAL: {refused}" in alert["message"]
    assert "1 of 2 accounts: north\n" in alert["message"]
    assert "\nnorth: code 77, " in alert["message"]
    assert not re.search(r"main: code", alert["message"])
    assert "--accounts-dir" not in alert["message"]  # the command knows it, and does not take it
    typed, good = "sudo webkassa-key update --account north", site.webkassa.authorizations
    assert f"then run: {typed}\n" in alert["message"]
    assert site.paste(typed).returncode == 0
    assert rows(site)["Webkassa:north"] == north.live
    assert site.webkassa.authorizations == good


def test_a_folder_of_accounts_is_added_whole_or_not_at_all(site: Site, north: Simulator) -> None:
    names, password = ("east", "south", "west"), "a password of theirs"
    mine = {name: {"WEBKASSA_LOGIN": f"{name}@example.kz", "WEBKASSA_PASSWORD": password}
            for name in names}  # fmt: skip
    for name in names:
        north.enroll(f"{name}@example.kz", password)
        site.machine.write(f"/root/new/{name}.env", env_file(account(north) | mine[name]))
    site.machine.write(
        "/root/new/south.env", "WEBKASSA_LOGIN=south@example.kz\nWEBKASSA_PASSWRD=x\n"
    )
    before, logins = rows(site), north.authorizations
    said = install(site, "--accounts", "/root/new")
    assert "WEBKASSA_PASSWRD" in said
    assert "Nothing was changed." in said
    assert said.endswith("code 78\n")
    assert site.run("ls", ACCOUNTS).stdout == "main.env\nnorth.env\n"
    assert (rows(site), north.authorizations) == (before, logins)

    site.machine.write("/root/new/south.env", env_file(account(north) | mine["south"]))
    said = install(site, "--accounts", "/root/new")
    assert said.endswith("sudo webkassa-key status\ncode 0\n")
    assert "Accounts: east main north south west\n" in said
    keys = {f"Webkassa:{name}": north.tokens[f"{name}@example.kz"] for name in names}
    assert rows(site) == before | keys
    assert north.authorizations == logins + len(names)
    assert install(site, "--accounts", "/root/new").endswith("code 0\n")  # nothing is left to do
    assert north.authorizations == logins + len(names)
    north.enroll("other@example.kz", password)
    other = account(north) | mine["west"] | {"WEBKASSA_LOGIN": "other@example.kz"}
    site.machine.write("/root/new/west.env", env_file(other))
    said = install(site, "--accounts", "/root/new")
    assert "There is an account of this name, which stays as it is: west. Nothing was" in said
    assert "other@" not in site.run("cat", f"{ACCOUNTS}/west.env").stdout


def test_machines_are_told_of_all_accounts_and_webkassa_is_left_out_where_it_is_to_be(
    site: Site, north: Simulator
) -> None:
    calls = len(north.calls)
    text = site.run("webkassa-key", "status", "--metrics", "--no-probe").stdout
    assert text.endswith("# EOF\n")
    assert text.count("\nwebkassa_key_status{") == 5
    assert 'webkassa_key_status{account="west",service="Webkassa:west"} 0\n' in text
    report = json.loads(site.run("webkassa-key", "status", "--no-probe", "--json").stdout)
    assert {one["probe"] for one in report["key"]["accounts"]} == {"off"}
    assert len(north.calls) == calls
    said = site.run("webkassa-key", "update", "--if-needed", "--json", "--account", "west").stdout
    assert '"what": "nothing to do"' in said


def test_purge_takes_the_accounts_along(site: Site) -> None:
    site.run(f"{CURRENT}/uninstall.sh", "--purge")
    assert site.run("ls", CONFIG, check=False).returncode != 0
    assert not units_left(site)
