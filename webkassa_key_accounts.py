"""Many accounts: each NAME.env of a folder is one, and is done in a process of its own.

webkassa_key_updater.py loads this file by its path, when it is told of such a folder, and hands
itself in as `updater`. To import it from here would make a second copy, with other classes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import difflib
import fnmatch
import functools
import gc
import hashlib
import logging
import mmap
import os
import re
import signal
import socket
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH

if TYPE_CHECKING:
    import webkassa_key_updater as updater

log = logging.getLogger("webkassa_key_updater")

# ---- The accounts of a folder


class Plan(NamedTuple):
    """What an account's file says: the account or what is wrong with it, the monitor's URL, the login
    also where something is wrong."""

    account: updater.Account | updater.SettingsFault
    monitor: updater.Secret
    login: updater.Secret


Accounts = list[tuple[str, Plan]]  # by their names
Report = dict[str, Any]  # what `status --json` says of one


def read_accounts(folder: str, values: Mapping[str, str]) -> dict[str, Plan]:
    """Return the accounts of a folder by their names, given the settings of all. What is wrong with
    a file stops its account alone, one login or row in two files these two."""
    base = {name: value for name, value in values.items() if name not in updater.OWN}
    try:  # an editor's own files are hidden
        files = sorted(path for path in Path(folder).iterdir() if path.name[0] != ".")
    except OSError as error:
        raise fault_at(folder, "cannot be read ({why})", why=error.strerror) from None
    plans = {path.stem: read_plan(path, base) for path in files if path.suffix == ".env"}
    if not plans:
        what = "{folder} holds no account, that is no file NAME.env"
        raise updater.settings_fault([updater.Message(what, folder=folder)])
    if others := [path.name for path in files if path.suffix != ".env"]:
        what = "{folder}: no NAME.env, so no account: {names}"
        log.warning(updater.Message(what, folder=folder, names=", ".join(others)))
    logins = {common_login(plan.login.value) for plan in plans.values()}
    for name, faults in find_twins(plans).items():
        plans[name] = plans[name]._replace(account=updater.settings_fault(faults))
    # The only account of before, whose key nobody would renew any more
    left, example = values.get("WEBKASSA_LOGIN", ""), updater.SettingsParser.PLACEHOLDER
    is_left = left and not example.fullmatch(left) and common_login(left) not in logins
    if is_left and "" not in logins:
        name = next(n for n in ("main", *map("main-{}".format, range(999))) if n not in plans)
        what = ("the login of the settings of all is no account's, and its key is not renewed: it, "
                "its password and WEBKASSA_SERVICE_NAME={service} go into {name}.env")  # fmt: skip
        service = values.get("WEBKASSA_SERVICE_NAME", "Webkassa")
        fault = updater.settings_fault([updater.Message(what, name=name, service=service)])
        plans[name] = Plan(fault, updater.NO_KEY, updater.Secret(left))
    return plans


def fault_at(place: str, what: str, **facts: object) -> updater.SettingsFault:
    why = updater.Message(what, **facts)
    return updater.settings_fault([updater.Message("{file}: {why}", file=place, why=why)])


def find_twins(plans: Mapping[str, Plan]) -> dict[str, list[updater.Message]]:
    """Return what is wrong with accounts that have one login or one row, by their names."""
    owners: dict[tuple[Any, ...], list[str]] = {}
    for name, plan in plans.items():
        if isinstance(plan.account, updater.Account):
            for mark in identify_row_and_login(plan.account):
                owners.setdefault(mark, []).append(name)
    faults: dict[str, list[updater.Message]] = {}
    for (kind, *_), names in owners.items():
        for name in names if len(names) > 1 else ():
            twins = ", ".join(f"{other}.env" for other in names if other != name)
            what = "{name}.env: its login is the one of {twins}, too"
            if kind == "row":
                what = "{name}.env: its row is the one of {twins}, too"
            faults.setdefault(name, []).append(updater.Message(what, name=name, twins=twins))
    return faults


def read_plan(path: Path, base: dict[str, str]) -> Plan:
    faults, own = list[updater.Message](), dict[str, str]()
    row = {"WEBKASSA_SERVICE_NAME": f"Webkassa:{path.stem}"}
    account: updater.Account | updater.SettingsFault
    try:
        own = updater.read_env_file(path, faults)
        faults += find_foreign_names(path, own)
        updater.read_secret_files(own, faults)
        if any(name.startswith("POSTGRES_") for name in own):  # a database of its own
            row["DATABASE_URL"] = own["DATABASE_URL"] = own.get("DATABASE_URL", "")
        account = updater.read_account(row | base | own, faults)
    except updater.SettingsFault as fault:
        account = updater.SettingsFault("{file}: {why}", file=path, why=fault.message)
    return Plan(account, updater.monitor_of(own, []), updater.Secret(own.get("WEBKASSA_LOGIN", "")))


def find_foreign_names(path: Path, own: Iterable[str]) -> Iterator[updater.Message]:
    """Yield what is wrong with the name of an account, and with the names in its file."""
    if not re.fullmatch("[a-z0-9][a-z0-9_-]{0,39}", path.stem):
        yield updater.Message("the name of an account is a-z, 0-9, - and _, 40 at most")
    foreign = sorted({*own} - updater.NAMES)
    lines = re.split("\r\n|\r|\n", updater.read_text(path)) if foreign else []
    for name in foreign:
        at = [n for n, line in enumerate(lines, 1) if re.match(rf"\W*(export\s+)?{name}\b", line)]
        near = updater.nearest_setting(name)
        what = "line {line}: {name}: is not known; is {near} meant?"
        is_ours = re.match("WEBKASSA|POSTGRES|API_|HEALTH|PG|https?_", name, re.IGNORECASE)
        if not is_ours and re.fullmatch("[A-Z][A-Z0-9_]*|[a-z]+(_[a-z]+)+", name):
            what = "line {line}: {name}: is no setting of this program"
        elif not is_ours:
            what = "line {line}: its name is no setting; not shown, since it may be a password"
        elif not near or name in updater.OTHER_NAMES or not name.startswith(updater.PREFIXES):
            what = "line {line}: {name}: is not an account's own: it goes into the settings of all"
        yield updater.Message(what, name=name, near=near, line=at[0] if at else "?")


def identify_row_and_login(account: updater.Account) -> Iterator[tuple[Any, ...]]:
    """Yield what tells the row of an account from every other, for each host that has it, and what
    tells its login, however it is written."""
    database = {name: str(value) for name, value in account.database.items()}
    ports = database.get("port", "5432").split(",")
    where = [database.get("dbname", database.get("user")), database.get("service")]
    where += [account.schema or database.get("options", "public"), account.table, account.service]
    hosts = database.get("hostaddr", database.get("host", "/")).split(",")
    for number, host in enumerate(hosts):
        yield ("row", common_name(host), ports[min(number, len(ports) - 1)], *where)
    url = urlsplit(account.auth_url)
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    yield "login", common_name(url.hostname or ""), port, common_login(account.login.value)


def common_login(login: str) -> str:
    return unicodedata.normalize("NFKC", login).casefold().rstrip(".")


@functools.cache
def common_name(host: str) -> str:
    """Return one name for all that a host may be called: this machine, the vendor."""
    host = host.lower().rstrip(".")
    local = r"[/@].*|(.+\.)?localhost(\.localdomain)?|ip6-(localhost|loopback)"
    if updater.is_loopback(host) or re.fullmatch(local, host) or host == socket.gethostname():
        return "localhost"
    is_vendor = host.endswith(".webkassa.kz") and host not in updater.TEST_HOSTS
    return "webkassa.kz" if is_vendor else host


# ---- A forked child for each account, so that they cannot mix


class Child(NamedTuple):
    """A child at work on the account `name`; at its `end` it is taken for one that hangs."""

    name: str
    end: updater.Deadline


class ProcessPool:
    """Runs `work(name, account)` for each account in a forked child, `jobs` at a time, and kills
    one that takes longer than `bound(account)` seconds. By name, `codes` are the exit codes;
    `reasons` tell why, where a child could not. `on_stop` is called at the first signal to stop."""

    def __init__(
        self, accounts: list[tuple[str, Any]], jobs: int, bound: Callable[[Any], float],
        on_stop: Callable[[], None],
    ) -> None:  # fmt: skip
        self.waiting, self.jobs, self.bound, self.on_stop = accounts, jobs, bound, on_stop
        self.running: dict[int, Child] = {}
        self.codes: dict[str, int] = {}
        self.reasons: dict[str, updater.Message | None] = {}
        self.stopped = False
        self.stops = {n for n in updater.STOP_SIGNALS if signal.getsignal(n) != signal.SIG_IGN}

    def run(self, work: Callable[[str, Any], int]) -> Iterator[str]:
        """Yield the name of each account that is done. Signals are held back from now on, and
        taken where nothing else is going on: so none comes at a bad moment, and none is missed."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, there would be nothing to wait for
        awaited = {*self.stops, signal.SIGCHLD}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
        gc.freeze()
        while True:
            while self.waiting and len(self.running) < self.jobs and self.start(work, mask):
                pass
            if not self.running:
                return
            came = signal.sigtimedwait(awaited, min(c.end.left for c in self.running.values()))
            if came and came.si_signo in self.stops:
                self.stop(came.si_signo)
            yield from self.reap()
            yield from self.kill_hung()

    def start(self, work: Callable[[str, Any], int], mask: set[Any]) -> bool:
        """Fork for the next account; return False where another must end before it. A child takes
        signals as a single run does."""
        name, account = self.waiting.pop(0)
        try:
            pid = os.fork()
        except OSError as error:  # no process more, or no memory
            if self.running:
                self.waiting.insert(0, (name, account))
            else:
                reason = updater.Message("not tried: {error}", error=error)
                self.note(name, updater.StoreUnavailable.code, reason)
            return not self.running
        if pid:
            self.running[pid] = Child(name, updater.Deadline(self.bound(account)))
            return True
        code = updater.Failure.code
        try:
            for number in self.stops:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = work(name, account)
        except Exception as error:
            log.error("%s: %s", name, updater.as_failure(error))
        finally:
            os._exit(code)

    def reap(self) -> Iterator[str]:
        """Take leave of the children that have ended: several may have sent one signal."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                child = self.running.pop(ended[0], None)
                if child:  # the first process of a container inherits strangers
                    self.note_end(child.name, os.waitstatus_to_exitcode(ended[1]))
                    yield child.name

    def kill_hung(self) -> Iterator[str]:
        """Kill the children that were stopped, or hang in the kernel. Nobody waits for these: they
        may end at any time, or never."""
        for pid, child in list(self.running.items()):
            if not child.end.left:
                os.kill(pid, signal.SIGKILL)
                del self.running[pid]
                reason = updater.Message("killed: it did not end in time")
                self.note(child.name, updater.Failure.code, reason)
                yield child.name

    def note_end(self, name: str, code: int) -> None:
        if self.stopped and -code in self.stops:
            self.note(name, updater.StoreUnavailable.code, updater.Message("told to stop"))
        elif code < 0:
            reason = updater.Message("killed by signal {number}", number=-code)
            self.note(name, updater.Failure.code, reason)
        else:
            self.note(name, code)

    def note(self, name: str, code: int, reason: updater.Message | None = None) -> None:
        self.codes[name], self.reasons[name] = code, reason

    def stop(self, number: int) -> None:
        """Start no more, and let the running ones end as a single run does."""
        reason = updater.Message("not tried: told to stop")
        for name, _ in self.waiting:
            self.note(name, updater.StoreUnavailable.code, reason)
        if not self.stopped:
            self.on_stop()
        self.waiting, self.stopped = [], True
        for pid in self.running:
            os.kill(pid, number)


class Places:
    """Where the children's connections stand: a byte for each child, seen by all. A server says in
    its own words alone why it rejects somebody. So who is rejected while others of us are in takes
    it for full, and tries again, ever more seldom, while they are in: of those who wait the first."""

    OUT, TRYING, WAITING, IN, LEFT = range(5)
    PAUSE, LEAVING = 0.1, 5.0  # seconds until a second try; that a server may take to free a place

    def __init__(self, accounts: Accounts) -> None:
        self.connector = updater.Connector()
        self.states = mmap.mmap(-1, len(accounts) + 1)
        self.numbers = {name: number for number, (name, _) in enumerate(accounts)}
        self.servers = [server_of(plan.account) for _, plan in accounts]

    def leave(self, name: str) -> None:
        was_in = self.states[self.numbers[name]] == self.IN
        self.states[self.numbers[name]] = self.LEFT if was_in else self.OUT

    def others(self, me: int, before: int) -> set[int]:
        """Return how others of the same server stand, of those with a number below `before`."""
        others = (n for n in range(before) if n != me and self.servers[n] == self.servers[me])
        return {self.states[n] for n in others}

    def connect(
        self, name: str, account: updater.Account, deadline: updater.Deadline
    ) -> updater.Connection:
        """Connect for the account of this name; raise StoreUnavailable."""
        me = self.numbers[name]
        self.states[me] = self.TRYING
        try:
            connection = self.connect_in_turn(me, account, deadline)
        except updater.StoreUnavailable:
            self.states[me] = self.OUT
            raise
        self.states[me] = self.IN
        return connection

    def connect_in_turn(
        self, me: int, account: updater.Account, deadline: updater.Deadline
    ) -> updater.Connection:
        full, rejection, pause = None, None, self.PAUSE
        while True:
            others = self.others(me, len(self.servers))
            if self.IN in others or (self.LEFT in others and not full):
                full = updater.Deadline(self.LEAVING)
            is_full = bool(full and full.left)
            if rejection and not (deadline.left and (is_full or self.TRYING in others)):
                raise rejection
            if not rejection or (is_full and self.WAITING not in self.others(me, me)):
                try:
                    return self.connector(account, deadline)
                except updater.StoreUnavailable as failure:
                    if not failure.is_rejected:
                        raise
                    self.states[me], rejection, pause = self.WAITING, failure, min(2 * pause, 1.0)
            time.sleep(pause)


def server_of(account: updater.Account | updater.SettingsFault) -> list[str]:
    database = {} if isinstance(account, updater.SettingsFault) else account.database
    return [str(database.get(name)) for name in (*updater.Connector.ADDRESS, "service")]


def longest_run(plan: Plan) -> float:
    """Return seconds, with some to spare: an update waits for as long as a healthy one may take,
    and then takes as long itself. All its waits have bounds, so one that takes longer hangs."""
    longest = updater.LoginState.longest_hold
    return 60 if isinstance(plan.account, updater.SettingsFault) else 60 + 2 * longest(plan.account)


# ---- Status: one process for all, since it changes nothing


OURS = "service_name::text = ANY(%(services)s) OR service_name::text ~ '^Webkassa(:|$)'"
READING, WORKERS = 3.0, 32  # seconds, of the time that a status has; at a time


def report_all(command: updater.Command, accounts: Accounts) -> tuple[list[Report], list[Report]]:
    """Return how all accounts stand within the time that one has, their rows by one SELECT for each
    table, then the probes side by side; and what rows look like ours and are none of theirs."""
    end, tables = updater.Deadline(updater.STATUS_TIME), group_by_table(accounts)
    read = functools.partial(read_rows, end.within(READING))
    late = updater.StoreUnavailable("PostgreSQL has not answered in time.")
    rows = side_by_side(read, [*tables.values()], late, READING + 0.5)
    found = dict(zip(tables, rows, strict=True))
    servers = [server_of(tables[t][0]) for t, rows in found.items() if isinstance(rows, dict)]
    for table, rows in found.items():  # a server that was full may have room for one
        if getattr(rows, "is_rejected", False) and server_of(tables[table][0]) in servers:
            found[table] = read(tables[table])
    report = functools.partial(report_one, command, found, end)
    why = updater.in_readers_language(updater.Message("no time was left to look"))
    lost: Report = {"status": "UNKNOWN", "message": why}
    # Whoever is left then is not probed, which a busy machine does in a moment, too
    reports = side_by_side(report, accounts, lost, end.left + 2)
    reports = [{"account": name} | one for (name, _), one in zip(accounts, reports, strict=True)]
    known = {account.service for group in tables.values() for account in group}
    faulty = {f"Webkassa:{n}" for n, plan in accounts if isinstance(plan.account, updater.Failure)}
    seen = {row for rows in found.values() if isinstance(rows, dict) for row in rows}
    stranger = {"status": "OK", "message": updater.in_readers_language(updater.Message(NO_FILE))}
    return reports, [{"account": r, "service": r} | stranger for r in sorted(seen - known - faulty)]


def side_by_side(
    work: Callable[[Any], Any], things: list[Any], late: Any, seconds: float
) -> list[Any]:
    """Return what `work` gives for each thing, `late` for those that it has not done in time."""
    pool = concurrent.futures.ThreadPoolExecutor(WORKERS)
    futures = [pool.submit(work, thing) for thing in things]
    concurrent.futures.wait(futures, seconds)
    pool.shutdown(wait=False, cancel_futures=True)
    return [f.result() if f.done() and not f.cancelled() else late for f in futures]


def group_by_table(accounts: Accounts) -> dict[tuple[Any, ...], list[Any]]:
    """Return the accounts whose files are good, by the table that their rows are in."""
    tables: dict[tuple[Any, ...], list[updater.Account]] = {}
    for _, plan in accounts:
        if isinstance(plan.account, updater.Account):
            tables.setdefault(table_of(plan.account), []).append(plan.account)
    return tables


def find_holders(key: str, accounts: Accounts, is_whole: bool) -> Accounts:
    """Return the accounts whose row holds a consumer's key, and those of which nobody can tell. Raise
    SettingsFault where a row holds it that is no account's, though these are all."""
    end, tables = updater.Deadline(READING), group_by_table(accounts)
    found = {table: read_rows(end, group) for table, group in tables.items()}
    holders = {
        (table, service)
        for table, rows in found.items()
        for service, mine in (rows.items() if isinstance(rows, dict) else ())
        if any(key in (row.key.fingerprint, row.padded.fingerprint) for row in mine)
    }
    services, chosen = {service for _, service in holders}, Accounts()
    for name, plan in accounts:
        if isinstance(plan.account, updater.SettingsFault):
            is_meant = f"Webkassa:{name}" in services
        else:
            table, service = table_of(plan.account), plan.account.service
            is_meant = isinstance(found[table], updater.Failure) or (table, service) in holders
        if is_meant:
            chosen.append((name, plan))
    if services and not chosen:  # a file with a fault may be the one for this row
        chosen = [one for one in accounts if isinstance(one[1].account, updater.SettingsFault)]
        if is_whole and not chosen:
            raise fault_at(min(services), NO_FILE)
    return chosen


