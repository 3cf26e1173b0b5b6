"""The manuals and the example settings say what the program does, and what is typed in them works."""

from __future__ import annotations

import contextlib
import csv
import functools
import importlib.metadata
import itertools
import os
import re
import shutil
import socketserver
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import shown
import translations
from shown import BLOCK, MANUALS, SCENES, Desk, snippet
from world import webkassa_simulator
from world.nursery import quick_python
from world.postgres import PASSWORD, Postgres
from world.scripts import quick_python3
from world.serving import serving
from world.shop import CONSUMERS_TABLE, PROGRAM, ROOT, Shop

import webkassa_key_updater

ENGLISH, RUSSIAN = map(shown.read, MANUALS)
BOTH = pytest.mark.parametrize("text", [ENGLISH, RUSSIAN], ids=["English", "Russian"])
PHP = shutil.which("php") or ""
FAILS = tuple(ROOT / f"docs/when-it-fails{language}.md" for language in ("", ".ru"))
SAID = {message.id: message.string for message in translations.read_catalogue() if message.id}
BY_BOOT = {"server install", "server status", "server others", "server take over"}


# The outputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param("demo", marks=pytest.mark.slow), *sorted(SCENES.keys() - {"demo"})]
)
@pytest.mark.parametrize("number", [0, 1], ids=shown.LANGUAGES)
def test_output_is_what_the_program_says_now(server: Postgres, name: str, number: int) -> None:
    """Stale? .venv-dev/bin/python tests/shown.py makes them all anew, in both manuals."""
    if name in (there := shown.shown_in(MANUALS[number])):
        assert there[name] == shown.play(name, server, shown.LANGUAGES[number])


@pytest.mark.parametrize("number", [0, 1], ids=shown.LANGUAGES)
def test_picture_shows_what_the_demo_says(number: int) -> None:
    said = shown.shown_in(MANUALS[number])["demo"]
    assert shown.PICTURES[number].read_text(encoding="utf-8") == shown.picture(said)


@BOTH
def test_every_output_has_its_scene(text: str) -> None:
    names = [match[1] for match in BLOCK.finditer(text)]
    assert len(names) == len(set(names))
    assert text.count("<!-- shown: ") == len(names)
    assert set(names) <= SCENES.keys() | BY_BOOT


@BOTH
def test_what_stands_twice_is_the_same(text: str) -> None:
    pages = re.findall(r"^<!-- ([^\n]+) -->\n(```\w+\n.*?^```)$", text, re.DOTALL | re.MULTILINE)
    assert text.count("<!-- ") == len(pages)
    assert len({*pages}) == len(dict(pages))


@BOTH
def test_figure_of_the_first_screen_is_true(text: str) -> None:
    ways = len(webkassa_simulator.NAMED) + len(webkassa_simulator.NUMBERED)
    assert ways >= int(re.search(r"(\d+) (?:ways|способами)", text)[1])


# The two languages -------------------------------------------------------------------------------


def headings(text: str) -> list[str]:
    return re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)


def codes(text: str) -> list[str]:
    return re.findall(r"^\| (\d+) \|", text, re.MULTILINE)


def rows_of_words(page: Path) -> list[list[str]]:
    """Return the first cells of each table in a page that says what the program's words mean."""
    tables = re.findall(r"^\| ---.*\n((?:\| .*\n)+)", page.read_text("utf-8"), re.MULTILINE)
    return [[row.split("|")[1] for row in table.splitlines()] for table in tables]


def phrases(page: Path) -> list[str]:
    """Return the program's own words there, in their order."""
    rows = itertools.chain(*rows_of_words(page))
    return [word for row in rows for word in re.findall("`(.+?)`", row)]


def blocks(text: str) -> list[str]:
    """Return all blocks that are typed, run or read by a machine, with the markers before them; of
    those that a scene shows in each language, the markers."""
    text = BLOCK.sub(lambda m: f"```text\n{m[1]}\n```" if m[1] in shown.IN_BOTH else m[0], text)
    text = text.replace(".env.example.ru", ".env.example")
    found = re.findall(r"(?:^<!-- [^\n]+ -->\n)?^```\w+\n.*?^```$", text, re.DOTALL | re.MULTILINE)
    return [block for block in found if "```mermaid" not in block]


