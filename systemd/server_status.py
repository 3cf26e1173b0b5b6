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
import grp
import io
import json
import os
import pwd
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

USER, CLIENTS = "webkassa-key-updater", "webkassa-key-clients"
PYTHON_OPTIONS = (
    "-B",
    "-E",
    "-s",
)  # leave no files behind, see nothing of the caller's environment

OK, WARNING, CRITICAL, UNKNOWN = "OK", "WARNING", "CRITICAL", "UNKNOWN"
UNSEEN, OFF = "UNSEEN", "OFF"  # said, but counted neither as good nor as bad
WORST_FIRST = (CRITICAL, WARNING, UNKNOWN, OK, OFF, UNSEEN)
EXIT_CODES = {OK: 0, OFF: 0, UNSEEN: 0, WARNING: 1, CRITICAL: 2, UNKNOWN: 3}
AGES = "90000;176400"  # seconds, from which WARNING and CRITICAL begin, for a monitor's graphs
SHOWN = 20  # accounts on the screen

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
    "NextElapseUSecRealtime",
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
    217: f"the user {USER} is missing, or this machine allows no user namespaces any more",
    243: "a file that LoadCredential= names is missing",
}
HIDDEN = re.compile(r"/(?:home|root|tmp|var/tmp|run/user)(?:/[\w.@+-]+)*")  # by the sandbox


class Finding(NamedTuple):
    """One thing that was looked at; `mend`: the command that mends it; `details`: of many accounts,
    a line for each."""

    level: str
    name: str
    what: str
    mend: str = ""
    details: tuple[str, ...] = ()


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
    def described(self) -> str:
        meaning = MEANINGS.get(self.code)
        return f"code {self.code}" + (f": {meaning}" if meaning else "")


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
        self.unseen = f"not visible to {self.user} without sudo"
        self.many = (self.units / "webkassa-key-.service.d/10-accounts.conf").exists()
        # Of many accounts, the good keys must stay
        self.renew = "sudo webkassa-key update" + (" --if-needed" if self.many else "")

    @property
    def account_names(self) -> set[str]:
        """The accounts that are to be renewed; "" stands for the only one, and for all."""
        names = {path.stem for path in listed(self.accounts) if path.match("[!.]*.env")}
        return {""} | names

    def reinstall(self, options: str = "") -> str:
        """The command that mends the installation."""
        if (self.current / "install.sh").exists():
            return f"sudo {self.current}/install.sh {options}".rstrip()
        return f"sudo ./install.sh {options}".rstrip() + " (in a fresh copy of the project)"

    def enable(self, unit: str, option: str = "") -> str:
        if not (self.units / unit).exists():
            return self.reinstall()
        return " ".join(filter(None, ["sudo systemctl enable", option, unit]))

    def correct_login(self) -> str:
        where = f"{self.accounts}/NAME.env" if self.many else self.settings
        return f"put the right login and password into {where}, then: {self.renew}"


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


def when(moment: float) -> str:
    """Return a moment for a person, in the time zone of this machine."""
    return time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(moment))


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
            what = f"{units[name]['UnitFileState'] or 'not installed'}: {timer.without}"
            yield Finding(timer.level, "timer", called(name, what), server.enable(name, "--now"))
        elif not is_off:
            found = look_at_timer(server, name, units[name], units[timer.service])
            if found.level != OK or name == TIMER:
                yield found
    if units[BOOT_TIMER]["UnitFileState"] != "enabled":
        what = "a run that was missed while the machine was off is not made up for"
        yield Finding(WARNING, "timer", what, server.enable(BOOT_TIMER))


def called(name: str, what: str) -> str:
    return what if name == TIMER else f"{name}: {what}"


def look_at_timer(
    server: Server, name: str, timer: dict[str, str], service: dict[str, str]
) -> Finding:
    """Say whether a timer that is enabled will start its service in time."""
    ours, comes, mend = TIMERS[name], seconds(timer["NextElapseUSecRealtime"]), ""
    restart = f"sudo systemctl restart {name}"
    for unit, properties in ((ours.service, service), (name, timer)):
        if properties["LoadState"] == "masked":
            what = f"{unit} is masked"
            mend = f"sudo systemctl unmask {unit} && {server.reinstall()}"
    if mend:
        pass
    elif timer["ActiveState"] == "failed":  # its service could not be started when the time came
        what, mend = f"enabled, but failed ({timer['Result']})", restart
    elif timer["ActiveState"] != "active":
        what, mend = f"enabled, {timer['ActiveState']}", server.enable(name, "--now")
    elif timer["SubState"] == "running":
        what = "enabled, active, next run is known when the one at work has ended"
    elif timer["SubState"] == "elapsed" or (ours.longest and comes is None):
        what, mend = "active, but without a next run", restart
    elif ours.longest and comes and comes - time.time() > ours.longest:
        # One restart goes on from the last run's time, which may lie in the future, too
        what = f"its next run is as late as {when(comes)} (was the clock ahead when this machine started?)"
        mend = f"{restart}; {restart}"
    else:
        what = f"enabled, active, next run {when(comes)}" if comes else "enabled, active"
    if mend:
        return Finding(ours.level, "timer", called(name, f"{what}: {ours.without}"), mend)
    return Finding(OK, "timer", called(name, what))


