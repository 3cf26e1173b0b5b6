#!/usr/bin/env python3
"""Renew the Webkassa key and store it in PostgreSQL, without ever losing one.

usage: webkassa_key_updater.py [--env-file FILE] [--accounts-dir DIR [--jobs N] [--shard I/N]] [-v]
           [update [--if-needed | --if-key FINGERPRINT] | check | status [--json]]

commands:
  update           authorize against Webkassa, validate the new key, store it (the default);
                   this kills the key in use, and puts the new one in its place
    --if-needed    do nothing when the stored key is young and not dead
    --if-key FINGERPRINT
                   do nothing unless this key is still stored, and older than a minute;
                   "-": read the fingerprint from standard input, an empty line is --if-needed
  check            everything but authorizing: settings, database, lock, write, host, stored key
  status           how things stand, for a person or a monitor; changes nothing
    --json         the same for machines

options:
  --env-file FILE  read settings from FILE instead of .env beside this program
  --accounts-dir DIR
                   do it for many accounts: each NAME.env in DIR is one, in the row Webkassa:NAME
    --jobs N       so many at a time (4)
    --shard I/N    every N-th account only, beginning with the I-th (0 to N-1)
  -v, --verbose    say each step
  --version        print the version
  -h, --help       print this help

exit codes of update and check:
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
2, 73, 77 and 78 do not heal by themselves; the others may.

exit codes of status: 0 OK, 1 WARNING (older than 25 h), 2 CRITICAL (missing, dead or older than
49 h), 3 UNKNOWN (cannot tell)
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import gc
import hashlib
import http.client
import io
import ipaddress
import json
import logging
import os
import queue
import random
import re
import shlex
import signal
import socket
import stat
import sys
import threading
import time
import traceback
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from select import select
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

__version__ = "1.0.0"

log = logging.getLogger("webkassa_key_updater")

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


class Deadline:
    """A moment of the monotonic clock, `seconds` from now; `left` are the seconds until then."""

    def __init__(self, seconds: float) -> None:
        self.moment = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(self.moment - time.monotonic(), 0.0)

    @property
    def milliseconds(self) -> int:
        """For the server, so that it gives up, and says why, shortly before we do."""
        return max(int(self.left * 1000) - 500, 1)

    def within(self, seconds: float) -> Deadline:
        """Return the sooner of this deadline and one `seconds` from now."""
        return Deadline(min(self.left, seconds))


class Failure(Exception):
    """What happened, in a sentence; `code`: the exit code; `advice`: what to do now."""

    code, advice = 70, ""

    def __init__(self, what: str, **facts: Any) -> None:
        super().__init__(what)
        vars(self).update(facts)


class SettingsFault(Failure):
    code, healthcheck_url = 78, Secret("")  # as far as it could be read


class WriteRefused(Failure):
    code = 73


class StoreUnavailable(Failure):
    code = 75


class LockBusy(StoreUnavailable):
    """Somebody else holds the lock, the row or the table."""


class WebkassaFailure(Failure):
    """`sent`: the login may have reached Webkassa, and may yet take effect; `unusable`: the answer
    may have been a login's; `wait`: seconds that it asks for; `others`: hosts that it names."""

    code, retry, sent, unusable, wait = 69, True, False, False, 0.0
    others: list[str] | None = None


# ---- Update, the protocol: its order is the product


