"""Exhaust what faults and other updaters can do to an update.

    python tests/model.py --faults 2 plain if-needed      two updaters, two faults at most
    python tests/model.py --faults 1 --without pause,kill plain plain if-key

An updater here is the real `update` of webkassa_key_updater.py, down to the SQL that it sends and
the JSON that it reads; Webkassa, PostgreSQL, notes and clock are modelled. It is a function of the
answers that it got: it is run from its start with all of them, up to its next question. What it
will do then depends on the places and variables of its frames alone, so two runs that agree in
these are one, and no threads are needed. Every order is tried in which updaters, faults and late
effects can follow one another, the shortest first.

Time stands still but for the fault "pause" and for "minute", which costs none, as does "touch": an
application writes to the row. Tokens are numbers, 0 is none; a state names them in the order in
which it holds them, and updaters of one kind in no order.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import psycopg2
import psycopg2.errors

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("modelled_updater", ROOT / "webkassa_key_updater.py")
updater: Any = importlib.util.module_from_spec(cast(Any, SPEC))  # a copy of our own
sys.modules["modelled_updater"] = updater
cast(Any, SPEC).loader.exec_module(updater)

# ---- One updater: from the answers that it got to its next question

PAUSE = 400  # seconds: all deadlines of a run are over
YOUNG, ADULT, OLD = 0, 1, 2  # ages of a row, and of a note
NO_NOTE = (0, OLD, "none")  # a note: its key, its age, what else it tells
SECONDS = {YOUNG: 0.0, ADULT: 1800.0, OLD: 30 * 3600.0}
TIMES = {"pause", "backoff", "left", "limit", "text", "facts"}  # variables that say nothing more
TOKENS: dict[str, int] = {}  # by themselves and by their fingerprints
IDLE, IN_ERROR, LOST = 0, 3, 4  # psycopg2's states of a transaction
ACCOUNT = updater.Account(
    login=updater.Secret("cashier@example.kz"), password=updater.Secret("invented"),
    auth_url="https://api.webkassa.kz/api/Authorize", api_key=updater.NO_KEY,
    probe_url="https://api.webkassa.kz/api/references/RefUnits", service="Webkassa",
    max_age=86400.0, deadline=120.0, database={}, schema="", table="api_keys", ca_file="",
    state_folder="", healthcheck_url=updater.NO_KEY,
)  # fmt: skip


def secret(token: int) -> Any:
    value = updater.Secret(f"{token:032}" if token else "")
    if token:
        TOKENS[value.value] = TOKENS[value.fingerprint] = token
    return value


class Stop(BaseException):
    """The answers are used up."""


class Run:
    """A run of `update` with these `answers`, each a word and a token. `what` it asks next, about
    which token; `place`: where it stands; `tokens`: those that it knows there, in order of place;
    `effects`: what it did to the world since the last answer; `end`: what came of it."""

    current: Run  # for those that stand in for the world

    def __init__(self, kind: str, answers: tuple[Any, ...]) -> None:
        self.kind, self.answers, self.position, self.last = kind, answers, 0, ""
        self.now, self.logins, self.is_rehearsed, self.is_stopped = 0.0, 0, False, False
        self.effects: list[tuple[Any, ...]] = []
        self.tokens, self.seen = dict[int, int](), dict[int, int]()
        self.what, self.token, self.fault, self.end = "", 0, "", None
        self.is_unanswered = self.is_unproven = False
        self.place: Any = None
        modes = {"plain": updater.ALWAYS, "if-needed": updater.IF_NEEDED}
        mode = modes.get(kind) or secret(1).fingerprint
        Run.current = self
        try:
            job = updater.Job(ACCOUNT, mode, lambda *_: None, lambda *_: Connection())
            outcome = updater.update(job)
        except Stop:
            return
        assert outcome.code != 70, outcome.message
        if self.is_unproven and outcome.code == 0 and outcome.renewed:
            self.fault = "an unanswered login, and no look at the key after it was stored"
        claims = ("is as it was", "still works", "is dead")
        claim = next((claim for claim in claims if claim in str(outcome.message)), "")
        warned = any("got no answer" in str(warning) for warning in outcome.warnings)
        self.end = End(kind, outcome.code, outcome.renewed, claim, warned, self.logins, self.fault)
        self.what, self.place, self.tokens = "done", self.end, {}

    def ask(self, what: str, token: int = 0) -> tuple[Any, int]:
        """Return the answer to a question, or stop where it is still to be given."""
        if self.is_stopped:
            raise Stop
        if what == "login":
            self.logins += 1
            if not self.is_rehearsed or self.last not in ("rehearse", "look at the transaction"):
                self.fault = "a login without a rehearsal, or without a look at the transaction"
        self.last = what
        if self.position < len(self.answers):
            paused, *answer = self.answers[self.position]
            self.position, self.now = self.position + 1, self.now + PAUSE * paused
            self.effects.clear()
            self.is_unanswered |= what == "login" and answer[0] == "lost"
            self.is_unproven = (self.is_unproven or what == "store") and answer[0] != "alive"
            self.is_unproven &= self.is_unanswered
            return cast("tuple[Any, int]", answer)
        self.is_stopped, self.what, self.token = True, what, token
        frame: Any = sys._getframe(1)
        frames = []
        while frame.f_code is not updater.update.__code__:
            frames.append(frame)
            frame = frame.f_back
        own = [f for f in (*frames, frame) if f.f_code.co_filename == updater.__file__]
        self.place = (
            what, self.name(token), self.kind, self.kind == "if-key" and self.name(1),
            self.logins, self.is_rehearsed, self.is_unanswered, self.is_unproven, self.fault,
            *((f.f_code.co_name, f.f_lasti, self.frozen(dict(f.f_locals))) for f in own),
        )  # fmt: skip
        raise Stop

    def do(self, *effect: Any) -> None:
        if not self.is_stopped:
            self.effects.append(effect)

    def name(self, token: int) -> int:
        return self.tokens.setdefault(token, len(self.tokens) + 1) if token else 0

    def frozen(self, value: Any) -> Any:
        """Return what can matter of a value: tokens by name, whether a time is over, no words."""
        if isinstance(value, updater.Secret):
            return self.frozen(value.value) if value.value in TOKENS else bool(value)
        if isinstance(value, str):
            return ("token", self.name(TOKENS[value])) if value in TOKENS else value
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, updater.Deadline):
            return value.moment > self.now
        if isinstance(value, updater.Failure):
            facts = [(n, v) for n, v in vars(value).items() if isinstance(v, (bool, int))]
            return (type(value).__name__, *facts)
        if isinstance(value, dict):
            facts = [(n, v) for n, v in value.items() if n not in TIMES or type(v) is int]
            return tuple((n, self.frozen(v)) for n, v in facts)
        if isinstance(value, (updater.Job, updater.Account)):
            return ()
        if isinstance(value, (tuple, list)):
            return tuple(map(self.frozen, value))
        if not isinstance(value, STATEFUL):
            return type(value).__name__
        if id(value) not in self.seen:
            self.seen[id(value)] = len(self.seen)
            return (type(value).__name__, self.frozen(vars(value)))
        return self.seen[id(value)]


class End(NamedTuple):
    """What came of a run, as far as it is judged. `claim`: what it says about the stored key."""

    kind: str
    code: int
    renewed: bool
    claim: str
    warned: bool  # that a login of its own may yet end the key
    logins: int
    fault: str


class Connection:
    """What KeyStore sees of PostgreSQL; statements are known by what is in them."""

    def __init__(self) -> None:
        self.transaction_status, self.statusmessage = updater.KeyStore.IN_TRANSACTION, ""
        self.rows: list[Any] = []
        self.description, Run.current.is_rehearsed = True, False
        if Run.current.ask("connect")[0] == "down":
            raise updater.StoreUnavailable("PostgreSQL cannot be reached.")

    info = property(lambda self: self)

    def cursor(self) -> Connection:
        return self

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None: ...

    def fetchall(self) -> list[Any]:
        return self.rows

    def close(self) -> None:
        Run.current.do("close")

    def execute(self, text: str, values: dict[str, Any]) -> None:
        self.rows, self.statusmessage = [], ""
        if self.transaction_status == LOST:
            raise psycopg2.InterfaceError("connection already closed")
        if "pg_attribute" in text:
            names = ("service_name", "api_key", "updated_at")
            columns = {name: ["", "D" if name == "updated_at" else "S"] for name in names}
            quoted = ["role", "public", "api_keys"]
            where = ("db", 1, *quoted[1:], quoted, True, columns, [], False, [])
            self.rows = [(Run.current.now, *where)]
        elif "ROLLBACK TO SAVEPOINT rehearsal" in text:
            pass
        elif "SAVEPOINT rehearsal" in text:
            self.ask("rehearse")
            Run.current.is_rehearsed = True
        elif text.endswith("COMMIT"):
            self.ask("store", TOKENS[values["token"]])
            self.transaction_status, self.statusmessage = IDLE, "COMMIT"
        elif "pg_try_advisory" in text:
            self.rows = [(self.ask("lock")[0] == "mine",)]
        elif "LOCK TABLE" in text:
            self.rows = [("",)]
        elif "pg_locks" in text:
            self.rows = [("somebody",)]
        elif "SELECT 1" in text:
            self.ask("look at the transaction")
        elif "SELECT service_name::text, coalesce(api_key" in text:
            age, key = self.ask("lock the row" if "FOR NO KEY UPDATE" in text else "look")
            self.rows = [("Webkassa", secret(key).value, "", SECONDS[age])] if key else []
        elif "ROLLBACK" in text:
            self.transaction_status = IDLE
            Run.current.do("close")
        else:
            known = ("EXPLAIN", "service_name <>", "SELECT NULL", "SAVEPOINT look")
            assert any(part in text for part in known), text

    def ask(self, what: str, token: int = 0) -> tuple[Any, int]:
        """Return an answer of the database, or raise what it stands for."""
        answer = Run.current.ask(what, token)
        if answer[0] not in ("lost", "busy", "again"):
            return answer
        self.transaction_status = LOST if answer[0] == "lost" else IN_ERROR
        error = cast(Any, psycopg2.OperationalError(answer[0]))
        error.__setstate__({"pgcode": {"busy": "55P03", "again": "40001"}.get(answer[0])})
        raise error


STATEFUL = (updater.LoginState, updater.Webkassa, updater.KeyStore, Connection)
JSON: dict[str, tuple[int, dict[str, Any]]] = {  # what Webkassa's answers are: HTTP status and body
    "alive": (200, {"Data": []}), "dead": (200, {"Errors": [{"Code": 2}]}), "unclear": (500, {}),
    "garbage": (200, {"Data": {}}), "refused": (200, {"Errors": [{"Code": 1}]}),
}  # fmt: skip
BESIDE = {"failing with a token": [{"Code": -1}], "refused with a token": [{"Code": 1}]}


def send_request(_: Any, request: Any, *__: Any) -> Any:
    body = json.loads(request.data.getvalue())
    key = TOKENS[body["Token"]] if "Token" in body else 0
    what, token = Run.current.ask("probe" if key else "login", key)
    if what in ("unsent", "lost"):
        raise updater.no_answer("host", TimeoutError(), what == "lost")
    status, data = JSON.get(what, (200, {"Data": {"Token": secret(token).value}}))
    return updater.Answer(status, {}, data | {"Errors": BESIDE[what]} if what in BESIDE else data)


class File(str):
    """A note of a host, by its name; the world keeps its key, its age, and what is no time."""

    __slots__ = ()
    stem = parent = property(lambda self: self)
    kind = property(lambda self: self.partition("-")[0])
    with_name = __truediv__ = lambda _, name: File(name)

    def mkdir(self, *_: object, **__: object) -> None: ...

    def touch(self, *_: object) -> None: ...

    def read_text(self) -> str:
        told, token = Run.current.ask(f"read {self.kind}")
        if told == NO_NOTE[1:]:
            return ""
        key, moment = secret(token).fingerprint, Run.current.now - SECONDS[told[0]]
        note = {"key": key, "before": key, "time": moment, "moment": moment, "hash": ""}
        return json.dumps(note | dict(told[1]))

    def write_text(self, text: str) -> None:
        note = json.loads(text)
        token = TOKENS.get(note.get("key") or note.get("before"), 0)
        if note.get("stored"):  # the lock is free already
            Run.current.ask("write key", token)
        facts = tuple((name, note[name]) for name in ("code", "stored", "early") if name in note)
        Run.current.do("note", self.kind, token, facts)

    def unlink(self) -> None:
        Run.current.do("note", self.kind, None, ())


class Text(str):
    """Some SQL, in place of psycopg2's: names of tables tell nothing here."""

    __slots__ = ()

    def format(self, *_: object, **__: object) -> str:
        return self


