"""The functions and values of the project's shell scripts, by bash itself, and what they start."""

from __future__ import annotations

import importlib.resources
import os
import subprocess
import sys
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


PYTHON3 = f"""#!/bin/sh
{os.path.realpath(sys.executable)} "$@" ${{2:+--without-pip}} || exit
printf '#!/bin/sh\\nexec "%s/python" -m pip "$@"\\n' "$(cd "$3" && pwd)/bin" >"$3/bin/pip"
chmod +x "$3/bin/pip"
ln -s {importlib.resources.files("pip")} "$3"/lib/python*/site-packages/
"""


def quick_python3(folder: Path) -> None:
    """Put a python3 there whose `-m venv FOLDER` takes the pip that is here: its own takes seconds."""
    folder.mkdir()
    (folder / "python3").write_text(PYTHON3, encoding="utf-8")
    (folder / "python3").chmod(0o755)
