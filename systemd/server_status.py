#!/usr/bin/env python3
"""usage: check-status.sh [--json] [--no-probe] | --timers | --hidden

How the updater stands: key, timers, last runs, installation, settings, alerts, other triggers.
Changes nothing and does not log in at Webkassa. Without root it says what it could not see.

  --json      the same for machines
  --no-probe  Webkassa is not asked whether the key works
  --timers    the timers alone, as install.sh proves them
  --hidden    of what is named on standard input: what the service's sandbox hides from it
  -h, --help  print this help

exit codes, as of monitoring plug-ins: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN; the worst counts,
and CRITICAL is worse than WARNING, that than UNKNOWN
"""

from __future__ import annotations

import calendar
import contextlib
import functools
import grp
import io
import json
import os
import pwd
import re
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from server_words import Joined, Message, Words, choose, in_words, text_of, when

USER, CLIENTS = "webkassa-key-updater", "webkassa-key-clients"
# Leave no files behind, see nothing of the caller's environment
PYTHON_OPTIONS = ("-B", "-E", "-s")

OK, WARNING, CRITICAL, UNKNOWN = "OK", "WARNING", "CRITICAL", "UNKNOWN"
UNSEEN, OFF = "UNSEEN", "OFF"  # said, but counted neither as good nor as bad
WORST_FIRST = (CRITICAL, WARNING, UNKNOWN, OK, OFF, UNSEEN)
EXIT_CODES = {OK: 0, OFF: 0, UNSEEN: 0, WARNING: 1, CRITICAL: 2, UNKNOWN: 3}
AGES = "90000;176400"  # seconds, from which WARNING and CRITICAL begin, for a monitor's graphs
SHOWN = 20  # accounts on the screen
NAMED = 10  # accounts in a command, and in what an alert says first

UPDATE, BOOT = "webkassa-key-update.service", "webkassa-key-boot.service"
TIMER, BOOT_TIMER = "webkassa-key-update.timer", "webkassa-key-boot.timer"
NET, NET_TIMER = "webkassa-key-net.service", "webkassa-key-net.timer"
HEAL, HEAL_TIMER = "webkassa-key-heal.service", "webkassa-key-heal.timer"
SOCKET = "webkassa-key-renew.socket"
SANDBOX = "webkassa-key-.service.d/00-sandbox.conf"
UNITS = (UPDATE, BOOT, NET, HEAL, TIMER, BOOT_TIMER, NET_TIMER, HEAL_TIMER, SOCKET)
PROPERTIES = (
    "Id", "LoadState", "UnitFileState", "ActiveState", "SubState", "Result", "InvocationID",
    "ExecMainCode", "ExecMainStatus", "ExecMainStartTimestamp", "ExecMainExitTimestamp",
    "NextElapseUSecRealtime", "NeedDaemonReload",
)  # fmt: skip
# What is looked at: names for machines, and on the screen in the reader's language
NAMES = (
    "installed", "key", "timer", "last run", "boot run", "net run", "login", "consumers", "code",
    "settings", "alerts", "triggers",
)  # fmt: skip
# Kinds of runs that are alerted of: their name here, and their service
ALERTED = {"daily": ("last run", UPDATE), "boot": ("boot run", BOOT), "net": ("net run", NET)}
KINDS = {
    "daily": "by the timer", "boot": "after a boot or an upgrade", "net": "by the net",
    "heal": "while looking for a dead key", "consumer": "asked by a consumer", "hand": "by hand",
}  # fmt: skip

MEANINGS = {  # of exit codes; those of the program as its --help has them
    1: "the program does not start",
    2: "wrong usage of this command",
    69: "Webkassa cannot be reached or is failing",
    70: "a bug of this program",
    71: "accounts failed with different codes",
    73: "the database refuses the write",
    75: "the database cannot be reached, is read-only for now, or the lock is busy",
    76: "Webkassa's answer makes no sense",
    77: "Webkassa refuses the login, password or API key",
    78: "the settings are wrong",
    203: "the program does not start",
    217: "the user webkassa-key-updater is missing, or this machine allows no user namespaces any more",
    226: "systemd cannot set up the sandbox: is a path of a drop-in missing?",
    238: "systemd cannot use the folder of the notes",
    243: "a file that LoadCredential= names is missing",
}
NOT_STARTED = {1, 203, 217}  # what install.sh mends
# What others.sh remarks of a trigger
LOGS_IN = "runs a login at Webkassa"
REMARKS = (
    ("may renew the key, runs (.+)", "may renew the key, runs {what}"),
    ("runs (.+) beside other things", "runs {what} beside other things"),
    ("runs (.+)", "runs {what}"),
    ("starts (.+)", "starts {what}"),
)
HIDDEN = re.compile(r"/(?:home|root|tmp|var/tmp|run/user)(?:/[\w.@+-]+)*")  # by the sandbox


class Finding(NamedTuple):
    """One thing that was looked at; `mend`: the command that mends it; `details`: of many accounts,
    a line for each."""

    level: str
    name: str
    what: Words
    mend: Words = ""
    details: tuple[Words, ...] = ()


class Shown(NamedTuple):
    """A finding in the reader's language."""

    level: str
    name: str
    what: str
    mend: str
    details: tuple[str, ...]