updater.log = logging.getLogger("modelled_updater")  # not the one that other tests hear
updater.log.disabled = True
updater.send_request, updater.Path = send_request, File
updater.run_with_deadline = lambda _, __, function, *args: function(*args)
updater.os = SimpleNamespace(urandom=bytes)
updater.sleep_or_signal = lambda *_, ignore_signals=False: (
    not ignore_signals and Run.current.ask("sleep")[0] == "stopped"
)
updater.new_session = updater.Refusals.credential_hash = lambda *_: ""
updater.sql = SimpleNamespace(SQL=Text, Identifier=lambda *_: "")
updater.random = SimpleNamespace(uniform=max)
updater.hold_back_signals_and_log = updater.contextlib.nullcontext
updater.time = SimpleNamespace(
    monotonic=lambda: Run.current.now,
    time=lambda: Run.current.now,
    strftime=time.strftime,
    localtime=time.localtime,
)


class Place(NamedTuple):
    """Where updaters of a kind can stand, however tokens are called: one way to it (`answers`, in
    which the next new token is `fresh`), the tokens known there, and the next question."""

    kind: str
    answers: tuple[Any, ...]
    fresh: int
    tokens: tuple[int, ...]
    what: str
    has_token: bool
    end: End | None


class Edge(NamedTuple):
    """From a place by an answer to the next: where each token known there stands among those known
    before; whether the connection was closed; what is in the notes that were made."""

    place: int
    tokens: tuple[int, ...]
    is_closed: bool
    notes: tuple[tuple[str, int, Any], ...]


