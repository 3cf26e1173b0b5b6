"""A monitor like Healthchecks, or a service that alerts are sent to; remembers what reached it."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    server: Monitor

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = re.match(r"/(\d{3})/", self.path)
        code = 500 if self.path in self.server.refused else int(status[1]) if status else 200
        if self.path not in self.server.refused:
            self.server.heard.append((self.path, body))
        if "hang" in self.path:
            self.server.closing.wait(60)
        self.send_response(code)
        if code == 301:
            self.send_header("Location", f"{self.server.origin}/200/moved")
        self.end_headers()

    do_POST = do_GET  # noqa: N815 (the name that http.server wants)

    def log_message(self, *_: object) -> None:
        pass


class Monitor(ThreadingHTTPServer):
    """Answers 200, or the number that a path begins with, as in /503/x. A path with "hang" in it is
    never answered; those in `refused` are with a 500, and count as not reached."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.heard: list[tuple[str, bytes]] = []
        self.refused: set[str] = set()
        self.closing = threading.Event()
        self.origin = f"http://127.0.0.1:{self.server_port}"

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.heard]

    def alerts(self, path: str = "") -> list[dict[str, Any]]:
        """What was sent there, or anywhere, as JSON."""
        return [json.loads(body) for where, body in self.heard if path in ("", where)]

    def server_close(self) -> None:
        self.closing.set()
        super().server_close()

    def handle_error(self, *_: object) -> None:
        pass  # who asked did not wait