class Note(NamedTuple):
    """What an update noted when it ended (see `note_run` of the program); times in seconds."""

    account: str
    kind: str
    time: float
    code: int
    outcome: str
    since: float
    key: str
    renewed: float | None
    invocation: str

    @property
    def how(self) -> Message:
        return Message(KINDS.get(self.kind, self.kind))


def described(code: int) -> Message:
    """Say what an exit code means."""
    if code in MEANINGS:
        return Message("code {code}: {meaning}", code=code, meaning=Message(MEANINGS[code]))
    return Message("code {code}", code=code)


class Server:
    """Where things are on a server, and what can be asked there. `root` is / but in tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.current = root / "opt/webkassa-key-updater/current"
        self.config = root / "etc/webkassa-key-updater"
        self.settings, self.addresses = self.config / "webkassa.env", self.config / "apprise.conf"
        self.accounts = self.config / "accounts.d"  # where there are many
        self.state = root / "var/lib/webkassa-key-updater"
        self.units = root / "etc/systemd/system"
        self.socket = root / "run/webkassa-key/renew.sock"
        # Nothing of the caller's environment may count: -I
        python = str(self.current / "venv/bin/python")
        self.program = [python, "-I", str(self.current / "venv/bin/webkassa-key-updater")]
        self.apprise = self.current / "alerts/bin/python"
        self.is_root, self.user = os.geteuid() == 0, user_name()
        self.many = (self.units / "webkassa-key-.service.d/10-accounts.conf").exists()
        # Of many accounts, the good keys must stay
        self.renew = "sudo webkassa-key update" + (" --if-needed" if self.many else "")

    @functools.cached_property
    def translate(self) -> Callable[[str], str]:
        return choose(self.settings, self.root)

    def in_words(self, what: Words) -> str:
        """Return a message in the reader's language."""
        return in_words(what, self.translate)

    @property
    def unseen(self) -> Message:
        return Message("not visible to {user} without sudo", user=self.user)

    @property
    def account_names(self) -> set[str]:
        """The accounts that are to be renewed; "" stands for the only one, and for all."""
        names = {path.stem for path in listed(self.accounts) if path.match("[!.]*.env")}
        return {""} | names

    @property
    def installed(self) -> float:
        """When the release in use was put in its place; in seconds, 0 where nobody knows."""
        with contextlib.suppress(OSError):
            return self.current.lstat().st_mtime if self.current.is_symlink() else 0.0
        return 0.0

    def owner_of(self, found: os.stat_result) -> tuple[int, int]:
        """Return the numbers of a file's user and group."""
        return found.st_uid, found.st_gid

    def reinstall(self, options: str = "") -> Words:
        """The command that mends the installation."""
        if (self.current / "install.sh").exists():
            return f"sudo {self.current}/install.sh {options}".rstrip()
        return in_fresh_copy(f"sudo ./install.sh {options}".rstrip())

    def enable(self, unit: str, option: str = "") -> Words:
        if not (self.units / unit).exists():
            return self.reinstall()
        return " ".join(filter(None, ["sudo systemctl enable", option, unit]))

    def correct_login(self, refused: Sequence[Note | Failed]) -> Message:
        text = "put in the right login and password: sudo nano {file}; then: {renew}"
        return Message(text, file=self.file_of(refused, 77), renew=self.renew_again(refused))

    def file_of(self, failed: Sequence[Note | Failed], code: int) -> str:
        """Return, as a shell takes it, the settings of what failed with this code; of several
        accounts any."""
        names = {run.account for run in failed if run.code == code}
        if not self.many or "" in names:
            return str(self.settings)
        name = names.pop() if len(names) == 1 else "NAME"
        return shlex.quote(str(self.accounts / f"{name}.env"))

    def renew_again(self, failed: Sequence[Note | Failed]) -> str:
        """The command that renews what failed. Of many accounts it names them: --if-needed alone
        would leave a key that works and is not a day old, and the failure would stay."""
        names = sorted({run.account for run in failed})
        if "" in names or len(names) > NAMED:
            return self.renew
        named = "".join(f" --account {name}" for name in names)
        return f"sudo webkassa-key update{named}; {self.renew}"


def in_fresh_copy(command: str) -> Message:
    return Message("{command} (in a fresh copy of the project)", command=command)


def user_name() -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())


def listed(folder: Path) -> list[Path]:
    """Return what is in a folder, as far as it may be seen."""
    with contextlib.suppress(OSError):
        return sorted(folder.iterdir())
    return []


def output_of(*command: str, timeout: float = 30, **options: Any) -> tuple[int, str]:
    """Run a command; return its exit code and its standard output."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=timeout, encoding="utf-8", errors="replace", **options,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return 127, ""
    return done.returncode, done.stdout


# ---- systemd


def show_units(*names: str) -> dict[str, dict[str, str]]:
    """Return the properties of units by the units' names; times as `seconds` reads them."""
    command = ["systemctl", "show", f"--property={','.join(PROPERTIES)}"]
    # A timer's next run is a date in any case, and before systemd 251 all times are
    env = os.environ | {"TZ": "UTC", "LC_ALL": "C"}
    code, text = output_of(*command, "--timestamp=unix", *names, env=env)
    if code:
        text = output_of(*command, *names, env=env)[1]
    units = {}
    for block in text.strip().split("\n\n"):
        lines = [line.split("=", 1) for line in block.splitlines() if "=" in line]
        unit = dict.fromkeys(PROPERTIES, "") | dict(lines)
        units[unit["Id"]] = unit
    return {name: units.get(name, dict.fromkeys(PROPERTIES, "")) for name in names}