def update(run: Run) -> str:
    """Renew the key of an account and return a sentence that says what was done; raise a Failure.

    Authorizing kills the key in use. So nothing is asked of Webkassa before it is certain that the
    answer can be kept, and nothing that it gave is given up. Step 1, the settings, is done.
    """
    with contextlib.ExitStack() as until_the_end:
        while True:
            try:
                with KeyStore(run.account, run.patience, run.tell) as store:
                    # 2. Lock, then look: whatever is decided is decided on what is read under it
                    create_missing_table(store)
                    run.look(store.look())
                    run.stored = stored = store.lock()
                    done = settled(run, store, stored)
                    if done and store.stands():
                        return done

                    if not run.token or run.doubt:
                        # 3. Rehearse the very statement that will store the token
                        log.debug("Rehearsing the write; then asking %s.", run.webkassa.host)
                        store.rehearse(stored)

                        # 4. Authorize, which kills the key in use, and 5. validate. From here to
                        # the commit no signal stops us, and no log line can block
                        if not run.asked:
                            until_the_end.enter_context(held_back())
                            until_the_end.push(functools.partial(look_back, run))
                        run.begin()
                        try:
                            authorize(run, store, stored)
                        except WebkassaFailure as failure:
                            after_failed_login(failure, run, store, stored)
                            raise

                    # 6. Store: write, deferred checks, read-back, NOTIFY and COMMIT in one message
                    run.stores += 1
                    store.store(stored, run.token, run.keeping, notify=run.stores == 1)
                run.refusals.forget()
                if not run.was_overtaken():
                    return said_stored(run, store)
            except WebkassaFailure:
                raise
            except Exception as failure:  # not even a bug of ours may cost the token
                # 7. Again: connect, lock, look, for as long as something is in hand
                run.again(failure)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold back signals and log lines from login to commit: either could cost a token."""
    faults = {"SEGV", "BUS", "FPE", "ILL", "ABRT", "TRAP", "SYS", "KILL", "STOP"}
    signals = signal.valid_signals() - {getattr(signal, f"SIG{name}") for name in faults}
    lines: list[logging.LogRecord] = []
    keep: Any = lines.append  # as a filter of the log: it returns None, so no line passes
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)
        while signal.sigtimedwait(signals, 0):
            pass  # what was at stake is over
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for line in lines:
            log.handle(line)


class Run:
    """What one run wants, and knows of its logins. `tell(what, seconds)` hears of every wait; `wish`:
    ALWAYS, IF_NEEDED, or the fingerprint of a key that a consumer was told is dead."""

    ALWAYS, IF_NEEDED = "always", "if needed"
    STORING_TIME, LAST_TRY = 60.0, 2.0  # seconds: from the token's arrival; least for a further try
    UNUSABLE_LIMIT = 3  # answers that may have been a login's, but brought no usable token

    def __init__(self, account: Account, wish: str, tell: Callable[[str, float], None]) -> None:
        self.account, self.wish, self.tell, self.said = account, wish, tell, ""
        self.webkassa, self.refusals = Webkassa(account), Refusals(account)
        longest = account.deadline + self.STORING_TIME + PROBE_TIME
        self.lock_wait = Deadline(longest)  # a healthy holder of the lock takes no longer
        self.asked, self.asking = False, Deadline(0)  # for all that is asked of Webkassa
        self.seen: Stored | None = None  # the row as our first connection found it
        self.stored = Stored()  # as it is now
        self.first: Stored | None = None  # when our first login was sent
        self.before = Stored()  # when the login was sent that gave the token in hand
        self.unanswered, self.unusable = False, 0  # unanswered: a login may yet take effect
        self.token, self.verdict = NO_KEY, UNCLEAR  # in hand; the probe's word on it
        self.keeping, self.stores, self.pause = Deadline(0), 0, 0.25  # for storing it; the tries
        self.doubt = self.repeated = self.last = False  # step 7: which key lives cannot be told

    @property
    def patience(self) -> Deadline:
        """How long to wait for a connection, for the lock and for the row."""
        return self.keeping if self.token else self.asking if self.asked else self.lock_wait

    def look(self, stored: Stored) -> None:
        """Note the row as it is before the lock, unless an earlier connection did."""
        self.seen = self.seen or stored

    def begin(self) -> None:
        """Note that a login is about to be sent: from now on its time is running."""
        if not self.asked:
            self.asked, self.asking = True, Deadline(self.account.deadline)
        self.keeping = Deadline(self.asking.left + self.STORING_TIME)  # for a token from before

    def was_overtaken(self) -> bool:
        """Say whether a login of ours that got no answer has killed the key that is stored now;
        raise WebkassaFailure if nobody can tell, for it may do so yet."""
        verdict = self.webkassa.probe(self.token) if self.unanswered else ALIVE
        if verdict == ALIVE:
            return False
        self.stored = self.stored._replace(key=self.token)
        self.token, self.unusable, self.stores = NO_KEY, self.unusable + 1, 0
        if verdict != DEAD:
            what = f"Stored the new key {self.stored.key.fingerprint}, but a login before it got no"
            raise WebkassaFailure(f"{what} answer and may end it.")
        if self.unusable >= self.UNUSABLE_LIMIT or not self.asking.left:
            raise WebkassaFailure("Webkassa is so slow that one login of ours killed the next.")
        return True

    def again(self, failure: Exception) -> None:
        """Return after a pause; raise `failure` where nothing is in hand or the time is over."""
        over = self.patience.left < self.pause + self.LAST_TRY
        if not self.asked or (over and (self.last or not self.token)):
            raise failure
        if over:  # perhaps the machine has slept: one try more, and with time
            self.last, self.keeping = True, Deadline(KeyStore.COMMIT_TIME)
        log.debug("Not stored yet: %s", failure if isinstance(failure, Failure) else type(failure))
        if is_stopped(self.pause, deaf=bool(self.token)):
            raise failure
        self.pause = min(self.pause * 2, 2.0)


def settled(run: Run, store: KeyStore, stored: Stored) -> str:
    """Step 2, under the lock: return a sentence if nothing is to be asked or stored, else ""."""
    if run.token:
        return settled_in_hand(run, store, stored)
    if run.unanswered:
        return ""  # that login may yet kill whatever is stored
    changed = run.seen and stored.key and stored.key != run.seen.key
    if changed and run.webkassa.probe(stored.key) == ALIVE:
        return f"another updater has just stored the key {stored.key.fingerprint}"
    if run.wish == run.ALWAYS:
        return ""
    done = ""
    if run.wish == run.IF_NEEDED or not stored.key:
        done = settled_if_needed(run.account, stored, run.webkassa)
    elif stored.key.fingerprint != run.wish:
        done = f"the key {run.wish} is no longer stored, but {stored.described}: nothing to do"
    elif stored.age is not None and stored.age < YOUNG:
        done = f"the key {run.wish} is younger than a minute: nothing to do"
    if not done:
        run.refusals.recall(stored)
    return done


def settled_if_needed(account: Account, stored: Stored, webkassa: Webkassa) -> str:
    """Return a sentence if the key is younger than WEBKASSA_MAX_AGE and not dead, else "".

    Where its age is not known, the probe decides alone; raise a Failure where it cannot.
    """
    if not stored.key or (stored.age is not None and stored.age >= account.max_age):
        return ""
    verdict = webkassa.probe(stored.key)
    if verdict == DEAD:
        return ""
    if stored.age is None and verdict != ALIVE:
        raise cannot_tell(stored, verdict)
    return f"nothing to do: the key {stored.described}; the probe says {verdict}"


def settled_in_hand(run: Run, store: KeyStore, stored: Stored) -> str:
    """Step 7, with a token in hand: return a sentence if all is done, else "": it is to be stored.

    If nobody can tell which key lives, `run.doubt` is set: certainty costs one login more.
    """
    verdict = run.webkassa.probe(run.token)
    changed = bool(stored.key) and stored.key != run.before.key
    if changed and stored.key == run.token and verdict != DEAD:  # the commit had gone through
        return "" if run.was_overtaken() else said_stored(run, store)
    others = changed and verdict == DEAD and not run.unanswered  # which might yet kill it
    if others and run.webkassa.probe(stored.key) == ALIVE:
        return f"another updater logged in after us and stored {stored.described}; ours is dead"
    run.doubt = changed or verdict != ALIVE
    return ""


def authorize(run: Run, store: KeyStore, stored: Stored) -> None:
    """Steps 4 and 5: log in until a token comes that Webkassa does not call dead; take it in hand.

    Raise a WebkassaFailure, or StoreUnavailable if the transaction is lost before a try.
    """
    if run.doubt and run.repeated:
        raise WebkassaFailure("PostgreSQL was lost twice between login and commit.", code=75)
    backoff = 0.25  # seconds; doubled with every try
    while True:
        if not store.stands():
            raise StoreUnavailable("The connection to PostgreSQL broke before Webkassa was asked.")
        try:
            run.first, run.repeated = run.first or stored, run.doubt
            run.tell(f"the answer of {run.webkassa.host}", run.asking.left)
            token = run.webkassa.authorize(run.asking, store.stands)
            run.verdict = run.webkassa.probe(token)
            if run.verdict == DEAD:
                raise called_dead(run.webkassa)
            run.token, run.before, run.doubt = token, stored, False
            run.keeping = Deadline(run.STORING_TIME)
            return
        except WebkassaFailure as failure:
            run.unanswered = run.unanswered or failure.sent
            run.unusable += failure.unusable
            pause, backoff = backoff * random.uniform(0.5, 1), min(backoff * 2, 30)
            pause = 0.0 if run.webkassa.turn(failure) else max(pause, failure.wait)
            if not failure.retry or run.unusable >= run.UNUSABLE_LIMIT or pause >= run.asking.left:
                raise
            log.debug("%s Trying again after %.1f s.", failure, pause)
            run.tell(f"the next try ({str(failure).rstrip('.')})", pause)
            if is_stopped(pause, store.stands):
                raise


def after_failed_login(failure: WebkassaFailure, run: Run, store: KeyStore, stored: Stored) -> None:
    """Remember a refusal. If this was the login of step 7, store the token that is in hand where
    the row holds nothing better: no key, the key that our first login killed, or a dead one."""
    if failure.code == LOGIN_REFUSED:
        run.refusals.remember(stored)
    if not run.token:
        return
    worse = not stored.key or (run.first and stored.key == run.first.key)
    probe = run.webkassa.probe
    if worse or (probe(run.token) == ALIVE and probe(stored.key) == DEAD):
        with contextlib.suppress(Failure):
            store.store(stored, run.token, run.keeping, notify=False)
            run.stored, run.token, run.unanswered = stored._replace(key=run.token), NO_KEY, True


def is_stopped(seconds: float, meanwhile: Callable[[], object] = bool, deaf: bool = False) -> bool:
    """Wait between two tries, calling `meanwhile` every 10 s; say whether a signal ended it.

    A signal that was ignored from the start (nohup) ends nothing: held back, it would arrive.
    """
    heard = {number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    rest = Deadline(seconds)
    while not signal.sigtimedwait(set() if deaf else heard, min(rest.left, HEARTBEAT)):
        if not rest.left:
            return False
        meanwhile()
    return True


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# ---- Webkassa: authorize kills the key before it, probe asks whether a key is alive

# Error codes, from the vendor's manual and public integrations
UNKNOWN_ERROR, BAD_LOGIN, NOT_AUTHORIZED, OTHER_DOMAIN = -1, 1, 3, 505
DEAD_CODES = {2, 3}  # session expired, not authorized
ALIVE_CODES = {4, 5, 6, 7, 10, 11, 13}  # the token was accepted, the operation was not

ALIVE, DEAD, UNCLEAR, OFF = "alive", "dead", "unclear", "off"  # a probe's verdicts
LOGIN_REFUSED, NONSENSE = 77, 76  # exit codes
CONNECT_TIME, PROBE_TIME, HEARTBEAT = 5.0, 5.0, 10.0  # seconds
LOGIN_LIMIT, PROBE_LIMIT = 65536, 2**20  # bytes of an answer: the directory of units is long


class Webkassa:
    """The vendor, as one account sees it. `hosts` are asked in turn, the first of them now."""

    def __init__(self, account: Account) -> None:
        self.account, self.session = account, new_session(account.ca_file)
        self.hosts, self.asked = [host_of(account.auth_url)], set[str]()

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

    def authorize(self, deadline: Deadline, meanwhile: Callable[[], object]) -> Secret:
        """Log in once and return the token; raise a WebkassaFailure.

        An answer is waited for until the deadline: a login given up may still take effect, and its
        token is lost. `meanwhile` is called every 10 s.
        """
        login = {"Login": self.account.login.value, "Password": self.account.password.value}
        return read_token(self.host, self.post(self.url, login, deadline, meanwhile))

    def turn(self, failure: WebkassaFailure) -> bool:
        """Go on to the next host; say whether it was not asked yet. Raise `failure` if none is
        left: Webkassa serves the account on other hosts (505), and names none that we may ask."""
        here = self.hosts.pop(0)
        self.asked.add(here)
        known = {*self.asked, *self.hosts}
        others = failure.others
        self.hosts += [here] if others is None else [name for name in others if name not in known]
        if not self.hosts:
            raise failure
        return self.host not in self.asked

    def probe(self, key: Secret) -> str:
        """Ask a read-only directory with `key`, once, for 5 s at most; return a verdict.

        Only codes 2 and 3 condemn a key. That the directory refuses a dead key is not verified, so
        ALIVE is weaker than DEAD. It never raises: a token in hand must still be stored.
        """
        if not self.probe_url or not key:
            return OFF
        try:
            body = {"Token": key.value}
            answer = self.post(self.probe_url, body, Deadline(PROBE_TIME), limit=PROBE_LIMIT)
        except Exception as error:
            log.debug("Probe: %s", error if isinstance(error, Failure) else type(error).__name__)
            return UNCLEAR
        if answer.codes & DEAD_CODES:
            return DEAD
        good = 200 <= answer.status < 300 and isinstance(answer.body, dict) and not answer.errors
        return ALIVE if good or answer.codes & ALIVE_CODES else UNCLEAR

    def post(
        self,
        url: str,
        body: Any,
        deadline: Deadline,
        meanwhile: Any = bool,
        limit: int = LOGIN_LIMIT,
    ) -> Answer:
        """POST JSON; the API key goes to the host of Authorize only. Raise WebkassaFailure."""
        api_key = self.account.api_key if host_of(url) == self.host else NO_KEY
        headers = {"x-api-key": api_key.value} if api_key else {}
        return exchange(
            self.session, "POST", url, deadline, meanwhile, limit, json=body, headers=headers
        )


def read_token(host: str, answer: Answer) -> Secret:
    """Return the token of an answer to Authorize; raise a WebkassaFailure if it holds none."""
    codes, status = answer.codes, answer.status
    said = f"{host} answers HTTP {status}" + "".join(f", error code {c}" for c in sorted(codes))
    data = answer.body.get("Data") if isinstance(answer.body, dict) else None
    token = data.get("Token") if isinstance(data, dict) else None
    wait = seconds_asked(answer.headers.get("Retry-After", ""))
    if codes & {BAD_LOGIN, NOT_AUTHORIZED} or (status in (401, 403) and answer.is_vendors):
        raise WebkassaFailure(f"{said}: login refused.", code=LOGIN_REFUSED, retry=False)
    if OTHER_DOMAIN in (*codes, status):
        others = alternative_hosts(host, answer.headers.get("AlternativeDomainNames", ""))
        raise WebkassaFailure(f"{said}: this account is served on another host.", others=others)
    if status in (401, 403):
        raise WebkassaFailure(f"{said}: something in between refuses, or the API key.", wait=wait)
    if status in (408, 429):
        raise WebkassaFailure(f"{said}: it has no time for us.", wait=wait)
    if UNKNOWN_ERROR in codes or status >= 500:
        raise WebkassaFailure(f"{said}: it is failing.", wait=wait, sent=True)
    if codes or not 200 <= status < 300:
        facts = {"code": NONSENSE, "retry": status < 200, "sent": status < 200}
        raise WebkassaFailure(f"{said}: not an answer to a login.", **facts)
    if answer.errors or not isinstance(token, str) or not re.fullmatch("[!-~]{1,255}", token):
        login = answer.body is not None and not answer.errors
        said = f"{said}, but no usable token."
        raise WebkassaFailure(said, code=NONSENSE, wait=wait, sent=True, unusable=login)
    return Secret(token)


def exchange(
    session: requests.Session,
    method: str,
    url: str,
    end: Deadline,
    meanwhile: Any = bool,
    limit: int = LOGIN_LIMIT,
    **more: Any,
) -> Answer:
    """Send one request and return its answer; raise WebkassaFailure if none comes in time.

    Of its body `limit` bytes are read. A loopback address is never asked through a proxy: what goes
    there may be in clear. After an exchange that was odd, cut or failed its connection is not used
    again: a late answer would be taken for the answer to the next question.
    """
    loopback = is_loopback(urlsplit(url).hostname or "")
    more["proxies"] = {} if loopback else requests.utils.get_environ_proxies(url)
    more["timeout"] = (min(CONNECT_TIME, end.left), end.left + 1)
    if not end.left:
        raise WebkassaFailure(f"There was no time left to ask {host_of(url)}.")
    answer: Answer | None = None
    try:
        answer = in_time(end, meanwhile, fetch, session, method, url, limit, more)
    except Exception as error:
        raise no_answer(host_of(url), error) from None
    finally:
        if not (answer and 200 <= answer.status < 300 and answer.is_vendors):
            session.close()
    return answer


def fetch(
    session: requests.Session, method: str, url: str, limit: int, more: dict[str, Any]
) -> Answer:
    """Return the answer to a request. No redirect is followed."""
    with session.request(method, url, allow_redirects=False, stream=True, **more) as response:
        return Answer(response.status_code, response.headers, read_json(response.raw, limit))


def read_json(raw: Any, limit: int) -> Any:
    """Return the JSON object that a urllib3 response brings, or None. It is whole when its bytes
    are, however their transfer ends: what came is what counts."""
    content, value = bytearray(), None
    with contextlib.suppress(Exception):
        while not value and len(content) < limit:
            if not (piece := raw.read(limit, decode_content=False)):
                break
            content += piece
            plain = decompress(content, limit)
            value = parse_json(plain) if plain.rstrip()[-1:] == b"}" else None
        sock = raw.connection.sock  # if the end is here already, the probe needs no new connection,
        sock.settimeout(0)  # in which consumers would hold a dead key
        raw.read(1024)
        sock.settimeout(None)
    return value or parse_json(decompress(content, limit))


class PromptResponse(http.client.HTTPResponse):
    """An HTTP answer that skips interim ones (1xx; Python 3.10 to 3.14 skip but 100), and whose
    `read` returns what has come, instead of waiting for all that was announced."""

    def begin(self) -> None:
        super().begin()
        interim = self.status < 200
        while self.status < 200:
            self.headers = self.msg = None  # type: ignore[assignment]  # so that it reads on
            super().begin()
        self.will_close = self.will_close or interim

    def read(self, amt: int | None = None) -> bytes:
        if not amt or self.fp is None or self.length == 0:
            return super().read(amt)
        if self.chunked:
            return self.read1(amt)
        return super().read(min(amt, len(self.fp.peek(1)) or 1))


class PlainConnection(urllib3.connection.HTTPConnection):
    response_class = PromptResponse


class TlsConnection(urllib3.connection.HTTPSConnection):
    response_class = PromptResponse


class PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = PlainConnection


class TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = TlsConnection


class Adapter(requests.adapters.HTTPAdapter):
    """Has requests use connections whose answers are a PromptResponse."""

    def init_poolmanager(self, *args: Any, **more: Any) -> None:
        super().init_poolmanager(*args, **more)
        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": TlsPool}

    def proxy_manager_for(self, *args: Any, **more: Any) -> Any:
        manager = super().proxy_manager_for(*args, **more)
        manager.pool_classes_by_scheme = self.poolmanager.pool_classes_by_scheme
        return manager


def in_time(deadline: Deadline, meanwhile: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Return what `function(*args)` gives, or raise what it raises; TimeoutError at the deadline.

    The timeouts of requests are per read and leave out name resolution; libpq waits in C. So a
    thread does it, which is left behind if it is late.
    """
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    start_thread(put_result, results, function, args)
    while True:
        last = not deadline.left  # then a moment more: we may have been stopped, and it lies ready
        try:
            result, error = results.get(timeout=0.2 if last else min(deadline.left, HEARTBEAT))
        except queue.Empty:
            if last:
                raise TimeoutError from None
            meanwhile()
        else:
            if error:
                raise error
            return result


# ---- Key store: one row of a PostgreSQL table, found by looking, written by one at a time

NO_KEY = Secret("")
CLOCK_SLACK = 300.0  # seconds that a stored time may lie in the future and still count as now
YOUNG = 60.0  # seconds for which --if-key leaves a key alone
IN_TRANSACTION = psycopg2.extensions.TRANSACTION_STATUS_INTRANS

