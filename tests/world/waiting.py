"""Wait for an event, not for a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def await_(condition: Callable[[], Value], seconds: float = 60, pause: float = 0.01) -> Value:
    """Wait until `condition` holds, and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        threading.Event().wait(pause)
    return value
