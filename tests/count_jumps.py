"""Count what a reader of a module has to look for elsewhere.

    python tests/count_jumps.py webkassa_key_updater.py

A jump is a reference to a name of the module that is defined more than 50 lines further up. The
words, which stand first on purpose, and the log are no jumps.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

FAR = 50  # lines
WORDS = "# ---- The words"


def definitions(tree: ast.Module) -> dict[str, int]:
    """Return the names that a module defines, with their lines."""
    found: dict[str, int] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node.lineno
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        for target in targets:  # not all that is stored to: a comprehension has variables
            names = [part for part in ast.walk(target) if isinstance(part, ast.Name)]
            found |= {name.id: name.lineno for name in names}
    return found


def references(tree: ast.Module) -> list[tuple[str, int]]:
    """Return each name that is read, with its line."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return [(node.id, node.lineno) for node in names if isinstance(node.ctx, ast.Load)]


def words(text: str, tree: ast.Module) -> set[str]:
    """Return the names of the section that holds the words, and what stands before it."""
    lines = text.splitlines()
    start = lines.index(WORDS) + 1 if WORDS in lines else 0
    end = next((n for n in range(start + 1, len(lines)) if lines[n].startswith("# ----")), start)
    return {name for name, line in definitions(tree).items() if line <= end}


def jumps(text: str) -> list[tuple[str, int, int]]:
    """Return each jump: the name, its line, and the line of its definition."""
    tree = ast.parse(text)
    known, first = definitions(tree), words(text, tree)
    return [
        (name, line, known[name])
        for name, line in references(tree)
        if name in known and name not in first and line - known[name] > FAR
    ]


def main() -> None:
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    found = jumps(text)
    for name, line, defined in sorted(found, key=lambda jump: jump[1]):
        print(f"line {line}: {name} (line {defined})")
    count = len(text.splitlines())
    print(f"{len(found)} jumps, {len(found) / count * 100:.1f} in 100 lines")


if __name__ == "__main__":
    main()