def say(*words: str, sep: str = " ", file: Any = None) -> None:
    """Print, whether or not anybody reads it (install.sh | head): the code is the truth."""
    with contextlib.suppress(OSError):
        print(*words, sep=sep, file=file, flush=True)


def prove_timers(server: Server) -> int:
    """Print when the next run is, and what is wrong with the timers that are enabled."""
    units, worst = show_units(*UNITS), OK
    for name, timer in TIMERS.items():
        if units[name]["UnitFileState"] == "enabled":
            found = look_at_timer(server, name, units[name], units[timer.service])
            worst = min(worst, found.level, key=WORST_FIRST.index)
            if found.level != OK:
                say(f"{found.what}\n-> {found.mend}")
            elif name == TIMER:
                say(f"Next run: {found.what.rpartition('next run ')[2]}")
    return EXIT_CODES[worst]


def look_at_socket(server: Server, socket: dict[str, str]) -> Finding:
    if socket["UnitFileState"] != "enabled" or socket["ActiveState"] != "active":
        what = f"cannot ask for a new key: {SOCKET} is off"
        return Finding(WARNING, "consumers", what, server.enable(SOCKET, "--now"))
    try:
        is_socket = stat.S_ISSOCK(server.socket.stat().st_mode)
    except OSError:
        is_socket = False
    if not is_socket:
        what = f"cannot ask for a new key: {server.socket} was removed"
        return Finding(WARNING, "consumers", what, f"sudo systemctl restart {SOCKET}")
    members = list[str]()
    with contextlib.suppress(KeyError):
        members = grp.getgrnam(CLIENTS).gr_mem
    return Finding(OK, "consumers", ", ".join(["may ask for a new key: root", *members]))


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
        what = what.removeprefix("key ").removeprefix("ключ ")  # in the reader's language
        report["accounts"] = list(report["accounts"])
    except (ValueError, KeyError, TypeError):
        what = f"not known: the updater could not look at it (code {code})"
        return Finding(CRITICAL, "key", what, "sudo webkassa-key check"), None
    mend = {OK: "", UNKNOWN: "sudo webkassa-key check"}.get(level, server.renew)
    if level != OK and (hidden := name_hidden(server, what)):
        what += "\n" + hidden
    rows = [row for row in report["accounts"] if "account" in row]  # where there are many
    details = [printable(f"{row['status']}: {row['account']}: {row['message']}") for row in rows]
    return Finding(level, "key", what, mend, tuple(details)), report


