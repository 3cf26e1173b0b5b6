"""Wait for an event, not for a time; and see how long it took."""

from __future__ import annotations

import contextlib
import fcntl
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Value = TypeVar("Value")


def await_(condition: Callable[[], Value], seconds: float = 60, pause: float = 0.01) -> Value:
    """Wait until `condition` holds, and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        threading.Event().wait(pause)
    return value


def unread(pipe: Any) -> int:
    """Return how many bytes of a pipe nobody has read yet."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"1234"), sys.byteorder)


@contextlib.contextmanager
def within(most: float, least: float = 0) -> Iterator[None]:
    """What is done here must take from `least` to `most` seconds."""
    start = time.monotonic()
    yield
    assert least <= time.monotonic() - start < most
