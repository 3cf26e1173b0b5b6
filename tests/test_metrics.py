"""status --metrics: what the parsers of Prometheus's own client make of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import prometheus_client.openmetrics.parser
import prometheus_client.parser
import pytest
from shown import snippet
from world.accounts import Accounts, row
from world.shop import PROGRAM, ROOT, Shop
from world.webkassa_simulator import answer, errors

NAMES = ("status", "age_seconds", "alive", "stored_timestamp_seconds", "login_refused")
PARSERS: tuple[Any, ...] = (prometheus_client.openmetrics.parser, prometheus_client.parser)


def parsed(text: str) -> dict[tuple[str, ...], dict[str, float]]:
    """Return the values of the metrics, by the account's labels, as both parsers read them. (Without
    the newline at the end, node_exporter takes nothing.)"""
    assert text.endswith("\n# EOF\n")
    found = []
    for parser in PARSERS:
        families = [*parser.text_string_to_metric_families(text)]
        assert [family.name for family in families] == [f"webkassa_key_{name}" for name in NAMES]
        assert all(family.type == "gauge" and family.documentation for family in families)
        accounts: dict[tuple[str, ...], dict[str, float]] = {}
        for sample in (sample for family in families for sample in family.samples):
            assert list(sample.labels) in ([], ["service"], ["account"], ["account", "service"])
            values = accounts.setdefault(tuple(sample.labels.values()), {})
            values[sample.name.removeprefix("webkassa_key_")] = sample.value
        found.append(accounts)
    assert found[0] == found[1]
    return found[0]


def metrics(shop: Shop, *arguments: str, **env: str) -> dict[tuple[str, ...], dict[str, float]]:
    result = shop.run("status", "--metrics", *arguments, **env)
    assert result.code == 0, result.err
    return parsed(result.out)


@pytest.mark.parametrize(
    ("age", "probe", "status", "alive"),
    [
        (3600, None, 0, 1),
        (26 * 3600, None, 1, 1),
        (50 * 3600, None, 2, 1),
        (3600, errors(2), 2, 0),
        (3600, errors(-1), 1, None),  # nobody knows
    ],
)
def test_metrics_tell_how_the_key_stands(
    shop: Shop, age: int, probe: object, status: int, alive: int | None
) -> None:
    shop.age(f"{age} seconds")
    if probe is not None:
        shop.webkassa.probe_script.append(answer(200, probe))
    values = metrics(shop)["Webkassa",]
    assert (values["status"], values.get("alive")) == (status, alive)
    assert values["age_seconds"] == pytest.approx(age, abs=60)
    assert values["stored_timestamp_seconds"] == pytest.approx(time.time() - age, abs=60)
    assert values["login_refused"] == 0
    assert shop.webkassa.authorizations == 0


def test_without_a_probe_nobody_knows_whether_the_key_is_alive(shop: Shop) -> None:
    values = metrics(shop, "--no-probe")["Webkassa",]
    assert values.keys() == {*NAMES} - {"alive"}
    assert shop.webkassa.calls == []


def test_a_refused_login_that_is_remembered_is_told(shop: Shop) -> None:
    shop.webkassa.password = "changed"
    assert shop.run("update").code == 77
    assert metrics(shop)["Webkassa",]["login_refused"] == 1
    shop.webkassa.password = shop.env["WEBKASSA_PASSWORD"]
    assert shop.run("update").code == 0
    assert metrics(shop)["Webkassa",]["login_refused"] == 0


def test_what_cannot_be_told_is_left_out(shop: Shop) -> None:
    assert metrics(shop, POSTGRES_PORT="9") == {("Webkassa",): {"status": 3}}
    assert metrics(shop, WEBKASSA_LOGIN="") == {(): {"status": 3}}
    shop.sql("DELETE FROM api_keys")
    assert metrics(shop)["Webkassa",] == {"status": 2, "login_refused": 0}


@pytest.mark.slow
def test_metrics_of_many_are_told_by_account_and_service(shop: Shop) -> None:
    accounts = Accounts(shop, "a", "b", "c", "d")
    accounts.write("b", WEBKASSA_PASSWORD="")
    accounts.script("c").append(answer(200, errors(1)))
    accounts.file("d").unlink()
    assert shop.run("update").code == 78
    found = metrics(shop)
    assert found.keys() == {("a", row("a")), ("b",), ("c", row("c"))}  # d has no file
    assert found["b",] == {"status": 3}
    assert [found[name, row(name)]["login_refused"] for name in "ac"] == [0, 1]
    assert found["a", row("a")]["status"] == 0
    assert metrics(shop, "--account", "a").keys() == {("a", row("a"))}


ODD = 'Касса "№ 1" \\ {x="1"} \\n 🧾'


def test_odd_names_hold(shop: Shop) -> None:
    """Whatever bytes are in the name of a file."""
    accounts = Accounts(shop, "a")
    accounts.write("a", WEBKASSA_SERVICE_NAME=ODD.replace("\\", "\\\\"))
    for name in (b'b "\\\n', b"\xff\xd0"):
        Path(os.fsdecode(os.fsencode(accounts.folder) + b"/" + name + b".env")).touch()
    assert metrics(shop).keys() == {("a", ODD), ('b "\\\n',), ("??",)}


@pytest.mark.slow
def test_metrics_are_utf_8_whatever_the_terminals_encoding_is() -> None:
    report = json.dumps([{"service": ODD, "status": "OK"}])
    lines = "import json, sys, webkassa_key_updater as u; u.load_module('metrics').print_metrics(json.loads(sys.argv[1]))"
    locale = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-c", lines, report]
    said = subprocess.check_output(command, env=locale, cwd=ROOT)
    assert parsed(said.decode()) == {(ODD,): {"status": 0}}


@pytest.mark.slow
@pytest.mark.parametrize("has_folder", [True, False])
def test_text_that_could_not_be_printed_is_no_success(shop: Shop, has_folder: bool) -> None:
    if has_folder:
        Accounts(shop, "a")
    command = [sys.executable, str(PROGRAM), "status", "--metrics", *shop.options]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, env=shop.env, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (3, "")


def test_metrics_of_no_account_are_none(shop: Shop) -> None:
    accounts = Accounts(shop, "a")
    accounts.file("a").unlink()
    assert metrics(shop) == {(): {"status": 3}}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status", "--metrics", "--json"], 3),
        (["update", "--metrics"], 2),
        (["check", "--metrics"], 2),
    ],
)
def test_metrics_go_with_status_alone(shop: Shop, arguments: list[str], code: int) -> None:
    result = shop.finish(shop.start(*arguments))
    assert (result.code, result.out, shop.webkassa.calls) == (code, "", [])
    assert "--metrics" in result.err


def test_the_one_file_alone_says_what_metrics_need(shop: Shop) -> None:
    shop.program = [shutil.copy(PROGRAM, shop.home)]
    result = shop.run("status", "--metrics")
    assert (result.code, result.out) == (3, "")
    assert f"{shop.home}/webkassa_key_metrics.py is missing; --metrics" in result.err


# The recipes of the manual ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_for_node_exporter_is_renamed_when_it_is_whole(shop: Shop) -> None:
    line = snippet("textfile").strip()
    folder, bin = shop.home / "textfile", shop.home / "bin"
    for path in (folder, bin):
        path.mkdir()
    script = line.removeprefix("*/5 * * * * root ").replace(
        "/var/lib/prometheus/node-exporter", str(folder)
    )
    assert str(folder) in script

    def metrics_by(command: str) -> dict[tuple[str, ...], dict[str, float]]:
        (bin / "webkassa-key").write_text(f"#!/bin/sh\n{command}\n")
        (bin / "webkassa-key").chmod(0o755)
        env = shop.env | {"PATH": f"{bin}:{os.environ['PATH']}"}
        subprocess.run(["sh", "-c", script], env=env)
        return parsed((folder / "webkassa.prom").read_text(encoding="utf-8"))

    good = metrics_by(f'exec {sys.executable} {PROGRAM} "$@"')
    assert good.keys() == {("Webkassa",)}
    assert [path.name for path in folder.iterdir()] == ["webkassa.prom"]
    assert metrics_by("echo half; exit 3") == good


def find(data: Any, path: str) -> Any:
    """Return what a JSONPath of Zabbix finds, as far as the manual's have steps of these kinds."""
    steps = re.compile(r"\.(first)\(\)|\.(\w+)|\[\?\(@\.(\w+) == '([^']*)'\)\]")
    assert steps.sub("", path) == "$"
    for first, name, key, value in steps.findall(path):
        if first:
            data = data[0]
        elif key:
            data = [one for one in data if one.get(key) == value]
        else:
            data = [one[name] for one in data] if isinstance(data, list) else data[name]
    return data


@pytest.mark.parametrize("names", [(), ("a", "b")])
def test_zabbix_finds_the_accounts_as_written(shop: Shop, names: tuple[str, ...]) -> None:
    """In the report of `sudo webkassa-key status --json`, of which the program's own is a part. With
    many accounts the row of a single one is there, too, and nobody's."""
    if names:
        Accounts(shop, *names)
    rows = [row(name) for name in names] or ["Webkassa"]
    assert snippet("zabbix").endswith("sudo webkassa-key status --json\n")
    page = (ROOT / "docs/server.md").read_text(encoding="utf-8")
    whole, rule, service, *prototypes = re.findall(r"`(\$[^`]+)`", page)
    report = {"status": "CRITICAL", "key": json.loads(shop.run("status", "--json").out)}
    assert find(report, whole) == "CRITICAL"
    found = find(report, rule)
    assert {find(one, service) for one in found} == {"Webkassa", *rows}
    for name in rows:
        status, age = (find(report, path.replace("{#SERVICE}", name)) for path in prototypes)
        assert (status, 30 * 3600 <= age < 30 * 3600 + 60) == ("WARNING", True)