def printable(text: str) -> str:
    """Return a text without what could steer a terminal."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in text)


def name_hidden(server: Server, text: str) -> str:
    """Return a sentence about what is named in a text or in the settings, and is there, but not
    for the service; else nothing."""
    with contextlib.suppress(OSError):
        text += "\n" + server.settings.read_text(errors="replace")
    found = sorted({path for path in HIDDEN.findall(text) if os.path.exists(path)})
    if not found:
        return ""
    return (
        f"{', '.join(found)} is there, but the service cannot see it: its sandbox hides homes and /tmp."
        f" Move it (certificates to /etc/ssl, say), or change the sandbox as {server.units}/{SANDBOX} says."
    )


def read_notes(server: Server) -> list[Note]:
    """Return what updates noted when they ended, the latest first; of accounts that are there."""
    notes, names = list[Note](), server.account_names
    for path in listed(server.state):
        if not path.match("run-*.json"):
            continue
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            noted = json.loads(path.read_text())
            note = Note(*(noted[name] for name in Note._fields))
            if note.account in names:
                notes.append(note._replace(outcome=printable(str(note.outcome))))
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
    described: str
    code: int
    outcome: str


def failed_runs(kind: str, unit: dict[str, str], notes: list[Note]) -> list[Failed]:
    """Return what failed in the last run of a kind, and was not made good by a renewal since."""
    mine = [note for note in notes if note.kind == kind]
    found = [
        Failed(note.account, note.time, note.since, note.described, note.code, note.outcome)
        for note in mine
        if note.code and not renewed_since(note.time, notes, note.account)
    ]
    unnoted = unnoted_failure(unit, mine)
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
    if ended and way not in ("", "0", "1"):
        what, code = f"signal {code}: killed, or out of time", 70
    elif ended and code:
        meaning = MEANINGS.get(code)
        what = f"code {code}" + (f": {meaning}" if meaning else "")
    elif unit["ActiveState"] == "failed":
        what, code = f"systemd says {unit['Result']}", 70
    else:
        return None
    moment = ended or started or time.time()
    return Failed("", moment, moment, what, code, "")


def look_at_runs(
    server: Server, kind: str, unit: dict[str, str], notes: list[Note],
    report: dict[str, Any] | None,
) -> Iterator[Finding]:  # fmt: skip
    """Say how the last run of a kind ended; good ones are told of the daily run alone."""
    name = ALERTED[kind][0]
    failed = failed_runs(kind, unit, notes)
    started = seconds(unit["ExecMainStartTimestamp"])
    if unit["SubState"].startswith("start") and started:
        yield Finding(OK, name, f"at work since {when(started)}")
    elif failed:
        what, mend = describe_failure(server, failed)
        details = tuple(f"{r.account}: code {r.code}, {r.outcome}" for r in failed if r.account)
        if unit["SubState"].startswith("auto-restart"):
            yield Finding(WARNING, name, f"{what}\nIt is tried again by itself.", "", details)
        elif all(changed_since(run, report) for run in failed):
            what += "\nSomebody else has renewed the key since."
            yield Finding(WARNING, name, what, mend, details)
        else:
            yield Finding(CRITICAL, name, what, mend, details)
    elif kind == "daily":
        yield Finding(OK, name, describe_good(unit, notes))


def describe_failure(server: Server, failed: list[Failed]) -> tuple[str, str]:
    """Return in words what failed, in the first line all of it; and what mends it."""
    since, codes = when(min(run.since for run in failed)), sorted({run.code for run in failed})
    named = [run for run in failed if run.account]
    if len(codes) == 1 or not failed[0].account:
        what = f"failing since {since} ({failed[0].described})"
    else:
        what = f"failing since {since} (codes {', '.join(map(str, codes))})"
    if named:
        names = ", ".join(run.account for run in named[:3]) + (", ..." if len(named) > 3 else "")
        what += f": {len(named)} of {len(server.account_names) - 1} accounts: {names}"
    elif failed[0].outcome:
        what += "\n" + failed[0].outcome
    return what, mend_for(server, codes)


def mend_for(server: Server, codes: list[int]) -> str:
    if {1, 203, 217} & set(codes):
        return server.reinstall()
    if 243 in codes:
        return f"systemctl cat {UPDATE}, and put the file back"
    if 77 in codes:
        return server.correct_login()
    return "sudo webkassa-key check" if {2, 73, 78} & set(codes) else server.renew


def look_at_login(server: Server, notes: list[Note]) -> Finding | None:
    """Say that Webkassa refused a login, in whatever kind of run, and none was good since."""
    refused = [note for note in notes
               if note.code == 77 and not renewed_since(note.time, notes, note.account)]  # fmt: skip
    if not refused:
        return None
    last = refused[0]
    what = f"Webkassa refused it {KINDS.get(last.kind, last.kind)} {when(last.time)}"
    details = dict.fromkeys(f"{note.account}: refused" for note in refused if note.account)
    return Finding(CRITICAL, "login", what, server.correct_login(), tuple(details))


def changed_since(run: Failed, report: dict[str, Any] | None) -> bool:
    """Say whether the stored key is younger than this failure, by more than clocks may differ."""
    now, accounts = time.time(), report["accounts"] if report else []
    mine = [row for row in accounts if run.account in ("", row.get("account", ""))]
    ages = [row.get("age_seconds") for row in mine]
    return bool(ages) and all(age is not None and now - age > run.time + 60 for age in ages)


def describe_good(unit: dict[str, str], notes: list[Note]) -> str:
    daily = [note for note in notes if note.kind == "daily"]
    ended = seconds(unit["ExecMainExitTimestamp"]) if unit["ExecMainStatus"] == "0" else None
    moments = [note.time for note in daily if not note.code] + [ended or 0]
    bad = [note for note in daily if note.code]
    if bad:
        renewed = next(note for note in notes if note.renewed and note.renewed > bad[0].time)
        how = KINDS.get(renewed.kind, renewed.kind)
        return f"good: renewed {how} {when(renewed.renewed or 0)}, after the run of {when(bad[0].time)} had failed"
    return f"good, {when(max(moments))}" if max(moments) else "none so far"


def lines_of(notes: list[Note]) -> list[str]:
    """Return a line for the last run of each kind, the latest first."""
    lines = []
    for kind in dict.fromkeys(note.kind for note in notes):
        mine = [note for note in notes if note.kind == kind]
        bad = [note for note in mine if note.code]
        said = (bad or mine)[0].outcome.split("\n")[0]
        if any(note.account for note in mine):
            failed = ", ".join(f"{note.account or 'all'} {note.code}" for note in bad[:SHOWN])
            said = f"{len(mine) - len(bad)} of {len(mine)} accounts: done" + (
                f"; not done: {failed}" if bad else ""
            )
        code = f"code {bad[0].code}" if len({note.code for note in bad}) == 1 else "done"
        code = "codes differ" if len({note.code for note in bad}) > 1 else code
        lines.append(f"{when(mine[0].time)}, {KINDS.get(kind, kind)}, {code}: {said}")
    return lines


# ---- The installation


def look_at_code(server: Server) -> Finding:
    code, version = output_of(*server.program, "--version")
    python = output_of(server.program[0], "--version")[1].strip()
    if code == 0:
        what = f"version {version.strip()}, {python}"
        if issued := old_certificates(server):
            what += f"; its certificates of authorities are of {issued}: it may come to know Webkassa's no more"
            return Finding(
                WARNING, "code", what, "sudo ./install.sh (in a fresh copy of the project)"
            )
        return Finding(OK, "code", what)
    what = "does not start: the virtual environment is broken, nothing can renew the key"
    return Finding(CRITICAL, "code", what, server.reinstall())


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
        what = f"{path} is a link to {path.readlink()}, which is not there: put it back"
        return Finding(CRITICAL, name, what)
    if not path.exists():
        make = f"sudo install -D -o root -g {USER} -m 640 {server.current}/.env.example {path}"
        what = f"{path} is missing: without it nothing renews the key. Fill in what this makes"
        return Finding(CRITICAL, name, what, make)
    if HIDDEN.match(
        f"/{target.relative_to(server.root)}" if target.is_relative_to(server.root) else str(target)
    ):
        what = (
            f"{target} is hidden from the service, which sees no homes and no /tmp: move it to /etc"
        )
        return Finding(CRITICAL, name, what)
    try:
        found = target.stat()
    except OSError:
        return Finding(UNSEEN, name, server.unseen)
    mode, owner = f"{stat.S_IMODE(found.st_mode):o}", owner_of(found)
    if not service_reads(server, target):
        what = f"{target} is {owner} {mode}: the service cannot read it"
        return Finding(CRITICAL, name, what, mend)
    if found.st_uid or not re.fullmatch("[4-7][04]0", mode):
        what = f"{target} is {owner} {mode}, not root:{USER} 640"
        return Finding(WARNING, name, what, mend)
    return Finding(OK, name, f"{target}, {owner} {mode}")


def owner_of(found: os.stat_result) -> str:
    user, group = str(found.st_uid), str(found.st_gid)
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(found.st_uid).pw_name
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(found.st_gid).gr_name
    return f"{user}:{group}"


def as_service(server: Server) -> dict[str, Any]:
    """Return what makes a process of root's one of the service's user."""
    if not server.is_root:
        return {}
    with contextlib.suppress(KeyError):
        user = pwd.getpwnam(USER)
        groups = os.getgrouplist(USER, user.pw_gid)
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": groups}
    return {}


def service_reads(server: Server, path: Path) -> bool:
    if server.is_root:
        return output_of("test", "-r", str(path), **as_service(server))[0] == 0
    return server.user != USER or os.access(path, os.R_OK)


def look_at_alerts(server: Server) -> list[Finding]:
    if server.config.exists() and not os.access(server.config, os.X_OK):
        return []  # said of the settings
    if not server.addresses.exists():
        what = f"nobody is told of a failure, it stands in the journal alone: there is no {server.addresses}"
        mend = "" if server.apprise.exists() else server.reinstall("--with-alerts")
        return [Finding(OFF, "alerts", what, mend)]
    if not server.apprise.exists():
        what = "cannot be sent: Apprise is not installed"
        return [Finding(WARNING, "alerts", what, server.reinstall("--with-alerts"))]
    found = [look_at_file(server, server.addresses, "alerts")]
    sender = Path(__file__).with_name("server_alert.py")
    command = [str(server.apprise), *PYTHON_OPTIONS, str(sender), "--look"]
    if server.is_root or server.user == USER:
        code, said = output_of(*command, **as_service(server))
        lines = said.split("\n") if code == 0 else ["cannot be sent: Apprise does not start"]
        mend = "sudo webkassa-key alert" if code == 0 else server.reinstall("--with-alerts")
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
    shown, perhaps, mend = [], [], ""
    for kind, path, remark in others:
        if remark.startswith("may "):
            perhaps.append(f"{path} ({remark})")
            continue
        unit = units.get(os.path.basename(path), {})
        starts = unit.get("UnitFileState", "") in ("enabled", "enabled-runtime")
        if kind in ("link", "line", "look") or starts or unit.get("ActiveState") == "active":
            shown.append(f"{path} ({remark})")
            mend = mend if kind == "look" else server.reinstall("--take-over")
    if shown:
        what = f"another one is {', '.join(shown)}: each login kills the key before it"
        return Finding(WARNING, "triggers", what, mend)
    if hidden:
        return Finding(UNSEEN, "triggers", f"{server.unseen}: {' '.join(hidden)}")
    what = "no other one found in cron and systemd"
    if perhaps:
        what = f"no other one found that is certain; look at {', '.join(perhaps)}"
    return Finding(OK, "triggers", what)


# ---- The report: screen and JSON are made of it, and the alert (server_alert.py)


class Report(NamedTuple):
    findings: list[Finding]
    notes: list[Note]
    key: dict[str, Any] | None  # the program's own status

    @property
    def worst(self) -> Finding:
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
        text = f"{worst.name}: {first_line(worst.what)}"
        if worst.name == "key":
            text = re.sub(r"^key: (?=[0-9a-f]{8}[,:; ])", "key ", text)
        elif first.name == "key" and first.level == UNKNOWN:
            text += "; how the key stands is not known"
        elif first.name == "key" and worst.level != OK:
            text += f"; key {first_line(first.what)}"
        if worst.level == OK and any(found.level == OFF for found in self.findings):
            text += "; alerts are off"
        return text


def first_line(text: str) -> str:
    return text.partition("\n")[0]


def make_report(server: Server, *more: str) -> Report:
    """Look at all of it; the program's own status gets `more` options."""
    if not server.current.exists() and not (server.units / TIMER).exists():
        what = "no: nothing here renews the key"
        found = [Finding(CRITICAL, "installed", what, "sudo ./install.sh"), look_for_others(server)]
        return Report(found, [], None)
    key, report = ask_program(server, *more)
    units, notes = show_units(*UNITS), read_notes(server)
    findings, failed = [key, *look_at_timers(server, units)], list[Failed]()
    for kind, (_, service) in ALERTED.items():
        findings += look_at_runs(server, kind, units[service], notes, report)
        failed += failed_runs(kind, units[service], notes)
    refused = look_at_login(server, notes)
    if refused and key.mend:  # a new login would be refused, too, and `check` makes none
        findings[0] = key._replace(mend=refused.mend)
    if refused and not any(run.code == 77 for run in failed):
        findings.append(refused)
    findings += [look_at_socket(server, units[SOCKET]), look_at_code(server),
                 look_at_file(server, server.settings, "settings"), *look_at_alerts(server),
                 look_for_others(server)]  # fmt: skip
    return Report(findings, notes, report)


