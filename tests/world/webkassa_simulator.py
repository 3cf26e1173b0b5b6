#!/usr/bin/env python3
"""A Webkassa that behaves like the vendor, as far as it is known, and misbehaves on demand.

usage: python tests/world/webkassa_simulator.py [--port PORT] [--v4] [--authorize WHAT ...]
                                                [--probe WHAT ...]

A login kills the token before it. A dead token is answered with code 2 over HTTP 200, a wrong
password with code 1. Paths with /v4/ want the API key. Prints settings that lead to it, then
what it is asked and what it does, until Ctrl-C. The password and the API key are invented.

options:
  --port PORT       listen on this port of 127.0.0.1 (default: a free one)
  --v4              print the settings of /v4/, with its API key (both paths always work)
  --authorize WHAT  misbehave at the next login; may be repeated, one after another
  --probe WHAT      the same for the probe (references/RefUnits); late and same are for logins

WHAT is one of these; 3*WHAT is the same three times:
  good                  the usual answer
  hang                  log in, and never answer
  slow:SECONDS          log in at once, answer later
  late:SECONDS          never answer, and log in only then: kills whatever token lives by then
  late-hang-up:SECONDS  the same, but hang up at once
  late-answer:SECONDS   log in only then, and answer
  drip:SECONDS          a byte every so many seconds
  cut                   half of the answer, then hang up
  flood                 an answer without end
  status:NUMBER         this HTTP status, nothing in it, and no login
  code:NUMBER           this error code over HTTP 200, and no login
  same                  the token that was given before, once more
  lower-case            {"data": {"token": ...}}
  long                  a Content-Length that is too long, then hang up
  long-open             the same, and leave the connection open
  chunked               chunks without the last one, then hang up
  chunked-open          the same, and leave the connection open
  no-length             no length, and leave the connection open
  gzip                  compressed, though nobody asked for it
  false-gzip            said to be compressed, and is not
"""

# In a test:
#
#     with Simulator() as webkassa:
#         webkassa.script.append(answer(503))      # the next login; the one after is good again
#         webkassa.probe_script.append(hang())     # the same for the probe
#         webkassa.verdict = lambda token: UNCLEAR # what probes say of a token, from now on
#         webkassa.enroll("b@example.kz", "pass") # another account, with a live token of its own
#         webkassa.scripts["b@example.kz"].append(answer(503))  # its next login
#         ... webkassa.url, webkassa.live, webkassa.authorizations, webkassa.calls, webkassa.events

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import json
import re
import secrets
import shlex
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn

LOGIN = "cashier@example.kz"
PASSWORD = "canary-pass-$HOME-${USER}-пароль"  # never to be seen in any output
API_KEY = "canary-api-key-5f1d"


def errors(code: object) -> dict[str, Any]:
    return {"Errors": [{"Code": code, "Text": "Неверный логин, ключ или пароль"}]}


# What a probe can say of a token
ALIVE: dict[str, Any] = {"Data": [{"Name": "piece", "Code": 796}]}
DEAD = errors(2)
UNCLEAR = errors(-1)


@dataclasses.dataclass
class Call:
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    client_port: int  # one port, one connection