def seconds(text: str) -> float | None:
    """Return a time of systemd, "@1764000000" or a date in UTC, in seconds since 1970, or None."""
    with contextlib.suppress(ValueError):
        if text.startswith("@"):
            return float(text[1:]) or None
        return float(calendar.timegm(time.strptime(text, "%a %Y-%m-%d %H:%M:%S UTC")))
    return None


class Timer(NamedTuple):
    """A timer of ours: what it starts, how bad it is without, and at the latest when it comes."""

    service: str
    level: str
    without: str
    longest: float | None  # seconds to the next run; None: it goes by no clock that can be set


TIMERS = {
    TIMER: Timer(UPDATE, CRITICAL, "nothing renews the key", 25 * 3600),
    NET_TIMER: Timer(NET, WARNING, "nothing steps in where the daily timer does not come", None),
    HEAL_TIMER: Timer(HEAL, WARNING, "a dead key waits for the daily run", 3600),
}


def look_at_timers(server: Server, units: dict[str, dict[str, str]]) -> Iterator[Finding]:
    """The daily timer must run; without the others, less is made up for."""
    for name, timer in TIMERS.items():
        is_off = units[name]["UnitFileState"] != "enabled" and units[name]["LoadState"] != "masked"
        if is_off and name != HEAL_TIMER:  # that one is an offer
            state = Message(units[name]["UnitFileState"] or "not installed")
            off = Joined(": ", [state, Message(timer.without)])
            yield Finding(timer.level, "timer", called(name, off), server.enable(name, "--now"))
        elif not is_off:
            found = look_at_timer(server, name, units[name], units[timer.service])
            if found.level != OK or name == TIMER:
                yield found
    if units[BOOT_TIMER]["UnitFileState"] != "enabled":
        what = Message("a run that was missed while the machine was off is not made up for")
        yield Finding(WARNING, "timer", what, server.enable(BOOT_TIMER))
    # The night runs as before; a command has what is new if it stands in webkassa-key-.service.d
    if changed := [name for name, unit in units.items() if unit["NeedDaemonReload"] == "yes"]:
        what = Message("{unit} was changed, and systemd has not read that yet", unit=changed[0])
        yield Finding(WARNING, "timer", what, "sudo systemctl daemon-reload")


def called(name: str, what: Words) -> Words:
    return what if name == TIMER else Joined(": ", [name, what])


def look_at_timer(
    server: Server, name: str, timer: dict[str, str], service: dict[str, str]
) -> Finding:
    """Say whether a timer that is enabled will start its service in time."""
    ours, comes = TIMERS[name], seconds(timer["NextElapseUSecRealtime"])
    what, restart = Message(""), f"sudo systemctl restart {name}"
    mend: Words = ""
    for unit, properties in ((ours.service, service), (name, timer)):
        if properties["LoadState"] == "masked":
            what = Message("{unit} is masked", unit=unit)
            mend = Joined("", [f"sudo systemctl unmask {unit} && ", server.reinstall()])
    if mend:
        pass
    elif timer["ActiveState"] == "failed":  # its service could not be started when the time came
        what, mend = Message("enabled, but failed ({result})", result=timer["Result"]), restart
    elif timer["ActiveState"] != "active":
        what = Message("enabled, but {state}", state=Message(timer["ActiveState"]))
        mend = server.enable(name, "--now")
    elif timer["SubState"] == "running":
        what = Message("enabled, active, next run is known when the one at work has ended")
    elif timer["SubState"] == "elapsed" or (ours.longest and comes is None):
        what, mend = Message("active, but without a next run"), restart
    elif ours.longest and comes and comes - time.time() > ours.longest:
        # One restart goes on from the last run's time, which may lie in the future, too
        text = "its next run is as late as {comes} (was the clock ahead when this machine started?)"
        what, mend = Message(text, comes=when(comes)), f"{restart}; {restart}"
    elif comes:
        what = Message("enabled, active, next run {comes}", comes=when(comes))
    else:
        what = Message("enabled, active")
    if mend:
        what = Joined(": ", [what, Message(ours.without)])
        return Finding(ours.level, "timer", called(name, what), mend)
    return Finding(OK, "timer", called(name, what))


def say(*words: str, sep: str = " ", file: Any = None) -> None:
    """Print, whether or not anybody reads it (install.sh | head): the code is the truth."""
    with contextlib.suppress(OSError):
        print(*words, sep=sep, file=file, flush=True)


def prove_timers(server: Server) -> int:
    """Print when the next run is, and what is wrong with the timers that are enabled: in English,
    as all that install.sh says."""
    units, worst = show_units(*UNITS), OK
    for name, timer in TIMERS.items():
        if units[name]["UnitFileState"] == "enabled":
            found = look_at_timer(server, name, units[name], units[timer.service])
            worst = min(worst, found.level, key=WORST_FIRST.index)
            if found.level != OK:
                say(f"{found.what}\n-> {found.mend}")
            elif name == TIMER:
                say(f"Next run: {str(found.what).rpartition('next run ')[2]}")
    return EXIT_CODES[worst]


