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
import importlib.util
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
    NAMED,
    OK,
    WARNING,
    WORST_FIRST,
    Failed,
    Report,
    Server,
    all_codes,
    failed_runs,
    first_line,
    make_report,
    printable,
    read_notes,
    show_units,
)
from server_words import Joined, Message, Words, text_of, weekday, when

LIMIT = 3500  # characters of an alert: Telegram takes 4096, and counts what it escapes
TITLE_LIMIT, ENTRY_LIMIT = 250, 700
DAY, TOLD_AGAIN = 86400, 20 * 3600  # seconds: retries end; a cause is told of anew
SENDING_TIME = 600  # seconds: longer than all addresses take
OF_TEST = "alive, but of Webkassa's TEST system"  # status says so of a probe
KEY_LIVES = 86400  # seconds: what Webkassa promises, "about a day"
# What they refuse with 200, Apprise 2.3.0 calls sent (findings/)
REFUSE_WITH_200 = re.compile("(dingtalk|wecombot|synologys?)://")


class Address(NamedTuple):
    """A line of apprise.conf. `label` names it without its secrets; `servers` are Apprise's."""

    label: str
    mark: str  # by which it is remembered
    text: str
    servers: list[Any]


class Alert(NamedTuple):
    kind: str  # of Apprise: failure, success, info
    title: str
    body: str


def main(arguments: list[str], server: Server) -> int:
    """Do what was asked for; return the exit code."""
    if arguments in (["-h"], ["--help"]):
        print(str(__doc__).rstrip())
        return 0
    find_apprise(server)
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


def find_apprise(server: Server) -> None:
    """An upgrade of the system breaks all virtual environments at once, with the updater's that of the
    alerts: its Python is another one then, and looks elsewhere. What lies there serves that one, too."""
    if not importlib.util.find_spec("apprise"):
        sys.path += map(str, (server.current / "alerts/lib").glob("python3*/site-packages"))


# ---- Addresses


def read_addresses(server: Server) -> list[Address]:
    """Return all addresses, those that Apprise does not understand without servers."""
    import apprise

    def servers_of(text: str, form: str) -> list[Any]:
        config = apprise.AppriseConfig(recursion=1, insecure_includes=True)
        config.add_config(text, format=form)
        return [one for source in config for one in source]

    text = text_of(server.addresses)
    if re.search(r"^\s*(version|urls|include|groups)\s*:(\s|$)", text, re.MULTILINE):
        found = [[one] for one in servers_of(text, "yaml")] or [[]]
        label = server.in_words(Message("address"))
        return [make_address(f"{label} {number}", "".join(one.url() for one in some) or text, some)
                for number, some in enumerate(found, 1)]  # fmt: skip
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    label = server.in_words(Message("line"))
    return [make_address(f"{label} {number}", line, servers_of(line, "text"))
            for number, line in lines if line and line[0] not in "#;"]  # fmt: skip


def make_address(label: str, text: str, servers: list[Any]) -> Address:
    scheme = re.search(r"([a-z0-9]{1,32})://", text, re.IGNORECASE)
    label += f" ({scheme[1]})" if scheme else ""
    return Address(label, hashlib.sha256(text.encode()).hexdigest()[:16], text, servers)


def send(address: Address, alert: Alert) -> Words:
    """Send an alert to an address; return why it could not be sent, or nothing."""
    import apprise

    heard = Listener()
    log = logging.getLogger("apprise")
    log.addHandler(heard)
    try:
        for one in address.servers:
            # Worst first, so what a service has no room for is cut off at the end
            room = min(LIMIT, int(getattr(one, "body_maxlen", LIMIT))) - len(alert.title) - 2
            outbox = apprise.Apprise()
            one.redirects = False  # they lead to a GET without the text, called sent (findings/)
            outbox.add(one)
            if not outbox.notify(body=cut(alert.body, max(room, 20)), title=alert.title,
                                 notify_type=alert.kind, body_format="text"):  # fmt: skip
                silent = Message("Apprise says no reason")
                return without_secrets(address, heard.said) if heard.said else silent
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


# ---- What is said: can the shop sell, until when, what to type; below it, all that was seen