def names(text: str) -> set[str]:
    """Return all that stands in backticks outside of blocks."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return set(re.findall(r"`([^`]+)`", re.sub(r"\s+", " ", prose)))


def test_program_that_reads_the_key_once_is_ended_when_it_was_renewed(
    shop: Shop, tmp_path: Path
) -> None:
    """The manual's script for a container, with a program that would go on for ever."""
    assert shop.main("update").code == 0
    (renewed,) = shop.home.rglob("renewed-*")
    os.utime(renewed, (1, 1))
    script = tmp_path / "script"
    script.write_text(snippet("restart container").replace("/webkassa-key", str(renewed.parent)))
    program = ["sh", "-c", "echo started; exec sleep 1000"]
    with subprocess.Popen(["sh", script, *program], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stdout.readline() == "started\n"
        for command in ("check", "status"):
            shop.main(command)
        assert shop.main("update", "--if-needed").code == 0
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(3)
        assert shop.main("update").code == 0
        running.wait(30)


def test_both_have_the_same_sections_codes_and_blocks() -> None:
    assert headings(ENGLISH) == headings(RUSSIAN)
    assert codes(ENGLISH) == codes(RUSSIAN)
    assert phrases(FAILS[0]) == phrases(FAILS[1])
    assert blocks(ENGLISH) == blocks(RUSSIAN)
    assert ENGLISH.count("```mermaid") == RUSSIAN.count("```mermaid")


def test_both_name_the_same_settings_commands_and_places() -> None:
    for english, russian in zip(*MANUALS, strict=True):
        assert names(shown.read((english,))) == names(shown.read((russian,)))


def test_each_page_links_to_itself_in_the_other_language_at_its_top() -> None:
    for english, russian in zip(*MANUALS, strict=True):
        assert f"({russian.name})" in english.read_text(encoding="utf-8")[:120]
        assert f"({english.name})" in russian.read_text(encoding="utf-8")[:120]


def test_every_page_is_one_of_the_manual_and_linked_from_its_first() -> None:
    for first, *others in MANUALS:
        text = first.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 250
        assert all(f"({page.relative_to(ROOT)})" in text for page in others)
        assert all(f"(../{first.name})" in page.read_text(encoding="utf-8") for page in others)
    pages = {*itertools.chain(*(manual[1:] for manual in MANUALS))}
    assert {*(ROOT / "docs").iterdir()} == pages | {*shown.PICTURES}


def anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*itertools.chain(*MANUALS)], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        if target == "../../issues":  # of this repository at GitHub, whatever its address
            continue
        if target.startswith("../../actions/"):
            target = target.replace("../../actions", ".github").removesuffix("/badge.svg")
        file, _, anchor = target.partition("#")
        to = page.parent / file if file else page
        assert to.exists(), target
        assert not anchor or anchor in anchors(to), target


# What they say of the program ----------------------------------------------------------------------


@functools.cache
def helped(*command: str) -> str:
    run = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
    return run.stdout


@BOTH
def test_every_option_of_the_help_is_there(text: str) -> None:
    for command in ([sys.executable, str(PROGRAM)], ["./install.sh"], ["./uninstall.sh"]):
        for option in re.findall(r"(?<![\w-])--[a-z-]+", helped(*command)):
            assert option in text


@BOTH
def test_exit_codes_are_those_of_the_help(text: str) -> None:
    listed = re.findall(r"^ +(\d+)  ", helped(sys.executable, str(PROGRAM)), re.MULTILINE)
    assert codes(text) == listed


def test_words_to_search_for_are_the_programs_own() -> None:
    files = [ROOT.glob(kind) for kind in ("*.py", "*.sh", "systemd/*.sh", "systemd/*.py")]
    source = "".join(file.read_text(encoding="utf-8") for file in itertools.chain(*files))
    source = re.sub(r'"\s+f?"', "", source)
    for phrase in phrases(FAILS[0]):
        assert phrase in source, phrase