NO_FILE = "no file in the folder is for this row: it is not renewed from here"


def table_of(account: updater.Account) -> tuple[Any, ...]:
    """Return what tells apart how and where the row of an account is read."""
    values = {name: getattr(value, "value", value) for name, value in account.database.items()}
    return (*sorted(values.items()), account.schema, account.table)


def read_rows(
    deadline: updater.Deadline, accounts: list[updater.Account]
) -> dict[str, list[updater.KeyRow]] | updater.Failure:
    """Return the rows of these accounts, which are in one table, and those that look like ours, by
    their services; or why they cannot be read."""
    job = updater.Job(accounts[0], updater.IF_NEEDED, lambda *_: None, updater.Connector())
    rows: dict[str, list[updater.KeyRow]] = {}
    try:
        with updater.KeyStore(job, deadline) as store:
            facts = {"services": [account.service for account in accounts], "limit": 1000}  # ms
            for service, row in store.select_rows(OURS, facts):
                rows.setdefault(service, []).append(row)
    except Exception as error:
        return updater.as_failure(error)
    return rows


def report_one(
    command: updater.Command, found: Mapping[tuple[Any, ...], Any], end: updater.Deadline,
    one: tuple[str, Plan],
) -> Report:  # fmt: skip
    """Return how an account stands, given the rows of each table."""
    name, plan = one
    typed, account = copy.copy(command), plan.account
    typed.name = name
    if command.options.no_probe and isinstance(account, updater.Account):
        account = account._replace(probe_url="")
    try:
        return updater.status(account, typed.as_typed, end, functools.partial(pick_row, found), 0)
    except Exception as error:
        said = updater.in_readers_language(updater.as_failure(error).message)
        return {"status": "UNKNOWN", "message": said}