# The server ends a transaction of ours that falls silent for 30 s (a host that lost its power, a
# ghost behind a pooler); no standby may hold the commit back; in UTC, `clock_timestamp()` suits
# naive columns as it suits aware ones. A snapshot older than the lock would not see what it waited
# for, so READ COMMITTED. The server's own limits are lifted.
BEGIN = """
    BEGIN ISOLATION LEVEL READ COMMITTED;
    SET LOCAL idle_in_transaction_session_timeout = 30000;
    SET LOCAL synchronous_commit = local;
    SET LOCAL TimeZone = 'UTC';
    SET LOCAL statement_timeout = 0;
"""
LOCK_TIMEOUT = "SET LOCAL lock_timeout = %(limit)s;"
BEGIN_17 = "SET LOCAL transaction_timeout = 0;"  # what PostgreSQL 17 and newer know besides

# UPDATE when there is a row, else INSERT: with ON CONFLICT a NOT NULL column without a default
# breaks even the update
UPDATE_ROW = "UPDATE {table} SET api_key = %(token)s{times} WHERE service_name = %(service)s;"
INSERT_ROW = (
    "INSERT INTO {table} (service_name, api_key{times}) VALUES (%(service)s, %(token)s{now});"
)
# An error of our own, unless just the one row is there and right once all deferred has been called
CHANGED_KEY = "WK001"  # its SQLSTATE
CHECK_ROW = """
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
# Keeps the table's lock, which the end of the rehearsal would give back: no migration may come in
# between rehearsal and store
KEEP_TABLE_LOCK = (
    "EXPLAIN (FORMAT JSON) UPDATE {table} SET api_key = api_key WHERE service_name = %(service)s;"
)
NOTIFY = "SELECT pg_notify('webkassa_key_updated', %(service)s);"  # the payload is never the token


class KeyStore:
    """One transaction on the table; what is not committed is rolled back in the end.

    `patience` bounds all waits for others; `tell` hears of them. Methods raise StoreUnavailable
    or WriteRefused.
    """

    STATEMENT_TIME, COMMIT_TIME, ASK_TIME = 20.0, 15.0, 5.0  # seconds

    def __init__(
        self, account: Account, patience: Deadline, tell: Callable[[str, float], None]
    ) -> None:
        self.account, self.patience, self.tell = account, patience, tell
        self.table = NO_TABLE
        self.command, self.holder = "", "somebody"  # the last command's tag; who holds the lock
        self.notes: list[str] = []  # what a person should know once all is stored

    def __enter__(self) -> KeyStore:
        self.tell("PostgreSQL", self.patience.left)
        self.connection = connect(self.account, self.patience)
        self.connection.autocommit = True  # BEGIN and COMMIT are said here
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        if self.connection.info.transaction_status == IN_TRANSACTION:
            with contextlib.suppress(Failure):
                self.run("ROLLBACK", deadline=Deadline(1))
        self.connection.close()

    def run(
        self, statements: str | sql.Composable, values: Any = None, deadline: Deadline | None = None
    ) -> list[Any]:
        """Run statements in one message and return the rows of the last."""
        self.connection.deadline = deadline or self.patience.within(self.STATEMENT_TIME)
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(statements, values)
                self.command = cursor.statusmessage or ""
                return cursor.fetchall() if cursor.description else []
        except (psycopg2.Error, UnicodeError, TimeoutError) as error:
            raise database_failure(error, self.table, self.account, self.holder) from None

    def begin(self) -> None:
        """Begin a transaction, bound it, and find the table."""
        self.find(BEGIN + (BEGIN_17 if self.connection.server_version >= 170000 else ""))

    def find(self, before: str = "") -> None:
        values = {"schema": self.account.schema or None, "name": self.account.table}
        self.table = Table(*self.run(before + FIND_TABLE, values)[0])

    def look(self) -> Stored:
        """Return the row as it is now."""
        return self.read("", "") if is_fit(self.table) else Stored()

    def lock(self) -> Stored:
        """Take this service's lock until the transaction ends, lock its row, return it as it is then.

        The advisory lock works across hosts and behind a pooler; a row need not exist for it.
        """
        stored = self.read("SELECT pg_advisory_xact_lock(%(number)s);", "FOR NO KEY UPDATE")
        if not stored.exists:  # or deleted and inserted anew by somebody whom we waited for
            stored = self.read("", "FOR NO KEY UPDATE")
        if not stored.exists:
            refuse_look_alike(self)
        return stored

    def read(self, before: str, row_lock: str) -> Stored:
        times = [f"{name}::timestamptz" for name in (*self.table.times, "NULL")]
        select = SELECT_ROW.replace("{times}", ", ".join(times)).replace("{lock}", row_lock)
        rows = self.run_waiting(before + select, self.account.service)
        if len(rows) > 1:
            raise many_rows(len(rows), self.table)
        if not rows:
            return Stored()
        key, changed, age = rows[0]
        known = age if age is not None and age > -CLOCK_SLACK else None
        return Stored(True, Secret(key or ""), known, changed)

    def run_waiting(self, statements: str, lock: str) -> list[Any]:
        """Run statements that may wait for somebody's lock; after a second find out whose it is.

        `lock` names the advisory lock, whose number is %(number)s.
        """
        digest = hashlib.sha256(f"webkassa_key_updater:{lock}".encode()).digest()
        number = int.from_bytes(digest[:8], "big", signed=True)
        values = {"number": number, "service": self.account.service, "oid": self.table.oid}
        text = "SAVEPOINT waiting;" + LOCK_TIMEOUT + statements
        query = sql.SQL(text).format(table=self.table.identifier)
        try:
            return self.run(query, {**values, "limit": 1000}, self.patience)
        except LockBusy:
            ((self.holder,),) = self.run("ROLLBACK TO SAVEPOINT waiting;" + LOCK_HOLDER, values)
            self.tell(f"the lock held by {self.holder}", self.patience.left)
            log.debug("%s waits for the lock held by %s.", self.account.service, self.holder)
            return self.run(query, {**values, "limit": self.patience.milliseconds}, self.patience)

    def stands(self) -> bool:
        """Ask whether the transaction, and with it the lock, still stands."""
        try:
            self.run("SELECT 1", deadline=Deadline(self.ASK_TIME))
        except Failure:
            return False
        return bool(self.connection.info.transaction_status == IN_TRANSACTION)

    def rehearse(self, stored: Stored) -> None:
        """Run the very statements that will store the token, with a stand-in, and take them back."""
        self.run_bounded(KEEP_TABLE_LOCK, {}, self.patience)
        length = max(32, len(stored.key.value))
        stand_in = Secret(os.urandom(length).hex()[:length])
        after = NOTIFY + "ROLLBACK TO SAVEPOINT rehearsal"
        self.write("SAVEPOINT rehearsal;", stored, stand_in, after, self.patience)

    def store(self, stored: Stored, token: Secret, keeping: Deadline, notify: bool) -> None:
        """Store the token and commit, in one message. A full queue of NOTIFY shows at the commit
        alone: so a further try does without."""
        after = (NOTIFY if notify else "") + "COMMIT"
        self.write("", stored, token, after, keeping.within(self.COMMIT_TIME))
        if self.command != "COMMIT":  # of an aborted transaction it says ROLLBACK, and no error
            raise StoreUnavailable("PostgreSQL rolled the transaction back.")

    def write(
        self, before: str, stored: Stored, token: Secret, after: str, deadline: Deadline
    ) -> None:
        """Write `token` into the row, call up what waits for the commit, read it back."""
        times = self.table.times
        if stored.exists:
            now = "".join(f", {name} = clock_timestamp()" for name in times[:1])
            write = UPDATE_ROW.replace("{times}", now)
        else:
            names, now = "".join(f", {name}" for name in times), ", clock_timestamp()" * len(times)
            write = INSERT_ROW.replace("{times}", names).replace("{now}", now)
        self.run_bounded(before + write + CHECK_ROW + after, {"token": token.value}, deadline)

    def run_bounded(self, statements: str, values: dict[str, str], deadline: Deadline) -> None:
        """Run statements on the service's row, which may wait for somebody's lock meanwhile."""
        query = sql.SQL(LOCK_TIMEOUT + statements).format(table=self.table.identifier)
        bound = {"service": self.account.service, "limit": deadline.milliseconds}
        self.run(query, {**values, **bound}, deadline)


class Connection(psycopg2.extensions.connection):
    """A connection whose every wait ends with its `deadline`."""

    def __init__(self, dsn: str, deadline: Deadline) -> None:
        self.deadline = deadline
        super().__init__(dsn)


def wait(connection: Connection) -> None:
    """Wait for PostgreSQL, as psycopg2's wait callback; raise TimeoutError at the deadline.

    That closes the connection and cancels nothing: a COMMIT on its way may go through.
    """
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        file = [connection.fileno()]
        reading, writing = (file, []) if state == psycopg2.extensions.POLL_READ else ([], file)
        if select(reading, writing, [], connection.deadline.left) == ([], [], []):
            raise TimeoutError


# ---- Below here nothing changes a key

# ---- The table and the server, found by looking

SELECT_ROW = """
    SELECT api_key::text, to_char(changed, 'YYYY-MM-DD HH24:MI:SS "UTC"'),
           CASE WHEN isfinite(changed) THEN extract(epoch FROM clock_timestamp() - changed)::float8 END
    FROM (SELECT api_key, coalesce({times}) AS changed FROM {table}
          WHERE service_name = %(service)s {lock}) AS r