def print_screen(report: Report) -> None:
    level, plain = report.worst.level, "\033[0m"
    level = OK if level in (OFF, UNSEEN) else level
    colours = {WARNING: "\033[33m", CRITICAL: "\033[31m", UNKNOWN: "\033[35m"}
    colour = colours.get(level, "") if sys.stdout.isatty() else ""
    age = "" if report.age is None else f"|age={report.age}s;{AGES}"
    head = f"WEBKASSA {level}"
    say(f"{colour}{head}{plain if colour else ''} - {report.summary.replace('|', '/')}{age}")
    shown = set[str]()
    for found in report.findings:
        what = "\n".join([found.what, *found.details[:SHOWN]])
        more = len(found.details) - SHOWN
        what += f"\nand {more} more: sudo webkassa-key status --json" if more > 0 else ""
        what = what.replace("|", "/").replace("\n", "\n" + 21 * " ")
        say(f"{found.level:8}  {found.name:9}  {what}")
        if found.mend and found.mend not in shown:  # the same for two faults is to be typed once
            say(f"{'':21}-> {found.mend}")
        shown.add(found.mend)
    if report.notes:
        say("Last runs:", *lines_of(report.notes), sep="\n")


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
        say(*filter(None, [name_hidden(server, sys.stdin.read())]))
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
