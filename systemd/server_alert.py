#!/usr/bin/env python3
"""usage: sudo webkassa-key alert

Send a test alert now, with the status as it is, to every address in
/etc/webkassa-key-updater/apprise.conf, and print what came of it.

exit codes: 0 every address was told; 1 one was not; 2 wrong usage
"""

# Started by send-alert.sh, with the Python that has Apprise where there is one. Without arguments,
# as webkassa-key-alert.service: tell of a failure once, and once that all is well again. What was
# told and to whom is kept in alert.json in the state folder. --look prints for the status what is
# wrong with the addresses and with the last alert.

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
import time
import warnings
from typing import Any, NamedTuple
from urllib.parse import unquote

from server_status import (
    ALERTED,
    EXIT_CODES,
    OK,
    WARNING,
    WORST_FIRST,
    Failed,
    Report,
    Server,
    failed_runs,
    first_line,
    lines_of,
    make_report,
    printable,
    read_notes,
    show_units,
    when,
)

LIMIT = 3500  # characters of an alert: Telegram takes 4096, and counts what it escapes
TITLE_LIMIT, ENTRY_LIMIT = 250, 700
DAY, TOLD_AGAIN = 86400, 20 * 3600  # seconds: retries end; a cause is told of anew


class Address(NamedTuple):
    """A line of apprise.conf. `label` names it without its secrets; `servers` are Apprise's."""

    label: str
    mark: str  # by which it is remembered
    text: str
    servers: list[Any]


class Message(NamedTuple):
    kind: str  # of Apprise: failure, success, info
    title: str
    body: str


def main(arguments: list[str], server: Server) -> int:
    """Do what was asked for; return the exit code."""
    if arguments in (["-h"], ["--help"]):
        print(str(__doc__).rstrip())
        return 0
    if arguments == ["--look"]:
        print("".join(f"{line}\n" for line in look(server)), end="")
        return 0
    if arguments == ["--test"]:
        return send_test(server)
    if arguments:
        print(
            f"send-alert.sh: unknown arguments {' '.join(arguments)}; see --help", file=sys.stderr
        )
        return 2
    return serve(server)


# ---- Addresses


def read_addresses(server: Server) -> list[Address]:
    """Return all addresses, those that Apprise does not understand without servers."""
    import apprise

    def servers_of(text: str, form: str) -> list[Any]:
        config = apprise.AppriseConfig(recursion=1, insecure_includes=True)
        config.add_config(text, format=form)
        return [one for source in config for one in source]

    text = server.addresses.read_text(encoding="utf-8-sig", errors="replace")
    if re.search(r"^\s*(version|urls|include|groups)\s*:(\s|$)", text, re.MULTILINE):
        found = [[one] for one in servers_of(text, "yaml")] or [[]]
        return [make_address(f"address {number}", "".join(one.url() for one in some) or text, some)
                for number, some in enumerate(found, 1)]  # fmt: skip
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [make_address(f"line {number}", line, servers_of(line, "text"))
            for number, line in lines if line and line[0] not in "#;"]  # fmt: skip


def make_address(label: str, text: str, servers: list[Any]) -> Address:
    scheme = re.search(r"([a-z0-9]{1,32})://", text, re.IGNORECASE)
    label += f" ({scheme[1]})" if scheme else ""
    return Address(label, hashlib.sha256(text.encode()).hexdigest()[:16], text, servers)


def send(address: Address, message: Message) -> str:
    """Send a message to an address; return why it could not be sent, or nothing."""
    import apprise

    heard = Listener()
    log = logging.getLogger("apprise")
    log.addHandler(heard)
    try:
        for one in address.servers:
            # Worst first, so what a service has no room for is cut off at the end
            room = min(LIMIT, int(getattr(one, "body_maxlen", LIMIT))) - len(message.title) - 2
            outbox = apprise.Apprise()
            outbox.add(one)
            if not outbox.notify(body=cut(message.body, max(room, 20)), title=message.title,
                                 notify_type=message.kind, body_format="text"):  # fmt: skip
                return without_secrets(address, heard.said or "Apprise says no reason")
    except Exception as error:  # of some hundred plug-ins
        return type(error).__name__
    finally:
        log.removeHandler(heard)
    return ""


class Listener(logging.Handler):
    """Hears why Apprise could not send."""

    said = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.said = first_line(record.getMessage())