@dataclasses.dataclass
class Event:
    """`what` is asked (a login), login (a token was issued), probe or answer (its last byte)."""

    what: str
    token: str | None  # the one issued or probed
    said: str  # of a probe: alive, dead, ...; of an answer: which request it is for
    at: float  # time.monotonic, the same in all processes of a machine
    clock: float  # time.time, to compare with a server's
    login: str | None = None  # whose token or question it is, where that is known


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet an answer
    server: Server
    login: str | None = None  # of the latest request to log in

    def log_message(self, *_: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.server.webkassa.connections.add(self.connection)

    def finish(self) -> None:
        self.server.webkassa.connections.discard(self.connection)
        with contextlib.suppress(OSError):  # the other side is gone
            super().finish()

    def do_POST(self) -> None:
        webkassa = self.server.webkassa
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            body = json.loads(raw)
        except ValueError:
            body = raw
        headers = {name.lower(): value for name, value in self.headers.items()}
        webkassa.calls.append(Call(self.command, self.path, headers, body, self.client_address[1]))
        webkassa.act(self, body)

    do_GET = do_HEAD = do_POST  # noqa: N815 (the names that http.server wants)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in (fields | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.complete()

    def raw(self, *fields: str, body: bytes, end: bool = True) -> None:
        """Send this head and body as they are; with `end` the body is the whole answer."""
        head = "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *fields, ""))
        self.wfile.write(head.encode() + body)
        if end:
            self.complete()
        else:
            self.wfile.flush()

    def complete(self) -> None:
        """Send what was written; it ends an answer. The stamp is taken before it leaves."""
        self.server.webkassa.note("answer", None, self.path.rpartition("/")[2], self.login)
        self.wfile.flush()

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_in(self, token: str | None = None) -> bytes:
        """Log in whoever asks; return the answer that carries the token."""
        return self.server.webkassa.log_in(token, self.login or LOGIN)

    def wait(self, seconds: float = 60) -> bool:
        """Wait; return False when the simulator ended meanwhile."""
        return not self.server.webkassa.closing.wait(seconds)

    def leave_open(self) -> None:
        """Say no more, and leave the connection open until the simulator ends."""
        self.wait()
        self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    webkassa: Simulator

    def handle_error(self, *_: object) -> None:
        pass  # clients that are killed in the middle are part of the game


class Behaviour:
    """What to do with a request. `act` gets the good answer, and sends what it likes.

    `logs_in`: a token is issued before `act`. Otherwise `act` issues one or none, and gets b"".
    `refuses`: nobody looks at login and password.
    """

    def __init__(
        self, act: Callable[[Handler, bytes], None], logs_in: bool = True, refuses: bool = False
    ) -> None:
        self.act, self.logs_in, self.refuses = act, logs_in and not refuses, refuses


Script = collections.deque[Any]


class Simulator:
    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.host, self.port, self.tls = host, port, tls
        self.passwords = {LOGIN: PASSWORD}
        self.tokens: dict[str, str | None] = {}  # the one that works, by login
        self.issued: list[str] = []
        self.issued_to: dict[str, str] = {}  # whose a token is
        self.latency = 0.0  # seconds before the answer to a login and to a probe
        self.calls: list[Call] = []
        self.events: list[Event] = []
        self.connections: set[socket.socket] = set()
        # The next requests' behaviours, also as functions of the handler and the good answer
        self.script: Script = collections.deque()
        self.probe_script: Script = collections.deque()
        # The same of one login; these come first
        self.scripts: dict[str, Script] = collections.defaultdict(collections.deque)
        self.probe_scripts: dict[str, Script] = collections.defaultdict(collections.deque)
        self.on_issue: Callable[[str], object] = lambda token: None  # before the answer is sent
        self.on_event: Callable[[Event], object] = lambda event: None
        self.new_token: Callable[[], str] = lambda: secrets.token_hex(16)
        self.verdict: Callable[[str | None], Any] = self.truth
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.listen()
        self.origin = f"http{'s' if tls else ''}://{host}:{self.port}"
        self.url = f"{self.origin}/api/Authorize"
        self.url_v4 = f"{self.origin}/api/v4/Authorize"

    def __enter__(self) -> Simulator:
        self.serve()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.deafen()

    def listen(self) -> None:
        self.server = Server((self.host, self.port), Handler)
        self.server.webkassa = self
        self.port = self.server.server_port
        if self.tls:  # the handshake belongs to a connection's own thread
            self.server.socket = self.tls.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )

    def serve(self) -> None:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def deafen(self) -> None:
        """Refuse connections until `hear`, and hang up on those that are open."""
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def hear(self) -> None:
        """Take connections again, on the same port."""
        self.listen()
        self.serve()

    @contextlib.contextmanager
    def refusing_connections(self) -> Iterator[None]:
        self.deafen()
        yield
        self.hear()

    @property
    def password(self) -> str:
        """The password of LOGIN."""
        return self.passwords[LOGIN]

    @password.setter
    def password(self, password: str) -> None:
        self.passwords[LOGIN] = password

    @property
    def live(self) -> str | None:
        """The token of LOGIN that works."""
        return self.tokens.get(LOGIN)

    @live.setter
    def live(self, token: str | None) -> None:
        self.tokens[LOGIN] = token

    def enroll(self, login: str, password: str) -> str:
        """Know one more account; return its live token."""
        self.passwords[login] = password
        return self.issue(login=login)

    def logins(self, login: str) -> int:
        """How often this login was asked for."""
        return len([e for e in list(self.events) if e.what == "asked" and e.login == login])

    @property
    def authorizations(self) -> int:
        return len([call for call in self.calls if call.path.endswith("/Authorize")])

    @property
    def probes(self) -> int:
        return len([call for call in self.calls if call.path.endswith("/RefUnits")])

    def stamps(self, what: str) -> list[float]:
        """When events of this kind happened, by `time.monotonic`."""
        return [event.at for event in list(self.events) if event.what == what]

    def note(
        self, what: str, token: str | None = None, said: str = "", login: str | None = None
    ) -> None:
        event = Event(what, token, said, time.monotonic(), time.time(), login)
        self.events.append(event)
        self.on_event(event)

    def issue(self, token: str | None = None, login: str = LOGIN) -> str:
        """Log somebody in: a new token (or this one) lives, that login's one before is dead."""
        with self.lock:
            token = token or self.new_token()
            self.issued.append(token)
            self.issued_to[token] = login
            self.tokens[login] = token
            self.note("login", token, login=login)
        return token

    def truth(self, token: str | None) -> Any:
        return ALIVE if token is not None and token == self.tokens.get(self.owner(token)) else DEAD

    def owner(self, token: str | None) -> str:
        """Return the login that a token was issued to."""
        return self.issued_to.get(token or "", LOGIN)

    def act(self, handler: Handler, body: Any) -> None:
        if handler.command != "POST":
            handler.send(404, b"")
        elif "/v4/" in handler.path and handler.headers.get("x-api-key") != API_KEY:
            handler.send(401, b'"wrong URL or empty API key"')
        elif handler.path.endswith("/Authorize"):
            self.authorize(handler, body)
        elif handler.path.endswith("/references/RefUnits"):
            token = body.get("Token") if isinstance(body, dict) else None
            handler.login = self.owner(token)
            verdict = self.verdict(token)
            self.note("probe", token, said_of(verdict), handler.login)
            behaviour = next_of(self.probe_scripts[handler.login], self.probe_script)
            self.play(behaviour, handler, json.dumps(verdict).encode())
        else:
            handler.send(404, b"<html>not found</html>")

    def authorize(self, handler: Handler, body: Any) -> None:
        handler.login = str(body.get("Login")) if isinstance(body, dict) else ""
        behaviour = next_of(self.scripts[handler.login], self.script)
        self.note("asked", login=handler.login)
        good, password = b"", self.passwords.get(handler.login)
        if behaviour.refuses:
            pass
        elif password is None or body != {"Login": handler.login, "Password": password}:
            good = json.dumps(errors(1)).encode()
            if not behaviour.logs_in:
                behaviour = GOOD
        elif behaviour.logs_in:
            good = handler.log_in()
        self.play(behaviour, handler, good)

    def log_in(self, token: str | None = None, login: str = LOGIN) -> bytes:
        """Issue a token and return the answer that carries it."""
        token = self.issue(token, login)
        self.on_issue(token)
        return json.dumps({"Data": {"Token": token}}).encode()

    def play(self, behaviour: Behaviour, handler: Handler, good: bytes) -> None:
        if self.latency:
            handler.wait(self.latency)
        behaviour.act(handler, good)