GONE = 0  # the place of those who have ended
NEW, NO_TOKEN, REMOVED = -3, -2, -1  # where a token stands: behind those known before
PLACES = [Place("", (), 2, (), "done", False, None)]
NUMBERS: dict[Any, int] = {}
EDGES: dict[Any, Edge] = {}


def forget_places() -> None:
    """Begin anew, since a function of the updater is another one now."""
    del PLACES[1:]
    NUMBERS.clear()
    EDGES.clear()
    find_unhealed.cache_clear()


def reach(kind: str, answers: tuple[Any, ...], fresh: int) -> tuple[int, Run]:
    run = Run(kind, answers)
    if run.place not in NUMBERS:
        NUMBERS[run.place] = len(PLACES)
        tokens = tuple(run.tokens)
        PLACES.append(Place(kind, answers, fresh, tokens, run.what, run.token > 0, run.end))
    return NUMBERS[run.place], run


def follow(number: int, paused: int, what: Any, local: int) -> Edge:
    """Return the edge from a place by an answer, in which a token is called as at that place."""
    edge = EDGES.get((number, paused, what, local))
    if not edge:
        place = PLACES[number]
        answers = (*place.answers, (paused, what, local))
        child, run = reach(place.kind, answers, max(place.fresh, local + 1))
        at = {name: i for i, name in enumerate(place.tokens)} | {0: NO_TOKEN, None: REMOVED}
        notes = tuple((e[1], at.get(e[2], NEW), e[3]) for e in run.effects if e[0] == "note")
        tokens = tuple(at.get(name, NEW) for name in run.tokens)
        edge = Edge(child, tokens, ("close",) in run.effects, notes)
        EDGES[number, paused, what, local] = edge
    return edge


