"""Make every output that the manuals show anew, by the program itself.

    .venv-dev/bin/python tests/shown.py

In a manual `<!-- shown: NAME -->` stands before a block: what the scene NAME below puts on the
screen. Ports, fingerprints, times and PostgreSQL's version are other ones at every run: they are
replaced by the same ones always, and long lines are broken. Each manual
has them in its language; of the outputs of a server, which tests/boot/test_7_manual.py makes, those
that `IN_BOTH` names, too.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "systemd"))

import server_alert
import server_status
from server import Box
from world import stage, webkassa_simulator
from world.nursery import Process, quick_python
from world.postgres import PASSWORD, Postgres
from world.relay import ConnectProxy
from world.shop import (
    CLEAN_SLATE,
    CONSUMERS_TABLE,
    ROOT,
    connect,
    execute,
    fingerprint,
    make_database,
    quote,
)
from world.tls import Authority
from world.webkassa_simulator import Simulator, answer

PAGES = ("README", *(f"docs/{page}" for page in (
    "first-run", "server", "take-over", "when-it-fails", "consumers", "containers", "accounts",
    "reference", "how-it-works",
)))  # fmt: skip
Manual = tuple[Path, ...]  # all pages of a language
MANUALS: tuple[Manual, ...] = tuple(
    tuple(ROOT / f"{page}{language}.md" for page in PAGES) for language in ("", ".ru")
)
LANGUAGES = ("en", "ru")
BLOCK = re.compile(r"<!-- shown: (.+?) -->\n+```text\n(.*?)```\n", re.DOTALL)


class Vendor(Simulator):
    """Lets more logins in, as if they were one."""

    more_logins = frozenset({webkassa_simulator.LOGIN})

    def authorize(self, handler: Any, body: Any) -> None:
        if body["Login"] in self.more_logins:
            body = body | {"Login": webkassa_simulator.LOGIN}
        super().authorize(handler, body)


class Desk:
    """A folder with the project, as somebody has it who tries it by hand; its settings lead to a
    PostgreSQL and to a simulator that is reached by Webkassa's own names."""

    def __init__(self, server: Postgres, webkassa: Vendor, proxy: str, folder: Path) -> None:
        self.server, self.webkassa, self.proxy, self.folder = server, webkassa, proxy, folder
        for name in (*ROOT.glob("webkassa_key_*.py"), "requirements.txt", ".env.example"):
            shutil.copy(ROOT / name, folder)
        shutil.copytree(ROOT / "locale", folder / "locale")
        self.settings = {
            "WEBKASSA_LOGIN": webkassa_simulator.LOGIN,
            "WEBKASSA_PASSWORD": webkassa_simulator.PASSWORD,
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(server.port),
            "POSTGRES_DB": "shop",
            "POSTGRES_USER": "postgres",
            "POSTGRES_PASSWORD": PASSWORD,
            "HTTPS_PROXY": proxy,
            "REQUESTS_CA_BUNDLE": str(folder / "ca.pem"),
        }
        self.env = {"HOME": str(folder), "PATH": f"{server.bin}:{os.environ['PATH']}"}
        self.env["WEBKASSA_LANG"] = "en"
        self.env |= {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGDATABASE": "shop"}
        self.env |= {"PGUSER": "postgres", "PGPASSWORD": PASSWORD, "PSQLRC": "/dev/null"}
        self.env |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self.sql(CLEAN_SLATE)

    def use_venv(self) -> None:
        (self.folder / ".venv/bin").mkdir(parents=True)
        (self.folder / ".venv/bin/python").symlink_to(quick_python())

    def sql(self, statement: str, *values: Any) -> list[Any]:
        with contextlib.closing(connect(self.server, "shop")) as connection:
            return execute(connection, statement, values)

    def has_a_key(self, hours: float = 5) -> Desk:
        """The table of the web application, and a key in it that works."""
        self.sql(CONSUMERS_TABLE)
        self.sql(
            "INSERT INTO api_keys (service_name, api_key, created_at, updated_at) VALUES"
            " ('Webkassa', %s, '2026-01-01', now() AT TIME ZONE 'UTC' - make_interval(secs => %s))",
            self.webkassa.issue(),
            hours * 3600,
        )
        return self

    def write(self, name: str = ".env", **more: str) -> Desk:
        settings = (self.settings | more).items()
        text = "".join(f"{setting}={quote(value)}\n" for setting, value in settings if value)
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")
        return self

    def shell(self, command: str) -> str:
        """Return what a terminal would show."""
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=self.env, text=True, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip
        return self.watched(done.stdout)

    def program(self, arguments: str) -> str:
        """Return what a terminal would show of the program alone."""
        command = [".venv/bin/python", "webkassa_key_updater.py", *arguments.split()]
        read, write = os.pipe()
        process = Process(command, self.env, cwd=self.folder, terminal=write)
        os.close(write)
        with open(read, encoding="utf-8") as said:
            text = said.read()
        process.communicate(timeout=120)
        return self.watched(text)

    def watched(self, said: str) -> str:
        for secret in (PASSWORD, webkassa_simulator.PASSWORD, *self.webkassa.issued):
            assert secret not in said
        return said


@contextlib.contextmanager
def desk(server: Postgres, name: str = "desk") -> Iterator[Desk]:
    authority = Authority()
    tls = authority.server_context("*.webkassa.kz")
    with (
        tempfile.TemporaryDirectory() as temporary,
        Vendor(tls=tls) as webkassa,
        ConnectProxy(("127.0.0.1", webkassa.port)) as proxy,
    ):
        folder = Path(temporary) / name
        folder.mkdir(parents=True)
        authority.write(folder / "ca.pem")
        yield Desk(server, webkassa, proxy.url, folder)


def read(manual: Manual) -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in manual)