def without_secrets(address: Address, text: str) -> str:
    """Return a text without whatever stands in the address: passwords and tokens may."""
    parts = {part for whole in (address.text, unquote(address.text))
             for part in re.split(r"[/:@?&=,#\s]+", whole) if len(part) >= 4}  # fmt: skip
    for part in sorted(parts, key=len, reverse=True):
        text = text.replace(part, "***")
    return cut(printable(text), 300)


def cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 4].rstrip() + " ..."


# ---- What is said


def alarm(report: Report) -> Message:
    """Return an alert of a report: the worst first, within the limit."""
    worst = sorted(report.findings, key=lambda found: WORST_FIRST.index(found.level))
    bad = [found for found in worst if EXIT_CODES[found.level]]
    entries = [f"{found.level} {found.name}: {found.what}" + (f"\n-> {found.mend}" if found.mend else "")
               for found in bad]  # fmt: skip
    entries += [line for found in bad for line in found.details if not line.startswith(f"{OK}: ")]
    title = headline(f"WEBKASSA {report.worst.level} - {report.summary}")
    runs = "\n".join(["Last runs:", *lines_of(report.notes)]) if report.notes else ""
    return Message("failure", title, fitting(entries, runs, LIMIT - len(title) - 2))


def headline(text: str) -> str:
    return cut(f"{os.uname().nodename}: {text}", TITLE_LIMIT)


def fitting(entries: list[str], last: str, room: int) -> str:
    """Join entries as long as there is room, and say how many are left; `last` comes if all fit."""
    text, left = "", len(entries)
    for entry in entries:
        entry = cut(entry, ENTRY_LIMIT) + "\n"
        if len(text) + len(entry) > room - 60:
            return f"{text}and {left} more: sudo webkassa-key status"
        text, left = text + entry, left - 1
    return (text + last if len(text) + len(last) <= room else text).rstrip()


def all_is_well(report: Report, last: str) -> Message:
    title = headline(f"WEBKASSA {report.worst.level} - works again: {report.summary}")
    return Message(
        "success", title, f"The key is renewed again. The alert before this one said:\n{last}"
    )


# ---- By hand


def send_test(server: Server) -> int:
    """Send one now, and print what came of it."""
    if not server.addresses.exists():
        print(f"There is no {server.addresses}: write addresses to it, see docs/server.md")
        return 1
    report = make_report(server)
    shown = alarm(report)
    body = f"This is a test, sent by hand. How it stands:\n{report.summary}\n{shown.body}"
    message = Message(
        "info", headline(f"TEST, WEBKASSA {report.worst.level}"), cut(body, LIMIT - 300)
    )
    try:
        addresses = read_addresses(server)
    except ImportError:
        print(f"Apprise does not start. Run: {server.reinstall('--with-alerts')}")
        return 1
    reasons = [
        (address.label, problem_of(address) or send(address, message)) for address in addresses
    ]
    for label, reason in reasons:
        print(f"{label}: {reason or 'sent'}")
    if not addresses:
        print(f"{server.addresses} holds no address.")
    failed = not addresses or any(reason for _, reason in reasons)
    if not failed:
        Memory(server).forget("lost")
    return int(failed)


def problem_of(address: Address) -> str:
    return "" if address.servers else "Apprise does not understand this address; it is told nothing"


def look(server: Server) -> list[str]:
    """Return what is wrong with the addresses, and with the last alert."""
    memory = Memory(server)
    found = []
    try:
        addresses = read_addresses(server)
        found = [f"{one.label}: {problem_of(one)}" for one in addresses if not one.servers]
        if not addresses:
            found = [f"{server.addresses} holds no address: nobody is told"]
    except ImportError:
        found = ["cannot be sent: Apprise does not start"]
    except OSError:
        pass  # the file's rights are looked at elsewhere
    for name, end in (
        ("pending", "is tried again by itself"),
        ("lost", "was given up after a day"),
    ):
        if note := memory.get(name):
            reasons = "; ".join(f"{label}: {why}" for label, why in note["reasons"].items())
            said = f"the alert of {when(note['time'])} could not be sent everywhere, and {end}"
            found.append(f"{said}. {printable(reasons)}".rstrip(". "))
    return found


# ---- As a service