"""
FIND_TABLE = """
    SELECT current_database()::text, current_user::text, oid, coalesce(nspname, %(schema)s,
           current_schema(), 'public')::text, coalesce(relname, %(name)s)::text, found,
           coalesce(columns, '{}'), coalesce(constraints, '[]')
    FROM (VALUES (1)) AS one LEFT JOIN LATERAL (
        SELECT c.oid, nspname, relname, relname = %(name)s AND CASE WHEN %(schema)s IS NULL
                   THEN pg_table_is_visible(c.oid) ELSE nspname = %(schema)s END AS found,
               (SELECT json_object_agg(attname, ARRAY[format_type(atttypid, atttypmod),
                                                      typcategory::text])
                FROM pg_attribute JOIN pg_type t ON t.oid = atttypid
                WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns,
               (SELECT json_agg(conname) FROM pg_constraint WHERE conrelid = c.oid) AS constraints
        FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        WHERE relkind IN ('r', 'p', 'v', 'f') AND nspname !~ '^(pg_|information_schema$)'
          AND lower(relname) = lower(%(name)s)
          AND (%(schema)s IS NULL OR lower(nspname) = lower(%(schema)s))
        ORDER BY found DESC LIMIT 1) AS t ON true
"""
CREATE_TABLE = """
    CREATE TABLE IF NOT EXISTS {table} (id serial PRIMARY KEY,
        service_name varchar(50) UNIQUE NOT NULL, api_key varchar(255) NOT NULL,
        user_id varchar(255), created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now())
"""
OTHER_ROWS = """
    SELECT service_name::text, lower(btrim(service_name)) = lower(btrim(%(service)s))
    FROM {table} WHERE service_name <> %(service)s ORDER BY 2 DESC LIMIT 9
"""
LOCK_HOLDER = """
    SELECT coalesce(string_agg(format('process %%s (%%s, %%s) since %%s UTC', pid, usename,
           application_name, coalesce(to_char(xact_start, 'HH24:MI:SS'), '?')), ', '), 'somebody')
    FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND datname = current_database() AND pid IN (
        SELECT pid FROM pg_locks WHERE granted AND (
            locktype = 'relation' AND relation = %(oid)s AND mode <> 'AccessShareLock'
            OR locktype = 'advisory' AND (classid::bigint << 32 | objid::bigint) = %(number)s))
"""


class Table(NamedTuple):
    """Where the keys are. `found`: False if it has only a like name, None if there is none."""

    database: str
    role: str
    oid: int | None
    schema: str
    name: str
    found: bool | None
    columns: dict[str, list[str]]  # the type of each, and the category of that
    constraints: list[str]

    @property
    def shown(self) -> str:
        return f"{self.database}.{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """Its quoted name, for `KeyStore.run`, where a % would start a placeholder."""
        return sql.Identifier(self.schema.replace("%", "%%"), self.name.replace("%", "%%"))

    @property
    def times(self) -> list[str]:
        """Its columns for the time of a change; an update sets the first."""
        return [n for n in ("updated_at", "created_at") if self.columns.get(n, "  ")[1] == "D"]

    @property
    def grants(self) -> str:
        """What its role needs, as the table's owner says it."""
        role, schema, name = map(quoted, (self.role, self.schema, self.name))
        if self.found is None:
            return f"\nAs its owner run:\n  GRANT USAGE, CREATE ON SCHEMA {schema} TO {role};\n"
        return (
            f"\nAs the table's owner run:\n  GRANT USAGE ON SCHEMA {schema} TO {role};\n"
            f"  GRANT SELECT, INSERT, UPDATE ON {schema}.{name} TO {role};\n"
            f"  GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role};\n"
        )


def many_rows(count: int, table: Table) -> WriteRefused:
    advice = "Delete all but one of them, then run: `check`"
    return WriteRefused(f"The table {table.shown} has {count} rows of this service.", advice=advice)


NO_TABLE = Table("", "", None, "", "", None, {}, [])


class Stored(NamedTuple):
    """The row of a service: its key, and its age by the database's clock."""

    exists: bool = False
    key: Secret = NO_KEY
    age: float | None = None  # seconds; None: not known
    changed: str | None = None  # UTC

    @property
    def described(self) -> str:
        """Fingerprint and age, for a person."""
        return self.key.fingerprint + ("" if self.age is None else f", {self.age / 3600:.1f} h old")


def quoted(name: str) -> str:
    """Return a name as SQL wants it."""
    return name if re.fullmatch("[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


def create_missing_table(store: KeyStore, commit: bool = True) -> None:
    """Create the table if there is none of that name, and commit that before anything else. Two
    first runs at once both go on: the second finds what the first has made."""
    if store.table.found is not None:
        return
    store.run_waiting("SELECT pg_advisory_xact_lock(%(number)s);" + CREATE_TABLE, "table")
    if commit:
        store.run("COMMIT")
        log.info("%s: made the missing table %s.", store.account.service, store.table.shown)
        store.begin()
    else:
        store.find()


def is_fit(table: Table) -> bool:
    """Say whether there is a table; raise WriteRefused for one that cannot serve."""
    short = f"{table.schema}.{table.name}"
    if table.found is None:
        return False
    if not table.found:
        what = f"The table is not found by its name, but {short} is there."
        advice = (
            f"Set API_KEYS_TABLE={short}, or to a new one. If it may not be read:{table.grants}"
        )
        raise WriteRefused(what, advice=f"{advice}Then run: `check`")
    for column in ("service_name", "api_key"):
        if column not in table.columns:
            raise WriteRefused(f"The table {short} has no column {column}.")
    kind, category = table.columns["api_key"]
    if category != "S":
        raise WriteRefused(f"The column api_key of {short} must be text, but it is {kind}.")
    return True


def other_rows(store: KeyStore) -> list[tuple[str, bool]]:
    """Return names of other rows; first those that differ from ours in case or blanks alone."""
    query = sql.SQL(OTHER_ROWS).format(table=store.table.identifier)
    return store.run(query, {"service": store.account.service})


def refuse_look_alike(store: KeyStore) -> None:
    """The wanted row is missing: raise WriteRefused if another one differs by a hair."""
    service, where = store.account.service, store.table.shown
    for name, alike in other_rows(store)[:1]:
        if alike:
            advice = "Set WEBKASSA_SERVICE_NAME to the row that consumers read. Then run: `check`"
            raise WriteRefused(f"{where} has no row {service!r}, but {name!r}.", advice=advice)
        store.notes.append(f"The row is new in {where}, beside {name!r}.")


def connect(account: Account, patience: Deadline) -> Connection:
    """Try hosts and their addresses one by one, for 5 s each: with a wait callback, libpq would
    wait for the first of them only. Raise StoreUnavailable."""
    psycopg2.extensions.set_wait_callback(wait)
    parameters = {"client_encoding": "UTF8", "fallback_application_name": "webkassa_key_updater"}
    for name, value in account.database.items():
        if name not in ADDRESS:
            parameters[name] = value.value if isinstance(value, Secret) else value
    failures = []
    for place in places(account.database, patience):
        deadline = patience.within(CONNECT_TIME)
        try:
            dsn = psycopg2.extensions.make_dsn(**parameters | place)
            return cast(Connection, in_time(deadline, bool, Connection, dsn, deadline))
        except (psycopg2.Error, UnicodeError, OSError) as error:
            failures.append(connect_failure(account, place, error))
    raise next((f for f in failures if "is there" in str(f)), failures[-1])


def places(database: Mapping[str, Any], patience: Deadline) -> Iterator[dict[str, str]]:
    """Yield host, hostaddr and port of each address that the parameters name, as libpq reads them.
    A name that cannot be resolved is left to libpq."""
    lists = [str(database.get(name, "")).split(",") for name in ADDRESS]
    for i in range(max(len(lists[0]), len(lists[1]))):
        values = [entries[min(i, len(entries) - 1)] for entries in lists]
        place = {name: value for name, value in zip(ADDRESS, values, strict=True) if value}
        found, host = [], place.get("host", "/")
        if "hostaddr" not in place and not host.startswith(("/", "@")) and not is_address(host):
            deadline = patience.within(CONNECT_TIME)
            with contextlib.suppress(OSError):
                found = in_time(deadline, bool, socket.getaddrinfo, host, 0, 0, socket.SOCK_STREAM)
        yield from [place | {"hostaddr": str(info[4][0])} for info in found] or [place]


ADDRESS = ("host", "hostaddr", "port")


def host_of(url: str) -> str:
    """Return host and port of a URL."""
    return urlsplit(url).netloc.lower()


def with_host(url: str, host: str) -> str:
    return urlunsplit(urlsplit(url)._replace(netloc=host))


def is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (
        is_address(host) and ipaddress.ip_address(host).is_loopback
    )


def alternative_hosts(host: str, header: str) -> list[str]:
    """Return the hosts of an AlternativeDomainNames header that may see the password: those of the
    vendor, and that only while `host`, which names them, is the vendor's."""
    vendors = re.compile(r"([a-z0-9-]+\.)+webkassa\.kz")
    if not vendors.fullmatch(host.removesuffix(":443")):
        return []
    return [name for name in re.split(r"[,\s]+", header.lower()) if vendors.fullmatch(name)]


def seconds_asked(retry_after: str) -> float:
    """Return the seconds that a Retry-After header asks for; its other form, a date, counts not."""
    return float(retry_after) if re.fullmatch(r"\d+(\.\d+)?", retry_after, re.ASCII) else 0.0


class Answer(NamedTuple):
    """An HTTP answer; `body` is the JSON in it, None where there is none."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def is_vendors(self) -> bool:
        return isinstance(self.body, dict) and not {"Errors", "Data"}.isdisjoint(self.body)

    @property
    def errors(self) -> Any:
        return self.body.get("Errors") if isinstance(self.body, dict) else None

    @property
    def codes(self) -> set[int]:
        errors = self.errors if isinstance(self.errors, list) else [self.errors]
        found = [str(error.get("Code")) for error in errors if isinstance(error, dict)]
        numbers = [re.fullmatch(r" *(-?[0-9]{1,9})(\.0)? *", code) for code in found]
        return {int(number[1]) for number in numbers if number}


def new_session(ca_file: str) -> requests.Session:
    """Return a session that follows its caller alone: no ~/.netrc, no proxy but by `exchange`."""
    session = requests.Session()
    session.trust_env, session.verify = False, ca_file or True
    session.headers["User-Agent"] = f"webkassa-key-updater/{__version__}"
    session.headers["Accept-Encoding"] = "identity"
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter())
    return session


def decompress(content: bytearray, limit: int) -> bytes | bytearray:
    """Return what an answer holds, `limit` bytes at most. It may be compressed, though we asked for
    the contrary; what its Content-Encoding says is not believed."""
    with contextlib.suppress(zlib.error):
        if content[:2] == b"\x1f\x8b":  # gzip
            return zlib.decompressobj(wbits=31).decompress(content, limit)
    return content


def parse_json(content: bytes | bytearray) -> Any:
    """Return the first JSON object in `content`, or None while its end is missing."""
    text = content.decode("utf-8-sig", "replace")  # a Russian Text may be cp1251
    with contextlib.suppress(ValueError, RecursionError):
        return json.JSONDecoder().raw_decode(text, text.index("{"))[0]
    return None


def put_result(results: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        results.put((function(*args), None))
    except Exception as error:
        results.put((None, error))


def start_thread(function: Callable[..., None], *args: Any) -> None:
    """Start a thread that takes no signal: one that it took would end the process unasked."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        threading.Thread(target=function, args=args, daemon=True).start()
    except RuntimeError:
        raise StoreUnavailable("This machine can start no thread more.") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# ---- What happened, in sentences of our own: the libraries' texts carry URLs, bodies and tokens

NOW = "Run again now: `update`"
LOGIN_NAMES = "WEBKASSA_LOGIN, WEBKASSA_PASSWORD or WEBKASSA_API_KEY"
CODES = {  # exit codes: in short, and what to do now
    69: ("Webkassa cannot be reached or is failing", "Try again later: `update`"),
    70: ("a bug", "Please report it. How the key stands: `status`"),
    73: ("the database refuses the write", "Mend the table, then run: `check`"),
    75: ("no database, or no lock", "When it is back, run: `update`"),
    76: ("an answer without sense", "Look at WEBKASSA_AUTH_URL, then run: `check`"),
    77: ("login refused", f"Correct {LOGIN_NAMES}, then run: `update`"),
    78: ("the settings are wrong", "Mend them, then run: `check`"),
}


def advice_for(failure: Failure) -> str:
    return failure.advice or CODES[failure.code][1]


def said_stored(run: Run, store: KeyStore) -> str:
    """Say what was stored, where, and in place of what; warn of what is odd about it."""
    host, old = run.webkassa.host, "where none was"
    odd = (
        (not re.fullmatch("[0-9a-f]{32}", run.token.value), "It looks unlike the keys so far."),
        (run.verdict == UNCLEAR, "Whether it works could not be probed."),
        (run.unanswered, "A login before it got no answer and may end it yet: look again soon."),
        (run.stores > 1, "Storing took more than one try; perhaps nobody was notified."),
        (host != host_of(run.account.auth_url), f"Set WEBKASSA_AUTH_URL={run.webkassa.url}"),
        (host in TEST_HOSTS, f"{host} is Webkassa's TEST system: its keys serve no shop."),
    )
    for note in (*store.notes, *(what for is_so, what in odd if is_so)):
        log.warning("%s: %s", run.account.service, note)
    if run.first and run.first.key:
        old = f"in place of {run.first.described}"
    return f"stored the new key {run.token.fingerprint} from {host} in {store.table.shown} {old}"


TEST_HOSTS = {"devkkm.webkassa.kz", "127.0.0.1:1332"}  # vendor's test system; its local module's


def look_back(run: Run, _: object, error: Exception | None, __: object) -> None:
    """Note how the stored key stands after an update that failed, while signals are held back."""
    if error:
        run.said = said_after_failure(run, error if isinstance(error, Failure) else bug(error))


def said_after_failure(run: Run | None, failure: Failure) -> str:
    """Say how the stored key stands after an update that failed, and what to do now."""
    advice, said = advice_for(failure), ""
    urgent = NOW if failure.code in (69, 75, 76) and not failure.advice else advice
    if not run or not run.asked:
        return f"Nothing was asked of Webkassa; the stored key is as it was. {advice}"
    key, new = run.stored.key, run.token.fingerprint
    if run.token:
        said = f"Webkassa gave the key {new}, but it could not be stored and is lost. "
        urgent = f"Mend it. {NOW}"
    if not key:
        return f"{said}No key is stored. {urgent}"
    if not said and not run.unanswered:
        return f"The stored key {key.fingerprint} is as it was. {advice}"
    killed = run.token and run.first and key == run.first.key
    verdict = DEAD if killed else run.webkassa.probe(key)
    if verdict != ALIVE:
        sure = "is" if verdict == DEAD else "may be"
        return f"{said}The stored key {key.fingerprint} {sure} dead. {urgent}"
    late = "but the login just sent may still end it. Look again in some minutes: `status`"
    return f"{said}The stored key {key.fingerprint} still works, {late}\n{failure.advice}".rstrip()


def cannot_tell(stored: Stored, verdict: str) -> Failure:
    """Say that --if-needed knows neither the age of the key nor whether it works."""
    what = f"and the row of the key {stored.key.fingerprint} holds no usable time of change."
    if verdict != OFF:
        return WebkassaFailure(f"Whether the stored key works could not be probed, {what}")
    advice = "Let the probe be on, or give the table a column updated_at. Then run: `check`"
    return SettingsFault(f"WEBKASSA_PROBE_URL: is off, {what}", advice=advice)


def called_dead(webkassa: Webkassa) -> WebkassaFailure:
    """Say that the probe refuses a key that Webkassa has just given."""
    what = (
        f"{webkassa.host} gave a key, but {host_of(webkassa.probe_url)} calls it dead: not stored."
    )
    advice = f"Is WEBKASSA_PROBE_URL of the same system as WEBKASSA_AUTH_URL? {NOW}"
    return WebkassaFailure(what, code=NONSENSE, sent=True, unusable=True, advice=advice)


DEFAULT_AUTH_URL = "https://api.webkassa.kz/api/Authorize"
CLOCK, HOST = "Is the clock of this machine right?", "Is the host in the URL right?"
EMPTY_BUNDLE = "{} cannot be asked: REQUESTS_CA_BUNDLE holds no certificate"
NO_ANSWER = (  # what is seen in the error, what it means for the host, what to look at
    ("verify_code 9", "The certificate of {} is not valid yet", CLOCK),
    ("verify_code 10", "The certificate of {} has expired",
     f"{CLOCK} If so, the host's owner must renew it."),
    ("verify_code 62", "The certificate of {} has another name", HOST),
    ("verify_code 64", "The certificate of {} has another name", HOST),
    ("SSLCertVerificationError", "The certificate of {} comes from an unknown issuer",
     "Does a proxy read along? Then its certificate belongs in REQUESTS_CA_BUNDLE."),
    ("no proxy", "{} cannot be reached through the proxy", ""),
    ("gaierror", "{} has a name that cannot be resolved", ""),
    ("NewConnectionError", "{} refuses the connection, or there is no network", ""),
    ("ConnectTimeoutError", "{} accepts no connection", ""),
    ("InvalidURL", "{} cannot be asked: the URL of the proxy is wrong", "Mend it."),
    ("InvalidSchema", "{} cannot be asked: SOCKS proxies do not serve", "Mend it."),
    ("reason WRONG_SIGNATURE_TYPE", "{} needs weak TLS",
     f"Set WEBKASSA_AUTH_URL={DEFAULT_AUTH_URL}"),
    ("reason WRONG_VERSION_NUMBER", "{} speaks no TLS there", "Is the URL, is the proxy right?"),
    ("reason UNSUPPORTED_PROTOCOL", "{} speaks an old TLS only", "Is the URL, is the proxy right?"),
    ("reason NO_CERTIFICATE_OR_CRL_FOUND", EMPTY_BUNDLE, "Mend it."),
    ("bare OSError", EMPTY_BUNDLE, "Mend it."),
)  # fmt: skip


def no_answer(host: str, error: BaseException | None) -> Failure:
    """Say why there is no answer, and whether the request can have reached its goal."""
    if isinstance(error, Failure):  # there is no thread for it
        return error
    seen, cause = set[str](), error
    while cause is not None:  # from the outermost to the innermost
        seen |= {kind.__name__ for kind in type(cause).__mro__}
        seen |= {f"{name} {getattr(cause, name, None)}" for name in ("verify_code", "reason")}
        if type(cause) is OSError and cause.errno is None:  # requests' own, or a proxy's refusal
            seen.add("bare OSError")
        inner = (getattr(cause, "reason", None), *cause.args, cause.__cause__, cause.__context__)
        cause = next((wrapped for wrapped in inner if isinstance(wrapped, BaseException)), None)
    if "ProxyError" in seen and seen & {"bare OSError", "ConnectTimeoutError"}:
        seen.add("no proxy")
    for sign, what, look in NO_ANSWER:
        if sign in seen:
            advice = f"{look} Then run: `check`" if look else ""
            return WebkassaFailure(f"{what.format(host)}.", advice=advice)
    what = "broke the connection off"
    if seen & {"TimeoutError", "Timeout"}:
        what = "does not answer in time"
    elif "SSLError" in seen:
        what = "and this machine do not agree on TLS"
    return WebkassaFailure(f"{host} {what}.", sent=True)


def connect_failure(account: Account, place: dict[str, str], error: Exception) -> StoreUnavailable:
    """Say why PostgreSQL cannot be reached. Its own words follow the server's language, so whether
    somebody listens is tried again."""
    shown = {n: v for n, v in {**account.database, **place}.items() if isinstance(v, str)}
    names = ("service", "host", "port", "dbname", "user")
    where = " ".join(f"{name}={shown[name]}" for name in names if name in shown)
    at = place.get("hostaddr") or place.get("host") or "/var/run/postgresql"  # psycopg2-binary's
    port, is_socket = int(place.get("port", 5432)), at.startswith(("/", "@"))
    what = "cannot be reached: nobody listens there, or nobody answers"
    if not is_socket and not is_address(at):
        what = "has a name that cannot be resolved"
    elif listens(f"{at}/.s.PGSQL.{port}".replace("@", "\0", 1) if is_socket else (at, port)):
        what = "is there, but does not let us in: role, password, database, TLS, no free place"
        if isinstance(error, TimeoutError):
            what = "accepts the connection, but does not answer"
    advice = "To see why: psql " + shlex.quote(psycopg2.extensions.make_dsn(**shown))
    if not account.database:  # libpq's defaults may be meant, but seldom are
        advice = "No database setting is set: is the # still before POSTGRES_HOST and the others?"
    what = f"PostgreSQL ({where or 'at the default address'}) {what}."
    return StoreUnavailable(what, advice=f"{advice}\nThen run: `check`")


def listens(at: str | tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as file:
        if isinstance(at, str):
            file.settimeout(2)
            file.connect(at)
        else:
            socket.create_connection(at, 2).close()
        return True
    return False


def is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host.partition("%")[0]))
    return False


# SQLSTATE, or its class: what passes by itself. A full disk (53100) does not
PASSING = re.compile("08|40|53(?!100)|57|25006|25P0[234]|23505")


def database_failure(error: Exception, table: Table, account: Account, holder: str) -> Failure:
    """Name an error by its SQLSTATE and by names that the catalog has: its text can carry a key,
    and so can a name that a trigger made up."""
    state = getattr(error, "pgcode", None)
    if state is None:
        return StoreUnavailable("The connection to PostgreSQL broke, or no answer came in time.")
    if state == "55P03":
        return LockBusy(f"The lock, the row or the table is held too long by {holder}.")
    diag = error.diag  # type: ignore[attr-defined]
    known = {table.schema, table.name, *table.columns, *table.constraints}
    names = (diag.schema_name, diag.table_name, diag.column_name, diag.constraint_name)
    shown = ", ".join([state, *(name for name in names if name in known)])
    with contextlib.suppress(KeyError):
        shown = f"{psycopg2.errorcodes.lookup(state).lower()} {shown}"
    kinds = ", ".join(f"{n} is {table.columns.get(n, '?')[0]}" for n in ("service_name", "api_key"))
    what, advice = {
        "0A000": ("it is a view that cannot be locked? Set API_KEYS_TABLE to the table behind", ""),
        "22001": (f"a column is too short: {kinds}", ""),
        CHANGED_KEY: ("a trigger or row-level security drops or changes the new key", ""),
        "22P05": (f"its encoding lacks characters of {account.service!r}", ""),
        "25006": ("it is read-only for now, a standby or in a failover", ""),
        "42501": ("a right is missing", f"{table.grants}Then run: `check`"),
        "53100": ("its disk is full", "Make room on the disk of PostgreSQL, then run: `check`"),
        "53300": ("it has no free connection", ""),
    }.get(state, ("", ""))
    kind = StoreUnavailable if PASSING.match(state) else WriteRefused
    refuses = "cannot serve now" if kind is StoreUnavailable else "refuses the write"
    said = f"{what} ({shown})" if what else shown
    return kind(f"PostgreSQL {refuses}: {said}.", advice=advice)


# ---- The memory of refusals: a login that Webkassa refused is not sent again and again


class Refusals:
    """A note of the last refused login of a row: a salted fingerprint of all that it is made of,
    read and written under the lock. If it cannot be read or written, there is none."""

    LIFE = 86400.0  # seconds

    def __init__(self, account: Account) -> None:
        self.account = account
        place = sorted((name, str(value)) for name, value in account.database.items())
        row = json.dumps([account.service, account.schema, account.table, place])
        name = hashlib.sha256(row.encode()).hexdigest()[:16]
        self.file = Path(account.state_folder) / f"refused-{name}.json"

    def mark(self, salt: str) -> str:
        """Return the fingerprint; it is slow to make, so that nobody tries passwords on it."""
        login = (self.account.login, self.account.password, self.account.api_key)
        text = json.dumps([self.account.auth_url, *(part.value for part in login)])
        return hashlib.pbkdf2_hmac("sha256", text.encode(), salt.encode(), 200_000).hex()

    def recall(self, stored: Stored) -> None:
        """Raise WebkassaFailure if this login was refused within a day, for the same stored key."""
        since = ""
        with contextlib.suppress(Exception):
            note = json.loads(self.file.read_text()) if self.file.is_file() else {}
            same = note["key"] == stored.key.fingerprint and note["mark"] == self.mark(note["salt"])
            if same and 0 <= time.time() - note["time"] < self.LIFE:
                since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(note["time"]))
        if since:
            what = f"Webkassa refused this login at {since}; it was not sent again."
            raise WebkassaFailure(what, code=LOGIN_REFUSED)

    def remember(self, stored: Stored) -> None:
        salt, key = os.urandom(16).hex(), stored.key.fingerprint
        note = {"salt": salt, "mark": self.mark(salt), "key": key, "time": time.time()}
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(0o700, parents=True, exist_ok=True)
            self.file.touch(0o600)
            self.file.write_text(json.dumps(note))

    def forget(self) -> None:
        with contextlib.suppress(OSError):
            self.file.unlink(missing_ok=True)


