#!/usr/bin/env python3
"""Renew the Webkassa key and store it in PostgreSQL, without ever losing one.

exit codes of update and check (2, 73, 77 and 78 do not heal by themselves; the others may):
   0  done, or nothing to do
   2  wrong usage of this command
  69  Webkassa cannot be reached or is failing
  70  a bug of this program
  71  accounts failed with different codes
  73  the database refuses the write
  75  the database cannot be reached, is read-only for now, or the lock is busy
  76  Webkassa's answer makes no sense
  77  Webkassa refuses the login, password or API key
  78  the settings are wrong
exit codes of status: 0 OK, 1 WARNING (over 25 h), 2 CRITICAL (missing, dead, over 49 h), 3 UNKNOWN
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import gettext
import hashlib
import http.client
import importlib.util
import io
import ipaddress
import itertools
import json
import logging
import os
import queue
import random
import re
import select
import shlex
import signal
import socket
import sys
import threading
import time
import traceback
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast
from urllib.parse import urlsplit, urlunsplit

if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit("webkassa_key_updater.py needs Python 3.10 or newer.")
try:
    import dotenv.parser
    import psycopg2.errorcodes
    import requests
    import urllib3
    from psycopg2 import sql
except ImportError as error:
    sys.exit(
        f"A library is missing: {error}. Run: cd {shlex.quote(str(Path(__file__).resolve().parent))}"
        f" && {shlex.quote(sys.executable)} -m venv .venv && .venv/bin/pip install -r requirements.txt"
        "\nThen run: .venv/bin/python webkassa_key_updater.py check"
    )

__version__ = "2.0.0"
log = logging.getLogger("webkassa_key_updater")
LOGIN_REFUSED, NONSENSE = 77, 76  # exit codes
ALWAYS, IF_NEEDED = "always", "if needed"  # modes of an update
ALIVE, DEAD, UNCLEAR, OFF = "alive", "dead", "unclear", "off"  # a probe's verdicts
DOUBTED = "dead, but not believed"  # of a probe that refused every new key: counts as unclear
YOUNG = 60.0  # seconds: a younger key that --if-key names is probed before anybody logs in
FULL_LIFE = 20 * 3600.0  # seconds; Webkassa promises about a day
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# ---- The words


class Secret:
    """A value that must not be seen: `repr` and `str` are `***`, only `value` tells it."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.value == other.value

    def __bool__(self) -> bool:
        return bool(self.value)

    @property
    def fingerprint(self) -> str:
        """The first 8 hex digits of the SHA-256: names a key without giving it away."""
        return hashlib.sha256(self.value.encode()).hexdigest()[:8] if self else "none"


NO_KEY = Secret("")


class Account(NamedTuple):
    """All that one account needs, as `read_account` made it; empty: none; durations in seconds."""

    login: Secret
    password: Secret
    auth_url: str
    api_key: Secret
    probe_url: str  # empty: the live probe is off
    service: str  # the row
    max_age: float
    deadline: float
    database: dict[str, str | Secret]  # libpq's parameters
    schema: str
    table: str
    ca_file: str
    state_folder: str  # for the memory of refusals
    healthcheck_url: Secret


class Message:
    """Sentences with named values, which may be Messages; the command line alone translates them."""

    def __init__(self, text: str, **values: object) -> None:
        self.text, self.values = text, values

    def __str__(self) -> str:
        return self.render(str)

    def render(self, translate: Callable[[str], str]) -> str:
        values = {name: value.render(translate) if isinstance(value, Message) else value
                  for name, value in self.values.items()}  # fmt: skip
        return translate(self.text).format(**values)


class Failure(Exception):
    """A `message`, the exit `code`, `advice` on what to do now; all values are attributes."""

    code = 70

    def __init__(self, text: str, advice: str = "", **values: Any) -> None:
        self.message = Message(text, **values)
        self.advice = Message(advice, **values) if advice else None
        super().__init__(str(self.message))
        vars(self).update(values)


class SettingsFault(Failure):
    code = 78


class WriteRefused(Failure):
    code = 73


class StoreUnavailable(Failure):
    code, port_is_open, is_rejected = 75, False, False


class LockBusy(StoreUnavailable):
    """Somebody else holds the lock, the row or the table."""

    holder = cast("Message | str", Message("somebody"))


class WebkassaFailure(Failure):
    """`may_have_logged_in`: the login may yet take effect; `invalid_token_reply`: the answer may have
    been a login's, without a usable token; `alternative_hosts`: that it names, None: it names none."""

    code, retry, wait, may_have_logged_in, invalid_token_reply = 69, True, 0.0, False, False
    alternative_hosts = cast("list[str] | None", None)


class Deadline:
    """A moment of the monotonic clock, `seconds` from now; `left` are the seconds until then."""

    def __init__(self, seconds: float) -> None:
        self.moment = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(self.moment - time.monotonic(), 0.0)

    def within(self, seconds: float) -> Deadline:
        """Return the sooner of this deadline and one `seconds` from now."""
        return Deadline(min(self.left, seconds))


class KeyRow(NamedTuple):
    """The row of a service: its key, and its age by the database's clock."""

    clock: float = 0.0  # the database's, in seconds, less this machine's monotonic one
    exists: bool = False
    key: Secret = NO_KEY
    age: float | None = None  # seconds; None: not known
    age_from: str = "row"  # or "note": see `KeyAge`
    row_age: float | None = None  # what its columns say
    at_risk: bool = False  # a login of ours may have ended the key: see `KeyAge`
    changed: str | None = None  # UTC
    others: Sequence[tuple[str, bool]] = ()  # where it is missing: (other service, is similar)
    padded: Secret = NO_KEY  # the key as consumers read it from a column char(n)


class Job(NamedTuple):
    """What is asked for."""

    account: Account
    mode: str  # ALWAYS, IF_NEEDED, or the fingerprint of a key that a consumer was told is dead
    report_wait: Callable[[Message, float], None]  # hears of every wait, and for how many seconds
    connect: Callable[[Account, Deadline], Connection]  # a Connector, or waits for a place, too


# ---- Update, the protocol: its order is the product. Step 1, the settings, is done


def update(job: Job) -> Outcome:
    """Renew the key of an account. Authorizing kills the key in use: so nothing is asked of Webkassa
    before it is certain that the answer can be kept, and nothing that it gave is given up."""
    logins = LoginState(job.account)
    with contextlib.ExitStack() as shield:  # from the first login on: see `attempt`
        done = None
        while not done:
            try:
                done = attempt(job, logins, shield)  # steps 2 to 6 on one connection
            except Exception as failure:  # not even a bug of ours may cost the token
                done = retry_or_give_up(job, logins, failure)  # 7. Again
    if done.renewed:
        logins.key_age.note_renewal(logins.row, logins.is_early)
        if not logins.ended_by:
            logins.refusals.note.remove()
    if logins.row_before_first_login:
        renew_note_of_risk(logins, logins.row_before_first_login, done)
    return done


def attempt(job: Job, logins: LoginState, shield: contextlib.ExitStack) -> Outcome | None:
    """Go through steps 2 to 6 on one connection; return what was done, None: once more."""
    if not logins.has_waited:
        job.report_wait(Message("PostgreSQL"), logins.current_deadline.left)
    with KeyStore(job, logins.current_deadline, logins.schema) as store:
        # 2. Lock, then look: all that is decided is decided on the row as it is under the lock
        create_missing_table(store, is_first=not logins.asked)
        seen = store.read_row()
        logins.row_before_lock = logins.row_before_lock or seen
        row = logins.row = logins.key_age.correct(store.lock_row())
        logins.key_age.note_first_sight(row)
        logins.webkassa.is_doubted = logins.probe_doubt.is_valid(row)
        if not logins.asked:
            store.reject_other_rows(row)
        done = reason_to_stop(job, logins, row, store.table)
        if done and store.in_transaction():
            if logins.ended_by:  # the token is stored, or another's; what ended the logins is said
                logins.token, logins.login_outcome_unknown = NO_KEY, True
                raise logins.ended_by
            return done

        if not logins.token or logins.live_key_unknown or logins.ended_by:
            # 3. Rehearse: the very statement that will store the token, with a stand-in
            log.debug(Message("Rehearsing a write; then asking {host}.", host=logins.webkassa.host))
            store.rehearse(row)

            # 4. Authorize, which kills the key in use, and 5. validate the token
            if not logins.asked:
                logins.key_age.note_risk(row.key, at_risk=True)
                shield.enter_context(hold_back_signals_and_log())
                logins.start_asking(store.table.schema)
            log_in_or_keep(job, logins, store, row)

        # 6. Store: write, deferred checks, read-back, NOTIFY and COMMIT in one message
        store_token(logins, store, row, logins.store_deadline)
    if superseded_by_late_login(logins):
        return None
    return describe_stored(job, logins, store.table)


def store_token(logins: LoginState, store: KeyStore, row: KeyRow, deadline: Deadline) -> None:
    """Store the token in hand. Where the probe calls it dead, note before that the probe is not to
    be believed: the commit frees the lock, and the next run must know."""
    if logins.against_probe:
        logins.probe_doubt.remember(row)
    logins.store_attempts += 1
    notify = logins.store_attempts == 1  # a NOTIFY can make the commit fail: then without it
    store.store(row, logins.token, deadline, notify)
    logins.row, logins.renewed = row._replace(key=logins.token), True


def retry_or_give_up(job: Job, logins: LoginState, failure: Exception) -> Outcome | None:
    """Step 7: return None after a pause, to begin again from step 2, for as long as something is
    in hand; else return what `failure` leaves behind."""
    left, busy = logins.current_deadline.left, failure if isinstance(failure, LockBusy) else None
    if logins.asked:
        over = left <= logins.pause + LoginState.LAST_TRY
        is_last = over and (logins.last_try or not logins.token)
    else:  # nothing was asked of Webkassa: only who waits for a lock tries again
        over = not left
        is_waiting = busy or (logins.has_waited and isinstance(failure, StoreUnavailable))
        is_last = logins.last_try or not is_waiting
    if is_last or isinstance(failure, (WebkassaFailure, NoLoginLeft)):
        return give_up(logins, failure)
    if over:  # perhaps the machine has slept: one try more, and with time
        logins.last_try = True
        logins.store_deadline = logins.lock_deadline = Deadline(KeyStore.COMMIT_TIME)
    if not busy:
        pause = logins.pause
        logins.pause = min(pause * 2, 2.0) if logins.asked else pause
        why = failure.message if isinstance(failure, Failure) else type(failure).__name__
        log.debug(Message("Not stored yet: {why}", why=why))
    else:  # never growing: pauses that grow starve
        pause = 0.1 if logins.token else KeyStore.LOCK_PAUSE * random.uniform(0.67, 1.33)
        what = Message("the lock held by {holder}", holder=busy.holder)
        job.report_wait(what, left)
        if not logins.has_waited:
            service = job.account.service
            log.debug(Message("{service}: waiting for {what}.", service=service, what=what))
        logins.has_waited = True
    pause = pause if logins.asked or over else min(pause, left)
    stopped = sleep_or_signal(pause, ignore_signals=bool(logins.token))
    return give_up(logins, failure) if stopped else None


def renew_note_of_risk(logins: LoginState, before: KeyRow, done: Outcome) -> None:
    """Note after a login whether the key that is stored now is dead, or may be ended by that login."""
    is_same, is_good = done.key == before.key, done.renewed and done.code in (0, SettingsFault.code)
    at_risk = (done.verdict != ALIVE or logins.login_outcome_unknown) and not is_good
    if not done.verdict:  # no login has touched the key
        at_risk = is_same and before.at_risk
    if at_risk or is_same:  # else another key is stored, and the note from before the login is void
        logins.key_age.note_risk(done.key, at_risk)


class Outcome(NamedTuple):
    """What came of an update. `key`: the one that is stored now; `verdict`: a probe's word on it."""

    code: int  # exit code
    message: Message
    key: Secret
    renewed: bool = False
    verdict: str = ""  # "": it was neither renewed nor put at risk
    warnings: Sequence[Message] = ()


@contextlib.contextmanager
def hold_back_signals_and_log() -> Iterator[None]:
    """Hold back signals and log lines until the end: either could cost a token."""
    faults = {"SEGV", "BUS", "FPE", "ILL", "ABRT", "TRAP", "SYS", "KILL", "STOP"}
    signals = signal.valid_signals() - {getattr(signal, f"SIG{name}") for name in faults}
    lines = LineKeeper()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    log.addFilter(lines)
    try:
        yield
    finally:
        log.removeFilter(lines)
        while signal.sigtimedwait(signals, 0):
            pass  # they are dropped: the run that they were to end is over
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for line in lines:
            log.handle(line)


class LineKeeper(list[logging.LogRecord]):
    """A filter of the log that keeps each line, and lets none pass."""

    def filter(self, line: logging.LogRecord) -> bool:
        self.append(line)
        return False


def superseded_by_late_login(logins: LoginState) -> bool:
    """Say whether a login of ours that got no answer has killed the key that is stored now; raise
    WebkassaFailure where nobody can tell, for it may do so yet."""
    if not logins.login_outcome_unknown:
        return False
    verdict = logins.probe(logins.token)
    if verdict == ALIVE:
        return False
    logins.token = NO_KEY
    if verdict != DEAD or logins.against_probe:
        what = "Stored the new key {key}, but a login before it got no answer and may end it."
        raise WebkassaFailure(what, key=logins.row.key.fingerprint)
    logins.invalid_token_replies += 1
    logins.store_attempts = 0
    enough = logins.invalid_token_replies >= LoginState.INVALID_REPLY_LIMIT
    if enough or not logins.login_deadline.left:
        raise WebkassaFailure("Webkassa is so slow that one login of ours killed the next.")
    return True


def give_up(logins: LoginState, error: Exception) -> Outcome:
    """Return what a failed update leaves behind, for which the stored key may have to be probed."""
    failure, key, verdict = as_failure(logins.ended_by or error), logins.row.key, ""
    if logins.asked and (logins.token or logins.login_outcome_unknown):
        before = logins.row_before_first_login
        verdict = logins.probe(key) if key else DEAD
        if verdict != ALIVE and logins.token and before and key == before.key:
            verdict = DEAD  # our login has killed it
    lost = NO_KEY if verdict == ALIVE else logins.token
    outcome = describe_failure(failure, key, verdict, lost, logins.asked)
    return outcome._replace(renewed=logins.renewed)


def reason_to_stop(job: Job, logins: LoginState, row: KeyRow, table: Table) -> Outcome | None:
    """Step 2, under the lock: return why nothing is to be asked or stored, None: go on."""
    key, probe = row.key, logins.probe
    if logins.token:
        return reconcile_after_reconnect(job, logins, row, table)
    if logins.login_outcome_unknown:
        return None  # that login may yet kill whatever is stored
    changed = key and logins.row_before_lock and key != logins.row_before_lock.key
    if changed and probe(key) == ALIVE:
        what = "Nothing to do: another updater has just stored the key {key}."
        return Outcome(0, Message(what, key=key.fingerprint), key)
    reason = None
    if job.mode == IF_NEEDED or (job.mode != ALWAYS and not key):
        reason = reason_if_fresh(job.account, row, logins)
    elif job.mode != ALWAYS:
        reason = reason_if_not_this_key(job.mode, row, logins)
    if reason:
        return Outcome(0, reason, key)
    waiting_since = logins.started if logins.has_waited else float("inf")
    if refusal := logins.refusals.find(row, waiting_since, job.mode == ALWAYS):
        raise refusal
    return None


def reason_if_not_this_key(asked: str, row: KeyRow, logins: LoginState) -> Message | None:
    """Return a sentence if another key than the `asked` one is stored, or if it is younger than a
    minute and alive, else None: a consumer who was told that it is dead knows more than a probe."""
    if asked not in (row.key.fingerprint, row.padded.fingerprint):
        what = "Nothing to do: the key {asked} is no longer stored, but {key}."
        return Message(what, asked=asked, key=describe_key(row))
    if row.age is None or row.age >= YOUNG:
        return None
    verdict = probe_stored_key(logins, row)
    logins.is_early = verdict == DEAD
    if logins.is_early and not logins.key_age.was_early():
        return None
    if verdict != ALIVE:
        what = "The key {key} is younger than a minute, and the probe says {verdict}."
        advice = "Ask again in a minute."
        raise StoreUnavailable(what, advice, key=row.key.fingerprint, verdict=Message(verdict))
    what = "Nothing to do: the key {key} is younger than a minute, and the probe says alive."
    return Message(what, key=row.key.fingerprint)


def reason_if_fresh(account: Account, row: KeyRow, logins: LoginState) -> Message | None:
    """Return a sentence if the key is younger than WEBKASSA_MAX_AGE and not dead, else None. Where
    its age is not known, the probe decides alone; raise a Failure where it cannot."""
    if not row.key or (row.age is not None and row.age >= account.max_age):
        return None
    verdict = probe_stored_key(logins, row)
    if verdict == DEAD:
        if row.age is not None and row.age < 3600 and not logins.probe_doubt.can_remember(row):
            what = "The probe calls the young key {key} dead, and no note of it can be kept."
            raise WebkassaFailure(what, key=row.key.fingerprint)
        return None
    if verdict in (UNCLEAR, OFF) and (row.at_risk or logins.refusals.find(row)):
        return None
    if row.at_risk and verdict == ALIVE:
        logins.key_age.risk.remove()
    if verdict == DOUBTED or (row.age is None and verdict != ALIVE):
        raise key_unproven(row, verdict, logins.webkassa)
    what = "Nothing to do: the key {key}; the probe says {verdict}."
    return Message(what, key=describe_key(row), verdict=Message(verdict))


