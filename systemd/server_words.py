"""The server's sentences in the reader's language: whole ones with named values, English or Russian.

The language is WEBKASSA_LANG of the settings; where they do not say, or may not be read, that of
the machine, which systemd gives to the services, so that the program speaks the same.
"""

from __future__ import annotations

import contextlib
import errno
import gettext
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

RELEASE = Path(__file__).resolve().parents[1]  # or a clone
CATALOGUE = "ru/LC_MESSAGES/webkassa_key_updater.mo"
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


class Message:
    """Sentences with named values, which may be Messages; English as a string."""

    def __init__(self, text: str, **values: object) -> None:
        self.text, self.values = text, values

    def __str__(self) -> str:
        return self.render(str)

    def render(self, translate: Callable[[str], str]) -> str:
        values = {name: value.render(translate) if isinstance(value, Message) else value
                  for name, value in self.values.items()}  # fmt: skip
        return translate(self.text).format(**values)


class Joined(Message):
    """Sentences, lines or names, one behind another."""

    def __init__(self, between: str, parts: Iterable[Message | str]) -> None:
        super().__init__(between)
        self.parts = [*parts]

    def render(self, translate: Callable[[str], str]) -> str:
        return self.text.join(part.render(translate) if isinstance(part, Message) else part
                              for part in self.parts)  # fmt: skip


Words = Message | str  # a string stands as it is in every language: a command, what a program said


def when(moment: float) -> Message:
    """Return a moment for a person, in the time zone of this machine."""
    local = time.localtime(moment)
    return Joined(" ", [weekday(local), time.strftime("%Y-%m-%d %H:%M:%S %Z", local)])


def weekday(local: time.struct_time) -> Message:
    return Message(DAYS[local.tm_wday])


def choose(settings: Path, root: Path) -> Callable[[str], str]:
    """Return what translates for this server."""
    lang = value_in(settings, "WEBKASSA_LANG")
    for file in (root / "etc/locale.conf", root / "etc/default/locale"):
        lang = lang or value_in(file, "LC_MESSAGES") or value_in(file, "LANG")
    return read_catalogue() if lang.startswith("ru") else str


def value_in(file: Path, name: str) -> str:
    """Return the value of a name in a file of settings, or nothing."""
    with contextlib.suppress(OSError):
        text = text_of(file)
        found = re.findall(rf"^\s*(?:export\s+)?{name}\s*=\s*[\"']?(\w+)", text, re.MULTILINE)
        return str(found[-1]) if found else ""
    return ""


def text_of(file: Path) -> str:
    """Return the text of a file; raise OSError also of a pipe or socket: to wait for one has no end."""
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "it is no regular file")
    return file.read_text(encoding="utf-8-sig", errors="replace")


def read_catalogue() -> Callable[[str], str]:
    """Return what translates into Russian; where the catalogue cannot be read, all stays English."""
    inside = "venv/lib/python3*/site-packages/webkassa_key_locale"
    for folder in (RELEASE / "locale", *RELEASE.glob(inside)):
        with contextlib.suppress(Exception), open(folder / CATALOGUE, "rb") as file:
            return gettext.GNUTranslations(file).gettext
    return str


def in_words(what: Words, translate: Callable[[str], str]) -> str:
    """Return a message as the reader has it; a translation with a fault leaves it English."""
    if isinstance(what, Message):
        with contextlib.suppress(Exception):
            return what.render(translate)
    return str(what)