# ---- The world: Webkassa, PostgreSQL, notes, and the updaters

NOBODY, GHOST = 8, 9  # beside the updaters: who holds the lock, who made the key that lives
NO_SESSION, OPEN, BROKEN = 0, 1, 2  # with PostgreSQL; broken: and the updater does not know yet
DATABASE = {"look", "lock", "lock the row", "look at the transaction", "rehearse", "store"}
NOTES = ("refused", "probe", "key", "risk")
# Before anybody else moves, but with --fine: a fault before or after them does the same
AT_ONCE = {"look", "lock the row", "rehearse", "sleep", *(f"read {kind}" for kind in NOTES)}
FAULTS: dict[str, tuple[str, ...]] = {  # of the answer to a question
    "connect": ("down",),
    **dict.fromkeys(DATABASE - {"lock the row"}, ("cut off",)),
    "store": ("cut off", "again"),
    "lock the row": ("busy",),
    "sleep": ("stopped",),
    "login": ("unsent", "lost", "late", "garbage", "refused", "the same token", *BESIDE),
    "probe": ("unclear", "wrong", "refuses all"),
}
ANY_TIME = ("killed", "session ended", "pause", "stranger")
# "wrong": a dead key is called alive, which is believed
OPTIONAL = {"wrong", "busy", "stopped", "touch", "minute"}
KINDS = {fault for faults in FAULTS.values() for fault in faults}.union(ANY_TIME) - OPTIONAL


class Person(NamedTuple):
    place: int
    known: tuple[int, ...] = ()
    session: int = NO_SESSION
    paused: int = 0
    host: int = 0