def probe_stored_key(logins: LoginState, row: KeyRow) -> str:
    """Return the probe's verdict; a young key that it calls dead is probed once more after a
    second, before anybody logs in: the directory may lag."""
    verdict = logins.probe(row.key)
    if verdict == DEAD and row.age is not None and row.age < YOUNG:
        sleep_or_signal(1.0, ignore_signals=True)
        verdict = logins.probe(row.key)
    died_early = verdict == DEAD and row.age_from == "note" and (row.age or 0) < FULL_LIFE
    if died_early and not logins.warned_of_stranger:  # once, however often the row is waited for
        logins.warned_of_stranger = True
        what = "{service}: the key {key} is dead already. Does somebody else use this login?"
        log.warning(Message(what, service=logins.account.service, key=describe_key(row)))
    return verdict


def reconcile_after_reconnect(
    job: Job, logins: LoginState, row: KeyRow, table: Table
) -> Outcome | None:
    """Step 7, with a token in hand: return what was done, None: the token is to be stored. If
    nobody can tell which key lives, `live_key_unknown` is set: certainty costs one login more."""
    verdict = ALIVE if logins.against_probe else logins.probe(logins.token)
    changed = bool(row.key) and row.key != logins.row_before_token.key
    if changed and row.key == logins.token and verdict != DEAD:  # the commit had gone through
        return None if superseded_by_late_login(logins) else describe_stored(job, logins, table)
    # While a login of ours got no answer, it may yet kill their key
    is_theirs = changed and verdict == DEAD and not logins.login_outcome_unknown
    if is_theirs and logins.probe(row.key) == ALIVE:
        what = "Another updater logged in after us and stored {key}; our key is dead."
        return Outcome(0, Message(what, key=describe_key(row)), row.key, verdict=ALIVE)
    logins.live_key_unknown = changed or verdict != ALIVE
    return None


def log_in_or_keep(job: Job, logins: LoginState, store: KeyStore, row: KeyRow) -> None:
    """Steps 4 and 5. If they fail, store the token that is in hand, unless the row holds something
    better; raise the failure."""
    failure = logins.ended_by
    if not failure and logins.live_key_unknown and logins.extra_login_sent:
        failure = NoLoginLeft("PostgreSQL was lost twice after a login.")
    if not failure:
        try:
            return log_in(job, logins, store, row)
        except WebkassaFailure as refusal:
            failure = refusal
    is_kept = logins.token and row_is_no_better(logins, row)
    if failure.code in (LOGIN_REFUSED, NONSENSE):
        logins.refusals.remember(logins.token if is_kept else row.key, failure.code)
    if is_kept:
        logins.against_probe = logins.probe(logins.token) == DEAD
        logins.ended_by = failure  # step 7 goes on for the token in hand; then this is raised
        store_token(logins, store, row, Deadline(KeyStore.COMMIT_TIME))
        logins.token, logins.login_outcome_unknown = NO_KEY, True
    raise failure


def row_is_no_better(logins: LoginState, row: KeyRow) -> bool:
    """Say, after a failed login, whether the key in the row is no better than the token in hand."""
    before = logins.row_before_first_login
    if not row.key or not logins.extra_login_sent:  # our login has killed the stored key
        return logins.probe(row.key) != ALIVE
    if before and row.key == before.key:
        return True
    return logins.probe(logins.token) == ALIVE and logins.probe(row.key) == DEAD


class NoLoginLeft(StoreUnavailable):
    """Certainty would cost one login more, and that was sent already."""


def log_in(job: Job, logins: LoginState, store: KeyStore, row: KeyRow) -> None:
    """Log in until a token is in hand that is to be stored. Raise a WebkassaFailure, or
    StoreUnavailable if the transaction is lost before a try."""
    webkassa, deadline = logins.webkassa, logins.login_deadline
    backoff = 0.25  # seconds; doubled with every try
    while True:
        logins.start_login(row)
        try:
            job.report_wait(Message("the answer of {host}", host=webkassa.host), deadline.left)
            token, odd = webkassa.authorize(deadline, store.in_transaction)
            verdict = probe_until_alive(logins, token, store.in_transaction)
            if validate_token(logins, row, token, verdict, odd):
                return
        except WebkassaFailure as failure:
            logins.login_outcome_unknown |= failure.may_have_logged_in
            logins.invalid_token_replies += failure.invalid_token_reply
            pause, backoff = backoff * random.uniform(0.5, 1), min(backoff * 2, 30)
            has_host = webkassa.rotate_host(failure.alternative_hosts)
            is_new = webkassa.host not in webkassa.asked
            pause = 0.0 if is_new else max(pause, failure.wait)
            enough = logins.invalid_token_replies >= LoginState.INVALID_REPLY_LIMIT
            if enough or not failure.retry or not has_host or pause >= deadline.left:
                raise
            why = failure.message
            log.debug(Message("{why} Trying again after {seconds:.1f} s.", why=why, seconds=pause))
            job.report_wait(Message("the next try ({why})", why=why), pause)
            if sleep_or_signal(pause, store.in_transaction):
                raise
        if not store.in_transaction():
            raise StoreUnavailable("The connection to PostgreSQL broke before Webkassa was asked.")


def probe_until_alive(logins: LoginState, token: Secret, heartbeat: Callable[[], object]) -> str:
    """Return the probe's verdict on a new token; one that it calls dead is probed again after 1, 2
    and 4 s: the directory may lag."""
    for pause in (1, 2, 4):
        verdict = logins.probe(token)
        if verdict != DEAD:
            return verdict
        heartbeat()
        sleep_or_signal(pause, ignore_signals=True)
    return logins.probe(token)


def validate_token(
    logins: LoginState, row: KeyRow, token: Secret, verdict: str, odd: WebkassaFailure | None
) -> bool:
    """Step 5: take a token in hand; say whether to store it now, False: log in once more. What stands
    beside it (`odd`) is raised, unless the probe proves it alive and the stored key dead."""
    if odd and not (verdict == ALIVE and (not row.key or logins.probe(row.key) == DEAD)):
        if odd.retry:
            logins.take_token(token, verdict, row)
        else:  # the reply says no, and gave a token
            logins.login_outcome_unknown = True
        raise odd
    logins.take_token(token, verdict, row)
    logins.odd_reply = odd.message if odd else None
    logins.against_probe = logins.called_dead and verdict == DEAD  # this one and the one before it
    logins.called_dead = verdict == DEAD
    return not logins.called_dead or logins.against_probe


def sleep_or_signal(
    seconds: float, heartbeat: Callable[[], object] | None = None, ignore_signals: bool = False
) -> bool:
    """Wait between two tries, calling `heartbeat` every 10 s; say whether a signal ended the wait.
    A signal that was ignored from the start (nohup) ends nothing: held back, it would arrive."""
    heard = {number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    rest = Deadline(seconds)
    while True:
        pause = min(rest.left, HEARTBEAT)
        if signal.sigtimedwait(set() if ignore_signals else heard, pause):
            return True
        if not rest.left:
            return False
        if heartbeat:
            heartbeat()


class LoginState:
    """What a run knows of its logins, and its time. A row is as the database held it."""

    STORING_TIME, LAST_TRY = 60.0, 2.0  # seconds: from the token's arrival; least for a further try
    INVALID_REPLY_LIMIT = 3  # replies that may have been a login's, but brought no usable token

    def __init__(self, account: Account) -> None:
        self.account = account
        self.webkassa = Webkassa(account)
        self.refusals, self.probe_doubt = Refusals(account), ProbeDoubt(account)
        self.key_age, self.started = KeyAge(account), time.time()
        self.lock_deadline = Deadline(self.longest_hold(account))
        self.asked, self.schema, self.login_deadline = False, "", Deadline(0)
        self.store_deadline = Deadline(0)
        self.row = KeyRow()  # under the lock
        self.row_before_lock: KeyRow | None = None  # as our first connection found it
        self.row_before_first_login: KeyRow | None = None
        self.row_before_token = KeyRow()  # when the login was sent that gave the token in hand
        self.token, self.verdict = NO_KEY, UNCLEAR  # in hand; the probe's word on it
        self.login_outcome_unknown = False  # a login got no answer, and may yet take effect
        self.invalid_token_replies = 0
        self.live_key_unknown = False  # nobody can tell whether ours or the stored key lives
        self.extra_login_sent = False  # the one more that makes it certain
        self.called_dead = False  # by the probe: the last token that was taken
        self.odd_reply = cast("Message | None", None)  # what stood beside the token
        self.against_probe = False  # the token in hand is stored though the probe calls it dead
        self.store_attempts, self.pause, self.last_try = 0, 0.25, False
        self.renewed = False  # the key in the row is one of ours
        self.is_early = False  # a key younger than a minute is replaced, for it is dead
        self.ended_by = cast("Failure | None", None)  # what ended the logins with a token in hand
        self.has_waited = False  # for a lock that somebody else held
        self.warned_of_stranger = False  # of somebody else who uses this login

    @classmethod
    def longest_hold(cls, account: Account) -> float:
        """Return seconds for which a healthy run may hold the lock: a token that came at the end is
        probed four times, 7 s apart in all, and then stored."""
        return account.deadline + 4 * PROBE_TIME + 7 + cls.STORING_TIME

    @property
    def current_deadline(self) -> Deadline:
        """How long to wait for a connection, for the lock and for the row."""
        if self.token:
            return self.store_deadline
        return self.login_deadline if self.asked else self.lock_deadline

    def probe(self, key: Secret) -> str:
        """Return the probe's verdict on a key; if it calls one alive, believe it from now on. Before
        a login there is more time: consumers hold no key that a login of ours has killed."""
        verdict = self.webkassa.probe(key, PROBE_TIME if self.asked else 2 * PROBE_TIME)
        if verdict == ALIVE and self.webkassa.is_doubted:
            self.webkassa.is_doubted = False
            self.probe_doubt.note.remove()
        return verdict

    def start_asking(self, schema: str) -> None:
        """Begin the time for all that is asked of Webkassa; keep to this schema's table."""
        self.asked, self.schema, end = True, schema, Deadline(self.account.deadline)
        self.login_deadline, self.store_deadline = end, Deadline(end.left + self.STORING_TIME)

    def start_login(self, row: KeyRow) -> None:
        """Note that a login is sent now, which kills the key in this row."""
        self.row_before_first_login = self.row_before_first_login or row
        self.extra_login_sent |= self.live_key_unknown

    def take_token(self, token: Secret, verdict: str, row: KeyRow) -> None:
        self.token, self.verdict, self.row_before_token = token, verdict, row
        self.live_key_unknown, self.store_deadline = False, Deadline(self.STORING_TIME)


# ---- Webkassa: authorize kills the key before it, probe asks whether a key is alive

# Error codes, from the vendor's manual and public integrations
UNKNOWN_ERROR, BAD_LOGIN, NOT_AUTHORIZED, OTHER_DOMAIN = -1, 1, 3, 505
DEAD_CODES = {2, 3}  # session expired, not authorized
ALIVE_CODES = {4, 5, 6, 7, 10, 11, 13}  # the token was accepted, the operation was not

CONNECT_TIME, PROBE_TIME, HEARTBEAT = 5.0, 5.0, 10.0  # seconds
LOGIN_LIMIT, PROBE_LIMIT = 65536, 2**20  # bytes of an answer: the directory of units is long


class Webkassa:
    """The vendor, as one account sees it. `hosts` are asked in turn, the first of them now."""

    def __init__(self, account: Account) -> None:
        self.account, self.session = account, new_session(account.ca_file)
        self.hosts, self.asked = [host_of(account.auth_url)], set[str]()
        self.is_doubted = False  # the probe has refused every new key, and is not believed

    @property
    def host(self) -> str:
        return self.hosts[0]

    @property
    def url(self) -> str:
        return with_host(self.account.auth_url, self.host)

    @property
    def probe_url(self) -> str:
        url = self.account.probe_url
        return with_host(url, self.host) if host_of(url) == host_of(self.account.auth_url) else url

    def authorize(
        self, deadline: Deadline, heartbeat: Callable[[], object]
    ) -> tuple[Secret, WebkassaFailure | None]:
        """Log in once; return the token, and what speaks against it; raise a WebkassaFailure. An
        answer is waited for until the deadline: a login given up may still take effect."""
        login = {"Login": self.account.login.value, "Password": self.account.password.value}
        return read_token(self.host, self.post(self.url, login, deadline, LOGIN_LIMIT, heartbeat))

    def rotate_host(self, alternative_hosts: list[str] | None) -> bool:
        """Go on to the next host. Return False where there is none: Webkassa serves the account on
        other hosts (505), and names none that may be asked and was not."""
        here = self.hosts.pop(0)
        self.asked.add(here)
        known, others = {*self.asked, *self.hosts}, alternative_hosts
        self.hosts += [here] if others is None else [name for name in others if name not in known]
        has_next = bool(self.hosts)
        self.hosts = self.hosts or [here]
        return has_next

    def probe(self, key: Secret, seconds: float) -> str:
        """Ask a read-only directory with `key`, once, for some seconds at most; return a verdict.
        Only codes 2 and 3 condemn a key. That the directory refuses a dead key is not verified, so
        ALIVE is weaker than DEAD. It never raises: a token in hand must still be stored."""
        if not self.probe_url or not key:
            return OFF
        try:
            answer = self.post(self.probe_url, {"Token": key.value}, Deadline(seconds), PROBE_LIMIT)
        except Exception as error:
            log.debug(Message("Probe: {why}", why=as_failure(error).message))
            return UNCLEAR
        if answer.codes & DEAD_CODES:
            return DOUBTED if self.is_doubted else DEAD
        good = 200 <= answer.status < 300 and answer.is_vendors and not answer.body.get("Errors")
        return ALIVE if good or answer.codes & ALIVE_CODES else UNCLEAR

    def post(
        self, url: str, body: dict[str, str], deadline: Deadline, limit: int,
        heartbeat: Callable[[], object] | None = None,
    ) -> Answer:  # fmt: skip
        """POST JSON; the API key goes to the host of Authorize only. Raise WebkassaFailure."""
        headers = {"Content-Type": "application/json"}
        if self.account.api_key and host_of(url) == self.host:
            headers["x-api-key"] = self.account.api_key.value
        data = io.BytesIO(json.dumps(body).encode())  # it tells how much of it was sent
        request = requests.Request("POST", url, headers=headers, data=data)
        return send_request(self.session, request, deadline, limit, heartbeat)


def read_token(host: str, answer: Answer) -> tuple[Secret, WebkassaFailure | None]:
    """Return the token of an answer to Authorize, and the failure that the answer tells beside it;
    raise that failure where there is no token."""
    data = answer.body.get("Data")
    token = data.get("Token") if isinstance(data, dict) else None
    is_token = isinstance(token, str) and bool(re.fullmatch("[!-~]{1,255}", token))
    failure = read_failure(host, answer, is_token)
    if failure and not is_token:
        raise failure
    return Secret(str(token)), failure


def read_failure(host: str, answer: Answer, has_token: bool) -> WebkassaFailure | None:
    """Return the failure that an answer to Authorize tells, by its status and codes."""
    codes, status = answer.codes, answer.status
    others = alternative_hosts(host, answer.headers.get("AlternativeDomainNames", ""))
    no_token = {"code": NONSENSE, "may_have_logged_in": True, "invalid_token_reply": True}
    cases: tuple[tuple[object, str, dict[str, Any]], ...] = (
        (codes & {BAD_LOGIN, NOT_AUTHORIZED} or (status in (401, 403) and answer.is_vendors),
         "{host} answers HTTP {answer}: login refused.", {"code": LOGIN_REFUSED, "retry": False}),
        (OTHER_DOMAIN in (*codes, status), "{host} answers HTTP {answer}: this account is served on"
         " another host.", {"alternative_hosts": others}),
        (status in (401, 403), "{host} answers HTTP {answer}: something in between refuses, or the"
         " API key.", {}),
        (status in (408, 429), "{host} answers HTTP {answer}: too many requests.", {}),
        (UNKNOWN_ERROR in codes or status >= 500, "{host} answers HTTP {answer}: it is failing.",
         {"may_have_logged_in": True}),
        (codes or not 200 <= status < 300, "{host} answers HTTP {answer}: not an answer to a login.",
         {"code": NONSENSE, "retry": has_token}),
        (answer.body.get("Errors"), "{host} answers HTTP {answer}, with errors that have no code.",
         no_token),
        (not has_token, "{host} answers HTTP {answer}, but no usable token.", no_token))  # fmt: skip
    facts: dict[str, Any] = {"host": host, "answer": answer.shown, "wait": answer.retry_after,
                             "invalid_token_reply": has_token}  # fmt: skip
    found = (WebkassaFailure(what, **facts | more) for is_so, what, more in cases if is_so)
    return next(found, None)


def send_request(
    session: requests.Session, request: requests.Request, end: Deadline, limit: int,
    heartbeat: Callable[[], object] | None = None,
) -> Answer:  # fmt: skip
    """Send one request and return its answer; raise WebkassaFailure if none comes in time. Of its
    body `limit` bytes are read. After an exchange that was odd, cut or failed its connection is not
    used again: a late answer would be taken for the answer to the next question."""
    if not end.left:
        raise WebkassaFailure("There was no time left to ask {host}.", host=host_of(request.url))
    answer: Answer | None = None
    try:
        answer = run_with_deadline(end, heartbeat, fetch_answer, session, request, end, limit)
    except Exception as error:
        was_sent = isinstance(request.data, io.BytesIO) and request.data.tell() > 0
        raise no_answer(host_of(request.url), error, was_sent) from None
    finally:
        if not (answer and 200 <= answer.status < 300 and answer.is_vendors):
            session.close()
    return answer


def fetch_answer(
    session: requests.Session, request: requests.Request, end: Deadline, limit: int
) -> Answer:
    """Send a request, and return its answer. No redirect is followed; a loopback address is never
    asked through a proxy: what goes there may be in clear."""
    is_local = is_loopback(urlsplit(request.url).hostname or "")
    proxies = {} if is_local else requests.utils.get_environ_proxies(request.url)
    connect, read = min(CONNECT_TIME, max(end.left / 5, 2.0)), end.left + 1  # for each address
    session.cookies.clear()  # of a login: consumers have none, and the probe asks for them
    with session.send(
        session.prepare_request(request), stream=True, allow_redirects=False,
        proxies=proxies, verify=session.verify, timeout=(connect, read)) as response:  # fmt: skip
        return Answer(response.status_code, response.headers, read_json(response.raw, limit))


def read_json(raw: Any, limit: int) -> dict[str, Any]:
    """Return the JSON object that a urllib3 response brings, or {}. It is whole when its bytes
    are, however their transfer ends: what came is what counts."""
    content, value = bytearray(), None
    with contextlib.suppress(Exception):
        while not value and len(content) < limit:
            if not (piece := raw.read(limit, decode_content=False)):
                break
            content += piece
            plain = decompress(content, limit)
            value = parse_json(plain) if plain.rstrip()[-1:] == b"}" else None
        # Where the end is here already, read it: then the probe can use this connection again. To
        # make a new one takes time, in which consumers hold a dead key
        sock = raw.connection.sock
        sock.settimeout(0)
        raw.read(1024)
        sock.settimeout(None)
    plain = decompress(content, limit)
    return value or parse_json(plain) or rescue_token(plain) or {}


def decompress(content: bytearray, limit: int) -> bytes | bytearray:
    """Return what an answer holds, `limit` bytes at most. It may be compressed, though we asked for
    the contrary; what its Content-Encoding says is not believed."""
    if content.lstrip()[:1] not in b"{[<\xef":
        for wbits in (31, 15, -15):  # gzip, zlib, bare deflate
            with contextlib.suppress(zlib.error):
                return zlib.decompressobj(wbits=wbits).decompress(content, limit)
    return content


def parse_json(content: bytes | bytearray) -> Any:
    """Return the first JSON object in `content`, or None while its end is missing."""
    text = content.decode("utf-8", "replace")  # a Russian Text may be cp1251
    with contextlib.suppress(ValueError, RecursionError):
        return json.JSONDecoder().raw_decode(text, text.index("{"))[0]
    return None


def rescue_token(content: bytes | bytearray) -> dict[str, Any] | None:
    """Return an answer's JSON as far as its token can be read, whatever is missing or wrong."""
    token = re.search(rb'"Data"\s*:\s*\{\s*"Token"\s*:\s*"([!-~]{1,255}?)"', content)
    return {"Data": {"Token": token[1].decode()}} if token else None


class Answer(NamedTuple):
    """An HTTP answer; `body` is the JSON object in it, {} where there is none."""

    status: int
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def is_vendors(self) -> bool:
        return not {"Errors", "Data"}.isdisjoint(self.body)

    @property
    def retry_after(self) -> float:
        """The seconds that a Retry-After header asks for; its other form, a date, counts not."""
        header = self.headers.get("Retry-After", "")
        return float(header) if re.fullmatch(r"\d+(\.\d+)?", header, re.ASCII) else 0.0

    @property
    def shown(self) -> Message:
        what, codes = "{status}, error code {codes}", ", ".join(map(str, sorted(self.codes)))
        return Message(what if codes else "{status}", status=self.status, codes=codes)

    @property
    def codes(self) -> set[int]:
        errors = self.body.get("Errors")
        errors = errors if isinstance(errors, list) else [errors]
        found = [str(error.get("Code")) for error in errors if isinstance(error, dict)]
        numbers = [re.fullmatch(r" *(-?[0-9]{1,9})(\.0)? *", code) for code in found]
        return {int(number[1]) for number in numbers if number}


def new_session(ca_file: str) -> requests.Session:
    """Return a session that follows its caller alone: no ~/.netrc, no proxy of its own, no redirect
    (requests would read its body); TLS is always verified, by `ca_file` or requests' bundle."""
    session = requests.Session()
    session.trust_env, session.verify = False, ca_file or True
    session.get_redirect_target = lambda _: None  # type: ignore[assignment, method-assign]
    session.headers["User-Agent"] = f"webkassa-key-updater/{__version__}"
    session.headers["Accept-Encoding"] = "identity"
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter())
    return session