def look_at_socket(server: Server, socket: dict[str, str]) -> Finding:
    if socket["UnitFileState"] != "enabled" or socket["ActiveState"] != "active":
        what = Message("cannot ask for a new key: {socket} is off", socket=SOCKET)
        return Finding(WARNING, "consumers", what, server.enable(SOCKET, "--now"))
    try:
        is_socket = stat.S_ISSOCK(server.socket.stat().st_mode)
    except OSError:
        is_socket = False
    if not is_socket:
        what = Message("cannot ask for a new key: {socket} was removed", socket=server.socket)
        return Finding(WARNING, "consumers", what, f"sudo systemctl restart {SOCKET}")
    members = list[str]()
    with contextlib.suppress(KeyError):
        members = grp.getgrnam(CLIENTS).gr_mem
    who = ", ".join(["root", *members])
    return Finding(OK, "consumers", Message("may ask for a new key: {who}", who=who))


# ---- The key and the runs


def ask_program(server: Server, *more: str) -> tuple[Finding, dict[str, Any] | None]:
    """Ask the program for its own status, as the service's user and in its sandbox."""
    command = [*server.program, "--env-file", str(server.settings), "status", "--json", *more]
    if server.is_root:
        sandbox = ["systemd-run", "--quiet", "--collect", "--wait", "--pipe",
                   f"--unit=webkassa-key-command-status-{os.getpid()}",
                   "--property=RuntimeMaxSec=1min", "--"]  # fmt: skip
        command = sandbox + command
    elif server.user != USER:
        return Finding(UNKNOWN, "key", server.unseen, "sudo webkassa-key status"), None
    code, text = output_of(*command, timeout=90)
    try:
        report = json.loads(text)
        level, what = report["status"], printable(report["message"])
        report["accounts"] = list(report["accounts"])
    except (ValueError, KeyError, TypeError):
        why = Message("not known: the updater could not look at it (code {code})", code=code)
        return Finding(CRITICAL, "key", why, "sudo webkassa-key check"), None
    for row in report["accounts"][:1]:  # "key FINGERPRINT", in whatever language: the name says key
        _, _, rest = what.partition(" ")
        what = rest if rest.startswith(str(row.get("fingerprint"))) else what
    mend = {OK: "", UNKNOWN: "sudo webkassa-key check"}.get(level, server.renew)
    lines: list[Words] = [what]
    if level != OK and (hidden := name_hidden(server, what)):
        lines.append(hidden)
    rows = [row for row in report["accounts"] if "account" in row]  # where there are many
    details = [printable(f"{row['status']}: {row['account']}: {row['message']}") for row in rows]
    return Finding(level, "key", Joined("\n", lines), mend, tuple(details)), report