def snippet(name: str, manual: Manual = MANUALS[0]) -> str:
    """Return the block behind a `<!-- NAME -->` of a manual."""
    text = read(manual)
    return re.split(r"```\w+\n", text[text.index(f"<!-- {name} -->") :])[1].split("```")[0]


# Scenes ------------------------------------------------------------------------------------------


def test_system(at: Desk) -> str:
    url = "https://devkkm.webkassa.kz/api/Authorize"
    at.has_a_key().write("test.env", WEBKASSA_AUTH_URL=url, WEBKASSA_SERVICE_NAME="Webkassa-test")
    return "".join(at.program(f"--env-file test.env {command}") for command in ("check", "update"))


def effect(at: Desk) -> str:
    at.has_a_key().program("update")
    return at.program("status")


def in_the_table(at: Desk) -> str:
    at.has_a_key().program("update")
    (at.folder / "query.sql").write_text(snippet("query"), encoding="utf-8")
    return at.shell("psql -X -f query.sql").rstrip() + "\n"


def wrong_password(at: Desk) -> str:
    at.webkassa.password = "changed"
    return at.has_a_key().program("update")


def wrong_settings(at: Desk) -> str:
    at.write(WEBKASSA_LOGIN="", POSTGRES_DATABASE="shop", POSTGRES_DB="", API_KEYS_TABLE='"keys"')
    return at.program("check")


def database_down(at: Desk) -> str:
    said = at.write(POSTGRES_PORT="1").program("update")
    return said.replace("port=1 ", f"port={at.server.port} ")


def missing_right(at: Desk) -> str:
    at.has_a_key()
    at.sql("DROP ROLE IF EXISTS webkassa; CREATE ROLE webkassa LOGIN PASSWORD 'secret'")
    said = at.write(POSTGRES_USER="webkassa", POSTGRES_PASSWORD="secret").program("update")
    at.sql("DROP OWNED BY webkassa; DROP ROLE webkassa")
    return said


def webkassa_fails(at: Desk) -> str:
    at.webkassa.script.append(answer(503, b"", {"Retry-After": "3600"}))
    return at.has_a_key().program("update")


def other_table(at: Desk) -> str:
    at.has_a_key().sql("CREATE SCHEMA shop; ALTER TABLE api_keys SET SCHEMA shop")
    return at.program("update")


def dead_key(at: Desk) -> str:
    at.has_a_key(2).webkassa.issue()  # somebody else has logged in
    return at.program("status")


