"""The functions and values of the project's shell scripts, by bash itself."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CALL = 'main "$@"\n'  # the last line of a script: till then, nothing has happened


def after(script: str, lines: str) -> str:
    """Run these lines of bash after all of a script but its call of main; return the output."""
    text = (ROOT / script).read_text(encoding="utf-8")
    if script != "systemd/common.sh":
        assert text.endswith("\n" + CALL)
        text = text.removesuffix(CALL)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "systemd").symlink_to(ROOT / "systemd")
        (Path(folder) / "script").write_text(f"{text}\n{lines}\n", encoding="utf-8")
        return subprocess.check_output(["bash", f"{folder}/script"], text=True, encoding="utf-8")