def printable(text: str) -> str:
    """Return a text without what could steer a terminal."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in text)


def name_hidden(server: Server, text: str) -> Words:
    """Return a sentence about what is named in a text or in the settings, and is there, but not
    for the service; else nothing."""
    with contextlib.suppress(OSError):
        text += "\n" + text_of(server.settings)
    found = sorted({path for path in HIDDEN.findall(text) if os.path.exists(path)})
    if not found:
        return ""
    text = (
        "{files} is there, but the service cannot see it: its sandbox hides homes and /tmp. Move it "
        "(certificates to /etc/ssl, say), or change the sandbox as {sandbox} says."
    )
    return Message(text, files=", ".join(found), sandbox=server.units / SANDBOX)


def read_notes(server: Server) -> list[Note]:
    """Return what updates noted when they ended, the latest first; of accounts that are there. A
    renewal that is yet to come was noted by a clock that was ahead: when it was, nobody knows."""
    notes, names, latest = list[Note](), server.account_names, time.time() + 60
    for path in listed(server.state):
        if not path.match("run-*.json"):
            continue
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            noted = json.loads(text_of(path))
            note = Note(*(noted[name] for name in Note._fields))
            note = note._replace(outcome=printable(str(note.outcome)))
            if note.account in names:
                is_past = (note.renewed or 0) < latest
                notes.append(note if is_past else note._replace(renewed=None))
    return sorted(notes, key=lambda note: (-note.time, note.account))


def renewed_since(moment: float, notes: list[Note], account: str = "") -> bool:
    """Say whether an update of ours, of any kind, has renewed the key after this moment."""
    return any(note.renewed and note.renewed > moment for note in notes
               if account in ("", note.account))  # fmt: skip


class Failed(NamedTuple):
    """A run that failed. `unit` is what failed where the program could not note it itself."""

    account: str
    time: float
    since: float
    described: Message
    code: int
    outcome: str


def failed_runs(server: Server, kind: str, unit: dict[str, str], notes: list[Note]) -> list[Failed]:
    """Return what failed in the last run of a kind, and was not made good by a renewal since, or by
    install.sh, where the program did not start."""
    mine = [note for note in notes if note.kind == kind]
    found = [
        Failed(note.account, note.time, note.since, described(note.code), note.code, note.outcome)
        for note in mine
        if note.code and not renewed_since(note.time, notes, note.account)
    ]
    unnoted = unnoted_failure(unit, mine)
    if unnoted and unnoted.code in NOT_STARTED and unnoted.time < server.installed:
        unnoted = None
    if unnoted and not renewed_since(unnoted.time, notes):
        earlier = [run for run in found if run.account]  # the only account's last run was this one
        return [unnoted, *earlier]
    return found


def unnoted_failure(unit: dict[str, str], mine: list[Note]) -> Failed | None:
    """Return how a run ended that could not note it: it did not start, or was killed."""
    way, code = unit["ExecMainCode"], int(unit["ExecMainStatus"] or 0)
    ended, started = seconds(unit["ExecMainExitTimestamp"]), seconds(unit["ExecMainStartTimestamp"])
    is_noted = any(note.invocation == unit["InvocationID"] and note.code for note in mine)
    if not unit["InvocationID"] or (way in ("", "0", "1") and is_noted):
        return None
    moment = ended or started or time.time()
    if ended and way not in ("", "0", "1"):
        what, code = Message("signal {number}: killed, or out of time", number=code), 70
    elif ended and code:
        what = described(code)
    elif unit["ActiveState"] == "failed":
        what, code = Message("systemd says {result}", result=unit["Result"]), 70
    else:
        return None
    return Failed("", moment, moment, what, code, "")


def look_at_runs(
    server: Server, kind: str, unit: dict[str, str], notes: list[Note],
    report: dict[str, Any] | None,
) -> Iterator[Finding]:  # fmt: skip
    """Say how the last run of a kind ended; good ones are told of the daily run alone."""
    name = ALERTED[kind][0]
    failed = failed_runs(server, kind, unit, notes)
    started = seconds(unit["ExecMainStartTimestamp"])
    if unit["SubState"].startswith("start") and started and not failed:
        yield Finding(OK, name, Message("at work since {moment}", moment=when(started)))
    elif failed:
        what, mend = describe_failure(server, failed)
        line = "{account}: code {code}, {outcome}"
        details = tuple(Message(line, account=run.account, code=run.code, outcome=run.outcome)
                        for run in failed if run.account)  # fmt: skip
        if unit["SubState"].startswith(("auto-restart", "start")):  # a retry, to come or at work
            what.append(Message("It is tried again by itself."))
            yield Finding(WARNING, name, Joined("\n", what), "", details)
        elif all(changed_since(run, report) for run in failed):
            what.append(Message("Somebody else has renewed the key since."))
            yield Finding(WARNING, name, Joined("\n", what), mend, details)
        else:
            yield Finding(CRITICAL, name, Joined("\n", what), mend, details)
    elif kind == "daily":
        yield Finding(OK, name, describe_good(unit, notes))


def describe_failure(server: Server, failed: list[Failed]) -> tuple[list[Words], Words]:
    """Return in words what failed, in the first line all of it; and what mends it."""
    named = [run for run in failed if run.account]
    facts = {"since": when(min(run.since for run in failed)), "described": all_codes(failed)}
    if named:
        names = ", ".join(run.account for run in named[:3]) + (", ..." if len(named) > 3 else "")
        text = "failing since {since} ({described}): {count} of {all} accounts: {names}"
        all_ = len(server.account_names) - 1
        lines: list[Words] = [Message(text, **facts, count=len(named), all=all_, names=names)]
    else:
        lines = [Message("failing since {since} ({described})", **facts)]
        lines += [failed[0].outcome] if failed[0].outcome else []
    return lines, mend_for(server, failed)


def all_codes(failed: list[Failed]) -> Message:
    """Say what the code means with which these failed, or name all of them."""
    codes = sorted({run.code for run in failed})
    if len(codes) == 1 or not failed[0].account:
        return failed[0].described
    return Message("codes {codes}", codes=", ".join(map(str, codes)))


def mend_for(server: Server, failed: list[Failed]) -> Words:
    codes = {run.code for run in failed}
    if NOT_STARTED & codes:
        return server.reinstall()
    if 226 in codes:
        return "sudo journalctl -b -n 9 -g namespac"
    if 243 in codes:
        return Message("systemctl cat {unit}, and put the file back", unit=UPDATE)
    if 77 in codes:
        return server.correct_login(failed)
    if 78 in codes:
        text = "correct the settings: sudo nano {file}; then: sudo webkassa-key check"
        return Message(text, file=server.file_of(failed, 78))
    return "sudo webkassa-key check" if {2, 73, 238} & codes else server.renew_again(failed)


def look_at_login(server: Server, notes: list[Note]) -> Finding | None:
    """Say that Webkassa refused a login, in whatever kind of run, and none was good since."""
    refused = [note for note in notes
               if note.code == 77 and not renewed_since(note.time, notes, note.account)]  # fmt: skip
    if not refused:
        return None
    last = refused[0]
    what = Message("Webkassa refused it {how} {moment}", how=last.how, moment=when(last.time))
    accounts = dict.fromkeys(note.account for note in refused if note.account)
    details = tuple(Message("{account}: refused", account=account) for account in accounts)
    return Finding(CRITICAL, "login", what, server.correct_login(refused), details)


def changed_since(run: Failed, report: dict[str, Any] | None) -> bool:
    """Say whether the stored key is younger than this failure, by more than clocks may differ."""
    now, accounts = time.time(), report["accounts"] if report else []
    mine = [row for row in accounts if run.account in ("", row.get("account", ""))]
    ages = [row.get("age_seconds") for row in mine]
    return bool(ages) and all(age is not None and now - age > run.time + 60 for age in ages)


def describe_good(unit: dict[str, str], notes: list[Note]) -> Message:
    daily = [note for note in notes if note.kind == "daily"]
    ended = seconds(unit["ExecMainExitTimestamp"]) if unit["ExecMainStatus"] == "0" else None
    moments = [note.time for note in daily if not note.code] + [ended or 0]
    bad = [note for note in daily if note.code]
    if bad:
        renewed = next(note for note in notes if note.renewed and note.renewed > bad[0].time)
        text = "good: renewed {how} {moment}, after the run of {failed} had failed"
        moment, failed = when(renewed.renewed or 0), when(bad[0].time)
        return Message(text, how=renewed.how, moment=moment, failed=failed)
    if max(moments):
        return Message("good, {moment}", moment=when(max(moments)))
    return Message("none so far")


def lines_of(notes: list[Note]) -> Iterator[Message]:
    """Yield a line for the last run of each kind, the latest first."""
    for kind in dict.fromkeys(note.kind for note in notes):
        mine = [note for note in notes if note.kind == kind]
        bad = [note for note in mine if note.code]
        said: Words = (bad or mine)[0].outcome.split("\n")[0]
        if any(note.account for note in mine):
            failed = Joined(", ", (Joined(" ", [note.account or Message("all"), f"{note.code}"])
                                   for note in bad[:SHOWN]))  # fmt: skip
            text = "{done} of {all} accounts: done"
            text = "{done} of {all} accounts: done; not done: {failed}" if bad else text
            said = Message(text, done=len(mine) - len(bad), all=len(mine), failed=failed)
        codes, line = {note.code for note in bad}, "{moment}, {how}, codes differ: {said}"
        line = "{moment}, {how}, done: {said}" if not codes else line
        line = "{moment}, {how}, code {code}: {said}" if len(codes) == 1 else line
        facts = {"moment": when(mine[0].time), "how": mine[0].how, "code": min(codes, default=0)}
        yield Message(line, **facts, said=said)


# ---- The installation


def look_at_code(server: Server) -> Finding:
    code, version = output_of(*server.program, "--version")
    python = output_of(server.program[0], "--version")[1].strip()
    if code:
        text = "does not start: the virtual environment is broken, nothing can renew the key"
        return Finding(CRITICAL, "code", Message(text), server.reinstall())
    facts = {"version": version.strip(), "python": python}
    if issued := old_certificates(server):
        text = (
            "version {version}, {python}; its certificates of authorities are of {issued}: it may "
            "come to know Webkassa's no more"
        )
        what = Message(text, **facts, issued=issued)
        return Finding(WARNING, "code", what, in_fresh_copy("sudo ./install.sh"))
    return Finding(OK, "code", Message("version {version}, {python}", **facts))


def old_certificates(server: Server) -> str:
    """Return the date of the release's certificates of authorities, where it is 18 months ago."""
    for path in (server.current / "venv/lib").glob("python3*/site-packages/certifi-*.dist-info"):
        if found := re.match(r"certifi-(\d{4})\.(\d\d?)\.(\d\d?)", path.name):
            year, month, day = map(int, found.groups())
            if time.time() - calendar.timegm((year, month, day, 0, 0, 0)) > 548 * 86400:
                return f"{year}-{month:02}-{day:02}"
    return ""