def test_words_to_search_for_in_russian_are_the_programs_own() -> None:
    """What stands beside English words is in the translation of a sentence that has one of them."""
    rows = [*itertools.chain(*rows_of_words(FAILS[1]))]
    assert len(rows) > 90
    for row in rows:
        words = re.findall("`(.+?)`", row)
        texts = [SAID[text] for text in SAID if any(word in text for word in words)]
        for phrase in re.findall("«(.+?)»", row):
            assert any(phrase in text for text in [*texts, "проверка: жив"]), phrase


NO_FAILURE = re.compile(
    r"^\W*(\{[^}]*\}\W*)+$|^[\w-]+$|^\{?\w*\}?:? ?codes? \{|^\{moment\}"  # frames, and single words
    # Advice: it has the command
    r"|`(check|update|status)`$|^(Set|Ask again|Delete|Does something) |\{grants\}$|^systemctl cat"
    r"|its file \{why\}$|^put in the right|^\{command\}|as it was\. \{advice\}$"
    # What goes on, and good news
    r"|^(Nothing to do|nothing to do|Stored the new key \{key\} from|Rehearsing|Not stored yet|Waiting for|Ctrl-C|It ends as)"
    r"|^(lock: |write: |settings: |database: |stored key: |Probe: )|^\{service\}: (waiting|made the missing)"
    r"|Trying again after|^\{name\}: \{host\} answers$|^(good|none so far|at work|enabled, active|may ask)"
    r"|^no other one found in|^version \{version\}, \{python\}$|^[Tt]he shop can sell|^(all \{all\}|Can sell)"
    r"|^(There is nothing|What |works again|The key is renewed|This is a test|The alert was sent|Last runs)"
    r"|^(If no other login|It is tried again)|accounts(: done\.?)?$"
    # Facts that stand in other sentences: who, when, where, how the key is, how a run began
    r"|^the (lock held|answer of|next try|monitor|default)|^at the default|^(runs|starts) |^\w+ run$"
    r"|^(by|after a|while|asked by) |^key \{key\}(; the probe|, its row)|Stored is the key|h old$"
    r"|^dead, but|^\{clock\}|^(and )?\{\w+\} (and \{more\} )?more|^\{account\}: refused$"
)  # fmt: skip


def test_every_failure_is_found_by_its_words_in_both_languages() -> None:
    """A row of the page has words of the message, and beside them words of its translation."""
    rows = [(re.findall("`(.+?)`", row), re.findall("«(.+?)»", row))
            for table in rows_of_words(FAILS[1]) for row in table
            if not re.match(" .?(Building|испытана)", table[0])]  # fmt: skip
    assert len(rows) > 80
    missing = [text for text, translation in SAID.items() if not NO_FAILURE.search(text)
               and not any(any(word in text for word in english) and any(word in translation for word in russian or english)
                           for english, russian in rows)]  # fmt: skip
    assert missing == []


@BOTH
def test_every_setting_is_listed_with_its_default(text: str) -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    own = r"^#?((?:WEBKASSA|POSTGRES|DATABASE|API|HEALTHCHECK)\w+)=(.*)$"
    for name, default in re.findall(own, example, re.MULTILINE):
        row = re.search(rf"^\| [^|]*`{name}`.*", text, re.MULTILINE)
        assert row, name
        if name.startswith("WEBKASSA_") and re.search(r"^\d|Authorize$", default):
            assert f"`{default}`" in row[0]


def test_table_of_the_manual_is_what_consumers_have() -> None:
    listed = re.sub(r"\s+", " ", snippet("table"))
    for column in re.findall(r"^ +(\w+ [^,)]+(?:\(\d+\))?)", CONSUMERS_TABLE, re.MULTILINE):
        assert column.split()[0] in listed


def test_table_of_the_manual_is_the_one_that_is_made(shop: Shop) -> None:
    columns = """SELECT column_name, data_type, character_maximum_length, is_nullable, column_default
                 FROM information_schema.columns WHERE table_name = 'api_keys' ORDER BY 1"""
    shop.sql("DROP TABLE api_keys")
    assert shop.main().code == 0
    made = shop.sql(columns)
    shop.sql("DROP TABLE api_keys")
    shop.sql(snippet("table"))
    assert shop.sql(columns) == made