class World:
    """`token` and `age`: the row's; `alive`: the token that works; `maker`: who logged in for it, and
    whether that one was `told`; `late`: whose logins are still to take effect; `refuses`: the probe,
    every key; `ghost`: the token that a session whose client is gone may yet commit; `notes`: the
    tokens in those of each host, None: there is none; `logins`: counted where no faults are."""

    at_once: frozenset[str]

    def __init__(self, state: tuple[Any, ...]) -> None:
        (self.token, self.age, self.alive, self.maker, self.told, self.late, self.refuses,
         self.holder, self.ghost, notes, people, self.logins, self.faults) = state  # fmt: skip
        self.people, self.notes = list(people), list(notes)
        self.end: End | None = None
        self.wrong: list[str] = []  # what must not be

    def state(self) -> tuple[Any, ...]:
        return (self.token, self.age, self.alive, self.maker, self.told, self.late, self.refuses,
                self.holder, self.ghost, tuple(self.notes), tuple(self.people), self.logins,
                self.faults)  # fmt: skip

    def canonical(self) -> tuple[Any, ...]:
        """Return the state without what tells nothing: names of tokens, order of updaters."""
        people, holder, maker, late = self.people, self.holder, self.maker, self.late
        keys = [(p.place, p.session, p.paused, p.host, i == holder, i == maker, late.count(i), i)
                for i, p in enumerate(people)]  # fmt: skip
        keys.sort()
        order = [key[-1] for key in keys]
        to = {old: new for new, old in enumerate(order)} | {NOBODY: NOBODY, GHOST: GHOST}
        names = {0: 0}
        for token in (self.token, self.alive, self.ghost, *[n[0] for n in self.notes]):
            names.setdefault(token, len(names))
        new, age = [], ADULT
        for place, known, session, paused, host in [people[i] for i in order]:
            for token in known:
                names.setdefault(token, len(names))
            new.append(Person(place, tuple([names[t] for t in known]), session, paused, host))
            if PLACES[place].kind in ("if-needed", "if-key"):
                age = self.age  # to plain updates it is but a word
        return (names[self.token], age, names[self.alive], to[maker], self.told,
                tuple(sorted([to[i] for i in late])), self.refuses, to[holder], names[self.ghost],
                tuple([(names[n[0]], *n[1:]) for n in self.notes]), tuple(new), self.logins,
                self.faults)  # fmt: skip

    # What happens

    def log_in(self, maker: int, told: bool) -> None:
        tokens = {self.token, self.alive, self.ghost, *(n[0] for n in self.notes)}
        self.alive = max(tokens.union(*(p.known for p in self.people))) + 1
        self.maker, self.told = maker, told
        self.logins = self.logins and self.logins + 1

    def kind(self, i: int) -> str:
        return PLACES[self.people[i].place].kind

    def note(self, i: int, kind: str) -> tuple[int, int, Any]:
        return self.notes[len(NOTES) * self.people[i].host + NOTES.index(kind)]

    def asked_token(self, i: int) -> int:
        person = self.people[i]
        return person.known[0] if PLACES[person.place].has_token else 0

    def give(self, i: int, what: Any, token: int = 0) -> None:
        """Let an updater go on with this answer to its next question, or to its end."""
        number, known, session, paused, host = self.people[i]
        place = PLACES[number]
        local = token and (place.tokens[known.index(token)] if token in known else place.fresh)
        edge = follow(number, paused, what, local)
        tokens = (*known, token, 0, 0)
        for kind, at, facts in edge.notes:
            note = NO_NOTE if at == REMOVED else (tokens[at], YOUNG, facts)
            self.notes[len(NOTES) * host + NOTES.index(kind)] = note
        if edge.is_closed:
            session = NO_SESSION
            self.free_lock(i)
        now = tuple([tokens[at] for at in edge.tokens])
        self.people[i] = Person(edge.place, now, session, 0, host)
        place = PLACES[edge.place]
        if place.end:
            self.check_end(i, place.end)
            self.people[i] = Person(GONE, host=host)
        elif place.what in self.at_once:
            self.serve(i, place.what)

    def free_lock(self, i: int) -> None:
        if self.holder == i:
            self.holder = NOBODY

    def serve(self, i: int, what: str) -> None:
        """Answer a question as on a good day."""
        if what in DATABASE and self.people[i].session == BROKEN:
            self.people[i] = self.people[i]._replace(session=NO_SESSION)
            self.give(i, "lost")
        elif what == "connect":
            self.people[i] = self.people[i]._replace(session=OPEN)
            self.give(i, "good")
        elif what in ("look", "lock the row"):
            self.give(i, ADULT if self.kind(i) == "plain" else self.age, self.token)
        elif what == "lock":
            if self.holder == NOBODY:
                self.holder = i
            self.give(i, "mine" if self.holder == i else "taken")
        elif what == "store":
            if self.holder != i or not self.asked_token(i):
                self.wrong.append("something is stored without the lock, or nothing is stored")
            self.token, self.age = self.asked_token(i), YOUNG
            self.free_lock(i)
            self.give(i, "good")
        elif what == "login":
            age, facts = self.note(i, "key")[1:]
            is_young = age == YOUNG and ("stored", True) in facts and self.kind(i) != "plain"
            if self.logins and is_young and self.token == self.alive == self.note(i, "key")[0]:
                self.wrong.append("logs in without a fault, and the key is young and alive")
            self.log_in(i, True)
            self.give(i, "good", self.alive)
        elif what == "probe":
            is_alive = [self.asked_token(i) == self.alive, False, True][self.refuses]
            self.give(i, "alive" if is_alive else "dead")
        elif what.startswith("read"):
            token, age, facts = self.note(i, what.partition(" ")[2])
            if what == "read key" and self.kind(i) == "plain":
                age, facts = OLD, ()  # to plain updates ages are but words
            self.give(i, (age, facts), token)
        else:
            self.give(i, "good")

    def strike(self, i: int, what: str, fault: str) -> None:
        """Answer a question as on a bad day, or not at all."""
        self.faults -= 1
        if fault == "cut off":
            self.leave_ghost(i, what == "store")
            self.give(i, "lost")
        elif fault in ("lost", "garbage"):
            self.log_in(i, False)
            self.give(i, fault)
        elif fault == "late":
            self.late = (*self.late, i)
            self.give(i, "lost")
        elif fault in BESIDE:
            # Where a further fault may keep the probe from proving it, the refusal is believed
            is_certain = not self.faults and not self.refuses
            self.log_in(i, fault != "refused with a token" or is_certain)
            self.give(i, fault, self.alive)
        elif fault == "the same token":
            self.give(i, "good", self.alive)
        elif fault == "refuses all":
            self.refuses = 1
            self.give(i, "dead")
        elif fault.startswith("killed"):
            self.leave_ghost(i, what == "store" and fault == "killed, it was sent")
            if what == "login" and fault == "killed, it was sent":
                self.late = (*self.late, i)
            self.late = tuple([NOBODY if maker == i else maker for maker in self.late])
            self.maker = NOBODY if self.maker == i else self.maker
            self.people[i] = Person(GONE, host=self.people[i].host)
        elif fault == "session ended":
            self.free_lock(i)
            self.people[i] = self.people[i]._replace(session=BROKEN)
        else:
            self.give(i, "alive" if fault == "wrong" else fault)

    def leave_ghost(self, i: int, commits: bool) -> None:
        """A client is gone; its session holds what it held, and may yet commit."""
        if self.holder == i:
            self.holder, self.ghost = GHOST, self.asked_token(i) if commits else 0
        self.people[i] = self.people[i]._replace(session=NO_SESSION)

    def befall(self, what: str) -> None:
        """Let something happen that no updater takes part in."""
        if what == "a session without client ends":
            self.holder, self.ghost = NOBODY, 0
        elif what == "a session without client commits":
            self.token, self.age = self.ghost, YOUNG
            self.holder, self.ghost = NOBODY, 0
        elif what == "the probe is right again":
            self.refuses = 0
        else:
            self.faults -= what in ("stranger", "pause")
            if what == "stranger":
                self.log_in(NOBODY, False)
            elif what == "touch":
                self.age = YOUNG
            else:
                self.age = max(self.age, ADULT)
                self.notes = [(n[0], max(n[1], ADULT), n[2]) for n in self.notes]
            if what == "pause":
                self.people = [p._replace(paused=int(p.place != GONE)) for p in self.people]

    def fire(self, maker: int) -> None:
        late = list(self.late)
        late.remove(maker)
        self.late = tuple(late)
        self.log_in(maker, False)

    def steps(self, kinds: Set[str]) -> Iterator[tuple[str, World]]:
        """Yield what can happen next, and the world after it."""
        state, is_faulty = self.state(), self.faults > 0
        for i, person in enumerate(self.people):
            if person.place == GONE:
                continue
            what = PLACES[person.place].what
            yield f"{i}: {what}", World(state).then("serve", i, what)
            faults = [*FAULTS.get(what, ())] if is_faulty else []
            if what in DATABASE and person.session == BROKEN:
                faults = []
            if is_faulty:
                faults += ["killed"] + ["killed, it was sent"] * (what in ("login", "store"))
            if is_faulty and self.holder == i and person.session == OPEN:
                faults.append("session ended")
            for fault in faults:
                is_known = fault in kinds or fault.partition(",")[0] in kinds
                if is_known and (self.alive or fault != "the same token"):
                    yield f"{i}: {what}: {fault}", World(state).then("strike", i, what, fault)
        for maker in sorted(set(self.late)):
            yield f"{maker}: a late login takes effect", World(state).then("fire", maker)
        happenings = ["a session without client ends"] * (self.holder == GHOST)
        happenings += ["a session without client commits"] * (self.ghost > 0)
        happenings += ["the probe is right again"] * self.refuses
        if any(p.place != GONE for p in self.people):
            free = {"touch", "minute"} if self.age or any(n[1] == YOUNG for n in self.notes) else {}
            happenings += sorted(kinds & {*free, *("pause", "stranger")[: 2 * is_faulty]})
        for what in happenings:
            yield what, World(state).then("befall", what)

    def then(self, action: str, *args: Any) -> World:
        getattr(self, action)(*args)
        return self

    # What must hold

    def check_end(self, i: int, end: End) -> None:
        self.end, is_dead, is_ours = end, self.token != self.alive, self.maker == i
        is_others = self.maker < NOBODY and self.people[self.maker].place == GONE
        is_good = end.code == 0 and end.renewed and is_dead
        is_content = end.code == 0 and not end.renewed and end.kind != "plain"
        lies = end.claim == "is as it was" or (end.claim == "still works" and self.told)
        for is_wrong, what in (
            (end.fault, end.fault),
            (is_dead and is_ours and self.told, "throws a live token away, and the row is dead"),
            (is_dead and is_ours and lies, f"says that the key {end.claim}, and killed it"),
            (is_good and is_ours and not end.warned, "stored a key that its own login killed"),
            (is_good and is_others and self.told, "stored a dead key over another's live one"),
            (
                is_content and self.note(i, "key")[:2] == (self.token, OLD),
                "leaves an old key alone",
            ),
        ):
            if is_wrong:
                self.wrong.append(f"ends with {end.code}: {what}")

    def check_rest(self, kinds: Sequence[str]) -> None:
        """All have ended. Check that nothing is lost which one of them had, and the next heals."""
        is_dead = self.token != self.alive
        if is_dead and self.told and self.maker != NOBODY:
            self.wrong.append("at rest: a live token is lost, and the row is dead")
        if self.logins > 1 + max(kinds.count("plain") + (set(kinds) != {"plain"}), 1):
            self.wrong.append(f"{self.logins - 1} logins without a fault")
        state = World(self.state())
        state.people, state.late, state.maker, state.logins = [], (), NOBODY, 1
        self.wrong += find_unhealed(state.canonical())

    def then_alone(self, mode: str) -> World:
        """Return the world after a further update, on a good day."""
        world = World(self.state())
        world.people = [start(mode, self.token)]
        while not world.end:
            world.serve(0, PLACES[world.people[0].place].what)
        return world