def look_at_file(server: Server, path: Path, name: str) -> Finding:
    """Say whether the service can read a file, and nobody else; a link is judged by its target."""
    if path.parent.exists() and not os.access(path.parent, os.X_OK):
        return Finding(UNSEEN, name, server.unseen)
    target = Path(os.path.realpath(path))
    mend = f"sudo chown root:{USER} {target}; sudo chmod 640 {target}"
    if path.is_symlink() and not path.exists():
        text = "{file} is a link to {target}, which is not there: put it back"
        return Finding(CRITICAL, name, Message(text, file=path, target=path.readlink()))
    if not path.exists():
        make = f"sudo install -D -o root -g {USER} -m 640 {server.current}/.env.example {path}"
        text = "{file} is missing: without it nothing renews the key. Fill in what this makes"
        return Finding(CRITICAL, name, Message(text, file=path), make)
    if HIDDEN.match(
        f"/{target.relative_to(server.root)}" if target.is_relative_to(server.root) else str(target)
    ):
        text = "{file} is hidden from the service, which sees no homes and no /tmp: move it to /etc"
        return Finding(CRITICAL, name, Message(text, file=target))
    try:
        found = target.stat()
    except OSError:
        return Finding(UNSEEN, name, server.unseen)
    mode, (user, group) = f"{stat.S_IMODE(found.st_mode):o}", server.owner_of(found)
    owner = names_of(user, group)
    facts = {"file": target, "owner": owner, "mode": mode, "user": USER}
    if not service_reads(server, target):
        text = "{file} is {owner} {mode}: the service cannot read it"
        return Finding(CRITICAL, name, Message(text, **facts), mend)
    if user or not re.fullmatch("[4-7][04]0", mode):
        text = "{file} is {owner} {mode}, not root:{user} 640"
        return Finding(WARNING, name, Message(text, **facts), mend)
    return Finding(OK, name, f"{target}, {owner} {mode}")