# ---- Settings: the environment, then the file; every fault at once, by its name

POSTGRES = {  # settings and libpq's parameters; then its own variables, and the same
    "POSTGRES_HOST": "host", "POSTGRES_PORT": "port", "POSTGRES_DB": "dbname",
    "POSTGRES_USER": "user", "POSTGRES_PASSWORD": "password",
}  # fmt: skip
LIBPQ = {
    f"PG{parameter.upper().replace('_', '').replace('DBNAME', 'DATABASE')}": parameter
    for parameter in (
        "host", "hostaddr", "port", "dbname", "user", "password", "passfile", "options", "sslmode",
        "sslrootcert", "sslcert", "sslkey", "sslcrl", "channel_binding", "target_session_attrs",
        "service",
    )
}  # fmt: skip
# Of one of many accounts: never inherited; of all: may be in a file that NAME_FILE names
OWN = {"WEBKASSA_LOGIN", "WEBKASSA_PASSWORD", "WEBKASSA_SERVICE_NAME", "HEALTHCHECK_URL"}
IN_FILES = {"WEBKASSA_LOGIN", "WEBKASSA_PASSWORD", "WEBKASSA_API_KEY", "POSTGRES_PASSWORD",
            "DATABASE_URL", "HEALTHCHECK_URL"}  # fmt: skip
NAMES = {*OWN, *IN_FILES, *POSTGRES, "WEBKASSA_AUTH_URL", "WEBKASSA_PROBE_URL", "WEBKASSA_MAX_AGE",
         "WEBKASSA_DEADLINE", "API_KEYS_TABLE"}  # fmt: skip