def test_grants_of_the_manual_suffice(shop: Shop) -> None:
    shop.sql("REVOKE ALL ON SCHEMA public FROM public")
    with shop.role("webkassa_updater", password="choose-one") as role:
        shop.sql(f"DROP ROLE {role}")
        for statement in filter(str.strip, snippet("grants").split(";")):
            shop.sql(statement)
        assert shop.run("check").code == 0
        shop.sql("DELETE FROM api_keys WHERE service_name = 'Webkassa'")
        shop.renew()


# What a person types, in a folder with a name as people give them --------------------------------


@pytest.fixture
def desk(server: Postgres) -> Iterator[Desk]:
    with shown.desk(server, "Касса № 1/мой webkassa") as desk:
        yield desk


def typed(desk: Desk, name: str, nano: str = "", code: int = 0) -> str:
    """Run a block of commands; `nano` is what the person writes into the file."""
    editor = desk.folder / "bin" / "nano"
    editor.parent.mkdir(exist_ok=True)
    (desk.folder / "typed").write_text(nano, encoding="utf-8")
    editor.write_text(f'#!/bin/sh\ncat "{desk.folder}/typed" >"$1"\n', encoding="utf-8")
    editor.chmod(0o755)
    path = f"{editor.parent}:{desk.env['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", snippet(f"run: {name}")], cwd=desk.folder, text=True, encoding="utf-8",
        env=desk.env | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


def pack(name: str, folder: Path) -> None:
    """Make wheels of an installed package and of what it needs."""
    package = importlib.metadata.distribution(name)
    tag = re.search("^Tag: (.+)", package.read_text("WHEEL"), re.MULTILINE)[1]
    stem = re.sub("[^A-Za-z0-9.]+", "_", package.name)
    with zipfile.ZipFile(folder / f"{stem}-{package.version}-{tag}.whl", "w") as wheel:
        for file in package.files:
            if ".." not in file.parts and file.suffix != ".pyc":
                wheel.write(file.locate(), file)
    for line in package.requires or ():
        if "extra ==" not in line:
            pack(re.match(r"[\w.-]+", line)[0], folder)


@pytest.mark.slow
def test_first_run_goes_as_written(desk: Desk, tmp_path: Path) -> None:
    """Line by line, with a virtual environment of its own. pip gets what is installed here: of
    another day, the certificate of a package index is not valid."""
    for package in ("requests", "psycopg2-binary", "python-dotenv"):
        pack(package, tmp_path)
    quick_python3(desk.folder / "bin")
    desk.env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    desk.has_a_key()
    key = desk.webkassa.live
    desk.write("settings")
    settings = (desk.folder / "settings").read_text(encoding="utf-8")
    url = "https://devkkm.webkassa.kz/api/Authorize"
    more = f"\nWEBKASSA_AUTH_URL={url}\nWEBKASSA_SERVICE_NAME=Webkassa-test\n"
    assert snippet("run: desk test system").count("nano") == 1
    for wish in more.split():
        assert f"`{wish}`" in ENGLISH

    typed(desk, "desk prepare", settings)
    assert (desk.folder / ".env").stat().st_mode & 0o777 == 0o600
    assert "FAIL" not in typed(desk, "desk check")
    assert desk.webkassa.authorizations == 0
    typed(desk, "desk test system", settings + more)
    row = "SELECT api_key FROM api_keys WHERE service_name = 'Webkassa'"
    assert desk.sql(row) == [(key,)]  # another system's login, another row
    typed(desk, "desk update")
    assert desk.sql(row) == [(desk.webkassa.live,)]
    assert "OK" in typed(desk, "desk status")
    desk.sql(snippet("forget the test"))
    assert desk.sql("SELECT service_name FROM api_keys") == [("Webkassa",)]