def next_of(*scripts: Script) -> Behaviour:
    for script in scripts:
        with contextlib.suppress(IndexError):
            found = script.popleft()
            return found if isinstance(found, Behaviour) else Behaviour(found)
    return GOOD


def said_of(verdict: Any) -> str:
    names = {"alive": ALIVE, "dead": DEAD, "unclear": UNCLEAR}
    return next((name for name, known in names.items() if known == verdict), "something else")


# Behaviours -------------------------------------------------------------------------------------

GOOD = Behaviour(lambda handler, good: handler.send(200, good))


def answer(status: int = 200, body: Any = b"", headers: dict[str, str] | None = None) -> Behaviour:
    """Log nobody in; answer with this status, body (bytes, or what becomes JSON) and headers."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Behaviour(lambda handler, good: handler.send(status, content, headers), refuses=True)


def redirect(url: str, status: int = 307) -> Behaviour:
    return answer(status, b"", {"Location": url})


def hang() -> Behaviour:
    """Say nothing until the simulator ends."""
    return Behaviour(lambda handler, good: handler.leave_open())


def slow(seconds: float) -> Behaviour:
    def act(handler: Handler, good: bytes) -> None:
        handler.wait(seconds)
        handler.send(200, good)

    return Behaviour(act)


def held_until(event: threading.Event) -> Behaviour:
    """Log in at once, answer when something has happened."""

    def act(handler: Handler, good: bytes) -> None:
        event.wait(60)
        handler.send(200, good)

    return Behaviour(act)


def late(seconds: float, *, hang_up: bool = False, reply: bool = False) -> Behaviour:
    """Issue the token only after so many seconds: it kills whatever lives by then.

    Nothing is answered, unless `reply`; with `hang_up` the connection is closed at once. That
    the client hangs up meanwhile changes nothing.
    """

    def act(handler: Handler, good: bytes) -> None:
        if hang_up:
            handler.hang_up()
        if not handler.wait(seconds):
            return
        token_in_answer = handler.log_in()
        if reply:
            handler.send(200, token_in_answer)
        elif not hang_up:
            handler.leave_open()

    return Behaviour(act, logs_in=False)


def same_token() -> Behaviour:
    """Give the token that was issued last, once more."""

    def act(handler: Handler, good: bytes) -> None:
        issued, owners = handler.server.webkassa.issued, handler.server.webkassa.issued_to
        own = [token for token in issued if owners.get(token) in (None, handler.login)]
        handler.send(200, handler.log_in(own[-1] if own else None))

    return Behaviour(act, logs_in=False)


def drip(seconds: float, headers_too: bool = False) -> Behaviour:
    """Send a byte every so many seconds."""

    def act(handler: Handler, good: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(good)}\r\n\r\n".encode()
        if not headers_too:
            handler.wfile.write(head)
        for byte in (head if headers_too else b"") + good:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            if not handler.wait(seconds):
                return
        handler.complete()

    return Behaviour(act)


def flood() -> Behaviour:
    """Send for ever, or until the other side hangs up."""

    def act(handler: Handler, good: bytes) -> None:
        handler.raw("Content-Length: 99999999999", body=b"", end=False)
        while not handler.server.webkassa.closing.is_set():
            handler.wfile.write(b" " * 65536)

    return Behaviour(act)


def cut() -> Behaviour:
    """Send half of the answer and hang up."""

    def act(handler: Handler, good: bytes) -> None:
        handler.raw(f"Content-Length: {len(good)}", body=good[: len(good) // 2], end=False)
        handler.close_connection = True

    return Behaviour(act)


# The JSON is whole in these; the transfer is not


def wrong_length(more: int = 10, leave_open: bool = False) -> Behaviour:
    """Announce more bytes than there are, then hang up or say no more."""
    return framed(lambda good: [f"Content-Length: {len(good) + more}"], bytes, leave_open)


def unfinished_chunks(leave_open: bool = False) -> Behaviour:
    """Send chunks without the last one, which is empty, then hang up or say no more."""

    def chunk(good: bytes) -> bytes:
        return f"{len(good):x}\r\n".encode() + good + b"\r\n"

    return framed(lambda good: ["Transfer-Encoding: chunked"], chunk, leave_open)


def no_length(leave_open: bool = True) -> Behaviour:
    return framed(lambda good: [], bytes, leave_open)


def framed(
    fields: Callable[[bytes], list[str]], spell: Callable[[bytes], bytes], leave_open: bool
) -> Behaviour:
    def act(handler: Handler, good: bytes) -> None:
        handler.raw(*fields(good), body=spell(good))
        handler.close_connection = True
        if leave_open:
            handler.leave_open()

    return Behaviour(act)


def interim(status: int = 103, seconds: float = 1, connection: str = "keep-alive") -> Behaviour:
    """Send an interim answer, and the good one so many seconds later."""

    def act(handler: Handler, good: bytes) -> None:
        handler.wfile.write(f"HTTP/1.1 {status} Not yet\r\nLink: </a>\r\n\r\n".encode())
        handler.wfile.flush()
        if handler.wait(seconds):
            handler.send(200, good, {"Connection": connection})

    return Behaviour(act)


def directory(units: int) -> dict[str, Any]:
    """What a probe says of a key that works: the vendor's list of units of measure."""
    unit = {
        "Id": 796,
        "Code": "796",
        "NameRu": "штука (одна единица)",
        "NameKz": "дана",
        "Name": "piece",
    }
    return {"Data": [unit | {"Id": number} for number in range(units)]}