MEANT = {  # what others call a setting that decides which host or which database is used
    "WEBKASSA_AUTH_URL": "WEBKASSA_(BASE_|API_|AUTHORIZE_|LOGIN_)?(URL|HOST|DOMAIN|ENDPOINT)",
    "POSTGRES_HOST": "POSTGRES_(SERVER|HOSTNAME|ADDRESS)",
    "POSTGRES_PORT": "POSTGRES_PORTS",
    "POSTGRES_DB": "POSTGRES_(DATABASE|NAME|DBNAME|DB_NAME|DATABASE_NAME)",
    "POSTGRES_USER": "POSTGRES_(USERNAME|LOGIN|ROLE)",
    "DATABASE_URL": "(POSTGRES|WEBKASSA)_(URL|URI|DSN|DATABASE_URL)",
    "API_KEYS_TABLE": "API_KEYS?_(.*_)?TABLE.*",
}
QUOTES = {*"\"'`\u201c\u201d\u201e\u201f\u00ab\u00bb\u2018\u2019"}
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode: control, format, surrogate, separators
PLACEHOLDER = re.compile(r"<.+>|(.*/)?your[ _-].+|change[ _-]?me|x{3,}|\*{3,}|\.{3}|.+//user:password@.+",
                         re.IGNORECASE)  # fmt: skip
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def read_text(path: Path, limit: int = 2**24) -> str:
    """Return the text of a file; raise ValueError, a sentence, if it has none for us."""
    try:
        if not stat.S_ISREG(path.stat().st_mode) or path.stat().st_size > limit:
            raise ValueError("is no regular file (a folder, a pipe?), or too long")
        text = path.read_bytes().decode("utf-8-sig")
        if "\0" in text:
            raise UnicodeError
        return text
    except UnicodeError:
        raise ValueError("is not UTF-8 text; save it as UTF-8") from None
    except FileNotFoundError:
        raise ValueError("does not exist") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None


def read_env_file(path: Path, faults: list[str]) -> dict[str, str]:
    """Parse a settings file with python-dotenv, without interpolation; add what is wrong with it
    to `faults`: a line by its number, never by its text."""
    values: dict[str, str] = {}
    try:
        text = read_text(path)
    except ValueError as error:
        faults.append(f"{path}: {error}")
        return values
    for binding in dotenv.parser.parse_stream(io.StringIO(text)):
        source, key = binding.original.string, binding.key or ""
        line = binding.original.line + source[: len(source) - len(source.lstrip())].count("\n")
        if binding.error or "=" in key or (key and binding.value is None):
            faults.append(f"{path}: line {line} is not NAME=value")
        elif key and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", key):
            faults.append(f"{path}: line {line}: its name has a character that belongs in no name")
        elif binding.value:
            values[key] = binding.value
    return values


def read_secret_files(values: dict[str, str], faults: list[str]) -> None:
    """Put into `values` what the files named by NAME_FILE hold, but for a newline at the end."""
    for name in sorted(IN_FILES):
        file = values.get(f"{name}_FILE")
        if file and name in values:
            faults.append(f"{name}_FILE: is set, and so is {name}: which one counts?")
        if file:
            try:
                values[name] = read_text(Path(file), 65536).removesuffix("\n")
            except ValueError as error:
                faults.append(f"{name}_FILE: its file {error}")


def find_unknown(path: Path, file: Iterable[str], values: Iterable[str], faults: list[str]) -> None:
    """Warn of names of the file that look like ours and are none. It is a fault where one seems to
    decide which host or which database is used."""
    others = {
        "WEBKASSA_ACCOUNTS_DIR",
        "WEBKASSA_KEY_COMMAND",
        *(f"{name}_FILE" for name in IN_FILES),
    }
    for name in sorted({*file} - NAMES - others):
        if name.startswith(("WEBKASSA_", "POSTGRES_", "API_KEYS", "HEALTHCHECK")):
            meant = [ours for ours, others in MEANT.items() if re.fullmatch(others, name)]
            near = [*meant, *difflib.get_close_matches(name, NAMES, 1, 0.5), "no setting"][0]
            if near in MEANT and near not in values:
                faults.append(f"{name}: is not known; is {near} meant?")
            else:
                log.warning("%s: %s: is not known; is %s meant?", path, name, near)


class Reader:
    """Reads settings of all kinds from a mapping of names to texts, and collects their faults."""

    def __init__(self, values: Mapping[str, str], faults: list[str]) -> None:
        self.values, self.faults = {n: value for n, value in values.items() if value}, faults

    def fault(self, name: str, what: str) -> None:
        self.faults.append(f"{name}: {what}")

    def text(self, name: str, default: str = "", required: bool = False) -> str:
        """Return any text, as of a password."""
        value = self.values.get(name, default)
        hidden = [c for c in value if unicodedata.category(c) in HIDDEN]
        if required and not value:
            self.fault(name, "is not set")
        elif PLACEHOLDER.fullmatch(value):
            self.fault(name, "is still a placeholder")
        elif hidden:
            self.fault(name, f"contains the invisible character U+{ord(hidden[0]):04X}")
        return value

    def name(self, name: str, default: str = "", required: bool = False) -> str:
        """Return a text in which quotes or blanks at an end are an oversight."""
        value = self.text(name, default, required)
        if value != value.strip() or QUOTES & {value[:1], value[-1:]}:
            self.fault(name, "has a quote or a blank at its beginning or end")
        return value

    def url(self, name: str, default: str = "", plain_http: bool = False) -> str:
        """Return a URL, or "", with what is safe to put right put right: https://, double slashes
        and /api/api."""
        text = self.name(name, default)
        try:
            parts = urlsplit(text if "://" in text else f"https://{text}")
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            self.fault(name, "is not a URL")
            return default
        what, http = "", parts.scheme == "http" and (plain_http or is_loopback(host))
        if text and (not host or not re.fullmatch("[!-~]+", parts.netloc)):
            what = "has no host, or one that is not plain ASCII"
        elif "@" in parts.netloc:
            what = "must not carry a login or password"
        elif parts.scheme != "https" and not http:
            what = "must be https (http only to this very machine)"
        if what:
            self.fault(name, what)
            return default
        path = re.sub("/{2,}", "/", parts.path).rstrip("/")
        path = re.sub(r"^(/api)+(?=/|$)", "/api", path, flags=re.IGNORECASE)
        return text and urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))

    def duration(self, name: str, default: str, shortest: int, longest: int) -> float:
        """Return seconds."""
        match = re.fullmatch(r"(\d{1,7})([smhd]?)", self.text(name, default), re.ASCII)
        seconds = int(match[1]) * UNITS[match[2]] if match else 0
        if not shortest <= seconds <= longest:
            self.fault(name, f"is not a duration like {default}, from {shortest}s to {longest}s")
        return seconds


def read_account(values: Mapping[str, str], faults: list[str]) -> Account:
    """Given all settings by name, and the faults known so far, return the account they describe;
    raise SettingsFault with all that is wrong."""
    read = Reader(values, faults)
    auth_url = read.url("WEBKASSA_AUTH_URL", DEFAULT_AUTH_URL)
    api_key = read.name("WEBKASSA_API_KEY")
    probe_url = re.sub("Authorize$", "references/RefUnits", auth_url, flags=re.IGNORECASE)
    if "WEBKASSA_PROBE_URL" in read.values:
        probe_off = read.values["WEBKASSA_PROBE_URL"].lower() == "off"
        probe_url = "" if probe_off else read.url("WEBKASSA_PROBE_URL")
        if probe_url and not urlsplit(probe_url).path:
            read.fault("WEBKASSA_PROBE_URL", 'is neither a full URL nor "off"')
    path, query = urlsplit(auth_url).path, urlsplit(auth_url).query
    if query or not re.fullmatch(r"(/.*)?/api/(v\d+/)?Authorize", path, re.IGNORECASE):
        read.fault("WEBKASSA_AUTH_URL", "must end in /api/Authorize or /api/v4/Authorize")
    if "/v4/" in path and not api_key:
        read.fault("WEBKASSA_API_KEY", "is not set, and WEBKASSA_AUTH_URL has /v4/, which needs it")
    if not re.fullmatch("[!-~]*", api_key):
        read.fault("WEBKASSA_API_KEY", "must be printable ASCII without spaces")
    table = read.name("API_KEYS_TABLE", "api_keys").split(".")
    if (
        len(table) > 2
        or not all(table)
        or any(t != t.strip(" \"'`") or re.search("[:/@]", t) for t in table)
    ):
        read.fault("API_KEYS_TABLE", "is neither a table nor schema.table")
    ca_file = values.get("REQUESTS_CA_BUNDLE", "")
    if ca_file and not os.access(ca_file, os.R_OK):
        read.fault("REQUESTS_CA_BUNDLE", "there is no such file, or it cannot be read")
    home = values.get("HOME") or os.path.expanduser("~")
    state = f"{values.get('XDG_STATE_HOME') or f'{home}/.local/state'}/webkassa-key-updater"
    account = Account(
        login=Secret(read.name("WEBKASSA_LOGIN", required=True)),
        password=Secret(read.text("WEBKASSA_PASSWORD", required=True)),
        auth_url=auth_url, api_key=Secret(api_key), probe_url=probe_url,
        service=read.name("WEBKASSA_SERVICE_NAME", "Webkassa"),
        max_age=read.duration("WEBKASSA_MAX_AGE", "24h", 1, 366 * 86400),
        deadline=read.duration("WEBKASSA_DEADLINE", "120s", 10, 300),
        database=read_database(read), schema="".join(table[:-1]), table=table[-1], ca_file=ca_file,
        state_folder=values.get("STATE_DIRECTORY", "").split(":")[0] or state,
        healthcheck_url=monitor_of(read),
    )  # fmt: skip
    if faults:
        raise settings_fault(values, faults)
    return account


def monitor_of(read: Reader) -> Secret:
    return Secret(read.url("HEALTHCHECK_URL", plain_http=True))


def settings_fault(values: Mapping[str, str], faults: list[str]) -> SettingsFault:
    listed = "".join(f"\n  {fault}" for fault in dict.fromkeys(faults))
    monitor = monitor_of(Reader(values, []))
    return SettingsFault(f"The settings are wrong:{listed}", healthcheck_url=monitor)


def read_database(read: Reader) -> dict[str, str | Secret]:
    """Return libpq's parameters: of DATABASE_URL, or else of POSTGRES_*, and of PG*."""
    by_url = "DATABASE_URL" in read.values
    given = parse_database_url(read) if by_url else {}
    names = dict.fromkeys(given, "DATABASE_URL")
    has_file = "service" in given or "PGSERVICE" in read.values  # which says the rest
    ours, theirs = {} if by_url else POSTGRES, {"PGSERVICE": "service"} if has_file else LIBPQ
    for name, parameter in (ours | theirs).items():
        if parameter not in given and name in read.values:
            given[parameter], names[parameter] = read.text(name), name
    for parameter in ("host", "user", "dbname"):
        if any(map(is_odd, given.get(parameter, "").split(","))):
            read.fault(names[parameter], "holds a character that belongs to a URL; not shown here")
    for port in given.get("port", "1").split(","):
        if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or not 0 < int(port) < 65536:
            read.fault(names["port"], "the port is no number from 1 to 65535")
    return {n: Secret(v) if n in ("password", "sslpassword") else v for n, v in given.items()}


def is_odd(name: str) -> bool:
    """Say whether a host, user or database may be a URL or a password in the wrong line."""
    odd = re.search("[:/@;&=]", name) and not name.startswith(("/", "@"))
    return bool(odd) and not is_address(name)