@pytest.mark.slow
def test_accounts_go_as_written(desk: Desk) -> None:
    desk.use_venv()
    own = {name: desk.settings.pop(name) for name in ("WEBKASSA_LOGIN", "WEBKASSA_PASSWORD")}
    desk.write()
    desk.settings.clear()
    desk.write("accounts.d/almaty.env", **own)
    typed(desk, "desk accounts")
    stored = desk.sql("SELECT service_name, api_key FROM api_keys")
    assert stored == [("Webkassa:almaty", desk.webkassa.live)]


@contextlib.contextmanager
def project(folder: Path) -> Iterator[Path]:
    """The whole project elsewhere, as after a clone, with the virtual environment made."""
    copy = folder / "Касса № 1"
    copy.mkdir()
    for path in ROOT.iterdir():
        if not path.name.startswith("."):
            copy.joinpath(path.name).symlink_to(path)
    (copy / ".venv-dev/bin").mkdir(parents=True)
    (copy / ".venv-dev/bin/python").symlink_to(quick_python())
    yield copy


@pytest.mark.slow
def test_stage_leads_every_setting_to_what_is_not_real(tmp_path: Path) -> None:
    with project(tmp_path) as folder:
        done = subprocess.run(
            ["bash", "-e", "-c", snippet("run: desk stage")], cwd=folder, text=True,
            input=snippet("run: on the stage"), capture_output=True,
            env=os.environ | {"WEBKASSA_LANG": "en"},
        )  # fmt: skip
    said = done.stdout + done.stderr
    assert "ok    webkassa: 127.0.0.1:" in said
    assert "Stored the new key" in said
    assert "WEBKASSA OK" in said
    assert "login refused" in said
    assert done.returncode == 77


@BOTH
def test_every_block_can_be_pasted_and_is_run_by_a_test(text: str) -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    tests = "".join(path.read_text(encoding="utf-8") for path in files)
    assert text.count("```sh\n") == text.count("<!-- run: ")
    for name, block in re.findall(r"<!-- run: (.+?) -->\n```sh\n(.*?)```", text, re.DOTALL):
        assert not re.search(r"^\s*[$#]|OWNER|<[a-z]+>", block, re.MULTILINE), block
        assert f'"{name}"' in tests or f'"run: {name}"' in tests, name


def test_demo_is_what_is_typed_first() -> None:
    assert snippet("run: desk demo") == "./demo.sh\n"  # the scene "demo" and .ci/run start it


def test_line_for_cron_hides_success_alone(desk: Desk) -> None:
    desk.use_venv()
    desk.has_a_key()
    desk.write()
    line = snippet("cron").strip()
    command = line.removeprefix("0 5 * * * ").replace("/srv/webkassa", ".")
    assert desk.shell(command) == ""
    desk.webkassa.password = "changed"
    assert "login refused" in desk.shell(command)


# Consumers ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def asked_at_a_socket(shop: Shop) -> Iterator[str]:
    """Serve as the units do: a run of the program for each connection, its exit code the answer."""

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            how = {"stdin": self.request.fileno()}
            result = shop.finish(shop.start_with(how, "update", "--if-key", "-"))
            self.request.sendall(b"%d\n" % result.code)

    path = str(shop.home / "renew.sock")
    with serving(socketserver.ThreadingUnixStreamServer(path, Connection)):
        yield path