def real_gzip() -> Behaviour:
    """Compress, though nobody asked for it."""
    gzipped = {"Content-Encoding": "gzip"}
    return Behaviour(lambda handler, good: handler.send(200, gzip.compress(good), gzipped))


def false_gzip() -> Behaviour:
    """Call plain bytes compressed."""
    return Behaviour(lambda handler, good: handler.send(200, good, {"Content-Encoding": "gzip"}))


def beside(
    more: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Behaviour:
    """Put more beside the token of a good answer, an error, say."""

    def act(handler: Handler, good: bytes) -> None:
        handler.send(status, json.dumps(json.loads(good) | more).encode(), headers)

    return Behaviour(act)


def respelled(spell: Callable[[str], str] = str.lower) -> Behaviour:
    """Spell the names in the JSON otherwise."""

    def respell(value: Any) -> Any:
        if isinstance(value, dict):
            return {spell(name): respell(inner) for name, inner in value.items()}
        return [respell(inner) for inner in value] if isinstance(value, list) else value

    def act(handler: Handler, good: bytes) -> None:
        handler.send(200, json.dumps(respell(json.loads(good))).encode())

    return Behaviour(act)


# For a person -----------------------------------------------------------------------------------

NAMED: dict[str, Callable[..., Behaviour]] = {
    "good": lambda: GOOD,
    "hang": hang,
    "cut": cut,
    "flood": flood,
    "same": same_token,
    "lower-case": respelled,
    "long": wrong_length,
    "long-open": functools.partial(wrong_length, leave_open=True),
    "chunked": unfinished_chunks,
    "chunked-open": functools.partial(unfinished_chunks, leave_open=True),
    "no-length": no_length,
    "gzip": real_gzip,
    "false-gzip": false_gzip,
}
NUMBERED: dict[str, Callable[..., Behaviour]] = {
    "slow": slow,
    "late": late,
    "late-hang-up": functools.partial(late, hang_up=True),
    "late-answer": functools.partial(late, reply=True),
    "drip": drip,
    "status": lambda number: answer(int(number)),
    "code": lambda number: answer(200, errors(int(number))),
}


def behaviours(text: str) -> list[Behaviour]:
    """Read what the help calls WHAT."""
    match = re.fullmatch(r"(?:(\d{1,4})\*)?([a-z-]+)(?::(-?\d+(?:\.\d+)?))?", text)
    if match:
        times, name, number = match.groups()
        if number is None and name in NAMED:
            return [NAMED[name]() for _ in range(int(times or 1))]
        if number is not None and name in NUMBERED:
            return [NUMBERED[name](float(number)) for _ in range(int(times or 1))]
    raise argparse.ArgumentTypeError(f"{text} is nothing that it can do; see --help")


def probe_behaviours(text: str) -> list[Behaviour]:
    """The same for a probe, which must not log anybody in."""
    found = behaviours(text)
    if not all(behaviour.logs_in or behaviour.refuses for behaviour in found):
        raise argparse.ArgumentTypeError(f"{text} is for logins; see --help")
    return found


class Parser(argparse.ArgumentParser):
    """A parser whose help is the text at the top of this file."""

    def format_help(self) -> str:
        return __doc__ or ""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def told(event: Event, start: float) -> str:
    token = f" {hashlib.sha256(event.token.encode()).hexdigest()[:8]}" if event.token else ""
    what = {
        "asked": "login asked for",
        "login": f"logged in: key{token} lives, any other is dead",
        "probe": f"probe of key{token}: {event.said}",
        "answer": f"{event.said} answered",
    }[event.what]
    return f"{event.at - start:9.3f} s  {what}"


def main(argv: list[str] | None = None) -> int:
    parser = Parser(allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--v4", action="store_true")
    parser.add_argument("--authorize", type=behaviours, action="extend", default=[])
    parser.add_argument("--probe", type=probe_behaviours, action="extend", default=[])
    options = parser.parse_args(argv)
    try:
        webkassa = Simulator(port=options.port)
    except OSError as error:
        parser.error(f"port {options.port}: {error.strerror}")
    start = time.monotonic()
    webkassa.script.extend(options.authorize)
    webkassa.probe_script.extend(options.probe)
    webkassa.on_event = lambda event: print(told(event, start), flush=True)
    print(f"WEBKASSA_AUTH_URL={webkassa.url_v4 if options.v4 else webkassa.url}")
    print(f"WEBKASSA_LOGIN={LOGIN}\nWEBKASSA_PASSWORD={shlex.quote(PASSWORD)}")
    if options.v4:
        print(f"WEBKASSA_API_KEY={API_KEY}")
    sys.stdout.flush()
    with webkassa, contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