def alarm(report: Report) -> Alert:
    """Return an alert of a report: the worst first, within the limit."""
    words, level = report.in_words, report.worst.level
    title = headline(f"WEBKASSA {level} - {words(in_short(report))}")
    why = list[Words]()
    if report.failed:
        since = when(min(run.since for run in report.failed))
        text = "Renewing the key has failed since {since} ({described})."
        why = [Message(text, since=since, described=all_codes(report.failed))]
    first = [words(line) for line in (*can_sell(report), *why, what_to_do(report))]
    return Alert("failure", title, details_of(report, first, LIMIT - len(title) - 2))


def in_short(report: Report) -> Words:
    """Say in a few words whether the shop can sell: the worst of all accounts."""
    sells = AccountsByProbe.of(report)
    if len(sells.rows) > 1:
        count = len(sells.dead or sells.unknown)
        text = "all {all} accounts can sell for now"
        text = "whether {count} of {all} accounts can sell is not known" if sells.unknown else text
        text = "{count} of {all} accounts cannot sell" if sells.dead else text
        return Message(text, count=count, all=len(sells.rows))
    if sells.dead:
        return Message("the shop cannot sell")
    if sells.alive:
        return Message("the shop can sell for now" if report.failed else "the shop can sell")
    return Message("whether the shop can sell is not known")


class AccountsByProbe(NamedTuple):
    """The accounts by what the probe said of their keys; only its "alive" is known to sell."""

    rows: list[dict[str, Any]]
    alive: list[dict[str, Any]]
    dead: list[dict[str, Any]]
    unknown: list[dict[str, Any]]

    @classmethod
    def of(cls, report: Report) -> AccountsByProbe:
        rows = report.key["accounts"] if report.key else []
        # A row without a file of settings is none of ours
        rows = [row for row in rows if row.get("status") != OK or "probe" in row]
        dead = [row for row in rows
                if row.get("probe") in ("dead", OF_TEST) or row.get("fingerprint") == "none"]  # fmt: skip
        alive = [row for row in rows if row.get("probe") == "alive" and row not in dead]
        return cls(rows, alive, dead, [row for row in rows if row not in dead + alive])


def can_sell(report: Report) -> list[Words]:
    """Answer the first two questions: can the shop sell, and until when."""
    sells = AccountsByProbe.of(report)
    if len(sells.rows) > 1:
        return can_sell_many(sells)
    row = sells.rows[0] if sells.rows else {}
    end = end_of(row)
    if sells.alive and end and end < time.time():
        text = (
            "The shop can still sell, but the key may end at any moment: the day that Webkassa "
            "promises it was over at {end}."
        )
        return [Message(text, end=moment_of(end))]
    if sells.alive and end:
        text = "The shop can sell for now. Webkassa promises a key about a day: until about {end}."
        return [Message(text, end=moment_of(end))]
    if sells.alive:
        return [Message("The shop can sell for now.")]
    if row.get("fingerprint") == "none":
        return [Message("The shop cannot sell: no key is stored.")]
    if row.get("probe") == OF_TEST:
        return [Message("The shop cannot sell: the stored key is of Webkassa's TEST system.")]
    if sells.dead:
        return [Message("The shop cannot sell: the stored key is dead.")]
    said: list[Words] = [Message(UNKNOWN_BY_PROBE.get(row.get("probe", ""), UNSEEN_KEY))]
    end = end or max((note.renewed or 0 for note in report.notes), default=0) + KEY_LIVES
    is_unharmed = not report.notes or report.notes[0].key in ("as it was", "alive")
    if end > time.time() and is_unharmed:
        text = "If no other login has ended it, the key lasts until about {end}."
        said.append(Message(text, end=moment_of(end)))
    return [Joined(" ", said)]


UNSEEN_KEY = "Whether the shop can sell is not known: the stored key could not be looked at."
UNKNOWN_BY_PROBE = {  # what status says of a probe
    "unclear": "Whether the shop can sell is not known: Webkassa could not be asked about the key.",
    "off": "Whether the shop can sell is not known: the probe is switched off. Try to sell.",
    "dead, but not believed":
        "Whether the shop can sell is not known: the probe refuses every new key. Try to sell.",
}  # fmt: skip