def in_asyncio(code: str) -> str:
    """Change an example as the manual says: every function is `async def`, every call awaited."""
    calls = r"(?<!def )\b(read_key|renew|call|with_key)\("
    return re.sub(r"^def ", "async def ", re.sub(calls, r"await \1(", code), flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "code"), [("psycopg2", 2), ("SQLAlchemy", 3), ("SQLAlchemy in asyncio", 2)]
)
def test_five_consumers_of_the_manual_get_through_a_dead_key(
    shop: Shop, example: str, code: int
) -> None:
    """The stored key is dead; the example's own code meets code 2 or 3, heals and reads afresh: five
    receipts at once, one login."""
    shop.webkassa.live = None
    truth, dead = shop.webkassa.truth, webkassa_simulator.errors(code)
    shop.webkassa.verdict = lambda token: (
        dead if truth(token) == webkassa_simulator.DEAD else truth(token)
    )
    library, is_async = example.split()[0], example.endswith("asyncio")
    scheme = "postgresql+psycopg2" if library == "SQLAlchemy" else "postgresql"
    url = f"{scheme}://postgres:@127.0.0.1:{shop.server.port}/shop"
    program = snippet(f"consumer {library}") + snippet("with key")
    if is_async:
        program = in_asyncio(program)
    program = snippet("renew asyncio" if is_async else "renew sync") + program
    assert program.count('DATABASE = "') == 1
    program = re.sub('DATABASE = ".*"', f"DATABASE = {url!r}", program)
    test = f"""
import requests
{"async " * is_async}def create_check(token):
    answer = requests.post({shop.webkassa.origin + "/api/references/RefUnits"!r}, json={{"Token": token}})
    return answer.json()
{program}
import os
consumers = []
while len(consumers) < 5:
    consumers.append(os.fork())
    if not consumers[-1]:
        answer = {"asyncio.run" * is_async}(with_key(create_check))
        assert answer["Data"], answer
        os._exit(0)
print([os.waitpid(consumer, 0)[1] for consumer in consumers])
"""
    path = shop.home / "consumer.py"
    with asked_at_a_socket(shop) as socket:
        path.write_text(test.replace("/run/webkassa-key/renew.sock", socket), encoding="utf-8")
        env = shop.env | {"PGPASSWORD": PASSWORD}
        done = subprocess.run([sys.executable, path], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[0, 0, 0, 0, 0]\n", "")
    assert shop.webkassa.authorizations == 1
    assert shop.holds_the_live_key


def test_files_of_many_accounts_that_are_made_of_a_table_are_read_as_meant(tmp_path: Path) -> None:
    passwords = [
        "p#1 'one' \"two\"",
        " blanks at both ends ",
        "back\\slash\\",
        "$HOME;,`x`",
        "пароль=1",
    ]
    (tmp_path / "accounts.d").mkdir()
    with (tmp_path / "accounts.csv").open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow(["NAME", "WEBKASSA_LOGIN", "WEBKASSA_PASSWORD", "WEBKASSA_API_KEY"])
        table.writerows([f"shop-{n}", f"{n}@example.kz", p, ""] for n, p in enumerate(passwords))
    recipe = snippet("accounts from a table")
    subprocess.run([sys.executable, "-c", recipe], cwd=tmp_path, check=True)
    values = {name: value for name, value in os.environ.items() if name.startswith("PG")}
    plans = webkassa_key_updater.load_module("accounts").read_accounts(
        str(tmp_path / "accounts.d"), values
    )
    read = {name: (p.account.login.value, p.account.password.value) for name, p in plans.items()}
    assert read == {f"shop-{n}": (f"{n}@example.kz", p) for n, p in enumerate(passwords)}
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "accounts.d").iterdir()}
    assert modes == {0o600}


@BOTH
def test_nobody_is_told_to_wait_for_less_than_a_renewal_may_take(text: str) -> None:
    """With the last try to store the key, and the last looks at it; then behind another run."""
    program, account = webkassa_key_updater, SimpleNamespace(deadline=120)
    longest = program.LoginState.longest_hold(cast("program.Account", account))
    longest += program.KeyStore.COMMIT_TIME + 2 * program.PROBE_TIME
    minutes = r"(\d) (?:minutes|минуты)"
    said = re.search(rf"{minutes}[^`]*`WEBKASSA_DEADLINE`\D+{minutes}", text)
    assert longest < int(said[1]) * 60
    assert longest - account.deadline < int(said[2]) * 60
    waits = re.findall(r"(?:stream_set_timeout\(.server, |fastcgi_read_timeout )(\d+)", text)
    assert len(waits) == 2
    assert all(int(wait) >= 2 * longest for wait in waits)