def many_accounts(at: Desk) -> str:
    at.write(WEBKASSA_LOGIN="", WEBKASSA_PASSWORD="")
    at.settings.clear()  # the base has them
    at.webkassa.more_logins |= {f"{name}@example.kz" for name in ("almaty-1", "almaty-2")}
    for name, password in (("almaty-1", ""), ("almaty-2", ""), ("astana-1", "x")):
        own = {"WEBKASSA_PASSWORD": password or webkassa_simulator.PASSWORD}
        at.write(f"accounts.d/{name}.env", WEBKASSA_LOGIN=f"{name}@example.kz", **own)
    return at.program("--accounts-dir accounts.d --jobs 1 update")


def alert(at: Desk) -> str:
    """The alert of a server after its daily run, which is made here with the program itself."""
    box = Box(at.folder / "server")
    at.has_a_key(2).webkassa.password = "changed"
    at.env |= {"STATE_DIRECTORY": str(box.state), "WEBKASSA_RUN_KIND": "daily"}
    at.env |= {"WEBKASSA_KEY_COMMAND": "sudo webkassa-key", "INVOCATION_ID": "c3" * 16}
    at.program("update")
    report = json.loads(at.program("status --json"))
    box.report(report["status"], report["message"], report["accounts"])
    box.ended(server_status.UPDATE, time.time(), 77, run="c3" * 16)
    box.settings.write_text(f"WEBKASSA_LANG={at.env['WEBKASSA_LANG']}\n", encoding="utf-8")
    with mock.patch.dict(os.environ, PATH=f"{box.bin}:{os.environ['PATH']}"):
        said = server_alert.alarm(server_status.make_report(box))
    text = f"{said.title}\n\n{said.body}\n".replace(str(box.root), "")
    text = text.replace(os.uname().nodename, "shop")
    text = re.sub(r"\b[A-Z]\w\w (2\d{3}-\S+ [\d:]{8}) \S+(?= \()", r"Wed \1 +05", text)
    text = re.sub(r"\b[а-я]{2} (2\d{3}-\S+ [\d:]{8}) \S+(?= \()", r"ср \1 +05", text)
    moments = iter(("2026-11-25 00:12 +05", "2026-11-26 00:10 +05"))  # the refusal, the key's end
    text = re.sub(r"\b2\d{3}-\d\d-\d\d \d\d:\d\d [\w+-]+", lambda _: next(moments), text)
    text = re.sub(r"\d\d:\d\d \w+ \([A-Z].*?\)", "00:10 tomorrow (Thu 2026-11-26 +05)", text)
    return re.sub(r"\d\d:\d\d \w+ \([а-я].*?\)", "00:10 завтра (чт 2026-11-26 +05)", text)


def demo(at: Desk) -> str:
    """The part of the demo that tells most: the second update and what follows, without tables."""
    with stage.settings(quick_python()) as settings:
        said = subprocess.run(
            ["bash", "demo.sh", "--on-stage"], cwd=ROOT, text=True, encoding="utf-8",
            env=os.environ | settings | {"WEBKASSA_LANG": at.env["WEBKASSA_LANG"]},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ).stdout  # fmt: skip
    said = re.sub(r"\n\$ row\n.*?rows?\)\n", "", said, flags=re.DOTALL)
    said = re.sub("\n{3,}", "\n\n", said)
    begin = said.index("\n== ", said.index("\n== ") + 1)  # the second title
    end = said.rindex("$ webkassa_key_updater.py status")
    return said[begin:end].strip() + "\n"


SCENES: dict[str, Callable[[Desk], str]] = {
    "demo": demo,
    "first check": lambda at: at.has_a_key().program("check"),
    "test system": test_system,
    "first update": lambda at: at.has_a_key().program("update"),
    "effect": effect,
    "in the table": in_the_table,
    "dead key": dead_key,
    "wrong settings": wrong_settings,
    "wrong password": wrong_password,
    "database down": database_down,
    "database refuses us": lambda at: at.write(POSTGRES_PASSWORD="wrong").program("update"),
    "missing right": missing_right,
    "other table": other_table,
    "webkassa fails": webkassa_fails,
    "many accounts": many_accounts,
    "alert": alert,
}
IN_BOTH = SCENES.keys() | {"server status"}  # those in each language


