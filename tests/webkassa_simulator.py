"""A Webkassa that behaves like the vendor, as far as `webkassa-api.md` knows it, and misbehaves on
demand: an Authorize kills the token before it, a dead token is answered with code 2 over HTTP 200,
a wrong password with code 1; paths with /v4/ want `x-api-key`.

    with Simulator() as webkassa:
        webkassa.script.append(answer(503))      # the next Authorize; the one after is good again
        webkassa.probe_script.append(hang())     # the same for the probe
        ... webkassa.url, webkassa.authorizations, webkassa.live, webkassa.calls
"""

from __future__ import annotations

import collections
import dataclasses
import json
import secrets
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOGIN = "cashier@example.kz"
PASSWORD = "canary-pass-$HOME-${USER}-пароль"  # never to be seen in any output
API_KEY = "canary-api-key-5f1d"


@dataclasses.dataclass
class Call:
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    client_port: int  # one port, one connection


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet an answer
    server: Server

    def log_message(self, *_: object) -> None:
        pass

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

    do_GET = do_HEAD = do_POST

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in (fields | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    webkassa: Simulator

    def handle_error(self, *_: object) -> None:
        pass  # clients that are killed in the middle are part of the game


Behaviour = Callable[[Handler, "bytes"], None]  # gets the good answer, sends what it likes


class Simulator:
    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.password = PASSWORD
        self.live: str | None = None  # the token that works
        self.issued: list[str] = []
        self.calls: list[Call] = []
        self.script: collections.deque[Behaviour] = collections.deque()
        self.probe_script: collections.deque[Behaviour] = collections.deque()
        self.on_issue: Callable[[str], None] = lambda token: None  # before the answer is sent
        self.new_token: Callable[[], str] = lambda: secrets.token_hex(16)
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.server = Server((host, port), Handler)
        self.server.webkassa = self
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        self.origin = f"http{'s' if tls else ''}://{host}:{self.port}"
        self.url = f"{self.origin}/api/Authorize"
        self.url_v4 = f"{self.origin}/api/v4/Authorize"

    def __enter__(self) -> Simulator:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def authorizations(self) -> int:
        return len([call for call in self.calls if call.path.endswith("/Authorize")])

    @property
    def probes(self) -> int:
        return len([call for call in self.calls if call.path.endswith("/RefUnits")])

    def issue(self) -> str:
        """Log somebody in: a new token lives, the one before is dead."""
        with self.lock:
            token = self.new_token()
            self.issued.append(token)
            self.live = token
        return token

    def act(self, handler: Handler, body: Any) -> None:
        if handler.command != "POST":
            handler.send(404, b"")
        elif "/v4/" in handler.path and handler.headers.get("x-api-key") != API_KEY:
            handler.send(401, b'"wrong URL or empty API key"')
        elif handler.path.endswith("/Authorize"):
            self.authorize(handler, body)
        elif handler.path.endswith("/references/RefUnits"):
            alive = isinstance(body, dict) and body.get("Token") == self.live
            good = {"Data": [{"Name": "piece", "Code": 796}]} if alive else errors(2)
            self.play(self.probe_script, handler, json.dumps(good).encode())
        else:
            handler.send(404, b"<html>not found</html>")

    def authorize(self, handler: Handler, body: Any) -> None:
        behaviour = self.script[0] if self.script else None
        if getattr(behaviour, "refuses", False):
            return self.play(self.script, handler, b"")
        if body != {"Login": LOGIN, "Password": self.password}:
            return self.play(self.script, handler, json.dumps(errors(1)).encode())
        token = self.issue()
        self.on_issue(token)
        return self.play(self.script, handler, json.dumps({"Data": {"Token": token}}).encode())

    def play(self, script: collections.deque[Behaviour], handler: Handler, good: bytes) -> None:
        try:
            behaviour = script.popleft()
        except IndexError:
            return handler.send(200, good)
        return behaviour(handler, good)


def errors(code: object) -> dict[str, Any]:
    return {"Errors": [{"Code": code, "Text": "Неверный логин, ключ или пароль"}]}


# Behaviours. Those with `refuses` set log nobody in; the others do, and spoil the answer.


def answer(status: int = 200, body: Any = b"", headers: dict[str, str] | None = None) -> Behaviour:
    """Answer with this status, body (bytes, or something that becomes JSON) and these headers."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    def behave(handler: Handler, good: bytes) -> None:
        handler.send(status, content, headers)

    behave.refuses = True  # type: ignore[attr-defined]
    return behave


def redirect(url: str, status: int = 307) -> Behaviour:
    return answer(status, b"", {"Location": url})


def hang() -> Behaviour:
    """Say nothing until the simulator ends."""

    def behave(handler: Handler, good: bytes) -> None:
        handler.server.webkassa.closing.wait(60)
        handler.close_connection = True

    return behave


def slow(seconds: float) -> Behaviour:
    def behave(handler: Handler, good: bytes) -> None:
        handler.server.webkassa.closing.wait(seconds)
        handler.send(200, good)

    return behave


def drip(seconds: float, headers_too: bool = False) -> Behaviour:
    """Send a byte every so many seconds."""

    def behave(handler: Handler, good: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(good)}\r\n\r\n".encode()
        if not headers_too:
            handler.wfile.write(head)
        for byte in (head if headers_too else b"") + good:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            if handler.server.webkassa.closing.wait(seconds):
                return

    return behave


def flood() -> Behaviour:
    """Send for ever, or until the other side hangs up."""

    def behave(handler: Handler, good: bytes) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        while not handler.server.webkassa.closing.is_set():
            handler.wfile.write(b" " * 65536)

    return behave


def cut() -> Behaviour:
    """Send half of the answer and hang up."""

    def behave(handler: Handler, good: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(good)}\r\n\r\n".encode()
        handler.wfile.write(head + good[: len(good) // 2])
        handler.close_connection = True

    return behave
