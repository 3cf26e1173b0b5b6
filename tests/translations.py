"""Renew the Russian catalogue: PYTHONPATH=tests .venv-dev/bin/python tests/translations.py

It finds every sentence in the program, writes those that are new with an empty translation into
locale/ru/LC_MESSAGES/webkassa_key_updater.po, drops what is said no more, and compiles the file. It
prints what is still to be translated: write that into the .po, and run it again.
"""

from __future__ import annotations

import ast
import datetime
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

sys.path.insert(0, str(Path(__file__).parents[1] / "systemd"))

import server_status
import server_words

ROOT = Path(__file__).parents[1]
PO = ROOT / "locale/ru/LC_MESSAGES/webkassa_key_updater.po"
SOURCES = (
    "webkassa_key_updater.py", "webkassa_key_accounts.py", "systemd/server_status.py",
    "systemd/server_alert.py",
)  # fmt: skip

# Two words, or a word and a value; or the code of something: a pattern, SQL
PROSE = re.compile(r"[A-Za-z]+[,.:;)]? \(?([a-zX]|[A-Z]\w)|X[,.:;)]* \(?[a-z]")
CODE = re.compile(r"[\\|^$]|\(\.\+\)|^sudo |\b(SELECT|LOCAL|SAVEPOINT|PGPOOL|EXPLAIN|INTO|BEGIN|FOR NO KEY|TABLE IF)\b"
                  r"|^(verify_code|reason) |%\(|^%|^ | $")  # fmt: skip
NOT_SAID = {"as it was", "stored key", "bare OSError", "if needed", "no proxy", "statement pooling mode",
            "PQexec disallowed", "TimeoutError or Timeout", "SHOW server_version", "could not find digest",
            "certificate verify failed", "disable, allow, prefer, require, verify-ca, verify-full"}  # fmt: skip
UNTRANSLATED = {"error", "usage_error", "exit"}  # usage is as English as --help
# Words that are put into sentences: a probe's verdicts, and what a check looks at
WORDS = {"ALIVE", "DEAD", "UNCLEAR", "OFF", "DOUBTED", "TEST"}
STEPS = ("database", "table", "lock", "write", "login", "webkassa", "monitor")
STATES = ("disabled", "inactive", "activating", "deactivating", "failed")  # systemd's, of timers


def sentences() -> list[str]:
    """Return every sentence of the program, in its order."""
    said = [text for name in SOURCES for text in sentences_of(ROOT / name)]
    return [*dict.fromkeys([*said, *server_status.NAMES, *server_words.DAYS, *STATES])]


def sentences_of(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {node for part in ast.walk(tree) for node in never_shown(part)}
    nodes = sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0))
    for node in nodes:
        if is_call_of(node, {"Message"}) and node.args and node not in skipped:
            first = getattr(node.args[0], "value", None)
            if isinstance(first, str) and first:
                yield first
        elif isinstance(node, ast.Constant) and node not in skipped and is_sentence(node.value):
            yield str(node.value)
        elif isinstance(node, ast.Assign):
            names, values = node.targets[0], node.value
            for name, value in zip(
                getattr(names, "elts", [names]), getattr(values, "elts", [values]), strict=False
            ):
                if getattr(name, "id", "") in WORDS and path.parent == ROOT:
                    yield str(ast.literal_eval(value))
    yield from STEPS


def is_call_of(node: ast.AST, names: set[str]) -> bool:
    function = getattr(node, "func", None)
    return (getattr(function, "id", None) or getattr(function, "attr", None)) in names


def never_shown(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the texts in a node that are no messages: docstrings, parts of f-strings, usage."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
        if isinstance(node.body[0], ast.Expr):
            yield node.body[0].value
    elif isinstance(node, ast.JoinedStr):
        yield from node.values
    elif is_call_of(node, UNTRANSLATED):
        yield from (part for argument in node.args for part in ast.walk(argument))
    elif is_call_of(node, {"cast"}):
        yield node.args[0]


def is_sentence(value: object) -> bool:
    if not isinstance(value, str) or value in NOT_SAID:
        return False
    if CODE.search(value) and "`" not in value:  # a command to type
        return False
    return bool(PROSE.search(re.sub(r"\{[^}]*\}", "X", value)))


def read_catalogue() -> Catalog:
    with PO.open("rb") as file:
        return read_po(file, locale="ru")


def main() -> int:
    known, day = read_catalogue(), datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    renewed = Catalog("ru", project="webkassa-key-updater", version="2", header_comment="# Russian",
                      msgid_bugs_address="issues", last_translator="the project", fuzzy=False,
                      language_team="ru", creation_date=day, revision_date=day)  # fmt: skip
    for text in sentences():
        found = known.get(text)
        renewed.add(text, found.string if found else "")
    with PO.open("wb") as file:
        write_po(file, renewed, width=100)
    with PO.with_suffix(".mo").open("wb") as file:
        write_mo(file, renewed)
    missing = [message.id for message in renewed if message.id and not message.string]
    print("".join(f"{text}\n" for text in missing), end="")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
