"""`status` as OpenMetrics text, which is good in Prometheus's older format, too.

webkassa_key_updater.py loads this file by its path, when it is told --metrics, and hands itself in
as `updater`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import webkassa_key_updater as updater

METRICS = {  # of each account, with what they tell; what is not known is left out
    "status": "0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.",
    "age_seconds": "The age of the stored key, by the clock of the database.",
    "alive": "1 where Webkassa takes the stored key, 0 where it refuses it.",
    "stored_timestamp_seconds": "When the stored key was stored: the last success.",
    "login_refused": "1 where Webkassa refused the login, and since then nothing has changed.",
}
ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def as_metrics(reports: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the metrics of accounts, given what `status --json` says of each."""
    measured = [(label(report), measure(report)) for report in reports]
    for name, what in METRICS.items():
        yield f"# TYPE webkassa_key_{name} gauge"
        yield f"# HELP webkassa_key_{name} {what}"
        for labels, values in measured:
            if values[name] is not None:
                yield f"webkassa_key_{name}{{{labels}}} {values[name]:d}"
    yield "# EOF"


def label(report: dict[str, Any]) -> str:
    """Return what tells an account from others. A file's name may hold any bytes."""
    names = {name: report[name] for name in ("account", "service") if name in report}
    return ",".join(f'{name}="{text.translate(ESCAPED)}"' for name, text in names.items())


def measure(report: dict[str, Any]) -> dict[str, int | None]:
    age = report.get("age_seconds")
    return {
        "status": updater.LEVELS.index(report["status"]),
        "age_seconds": age,
        "alive": {"alive": 1, updater.TEST: 1, "dead": 0}.get(report.get("probe", "")),
        "stored_timestamp_seconds": None if age is None else round(time.time() - age),
        "login_refused": report.get("login_refused", False) if "probe" in report else None,
    }


# ---- Command line: nothing above touches the terminal


def print_metrics(reports: list[dict[str, Any]]) -> int:
    """Print the metrics of accounts; return the exit code, 0 once that is done. They are UTF-8,
    whatever the terminal's encoding is."""
    try:
        with open(1, "w", encoding="utf-8", errors="replace", closefd=False) as output:
            print(*as_metrics(reports), sep="\n", file=output)
    except OSError:
        return updater.UNKNOWN
    return 0