@functools.cache
def find_unhealed(state: tuple[Any, ...]) -> list[str]:
    """Say what further updates do not heal, after all others have ended, in this order: an hour
    later; with a consumer at a touched row, whatever the probe says; with a stranger, at once."""
    wrong = []
    is_refused = World(state).notes[0][2] == (("code", updater.LOGIN_REFUSED),)
    world = World(state).then("befall", "minute")
    modes = ["plain"]
    if world.token != world.alive and world.token and not is_refused and not world.refuses:
        modes += ["if-key", *["if-needed"] * (world.notes[1] == NO_NOTE)]
    for mode in modes:
        after = world.then_alone(mode)
        good = {0, 78} if world.refuses else {0}
        if after.token != after.alive or after.wrong or after.end.code not in good:
            wrong.append(f"at rest: a further {mode} update does not heal")
    for probe in (0, 1, 2) if world.token and not is_refused else ():
        world = World(state).then("log_in", NOBODY, False)
        for _ in range(2):
            world.age, world.refuses = YOUNG, probe
            world = world.then_alone("if-key").then("befall", "minute")
        if world.token != world.alive:
            wrong.append("at rest: a consumer's dead key is not replaced within a minute")
    world, logins = World(state).then("befall", "the probe is right again"), 0
    for _ in range(3 if world.token and not is_refused else 0):
        logins = world.then("log_in", NOBODY, False).logins
        world = world.then_alone("if-key")
    if world.logins > logins > 0:
        wrong.append("at rest: consumers and a stranger log in more than once a minute")
    return wrong