def can_sell_many(sells: AccountsByProbe) -> list[Words]:
    """The same of many accounts, the worst first."""
    ends = [end for row in sells.alive if (end := end_of(row))]
    said = list[Words]()
    for rows, text in (
        (sells.dead, "Cannot sell: {count} of {all} accounts: {names}."),
        (sells.unknown, "Not known: {count} of {all} accounts: {names}."),
    ):
        if rows:
            names = named([str(row.get("account", "?")) for row in rows])
            said.append(Message(text, count=len(rows), all=len(sells.rows), names=names))
    if sells.alive:
        text = "Can sell for now: {count} of {all} accounts."
        if ends:
            text = "Can sell for now: {count} of {all} accounts, the first until about {end}."
        if over := sum(end < time.time() for end in ends):
            text = (
                "Can sell for now: {count} of {all} accounts; the promised day of {over} is over."
            )
        facts = {"end": moment_of(min(ends, default=0)), "over": over}
        said.append(Message(text, count=len(sells.alive), all=len(sells.rows), **facts))
    return said


def named(names: list[str]) -> Words:
    shown, more = ", ".join(names[:NAMED]), len(names) - NAMED
    return Message("{names} and {more} more", names=shown, more=more) if more > 0 else shown


def end_of(row: dict[str, Any]) -> float | None:
    """Return when the day is over that Webkassa promises a key; None where its age is not known."""
    age = row.get("age_seconds")
    return None if age is None else time.time() + KEY_LIVES - float(age)


def moment_of(end: float) -> Message:
    """Return a moment to the minute, as people say it."""
    local, now = time.localtime(end), time.time()
    day = Joined(" ", [weekday(local), time.strftime("%Y-%m-%d %Z", local)])
    facts = {"clock": time.strftime("%H:%M", local), "day": day}
    for text, ahead in (("{clock} today ({day})", 0), ("{clock} tomorrow ({day})", 86400)):
        if time.localtime(now + ahead)[:3] == local[:3]:
            return Message(text, **facts)
    return Message("{clock} on {day}", **facts)


def what_to_do(report: Report) -> Words:
    """Answer the third."""
    if not any(EXIT_CODES[found.level] for found in report.findings):
        return Message("There is nothing to do.")
    if mend := mend_of(report):
        return Message("What to do: {mend}", mend=mend)
    return Message("It is tried again by itself.")


def mend_of(report: Report) -> str:
    """Return what mends the run that failed, else the worst that was found; nothing where a run is
    tried again by itself."""
    runs = {name for name, _ in ALERTED.values()}
    bad = sorted((found for found in report.findings if EXIT_CODES[found.level]),
                 key=lambda found: (found.name not in runs, WORST_FIRST.index(found.level)))  # fmt: skip
    if bad and bad[0].name in runs:
        return bad[0].mend
    return next((found.mend for found in bad if found.mend), "sudo webkassa-key status")


def details_of(report: Report, first: list[str], room: int) -> str:
    """Return an alert's text: its first lines, and as much of what was seen as there is room for."""
    worst = sorted(report.findings, key=lambda found: WORST_FIRST.index(found.level))
    bad = [found for found in worst if EXIT_CODES[found.level]]
    head, entries, shown = "\n".join(first), list[str](), {"", mend_of(report)}
    for found in bad:
        mend = "" if found.mend in shown else f"\n-> {found.mend}"  # it is to be typed once
        entries.append(f"{found.level} {report.name_of(found)}: {found.what}{mend}")
        shown.add(found.mend)
    entries += [line for found in bad for line in found.details if not line.startswith(f"{OK}: ")]
    head += "\n\n" + (report.in_words(Message("What was seen:")) + "\n" if entries else "")
    return (head + fitting(report, entries, room - len(head))).rstrip()


def headline(text: str) -> str:
    return cut(f"{os.uname().nodename}: {text}", TITLE_LIMIT)


def fitting(report: Report, entries: list[str], room: int) -> str:
    """Join entries as long as there is room, and say how many are left; the last runs come if all
    fit."""
    told = {note.kind for note in report.notes if note.code} & ALERTED.keys()  # among the entries
    text, left, last = "", len(entries), "\n".join(report.last_runs(*told))
    for entry in entries:
        entry = cut(entry, ENTRY_LIMIT) + "\n"
        if len(text) + len(entry) > room - 60:
            more = Message("and {left} more: sudo webkassa-key status", left=left)
            return text + report.in_words(more)
        text, left = text + entry, left - 1
    return (text + last if len(text) + len(last) <= room else text).rstrip()