class PromptResponse(http.client.HTTPResponse):
    """An HTTP answer that skips interim ones (1xx; Python 3.10 to 3.14 skip but 100), and whose
    `read` returns what has come, instead of waiting for all that was announced."""

    def begin(self) -> None:
        try:
            super().begin()
        except http.client.HTTPException:
            if not isinstance(self.status, int):
                raise
            # It gives up at 100 headers; at just 100 the blank line is read already. None counts
            while self.fp.peek(1)[:1] != b"{" and self.fp.readline(65537).strip():
                pass
            self.headers = self.msg = http.client.HTTPMessage()
            self.length, self.chunked, self.will_close = None, False, True
            return
        if self.status < 200:
            # So that it reads on
            self.status = self.headers = self.msg = None  # type: ignore[assignment]
            self.begin()
            self.will_close = True
            return
        coding = self.headers.get("Transfer-Encoding", "").lower().split(",")[-1].strip()
        if coding == "chunked" and not self.chunked:  # at the end of a list of codings
            self.chunked, self.chunk_left, self.length = True, None, None
        if self.status == 204 and (length := self.headers.get("Content-Length", "")).isdecimal():
            self.length = int(length)

    def read(self, amt: int | None = None) -> bytes:
        if not amt or self.fp is None or self.length == 0:
            return super().read(amt)
        if self.chunked:
            return self.read1(amt)
        return super().read(min(amt, len(self.fp.peek(1)) or 1))


class Adapter(requests.adapters.HTTPAdapter):
    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Have a pool read answers by PromptResponse, and trust a bundle that is read already."""
        super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]
        if conn.ConnectionCls is type(conn).ConnectionCls:  # at the pool's first request
            ours = {"response_class": PromptResponse}
            conn.ConnectionCls = type("Connection", (conn.ConnectionCls,), ours)
        if conn.ca_certs and (context := tls_context(conn.ca_certs)):
            conn.conn_kw["ssl_context"], conn.ca_certs = context, None


@functools.cache
def tls_context(bundle: str) -> Any:
    """Return what trusts a bundle of certificates, read once (20 ms); None if it cannot be read."""
    context = urllib3.util.ssl_.create_urllib3_context()
    with contextlib.suppress(OSError):
        context.load_verify_locations(bundle)
        return context
    return None


def host_of(url: str) -> str:
    """Return host and port of a URL."""
    return urlsplit(url).netloc.lower()


def with_host(url: str, host: str) -> str:
    return urlunsplit(urlsplit(url)._replace(netloc=host))


def is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or bool(getattr(parse_address(host), "is_loopback", False))


def alternative_hosts(host: str, header: str) -> list[str]:
    """Return the hosts of an AlternativeDomainNames header that may see the password: those of the
    vendor, and that only while `host`, which names them, is the vendor's."""
    vendors = re.compile(r"([a-z0-9-]+\.)+webkassa\.kz")
    if not vendors.fullmatch(host.removesuffix(":443")):
        return []
    return [name for name in re.split(r"[,\s]+", header.lower()) if vendors.fullmatch(name)]


def run_with_deadline(
    deadline: Deadline, heartbeat: Callable[[], object] | None,
    function: Callable[..., Any], *args: Any,
) -> Any:  # fmt: skip
    """Return what `function(*args)` gives; TimeoutError at the deadline. Timeouts of requests are per
    read and leave out name resolution; libpq waits in C: so a thread does it, left behind if late."""
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    tasks, idle = task_queue(os.getpid())
    if not idle.acquire(blocking=False):  # to start a thread for each task takes a tenth of a run
        start_thread(do_tasks, tasks, idle)
    tasks.put((results, function, args))
    while True:
        is_last = not deadline.left  # then a moment more: this machine may have slept meanwhile
        with contextlib.suppress(queue.Empty):
            pause = 0.2 if is_last else min(deadline.left, HEARTBEAT)
            result, error = results.get(timeout=pause)
            if error:
                raise error
            return result
        if is_last:
            raise TimeoutError
        if heartbeat:
            heartbeat()


@functools.cache
def task_queue(process: int) -> tuple[queue.SimpleQueue[Any], threading.Semaphore]:
    """Return a queue of tasks, and how many threads wait at it: a forked process has none."""
    return queue.SimpleQueue(), threading.Semaphore(0)


def do_tasks(tasks: queue.SimpleQueue[Any], idle: threading.Semaphore) -> None:
    while True:
        results, function, args = tasks.get()
        try:
            done: tuple[Any, Exception | None] = function(*args), None
        except Exception as error:
            done = None, error
        idle.release()
        results.put(done)
        del results, done  # a connection that came too late is closed so


def start_thread(function: Callable[..., None], *args: Any) -> None:
    """Start a thread with all signals blocked: one would end the process, even before a commit."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        threading.Thread(target=function, args=args, daemon=True).start()
    except RuntimeError:
        raise StoreUnavailable("This machine cannot start another thread.") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# ---- Key store: one row of a PostgreSQL table, found by looking, written by one at a time

# The server ends a transaction of ours that falls silent for 30 s (a host that lost its power, a
# ghost behind a pooler); no standby may hold the commit back; in UTC, `clock_timestamp()` suits
# naive columns as it suits aware ones. A snapshot older than the lock would not see what it waited
# for, so READ COMMITTED. The server's own limits are lifted.
BEGIN = """
    BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = 30000;
    SET LOCAL synchronous_commit = local; SET LOCAL TimeZone = 'UTC'; SET LOCAL statement_timeout = 0;
    SELECT set_config('transaction_timeout', '0', true) WHERE current_setting('transaction_timeout', true) IS NOT NULL;
"""  # the last since 17: PgBouncer 1.18 may tell an earlier server's version (findings/)
Reply = tuple[list[Any], str]  # rows and command tag
LOCK_TIMEOUT = "SET LOCAL lock_timeout = %(limit)s;"
SELECT_ROWS = """
    SELECT service_name::text, coalesce(api_key::text, ''), to_char(changed, 'YYYY-MM-DD HH24:MI:SS "UTC"'),
           CASE WHEN isfinite(changed) THEN extract(epoch FROM clock_timestamp() - changed)::float8 END
    FROM (SELECT service_name, api_key, coalesce({times}) AS changed FROM {table} WHERE {which}) AS r
"""
CREATE_TABLE = """
    CREATE TABLE IF NOT EXISTS {table} (id serial PRIMARY KEY,
        service_name varchar(50) UNIQUE NOT NULL, api_key varchar(255) NOT NULL,
        user_id varchar(255), created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now())
"""


class KeyStore:
    """One transaction on the table; what is not committed is rolled back in the end. `deadline`
    bounds all waits for others. Methods raise StoreUnavailable or WriteRefused."""

    STATEMENT_TIME, COMMIT_TIME, ASK_TIME, LOCK_PAUSE = 20.0, 15.0, 5.0, 0.3  # seconds
    CLOCK_SLACK = 300.0  # seconds that a stored time may lie in the future and still count as now
    IN_TRANSACTION = psycopg2.extensions.TRANSACTION_STATUS_INTRANS

    def __init__(self, job: Job, deadline: Deadline, schema: str = "") -> None:
        self.job, self.account, self.deadline, self.table = job, job.account, deadline, NO_TABLE
        self.schema = schema or job.account.schema  # a pooler's session may have another's path

    def __enter__(self) -> KeyStore:
        self.connection = self.job.connect(self.account, self.deadline)
        self.connection.autocommit = True  # BEGIN and COMMIT are said here
        self.find_table()
        return self

    def __exit__(self, *_: object) -> None:
        if self.connection.info.transaction_status == self.IN_TRANSACTION:
            with contextlib.suppress(Failure):
                self.run("ROLLBACK", deadline=Deadline(1))
        self.connection.close()

    def run(
        self, statements: str, values: Mapping[str, Any] | None = None,
        deadline: Deadline | None = None, table: Sequence[str] = (),
    ) -> Reply:  # fmt: skip
        """Run statements in one message; return the rows and the command tag of the last. {table}
        in them is our own, or the one of this schema and name."""
        deadline = self.connection.deadline = deadline or self.deadline.within(self.STATEMENT_TIME)
        # The server is to give up, and to say why, shortly before we do
        limit = max(int(deadline.left * 1000) - 500, 1)
        bounds = {"service": self.account.service, "oid": self.table.oid, "limit": limit}
        names = table or (self.table.schema, self.table.name)
        names = [name.replace("%", "%%") for name in names]  # one % starts a placeholder
        query = sql.SQL(statements).format(table=sql.Identifier(*names))
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(query, {**bounds, **(values or {})})
                rows = cursor.fetchall() if cursor.description else []
                return rows, cursor.statusmessage or ""
        except (psycopg2.Error, UnicodeError, TimeoutError) as error:
            raise database_failure(error, self.table, self.account) from None

    def find_table(self, begin: bool = True, wide: bool = False) -> Table:
        """Look the table up in the catalog; `wide`: also others of any schema that may be meant."""
        values = {"schema": self.schema or None, "name": self.account.table, "wide": wide}
        ((clock, *found),), _ = self.run((BEGIN if begin else "") + FIND_TABLE, values)
        self.table, self.clock = Table(*found), clock - time.monotonic()
        return self.table

    def lock_row(self) -> KeyRow:
        """Take this row's lock until the transaction ends, then lock the row, and return it as it
        is then. Raise LockBusy where somebody else holds one: who waits holds no connection. The
        advisory lock works across hosts and behind a pooler; a row need not exist for it."""
        self.take_lock(f"{self.table.short}:{self.account.service}")
        row = self.read_row("FOR NO KEY UPDATE")
        if not row.exists:  # perhaps it was deleted and inserted anew while this waited for it
            row = self.read_row("FOR NO KEY UPDATE")
        return row if row.exists else row._replace(others=self.run(OTHER_ROWS)[0])

    def reject_other_rows(self, row: KeyRow) -> None:
        """Raise WriteRefused where consumers may read another row than ours. Not to be asked with a
        token in hand, which is better stored in the wrong row than lost."""
        similar = next((name for name, is_similar in row.others if is_similar), "")
        is_hidden = not row.exists and self.read_row().exists
        elsewhere = "" if self.account.schema else self.find_row_elsewhere(row)
        if fault := table_fault(self.table, self.account.service, is_hidden, similar, elsewhere):
            raise fault

    def find_row_elsewhere(self, row: KeyRow) -> str:
        """Return another table that consumers may read instead: one of this name and the search path
        that has such a row, too, or any that has one while ours has none. It waits for no lock."""
        table = self.table if row.exists else self.find_table(begin=False, wide=True)
        found = (other for other in table.others if self.try_run(HAS_ROW, other) == [(True,)])
        return ".".join(next(found, ()))

    def try_run(self, statements: str, table: Sequence[str] = ()) -> list[Any]:
        """Return the rows of a look that may fail, or none: a failure ends no transaction."""
        self.run_locking("SAVEPOINT look")  # alone, Pgpool-II 4.3 would send it to a standby, too
        try:
            return self.run(statements, table=table)[0]
        except Failure:
            self.run("ROLLBACK TO SAVEPOINT look")
            return []

    def take_lock(self, name: str) -> None:
        """Take an advisory lock until the transaction ends; raise LockBusy."""
        digest = hashlib.sha256(f"webkassa_key_updater:{name}".encode()).digest()
        number = int.from_bytes(digest[:8], "big", signed=True)
        rows, _ = self.run("SELECT pg_try_advisory_xact_lock(%(number)s)", {"number": number})
        if rows != [(True,)]:
            raise self.busy(number)

    def read_row(self, row_lock: str = "") -> KeyRow:
        """Return the row as it is now; `row_lock`: "", or the FOR ... that locks it."""
        limit = max(min(1000, int(self.deadline.left * 1000) - 500), 1)
        rows = self.select_rows("service_name = %(service)s " + row_lock, {"limit": limit})
        if len(rows) > 1:
            what = "{table} has {count} rows of this service."
            advice = "Delete all but one of them, then run: `check`"
            raise WriteRefused(what, advice, table=self.table.shown, count=len(rows))
        return rows[0][1] if rows else KeyRow(self.clock)

    def select_rows(self, which: str, values: Mapping[str, Any]) -> list[tuple[str, KeyRow]]:
        """Return rows by their services. A date is no time to count from."""
        if self.table.found is None:
            return []
        if fault := table_fault(self.table):
            raise fault
        clocked = [name for name in self.table.times if self.table.columns[name][0] != "date"]
        times = ", ".join(f"{name}::timestamptz" for name in (*clocked, "NULL"))
        select, rows = SELECT_ROWS.replace("{times}", times).replace("{which}", which), []
        for service, key, changed, age in self.run_locking(select, values)[0]:
            is_past = (age or 0) > -self.CLOCK_SLACK
            rows.append((service, KeyRow(
                self.clock, True, Secret(key), age and max(age, 0.0) if is_past else None, row_age=age,
                changed=changed, padded=Secret(key.ljust(self.table.padding)))))  # fmt: skip
        return rows

    def run_locking(self, statements: str, *more: Any) -> Reply:
        """Run statements that may wait for a lock; raise a LockBusy that names its holder."""
        try:
            return self.run(LOCK_TIMEOUT + statements, *more)
        except LockBusy:
            raise self.busy(0) from None

    def busy(self, number: int) -> LockBusy:
        """Return a failure that names who holds the advisory lock of this number, or the table."""
        holder = LockBusy.holder
        with contextlib.suppress(Failure):  # who may not look waits all the same
            self.run("ROLLBACK")
            ((found,),), _ = self.run(LOCK_HOLDER, {"number": number})
            holder = found or holder
        return LockBusy("The lock, the row or the table is held by {holder}.", holder=holder)

    def in_transaction(self) -> bool:
        """Ask whether the transaction, and with it the lock, still stands."""
        with contextlib.suppress(Failure):
            self.run("SELECT 1", deadline=Deadline(self.ASK_TIME))
        return bool(self.connection.info.transaction_status == self.IN_TRANSACTION)

    def rehearse(self, row: KeyRow, stand_in: Secret = NO_KEY) -> None:
        """Run the very statements that will store the token, with a stand-in, and take them back."""
        plan, _ = self.run_locking(KEEP_LOCKS, {"limit": 1000})
        if 'Type": "Foreign' in json.dumps(plan):
            what = "{table} is kept by another server: its far side makes promises of its own."
            raise WriteRefused(what, table=self.table.shown)
        # As long as the key so far, and in its case: the column may have a CHECK of either
        length = max(32, len(row.key.value))
        alike = os.urandom(length).hex()[:length]
        stand_in = stand_in or Secret(alike.upper() if row.key.value.isupper() else alike)
        end = self.deadline.within(self.COMMIT_TIME / 2)  # of the time that the store will have
        self.write("SAVEPOINT rehearsal;", row, stand_in, NOTIFY, end)
        ((regain,),) = self.try_run(FIND_USED) or [("",)]
        self.run(LOCK_TIMEOUT + "ROLLBACK TO SAVEPOINT rehearsal;" + (regain or ""))

    def store(self, row: KeyRow, token: Secret, deadline: Deadline, notify: bool) -> None:
        """Store the token and commit, in one message."""
        after = (NOTIFY if notify else "") + "COMMIT"
        _, command = self.write("", row, token, after, deadline.within(self.COMMIT_TIME))
        if command != "COMMIT":  # of an aborted transaction it says ROLLBACK, and no error
            raise StoreUnavailable("PostgreSQL rolled the transaction back.")
        with contextlib.suppress(Failure):  # a pooler's session would go on showing the key
            self.run("SELECT NULL", deadline=Deadline(1))

    def write(self, before: str, row: KeyRow, token: Secret, after: str, end: Deadline) -> Reply:
        """Write `token`, call up what waits for the commit, read it back; return what `run` does."""
        times = self.table.times
        if row.exists:
            now = "".join(f", {name} = clock_timestamp()" for name in times[:1])
            write = UPDATE_ROW.replace("{times}", now)
        else:
            names, now = "".join(f", {name}" for name in times), ", clock_timestamp()" * len(times)
            write = INSERT_ROW.replace("{times}", names).replace("{now}", now)
        return self.run_locking(before + write + READ_BACK + after, {"token": token.value}, end)


OTHER_ROWS = """ -- first those that differ from ours in case or blanks alone
    SELECT service_name::text, lower(btrim(service_name::text)) = lower(btrim(%(service)s))
    FROM {table} WHERE service_name <> %(service)s ORDER BY 2 DESC LIMIT 9
