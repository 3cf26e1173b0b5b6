"""Consumers ask for a new key at the socket, by the manual's own recipes."""

from __future__ import annotations

import re
import time

import pytest
from machine import await_
from shop_server import SOURCE, UNITS, Site
from shown import snippet
from world.webkassa_simulator import slow

pytestmark = pytest.mark.usefixtures("installed")

ASK_AT_ONCE = {
    "sync": """
import concurrent.futures, sys
with concurrent.futures.ThreadPoolExecutor(20) as pool:
    print(*pool.map(renew, [open("/srv/shop/key").read()] * int(sys.argv[1])))
""",
    "asyncio": """
import sys
async def main():
    print(*await asyncio.gather(*[renew(open("/srv/shop/key").read()) for _ in range(int(sys.argv[1]))]))
asyncio.run(main())
""",
}


@pytest.fixture(scope="module", autouse=True)
def _consumer(site: Site, installed: None) -> None:
    for kind, rest in ASK_AT_ONCE.items():
        site.machine.write(f"/srv/shop/ask_{kind}.py", snippet(f"renew {kind}") + rest)
    site.run("useradd", "--system", "shop")
    site.run("useradd", "--system", "stranger")


def ask(site: Site, key: str, times: int = 1, kind: str = "sync", user: str = "shop") -> str:
    site.machine.write("/srv/shop/key", key)  # not in an argument: the journal may show those
    command = ("python3", f"/srv/shop/ask_{kind}.py", str(times))
    return str(site.run("runuser", "-u", user, "--", *command, check=False).stdout).strip()


def die(site: Site, age: float = 2) -> str:
    """Let the key in the row be dead, and so many hours old; return it."""
    key = site.key_of_age(age)
    site.webkassa.issue()
    site.webkassa.calls.clear()
    return key


def test_the_group_is_empty_at_first_and_outside_of_it_nobody_is_heard(site: Site) -> None:
    site.reset()
    assert site.run("getent", "group", "webkassa-key-clients").stdout.strip().endswith(":")
    for user in ("shop", "stranger"):
        assert "PermissionError" in ask(site, die(site), user=user)
    assert site.webkassa.calls == []
    site.run("usermod", "-aG", "webkassa-key-clients", "shop")
    assert "root, shop" in site.status().stdout


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_twenty_at_once_make_one_login(site: Site, kind: str) -> None:
    site.reset()
    assert ask(site, die(site), 20, kind) == " ".join(["0"] * 20)
    assert site.webkassa.authorizations == 1
    assert site.holds_a_new_key
    log = site.machine.journal("SYSLOG_IDENTIFIER=webkassa-key-updater", "--lines=30")
    assert "Stored the new key" in log


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_a_refused_login_is_remembered(site: Site, kind: str) -> None:
    site.reset(WEBKASSA_PASSWORD="canary-wrong")
    key = die(site)
    assert ask(site, key, 20, kind) == " ".join(["77"] * 20)
    assert ask(site, key) == "77"
    assert site.webkassa.authorizations == 1
    assert site.key == key


def test_a_consumer_knows_more_than_the_probe(site: Site) -> None:
    """A directory may accept a dead key; the one that the row holds no more needs no login."""
    site.reset()
    key = site.key_of_age(2)  # the probe calls it alive
    assert ask(site, "another key") == "0"
    assert site.webkassa.authorizations == 0
    assert ask(site, key) == "0"
    assert site.webkassa.authorizations == 1
    assert site.holds_a_new_key
    assert ask(site, site.key) == "0"  # younger than a minute
    assert site.webkassa.authorizations == 1


def test_a_service_that_reads_the_key_once_is_started_anew_by_the_manuals_units(site: Site) -> None:
    """Only when a key was renewed."""
    site.reset()
    assert site.start().returncode == 0  # the file is there
    service = "[Service]\nExecStart=/usr/bin/sleep infinity\n"
    site.machine.write("/etc/systemd/system/shop.service", service)
    assert site.run("systemctl", "daemon-reload").returncode == 0
    assert site.run("systemctl", "start", "shop.service").returncode == 0
    done = site.paste("set -e\n" + snippet("run: server restart"))
    assert done.returncode == 0, done.stdout
    before = site.machine.show("shop.service", "MainPID")
    for command in ("check", "status"):
        site.run("webkassa-key", command, check=False)
    assert site.run("webkassa-key", "update", "--if-needed").returncode == 0
    assert site.machine.show("shop.service", "MainPID") == before
    assert site.run("webkassa-key", "update").returncode == 0
    await_(lambda: site.machine.show("shop.service", "MainPID") not in (before, "0"))
    site.run("systemctl", "disable", "--now", "shop-new-key.path")
    site.run("systemctl", "stop", "shop.service")
    site.run("rm", *(f"/etc/systemd/system/{unit}" for unit in
                     ("shop-new-key.path", "shop-new-key.service", "shop.service")))  # fmt: skip
    site.run("systemctl", "daemon-reload")