def parse_database_url(read: Reader) -> dict[str, str]:
    """Return libpq's parameters of a URL as SQLAlchemy, Heroku and libpq spell it."""
    url = re.sub(r"^(postgres(?:ql)?)\+\w+:", r"\1:", read.text("DATABASE_URL"))  # with a driver
    if re.match(r"[^:]+://([^/?]*@[^/?]*@|[^/?]*/[^?]*@)", url):  # it would end up in the host
        read.fault("DATABASE_URL", "@, / and : of the password must be percent-encoded")
        return {}
    with contextlib.suppress(psycopg2.Error, UnicodeError):
        return dict(psycopg2.extensions.parse_dsn(url))
    read.fault("DATABASE_URL", "is not a connection string that libpq understands")
    for name in re.findall(r"[?&]([A-Za-z_]{1,30})=", url):
        try:
            psycopg2.extensions.parse_dsn(f"postgresql:///?{name}=1")
        except psycopg2.Error:
            instead = "set API_KEYS_TABLE=schema.table" if name == "schema" else "take it out"
            read.fault("DATABASE_URL", f"libpq does not know its parameter {name}: {instead}")
    return {}


# ---- Check and status: they never authorize

LEVELS, UNKNOWN = ("OK", "WARNING", "CRITICAL", "UNKNOWN"), 3  # exit codes of monitoring plug-ins
WARNING_AGE, CRITICAL_AGE = 25 * 3600, 49 * 3600  # seconds: a daily key, with an hour to spare
CHECK_TIME, STATUS_TIME = 10.0, 5.0  # seconds


def check(account: Account, tell: Callable[[str, float], None]) -> Iterator[tuple[str, str, int]]:
    """Try everything but authorizing; change nothing. Yield, for each thing that was tried, "ok",
    "WARN" or "FAIL", what about it, and the exit code."""
    webkassa, stored = Webkassa(account), None
    lines = [("ok", f"settings: service {account.service}", 0)]
    try:
        with KeyStore(account, Deadline(CHECK_TIME), tell) as store:
            there = "no table yet" if store.table.found is None else "table, no row yet"
            version = store.run("SHOW server_version")[0][0]
            at = store.connection.info
            where = f"{at.host or 'the default socket'}:{at.port}, {store.table.shown}"
            lines.append(("ok", f"database: PostgreSQL {version} at {where}", 0))
            create_missing_table(store, commit=False)
            store.look()
            found = store.lock()
            lines.append(("ok", "lock: taken", 0))
            store.rehearse(found)
            there = "row" if found.exists else there
            lines.append(("ok", f"write: rehearsed and taken back ({there})", 0))
            lines += [("WARN", f"table: {what}", 0) for what in oddities(store)]
            stored = found
    except Failure as failure:
        step = ("database", "table", "write", "write")[len(lines) - 1]
        step = "lock" if isinstance(failure, LockBusy) else step
        lines.append(("FAIL", f"{step}: {failure} {advice_for(failure)}", failure.code))
    yield from lines
    yield check_host(webkassa.session, webkassa.url, "webkassa")
    if stored:
        verdict = webkassa.probe(stored.key)
        level, what = judge(stored, verdict)
        good = verdict in (ALIVE, OFF) and level in ("OK", "UNKNOWN")
        yield "ok" if good else "WARN", "stored key: " + what.replace("\n", ". "), 0
    if account.healthcheck_url:
        yield check_host(webkassa.session, account.healthcheck_url.value, "monitor")


def oddities(store: KeyStore) -> Iterator[str]:
    """Yield what an update gets along with, but a person should know of the table."""
    if not store.table.times:
        yield "it has no column updated_at or created_at, so no age is known"
    size = re.search(r"\((\d+)\)", store.table.columns["api_key"][0])
    if size and int(size[1]) < 64:
        yield f"api_key holds {size[1]} characters; longer keys may come"
    for name, alike in other_rows(store):
        if alike:
            yield f"beside the row there is {name!r}; do consumers read that one?"


def check_host(session: requests.Session, url: str, name: str) -> tuple[str, str, int]:
    """Reach a host, with TLS, without credentials and without a path that means anything."""
    host = host_of(url)
    try:
        exchange(session, "HEAD", f"{urlsplit(url).scheme}://{host}/", Deadline(CHECK_TIME))
    except Failure as failure:
        advice = advice_for(failure).replace("`update`", "`check`")
        return "FAIL", f"{name}: {failure} {advice}", failure.code
    if host in TEST_HOSTS:
        return "WARN", f"{name}: {host} answers; it is Webkassa's TEST system", 0
    return "ok", f"{name}: {host} answers", 0


def judge(stored: Stored, verdict: str) -> tuple[str, str]:
    """Given a stored key and the probe's verdict, return a monitoring level and a sentence."""
    key = f"key {stored.described}"
    if not stored.key:
        return "CRITICAL", f"no key is stored\n{NOW}"
    if verdict == DEAD:
        return "CRITICAL", f"{key}: it is dead\n{NOW}"
    if stored.age is None:
        return "UNKNOWN", f"{key}; the probe says {verdict}; its row holds no usable time of change"
    if stored.age > WARNING_AGE:
        level = "CRITICAL" if stored.age > CRITICAL_AGE else "WARNING"
        return level, f"{key}: older than 25 h; the probe says {verdict}\n{NOW}"
    return "OK", f"{key}; the probe says {verdict}"


def status(account: Account | SettingsFault) -> dict[str, Any]:
    """Return how an account stands: its "status", a "message", and facts; within some seconds."""
    facts: dict[str, Any] = {}
    try:
        if isinstance(account, SettingsFault):
            raise account
        facts["service"] = account.service
        with KeyStore(account, Deadline(STATUS_TIME), lambda what, seconds: None) as store:
            stored = store.look()
        verdict = Webkassa(account).probe(stored.key)
        level, what = judge(stored, verdict)
        age = None if stored.age is None else round(stored.age)
        facts |= {"fingerprint": stored.key.fingerprint, "age_seconds": age}
        facts |= {"changed": stored.changed, "probe": verdict}
    except Failure as failure:
        level, what = "UNKNOWN", f"{failure}\n{advice_for(failure)}"
    return facts | {"status": level, "message": what}


# ---- Many accounts: each in a forked child of its own, so that they cannot mix


def read_accounts(
    folder: str, values: Mapping[str, str], faults: list[str]
) -> list[tuple[str, Account | SettingsFault]]:
    """Return the accounts of a folder with their names; a SettingsFault for one with wrong
    settings. Raise SettingsFault for what would make accounts disturb one another."""
    base = {name: value for name, value in values.items() if name not in OWN}
    found: dict[str, Account | SettingsFault] = {}
    owners: dict[tuple[Any, ...], str] = {}
    for path in sorted(Path(folder).glob("[!.]*.env")):  # an editor's own files are hidden
        wrong: list[str] = []
        own = read_env_file(path, wrong)
        if not re.fullmatch("[a-z0-9][a-z0-9_-]{0,39}", path.stem):
            faults.append(f"{path}: the name of an account is a-z, 0-9, - and _, 40 at most")
        others = sorted(own.keys() - NAMES)
        for name in others:  # it may be a password
            shown = (
                name if re.match("WEBKASSA|POSTGRES|API_|HEALTH|PG|https?_", name, re.I) else "what"
            )
            faults.append(f"{path}: {shown} is not an account's own: it goes elsewhere")
        row = {"WEBKASSA_SERVICE_NAME": f"Webkassa:{path.stem}"}
        if any(name.startswith("POSTGRES_") for name in own):  # a database of its own
            row["DATABASE_URL"] = own["DATABASE_URL"] = own.get("DATABASE_URL", "")
        try:
            account = found[path.stem] = read_account(row | base | own, wrong)
        except SettingsFault as fault:
            found[path.stem] = SettingsFault(f"{path}: {fault}", **vars(fault))
            continue
        hosts = str(account.database.get("host", "localhost")).lower().split(",")
        near = [is_loopback(host) or host.startswith(("/", "@")) or host for host in hosts]
        parts = [account.database.get(name, usual) for name, usual in PLACE.items()]
        where = (tuple(near), *parts, account.database.get("dbname", account.database.get("user")))
        login = host_of(account.auth_url).removesuffix(":443"), account.login.value.casefold()
        for mark in (
            ("row", account.service, account.schema or "public", account.table, where),
            ("login", *login),
        ):
            other = owners.setdefault(mark, path.name)
            if other != path.name:
                faults.append(f"{folder}: {other} and {path.name} have one {mark[0]}")
    if not found:
        faults.append(f"{folder}: holds no account, that is no file NAME.env")
    if faults:
        raise settings_fault(values, faults)
    return list(found.items())


PLACE = {"port": "5432", "hostaddr": "", "service": ""}