@pytest.mark.skipif(
    not PHP or b"pdo_pgsql" not in subprocess.check_output([PHP, "-m"]),
    reason="needs PHP (apt-get install php-cli php-pgsql)",
)
def test_consumer_in_php_gets_through_a_dead_key(shop: Shop) -> None:
    shop.webkassa.live = None
    program = f"""{snippet("consumer PHP")}
$database = new PDO("pgsql:host=127.0.0.1;port={shop.server.port};dbname=shop", "postgres", getenv("PGPASSWORD"));
$dead = read_key($database);
echo renew($dead), " ", read_key($database);
"""
    path = shop.home / "consumer.php"
    with asked_at_a_socket(shop) as socket:
        path.write_text(program.replace("/run/webkassa-key/renew.sock", socket), encoding="utf-8")
        env = {"PGPASSWORD": PASSWORD}
        done = subprocess.run([PHP, path], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"0 {shop.webkassa.live}", "")
    assert shop.webkassa.authorizations == 1


@pytest.mark.slow
def test_orm_objects_keep_a_dead_key_unless_told_otherwise(shop: Shop) -> None:
    """As the manual says it of SQLAlchemy."""
    from sqlalchemy import Text, create_engine, select
    from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

    class Base(DeclarativeBase):
        pass

    class ApiKey(Base):
        __tablename__ = "api_keys"
        service_name = mapped_column(Text, primary_key=True)
        api_key = mapped_column(Text)

    url = f"postgresql+psycopg2://postgres:{PASSWORD}@127.0.0.1:{shop.server.port}/shop"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with Session(engine) as session:
        query = select(ApiKey).where(ApiKey.service_name == "Webkassa")
        loaded = session.scalars(query).one()
        assert loaded.api_key == shop.old_key
        shop.renew()
        assert session.scalars(query).one().api_key == shop.old_key
        afresh = query.execution_options(populate_existing=True)
        assert session.scalars(afresh).one().api_key == loaded.api_key == shop.webkassa.live
    with Session(engine.execution_options(isolation_level="REPEATABLE READ")) as session:
        before = session.scalars(afresh).one().api_key
        shop.renew(logins=2)
        assert session.scalars(afresh).one().api_key == before
        session.rollback()
        assert session.scalars(afresh).one().api_key == shop.webkassa.live != before
    engine.dispose()


DJANGO = """
import sys

import django
from django.conf import settings

host, port, user, password, name = sys.argv[1:]
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "HOST": host, "PORT": port, "USER": user,
    "PASSWORD": password, "NAME": name,
}})
django.setup()
from django.db import models

class ApiKey(models.Model):
    service_name = models.TextField(primary_key=True)
    api_key = models.TextField()
    updated_at = models.DateTimeField(null=True)

    class Meta:
        app_label, db_table, managed = "shop", "api_keys", False

def stored():
    return ApiKey.objects.get(service_name="Webkassa").api_key

loaded, other = (ApiKey.objects.get(service_name="Webkassa") for _ in range(2))
print(loaded.api_key, flush=True)
sys.stdin.read()  # meanwhile the key is renewed
print(loaded.api_key)
loaded.save(update_fields=["updated_at"])
print(stored())
loaded.refresh_from_db()
print(loaded.api_key)
other.save()
print(stored())
"""


@pytest.mark.slow
def test_django_objects_put_a_dead_key_back_unless_told_otherwise(shop: Shop) -> None:
    """As the manual says it of refresh_from_db() and save(update_fields=[...])."""
    database = ["127.0.0.1", f"{shop.server.port}", "postgres", PASSWORD, "shop"]
    command = [sys.executable, "-c", DJANGO, *database]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as django:
        assert django.stdout
        assert django.stdout.readline() == f"{shop.old_key}\n"
        shop.renew()
        new = shop.webkassa.live
        said = django.communicate()[0].split()
    assert said == [shop.old_key, new, new, shop.old_key]


def test_run_time_dependencies_are_exactly_three() -> None:
    lines = (ROOT / "requirements.txt").read_text().split()
    named = [re.split("[<>=]", line)[0] for line in lines]
    assert named == ["requests", "psycopg2-binary", "python-dotenv"]
    assert all(re.search(r">=\S+,<\d+$", line) for line in lines)