def start(kind: str, token: int, host: int = 0) -> Person:
    number, run = reach(kind, (), 2)
    return Person(number, tuple(token for _ in run.tokens), host=host)


# ---- Exploring


class Found(NamedTuple):
    """`wrong`: the shortest way to each thing that must not be; `logins`: the most of a run."""

    states: int
    steps: int
    rests: int
    logins: int
    seconds: float
    wrong: dict[str, list[str]]


OURS, EARLY = (("stored", True), ("early", False)), (("stored", True), ("early", True))
ROOTS = (  # key, age of its row, the one that lives, note of the key
    (1, OLD, 1, NO_NOTE), (1, ADULT, 1, NO_NOTE), (1, ADULT, 0, NO_NOTE), (0, ADULT, 0, NO_NOTE),
    (1, YOUNG, 1, (1, OLD, OURS)), (1, YOUNG, 1, (1, YOUNG, OURS)),
    (1, YOUNG, 0, (1, ADULT, OURS)), (1, YOUNG, 0, (1, YOUNG, EARLY)),
)  # fmt: skip


def explore(
    people: Sequence[str],
    faults: int,
    kinds: Set[str] = KINDS,
    hosts: int = 1,
    fine: bool = False,
    say: Callable[[str], object] = str,
) -> Found:
    begun = time.process_time()
    slow = {what for what in AT_ONCE if fine or kinds & OPTIONAL & {*FAULTS.get(what, ())}}
    World.at_once = frozenset(AT_ONCE - slow)
    crowd = tuple(start(kind, 1, i % hosts) for i, kind in enumerate(people))
    level = []
    for token, age, alive, note in ROOTS[: 4 if {*people} == {"plain"} else None]:
        notes = (NO_NOTE, NO_NOTE, note, NO_NOTE) * hosts
        level.append(World((token, age, alive, NOBODY, False, (), 0, NOBODY, 0, notes, crowd,
                            int(not faults), faults)).canonical())  # fmt: skip
    roots = {hash(state): state for state in level}
    before = dict.fromkeys(roots, 0)  # from which state each was reached
    steps = rests = logins = 0
    wrong: dict[str, list[str]] = {}
    while level:
        following = []
        for state in level:
            world, here = World(state), hash(state)
            if world.holder == NOBODY and all(p.place == GONE for p in world.people):
                rests += 1
                world.check_rest(people)
                for what in set(world.wrong) - set(wrong):
                    wrong[what] = way_to(here, roots, before, kinds)
            for _, after in world.steps(kinds):
                steps += 1
                new = after.canonical()
                number = hash(new)
                if number not in before:
                    before[number] = here
                    following.append(new)
                if after.end:
                    logins = max(logins, after.end.logins)
                for what in set(after.wrong) - set(wrong):
                    wrong[what] = way_to(here, roots, before, kinds, what)
        level = following
        say(f"{len(before)} states, {len(PLACES)} places, {time.process_time() - begun:.0f} s")
    return Found(len(before), steps, rests, logins, time.process_time() - begun, wrong)