"""
HAS_ROW = "SET LOCAL lock_timeout = 1; SELECT EXISTS (SELECT FROM {table} WHERE service_name = %(service)s)"
# Keeps what the rehearsal's end gives back: the table's lock; of a unique key the row's whole lock
KEEP_LOCKS = """
    SELECT FROM {table} WHERE service_name = %(service)s AND EXISTS (
        SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY((indkey::int2[])[0:coalesce((to_json(pg_index)->>'indnkeyatts')::int, indnatts) - 1]) -- since 11
        WHERE indrelid = %(oid)s AND indisunique AND indexprs IS NULL AND indpred IS NULL AND attname = 'api_key') FOR UPDATE;
    EXPLAIN (FORMAT JSON) UPDATE {table} SET api_key = api_key WHERE service_name = %(service)s
"""
# UPDATE when there is a row, else INSERT: with ON CONFLICT a NOT NULL column without a default
# breaks even the update
UPDATE_ROW = "UPDATE {table} SET api_key = %(token)s{times} WHERE service_name = %(service)s;"
INSERT_ROW = (
    "INSERT INTO {table} (service_name, api_key{times}) VALUES (%(service)s, %(token)s{now});"
)
# An error of our own, unless just the one row is there and right once all deferred has been called
READ_BACK = """
    SET CONSTRAINTS ALL IMMEDIATE;
    SELECT set_config('webkassa_key_updater.token', %(token)s, true);
    DO $check$ BEGIN
        IF (SELECT count(*) = 1
                   AND bool_and(api_key::text = current_setting('webkassa_key_updater.token'))
            FROM {table} WHERE service_name = %(service)s) IS NOT TRUE THEN
            RAISE SQLSTATE 'WK001' USING MESSAGE = 'the new key is not in the row';
        END IF;
    END $check$;
"""
# The rehearsal's end gives back the locks of what triggers write, but no value of a sequence: the
# store needs both once more: statements for that, but for what our role may not lock or read
FIND_USED = """
    SELECT string_agg(CASE WHEN relkind IN ('r', 'p') AND mode = 'RowExclusiveLock' AND relation <> %(oid)s AND n !~ '[%%{{}}$]' THEN
               format('DO $$ BEGIN LOCK TABLE ONLY %%s IN ROW EXCLUSIVE MODE NOWAIT; EXCEPTION WHEN lock_not_available THEN RAISE; WHEN OTHERS THEN NULL; END $$;', n)
           WHEN relkind = 'S' THEN CASE WHEN has_sequence_privilege(relation, 'USAGE, SELECT') THEN (
               SELECT CASE WHEN NOT seqcycle AND pg_sequence_last_value(seqrelid)::numeric + seqincrement NOT BETWEEN seqmin AND seqmax
                      THEN 'DO $$ BEGIN RAISE SQLSTATE ''2200H''; END $$;' END FROM pg_sequence WHERE seqrelid = relation) END END, '')
    FROM pg_locks JOIN pg_class ON pg_class.oid = relation,
         format('%%s.%%I', relnamespace::regnamespace, relname) AS n WHERE pid = pg_backend_pid()
"""
NOTIFY = "SET LOCAL lock_timeout = 1000; SELECT pg_notify('webkassa_key_updated', %(service)s);"  # a stranger's is waited for (findings/)


def create_missing_table(store: KeyStore, commit: bool = True, is_first: bool = True) -> None:
    """Create the table if there is none of that name, and commit that before anything else. Two
    first runs at once both go on: the second finds what the first has made."""
    if store.table.found is not None:
        return
    store.take_lock(f"table:{store.table.short}")
    store.run(LOCK_TIMEOUT + CREATE_TABLE)
    store.find_table(begin=False)
    if is_first:  # its name may be misspelt: then no table is left behind
        store.reject_other_rows(KeyRow())
    if commit:
        store.run("COMMIT")
        what = "{service}: made the missing table {table}. Do consumers read this database?"
        log.warning(Message(what, service=store.account.service, table=store.table.shown))
        store.find_table()


class Connection(psycopg2.extensions.connection):
    """A connection whose every wait ends with its `deadline`."""

    def __init__(self, dsn: str, deadline: Deadline) -> None:
        self.deadline = deadline
        super().__init__(dsn)


def wait_for_server(connection: Connection) -> None:
    """Wait for PostgreSQL, as psycopg2's wait callback; raise TimeoutError at the deadline. That
    closes the connection and cancels nothing: a COMMIT on its way may go through."""
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        is_reading = state == psycopg2.extensions.POLL_READ
        poll = select.poll()  # `select` itself knows no file above 1,023
        poll.register(connection.fileno(), select.POLLIN if is_reading else select.POLLOUT)
        if not poll.poll(connection.deadline.left * 1000):
            raise TimeoutError


class Connector:
    """Connects to PostgreSQL. `known`: the address that let us in last, which is tried first: after
    a login its name may be resolved no more."""

    ADDRESS = ("host", "hostaddr", "port")  # libpq's parameters
    LONG_TIME = 10.0  # seconds, for a server that listens, but lets nobody in for now

    def __init__(self) -> None:
        self.known: list[dict[str, str]] = []

    def __call__(self, account: Account, deadline: Deadline) -> Connection:
        """Try hosts and their addresses one by one, for 5 s each: with a wait callback, libpq would
        wait for the first of them only; then the slow ones again. Raise StoreUnavailable."""
        psycopg2.extensions.set_wait_callback(wait_for_server)
        options = {"client_encoding": "UTF8", "fallback_application_name": "webkassa_key_updater"}
        options |= {name: value.value if isinstance(value, Secret) else value
                    for name, value in account.database.items() if name not in self.ADDRESS}  # fmt: skip
        failures, slow, spare = list[StoreUnavailable](), list[dict[str, str]](), list[Connection]()
        targets = connect_targets(account.database, deadline)
        for target in itertools.chain(self.known, targets, slow):
            short = min(CONNECT_TIME, deadline.left / 2)
            end = deadline.within(self.LONG_TIME if target in slow and not spare else short)
            try:
                dsn = psycopg2.extensions.make_dsn(**options | target)
                connection: Connection = run_with_deadline(end, None, Connection, dsn, end)
                if connection.info.parameter_status("in_hot_standby") != "on":
                    self.known = [target]
                    return connection
                spare.append(connection)  # to a standby: perhaps another one is the primary
            except (psycopg2.Error, UnicodeError, OSError) as error:
                failures.append(connect_failure(account, target, error))
                is_slow = failures[-1].port_is_open and isinstance(error, TimeoutError)
                slow += [target] if is_slow and target not in slow else []
        if spare:
            return spare[0]
        raise next((f for f in failures if f.port_is_open), failures[-1])


def connect_targets(database: Mapping[str, Any], deadline: Deadline) -> Iterator[dict[str, str]]:
    """Yield host, hostaddr and port of each address that the parameters name, as libpq reads them.
    A name that cannot be resolved is left to libpq."""
    lists = [str(database.get(name, "")).split(",") for name in Connector.ADDRESS]
    for i in range(max(len(lists[0]), len(lists[1]))):
        values = [entries[min(i, len(entries) - 1)] for entries in lists]
        target = {n: v for n, v in zip(Connector.ADDRESS, values, strict=True) if v}
        found, host = [], target.get("host", "/")
        if "hostaddr" not in target and not host.startswith(("/", "@")) and not parse_address(host):
            end, lookup = Deadline(min(CONNECT_TIME, deadline.left / 2)), socket.getaddrinfo
            with contextlib.suppress(OSError, UnicodeError):
                found = run_with_deadline(end, None, lookup, host, 0, 0, socket.SOCK_STREAM)
        yield from [target | {"hostaddr": str(info[4][0])} for info in found] or [target]


def parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0])
    return None


# SQLSTATE, or its class: what passes by itself. A full disk (53100) does not
PASSING = re.compile("08|40|53(?!100)|57|25006|25P0[234]")

FIND_TABLE = """
    SELECT extract(epoch FROM clock_timestamp())::float8, current_database()::text, oid, schema, name,
           ARRAY[quote_ident(current_user), quote_ident(schema), quote_ident(name)], found, coalesce(columns, '{{}}'), coalesce(constraints, '[]'), coalesce(relpersistence = 'u', false), (
        SELECT coalesce(json_agg(json_build_array(nspname, relname)), '[]')
        FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        WHERE relkind IN ('r', 'p', 'v') AND c.oid <> t.oid AND nspname !~ '^pg_' AND has_table_privilege(c.oid, 'SELECT')
          AND (nspname = ANY(current_schemas(false)) OR %(wide)s) AND (relname = t.relname OR %(wide)s AND (nspname = t.nspname OR pg_table_is_visible(c.oid)))
          AND (c.oid IN (SELECT attrelid FROM pg_attribute WHERE attname IN ('service_name', 'api_key') GROUP BY 1 HAVING count(*) = 2)) IS TRUE)
    FROM (SELECT) AS one LEFT JOIN LATERAL (
        SELECT c.oid, nspname, relname, relpersistence, relname = %(name)s AND CASE WHEN %(schema)s IS NULL
                   THEN pg_table_is_visible(c.oid) ELSE nspname = %(schema)s END AS found,
               (SELECT json_object_agg(attname, ARRAY[format_type(atttypid, atttypmod), typcategory::text])
                FROM pg_attribute JOIN pg_type t ON t.oid = atttypid
                WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns,
               (SELECT json_agg(conname) FROM pg_constraint WHERE conrelid = c.oid) AS constraints
        FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        WHERE nspname !~ '^(pg_|information_schema$)' AND lower(relname::text COLLATE "default") = lower(%(name)s::name::text COLLATE "default")
          AND (%(schema)s IS NULL OR lower(nspname::text COLLATE "default") = lower(%(schema)s::name::text COLLATE "default"))
        ORDER BY found DESC, relkind IN ('r', 'p', 'v', 'f') DESC LIMIT 1) AS t ON true,
    LATERAL (SELECT coalesce(nspname, %(schema)s, current_schema(), 'public')::text AS schema, coalesce(relname, %(name)s)::text AS name) AS n
"""
LOCK_HOLDER = """
    SELECT string_agg(format('PID %%s (%%s, %%s, %%s UTC)', pid, usename, application_name,
           coalesce(to_char(xact_start, 'HH24:MI:SS'), '?')), ', ')
    FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database() AND pid IN (
        SELECT pid FROM pg_locks WHERE granted AND (
            locktype = 'relation' AND relation = %(oid)s AND mode <> 'AccessShareLock'
            OR locktype = 'advisory' AND (classid::bigint << 32 | objid::bigint) = %(number)s))
"""


class Table(NamedTuple):
    """Where the keys are. `found`: False if it has only a like name, None if there is none."""

    database: str
    oid: int | None
    schema: str
    name: str
    quoted: list[str]  # role, schema and name, as SQL wants them
    found: bool | None
    columns: dict[str, list[str]]  # the type of each, and the category of that
    constraints: list[str]
    is_unlogged: bool
    others: list[tuple[str, str]]  # schema and name of what consumers may read in its place

    @property
    def shown(self) -> str:
        return f"{self.database}.{self.schema}.{self.name}"

    @property
    def short(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def times(self) -> list[str]:
        """Its columns for the time of a change; an update sets the first."""
        return [n for n in ("updated_at", "created_at") if self.columns.get(n, "  ")[1] == "D"]

    @property
    def key_size(self) -> int:
        """The characters that the key column holds; 0: any number."""
        size = re.search(r"\((\d+)\)", self.columns["api_key"][0])
        return int(size[1]) if size else 0

    @property
    def padding(self) -> int:
        """The characters to which the key column fills up with blanks; 0: it does not."""
        return self.key_size if self.columns["api_key"][0].startswith("character(") else 0


NO_TABLE = Table("", None, "", "", [""] * 3, None, {}, [], False, [])


# ---- Memory between runs: notes in the state folder, read and written under the lock


class Note:
    """A small JSON file in the state folder, about the row of an account, or about `parts`. Each
    access has a second: a folder that cannot be read or written, or does not answer, holds none."""

    def __init__(self, account: Account, kind: str, *parts: str) -> None:
        place = sorted((name, str(value)) for name, value in account.database.items())
        about = parts or (account.service, account.schema, account.table, place)
        name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        self.file = Path(account.state_folder) / f"{kind}-{name}.json"

    def read(self, life: float = 0) -> dict[str, Any]:
        """Return its facts, none if it is older than `life` seconds; 0: however old it is."""
        with contextlib.suppress(Exception):
            is_bounded = threading.current_thread() is not threading.main_thread()  # by its parent
            read = self.file.read_text
            note = json.loads(read() if is_bounded else run_with_deadline(Deadline(1), None, read))
            if not life or 0 <= time.time() - note["time"] < life:
                return dict(note)
        return {}

    def write(self, **facts: object) -> bool:
        """Say whether it was written."""
        with contextlib.suppress(Exception):
            run_with_deadline(Deadline(1), None, self.write_file, {"time": time.time()} | facts)
            return True
        return False

    def write_file(self, facts: dict[str, Any]) -> None:
        self.file.parent.mkdir(0o700, parents=True, exist_ok=True)
        self.file.touch(0o600)
        self.file.write_text(json.dumps(facts))

    def remove(self) -> None:
        with contextlib.suppress(Exception):
            run_with_deadline(Deadline(1), None, self.file.unlink)


class KeyAge:
    """The age of the key, which is not the row's: applications touch their rows. Noted by the
    database's clock when we stored a key, or first saw one. `risk`: one that a login may end."""

    def __init__(self, account: Account) -> None:
        self.note, self.max_age = Note(account, "key"), account.max_age
        self.risk = Note(account, "risk")

    def correct(self, row: KeyRow) -> KeyRow:
        """Return the row with the age of its key, as far as it was noted."""
        note = self.note.read()
        at_risk = self.risk.read().get("key") == row.key.fingerprint
        with contextlib.suppress(KeyError, TypeError):  # a note that is not whole counts as none
            age = row.clock + time.monotonic() - note["moment"]
            by_row = self.max_age if row.age is None else row.age
            if note["key"] == row.key.fingerprint and age >= (0 if note["stored"] else by_row):
                return row._replace(age=age, age_from="note", at_risk=at_risk)
            at_risk |= note["stored"] and 0 <= age < (row.age or 0) - 60  # a backup was put back
        return row._replace(at_risk=at_risk)

    def was_early(self) -> bool:
        """Say whether within a minute a dead key as young as that was replaced: once is enough."""
        return bool(self.note.read(YOUNG).get("early"))

    def note_first_sight(self, row: KeyRow) -> None:
        if row.key and self.note.read().get("key") != row.key.fingerprint:
            self.note_risk(row.key, row.at_risk)
            self.remember(row, stored=False)

    def note_risk(self, key: Secret, at_risk: bool) -> None:
        self.risk.write(key=(key if at_risk else NO_KEY).fingerprint)

    def note_renewal(self, row: KeyRow, early: bool) -> None:
        """Note that the key of this row was stored just now; the other file tells who watches it."""
        self.remember(row, stored=True, early=early)
        other = self.note.file.with_name(self.note.file.stem.replace("key", "renewed"))
        with contextlib.suppress(Exception):
            run_with_deadline(Deadline(1), None, other.touch)

    def remember(self, row: KeyRow, **facts: bool) -> None:
        """Note the key of this row, and the database's time."""
        self.note.write(key=row.key.fingerprint, moment=row.clock + time.monotonic(), **facts)


class Refusals:
    """The last refused login of a row, by a salted fingerprint: it is not sent again and again."""

    LIFE, SHORT_LIFE = 86400, 60  # seconds; the second: of answers without a token

    def __init__(self, account: Account) -> None:
        self.account, self.note = account, Note(account, "refused")

    def credential_hash(self, salt: str) -> str:
        """Return the fingerprint; it is slow to make, so that nobody tries passwords on it."""
        login = (self.account.login, self.account.password, self.account.api_key)
        text = json.dumps([self.account.auth_url, *(part.value for part in login)])
        return hashlib.pbkdf2_hmac("sha256", text.encode(), salt.encode(), 200_000).hex()

    def find(
        self, row: KeyRow, waiting_since: float = float("inf"), always: bool = False
    ) -> WebkassaFailure | None:
        """Return the failure of this very login within a day, for the same stored key. `always`, and
        an answer without a token: only where it failed while somebody waits for the lock."""
        note = self.note.read(self.LIFE)
        if not note or note.get("key") != row.key.fingerprint:
            return None
        code, moment = note.get("code"), note["time"]
        is_waiters = moment >= max(waiting_since, time.time() - self.SHORT_LIFE)
        counts = is_waiters or (code == LOGIN_REFUSED and not always)
        if not counts or note.get("hash") != self.credential_hash(str(note.get("salt"))):
            return None
        what = "Webkassa refused this login at {since}; it was not sent again."
        if code != LOGIN_REFUSED:
            what = "Webkassa answered this login without a token at {since}; it was not sent again."
        since = time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(moment))
        return WebkassaFailure(what, since=since, code=code)

    def remember(self, key: Secret, code: int) -> None:
        salt = os.urandom(16).hex()
        self.note.write(salt=salt, hash=self.credential_hash(salt), key=key.fingerprint, code=code)


