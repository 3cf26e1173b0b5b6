"""TCP in front of a server: it passes bytes, and does to them what a test wants.

    with Relay(("127.0.0.1", 5432)) as relay:
        relay.to_server = hook             # sees, changes (returns bytes) or keeps back (None)
        relay.delay_to_client = 0.05       # seconds: latency, not a slower line
        relay.pause()                      # like a host that lost its power; resume() ends it
        relay.cut()                        # hang up on both sides
        ... relay.port, relay.links, relay.round_trips

`ConnectProxy` is the same as an HTTP proxy: CONNECT to any name ends at the one server.
"""

from __future__ import annotations

import contextlib
import queue
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Address = tuple[str, int]
READY = b"Z\0\0\0\5I"  # PostgreSQL: all that was asked is done, no transaction is open
END = b""  # what a socket gives when the other side has ended its half
Self = TypeVar("Self", bound="Relay")


class Link:
    """One connection through the relay."""

    def __init__(self, relay: Relay, client: socket.socket) -> None:
        self.relay, self.client = relay, client
        self.server: socket.socket | None = None
        self.is_cut = False
        self.asked = False  # since the server's last bytes
        self.notes: set[str] = set()  # for hooks: what they want to know of it later

    def cut(self) -> None:
        """Hang up on both sides; what was on its way is lost."""
        self.is_cut = True
        for side in (self.client, self.server):
            with contextlib.suppress(OSError):
                if side:
                    side.shutdown(socket.SHUT_RDWR)

    def carry(self) -> None:
        """Connect to the server and pass bytes on until both sides have ended."""
        with contextlib.suppress(OSError), self.client:
            self.server = self.relay.meet(self.client)
            for side in (self.client, self.server):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.server:
                back = threading.Thread(target=self.pump, args=(self.server, self.client))
                back.start()
                self.pump(self.client, self.server)
                back.join()

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Pass one direction on: whoever reads is not held up by the delay of what was read."""
        chunks: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        writer = threading.Thread(target=self.write, args=(chunks, sink))
        writer.start()
        data = None
        while data != END:
            try:
                data = source.recv(65536)
            except OSError:
                data = END
            chunks.put((time.monotonic(), data))
        writer.join()

    def write(self, chunks: queue.SimpleQueue[tuple[float, bytes]], sink: socket.socket) -> None:
        relay, upwards = self.relay, sink is self.server
        data = None
        while data != END:
            arrived, data = chunks.get()
            delay = relay.delay_to_server if upwards else relay.delay_to_client
            if (pause := arrived + delay - time.monotonic()) > 0:
                relay.closing.wait(pause)
            relay.passing.wait()
            if data == END:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                return
            hook = relay.to_server if upwards else relay.to_client
            passed = hook(self, data)
            if passed and not self.is_cut:
                relay.count(self, upwards)
                with contextlib.suppress(OSError):  # it hung up; read the rest all the same
                    sink.sendall(passed)


Hook = Callable[[Link, bytes], "bytes | None"]


def as_it_is(link: Link, data: bytes) -> bytes:
    return data


class Relay:
    def __init__(self, target: Address, to_server: Hook = as_it_is, to_client: Hook = as_it_is):
        self.target = target
        self.to_server, self.to_client = to_server, to_client
        self.delay_to_server = self.delay_to_client = 0.0
        self.links: list[Link] = []
        self.round_trips = 0  # how often the server answered something that was asked before
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.passing = threading.Event()
        self.passing.set()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self.listener.getsockname()[1]

    def __enter__(self: Self) -> Self:
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # ends the `accept` of another thread
        self.listener.close()
        self.cut()
        self.resume()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link = Link(self, self.listener.accept()[0])
                self.links.append(link)
                threading.Thread(target=link.carry, daemon=True).start()

    def meet(self, client: socket.socket) -> socket.socket:
        """Return a connection to the server for this client."""
        return socket.create_connection(self.target)

    def count(self, link: Link, upwards: bool) -> None:
        with self.lock:
            self.round_trips += link.asked and not upwards
            link.asked = upwards

    def pause(self) -> None:
        """From now on no byte passes, nor the end of a connection; none is closed."""
        self.passing.clear()

    def resume(self) -> None:
        """Pass on what was held back, like a network that is mended."""
        self.passing.set()

    def cut(self) -> None:
        """Hang up on everybody. New connections are taken."""
        for link in list(self.links):
            link.cut()


class ConnectProxy(Relay):
    """An HTTP proxy; `hosts` are the names asked for, `refusal` a status line to refuse with."""

    def __init__(self, target: Address) -> None:
        super().__init__(target)
        self.hosts: list[str] = []
        self.refusal = ""
        self.url = f"http://127.0.0.1:{self.port}"

    def meet(self, client: socket.socket) -> socket.socket:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = client.recv(1)
            if not byte:
                raise ConnectionError
            head += byte
        asked = re.match(rb"CONNECT (\S+):443 ", head)
        self.hosts.append(asked[1].decode() if asked else "")
        status = self.refusal or ("200 OK" if asked else "405 Method Not Allowed")
        if not status.startswith("200"):
            client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
            raise ConnectionError
        server = super().meet(client)
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        return server


class CutAtCommit:
    """Hooks for PostgreSQL: the first COMMIT is done, and the client does not hear of it."""

    def __init__(self, relay: Relay) -> None:
        self.cuts = 0
        relay.to_server, relay.to_client = self.ask, self.answer

    def ask(self, link: Link, data: bytes) -> bytes:
        if re.search(rb"COMMIT;?\s*\0", data) and not self.cuts:
            link.notes.add("commit")
        return data

    def answer(self, link: Link, data: bytes) -> bytes | None:
        if "commit" not in link.notes:
            return data
        if data.endswith(READY):
            self.cuts += 1
            link.cut()
        return None