class Crew:
    """Runs `work(name, account)` for each account in a forked child, `jobs` at a time. By name,
    `codes` are the exit codes; `reasons` tell why, where a child could not. `heard` is called when
    a signal says to stop."""

    def __init__(
        self, accounts: list[tuple[str, Any]], jobs: int, heard: Callable[[], None]
    ) -> None:
        self.waiting, self.jobs, self.heard, self.stopped = accounts, jobs, heard, False
        self.running: dict[int, str] = {}
        self.codes: dict[str, int] = {}
        self.reasons: dict[str, str] = {}

    def run(self, work: Callable[[str, Any], int]) -> Iterator[str]:
        """Yield the name of each account that is done."""
        stops = {number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
        for number in stops:
            signal.signal(number, self.stop)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, there would be nothing to wait for
        gc.freeze()
        while True:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
            while self.waiting and len(self.running) < self.jobs and self.start(work, stops, mask):
                pass
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if not self.running:
                return
            pid, status = os.wait()
            if pid in self.running:  # the first process of a container inherits strangers
                name, code = self.running.pop(pid), os.waitstatus_to_exitcode(status)
                if self.stopped and -code in stops:
                    self.note(name, StoreUnavailable.code, "told to stop")
                elif code < 0:
                    self.note(name, Failure.code, f"killed by signal {-code}")
                else:
                    self.note(name, code, "")
                yield name

    def note(self, name: str, code: int, reason: str) -> None:
        self.codes[name], self.reasons[name] = code, reason

    def start(self, work: Callable[[str, Any], int], stops: set[Any], mask: set[Any]) -> bool:
        """Fork for the next account; return False where another must end before it. A child takes
        signals as a single run does."""
        name, account = self.waiting.pop(0)
        try:
            pid = os.fork()
        except OSError as error:  # no process more, or no memory
            if self.running:
                self.waiting.insert(0, (name, account))
            else:
                self.note(name, StoreUnavailable.code, f"not tried: {error}")
            return not self.running
        if pid:
            self.running[pid] = name
            return True
        code = Failure.code
        try:
            for number in stops:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = work(name, account)
        except Exception as error:
            log.error("%s: %s", name, bug(error))
        finally:
            os._exit(code)

    def stop(self, number: int, _: object) -> None:
        """Start no more, and let the running ones end as a single run does."""
        waiting, self.waiting, first, self.stopped = self.waiting, [], not self.stopped, True
        for name, _ in waiting:  # meanwhile a second signal may come
            self.note(name, StoreUnavailable.code, "not tried: told to stop")
        if first:
            self.heard()
        for pid in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


# ---- Command line: nothing above touches the environment or the terminal


class Parser(argparse.ArgumentParser):
    """A parser whose help is the text at the top of this file."""

    usage_code = 2

    def format_help(self) -> str:
        return __doc__ or ""

    def error(self, message: str) -> NoReturn:
        self.exit(self.usage_code, f"webkassa_key_updater.py: {message}; see --help\n")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(allow_abbrev=False)
    if "status" in argv:
        parser.usage_code = UNKNOWN  # for a monitor, 2 would be CRITICAL
    commands = ("update", "check", "status")
    parser.add_argument("command", nargs="?", default="update", choices=commands)
    parser.add_argument("--env-file")
    wishes = parser.add_mutually_exclusive_group()
    wishes.add_argument("--if-needed", action="store_const", const="", dest="wish")
    wishes.add_argument("--if-key", dest="wish")
    parser.add_argument("--accounts-dir")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(argv)
    if options.wish is not None and options.command != "update":
        parser.error("--if-needed and --if-key go with update")
    if options.json and options.command != "status":
        parser.error("--json goes with status")
    if "" in (options.env_file, options.accounts_dir):
        parser.error("--env-file and --accounts-dir need a name")
    shard = re.fullmatch(r"(\d{1,6})/(\d{1,6})", options.shard, re.ASCII)
    options.shard = (int(shard[1]), int(shard[2])) if shard else (0, 0)
    if options.shard[0] >= options.shard[1] or not 1 <= options.jobs <= 256:
        parser.error("--shard wants I/N, with I from 0 to N-1; --jobs 1 to 256")
    if options.wish == "-":
        options.wish = read_line().strip().lower()
    if not re.fullmatch("([0-9a-f]{8})?", options.wish or ""):
        parser.error("--if-key wants the fingerprint of a key, 8 hex digits")
    options.wish = Run.ALWAYS if options.wish is None else options.wish or Run.IF_NEEDED
    return options


def read_line() -> str:
    """Return what comes first from standard input, within 10 s: it may be a socket, with somebody
    silent at its other end."""
    with contextlib.suppress(OSError):
        came = select([0], [], [], CHECK_TIME)[0]
        return os.read(0, 100).decode("ascii", "replace").partition("\n")[0] if came else "nothing"
    return ""


def say(text: str, file: Any = None, end: str = "\n") -> None:
    """Print, whether or not anybody can read it: the exit code is the truth all the same."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=file, end=end, flush=True)


class Terminal:
    """Tells a person who waits, after 3 s, for what and for how long; and that Ctrl-C was heard.
    It writes from a thread of its own: a terminal may block, and the update must not."""

    def __init__(self) -> None:
        self.wait = ("", Deadline(0), Deadline(0))
        if os.isatty(2):  # standard error, which may also be closed
            with contextlib.suppress(Failure):
                start_thread(self.watch)

    def tell(self, what: str, seconds: float) -> None:
        patience = self.wait[2] if self.wait[0] == what else Deadline(3)  # of one wait, in parts
        self.wait = (what, Deadline(seconds), patience)

    def watch(self) -> None:
        told, heard = self.wait, False
        while True:
            time.sleep(0.1)
            what, end, patience = wait = self.wait
            if wait is not told and not patience.left:
                told = wait
                say(f"Waiting for {what}, {end.left:.0f} s at most ...", sys.stderr)
            if not heard and signal.SIGINT in signal.sigpending():
                heard = True
                say("Ctrl-C: it ends as soon as no key can be lost any more ...", sys.stderr)


class Command:
    """Does what was typed, and says how it went."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.accounts_dir
        self.name, self.shares = "", dict[str, str]()  # of many accounts: this one; where each is
        self.is_update = options.command == "update"

    def run(self) -> int:
        """Return the exit code."""
        account: Account | SettingsFault
        try:
            values, faults = self.load_settings()
            if self.folder:
                return self.do_many(values, faults)
            if self.options.shard != (0, 1):
                faults.append("--shard is for many accounts: WEBKASSA_ACCOUNTS_DIR is not set")
            if "WEBKASSA_LOGIN" not in values and not os.path.exists(self.settings_file):
                faults.append(".env: is missing; use --env-file FILE or the environment")
            account = read_account(values, faults)
        except SettingsFault as fault:
            account = fault
        if self.options.command == "status":
            return self.print_status([status(account)])
        return self.do_one(account, Terminal().tell)

    @property
    def settings_file(self) -> Path:
        beside = Path(__file__).resolve().with_name(".env").resolve()  # in an image it is a link
        return Path(self.options.env_file or beside)

    def load_settings(self) -> tuple[dict[str, str], list[str]]:
        """Return the settings by name, and what is wrong with their file. Make them the
        environment, for libpq and requests."""
        faults, from_file = list[str](), dict[str, str]()
        path = self.settings_file
        if self.options.env_file or os.path.exists(path):
            from_file = read_env_file(path, faults)
        if faults and not from_file:
            raise settings_fault(os.environ, faults)
        values = from_file | {name: value for name, value in os.environ.items() if value}
        find_unknown(path, from_file, values, faults)
        for name in os.environ.keys() - values.keys():
            del os.environ[name]
        os.environ.update(values)
        read_secret_files(values, faults)
        self.folder = self.folder or values.get("WEBKASSA_ACCOUNTS_DIR")
        return values, faults

    def as_typed(self, text: str, name: str = "") -> str:
        """Put the program as it was called, with its settings, in the place of `command`. Of many
        accounts, an update is to be of the one called `name`, or must leave the good keys alone."""
        words = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
        words += ["--env-file", self.options.env_file] if self.options.env_file else []
        program = os.environ.get("WEBKASSA_KEY_COMMAND") or shlex.join(words)
        if self.options.accounts_dir:
            program += " --accounts-dir " + shlex.quote(self.options.accounts_dir)
        share = self.shares.get(name or self.name, " --if-needed" if self.folder else "")
        text = text.replace("`update`", f"{program} update{share}")
        return re.sub("`(check|status)`", lambda match: f"{program} {match[1]}", text)

    def do_one(self, account: Account | SettingsFault, tell: Callable[[str, float], None]) -> int:
        """Update or check one account; return the exit code."""
        if isinstance(account, Account) and not self.is_update:
            return self.print_check(account, tell)
        name, run, failure = "", None, None
        try:
            if isinstance(account, SettingsFault):
                raise account
            name, run = self.label(account), Run(account, self.options.wish, tell)
            log.info("%s%s.", name, update(run))
        except Exception as error:
            failure = error if isinstance(error, Failure) else bug(error)
            gap = "\n" if "\n" in str(failure) else " "
            said = (run and run.said) or said_after_failure(run, failure)
            said = f"{name}{failure}{gap}{said}"
            log.error("%s", self.as_typed(said))
        code = failure.code if failure else 0
        if self.is_update:
            tell("the monitor", CHECK_TIME)
            ping(account.healthcheck_url, code)
        return code

    def label(self, account: Account) -> str:
        """Return the row's name, with the account's where that does not tell it."""
        is_told = not self.name or f":{account.service}".endswith(f":{self.name}")
        return f"{account.service}: " if is_told else f"{self.name}, {account.service}: "

    def print_check(self, account: Account, tell: Callable[[str, float], None]) -> int:
        """Print each result of a check; return the exit code of the first that failed."""
        first, name = 0, self.label(account) if self.folder else ""
        for word, text, code in check(account, tell):
            say(self.as_typed(f"{word:5} {name}{text}"))
            first = first or code
        return first

    def print_status(self, reports: list[dict[str, Any]]) -> int:
        """Print how things stand like a monitoring plug-in, or as JSON; return the worst level."""
        worst_first = ("CRITICAL", "WARNING", "UNKNOWN", "OK")
        reports.sort(key=lambda report: worst_first.index(report["status"]))
        for report in reports:
            report["message"] = self.as_typed(report["message"])
        worst = reports[0] if reports else {"status": "OK", "message": "nothing to do"}
        word, what = worst["status"], worst["message"]
        accounts = [report for report in reports if {"account", "service"} & report.keys()]
        if "account" in worst:
            good = sum(report["status"] == "OK" for report in reports)
            what = f"{good} of {len(reports)} accounts are well; {worst['account']}: {what}"
        if self.options.json:
            say(json.dumps({"status": word, "message": what, "accounts": accounts}, indent=2))
            return LEVELS.index(word)
        ages = [age for report in reports if (age := report.get("age_seconds")) is not None]
        data = f"|age={max(ages)}s;{WARNING_AGE};{CRITICAL_AGE}" if ages else ""
        first, *more = what.replace("|", "/").splitlines()  # a | would begin the performance data
        say("\n".join([f"WEBKASSA {word} - {first}{data}", *more]))
        for account in accounts:
            shown = [f"{n} {v}" for n, v in account.items() if n not in ("status", "message")]
            shown += [f"{account['status']}: {account['message']}"] if self.folder else []
            say(", ".join(shown).replace("|", "/").replace("\n", " "))
        return LEVELS.index(word)

    def do_many(self, values: dict[str, str], faults: list[str]) -> int:
        """Do it for every account of the folder; return the exit code."""
        monitor, (number, shards) = monitor_of(Reader(values, faults)), self.options.shard
        everyone = read_accounts(self.folder, values, faults)
        for place, (name, _) in enumerate(everyone):
            self.shares[name] = f" --shard {place}/{len(everyone)}"
        accounts = everyone[number::shards]
        crew = Crew(accounts.copy(), self.options.jobs, heard)
        with open(os.memfd_create("reports"), "rb+", buffering=0) as file:  # the children's
            for _ in crew.run(functools.partial(self.do_child, file.fileno())):
                if os.isatty(2):
                    say(f"{len(crew.codes)} of {len(accounts)} accounts", sys.stderr, end="\r")
            file.seek(0)
            reports = file.readall().splitlines()
        if self.options.command == "status":
            return self.print_status(list(reports_of(crew, reports)))
        code = self.sum_up(crew)
        if self.is_update:
            ping(monitor, code)
        return code

    def sum_up(self, crew: Crew) -> int:
        """Say which accounts are not done, and why; return their common code, or 71."""
        bad, said = {name: code for name, code in sorted(crew.codes.items()) if code}, ""
        for name, code in bad.items():
            reason = crew.reasons[name] or CODES[code][0]
            if self.is_update and reason.startswith("killed"):
                reason += f". Its stored key may be dead. {NOW}"
            said += self.as_typed(f"\n  {name}: {code}, {reason}", name)
        done = f"{len(crew.codes) - len(bad)} of {len(crew.codes)} accounts: done"
        level = logging.ERROR if bad else logging.INFO
        log.log(level, "%s%s%s", done, "; not done:" if bad else ".", said)
        return 71 if len(set(bad.values())) > 1 else next(iter(bad.values()), 0)

    def do_child(self, file: int, name: str, account: Account | SettingsFault) -> int:
        """Do it for one of many accounts, in a process of its own; return the exit code."""
        self.name = name
        if self.options.command == "status":
            end = os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_APPEND)  # over nobody else's
            report = status(account)
            report["message"] = self.as_typed(report["message"])
            os.write(end, json.dumps([name, report]).encode() + b"\n")
            return 0
        if self.options.verbose:  # the steps of all come mixed
            log.handlers[0].setFormatter(logging.Formatter(f"%(levelname)s: {name}: %(message)s"))
        return self.do_one(account, lambda what, seconds: None)


def reports_of(crew: Crew, lines: list[bytes]) -> Iterator[dict[str, Any]]:
    """Yield what the children wrote of their accounts; one may have been killed, or had no room."""
    found = dict[str, Any]()
    for line in lines:
        with contextlib.suppress(ValueError):
            found |= dict([json.loads(line)])
    for name, reason in sorted(crew.reasons.items()):
        lost = {"status": LEVELS[UNKNOWN], "message": f"No report: {reason or 'it failed'}"}
        yield {"account": name} | found.get(name, lost)


def heard() -> None:
    """Tell who pressed Ctrl-C; in a handler of signals, where `say` might be at work."""
    with contextlib.suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\nIt ends as soon as no key can be lost any more ...\n")


def ping(url: Secret, code: int) -> None:
    """Tell a Healthchecks-compatible monitor how it ended; never change how it ends."""
    said = ""
    try:
        if url:
            whole = re.sub(r"/*(\?.*)?$", ("/fail" if code else "") + r"\1", url.value, count=1)
            session = new_session(os.environ.get("REQUESTS_CA_BUNDLE", ""))
            answer = exchange(session, "GET", whole, Deadline(CHECK_TIME))
            said = "" if 200 <= answer.status < 300 else f"it answers HTTP {answer.status}."
    except Exception as error:
        said = str(error) if isinstance(error, Failure) else type(error).__name__
    if said:
        log.warning("The monitor at HEALTHCHECK_URL could not be told: %s", said)


def bug(error: Exception) -> Failure:
    """Say where a bug struck, not what the exception says: that can carry secrets."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__} in {frame.name}, {Path(frame.filename).name}:{frame.lineno}"
    return Failure(f"A bug of this program: {where}.")


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`; return the exit code (see the text at the top)."""
    options = parse_arguments(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # None where it is closed
        sys.stdout.reconfigure(errors="backslashreplace")
    log.handlers, log.propagate = [logging.StreamHandler()], False
    log.handlers[0].setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    log.setLevel(logging.DEBUG if options.verbose else logging.INFO)
    try:
        return Command(options).run()
    except Exception as error:
        log.error("%s", bug(error))
        return UNKNOWN if options.command == "status" else Failure.code


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