class ProbeDoubt:
    """A probe that refused every new key is not believed for a week."""

    LIFE = 7 * 86400  # seconds

    def __init__(self, account: Account) -> None:
        parts = (account.auth_url, account.probe_url, account.api_key.fingerprint)
        self.note = Note(account, "probe", *parts)

    def is_valid(self, row: KeyRow) -> bool:
        """Say whether there is such a note; not while the row holds the key from before it, since a
        run may be killed between note and commit."""
        note = self.note.read(self.LIFE)
        return bool(note) and note.get("before") != row.key.fingerprint

    def can_remember(self, row: KeyRow) -> bool:
        """Say whether a note would be kept; to be asked where there is none."""
        written = self.remember(row)  # one that is not valid
        self.note.remove()
        return written

    def remember(self, row: KeyRow) -> bool:
        return self.note.write(before=row.key.fingerprint)


# ---- Below here nothing changes a key

# ---- Settings: the environment, then the file; every fault at once, by its name


def read_account(values: Mapping[str, str], faults: list[Message]) -> Account:
    """Return the account that the settings describe; raise SettingsFault with all that is wrong."""
    read = SettingsParser(values, faults)
    auth_url = read.url("WEBKASSA_AUTH_URL", DEFAULT_AUTH_URL)
    if not re.fullmatch(r"https?://[^/]+(/[^?]*)?/api/(v\d+/)?Authorize", auth_url, re.IGNORECASE):
        read.fault("WEBKASSA_AUTH_URL", "{name}: must end in /api/Authorize or /api/v4/Authorize")
    probe_url = re.sub("Authorize$", "references/RefUnits", auth_url, flags=re.IGNORECASE)
    if values.get("WEBKASSA_PROBE_URL", "").lower() == "off":
        probe_url = ""
    elif "WEBKASSA_PROBE_URL" in read.values:
        probe_url = read.url("WEBKASSA_PROBE_URL")
        if probe_url and not urlsplit(probe_url).path:
            read.fault("WEBKASSA_PROBE_URL", '{name}: is neither a full URL nor "off"')
    api_key = read.text("WEBKASSA_API_KEY")
    if "/v4/" in auth_url and not api_key:
        read.fault("WEBKASSA_API_KEY", "{name}: is not set, but /v4/ in WEBKASSA_AUTH_URL needs it")
    if not re.fullmatch("[!-~]*", api_key):
        read.fault("WEBKASSA_API_KEY", "{name}: must be printable ASCII without spaces")
    table, part = read.text("API_KEYS_TABLE", "api_keys"), r"""(?![ "'`])[^.:/@]+(?<![ "'`])"""
    if not re.fullmatch(rf"{part}(\.{part})?", table):
        read.fault("API_KEYS_TABLE", "{name}: is neither a table nor schema.table")
    ca_file = values.get("REQUESTS_CA_BUNDLE", "")
    if ca_file and not os.access(ca_file, os.R_OK):
        read.fault("REQUESTS_CA_BUNDLE", "{name}: there is no such file, or it cannot be read")
    state = values.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    account = Account(
        login=Secret(read.text("WEBKASSA_LOGIN", None)),
        password=Secret(read.text("WEBKASSA_PASSWORD", None, any_end=True)),
        auth_url=auth_url, api_key=Secret(api_key), probe_url=probe_url,
        service=read.text("WEBKASSA_SERVICE_NAME", "Webkassa"),
        max_age=read.duration("WEBKASSA_MAX_AGE", "24h", 1, 366 * 86400),
        deadline=read.duration("WEBKASSA_DEADLINE", "120s", 10, 300), ca_file=ca_file,
        database=read_database(read), schema=table.rpartition(".")[0], table=table.split(".")[-1],
        state_folder=values.get("STATE_DIRECTORY", "").split(":")[0] or f"{state}/webkassa-key-updater",
        healthcheck_url=monitor_of(values, faults))  # fmt: skip
    if faults:
        raise settings_fault(faults)
    return account


def monitor_of(values: Mapping[str, str], faults: list[Message]) -> Secret:
    return Secret(SettingsParser(values, faults).url("HEALTHCHECK_URL", plain_http=True))


def settings_fault(faults: list[Message]) -> SettingsFault:
    """Return what says all these faults, each in a line, and once."""
    distinct = {str(fault): fault for fault in faults}.values()
    by_name = {f"fault{number}": fault for number, fault in enumerate(distinct)}
    lines = Message("".join(f"\n  {{{name}}}" for name in by_name), **by_name)
    return SettingsFault("The settings are wrong:{faults}", faults=lines)


def read_database(read: SettingsParser) -> dict[str, str | Secret]:
    """Return libpq's parameters: of DATABASE_URL, or else of POSTGRES_*, and of PG*."""
    by_url = "DATABASE_URL" in read.values
    given = parse_database_url(read) if by_url else {}
    names = dict.fromkeys(given, "DATABASE_URL")
    has_file = "service" in given or "PGSERVICE" in read.values  # which says the rest
    ours, theirs = {} if by_url else POSTGRES, {"PGSERVICE": "service"} if has_file else LIBPQ
    for name, parameter in (ours | theirs).items():
        if parameter not in given and name in read.values:
            given[parameter], names[parameter] = read.text(name, any_end=True), name
    if by_url and any(map(read.REFERENCE.fullmatch, given.values())):
        read.fault("DATABASE_URL", "{name}: holds a reference to a secret, and not the secret")
    for parameter in ("host", "user", "dbname"):
        for value in given.get(parameter, "").split(","):
            is_odd = re.search("[:/@;&=]", value) and not value.startswith(("/", "@"))
            if is_odd and not parse_address(value):
                what = "{name}: holds a character that belongs to a URL; not shown here"
                read.fault(names[parameter], what)
    for port in given.get("port", "1").split(","):
        if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or not 0 < int(port) < 65536:
            read.fault(names["port"], "{name}: the port is no number from 1 to 65535")
    if given.get("sslmode", "") not in ("", *SSL_MODES.split(", ")):
        read.fault(names["sslmode"], "{name}: sslmode must be one of {known}", known=SSL_MODES)
    if "service" in given:
        given = read_service_file(read.values, given["service"]) | given
    return {n: Secret(v) if n in ("password", "sslpassword") else v for n, v in given.items()}


def read_service_file(values: Mapping[str, str], service: str) -> dict[str, str]:
    """Return the addresses in libpq's service file, to be tried one by one like those of settings."""
    for path in values.get("PGSERVICEFILE", "~/.pg_service.conf"), "/etc/pg_service.conf":
        with contextlib.suppress(SettingsFault, RuntimeError):  # no such file, no home
            text = read_text(Path(path).expanduser())
            if found := re.search(rf"(?ms)^\s*\[{re.escape(service)}\]$(.*?)(?=^\s*\[|\Z)", text):
                return dict(re.findall(r"(?m)^\s*(host|hostaddr|port)=(.*?)\s*$", found[1]))
    return {}


def parse_database_url(read: SettingsParser) -> dict[str, str]:
    """Return libpq's parameters of a URL as SQLAlchemy, Heroku and libpq spell it."""
    url = re.sub(r"^(postgres(?:ql)?)\+\w+:", r"\1:", read.text("DATABASE_URL", any_end=True))
    if re.match(r"[^:]+://([^/?]*@[^/?]*@|[^/?]*/[^?]*@)", url):  # it would end up in the host
        read.fault("DATABASE_URL", "{name}: @, / and : of the password must be percent-encoded")
        return {}
    with contextlib.suppress(psycopg2.Error, UnicodeError):
        return dict(psycopg2.extensions.parse_dsn(url))
    read.fault("DATABASE_URL", "{name}: is not a connection string that libpq understands")
    for name in re.findall(r"[?&]([A-Za-z_]{1,30})=", url):
        try:
            psycopg2.extensions.parse_dsn(f"postgresql:///?{name}=1")
        except psycopg2.Error:
            what = "{name}: libpq does not know its parameter {parameter}: take it out"
            if name == "schema":
                what = "{name}: libpq does not know its parameter schema: set API_KEYS_TABLE=schema.table"
            read.fault("DATABASE_URL", what, parameter=name)
    return {}


class SettingsParser:
    """Reads settings of all kinds from a mapping of names to texts, and collects their faults."""

    HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode: control, format, surrogate, separators
    PLACEHOLDER = re.compile(r"<.+>|(.*/)?your[ _-].+|change[ _-]?me|x{3,}|\*{3,}|\.{3}|.+//user:password@.+"
                             r"|(?-i:TODO|FIXME)|\W*redacted\W*|null|nil|none|undefined", re.IGNORECASE)  # fmt: skip
    REFERENCE = re.compile(r"(op|sm|ssm|akv|bws|file|ref\+\w+|(aws-|azure-|gcp-)?vault)://.+|(vault|secretref):.+|arn:aws.+"
                           r"|!vault.*|\$ANSIBLE_VAULT.*|ENC[\[(].+|projects/.+/secrets/.+|@Microsoft\.KeyVault.+"
                           r"|\$?\{\{.*\}\}|\$\(\w+\)|\$\{[A-Za-z_].*\}|\$(WEBKASSA|POSTGRES|PG)\w+")  # fmt: skip

    def __init__(self, values: Mapping[str, str], faults: list[Message]) -> None:
        self.values, self.faults = {n: value for n, value in values.items() if value}, faults

    def fault(self, name: str, what: str, **facts: object) -> None:
        """Add a fault; `what` is a sentence about {name}."""
        self.faults.append(Message(what, name=name, **facts))

    def text(self, name: str, default: str | None = "", any_end: bool = False) -> str:
        """Return any text; `default` None: it is required. A quote or a blank at an end is an
        oversight, but not of a password (`any_end`)."""
        value = self.values.get(name, default or "")
        odd = "" if value.isprintable() else value  # of 300 accounts, each character takes its time
        hidden = [ord(c) for c in odd if unicodedata.category(c) in self.HIDDEN]
        what = first_that_holds(
            (default is None and not value, "{name}: is not set"),
            (self.PLACEHOLDER.fullmatch(value), "{name}: is still a placeholder"),
            (self.REFERENCE.fullmatch(value), "{name}: is a reference to a secret, and not the secret"),
            (name in IN_FILES and (value.startswith(("/run/secrets/", "/var/run/secrets/")) or
                                   (value[:1] == "/" and os.path.isfile(value))),
             "{name}: is the path of a file; if that holds the secret, set {name}_FILE to it"),
            (hidden, "{name}: contains the invisible character U+{codes[0]:04X}"))  # fmt: skip
        if what:
            self.fault(name, what, codes=hidden)
        elif not any_end:
            self.faults += odd_end(name, value)
        return value

    def url(self, name: str, default: str = "", plain_http: bool = False) -> str:
        """Return a URL; what can be put right is: https://, double slashes and /api/api."""
        text = self.text(name, default)
        try:
            parts = urlsplit(text if "://" in text else f"https://{text}")
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            parts, host = urlsplit(""), ""
        plain_http = parts.scheme == "http" and (plain_http or is_loopback(host))
        what = first_that_holds(
            (not re.fullmatch(r"[0-9a-f:.]+(%\w+)?|([\w-]{1,63}\.)*[\w-]{1,63}\.?", host, re.ASCII),
             "{name}: is no URL, or its host is not plain ASCII"),
            ("@" in parts.netloc, "{name}: must not carry a login or password"),
            (parts.scheme != "https" and not plain_http,
             "{name}: must be https (http only to this very machine)"))  # fmt: skip
        if text and what:
            self.fault(name, what)
        if not text or what:
            return default
        path = re.sub("/{2,}", "/", parts.path).rstrip("/")
        path = re.sub(r"^(/api)+(?=/|$)", "/api", path, flags=re.IGNORECASE)
        return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))

    def duration(self, name: str, default: str, shortest: int, longest: int) -> float:
        """Return seconds."""
        match = re.fullmatch(r"(\d{1,7})([smhd]?)", self.text(name, default), re.ASCII)
        unit = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
        seconds = int(match[1]) * unit[match[2]] if match else 0
        if not shortest <= seconds <= longest:
            what = "{name}: is not a duration like {default}, from {shortest}s to {longest}s"
            self.fault(name, what, default=default, shortest=shortest, longest=longest)
        return seconds


def odd_end(name: str, value: str) -> list[Message]:
    """Say that a value has a quote or a blank at an end, if so."""
    if value == value.strip().strip("\"'`\u201c\u201d\u201e\u201f\u00ab\u00bb\u2018\u2019"):
        return []
    return [Message("{name}: has a quote or a blank at its beginning or end", name=name)]


def read_env_file(path: Path, faults: list[Message]) -> dict[str, str]:
    """Parse a settings file by python-dotenv, without interpolation; faults name lines, never texts."""
    try:
        text = read_text(path)
    except SettingsFault as fault:
        raise settings_fault([Message("{file}: {why}", file=path, why=fault.message)]) from None
    values: dict[str, str] = {}
    for binding in dotenv.parser.parse_stream(io.StringIO(text)):
        source, key = binding.original.string, binding.key or ""
        line = binding.original.line + source[: len(source) - len(source.lstrip())].count("\n")
        if binding.error or "=" in key or (key and binding.value is None):
            faults.append(Message("{file}: line {line} is not NAME=value", file=path, line=line))
        elif key and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", key):
            what = "{file}: line {line}: its name has a character that belongs in no name"
            faults.append(Message(what, file=path, line=line))
        elif binding.value:
            values[key] = binding.value
    return values


def read_secret_files(values: dict[str, str], faults: list[Message]) -> None:
    """Put into `values` what the files named by NAME_FILE hold, but for a newline at the end."""
    for name in sorted(IN_FILES):
        if (file := values.get(f"{name}_FILE")) and name in values:
            faults.append(Message("{name}_FILE: {name} is set, too: which counts?", name=name))
        if file:
            try:
                values[name] = read_text(Path(file), 65536).removesuffix("\n")
            except SettingsFault as fault:
                faults.append(Message("{name}_FILE: its file {why}", name=name, why=fault.message))


def read_text(path: Path, limit: int = 2**24) -> str:
    """Return the text of a file; raise SettingsFault, with what is wrong about it."""
    try:
        if path.stat().st_size > limit or not path.is_file():
            raise SettingsFault("is no regular file (a folder, a pipe?), or too long")
        text = path.read_bytes().decode("utf-8-sig")
        if "\0" in text:
            raise UnicodeError
        return text
    except UnicodeError:
        raise SettingsFault("is not UTF-8 text; save it as UTF-8") from None
    except FileNotFoundError:
        raise SettingsFault("does not exist") from None
    except OSError as error:
        raise SettingsFault("cannot be read ({why})", why=error.strerror) from None


def find_unknown_names(path: Path, names: Iterable[str], given: Iterable[str]) -> Iterator[Message]:
    """Yield unknown names that seem to decide which host or database is used; warn of others."""
    for name in sorted({*names} - NAMES - OTHER_NAMES):
        near = nearest_setting(name)
        what = "{name}: is not known; is {near} meant?" if near else "{name}: is not known"
        fault = Message(what, name=name, near=near)
        if name.startswith(PREFIXES) and near in ALIASES.keys() - given:
            yield fault
        elif name.startswith(PREFIXES):
            log.warning(Message("{file}: {what}", file=path, what=fault))


