"""Wait for an event, not for a time; and see how long it took."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

Value = TypeVar("Value")


def await_(condition: Callable[[], Value], seconds: float = 60, pause: float = 0.01) -> Value:
    """Wait until `condition` holds, and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        threading.Event().wait(pause)
    return value


@contextlib.contextmanager
def within(most: float, least: float = 0) -> Iterator[None]:
    """What is done here must take from `least` to `most` seconds."""
    start = time.monotonic()
    yield
    assert least <= time.monotonic() - start < most