def names_of(user: int, group: int) -> str:
    names = [str(user), str(group)]
    with contextlib.suppress(KeyError):
        names[0] = pwd.getpwuid(user).pw_name
    with contextlib.suppress(KeyError):
        names[1] = grp.getgrgid(group).gr_name
    return ":".join(names)


def as_service(server: Server) -> dict[str, Any]:
    """Return what makes a process of root's one of the service's user."""
    if not server.is_root:
        return {}
    with contextlib.suppress(KeyError):
        user, group = pwd.getpwnam(USER).pw_uid, grp.getgrnam(USER).gr_gid  # as Group= has it
        return {"user": user, "group": group, "extra_groups": os.getgrouplist(USER, group)}
    return {}


def service_reads(server: Server, path: Path) -> bool:
    if server.is_root:
        return output_of("test", "-r", str(path), **as_service(server))[0] == 0
    return server.user != USER or os.access(path, os.R_OK)


def look_at_alerts(server: Server) -> list[Finding]:
    if server.config.exists() and not os.access(server.config, os.X_OK):
        return []  # said of the settings
    if not server.addresses.exists():
        text = "nobody is told of a failure, it stands in the journal alone: there is no {file}"
        what = Message(text, file=server.addresses)
        mend = "" if server.apprise.exists() else server.reinstall("--with-alerts")
        return [Finding(OFF, "alerts", what, mend)]
    if not server.apprise.exists():
        what = Message("cannot be sent: Apprise is not installed")
        return [Finding(WARNING, "alerts", what, server.reinstall("--with-alerts"))]
    found = [look_at_file(server, server.addresses, "alerts")]
    sender = Path(__file__).with_name("server_alert.py")
    command = [str(server.apprise), *PYTHON_OPTIONS, str(sender), "--look"]
    if server.is_root or server.user == USER:
        code, said = output_of(*command, **as_service(server))
        broken = Message("cannot be sent: Apprise does not start")
        lines: list[Words] = [broken] if code else [*said.split("\n")]
        mend = server.reinstall("--with-alerts") if code else "sudo webkassa-key alert"
        found += [Finding(WARNING, "alerts", line, mend) for line in lines if line]
    return [finding for finding in found if finding.level != OK] or found


def look_for_others(server: Server) -> Finding:
    """Each login kills the key before it, so a second one at another time of day does harm."""
    places = [Path("/etc/crontab"), Path("/etc/cron.d"), Path("/var/spool/cron")]
    places += [path for path in listed(Path("/var/spool/cron")) if path.is_dir()]
    hidden = [str(path) for path in places if path.exists() and not os.access(path, os.R_OK)]
    lines = output_of("bash", str(Path(__file__).with_name("others.sh")))[1].splitlines()
    others = [tuple(line.split("\t", 2)) for line in lines if line.count("\t") == 2]
    names = [os.path.basename(path) for kind, path, _ in others if kind == "unit"]
    units = show_units(*names) if names else {}
    shown, perhaps = list[Words](), list[Words]()
    mend: Words = ""
    for kind, path, remark in others:
        named = Joined("", [f"{path} (", translatable(remark), ")"])
        if remark.startswith("may "):
            perhaps.append(named)
            continue
        unit = units.get(os.path.basename(path), {})
        starts = unit.get("UnitFileState", "") in ("enabled", "enabled-runtime")
        if kind in ("link", "line", "look") or starts or unit.get("ActiveState") == "active":
            shown.append(named)
            mend = mend if kind == "look" else server.reinstall("--take-over")
    if shown:
        text = "another one is {others}: each login kills the key before it"
        return Finding(WARNING, "triggers", Message(text, others=Joined(", ", shown)), mend)
    if hidden:
        return Finding(UNSEEN, "triggers", Joined(": ", [server.unseen, " ".join(hidden)]))
    if perhaps:
        text = "no other one found that is certain; look at {others}"
        return Finding(OK, "triggers", Message(text, others=Joined(", ", perhaps)))
    return Finding(OK, "triggers", Message("no other one found in cron and systemd"))


def translatable(remark: str) -> Words:
    """Return what others.sh remarks as a message."""
    if remark == LOGS_IN:
        return Message(LOGS_IN)
    for pattern, text in REMARKS:
        if found := re.fullmatch(pattern, remark):
            return Message(text, what=found[1])
    return remark


# ---- The report: screen and JSON are made of it, and the alert (server_alert.py)


class Report(NamedTuple):
    findings: list[Shown]
    notes: list[Note]
    key: dict[str, Any] | None  # the program's own status
    failed: list[Failed]
    in_words: Callable[[Words], str]  # of the reader

    @property
    def worst(self) -> Shown:
        return min(self.findings, key=lambda found: WORST_FIRST.index(found.level))

    @property
    def age(self) -> int | None:
        """The age of the oldest key in seconds."""
        rows = self.key["accounts"] if self.key else []
        return max(
            (row["age_seconds"] for row in rows if row.get("age_seconds") is not None), default=None
        )

    @property
    def summary(self) -> str:
        """Return in a line what is worst, and what people want to know first: does the key work?"""
        worst, first = self.worst, self.findings[0]
        parts = [self.headline(worst)]
        if worst.name != "key" == first.name and first.level == UNKNOWN:
            parts.append(self.in_words(Message("how the key stands is not known")))
        elif worst.name != "key" == first.name and worst.level != OK:
            parts.append(self.headline(first))
        if worst.level == OK and any(found.level == OFF for found in self.findings):
            parts.append(self.in_words(Message("alerts are off")))
        return "; ".join(parts)

    def headline(self, found: Shown) -> str:
        """Return a finding in a line: "key 1a2b3c4d, ...", else "name: ..."."""
        is_key = found.name == "key" and re.match(r"[0-9a-f]{8}\b", found.what)
        return self.name_of(found) + (" " if is_key else ": ") + first_line(found.what)

    def name_of(self, found: Shown) -> str:
        return self.in_words(Message(found.name))

    def last_runs(self, *but: str) -> list[str]:
        """Return a title and a line for the last run of each kind, but those."""
        notes = [note for note in self.notes if note.kind not in but]
        lines = [self.in_words(line) for line in lines_of(notes)]
        return [self.in_words(Message("Last runs:")), *lines] if lines else []