def nearest_setting(name: str) -> str:
    """Return the setting that an unknown name may mean, or "". What all begin with tells nothing."""
    alike = {re.sub(SAME, "", ours): ours for ours in sorted(NAMES)}
    near = difflib.get_close_matches(re.sub(SAME, "", name), alike, 1, 0.65)
    meant = [ours for ours, others in ALIASES.items() if re.fullmatch(others, name)]
    return [*meant, *(alike[short] for short in near), ""][0]


def warn_of_overruled(path: Path, given: Mapping[str, str], env: Mapping[str, str]) -> None:
    """Warn of what a file says of host, database or login, while the environment has another."""
    for name in sorted({*ALIASES, *LIBPQ, "WEBKASSA_SERVICE_NAME"} & env.keys()):
        is_given = name in given or (name == "DATABASE_URL" and POSTGRES.keys() & given.keys())
        if is_given and env[name] not in ("", given.get(name)):
            what = "{name}: what the environment says counts, and not what {file} says"
            log.warning(Message(what, name=name, file=path))


SAME = "(?<=^W)EBKASSA_|(?<=^P)OSTGRES_"  # in names
ALIASES = {  # what others call a setting that decides which host, database or login is used
    "WEBKASSA_LOGIN": "WEBKASSA_(USER|USER_?NAME|USER_LOGIN|EMAIL)",
    "WEBKASSA_PASSWORD": "WEBKASSA_(PASS|PWD|PW|USER_PASSWORD)",
    "WEBKASSA_AUTH_URL": "WEBKASSA_((BASE|API|AUTH(ORIZE)?|LOGIN|SERVER|V4)_)*(UR[LI]|HOST|DOMAIN|ENDPOINT)",
    "POSTGRES_HOST": "POSTGRES_(SERVER|HOSTNAME|ADDRESS)",
    "POSTGRES_PORT": "POSTGRES_PORTS",
    "POSTGRES_DB": "POSTGRES_(DATABASE|NAME|DBNAME|DB_NAME|DATABASE_NAME)",
    "POSTGRES_USER": "POSTGRES_(USERNAME|LOGIN|ROLE)",
    "DATABASE_URL": "(POSTGRES|WEBKASSA)_(URL|URI|DSN|DATABASE_URL)",
    "API_KEYS_TABLE": "API_KEYS?_(.*_)?TABLE.*",
}
# Settings and libpq's parameters; then its own variables, and the same
POSTGRES = {"POSTGRES_HOST": "host", "POSTGRES_PORT": "port", "POSTGRES_DB": "dbname",
            "POSTGRES_USER": "user", "POSTGRES_PASSWORD": "password"}  # fmt: skip
LIBPQ = {"PGDATABASE": "dbname"} | {f"PG{name.upper().replace('_', '')}": name for name in (
    "host", "hostaddr", "port", "user", "password", "passfile", "options", "sslmode", "sslrootcert",
    "sslcert", "sslkey", "sslcrl", "channel_binding", "target_session_attrs", "service",
)}  # fmt: skip
# Of one of many accounts: never inherited; of all: may be in a file that NAME_FILE names
OWN = {"WEBKASSA_LOGIN", "WEBKASSA_PASSWORD", "WEBKASSA_SERVICE_NAME", "HEALTHCHECK_URL"}
IN_FILES = {"WEBKASSA_LOGIN", "WEBKASSA_PASSWORD", "WEBKASSA_API_KEY", "POSTGRES_PASSWORD",
            "DATABASE_URL", "HEALTHCHECK_URL"}  # fmt: skip
NAMES = {*OWN, *IN_FILES, *(f"{name}_FILE" for name in IN_FILES), *POSTGRES, "WEBKASSA_AUTH_URL",
         "WEBKASSA_PROBE_URL", "WEBKASSA_MAX_AGE", "WEBKASSA_DEADLINE", "API_KEYS_TABLE"}  # fmt: skip
SSL_MODES = "disable, allow, prefer, require, verify-ca, verify-full"
OTHER_NAMES = {"WEBKASSA_ACCOUNTS_DIR", "WEBKASSA_KEY_COMMAND", "WEBKASSA_LANG"}  # of a run
PREFIXES = ("WEBKASSA_", "POSTGRES_", "API_KEYS", "HEALTHCHECK")  # of all


# ---- What happened, in sentences of our own: the libraries' texts carry URLs, bodies and tokens


def describe_stored(job: Job, logins: LoginState, table: Table) -> Outcome:
    """Say what was stored, where, and in place of what; warn of what is odd about it."""
    webkassa, token = logins.webkassa, logins.token
    before = logins.row_before_first_login or KeyRow()
    doubt = key_unproven(logins.row, DOUBTED, webkassa)
    is_doubted = logins.against_probe or logins.verdict == DOUBTED
    odd = (
        (before.others and not logins.account.service.startswith("Webkassa:"),
         "The row is new in {table}, beside {beside!r}."),
        (not re.fullmatch("[0-9a-f]{32}", token.value), "The new key looks unlike the keys so far."),
        (logins.verdict == UNCLEAR, "Whether the new key works could not be probed."),
        (logins.login_outcome_unknown,
         "A login before it got no answer and may end it yet: look again soon."),
        (logins.store_attempts > 1, "Storing took more than one try; perhaps nobody was notified."),
        *((True, what) for what in odd_for_consumers(table, before.key)),
        (0 < table.key_size < 64,
         "The column api_key holds {size} characters: a longer key could not be stored."),
        (webkassa.host != host_of(logins.account.auth_url), "Set WEBKASSA_AUTH_URL={url}"),
        (webkassa.host in TEST_HOSTS, "{host} is Webkassa's TEST system: its keys serve no shop."),
        (logins.odd_reply, "{reply} The token in it was stored: the probe says that it works."),
        (is_doubted and job.mode != ALWAYS, "{why} {advice}"))  # fmt: skip
    facts = {"key": token.fingerprint, "host": webkassa.host, "url": webkassa.url,
             "size": table.key_size, "table": table.shown, "old": describe_key(before),
             "beside": next((name for name, _ in before.others), ""), "reply": logins.odd_reply,
             "why": doubt.message, "advice": doubt.advice}  # fmt: skip
    what = "Stored the new key {key} from {host} in {table} where none was."
    if before.key:
        what = "Stored the new key {key} from {host} in {table} in place of {old}."
    warnings = [Message(text, **facts) for is_so, text in odd if is_so]
    if is_doubted and job.mode == ALWAYS:
        said = Message("{what} {why} {advice}", what=Message(what, **facts), **facts)
        return Outcome(doubt.code, said, token, True, UNCLEAR, warnings)
    return Outcome(0, Message(what, **facts), token, True, logins.verdict, warnings)


def odd_for_consumers(table: Table, key: Secret) -> Iterator[str]:
    """Yield what consumers may trip over, given the key that is stored."""
    if table.padding:
        yield "table: the column api_key is filled up with blanks; do consumers strip them?"
    if key and not re.fullmatch("[0-9A-Za-z_-]{8,64}", key.value):
        yield "table: the stored value looks like no key (JSON, encrypted, Bearer?); who unpacks it?"


def describe_failure(
    failure: Failure, key: Secret, verdict: str, lost: Secret, asked: bool
) -> Outcome:
    """Say why an update failed, how the stored `key` stands, and what to do now. `verdict`: a
    probe's word on it, "" where no login can have killed it; `lost`: a token that was not stored."""
    now = advice = advice_for(failure)
    if lost:
        now = Message("Fix it. Run again now: `update`")
    elif not failure.advice and failure.code in (69, 75, 76):
        now = NOW
    what = first_that_holds(
        (not asked, "Nothing was asked of Webkassa; the stored key is as it was. {advice}"),
        (not key, "No key is stored. {now}"),
        (verdict == DEAD, "The stored key {key} is dead. {now}"),
        (verdict == ALIVE, "The stored key {key} still works, but the login just sent may still"
         " end it. Look again in some minutes: `status`"),
        (verdict, "The stored key {key} may be dead. {now}"),
        (True, "The stored key {key} is as it was. {advice}"))  # fmt: skip
    state = Message(what, key=key.fingerprint, advice=advice, now=now)
    if lost:
        what = "Webkassa gave the key {lost}, but it could not be stored and is lost. {state}"
        state = Message(what, lost=lost.fingerprint, state=state)
    what = "{why}\n{state}" if "\n" in str(failure) else "{why} {state}"
    said = Message(what, why=failure.message, state=state)
    return Outcome(failure.code, said, key, verdict=verdict)


def key_unproven(row: KeyRow, verdict: str, webkassa: Webkassa) -> Failure:
    """Say why nothing proves that a stored key works: by a probe's verdict on it, or by its age."""
    key, host = row.key.fingerprint, host_of(webkassa.probe_url)
    if verdict == DOUBTED:
        what = "The stored key {key} is not proven: the probe at {host} refuses every new key."
        return SettingsFault(what, DOUBT, key=key, host=host)
    if verdict == OFF:
        what = "WEBKASSA_PROBE_URL is off, and the row of the key {key} holds no usable time of change."
        advice = "Let the probe be on, or give the table a column updated_at. Then run: `check`"
        return SettingsFault(what, advice, key=key)
    what = "Whether the stored key {key} works could not be probed, and its row holds no usable time of change."
    return WebkassaFailure(what, key=key)


def no_answer(host: str, error: Exception, was_sent: bool) -> Failure:
    """Say why there is no answer to a request, of which at least a part `was_sent`, or nothing."""
    if isinstance(error, Failure):  # there is no thread for it
        return error
    signs = error_signs(error)
    what, advice = next(words for seen, *words in NO_ANSWER if signs & {*seen.split(" or ")})
    facts = {"host": host, "default": DEFAULT_AUTH_URL}
    return WebkassaFailure(what, advice, **facts, may_have_logged_in=was_sent)


def error_signs(error: BaseException | None) -> set[str]:
    """Return what is seen in an exception and in those that it wraps: their classes, and causes."""
    signs = set[str]()
    while error is not None:  # from the outermost to the innermost
        signs |= {kind.__name__ for kind in type(error).__mro__}
        signs |= {f"{name} {getattr(error, name, None)}" for name in ("verify_code", "reason")}
        if type(error) is OSError and error.errno is None:  # requests' own, or a proxy's refusal
            signs.add("bare OSError")
        inner = (getattr(error, "reason", None), *error.args, error.__cause__, error.__context__)
        error = next((wrapped for wrapped in inner if isinstance(wrapped, BaseException)), None)
    if "ProxyError" in signs and signs & {"bare OSError", "ConnectTimeoutError"}:
        signs.add("no proxy")
    return signs


URL_OR_PROXY = "Is the URL right, is the proxy? Then run: `check`"
FIX_IT = "Correct it, then run: `check`"
RENEW_IT = "Whoever made it, the host's owner or that of a proxy, must renew it. Then run: `check`"
NO_ANSWER = (  # what is seen in the error, what it means for the host, what to look at
    ("verify_code 9", "The certificate of {host} is not valid yet.",
     "Is the clock of this machine right? Then run: `check`"),
    ("verify_code 10", "The certificate of {host} has expired.",
     "Is the clock of this machine right? If so, the host's owner must renew it. Then run: `check`"),
    ("verify_code 62 or verify_code 64", "The certificate of {host} has another name.",
     "Is the host in the URL right? Then run: `check`"),
    ("verify_code 66 or verify_code 67 or verify_code 68",
     "The certificate of {host} is too weak: a short key, or SHA-1.", RENEW_IT),
    (" or ".join(f"verify_code {number}" for number in (26, *range(79, 94))),  # Python 3.13 looks closer
     "The certificate of {host}, or its issuer's, is made for another use, or not by the rules (RFC 5280).", RENEW_IT),
    ("verify_code 28", "The certificate of {host} has an issuer that REQUESTS_CA_BUNDLE trusts for no server.", FIX_IT),
    ("SSLCertVerificationError", "The certificate of {host} comes from an unknown issuer, or an"
     " intermediate certificate is missing.",
     "Does a proxy read along? Put its certificate into REQUESTS_CA_BUNDLE; or the one that the host"
     " leaves out. Then run: `check`"),
    ("no proxy", "{host} cannot be reached through the proxy.", ""),
    ("gaierror", "{host} has a name that cannot be resolved.", ""),
    ("NewConnectionError", "{host} refuses the connection, or there is no network.", ""),
    ("ConnectTimeoutError", "{host} accepts no connection.", ""),
    ("InvalidURL", "{host} cannot be asked: the URL of the proxy is wrong.", FIX_IT),
    ("InvalidSchema", "{host} cannot be asked: SOCKS proxies do not serve.", FIX_IT),
    ("reason WRONG_SIGNATURE_TYPE", "{host} needs weak TLS.",
     "Set WEBKASSA_AUTH_URL={default} Then run: `check`"),
    ("reason WRONG_VERSION_NUMBER", "{host} speaks no TLS there.", URL_OR_PROXY),
    ("reason UNSUPPORTED_PROTOCOL", "{host} speaks an old TLS only.", URL_OR_PROXY),
    ("reason NO_CERTIFICATE_OR_CRL_FOUND or bare OSError",
     "{host} cannot be asked: REQUESTS_CA_BUNDLE holds no certificate.", FIX_IT),
    ("TimeoutError or Timeout", "{host} does not answer in time.", ""),
    ("SSLError", "{host} and this machine do not agree on TLS.", ""),
    ("BaseException", "{host} broke the connection off.", ""))  # fmt: skip
DEFAULT_AUTH_URL = "https://api.webkassa.kz/api/Authorize"


def connect_failure(account: Account, target: dict[str, str], error: Exception) -> StoreUnavailable:
    """Say why PostgreSQL cannot be reached. Its own words follow the server's language."""
    shown = {n: v for n, v in {**account.database, **target}.items() if isinstance(v, str)}
    named = [n for n in ("service", "host", "port", "dbname", "user") if n in shown]
    host = target.get("hostaddr") or target.get("host") or "/var/run/postgresql"  # the wheel's own
    is_name = not host.startswith(("/", "@")) and not parse_address(host)
    is_open = not is_name and port_open(host, int(target.get("port", 5432)))
    is_silent, said = isinstance(error, TimeoutError), str(error)  # libpq's words are English
    hangs_up = re.search("closed the connection unexp|could not (send|receive data)|EOF det", said)
    no_digest, is_system = "could not find digest" in said, shown.get("sslrootcert") == "system"
    what = first_that_holds(
        (is_name, "PostgreSQL ({where}) has a name that cannot be resolved."),
        (not is_open, "PostgreSQL ({where}) cannot be reached: connection refused or timed out."),
        (is_silent, "PostgreSQL ({where}) accepts the connection, but does not answer."),
        (hangs_up, "PostgreSQL ({where}) is not there: what listens hangs up at once. HAProxy does so"
         " when every server behind it is down."),
        (no_digest, "PostgreSQL ({where}) has a certificate, signed by Ed25519, to which libpq binds no password."),
        (True, "PostgreSQL ({where}) is there, but the connection is rejected: role, password,"
         " database, TLS, no free place."))  # fmt: skip
    advice = first_that_holds(  # libpq's defaults may be meant, but seldom are
        (not account.database,
         "No database is set: is the # still before POSTGRES_HOST?\nThen run: `check`"),
        (is_name and "." not in host, "A service of Docker Compose has its name in that stack's"
         " network alone. To see why: {psql}\nThen run: `check`"),
        (not is_open and is_loopback(host), "To see why: {psql}\nIn a container {host} is the"
         " container itself. Then run: `check`"),
        (no_digest, "Set PGCHANNELBINDING=disable. Then run: `check`"),
        (is_system and "certificate" in said, "sslrootcert=system means a"
         " folder of psycopg2's makers: name a file like /etc/ssl/certs/ca-certificates.crt.\nThen run: `check`"),
        (True, "To see why: {psql}\nThen run: `check`"))  # fmt: skip
    return StoreUnavailable(
        what, advice, where=" ".join(f"{n}={shown[n]}" for n in named) or Message("at the default address"),
        psql="psql " + shlex.quote(psycopg2.extensions.make_dsn(**shown)), host=host,
        port_is_open=is_open, is_rejected=is_open and not is_silent)  # fmt: skip


def port_open(host: str, port: int) -> bool:
    """Say whether somebody listens at an address, or at the socket in a folder."""
    with contextlib.suppress(OSError):
        if host.startswith(("/", "@")):
            with socket.socket(socket.AF_UNIX) as file:
                file.settimeout(2)
                file.connect(f"{host}/.s.PGSQL.{port}".replace("@", "\0", 1))
        else:
            socket.create_connection((host, port), 2).close()
        return True
    return False