def way_to(
    number: int, roots: dict[int, Any], before: dict[int, int], kinds: Set[str], last: str = ""
) -> list[str]:
    """Return in words the way to a state, and to what goes wrong in the `last` step from there."""
    way = [number]
    while before[way[-1]]:
        way.append(before[way[-1]])
    world = World(roots[way.pop()])
    said = [f"{'':40}{describe(world)}"]
    for number in reversed(way):
        steps = world.steps(kinds)
        label, world = next(s for s in steps if hash(s[1].canonical()) == number)
        said.append(f"{label:40}{describe(world)}")
    if last:
        label, after = next(step for step in world.steps(kinds) if last in step[1].wrong)
        said.append(f"{label:40}{after.end or describe(after)}")
    return said


def describe(world: World) -> str:
    state = "none" if not world.token else "alive" if world.token == world.alive else "dead"
    asked = [
        PLACES[p.place].what + (f" {world.asked_token(i)}" if PLACES[p.place].has_token else "")
        for i, p in enumerate(world.people)
    ]
    notes = f", notes {world.notes}" if {*world.notes} != {NO_NOTE} else ""
    return f"key {world.token} ({state}), {world.alive} lives{notes}; next: {', '.join(asked)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=1)
    parser.add_argument("--hosts", type=int, default=1, help="updaters of another share no notes")
    parser.add_argument("--without", default="", help=", ".join(sorted(KINDS)))
    parser.add_argument("--with", default="", dest="more", help=", ".join(sorted(OPTIONAL)))
    parser.add_argument("--fine", action="store_true", help="others move between any two steps")
    parser.add_argument("-v", "--verbose", action="store_true", help="say how far it is")
    parser.add_argument("people", nargs="+", choices=["plain", "if-needed", "if-key"])
    options = parser.parse_args()
    more, without = {*options.more.split(",")} - {""}, {*options.without.split(",")} - {""}
    if unknown := (more | without) - KINDS - OPTIONAL:
        parser.error(f"no such kind: {unknown}")
    kinds = (KINDS | more) - without
    log = print if options.verbose else str
    found = explore(options.people, options.faults, kinds, options.hosts, options.fine, log)
    for what, way in found.wrong.items():
        print(f"WRONG: {what}", *way, sep="\n    ")
    print(found._replace(wrong={}), f"{len(PLACES)} places, {len(EDGES)} edges")
    raise SystemExit(bool(found.wrong))


if __name__ == "__main__":
    main()
