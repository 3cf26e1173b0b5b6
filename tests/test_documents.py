"""The README and the example settings say what the program does."""

from __future__ import annotations

import contextlib
import re
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from world.postgres import PASSWORD
from world.shop import CONSUMERS_TABLE, PROGRAM, ROOT, Shop

README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(after: str) -> str:
    """Return the first fenced block after a text of the README."""
    return re.search(r"```\w*\n(.*?)```", README[README.index(after) :], re.DOTALL)[1]


def test_help_is_the_programs_own() -> None:
    helped = subprocess.run(
        [sys.executable, str(PROGRAM), "--help"], capture_output=True, text=True
    )
    assert block("<!-- help -->").strip() == helped.stdout.strip()


def test_every_exit_code_has_its_troubleshooting() -> None:
    for code in (2, 69, 70, 73, 75, 76, 77, 78):
        assert re.search(rf"^\| {code} \|", README, re.MULTILINE)


def test_every_setting_is_listed_with_its_default() -> None:
    example = (ROOT / ".env.example").read_text()
    for name in re.findall(
        r"^#?((?:WEBKASSA|DATABASE|API|HEALTHCHECK)\w+)=", example, re.MULTILINE
    ):
        assert re.search(rf"^\| .*`{name}`", README, re.MULTILINE), name


def test_table_of_the_readme_is_what_consumers_have() -> None:
    listed = re.sub(r"\s+", " ", block("<!-- table -->"))
    for column in re.findall(r"^ +(\w+ [^,)]+(?:\(\d+\))?)", CONSUMERS_TABLE, re.MULTILINE):
        assert column.split()[0] in listed


def test_grants_of_the_readme_suffice(shop: Shop) -> None:
    role = "webkassa_updater"
    shop.sql(f"DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN PASSWORD 'granted-canary'")
    shop.sql("REVOKE ALL ON SCHEMA public FROM public")
    for statement in filter(str.strip, block("<!-- grants -->").split(";")):
        shop.sql(statement)
    env = {"POSTGRES_USER": role, "POSTGRES_PASSWORD": "granted-canary"}
    assert shop.run("check", **env).code == 0
    shop.sql("DELETE FROM api_keys WHERE service_name = 'Webkassa'")
    assert shop.run("update", **env).code == 0
    assert shop.holds_the_live_key
    shop.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


@contextlib.contextmanager
def asked_at_a_socket(shop: Shop) -> Iterator[str]:
    """Serve as the units do: a run of the program for each connection, its exit code the answer."""

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            command = [sys.executable, str(PROGRAM), "update", "--if-key", "-"]
            run = subprocess.run(command, stdin=self.request, env=shop.env, stderr=subprocess.PIPE)
            self.request.sendall(b"%d\n" % run.returncode)

    path = str(shop.home / "renew.sock")
    with socketserver.ThreadingUnixStreamServer(path, Connection) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield path
        server.shutdown()


@pytest.mark.parametrize("example", ["psycopg2", "SQLAlchemy"])
def test_consumer_of_the_readme_gets_through_a_dead_key(shop: Shop, example: str) -> None:
    """The stored key is dead; the example's own code meets code 2, heals and reads afresh."""
    shop.webkassa.live = None
    url = f"postgresql+psycopg2://postgres:@127.0.0.1:{shop.server.port}/shop"
    program = block("<!-- renew sync -->") + block(f"<!-- consumer {example} -->")
    test = f"""
import requests
def create_check(token):
    answer = requests.post({shop.webkassa.origin + "/api/references/RefUnits"!r}, json={{"Token": token}})
    return answer.json()
DATABASE = {url if example == "SQLAlchemy" else url.replace("+psycopg2", "")!r}
{program}
answer = with_key(create_check)
assert answer["Data"], answer
"""
    path = shop.home / "consumer.py"
    with asked_at_a_socket(shop) as socket:
        path.write_text(test.replace("/run/webkassa-key/renew.sock", socket), encoding="utf-8")
        env = shop.env | {"PGPASSWORD": PASSWORD}
        run = subprocess.run([sys.executable, str(path)], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert shop.webkassa.authorizations == 1
    assert shop.holds_the_live_key


def test_run_time_dependencies_are_exactly_three() -> None:
    lines = (ROOT / "requirements.txt").read_text().split()
    assert [re.split("[<>=]", line)[0] for line in lines] == [
        "requests",
        "psycopg2-binary",
        "python-dotenv",
    ]
    assert all(re.search(r">=\S+,<\d+$", line) for line in lines)