def database_failure(error: Any, table: Table, account: Account) -> Failure:
    """Name an error by its SQLSTATE and by names that the catalog has: its text can carry a key,
    and so can a name that a trigger made up."""
    state = getattr(error, "pgcode", None)
    if state is None:  # psycopg2 2.9 has none of a server that hangs up, as PgBouncer does
        refusal = first_that_holds(  # its words are always English
            ("statement pooling mode" in str(error),
             "PgBouncer allows no transactions (pool_mode = statement)."),
            ("PQexec disallowed" in str(error),
             "PgBouncer allows no simple queries (disable_pqexec)."))  # fmt: skip
        if refusal:
            return SettingsFault(refusal, "Connect to PostgreSQL itself. Then run: `check`")
        return StoreUnavailable("The connection to PostgreSQL broke, or no answer came in time.")
    if state == "55P03" or (state == "23505" and table.found is None):  # somebody makes the table
        return LockBusy("The lock, the row or the table is held by somebody.")
    is_policy = error.diag.source_function in ("ExecWithCheckOptions", "check_enable_rls")
    in_trigger = ("a trigger or a function lacks a right, which is not one on this table",
                  "Give {role} what the trigger does, or make its function SECURITY DEFINER. Then run: `check`")  # fmt: skip
    what, advice = {
        "0A000": ("it is a view that cannot be locked? Set API_KEYS_TABLE to the table behind", ""),
        "22001": ("a column is too short: {kinds}", ""),
        "2200H": ("a sequence that the write uses has no value left", ""),
        "WK001": ("a trigger or row-level security refuses, drops or changes the new key", ""),
        "22P05": ("its encoding lacks characters of {service!r}", ""),
        "25006": ("it is read-only for now, a standby or in a failover", ""),
        "42501": in_trigger if error.diag.context else ("a right is missing", "{grants}"),
        "53100": ("its disk is full", "Make room on the disk of PostgreSQL, then run: `check`"),
        "53300": ("it has no free connection", ""),
    }.get("WK001" if is_policy and state == "42501" else state, ("", ""))  # fmt: skip
    kinds = ", ".join(f"{n} {table.columns.get(n, '?')[0]}" for n in ("service_name", "api_key"))
    facts = {"kinds": kinds, "service": account.service, "error": shown_error(error, state, table)}
    why = Message("{what} ({error})" if what else "{error}", what=Message(what, **facts), **facts)
    if PASSING.match(state):
        return StoreUnavailable("PostgreSQL cannot serve now: {why}.", advice, why=why)
    what, grants = "PostgreSQL refuses the write: {why}.", describe_grants(table)
    return WriteRefused(what, advice, why=why, grants=grants, role=table.quoted[0])


def shown_error(error: Any, state: str, table: Table) -> str:
    """Return an error's SQLSTATE and the names in it that the catalog has."""
    known = {table.schema, table.name, *table.columns, *table.constraints}
    names = [getattr(error.diag, f"{n}_name") for n in ("schema", "table", "column", "constraint")]
    shown = ", ".join([state, *(name for name in names if name in known)])
    with contextlib.suppress(KeyError):
        return f"{psycopg2.errorcodes.lookup(state).lower()} {shown}"
    return shown


def describe_grants(table: Table) -> Message:
    """Say what the table's role needs, as its owner types it."""
    what = ("As the table's owner run:\n  GRANT USAGE ON SCHEMA {schema} TO {role};\n"
            "  GRANT SELECT, INSERT, UPDATE ON {schema}.{name} TO {role};\n"
            "  GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role};\nThen run: `check`")  # fmt: skip
    if table.found is None:
        what = "As its owner run:\n  GRANT USAGE, CREATE ON SCHEMA {schema} TO {role};\nThen run: `check`"
    return Message(what, role=table.quoted[0], schema=table.quoted[1], name=table.quoted[2])


def table_fault(
    table: Table, service: str = "", is_hidden: bool = False, similar: str = "", elsewhere: str = ""
) -> WriteRefused | None:
    """Say why a table cannot serve, or consumers may read another row of it than ours, if so."""
    missing = [name for name in ("service_name", "api_key") if name not in table.columns]
    kind, category = table.columns.get("api_key", ["", ""])
    facts = {"table": table.shown, "short": table.short, "column": "".join(missing[:1]), "kind": kind,
             "service": service, "similar": similar, "elsewhere": elsewhere,
             "grants": describe_grants(table)}  # fmt: skip
    faults = (
        (table.found is False, "The table is not found by its name, but {short} is there.",
         "Set API_KEYS_TABLE={short}, or to a new one. If it may not be read: {grants}"),
        (missing, "The table {short} has no column {column}.", ""),
        (category != "S", "The column api_key of {short} must be text, but it is {kind}.", ""),
        (is_hidden, "{table} has a row {service!r} that may be seen, but not locked: row-level"
         " security?", ""),
        (similar, "{table} has no row {service!r}, but {similar!r}.",
         "Set WEBKASSA_SERVICE_NAME to the row that consumers read. Then run: `check`"),
        (elsewhere, "{elsewhere} has a row {service!r}: which one do consumers read, that or"
         " {table}?", "Set API_KEYS_TABLE to the one that they read, with its schema. Then run: `check`"),
    )  # fmt: skip
    return next((WriteRefused(what, advice, **facts) for so, what, advice in faults if so), None)


def as_failure(error: Exception) -> Failure:
    """Return a Failure as it is; of other exceptions the place alone: their text can be secret."""
    if isinstance(error, Failure):
        return error
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__} in {frame.name}, {Path(frame.filename).name}:{frame.lineno}"
    return Failure("A bug of this program: {where}.", where=where)


def first_that_holds(*cases: tuple[object, str]) -> str:
    """Return the sentence of the first case whose condition holds, or ""."""
    return next((sentence for holds, sentence in cases if holds), "")


def advice_for(failure: Failure) -> Message:
    return failure.advice or Message(CODES[failure.code][1])


CODES = {  # exit codes: in short, and what to do now
    69: ("Webkassa cannot be reached or is failing", "Try again later: `update`"),
    70: ("a bug", "Please report it. How the key stands: `status`"),
    73: ("the database refuses the write", "Fix the table, then run: `check`"),
    75: ("no database, or no lock", "When it is back, run: `update`"),
    76: ("an answer that makes no sense", "Look at WEBKASSA_AUTH_URL, then run: `check`"),
    77: ("login refused",
         "Correct WEBKASSA_LOGIN, WEBKASSA_PASSWORD or WEBKASSA_API_KEY, then run: `update`"),
    78: ("the settings are wrong", "Correct them, then run: `check`")}  # fmt: skip


# ---- Check and status: they never authorize


def check(job: Job) -> Iterator[Finding]:
    """Try everything but authorizing; change nothing. Yield what is found of each thing."""
    account, webkassa = job.account, Webkassa(job.account)
    yield Finding("ok", Message("settings: service {service}", service=account.service))
    findings, row = check_store(job, Deadline(CHECK_TIME))
    yield from findings
    yield check_host(account.ca_file, webkassa.url, "webkassa")
    if row:
        row = KeyAge(account).correct(row)
        verdict, refusal = look_at_key(account, row, 2 * PROBE_TIME)
        if refusal:
            yield failed_step("login", refusal)
        found = classify(row, verdict, None)
        is_good = found.level in ("OK", "UNKNOWN") and not is_touched(row)
        advice = None if refusal else found.advice  # to run again would send it again
        what = "stored key: {what}." if advice else "stored key: {what}"
        yield Finding("ok" if is_good else "WARN", Message(what, what=found.message), advice)
    if account.healthcheck_url:
        yield check_host(account.ca_file, account.healthcheck_url.value, "monitor")


def check_store(job: Job, deadline: Deadline) -> tuple[list[Finding], KeyRow | None]:
    """Do all that an update does with PostgreSQL; return findings, and the row if nothing failed."""
    findings, step = list[Finding](), "database"
    try:
        with KeyStore(job, deadline) as store:
            ((version,),), _ = store.run("SHOW server_version")
            at, table = store.connection.info, store.table
            what = "database: PostgreSQL {version} at {host}:{port}, {table}"
            at_host = at.host or Message("the default socket")
            facts = {"version": version, "host": at_host, "port": at.port, "table": table.shown}
            findings, step = [Finding("ok", Message(what, **facts))], "table"
            create_missing_table(store, commit=False)
            store.read_row()
            row = store.lock_row()
            findings.append(Finding("ok", Message("lock: taken")))
            store.reject_other_rows(row)
            step = "write"
            store.rehearse(row)
            what = first_that_holds(
                (row.exists, "write: rehearsed and taken back (row)"),
                (table.found is not None, "write: rehearsed and taken back (table, no row yet)"),
                (True, "write: rehearsed and taken back (no table; do consumers read this database?)"))  # fmt: skip
            found = Finding("WARN" if table.found is None else "ok", Message(what))
            return [*findings, found, *table_warnings(store, row)], row
    except Failure as failure:
        if isinstance(failure, LockBusy) and deadline.left > 1:  # left for the last look
            held = Message("the lock held by {holder}", holder=failure.holder)
            job.report_wait(held, deadline.left)
            time.sleep(KeyStore.LOCK_PAUSE)
            return check_store(job, deadline)
        step = "lock" if isinstance(failure, LockBusy) else step
        return [*findings, failed_step(step, failure)], None


VALIDITY = "expire[sd]?(_?(at|on))?|valid_(until|to)|(is_)?(active|valid|enabled|expired)|status"


def table_warnings(store: KeyStore, row: KeyRow) -> Iterator[Finding]:
    """Yield what an update gets along with, but a person should know of the table."""
    similar = ", ".join(repr(name) for name, is_similar in store.try_run(OTHER_ROWS) if is_similar)
    elsewhere = store.find_row_elsewhere(row) if store.account.schema else None
    table, times, service = store.table, store.table.times, store.account.service
    others = [] if service.startswith("Webkassa:") else [repr(name) for name, _ in row.others]
    left = ", ".join(name for name in table.columns if re.fullmatch(VALIDITY, name))
    for is_so, what in (
        *((True, what) for what in odd_for_consumers(table, row.key)),
        (left, "table: left as they are: {left}; do consumers read them?"),
        (table.is_unlogged, "table: it is UNLOGGED; a crash of PostgreSQL empties it"),
        (times and table.columns[times[0]][0] == "date", "table: {times[0]} is a date, no time"),
        (not times, "table: no column updated_at or created_at, so no age is known"),
        (others, "table: no row {service!r} yet, but {beside}; do consumers read one of these?"),
        (similar, "table: beside the row there is {similar}; do consumers read that one?"),
        (elsewhere, "table: {elsewhere} has such a row, too; do consumers read that one?"),
        (is_in_pgpools_cache(store), "table: Pgpool-II gives consumers the old key from its cache"),
    ):
        if is_so:
            facts = {"similar": similar, "elsewhere": elsewhere, "left": left, "service": service}
            yield Finding("WARN", Message(what, **facts, times=times, beside=", ".join(others)))
    try:  # last, for a refusal ends the transaction
        store.rehearse(row, Secret("".join(random.choices("AZaz09-_.~+/=", k=64))))
    except WriteRefused as refusal:
        what = "table: a key of another form, with 64 characters, could not be stored: {why}"
        yield Finding("WARN", Message(what, why=refusal.message))


def is_in_pgpools_cache(store: KeyStore) -> bool:
    """Say whether a Pgpool-II in between keeps what consumers read; PostgreSQL has no such command."""
    uncached = "PGPOOL SHOW cache_unsafe_memqcache_table_list"
    is_on = store.try_run("PGPOOL SHOW memory_cache_enabled") == [("on",)]
    return is_on and store.table.name not in str(store.try_run(uncached))


def check_host(ca_file: str, url: str, name: str) -> Finding:
    """Reach a host, with TLS, without credentials and without a path that means anything."""
    facts = {"name": Message(name), "host": host_of(url)}
    request = requests.Request("HEAD", f"{urlsplit(url).scheme}://{host_of(url)}/")
    try:
        send_request(new_session(ca_file), request, Deadline(CHECK_TIME), LOGIN_LIMIT)
    except Failure as failure:
        again = failure.advice or Message("Try again later: `check`")
        return failed_step(name, failure)._replace(advice=again)
    if host_of(url) in TEST_HOSTS:
        return Finding("WARN", Message("{name}: {host} answers (Webkassa's TEST system)", **facts))
    return Finding("ok", Message("{name}: {host} answers", **facts))


def failed_step(name: str, failure: Failure) -> Finding:
    what = Message("{name}: {why}", name=Message(name), why=failure.message)
    return Finding("FAIL", what, advice_for(failure), failure.code)


def read_stored_row(account: Account, deadline: Deadline) -> KeyRow:
    with KeyStore(Job(account, IF_NEEDED, lambda *_: None, Connector()), deadline) as store:
        return store.read_row()


def status(
    account: Account | SettingsFault, as_typed: Callable[[Message], str], deadline: Deadline,
    read: Callable[[Account, Deadline], KeyRow] = read_stored_row, least: float = 2,
) -> dict[str, Any]:  # fmt: skip
    """Return how an account stands: "status", "message", facts. The probe has `least` seconds."""
    facts: dict[str, Any] = {"service": account.service} if isinstance(account, Account) else {}
    try:
        if isinstance(account, SettingsFault):
            raise account
        row = KeyAge(account).correct(read(account, deadline))
        verdict, refusal = look_at_key(account, row, max(deadline.left, least))
        found = classify(row, verdict, refusal)
        facts |= {"fingerprint": row.key.fingerprint, "age_seconds": row.age and round(row.age)}
        facts |= {"age_from": row.age_from, "changed": row.changed, "probe": verdict}
        facts |= {"login_refused": True} if refusal else {}
    except Failure as failure:
        found = Finding("UNKNOWN", failure.message, advice_for(failure))
    message = "\n".join(as_typed(part) for part in (found.message, found.advice) if part)
    return facts | {"status": found.level, "message": message}


def look_at_key(account: Account, row: KeyRow, seconds: float) -> tuple[str, Failure | None]:
    """Return the probe's verdict on a stored key, and the refusal of a login that is remembered."""
    refusal = Refusals(account).find(row)
    if not account.probe_url:
        return OFF, refusal
    webkassa = Webkassa(account)
    webkassa.is_doubted = ProbeDoubt(account).is_valid(row)
    verdict = webkassa.probe(row.key, seconds)
    return TEST if verdict == ALIVE and webkassa.host in TEST_HOSTS else verdict, refusal


def classify(row: KeyRow, verdict: str, refusal: Failure | None) -> Finding:
    """Say how a stored key stands, given a probe's verdict and the refusal that is remembered."""
    age, row_age, touched = row.age or 0, row.row_age or 0, is_touched(row)
    end = time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(time.time() + 86400 - age))
    facts = {"key": describe_key(row), "verdict": Message(verdict), "hours": abs(row_age) / 3600,
             "why": refusal and refusal.message, "end": end}  # fmt: skip
    correct, settle = Message(CODES[LOGIN_REFUSED][1]), Message(DOUBT)
    old = "key {key}: older than 25 h; the probe says {verdict}"
    good = "key {key}; the probe says {verdict}"
    cases = (
        (not row.key, "CRITICAL", "no key is stored", correct if refusal else NOW),
        (refusal and verdict == ALIVE and row.age is not None, "CRITICAL",
         "{why} The key {key}, works; Webkassa promises about a day, until {end}", correct),
        (refusal, "CRITICAL", "{why} Stored is the key {key}; the probe says {verdict}", correct),
        (verdict == DEAD, "CRITICAL", "key {key}: it is dead", NOW),
        (row.at_risk and verdict in (UNCLEAR, OFF), "CRITICAL",
         "key {key}: it may be dead since the last login; the probe says {verdict}", NOW),
        (row.age is None and row_age < 0, "UNKNOWN",
         "key {key}; the probe says {verdict}; its row's time is {hours:.1f} h in the future",
         Message("Does something write local time there? It has to be UTC.")),
        (row.age is None, "UNKNOWN",
         "key {key}; the probe says {verdict}; its row holds no usable time of change", None),
        (age > WARNING_AGE and touched, "WARNING",
         "key {key}: older than 25 h, its row {hours:.1f} h; the probe says {verdict}", NOW),
        (age > CRITICAL_AGE, "CRITICAL", old, NOW),
        (age > WARNING_AGE, "WARNING", old, NOW),
        (verdict == DOUBTED, "WARNING", good, settle),
        (verdict == TEST, "WARNING", good, Message("Remove WEBKASSA_AUTH_URL, then run: `update`")),
        (verdict == UNCLEAR, "WARNING", good, Message("Look again in a minute: `status`")),
        (touched, "OK", "key {key}, its row {hours:.1f} h; the probe says {verdict}", None),
        (True, "OK", good, None))  # fmt: skip
    _, level, what, advice = next(case for case in cases if case[0])
    return Finding(level, Message(what, **facts), advice)


def is_touched(row: KeyRow) -> bool:
    """Say whether a row was changed since its key was stored."""
    is_noted = row.age_from == "note" and row.age is not None and row.row_age is not None
    return is_noted and abs((row.row_age or 0) - (row.age or 0)) > 60


def describe_key(row: KeyRow) -> Message:
    """Return fingerprint and age of a stored key, for a person."""
    what = "{key}" if row.age is None else "{key}, {hours:.1f} h old"
    return Message(what, key=row.key.fingerprint, hours=(row.age or 0) / 3600)


class Finding(NamedTuple):
    """What is said of a thing. `level`: "ok", "WARN" or "FAIL" in a check, else one of LEVELS."""

    level: str
    message: Message
    advice: Message | None = None
    code: int = 0  # exit code


NOW = Message("Run again now: `update`")
DOUBT = "Set WEBKASSA_PROBE_URL=off or ask Webkassa why RefUnits refuses it. Then run: `check`"
TEST = "alive, but of Webkassa's TEST system"
TEST_HOSTS = {"devkkm.webkassa.kz", "127.0.0.1:1332"}  # vendor's test system; its local module's