def play(name: str, server: Postgres, language: str = "en") -> str:
    """Return what a scene shows, with the same ports, fingerprints and times always."""
    with desk(server) as at:
        at.env["WEBKASSA_LANG"] = language
        at.use_venv()
        at.write()
        said = SCENES[name](at)
        ports = {str(server.port): "5432"}
        return wrapped(masked(said, ports, map(fingerprint, at.webkassa.issued)))


FINGERPRINTS = ("3f8a2c1d", "9b47e05a", "c2d1936f", "71e4b8a0", "e05d7f32")


def masked(said: str, ports: dict[str, str], known: Any = ()) -> str:
    for port, shown in ports.items():
        said = said.replace(port, shown)
    said = re.sub(r"127\.0\.0\.1:(?!5432)\d+", "127.0.0.1:1331", said)
    said = re.sub(r"(?<=\bport=)\d+", "5432", said)
    # Known ones in the order of their logins, else in the order of their sight
    order = [*known] or dict.fromkeys(re.findall(r"\b[0-9a-f]{8}\b(?!-)", said))
    for one, shown in zip(order, itertools.cycle(FINGERPRINTS)):
        said = said.replace(one, shown)
    said = re.sub(r"\b0\.\d (h old|ч\))", r"0.0 \1", said)  # a slow machine
    said = re.sub(r"PostgreSQL \d+\.\d+", "PostgreSQL 18.6", said)
    said = re.sub(r"2\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?", "2026-11-25 00:12:46", said)
    said = re.sub(r"(?<=age=)\d+|(?<=age_seconds )\d+", lambda m: str(int(m[0]) // 60 * 60), said)
    return re.sub(r" +$", "", said, flags=re.MULTILINE)


def wrapped(said: str) -> str:
    """Break long lines, which nobody reads to their ends in a browser."""
    wrap = textwrap.TextWrapper(100, break_long_words=False, break_on_hyphens=False)
    lines = [line if len(line) <= wrap.width else wrap.fill(line) for line in said.splitlines()]
    return "\n".join([*lines, ""])


def shown_in(manual: Manual) -> dict[str, str]:
    return dict(BLOCK.findall(read(manual)))


PICTURES = (ROOT / "docs/demo.svg", ROOT / "docs/demo.ru.svg")  # of each manual
COLOURS = {"== ": "#79c0ff", "$ ": "#ffffff", "ERROR": "#ff7b72", "INFO": "#7ee787"}


def picture(said: str) -> str:
    """Return a terminal that shows this, as SVG."""
    height, rows = 18, list[str]()
    for number, line in enumerate(said.splitlines(), 2):
        colour = next((c for start, c in COLOURS.items() if line.startswith(start)), "#c9d1d9")
        text = html.escape(line, quote=False)
        rows.append(f'<text x="20" y="{number * height}" fill="{colour}">{text}</text>\n')
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {(len(rows) + 2) * height}"
     font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13.5" xml:space="preserve">
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
{"".join(rows)}</svg>
"""


def renew(played: dict[str, str], manuals: tuple[Manual, ...] = MANUALS) -> None:
    """Write these outputs into the manuals, wherever they are shown, and into the pictures."""
    for manual, file in zip(MANUALS, PICTURES, strict=True):
        if "demo" in played and manual in manuals:
            file.write_text(picture(played["demo"]), encoding="utf-8")

    def block(match: re.Match[str]) -> str:
        return f"<!-- shown: {match[1]} -->\n```text\n{played.get(match[1], match[2])}```\n"

    for page in itertools.chain(*manuals):
        if page.exists():
            page.write_text(BLOCK.sub(block, page.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    server = Postgres("fsync=off")
    try:
        make_database(server)
        for manual, language in zip(MANUALS, LANGUAGES, strict=True):
            played = {name: play(name, server, language) for name in SCENES}
            renew(played, (manual,))
            print("".join(f"-- {name}\n{text}\n" for name, text in played.items()))
    finally:
        server.remove()


if __name__ == "__main__":
    main()