def test_a_killed_run_is_answered_with_a_word(site: Site) -> None:
    site.reset()
    site.webkassa.script.append(slow(10))
    site.machine.write("/srv/shop/key", die(site))
    process = site.machine.start_process("runuser", "-u", "shop", "--", "python3",
                                         "/srv/shop/ask_sync.py", "1")  # fmt: skip
    await_(lambda: site.webkassa.authorizations == 1)
    site.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "webkassa-key-renew@*")
    assert process.communicate()[0].strip() == "KILL"


def test_drop_ins_for_all_units_reach_it(site: Site) -> None:
    site.reset()
    path = f"{UNITS}/webkassa-key-.service.d/50-local.conf"
    site.machine.write(path, "[Service]\nEnvironment=WEBKASSA_AUTH_URL=ftp://nowhere\n")
    site.run("systemctl", "daemon-reload")
    assert ask(site, die(site)) == "78"
    (site.machine.root / path[1:]).unlink()
    site.run("systemctl", "daemon-reload")


def container(site: Site, group: str) -> list[str]:
    """A command's beginning that has a root file system of its own, and of ours the folder alone."""
    mounts = snippet("renew container")
    (folder,) = re.findall(r'volumes: \["(\S+):\S+"\]', mounts)
    return ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "-pTemporaryFileSystem=/:ro",
            "-pBindReadOnlyPaths=/usr /lib /lib64 /bin /srv/shop", f"-pBindPaths={folder}",
            "-pMountAPIVFS=yes", "setpriv", "--reuid=4711", "--regid=4711", f"--groups={group}"]  # fmt: skip


def test_a_container_needs_the_folder_and_the_groups_number(site: Site) -> None:
    site.reset()
    number = site.run("getent", "group", "webkassa-key-clients").stdout.split(":")[2]
    assert re.search(r'group_add: \["\d+"\]', snippet("renew container"))
    result = site.run(*container(site, number), "ls", "/", "/run", check=False)
    assert "opt" not in result.stdout
    assert "etc" not in result.stdout
    site.machine.write("/srv/shop/key", die(site))
    command = ("python3", "/srv/shop/ask_sync.py", "20")
    assert "PermissionError" in site.run(*container(site, "4711"), *command, check=False).stdout
    result = site.run(*container(site, number), *command, check=False)
    assert result.stdout.split() == ["0"] * 20
    assert site.webkassa.authorizations == 1


def test_the_folder_outlives_an_upgrade(site: Site) -> None:
    """A container that was started before asks after it."""
    site.reset()
    number = site.run("getent", "group", "webkassa-key-clients").stdout.split(":")[2]
    script = f"""
import os, time
while not os.path.exists("/srv/shop/go"): time.sleep(0.1)
{snippet("renew sync")}
print(renew("dead"))
"""
    site.machine.write("/srv/shop/later.py", script)
    process = site.machine.start_process(*container(site, number), "python3", "/srv/shop/later.py")
    site.run(
        "sh", "-c", f"sed -i 's/^MaxConnections=.*/MaxConnections=31/' {SOURCE}/systemd/*.socket"
    )
    assert site.install().returncode == 0
    assert site.machine.show("webkassa-key-renew.socket", "MaxConnections") == "31"
    site.machine.write("/srv/shop/go", "")
    said, _ = process.communicate()
    assert said.strip() == "0"  # the row holds another key


def test_after_a_flood_the_next_client_is_served(site: Site) -> None:
    site.reset()
    flood = """
import socket, time

end, count = time.monotonic() + 4, 0
while time.monotonic() < end:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect("/run/webkassa-key/renew.sock")
            count += 1
        except OSError:
            pass
print(count)
"""
    site.machine.write("/srv/shop/flood.py", flood)
    count = int(site.run("runuser", "-u", "shop", "--", "python3", "/srv/shop/flood.py").stdout)
    assert count > 1000
    began = time.monotonic()
    assert ask(site, die(site)) == "0"
    print(f"{count} connects, then served after {time.monotonic() - began:.1f} s")
    assert site.machine.show("webkassa-key-renew.socket", "ActiveState") == "active"
    assert site.webkassa.authorizations == 1