# ---- Command line: nothing above touches the environment or the terminal


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`; return the exit code (see the text at the top)."""
    options = parse_arguments(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # None where it is closed
        sys.stdout.reconfigure(errors="backslashreplace")
    log.handlers, log.propagate = [logging.StreamHandler()], False
    log.handlers[0].setFormatter(LogFormatter("%(levelname)s: %(message)s"))
    log.setLevel(logging.DEBUG if options.verbose else logging.INFO)
    try:
        return Command(options).run()
    except Exception as error:
        log.error(as_failure(error).message)
        return UNKNOWN if options.command == "status" else Failure.code


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(allow_abbrev=False)
    commands = ("update", "check", "status")
    parser.add_argument("command", nargs="?", default="update", choices=commands)
    parser.add_argument("--env-file")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--if-needed", action="store_const", const="", dest="mode")
    modes.add_argument("--if-key", dest="mode")
    parser.add_argument("--accounts-dir")
    parser.add_argument("--account", action="append", default=[])
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--shard", default="0/1")
    for flag in (["--json"], ["--metrics"], ["--no-probe"], ["-v", "--verbose"]):
        parser.add_argument(*flag, action="store_true")
    parser.add_argument("--version", action="version", version=__version__)
    code = UNKNOWN if "status" in argv else 2  # for a monitor, 2 would be CRITICAL
    parser.set_defaults(usage_code=code, usage_error=parser.error)
    options = parser.parse_args(argv)
    if options.mode is not None and options.command != "update":
        parser.error("--if-needed and --if-key go with update")
    if options.json and (options.command == "check" or options.metrics):
        parser.error("--json goes with update and status, and not with --metrics")
    if options.command != "status" and (options.metrics or options.no_probe):
        parser.error("--metrics and --no-probe go with status")
    if "" in (options.env_file, options.accounts_dir):
        parser.error("--env-file and --accounts-dir need a name")
    share = re.fullmatch(r"(\d{1,6})/(\d{1,6})", options.shard, re.ASCII)
    options.share = (int(share[1]), int(share[2])) if share else (0, 0)
    if options.share[0] >= options.share[1] or not 1 <= options.jobs <= 256:
        parser.error("--shard wants I/N, with I from 0 to N-1; --jobs 1 to 256")
    options.is_asked = options.mode == "-"
    line = read_line().strip() if options.is_asked else options.mode or ""
    asked = re.fullmatch("(?:([a-z0-9_-]+) )?([0-9a-f]{8})?", line.lower())
    if not asked:
        parser.error("--if-key wants the fingerprint of a key, 8 hex digits")
    options.account += [asked[1]] if asked[1] else []
    options.mode = ALWAYS if options.mode is None else asked[2] or IF_NEEDED
    return options


HELP = """usage: webkassa_key_updater.py [OPTIONS] [update [--if-needed | --if-key FINGERPRINT] [--json] |
                                          check | status [--json | --metrics] [--no-probe]]

commands:
  update           authorize against Webkassa, validate the new key, store it (the default);
                   this kills the key in use, and puts the new one in its place
    --if-needed    do nothing when the stored key is young and not dead
    --if-key FINGERPRINT
                   do nothing unless this key is still stored, and older than a minute;
                   "-": read a line: FINGERPRINT (empty: --if-needed), of many NAME FINGERPRINT
  check            the dry run: all but authorizing (settings, database, lock, write, host, key)
  status [--json]  how things stand, for a person, a monitor or machines; changes nothing
    --metrics      the same for Prometheus (OpenMetrics text); exit code 0 once it is printed
    --no-probe     by the database alone: Webkassa is not asked
An update takes up to twice WEBKASSA_DEADLINE and 4 min: never kill it, a key may be lost.
options:
  --env-file FILE  read settings from FILE instead of .env beside this program
  --accounts-dir DIR  for many accounts: each NAME.env in DIR is one, in the row Webkassa:NAME
    --account NAME for this one only; may be a pattern ('almaty-*') and be given several times
    --jobs N       so many at a time (4)
    --shard I/N    the I-th (0 to N-1) of N shares only; a name is always in the same share
  -v, --verbose    say each step (also: --version, --help)
"""


class Parser(argparse.ArgumentParser):
    """A parser whose help is HELP, amid the text at the top of this file."""

    def format_help(self) -> str:
        title, _, codes = (__doc__ or "").partition("\n\n")
        return f"{title}\n\n{HELP}{codes}"

    def error(self, message: str) -> NoReturn:
        self.exit(self.get_default("usage_code"), f"{Path(__file__).name}: {message}; see --help\n")


def read_line() -> str:
    """Return the first line of standard input: a far end may be silent, or write it in parts."""
    line, end = b"", Deadline(CHECK_TIME)
    with contextlib.suppress(OSError):
        while len(line) < 100 and b"\n" not in line:
            came, _, _ = select.select([0], [], [], min(end.left, 3) if line else end.left)
            line += (os.read(0, 100) or b"\n") if came else b"\n" if line else b"nothing\n"
    return line.decode("ascii", "replace").partition("\n")[0]


class Command:
    """Does what was typed, and says how it went. `name` is, in the child of one of many accounts,
    that account's, and `label` what its lines begin with; `report_wait` and `connect` are a Job's."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder, self.name, self.label = options, options.accounts_dir, "", ""
        self.is_update = options.command == "update"
        self.report_wait: Callable[[Message, float], None] = lambda what, seconds: None
        self.connect: Callable[[Account, Deadline], Connection] = Connector()
        self.check: Callable[[Job], Any] = check

    def run(self) -> int:
        account: Account | SettingsFault
        values: Mapping[str, str] = os.environ
        try:
            values, faults = self.load_settings()
            if self.folder:
                return int(load_module("accounts").do_many(self, values, faults))
            account = read_account(values, faults)
        except SettingsFault as fault:
            account = fault
        if self.options.command == "status":
            report = status(account, self.as_typed, Deadline(STATUS_TIME))
            return self.print_status([report], report["message"])
        self.report_wait = Terminal().report_wait
        return self.do_one(account, monitor_of(values, []))

    def load_settings(self) -> tuple[dict[str, str], list[Message]]:
        """Return settings and what is wrong with them; make them libpq's and requests' environment."""
        faults, beside = list[Message](), Path(__file__).resolve().with_name(".env")
        path = Path(self.options.env_file or beside.resolve())  # in an image it is a link
        has_file = self.options.env_file or os.path.exists(path)
        from_file = read_env_file(path, faults) if has_file else {}
        values = from_file | {name: value for name, value in os.environ.items() if value}
        os.environ.clear()
        os.environ.update(values)
        in_readers_language(Message(""))  # reads the catalogue: no file is opened after a login
        if self.options.env_file:
            warn_of_overruled(path, from_file, os.environ)
        read_secret_files(values, faults)
        faults += find_unknown_names(path, from_file, values)
        values |= {"WEBKASSA_PROBE_URL": "off"} if self.options.no_probe else {}
        self.folder = self.folder or values.get("WEBKASSA_ACCOUNTS_DIR")
        if not self.folder and (self.options.account or self.options.shard != "0/1"):
            self.options.usage_error("--account and --shard: WEBKASSA_ACCOUNTS_DIR is not set")
        if not self.folder and not has_file and "WEBKASSA_LOGIN" not in values:
            faults.append(Message(".env: is missing; use --env-file FILE or the environment"))
        return values, faults

    def as_typed(self, message: Message) -> str:
        """Return a message in the reader's language, with the program as it was called in the place
        of `command`. Of many accounts it is to be for one, or must leave the good keys alone."""
        words = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
        words += ["--env-file", self.options.env_file] if self.options.env_file else []
        program = os.environ.get("WEBKASSA_KEY_COMMAND") or shlex.join(words)
        if self.options.accounts_dir:
            program += " --accounts-dir " + shlex.quote(self.options.accounts_dir)
        one = f" --account {self.name}" if re.fullmatch("[a-z0-9][a-z0-9_-]*", self.name) else ""
        careful = " --if-needed" if self.folder and not one else ""
        text = in_readers_language(message).replace("`update`", f"{program} update{one}{careful}")
        return re.sub("`(check|status)`", lambda match: f"{program} {match[1]}{one}", text)

    def do_one(self, account: Account | SettingsFault, monitor: Secret) -> int:
        """Update or check one account; return the exit code."""
        prefix = ""
        try:
            if isinstance(account, SettingsFault):
                raise account
            prefix = self.label or f"{account.service}: "
            job = Job(account, self.options.mode, self.report_wait, self.connect)
            if not self.is_update:
                return self.print_check(self.check(job), self.label)
            outcome = update(job)
            if outcome.code == LOGIN_REFUSED:
                odd = odd_end("WEBKASSA_PASSWORD", account.password.value)
                outcome = outcome._replace(warnings=odd)
        except Exception as error:
            outcome = describe_failure(as_failure(error), NO_KEY, "", NO_KEY, asked=False)
        for warning in outcome.warnings:
            log.warning("%s%s", prefix, self.as_typed(warning))
        said = self.as_typed(outcome.message)
        log.log(logging.ERROR if outcome.code else logging.INFO, "%s%s", prefix, said)
        if self.is_update:
            note_run(self.name, said, outcome)
            if self.options.json:
                what = "failed" if outcome.code else "nothing to do"
                facts = {"what": "renewed" if outcome.renewed else what, "code": outcome.code}
                facts |= {"fingerprint": outcome.key.fingerprint, "account": self.name or None}
                say(json.dumps(facts | {"message": said}))
            self.report_wait(Message("the monitor"), CHECK_TIME)
            ping(monitor, outcome.code, [self.name])
        return outcome.code

    def print_check(self, findings: Iterable[Finding], prefix: str) -> int:
        """Print what a check found; return the exit code of the first thing that failed."""
        first = 0
        for level, message, advice, code in findings:
            said = " ".join(self.as_typed(part) for part in (message, advice) if part)
            say(f"{level:5} {prefix}{said}")
            first = first or code
        return first

    def print_status(self, reports: list[dict[str, Any]], what: str) -> int:
        """Print how things stand: text (`what` first), JSON or metrics; return the worst level."""
        level = reports[0]["status"] if reports else "OK"
        accounts = [report for report in reports if {"account", "service"} & report.keys()]
        if self.options.metrics:
            return int(load_module("metrics").print_metrics(reports))
        if self.options.json:
            say(json.dumps({"status": level, "message": what, "accounts": accounts}, indent=2))
            return LEVELS.index(level)
        ages = [age for report in reports if (age := report.get("age_seconds")) is not None]
        data = f"|age={max(ages)}s;{WARNING_AGE};{CRITICAL_AGE}" if ages else ""
        first, *more = what.replace("|", "/").splitlines()  # a | would begin the performance data
        say("\n".join([f"WEBKASSA {level} - {first}{data}", *more]))
        for account in accounts:
            shown = [f"{n} {v}" for n, v in account.items() if n not in ("status", "message")]
            shown += [f"{account['status']}: {account['message']}"] if self.folder else []
            say(", ".join(shown).replace("|", "/").replace("\n", " "))
        return LEVELS.index(level)


STATUS_TIME, WARNING_AGE, CRITICAL_AGE = 5.0, 25 * 3600, 49 * 3600  # s: a day and an hour
LEVELS, UNKNOWN = ("OK", "WARNING", "CRITICAL", "UNKNOWN"), 3  # exit codes of monitoring plug-ins


class Terminal:
    """Tells a person, after 3 s, for what we wait, from a thread of its own: a terminal may block."""

    def __init__(self) -> None:
        self.wait = (Message(""), Deadline(0), Deadline(0))
        if os.isatty(2):  # standard error, which may also be closed
            with contextlib.suppress(Failure):
                start_thread(self.watch)

    def report_wait(self, what: Message, seconds: float) -> None:
        if str(self.wait[0]) != str(what):  # else it is one wait, in parts
            self.wait = (what, Deadline(seconds), Deadline(3))

    def watch(self) -> None:
        told, heard = self.wait, False
        while True:
            time.sleep(0.1)
            what, end, delay = wait = self.wait
            if wait is not told and not delay.left:
                told, waiting = wait, "Waiting for {what}, {seconds:.0f} s at most ..."
                say(Message(waiting, what=what, seconds=end.left), sys.stderr)
            if not heard and signal.SIGINT in signal.sigpending():
                heard, ending = True, "Ctrl-C: it ends as soon as no key can be lost any more ..."
                say(Message(ending), sys.stderr)


class LogFormatter(logging.Formatter):
    """Writes a line of the log in the reader's language."""

    def format(self, record: logging.LogRecord) -> str:
        record.msg = in_readers_language(record.msg)
        return super().format(record)


def say(what: Message | str, file: Any = None, end: str = "\n") -> None:
    """Print, whether or not anybody can read it: the exit code is the truth all the same."""
    with contextlib.suppress(OSError, ValueError):
        print(in_readers_language(what), file=file, end=end, flush=True)


def in_readers_language(said: Message | str) -> str:
    """Translate as WEBKASSA_LANG says, else LC_MESSAGES or LANG; not LC_ALL, which scripts set."""
    lang = next(filter(None, map(os.environ.get, ("WEBKASSA_LANG", "LC_MESSAGES", "LANG"))), "")
    with contextlib.suppress(Exception):
        if isinstance(said, Message) and lang.startswith("ru"):
            return said.render(read_catalogue())
    return str(said)


@functools.cache
def read_catalogue() -> Callable[[str], str]:
    """Return what translates into Russian; where the catalogue cannot be read, all stays English."""
    for name in ("locale", "webkassa_key_locale"):  # in a clone; in a virtual environment
        path = Path(__file__).resolve().with_name(name) / "ru/LC_MESSAGES/webkassa_key_updater.mo"
        with contextlib.suppress(Exception), open(path, "rb") as file:
            return gettext.GNUTranslations(file).gettext
    return str


def load_module(name: str) -> Any:
    """Return the module of a file beside this one, which python -I would not find by its name."""
    path = Path(__file__).resolve().with_name(f"webkassa_key_{name}.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not spec or not spec.loader or not path.exists():
        what = "{file} is missing; --metrics, --accounts-dir and WEBKASSA_ACCOUNTS_DIR need it"
        raise settings_fault([Message(what, file=path)])
    module = importlib.util.module_from_spec(spec)
    vars(module)["updater"] = sys.modules[__name__]
    spec.loader.exec_module(module)
    return module


def note_run(account: str, said: str, outcome: Outcome) -> None:
    """Note for the server's status how an update ended; what fails here changes nothing."""
    now, kind, code = time.time(), os.environ.get("WEBKASSA_RUN_KIND", "hand"), outcome.code
    end = f".{account}.json" if account else ".json"
    with contextlib.suppress(Exception):
        folder, notes = Path(os.environ["STATE_DIRECTORY"]), read_notes(end)
        last = {"code": 0, "renewed": None} | notes.get(f"run-{kind}{end}", {})
        renewals = [r for note in notes.values() if (r := note.get("renewed") or 0) <= now]
        goes_on = code and code == last["code"] and max(renewals, default=0) < last["time"]
        note = {
            "account": account, "kind": kind, "time": now, "code": code, "outcome": said,
            "since": last["since"] if goes_on else now,  # of the first such failure since a renewal
            "key": {"": "as it was", ALIVE: ALIVE, DEAD: DEAD}.get(outcome.verdict, UNCLEAR),
            "renewed": now if outcome.renewed else last["renewed"],  # by this kind of run
            "invocation": os.environ.get("INVOCATION_ID", ""),  # systemd's number of this run
        }  # fmt: skip
        new = folder / f"new.{os.getpid()}"
        new.write_text(json.dumps(note))
        new.replace(folder / f"run-{kind}{end}")


def read_notes(end: str) -> dict[str, dict[str, Any]]:
    """Return what runs noted, by their files, which end so: run-KIND.json or run-KIND.ACCOUNT.json."""
    notes = dict[str, dict[str, Any]]()
    for path in Path(os.environ.get("STATE_DIRECTORY", os.devnull)).glob(f"run-*{end}"):
        with contextlib.suppress(Exception):  # a power cut may have left half of one
            notes[path.name] = dict(json.loads(read_text(path)))
    return notes


def failure_stands(accounts: Sequence[str]) -> bool:
    """Say whether the status knows of a failure of one of these accounts, with no renewal since."""
    end = f"{accounts[0]}.json" if len(accounts) == 1 else ".json"  # of 300, one reads its own
    with contextlib.suppress(Exception):
        notes = [note for note in read_notes(end).values() if note.get("account") in accounts]
        renewed = dict(sorted((n["account"], n["renewed"] or 0) for n in notes))  # the last counts
        return any(n["code"] and n["time"] > renewed[n["account"]] for n in notes
                   if n["kind"] in ("daily", "boot", "net") or n["code"] == LOGIN_REFUSED)  # fmt: skip
    return False


def ping(url: Secret, code: int, accounts: Sequence[str]) -> None:
    """Tell a monitor how it ended: Healthchecks or one like it, or Uptime Kuma; change nothing."""
    if not url or (not code and failure_stands(accounts)):  # then it is no success
        return
    whole, said = re.sub(r"/*(\?.*)?$", ("/fail" if code else "") + r"\1", url.value, count=1), {}
    if "/api/push/" in url.value:
        whole, said = url.value.partition("?")[0], {"status": "down" if code else "up"}
        said["msg"] = f"exit code {code}" if code else "OK"
    try:
        session = new_session(os.environ.get("REQUESTS_CA_BUNDLE", ""))
        request = requests.Request("GET", whole, params=said)
        answer = send_request(session, request, Deadline(CHECK_TIME), LOGIN_LIMIT)
        if not 200 <= answer.status < 300:
            raise Failure("it answers HTTP {status}.", status=answer.status)
    except Exception as error:
        what = "The monitor at HEALTHCHECK_URL could not be told: {why}"
        log.warning(Message(what, why=as_failure(error).message))


CHECK_TIME = 10.0  # seconds: for each thing that is looked at, or told


def run_as_program() -> NoReturn:
    """Run the command line and end the process, with the signals as a program has them."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a wait at once
    if os.getpid() == 1:  # of a container: the kernel ignores the defaults there
        for stop in STOP_SIGNALS:
            signal.signal(stop, lambda number, _: os._exit(128 + number))
    os._exit(main())  # at once, whatever the thread of an unanswered request is doing


if __name__ == "__main__":
    run_as_program()