def pick_row(
    found: Mapping[tuple[Any, ...], Any], account: updater.Account, _: updater.Deadline
) -> updater.KeyRow:
    rows = found[table_of(account)]
    if isinstance(rows, updater.Failure):
        raise rows
    mine: list[updater.KeyRow] = rows.get(account.service, [updater.KeyRow()])
    if len(mine) > 1:
        what = "{count} rows are of this service. Delete all but one of them."
        raise updater.WriteRefused(what, count=len(mine))
    return mine[0]


# ---- Command line: nothing above touches the environment or the terminal


def do_many(command: updater.Command, values: dict[str, str], faults: list[updater.Message]) -> int:
    """Do the command for every account of its folder; return the exit code."""
    monitor = updater.monitor_of(values, faults)
    if faults:
        raise updater.settings_fault(faults)
    everyone = read_accounts(command.folder, values)
    accounts = select_accounts(command, list(everyone.items()))
    is_whole = len(accounts) == len(everyone)
    if command.is_update and command.options.mode not in (updater.ALWAYS, updater.IF_NEEDED):
        if not command.options.account:
            try:
                accounts = find_holders(command.options.mode, accounts, is_whole)
            except updater.SettingsFault as fault:  # of a stranger: nothing for the monitor of all
                return command.do_one(fault, updater.NO_KEY)
    elif command.options.is_asked:
        command.options.usage_error("with many accounts the line is NAME FINGERPRINT")
    if not command.options.no_probe:  # each child would read the certificates anew, for 20 ms
        updater.tls_context(values.get("REQUESTS_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH)
    if command.options.command == "status":
        return print_reports(command, *report_all(command, accounts), is_whole)
    pool = ProcessPool(accounts.copy(), command.options.jobs, longest_run, tell_of_stop)
    places = Places(accounts)
    for name in pool.run(functools.partial(do_child, command, places)):
        places.leave(name)
        if os.isatty(2):
            done = {"done": len(pool.codes), "count": len(accounts)}
            told = updater.Message("{done} of {count} accounts", **done)
            updater.say(told, sys.stderr, end="\r")
    code = sum_up(command, pool)
    if command.is_update and not command.options.account:  # else it tells nothing of the others
        updater.ping(monitor, code, [*everyone])
    return code


def select_accounts(command: updater.Command, everyone: Accounts) -> Accounts:
    """Return the accounts that --account and --shard leave; exit as wrongly used where --account
    names none."""
    names = [name for name, _ in everyone]
    named = set(() if command.options.account else names)
    for pattern in command.options.account:
        if not (found := fnmatch.filter(names, pattern)):
            near = difflib.get_close_matches(pattern, names, 1, 0.5)
            what = "--account {name}: there is no such account in {folder}"
            if near:
                what = "--account {name}: there is no such account in {folder}; is {near} meant?"
            facts = {"name": pattern, "folder": command.folder, "near": "".join(near)}
            command.options.usage_error(updater.in_readers_language(updater.Message(what, **facts)))
        named.update(found)
    number, shards = command.options.share
    chosen = [one for one in everyone if one[0] in named and shard_of(one[0], shards) == number]
    if not chosen:
        what = "0 accounts here: none of the {count} that are meant is in shard {number}/{shards}."
        log.info(updater.Message(what, count=len(named), number=number, shards=shards))
    return chosen


def shard_of(name: str, shards: int) -> int:
    """Return the shard of an account: told by its name alone, so that machines whose folders differ
    by a file share the work all the same."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") % shards


def sum_up(command: updater.Command, pool: ProcessPool) -> int:
    """Say which accounts are not done, and why; return their common code, or 71, or 78."""
    bad, lines = {name: code for name, code in sorted(pool.codes.items()) if code}, ""
    for name, code in bad.items():
        reason = pool.reasons[name]
        if command.is_update and reason:  # it could not note it by itself
            outcome = updater.Outcome(code, reason, updater.NO_KEY, verdict=updater.UNCLEAR)
            updater.note_run(name, updater.in_readers_language(reason), outcome)
        what = "{name}: {code}, {reason}"
        if command.is_update and reason and code == updater.Failure.code:
            what = "{name}: {code}, {reason}. Its stored key may be dead. {advice}"
        shown = reason or updater.Message(updater.CODES[code][0])
        line = updater.Message(what, name=name, code=code, reason=shown, advice=updater.NOW)
        one = copy.copy(command)
        one.name = name
        lines += "\n  " + one.as_typed(line)
    counts = {"good": len(pool.codes) - len(bad), "count": len(pool.codes)}
    if not bad:
        log.info(updater.Message("{good} of {count} accounts: done.", **counts))
        return 0
    what = "{good} of {count} accounts: done; not done:{lines}"
    log.error(updater.Message(what, **counts, lines=lines))
    codes = {*bad.values()}  # 71 is tried again: so one of them must be of those that may heal
    return codes.pop() if len(codes) == 1 else 78 if codes <= {2, 73, 77, 78} else 71


def do_child(command: updater.Command, places: Places, name: str, plan: Plan) -> int:
    """Do it for one of many accounts, in a process of its own; return the exit code."""
    command.name = name
    if command.options.verbose:  # the steps of all come mixed
        log.handlers[0].setFormatter(updater.LogFormatter(f"%(levelname)s: {name}: %(message)s"))
    else:
        command.check = check_shortly
    command.connect = functools.partial(places.connect, name)
    if isinstance(plan.account, updater.Account):
        service = plan.account.service
        is_told = f":{service}".endswith(f":{name}")
        command.label = f"{service}: " if is_told else f"{name}, {service}: "
    return command.do_one(plan.account, plan.monitor)


def check_shortly(job: updater.Job) -> Iterator[updater.Finding]:
    """Check an account; yield how its key stands, and what is wrong."""
    for found in updater.check(job):
        if found.level != "ok" or found.message.text.startswith("stored key"):
            yield found


def print_reports(
    command: updater.Command, reports: list[Report], strangers: list[Report], is_whole: bool
) -> int:
    """Print how all accounts stand, the worst first, then the rows of none; return the worst level."""
    worst_first = ("CRITICAL", "WARNING", "UNKNOWN", "OK")
    reports.sort(key=lambda report: worst_first.index(report["status"]))
    said = updater.Message("nothing to do")
    if reports:
        good = sum(report["status"] == "OK" for report in reports)
        what = "{good} of {count} accounts are well; {account}: {message}"
        said = updater.Message(what, **reports[0], good=good, count=len(reports))
    reports += strangers if is_whole and not command.options.metrics else []
    return command.print_status(reports, updater.in_readers_language(said))


def tell_of_stop() -> None:
    """Tell who pressed Ctrl-C."""
    if os.isatty(2):
        what = updater.Message("It ends as soon as no key can be lost any more ...")
        # In a line of its own: the last one ends with ^C, or counts the accounts
        updater.say("\n" + updater.in_readers_language(what), sys.stderr)