def all_is_well(report: Report, last: str) -> Alert:
    words, level = report.in_words, report.worst.level
    well = Message("works again: {short}", short=in_short(report))
    again = Message("The key is renewed again. The alert before this one said:")
    lines = [*can_sell(report), again, last]
    title = headline(f"WEBKASSA {level} - {words(well)}")
    return Alert("success", title, "\n".join(map(words, lines)))


# ---- By hand


def send_test(server: Server) -> int:
    """Send one now, and print what came of it."""

    def say(what: Words) -> None:
        print(server.in_words(what))

    if not server.addresses.exists():
        text = "There is no {file}: write addresses to it, see docs/server.md"
        say(Message(text, file=server.addresses))
        return 1
    report = make_report(server)
    test, how = Message("This is a test, sent by hand."), alarm(report).body
    title = headline(f"TEST, WEBKASSA {report.worst.level}")
    alert = Alert("info", title, cut(f"{server.in_words(test)}\n{how}", LIMIT - 300))
    try:
        addresses = read_addresses(server)
    except ImportError:
        say(Message("Apprise does not start. Run: {mend}", mend=server.reinstall("--with-alerts")))
        return 1
    except OSError as error:
        what = "{file} cannot be read ({why}). How to mend it: sudo webkassa-key status"
        say(Message(what, file=server.addresses, why=error.strerror))
        return 1
    reasons = [(one.label, problem_of(one) or send(one, alert)) for one in addresses]
    for one, (label, reason) in zip(addresses, reasons, strict=True):
        sent = Message("sent")
        if refuses_with_200(one):
            sent = Message("sent; a refusal of this service would not be seen: has it come?")
        say(Joined(": ", [label, reason or sent]))
    if not addresses:
        say(Message("{file} holds no address.", file=server.addresses))
    failed = not addresses or any(reason for _, reason in reasons)
    if not failed:
        Memory(server).forget("lost")
    return int(failed)


def problem_of(address: Address) -> Words:
    if address.servers:
        return ""
    return Message("Apprise does not understand this address; it is told nothing")


def refuses_with_200(address: Address) -> bool:
    return any(REFUSE_WITH_200.match(one.url()) for one in address.servers)


def look(server: Server) -> list[str]:
    """Return what is wrong with the addresses, and with the last alert."""
    memory = Memory(server)
    found = list[Words]()
    try:
        addresses = read_addresses(server)
        found += [
            Joined(": ", [one.label, problem_of(one)]) for one in addresses if not one.servers
        ]
        if not addresses:
            found = [Message("{file} holds no address: nobody is told", file=server.addresses)]
        elif all(map(refuses_with_200, addresses)):
            found.append(Message("a refusal of these services would not be seen: add another kind"))
    except ImportError:
        found = [Message("cannot be sent: Apprise does not start")]
    except OSError:
        pass  # the file's rights are looked at elsewhere
    for name, text in (
        ("pending", "the alert of {moment} could not be sent everywhere, and is tried again by itself. {why}"),
        ("lost", "the alert of {moment} could not be sent everywhere, and was given up after a day. {why}"),
    ):  # fmt: skip
        note = memory.get(name)  # without reasons it is being sent just now
        if note and (note["reasons"] or abs(time.time() - note["time"]) > SENDING_TIME):
            reasons = "; ".join(f"{label}: {why}" for label, why in note["reasons"].items())
            facts = {"moment": when(note["time"]), "why": printable(reasons)}
            found.append(Message(text, **facts))
    return [server.in_words(line).rstrip(". ") for line in found]


# ---- As a service