class Memory:
    """alert.json. "told": when each cause was told of; "open": the last alarm that reached somebody,
    until all is well again; "pending" and "lost": an alert that did not reach everybody."""

    def __init__(self, server: Server) -> None:
        self.file, self.notes = server.state / "alert.json", dict[str, Any]()
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self.file.read_text(encoding="utf-8"))
            self.notes = found if isinstance(found, dict) else {}

    def get(self, name: str) -> Any:
        return self.notes.get(name)

    def put(self, **notes: Any) -> None:
        self.notes |= notes
        self.write()

    def forget(self, *names: str) -> None:
        if set(names) & self.notes.keys():
            for name in names:
                self.notes.pop(name, None)
            self.write()

    def write(self) -> None:
        """Where the disk is full the alert goes out all the same."""
        with contextlib.suppress(OSError):
            new = self.file.with_suffix(".new")
            new.write_text(json.dumps(self.notes), encoding="utf-8")
            new.replace(self.file)


def serve(server: Server) -> int:
    """Tell of what failed and was not told of, or that all is well again; or send what could not be
    sent before. Return 1 if it is to be tried again."""
    memory, now = Memory(server), time.time()
    units, notes = show_units(*(unit for _, unit in ALERTED.values())), read_notes(server)
    failed = list[Failed]()
    for kind, (_, unit) in ALERTED.items():
        failed += failed_runs(kind, units[unit], notes)
    # systemd 254 and newer come on every retry
    at_work = any(unit["SubState"].startswith(("auto-restart", "start")) for unit in units.values())
    told = {cause: moment for cause, moment in (memory.get("told") or {}).items()
            if abs(now - moment) < TOLD_AGAIN}  # fmt: skip
    causes = {f"{run.account} {run.code}" for run in failed}
    if not at_work and causes - told.keys():
        report = make_report(server)
        message = alarm(report)
        print("<3>" + f"{message.title}\n{message.body}".replace("\n", "\n<3>"))
        pending = {"message": message, "time": now, "reached": [], "reasons": {}}
        memory.put(pending=pending, told=told | dict.fromkeys(causes, now), lost=None)
    elif not at_work and not causes:
        memory.forget("told")
        since = memory.get("open") or (memory.get("pending") or {}).get("message")
        if since and since[0] == "failure":
            report = make_report(server)
            if report.worst.level in (OK, WARNING):
                message = all_is_well(report, f"{since[1]}")
                memory.put(
                    pending={"message": message, "time": now, "reached": [], "reasons": {}},
                    open=None,
                )
    return deliver(server, memory, now) if memory.get("pending") else 0


def deliver(server: Server, memory: Memory, now: float) -> int:
    """Send the pending message to whom it has not reached; return 1 if it is to be tried again."""
    pending = memory.get("pending")
    message = Message(*pending["message"])
    if not server.addresses.exists():
        print(f"Nobody was told but this journal: there is no {server.addresses}. To make alerts "
              f"possible: {server.reinstall('--with-alerts')}")  # fmt: skip
        memory.forget("pending")
        return 0
    reasons = dict[str, str]()
    try:
        addresses = read_addresses(server)
    except (ImportError, OSError) as error:
        addresses, reasons = [], {"Apprise": f"it does not start ({type(error).__name__})"}
    if not reasons and not any(address.servers for address in addresses):
        reasons = {server.addresses.name: "it holds no address that can be used"}
    for address in addresses:
        if address.servers and address.mark not in pending["reached"]:
            if reason := send(address, message):
                reasons[address.label] = reason
            else:
                pending["reached"].append(address.mark)
                memory.put(pending=pending)
    if message.kind == "failure" and pending["reached"]:
        memory.put(open=message)
    for address in addresses:
        if not address.servers:
            print(f"<4>{address.label}: {problem_of(address)}")
    for label, reason in reasons.items():
        print(f"<3>{label}: {reason}")
    if not reasons:
        memory.forget("pending", "lost")
        print("The alert was sent.")
        return 0
    if abs(now - pending["time"]) > DAY:
        memory.forget("pending")
        memory.put(lost=pending | {"reasons": reasons})
        print("<3>The alert could not be sent for a day, and is given up.")
        return 0
    memory.put(pending=pending | {"reasons": reasons})
    print(
        "<3>The alert could not be sent everywhere; it is tried again by itself. To see it: sudo webkassa-key alert"
    )
    return 1


if __name__ == "__main__":
    # What libraries say can carry addresses, and those carry passwords: it must not reach the journal
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")
    sys.exit(main(sys.argv[1:], Server()))
