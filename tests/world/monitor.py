"""A monitor like Healthchecks; remembers what it was asked for."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        monitor = self.server.monitor
        monitor.paths.append(self.path)
        if "hang" in self.path:
            monitor.closing.wait(60)
        self.send_response(500 if "broken" in self.path else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    monitor: Monitor

    def handle_error(self, *_: object) -> None:
        pass  # who asked did not wait


class Monitor:
    """A path with "hang" in it is never answered, one with "broken" with a 500."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.closing = threading.Event()
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.monitor = self
        self.origin = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Monitor:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