class Memory:
    """alert.json. "told": when each cause was told of; "open": the last alarm that reached somebody,
    until all is well again; "pending" and "lost": an alert that did not reach everybody."""

    def __init__(self, server: Server) -> None:
        self.file, self.notes = server.state / "alert.json", dict[str, Any]()
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(text_of(self.file))
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
        failed += failed_runs(server, kind, units[unit], notes)
    # systemd 254 and newer come on every retry
    at_work = any(unit["SubState"].startswith(("auto-restart", "start")) for unit in units.values())
    failing = {run.account for run in failed}
    causes = {f"{run.account} {run.code}" for run in failed}
    told = {cause: moment for cause, moment in (memory.get("told") or {}).items()
            if cause.split(" ")[0] in failing and abs(now - moment) < TOLD_AGAIN}  # fmt: skip
    if not at_work and causes - told.keys():
        report = make_report(server)
        alert = alarm(report)
        print("<3>" + f"{alert.title}\n{alert.body}".replace("\n", "\n<3>"))
        pending = {"message": alert, "time": now, "reached": [], "reasons": {}}
        memory.put(pending=pending, told=told | dict.fromkeys(causes, now), lost=None)
    elif not at_work and not causes:
        memory.forget("told")
        since = memory.get("open") or (memory.get("pending") or {}).get("message")
        if since and since[0] == "failure":
            report = make_report(server)
            if report.worst.level in (OK, WARNING) and not AccountsByProbe.of(report).dead:
                alert = all_is_well(report, f"{since[1]}")
                pending = {"message": alert, "time": now, "reached": [], "reasons": {}}
                memory.put(pending=pending, open=None)
    elif not at_work:  # an account that is well again, beside others, is told of if it fails anew
        memory.put(told=told)
    return deliver(server, memory, now) if memory.get("pending") else 0


def deliver(server: Server, memory: Memory, now: float) -> int:
    """Send the pending alert to whom it has not reached; return 1 if it is to be tried again."""

    def log(level: str, *parts: Words) -> None:
        print(f"{level}{server.in_words(Joined(': ', parts))}")

    pending, mend = memory.get("pending"), server.reinstall("--with-alerts")
    alert = Alert(*pending["message"])
    if not server.addresses.exists():
        text = (
            "Nobody was told but this journal: there is no {file}. To make alerts possible: {mend}"
        )
        log("", Message(text, file=server.addresses, mend=mend))
        memory.forget("pending")
        return 0
    addresses, reasons = reach_all(server, memory, pending, alert)
    if alert.kind == "failure" and pending["reached"]:
        memory.put(open=alert)
    for address in addresses:
        if not address.servers:
            log("<4>", address.label, problem_of(address))
    for label, reason in reasons.items():
        log("<3>", label, reason)
    if not reasons:
        memory.forget("pending", "lost")
        log("", Message("The alert was sent."))
        return 0
    if abs(now - pending["time"]) > DAY:
        memory.forget("pending")
        memory.put(lost=pending | {"reasons": reasons})
        log("<3>", Message("The alert could not be sent for a day, and is given up."))
        return 0
    memory.put(pending=pending | {"reasons": reasons})
    text = "The alert could not be sent everywhere; it is tried again by itself. To see it: sudo webkassa-key alert"
    log("<3>", Message(text))
    return 1


def reach_all(
    server: Server, memory: Memory, pending: dict[str, Any], alert: Alert
) -> tuple[list[Address], dict[str, str]]:
    """Send an alert to each address that it has not reached; return all of them, and by their labels
    why some were not reached."""
    try:
        addresses = read_addresses(server)
    except (ImportError, OSError) as error:
        why = Message("it does not start ({error})", error=type(error).__name__)
        return [], {"Apprise": server.in_words(why)}
    if not any(address.servers for address in addresses):
        why = Message("it holds no address that can be used")
        return addresses, {server.addresses.name: server.in_words(why)}
    reasons = dict[str, str]()
    for address in addresses:
        if address.servers and address.mark not in pending["reached"]:
            if reason := send(address, alert):
                if sum(map(len, address.servers)) > 1:  # Apprise 2.3.0 does not say whom it reached
                    again = "all of this line are told again: give each of them a line of its own"
                    reason = Joined("; ", [reason, Message(again)])
                reasons[address.label] = server.in_words(reason)
            else:
                pending["reached"].append(address.mark)
                memory.put(pending=pending)
    return addresses, reasons


if __name__ == "__main__":
    # What libraries say can carry addresses, and those carry passwords: it must not reach the journal
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")
    sys.exit(main(sys.argv[1:], Server()))