def first_line(text: str) -> str:
    return text.partition("\n")[0]


def make_report(server: Server, *more: str) -> Report:
    """Look at all of it; the program's own status gets `more` options."""
    if not server.current.exists() and not (server.units / TIMER).exists():
        what = Message("no: nothing here renews the key")
        found = [Finding(CRITICAL, "installed", what, "sudo ./install.sh"), look_for_others(server)]
        return Report([shown_as(one, server) for one in found], [], None, [], server.in_words)
    key, report = ask_program(server, *more)
    units, notes = show_units(*UNITS), read_notes(server)
    findings, failed = [key, *look_at_timers(server, units)], list[Failed]()
    for kind, (_, service) in ALERTED.items():
        findings += look_at_runs(server, kind, units[service], notes, report)
        failed += failed_runs(server, kind, units[service], notes)
    refused = look_at_login(server, notes)
    if refused and key.mend:  # a new login would be refused, too, and `check` makes none
        findings[0] = key._replace(mend=refused.mend)
    if refused and not any(run.code == 77 for run in failed):
        findings.append(refused)
    findings += [look_at_socket(server, units[SOCKET]), look_at_code(server),
                 look_at_file(server, server.settings, "settings"), *look_at_alerts(server),
                 look_for_others(server)]  # fmt: skip
    shown = [shown_as(found, server) for found in findings]
    return Report(shown, notes, report, failed, server.in_words)


def shown_as(found: Finding, server: Server) -> Shown:
    details = tuple(map(server.in_words, found.details))
    what, mend = server.in_words(found.what), server.in_words(found.mend)
    return Shown(found.level, found.name, what, mend, details)


def print_screen(report: Report) -> None:
    level, plain = report.worst.level, "\033[0m"
    level = OK if level in (OFF, UNSEEN) else level
    colours = {WARNING: "\033[33m", CRITICAL: "\033[31m", UNKNOWN: "\033[35m"}
    colour = colours.get(level, "") if sys.stdout.isatty() else ""
    age = "" if report.age is None else f"|age={report.age}s;{AGES}"
    head = f"WEBKASSA {level}"
    say(f"{colour}{head}{plain if colour else ''} - {report.summary.replace('|', '/')}{age}")
    shown, width = set[str](), max(len(report.in_words(Message(name))) for name in NAMES)
    for found in report.findings:
        what = "\n".join([found.what, *found.details[:SHOWN]])
        if (more := len(found.details) - SHOWN) > 0:
            text = Message("and {more} more: sudo webkassa-key status --json", more=more)
            what += "\n" + report.in_words(text)
        what = what.replace("|", "/").replace("\n", "\n" + (width + 12) * " ")
        say(f"{found.level:8}  {report.name_of(found):{width}}  {what}")
        if found.mend and found.mend not in shown:  # the same for two faults is to be typed once
            say(f"{'':{width + 12}}-> {found.mend}")
        shown.add(found.mend)
    if runs := report.last_runs():
        say(*runs, sep="\n")


def print_json(report: Report) -> None:
    checks = [{"name": found.name, "status": found.level, "mend": found.mend,
               "message": "\n".join([found.what, *found.details])} for found in report.findings]  # fmt: skip
    runs = [note._asdict() for note in report.notes]
    text = {"status": report.worst.level, "message": report.summary, "checks": checks,
            "runs": runs, "key": report.key}  # fmt: skip
    say(json.dumps(text, indent=2))


def main(arguments: list[str], server: Server) -> int:
    """Print what was asked for; return the exit code."""
    if arguments in (["-h"], ["--help"]):
        say(str(__doc__).rstrip())
        return 0
    if arguments == ["--timers"]:
        return prove_timers(server)
    if arguments == ["--hidden"]:
        if hidden := name_hidden(server, sys.stdin.read()):
            say(str(hidden))
        return 0
    if not {*arguments} <= {"--json", "--no-probe"}:
        say(
            f"check-status.sh: unknown arguments {' '.join(arguments)}; see --help", file=sys.stderr
        )
        return EXIT_CODES[UNKNOWN]
    report = make_report(server, *(["--no-probe"] if "--no-probe" in arguments else []))
    print_json(report) if "--json" in arguments else print_screen(report)
    return EXIT_CODES[report.worst.level]


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    code = main(sys.argv[1:], Server())
    with contextlib.suppress(OSError):  # the interpreter would try again at its end, and fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)
