"""The program reads from the top, and stays short: what may lose a key comes first.

Ceilings, not aims: shorter is better.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from world.shop import PROGRAM

TEXT = PROGRAM.read_text(encoding="utf-8")
LINES = TEXT.splitlines()
TREE = ast.parse(TEXT)
BORDER = "Below here nothing changes a key"
COMMAND_LINE = "Command line"
FUNCTIONS = [n for n in ast.walk(TREE) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
# What changes a list, dictionary, set or deque
MUTATORS = {"add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem",
            "popleft", "remove", "setdefault", "sort", "update"}  # fmt: skip

pytestmark = pytest.mark.skipif(
    BORDER not in TEXT, reason="the program does not have its second shape yet"
)


def line_of(pattern: str) -> int:
    """Return the number of the one line that has this pattern."""
    found = [number for number, line in enumerate(LINES, 1) if re.search(pattern, line)]
    assert len(found) == 1, f"{pattern}: lines {found}"
    return found[0]


def heading(text: str) -> int:
    """Return the line of a heading in a comment, and demand that there is one such."""
    return line_of(rf"^# (.*\W)?{re.escape(text)}(\W|$)")


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines from `def` to the end, decorators left out."""
    assert function.end_lineno
    return function.end_lineno - function.lineno + 1


def import_time(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when the module is imported, but for the variables of comprehensions."""
    skipped = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda,
               ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)  # fmt: skip
    for child in ast.iter_child_nodes(node):
        is_main = isinstance(child, ast.If) and "__name__" in ast.unparse(child.test)
        if not is_main and not isinstance(child, skipped):
            yield child
            yield from import_time(child)


def is_written(node: ast.AST) -> bool:
    return isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del))


GLOBALS = [n.id for n in import_time(TREE) if isinstance(n, ast.Name) and is_written(n)]


def test_update_begins_in_the_first_220_lines() -> None:
    assert line_of(r"^def update\(") < 220


def test_what_may_lose_a_key_ends_before_line_1120() -> None:
    assert line_of(f"^#.*{BORDER}") < 1120


def test_update_stands_above_the_border_and_the_command_line_below() -> None:
    assert line_of(r"^def update\(") < line_of(f"^#.*{BORDER}") < heading(COMMAND_LINE)


def test_module_has_at_most_2270_lines() -> None:
    """Until many accounts have a file of their own: then 2,000."""
    assert len(LINES) <= 2270


def test_no_function_is_longer_than_50_lines() -> None:
    assert [(f.name, length(f)) for f in FUNCTIONS if length(f) > 50] == []


def test_no_function_or_class_stands_in_a_function() -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    nested = [
        (inner.name, inner.lineno)
        for function in FUNCTIONS
        for inner in ast.walk(function)
        if isinstance(inner, kinds) and inner is not function
    ]
    assert nested == []


def named(node: ast.AST) -> str:
    """Return the dotted name that a node reads or imports, or nothing."""
    if isinstance(node, ast.ImportFrom):
        return " ".join(f"{node.module}.{alias.name}" for alias in node.names)
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def test_environment_and_terminal_belong_to_the_command_line() -> None:
    terminal = re.compile(
        r"(^|\W)(os\.(environb?|getenv|putenv)|sys\.(stdin|stdout|stderr))\b|^(print|input)$"
    )
    touched = {
        (named(node), node.lineno) for node in ast.walk(TREE) if terminal.search(named(node))
    }
    assert {(what, line) for what, line in touched if line < heading(COMMAND_LINE)} == set()
    assert touched


def test_names_of_the_module_get_their_value_once() -> None:
    """They are constants, `log` and `__version__`, and nothing says `global`."""
    assert [n.lineno for n in ast.walk(TREE) if isinstance(n, (ast.Global, ast.Nonlocal))] == []
    constant = re.compile("_?[A-Z][A-Z0-9_]*|log|__version__")
    assert [name for name in GLOBALS if not constant.fullmatch(name)] == []
    assert {name for name in GLOBALS if GLOBALS.count(name) > 1} == set()


def test_nothing_of_the_module_is_changed_in_place() -> None:
    """No method, index or attribute changes a constant, a class or a function."""
    names = {*GLOBALS, *(node.name for node in TREE.body if hasattr(node, "name"))} - {"log"}
    changed = []
    for node in ast.walk(TREE):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            target, is_change = node.func.value, node.func.attr in MUTATORS
        elif isinstance(node, (ast.Subscript, ast.Attribute)):
            target, is_change = node.value, is_written(node)
        else:
            continue
        if is_change and isinstance(target, ast.Name) and target.id in names:
            changed.append((target.id, node.lineno))
    assert changed == []
