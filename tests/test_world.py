"""The world of the tests misbehaves as it says, and its log is true."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from world import webkassa_simulator as vendor
from world.postgres import PASSWORD as DATABASE_PASSWORD
from world.postgres import Postgres
from world.relay import ConnectProxy, Link, Relay
from world.serving import serving
from world.tls import Authority
from world.waiting import await_
from world.webkassa_simulator import ALIVE, DEAD, LOGIN, UNCLEAR, Simulator, answer, errors

SILENCE = 0.3  # seconds without a byte: nothing more will come
AUTHORIZE = {"Login": LOGIN, "Password": vendor.PASSWORD}


def connected(webkassa: Simulator) -> socket.socket:
    return socket.create_connection(("127.0.0.1", webkassa.port), timeout=10)


def send(connection: socket.socket, path: str, body: Any, *headers: str) -> None:
    content = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(content)}", *headers]
    connection.sendall("\r\n".join([*head, "", ""]).encode() + content)


def read(connection: socket.socket) -> tuple[str, bytes, bool]:
    """Return head, body and whether the connection was closed after them."""
    raw, closed = b"", False
    with contextlib.suppress(TimeoutError):
        connection.settimeout(10)
        while data := connection.recv(65536):
            raw += data
            connection.settimeout(SILENCE)
        closed = True
    head, _, body = raw.partition(b"\r\n\r\n")
    return head.decode(), body, closed


def post(webkassa: Simulator, path: str, body: Any, *headers: str) -> tuple[str, bytes, bool]:
    with connected(webkassa) as connection:
        send(connection, path, body, *headers)
        return read(connection)


def log_in(webkassa: Simulator) -> Any:
    """Log in as a client that sees no flaw; return the JSON."""
    return json.loads(post(webkassa, "/api/Authorize", AUTHORIZE)[1])


def probe(webkassa: Simulator, token: str) -> Any:
    return json.loads(post(webkassa, "/api/references/RefUnits", {"Token": token})[1])


# Webkassa ----------------------------------------------------------------------------------------


def test_login_kills_the_token_before_it(webkassa: Simulator) -> None:
    first, second = (log_in(webkassa)["Data"]["Token"] for _ in range(2))
    assert (probe(webkassa, first), probe(webkassa, second)) == (DEAD, ALIVE)
    assert webkassa.issued == [first, second]
    assert webkassa.live == second


@pytest.mark.parametrize("behaviour", [None, vendor.slow(0), vendor.late(0), vendor.same_token()])
def test_wrong_password_logs_nobody_in(webkassa: Simulator, behaviour: Any) -> None:
    if behaviour:
        webkassa.script.append(behaviour)
    _, body, _ = post(webkassa, "/api/Authorize", AUTHORIZE | {"Password": "wrong"})
    assert (json.loads(body), webkassa.issued) == (errors(1), [])


@pytest.mark.parametrize("client_hangs_up", [False, True])
@pytest.mark.parametrize("hang_up", [False, True])
def test_late_login_kills_what_lives_by_then(
    webkassa: Simulator, hang_up: bool, client_hangs_up: bool
) -> None:
    webkassa.script.append(vendor.late(1, hang_up=hang_up))
    with connected(webkassa) as connection:
        send(connection, "/api/Authorize", AUTHORIZE)
        if client_hangs_up:
            connection.shutdown(socket.SHUT_RDWR)
        await_(lambda: webkassa.authorizations == 1)
        token = log_in(webkassa)["Data"]["Token"]
        assert webkassa.issued == [token]
        assert probe(webkassa, token) == ALIVE
        await_(lambda: len(webkassa.issued) == 2)
        assert probe(webkassa, token) == DEAD
        if not client_hangs_up:
            connection.settimeout(SILENCE)
            with contextlib.suppress(TimeoutError):
                assert connection.recv(1) == b""
                assert hang_up
    asked, login = webkassa.stamps("asked")[0], webkassa.stamps("login")[1]
    assert login - asked >= 1


def test_late_login_may_be_answered(webkassa: Simulator) -> None:
    webkassa.script.append(vendor.late(0.3, reply=True))
    assert log_in(webkassa)["Data"]["Token"] == webkassa.live
    assert webkassa.stamps("login")[0] - webkassa.stamps("asked")[0] >= 0.3


def test_slow_login_takes_effect_at_once(webkassa: Simulator) -> None:
    webkassa.script.append(vendor.slow(0.3))
    assert log_in(webkassa)["Data"]["Token"] == webkassa.live
    assert [event.what for event in webkassa.events] == ["asked", "login", "answer"]
    assert webkassa.stamps("answer")[0] - webkassa.stamps("login")[0] >= 0.3


@pytest.mark.parametrize(
    ("behaviour", "framing", "body", "is_closed"),
    [
        (vendor.wrong_length(), r"Content-Length: 6\d", r"(\{.*\})", True),
        (vendor.wrong_length(leave_open=True), r"Content-Length: 6\d", r"(\{.*\})", False),
        (vendor.unfinished_chunks(), "Transfer-Encoding: chunked", "37\r\n(.*)\r\n", True),
        (vendor.unfinished_chunks(leave_open=True), "Transfer-Encoding: chunked", "37\r\n(.*)\r\n", False),
        (vendor.no_length(), "HTTP/1.1 200 OK$", r"(\{.*\})", False),
        (vendor.no_length(leave_open=False), "HTTP/1.1 200 OK$", r"(\{.*\})", True),
        (vendor.false_gzip(), "Content-Encoding: gzip", r"(\{.*\})", False),
    ],
)  # fmt: skip
def test_json_is_whole_where_the_transfer_is_not(
    webkassa: Simulator, behaviour: Any, framing: str, body: str, is_closed: bool
) -> None:
    webkassa.script.append(behaviour)
    head, content, closed = post(webkassa, "/api/Authorize", AUTHORIZE)
    assert re.search(framing, head, re.MULTILINE)
    match = re.fullmatch(body, content.decode())
    assert match, content
    assert json.loads(match[1]) == {"Data": {"Token": webkassa.live}}
    assert closed == is_closed
    length = re.search(r"Content-Length: (\d+)", head)
    assert not length or (int(length[1]) == len(content)) == ("gzip" in head)


def test_gzip_is_gzip(webkassa: Simulator) -> None:
    webkassa.script.append(vendor.real_gzip())
    head, content, _ = post(webkassa, "/api/Authorize", AUTHORIZE)
    assert "Content-Encoding: gzip" in head
    assert json.loads(gzip.decompress(content)) == {"Data": {"Token": webkassa.live}}


def test_connections_are_refused_for_a_while(webkassa: Simulator) -> None:
    with connected(webkassa) as before:
        send(before, "/api/Authorize", AUTHORIZE)
        assert read(before)[2] is False
        with webkassa.refusing_connections():
            with pytest.raises(ConnectionRefusedError):
                connected(webkassa)
            assert before.recv(1) == b""
    assert log_in(webkassa)["Data"]["Token"] == webkassa.live


def test_same_token_may_be_given_again(webkassa: Simulator) -> None:
    webkassa.script.extend([answer(503), vendor.same_token()])
    token = webkassa.issue()
    webkassa.live = None
    assert post(webkassa, "/api/Authorize", AUTHORIZE)[0].startswith("HTTP/1.1 503")
    assert webkassa.issued == [token]
    assert log_in(webkassa)["Data"]["Token"] == webkassa.live == token


def test_probe_may_say_what_a_function_of_the_token_says(webkassa: Simulator) -> None:
    said = {"a": ALIVE, "d": DEAD, "u": UNCLEAR}
    webkassa.verdict = lambda token: said[str(token)]
    assert {token: probe(webkassa, token) for token in said} == said
    probes = [event.said for event in webkassa.events if event.what == "probe"]
    assert probes == ["alive", "dead", "unclear"]


def test_names_in_the_json_may_be_spelled_otherwise(webkassa: Simulator) -> None:
    webkassa.script.append(vendor.respelled())
    assert log_in(webkassa) == {"data": {"token": webkassa.live}}


def test_v4_wants_the_api_key(webkassa: Simulator) -> None:
    path = "/api/v4/Authorize"
    assert post(webkassa, path, AUTHORIZE)[0].startswith("HTTP/1.1 401")
    assert post(webkassa, path, AUTHORIZE, f"x-api-key: {vendor.API_KEY}")[0].startswith(
        "HTTP/1.1 200"
    )


def test_log_tells_what_happened_and_when(webkassa: Simulator) -> None:
    start = time.monotonic()
    token = log_in(webkassa)["Data"]["Token"]
    probe(webkassa, token)
    told = [(event.what, event.token, event.said) for event in webkassa.events]
    assert told == [
        ("asked", None, ""),
        ("login", token, ""),
        ("answer", None, "Authorize"),
        ("probe", token, "alive"),
        ("answer", None, "RefUnits"),
    ]
    stamps = [start, *(event.at for event in webkassa.events), time.monotonic()]
    assert stamps == sorted(stamps)
    assert all(abs(event.clock - time.time()) < 10 for event in webkassa.events)


def test_client_that_never_shakes_hands_holds_nobody_up() -> None:
    authority = Authority()
    with Simulator(tls=authority.server_context("127.0.0.1")) as webkassa, connected(webkassa):
        context = authority.client_context()
        with context.wrap_socket(connected(webkassa), server_hostname="127.0.0.1") as other:
            send(other, "/api/Authorize", AUTHORIZE)
            assert "200" in read(other)[0]


# The simulator for a person ----------------------------------------------------------------------

SIMULATOR = [sys.executable, vendor.__file__]


def test_simulator_prints_settings_that_lead_to_it_and_what_it_is_asked() -> None:
    arguments = ["--v4", "--authorize", "2*status:503", "--authorize", "code:-1", "--probe", "cut"]
    process = subprocess.Popen([*SIMULATOR, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    settings = dict(process.stdout.readline().strip().split("=", 1) for _ in range(4))
    assert settings["WEBKASSA_LOGIN"] == LOGIN
    assert settings["WEBKASSA_PASSWORD"] == f"'{vendor.PASSWORD}'"
    assert settings["WEBKASSA_API_KEY"] == vendor.API_KEY
    url = re.match(r"http://127\.0\.0\.1:(\d+)(/api/v4/Authorize)$", settings["WEBKASSA_AUTH_URL"])
    assert url
    statuses = []
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", int(url[1])), timeout=10) as connection:
            send(connection, url[2], AUTHORIZE, f"x-api-key: {vendor.API_KEY}")
            head, body, _ = read(connection)
            statuses.append((head[9:12], b"Token" in body))
    assert statuses == [("503", False), ("503", False), ("200", False), ("200", True)]
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    told = re.findall(r" s  (\w+ \w+)", out)
    assert told[-3:] == ["login asked", "logged in", "Authorize answered"]


def test_every_behaviour_is_named_in_the_help() -> None:
    helped = subprocess.check_output([*SIMULATOR, "--help"], text=True)
    named = {*vendor.NAMED, *vendor.NUMBERED}
    listed = helped.partition("three times:")[2]
    assert named == set(re.findall(r"^  ([a-z-]+)(?::[A-Z]+)?  +\S", listed, re.MULTILINE))
    for name in vendor.NAMED:
        assert len(vendor.behaviours(f"2*{name}")) == 2
    for name in vendor.NUMBERED:
        assert len(vendor.behaviours(f"{name}:3")) == 1


@pytest.mark.parametrize(
    ("option", "what"),
    [*(("--authorize", what) for what in ("nonsense", "slow", "hang:3", "status:x")),
     ("--probe", "late:3"), ("--probe", "same"), ("--port", "x")],
)  # fmt: skip
def test_simulator_refuses_what_it_does_not_know(option: str, what: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        vendor.main([option, what])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert "--help" in said.err


# Relay -------------------------------------------------------------------------------------------


class Echo(socketserver.ThreadingTCPServer):
    """Answers every line with itself, and "more" a second time when `more` is set.

    `heard` is what came, `ended` that a client is gone.
    """

    daemon_threads = allow_reuse_address = True

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.ended, self.more = threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), EchoHandler)


class EchoHandler(socketserver.StreamRequestHandler):
    server: Echo

    def handle(self) -> None:
        for line in self.rfile:
            self.server.heard.append(line)
            self.wfile.write(line)
            if line == b"more\n" and self.server.more.wait(10):
                self.wfile.write(line)
        self.server.ended.set()


@pytest.fixture
def echo() -> Iterator[Echo]:
    with serving(Echo()) as server:
        yield server


@pytest.fixture
def relay(echo: Echo) -> Iterator[Relay]:
    with Relay(echo.server_address) as relay:
        yield relay


@pytest.fixture
def client(relay: Relay) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", relay.port), timeout=10) as connection:
        yield connection


def test_relay_passes_bytes_and_counts_round_trips(
    relay: Relay, client: socket.socket, echo: Echo
) -> None:
    for _ in range(3):
        client.sendall(b"line\n")
        assert client.recv(100) == b"line\n"
    assert relay.round_trips == 3
    client.sendall(b"more\n")
    assert client.recv(100) == b"more\n"
    echo.more.set()
    assert client.recv(100) == b"more\n"  # nobody asked for it again
    assert relay.round_trips == 4


def test_paused_relay_holds_back_bytes_and_ends(
    relay: Relay, client: socket.socket, echo: Echo
) -> None:
    client.sendall(b"before\n")
    assert client.recv(100) == b"before\n"
    relay.pause()
    client.sendall(b"after\n")
    client.settimeout(SILENCE)
    with pytest.raises(TimeoutError):
        client.recv(100)
    client.close()  # the server does not hear of it
    assert not echo.ended.wait(SILENCE)
    assert echo.heard == [b"before\n"]
    relay.resume()
    assert echo.ended.wait(10)
    assert echo.heard == [b"before\n", b"after\n"]


def test_cut_hangs_up_on_both_sides(relay: Relay, client: socket.socket, echo: Echo) -> None:
    client.sendall(b"line\n")
    assert client.recv(100) == b"line\n"
    relay.cut()
    assert client.recv(100) == b""
    assert echo.ended.wait(10)
    with socket.create_connection(("127.0.0.1", relay.port), timeout=10) as again:
        again.sendall(b"again\n")
        assert again.recv(100) == b"again\n"


@pytest.mark.parametrize("direction", ["delay_to_server", "delay_to_client"])
def test_delay_is_latency_and_no_slower_line(
    relay: Relay, client: socket.socket, direction: str
) -> None:
    setattr(relay, direction, 1)
    start = time.monotonic()
    received = b""
    for _ in range(5):
        client.sendall(b"line\n")
        threading.Event().wait(0.02)  # a packet each
    while len(received) < 25:
        received += client.recv(100)
    assert 1 <= time.monotonic() - start < 5  # as they would take one after another


def test_hooks_change_bytes_and_keep_them_back(
    relay: Relay, client: socket.socket, echo: Echo
) -> None:
    def upper(link: Link, data: bytes) -> bytes:
        return data.upper()

    def censor(link: Link, data: bytes) -> bytes | None:
        return None if b"SECRET" in data else data.replace(b"LINE", b"answer")

    relay.to_server, relay.to_client = upper, censor
    client.sendall(b"secret\n")
    await_(lambda: echo.heard == [b"SECRET\n"])
    client.settimeout(SILENCE)
    with pytest.raises(TimeoutError):
        client.recv(100)
    client.sendall(b"line\n")
    assert client.recv(100) == b"answer\n"


def test_hook_may_hang_up(relay: Relay, client: socket.socket, echo: Echo) -> None:
    relay.to_client = lambda link, data: link.cut()
    client.sendall(b"line\n")
    assert client.recv(100) == b""
    assert echo.heard == [b"line\n"]


def test_round_trips_of_postgresql_are_counted(server: Postgres) -> None:
    with Relay(("127.0.0.1", server.port)) as relay:
        connection = psycopg2.connect(
            host="127.0.0.1", port=relay.port, dbname="shop", user="postgres",
            password=DATABASE_PASSWORD, sslmode="disable", gssencmode="disable",
        )  # fmt: skip
        connection.autocommit = True
        before = relay.round_trips
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute("SELECT 1; SELECT 2")
            assert relay.round_trips == before + 1
            cursor.execute("SELECT 3")
            assert relay.round_trips == before + 2


def test_proxy_leads_any_name_to_its_server_or_refuses(echo: Echo) -> None:
    with ConnectProxy(echo.server_address) as proxy:
        for refusal, status in (("", b"200"), ("407 Proxy Authentication Required", b"407")):
            proxy.refusal = refusal
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
                client.sendall(b"CONNECT api.webkassa.kz:443 HTTP/1.1\r\n\r\n")
                assert client.recv(1000).split()[1] == status
                client.sendall(b"line\n")
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(100) == (b"" if refusal else b"line\n")
    assert proxy.hosts == ["api.webkassa.kz"] * 2
    assert echo.heard == [b"line\n"]
