"""All that the program can say, each with the cause that makes it say so.

`pytest tests/test_messages.py -n 0 -s` prints the list. Read it as a person who is woken by it.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from world import webkassa_simulator
from world.postgres import free_port
from world.relay import ConnectProxy
from world.shop import UPDATERS, Result, Shop, fingerprint, trigger
from world.tls import Authority
from world.waiting import await_
from world.webkassa_simulator import Simulator, answer, errors, hang, late

SOON = {"Retry-After": "3600"}  # longer than the deadline: the first answer is the last
PAGE = b"<html>Access denied</html>"


class Cause(NamedTuple):
    """What goes wrong, and what must be said of it."""

    code: int
    said: str  # a pattern that names what happened
    key: str = "as it was"
    env: Mapping[str, str] = MappingProxyType({})
    sql: str = ""
    script: Sequence[Any] = ()
    probes: Sequence[Any] = ()
    arguments: tuple[str, ...] = ("update",)
    around: Callable[[Shop, contextlib.ExitStack], object] = lambda shop, stack: None
    forked: bool = False  # it must have a process of its own
    stopped: bool = False  # by Ctrl-C after its first try, for it would try for long


# What goes on around a run -----------------------------------------------------------------------


Around = Callable[[Shop, contextlib.ExitStack], object]


def silent_server(shop: Shop, stack: contextlib.ExitStack) -> None:
    silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    shop.env["POSTGRES_PORT"] = str(silent.getsockname()[1])


def sasl(kind: int, text: bytes) -> bytes:
    """Return a message of PostgreSQL about a password."""
    return b"R" + (8 + len(text)).to_bytes(4, "big") + kind.to_bytes(4, "big") + text


def go_on(came: bytes) -> bytes:
    """Return the server's first message, given the client's."""
    return sasl(11, b"r=" + came.split(b"r=")[-1] + b"x,s=c2FsdA==,i=4096")


def answering(
    *answers: bytes | Callable[[bytes], bytes], tls: ssl.SSLContext | None = None
) -> Around:
    """In the place of PostgreSQL somebody answers so, and hangs up; with TLS after the first."""

    def serve(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                with contextlib.suppress(OSError):
                    for number, data in enumerate(answers):
                        if number == 1 and tls:
                            client = tls.wrap_socket(client, server_side=True)
                        came = client.recv(1024)
                        client.sendall(data if isinstance(data, bytes) else data(came))
                    if tls:
                        client.recv(1024)  # it is the other side that hangs up
                client.close()

    def around(shop: Shop, stack: contextlib.ExitStack) -> None:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        stack.callback(server.shutdown, socket.SHUT_RDWR)
        shop.env["POSTGRES_PORT"] = str(server.getsockname()[1])

    return around


def ed25519(shop: Shop, stack: contextlib.ExitStack) -> None:
    """PostgreSQL wants a password, bound to a certificate whose kind names no digest."""
    context = openssl_context(shop.home, "-newkey", "ed25519")
    methods = sasl(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")
    answering(b"S", methods, go_on, tls=context)(shop, stack)


def system_roots(shop: Shop, stack: contextlib.ExitStack) -> None:
    context = openssl_context(shop.home, "-newkey", "rsa:2048")
    answering(b"S", b"", tls=context)(shop, stack)
    shop.env |= {"PGSSLROOTCERT": "system", "PGSSLMODE": "verify-full"}


def poor_trigger(shop: Shop, stack: contextlib.ExitStack) -> None:
    """A role with all rights on the table, and a trigger that needs one on another."""
    role = stack.enter_context(shop.role("poor"))
    shop.sql(f"CREATE TABLE audit (key text); GRANT ALL ON api_keys, api_keys_id_seq TO {role}")
    shop.sql(trigger("INSERT INTO audit VALUES (NEW.api_key); RETURN NEW;"))


def poor_role(shop: Shop, stack: contextlib.ExitStack) -> None:
    """A role without a single privilege."""
    stack.enter_context(shop.role("poor"))


def role_without_the_table(shop: Shop, stack: contextlib.ExitStack) -> None:
    shop.sql("DROP TABLE api_keys")
    poor_role(shop, stack)


def standby(shop: Shop, stack: contextlib.ExitStack) -> None:
    shop.env["POSTGRES_HOST"] = str(stack.enter_context(shop.server.standby()))


def latin1(shop: Shop, stack: contextlib.ExitStack) -> None:
    shop.sql("DROP DATABASE IF EXISTS latin1")
    shop.sql("CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    stack.callback(shop.sql, "DROP DATABASE latin1 WITH (FORCE)")
    shop.env |= {"POSTGRES_DB": "latin1", "WEBKASSA_SERVICE_NAME": "Касса"}


def connection_lost(shop: Shop, stack: contextlib.ExitStack) -> None:
    """The connection is killed while Webkassa is asked, and PostgreSQL lets nobody in again."""

    def kill(handler: Any, good: bytes) -> None:
        shop.sql("ALTER ROLE keeper NOLOGIN")
        shop.kill_connections()
        handler.send(503, b"")

    stack.enter_context(shop.role("keeper", "SUPERUSER"))
    shop.webkassa.script.append(webkassa_simulator.Behaviour(kill, logs_in=False))


def serve_tls(shop: Shop, stack: contextlib.ExitStack, context: ssl.SSLContext) -> None:
    shop.webkassa = stack.enter_context(Simulator(tls=context))
    shop.webkassa.issued.append(shop.old_key)
    shop.webkassa.live = shop.old_key
    shop.env["WEBKASSA_AUTH_URL"] = shop.webkassa.url


def certificate(*names: str, trusted: bool = True, **more: Any) -> Around:
    """Webkassa shows a certificate of these names."""

    def around(shop: Shop, stack: contextlib.ExitStack) -> None:
        authority = Authority()
        context = authority.server_context("127.0.0.1")
        authority.authority.issue_cert(*(names or ("127.0.0.1",)), **more).configure_cert(context)
        if trusted:
            shop.env["REQUESTS_CA_BUNDLE"] = str(authority.write(shop.home / "ca.pem"))
        serve_tls(shop, stack, context)

    return around


def weak_certificate(*request: str) -> Around:
    """Webkassa shows a certificate of a good issuer that OpenSSL was asked to make so."""

    def around(shop: Shop, stack: contextlib.ExitStack) -> None:
        shop.env["REQUESTS_CA_BUNDLE"] = str(shop.home / "ca.pem")
        issued = ("-CA", "ca.pem", "-CAkey", "ca-key.pem")
        serve_tls(shop, stack, openssl_context(shop.home, *issued, *request))

    return around


def rejected_issuer(shop: Shop, stack: contextlib.ExitStack) -> None:
    """The bundle is of OpenSSL's own kind, as Red Hat's is, and says what an issuer is trusted for."""
    certificate()(shop, stack)
    command = "openssl x509 -in ca.pem -addreject serverAuth -out rejects.pem"
    subprocess.run(command.split(), check=True, cwd=shop.home)
    shop.env["REQUESTS_CA_BUNDLE"] = str(shop.home / "rejects.pem")


def openssl_context(folder: Path, *request: str) -> ssl.SSLContext:
    """Return a context for a server of 127.0.0.1, with an issuer at hand."""
    authority = Authority()
    authority.write(folder / "ca.pem")
    authority.authority.private_key_pem.write_to_path(str(folder / "ca-key.pem"))
    command = ["openssl", "req", "-x509", *request, "-nodes", "-keyout", "key.pem", "-out", "cert.pem",
               "-days", "9", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def intermediate_left_out(shop: Shop, stack: contextlib.ExitStack) -> None:
    """Its issuer is good, but the host does not show that one's certificate."""
    authority = Authority()
    child = authority.authority.create_child_ca()
    leaf = child.issue_cert("127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    leaf.private_key_pem.write_to_path(str(shop.home / "key.pem"))
    leaf.cert_chain_pems[0].write_to_path(str(shop.home / "leaf.pem"))
    context.load_cert_chain(shop.home / "leaf.pem", shop.home / "key.pem")
    shop.env["REQUESTS_CA_BUNDLE"] = str(authority.write(shop.home / "ca.pem"))
    serve_tls(shop, stack, context)


def other_authority(shop: Shop, stack: contextlib.ExitStack) -> None:
    certificate()(shop, stack)
    Authority().write(shop.home / "ca.pem")


def no_tls(shop: Shop, stack: contextlib.ExitStack) -> None:
    shop.env["WEBKASSA_AUTH_URL"] = shop.webkassa.url.replace("http:", "https:")


def no_certificate(shop: Shop, stack: contextlib.ExitStack) -> None:
    """The bundle is a text of another kind."""
    certificate()(shop, stack)
    (shop.home / "ca.pem").write_text("canary")


def refusing_proxy(shop: Shop, stack: contextlib.ExitStack) -> None:
    proxy = stack.enter_context(ConnectProxy(("127.0.0.1", shop.webkassa.port)))
    proxy.refusal = "403 Forbidden"
    shop.env |= {"HTTPS_PROXY": proxy.url, "WEBKASSA_AUTH_URL": "api.webkassa.kz/api/Authorize"}


def deaf(shop: Shop, stack: contextlib.ExitStack) -> None:
    stack.enter_context(shop.webkassa.refusing_connections())


def refused_before(shop: Shop, stack: contextlib.ExitStack) -> None:
    shop.webkassa.password = "changed"
    assert shop.main("update", "--if-needed").code == 77
    shop.webkassa.calls.clear()


def hang_up(handler: Any, good: bytes) -> None:
    handler.hang_up()


YESTERDAY = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
LAST_YEAR, NEXT_YEAR = (YESTERDAY + datetime.timedelta(days=days) for days in (-365, 365))
TWO_ROWS = """ALTER TABLE api_keys DROP CONSTRAINT api_keys_service_name_key;
              UPDATE api_keys SET service_name = 'Webkassa', api_key = 'k'"""
REFUSED = "{host} answers HTTP 200, error code 1: .*refused"
SHORT = "UPDATE api_keys SET api_key = left(api_key, 5); ALTER TABLE api_keys ALTER api_key TYPE varchar(31)"
NO_TIMES = "ALTER TABLE api_keys DROP created_at, DROP updated_at"

CAUSES = {
    # 78: settings
    "no login": Cause(78, "WEBKASSA_LOGIN: is not set", env={"WEBKASSA_LOGIN": ""}),
    "no such settings file": Cause(
        78, "/nowhere/x.env:? does not exist", arguments=("--env-file", "/nowhere/x.env")),
    "age unknown, probe off": Cause(
        78, "WEBKASSA_PROBE_URL.*off", sql=NO_TIMES, env={"WEBKASSA_PROBE_URL": "off"},
        arguments=("update", "--if-needed")),
    # 75: PostgreSQL is not to be had
    "database: nobody listens": Cause(
        75, "host=127.0.0.1.*connection refused", env={"POSTGRES_PORT": str(free_port())}),
    "database: no such name": Cause(
        75, "host=db.invalid.*cannot be resolved", env={"POSTGRES_HOST": "db.invalid"}),
    "database: no such socket": Cause(
        75, "host=/nowhere.*connection refused", env={"POSTGRES_HOST": "/nowhere"}),
    "database: wrong password": Cause(
        75, "user=postgres.*is there.*password", env={"POSTGRES_PASSWORD": "wrong-canary"}),
    "database: no such role": Cause(
        75, "user=nobody.*is there.*role", env={"POSTGRES_USER": "nobody"}),
    "database: no such database": Cause(
        75, "dbname=shpo.*is there.*database", env={"POSTGRES_DB": "shpo"}),
    "database: no TLS": Cause(75, "is there.*TLS.*sslmode=require", env={"PGSSLMODE": "require"}),
    # HAProxy 2.6.12 (Debian's), tcp mode, with and without checks: libpq and we say the same of it
    "database: every server behind the balancer down": Cause(
        75, "hangs up at once.*HAProxy", around=answering()),
    "database: hangs up later": Cause(75, "hangs up at once.*HAProxy", around=answering(b"N")),
    "database: Ed25519": Cause(75, "Ed25519.*PGCHANNELBINDING=disable", around=ed25519),
    "database: system's certificates": Cause(
        75, "rejected.*sslrootcert=system .*ca-certificates.crt", around=system_roots),
    "database: says nothing": Cause(75, "does not answer", around=silent_server),
    "database: standby": Cause(75, "(?=.*25006).*read_only", around=standby),
    "database: full of clients": Cause(
        75, "(?=.*53300).*too_many_connections",
        sql=trigger("RAISE 'no' USING ERRCODE = 'too_many_connections';")),
    "database: lost meanwhile": Cause(75, "user=keeper.*the connection is rejected", key="works, may die", around=connection_lost, forked=True),
    # 73: PostgreSQL refuses the write
    "table: no privilege": Cause(
        73, "GRANT SELECT, INSERT, UPDATE ON public.api_keys TO poor", around=poor_role),
    "table: a trigger lacks a right": Cause(
        73, "(?!.*GRANT).*a trigger .*42501.*SECURITY DEFINER", around=poor_trigger),
    "table: none, and no right to make it": Cause(
        73, "42501.*GRANT[^;]* CREATE[^;]* ON SCHEMA public TO poor", around=role_without_the_table),
    "table: other schema": Cause(
        73, "API_KEYS_TABLE=s.api_keys", sql="CREATE SCHEMA s; ALTER TABLE api_keys SET SCHEMA s"),
    "table: other case": Cause(
        73, "API_KEYS_TABLE=public.Api_Keys", sql='ALTER TABLE api_keys RENAME TO "Api_Keys"'),
    "table: no key column": Cause(
        73, "has no column api_key", sql="ALTER TABLE api_keys RENAME api_key TO key"),
    "table: no service column": Cause(
        73, "has no column service_name", sql="ALTER TABLE api_keys RENAME service_name TO s"),
    "table: key column bytea": Cause(
        73, "api_key.* text.* bytea",
        sql="ALTER TABLE api_keys ALTER api_key TYPE bytea USING api_key::bytea"),
    "table: key column uuid": Cause(
        73, "api_key.* text.* uuid",
        sql="DELETE FROM api_keys WHERE id = 2;"
        "ALTER TABLE api_keys ALTER api_key TYPE uuid USING api_key::uuid"),
    "table: key column too short": Cause(73, r"(?=.*22001).*api_key character varying\(31\)", sql=SHORT),
    "table: a name that it cannot hold": Cause(73, "(?=.*22P05).*encoding.*Касса", around=latin1, key="as it was"),
    "table: two rows": Cause(73, "has 2 rows", sql=TWO_ROWS),
    "table: a row of a like name": Cause(
        73, "no row 'Webkassa', but .*'webkassa'",
        sql="UPDATE api_keys SET service_name = 'webkassa' WHERE id = 1"),
    "table: another column wants a value": Cause(
        73, "23502.*user_id",
        sql="DELETE FROM api_keys WHERE id = 1; ALTER TABLE api_keys ALTER user_id SET NOT NULL"),
    "table: a trigger raises": Cause(73, "P0001", sql=trigger("RAISE 'no: %', NEW.api_key;")),
    "table: a trigger swallows": Cause(73, "trigger or row-level security refuses, drops", sql=trigger("RETURN NULL;")),
    "table: a view": Cause(
        73, "refuses", sql="ALTER TABLE api_keys RENAME TO t;"
        "CREATE VIEW api_keys AS SELECT DISTINCT * FROM t"),
    "disk full": Cause(73, "(?=.*53100).*disk_full.*(space|room)", sql=trigger("RAISE 'no' USING ERRCODE = '53100';")),
    # 77: Webkassa refuses
    "wrong password, and the table was made": Cause(
        77, "(?i)(?=.*table shop.public.api_keys).*made.*", env={"WEBKASSA_PASSWORD": "wrong-canary"},
        sql="DROP TABLE api_keys", key="none"),
    "wrong password": Cause(77, REFUSED, env={"WEBKASSA_PASSWORD": "wrong-canary"}),
    "wrong API key": Cause(77, "HTTP 401.*refused.*WEBKASSA_API_KEY", script=[answer(401, errors(""))]),
    "refused by memory": Cause(
        77, r"refused this login at [-\d]+ [:\d]+ \S+", around=refused_before,
        arguments=("update", "--if-needed")),
    # 69: Webkassa cannot be reached or is failing
    "vendor: nobody listens": Cause(69, "{host} refuses the connection", around=deaf, stopped=True),
    "vendor: no such name": Cause(
        69, "webkassa.invalid.*cannot be resolved", stopped=True,
        env={"WEBKASSA_AUTH_URL": "https://webkassa.invalid/api/Authorize"}),
    "vendor: no proxy": Cause(
        69, "api.webkassa.kz cannot be reached through the proxy", stopped=True,
        env={"WEBKASSA_AUTH_URL": "", "HTTPS_PROXY": "http://127.0.0.1:9"}),
    "vendor: proxy refuses": Cause(
        69, "api.webkassa.kz cannot be reached through the proxy", stopped=True, around=refusing_proxy),
    "vendor: unknown issuer": Cause(
        69, "unknown issuer.*REQUESTS_CA_BUNDLE", stopped=True, around=certificate(trusted=False)),
    "vendor: unknown issuer, a bundle is given": Cause(
        69, "unknown issuer.*REQUESTS_CA_BUNDLE", stopped=True, around=other_authority),
    "vendor: intermediate certificate left out": Cause(
        69, "intermediate certificate is missing.*leaves out", stopped=True, around=intermediate_left_out),
    **{f"vendor: {kind}": Cause(69, "is too weak.*owner", stopped=True, around=weak_certificate(*request))
       for kind, request in {"short key": ("-newkey", "rsa:1024"),
                             "SHA-1": ("-newkey", "rsa:2048", "-sha1", "-addext", "keyUsage=digitalSignature,keyCertSign")}.items()},
    "vendor: certificate for clients only": Cause(
        69, "made for another use.*owner", stopped=True,
        around=weak_certificate("-newkey", "rsa:2048", "-addext", "extendedKeyUsage=clientAuth",
                                "-addext", "keyUsage=digitalSignature")),
    "vendor: the bundle rejects the issuer": Cause(
        69, "REQUESTS_CA_BUNDLE trusts for no server.*Correct it", stopped=True, around=rejected_issuer),
    **({"vendor: made by no rules": Cause(
        69, "not by the rules.*owner", stopped=True, around=weak_certificate("-newkey", "rsa:2048"))}
       if sys.version_info >= (3, 13) else {}),
    "vendor: certificate expired": Cause(
        69, "expired.*clock", stopped=True,
        around=certificate(not_before=LAST_YEAR, not_after=YESTERDAY)),
    "vendor: certificate of tomorrow": Cause(
        69, "not valid yet.*clock", stopped=True, around=certificate(not_before=NEXT_YEAR, not_after=NEXT_YEAR)),
    "vendor: certificate of another name": Cause(
        69, "another name.*URL", stopped=True, around=certificate("else.example")),
    "vendor: no TLS there": Cause(69, "TLS.*URL", stopped=True, around=no_tls),
    "a bundle without certificates": Cause(
        69, "REQUESTS_CA_BUNDLE holds no certificate", stopped=True, around=no_certificate),
    "vendor: 503": Cause(
        69, "{host} answers HTTP 503: it is failing", key="works, may die", script=[answer(503, PAGE, SOON)]),
    "vendor: 429": Cause(69, "{host} answers HTTP 429", script=[answer(429, b"", SOON)]),
    "vendor: unknown error": Cause(
        69, "HTTP 200, error code -1", key="works, may die", script=[answer(200, errors(-1), SOON)]),
    "vendor: a firewall refuses": Cause(
        69, "HTTP 403.*(firewall|proxy|in between)", script=[answer(403, PAGE, SOON)]),
    "vendor: hangs up": Cause(
        69, "{host} broke the connection off", key="works, may die", stopped=True,
        script=[webkassa_simulator.Behaviour(hang_up, logs_in=False)] * 9),
    "vendor: other host": Cause(69, "served on another host", script=[answer(505, b"")]),
    "cannot tell whether it is needed": Cause(
        69, "could not be probed", sql=NO_TIMES, probes=[answer(500)], arguments=("update", "--if-needed")),
    # 76: an answer that makes no sense
    "vendor: a page": Cause(
        76, "HTTP 200, but no (JSON|usable token)", key="works, may die", script=[answer(200, PAGE, SOON)]),
    "vendor: no such page": Cause(76, key="either", said="HTTP 404.*WEBKASSA_AUTH_URL", script=[answer(404, PAGE)]),
    "vendor: redirects": Cause(
        76, key="either", said="HTTP 301.*WEBKASSA_AUTH_URL", script=[webkassa_simulator.redirect("https://x.example/", 301)]),
    "vendor: unknown code": Cause(76, "error code 99", script=[answer(200, errors(99))]),
    "vendor: no token three times": Cause(
        76, "no usable token", key="works, may die", script=[answer(200, {"Data": {}})] * 3),
}  # fmt: skip

KEY = {
    "either": "the stored key {old} (is as it was|still works)",
    "as it was": "the stored key( {old})? is as it was",
    "works, may die": "the stored key {old} still works[,.] +but .* may (still )?(kill|end) it",
    "dead": "the stored key {old} is dead",
    "none": "no key is stored",
}


COMMAND = "sudo webkassa-key"  # as on a server; other ways of calling are tested elsewhere


def show(cause: str, result: Result) -> None:
    print(f"\n{cause} [{result.code}]\n    " + result.err.strip().replace("\n", "\n    "))


def quiet(result: Result) -> Result:
    """Leave out what -v adds."""
    lines = [line for line in result.err.splitlines(True) if not line.startswith("DEBUG")]
    return Result(result.code, result.out, "".join(lines))


def run(shop: Shop, cause: Cause) -> Result:
    shop.webkassa.script.extend(cause.script)
    shop.webkassa.probe_script.extend(cause.probes)
    env = {**cause.env, "WEBKASSA_KEY_COMMAND": COMMAND}
    if not cause.stopped and not cause.forked:
        return quiet(shop.main(*cause.arguments, **env))
    process = shop.start(*cause.arguments, **env)
    if cause.stopped:  # before a further try it asks whether the transaction still stands
        await_(lambda: shop.sql(UPDATERS + " AND query = 'SELECT 1'"))
        process.send_signal(signal.SIGINT)
    return shop.finish(process)


@pytest.mark.parametrize("name", CAUSES)
def test_failed_update_says_what_happened_how_the_key_stands_and_what_to_type(
    shop: Shop, name: str
) -> None:
    cause = CAUSES[name]
    if cause.sql:
        shop.sql(cause.sql)
    with contextlib.ExitStack() as stack:
        cause.around(shop, stack)
        result = run(shop, cause)
        show(name, result)
        alive = shop.webkassa.live == shop.old_key
    facts = {"old": fingerprint(shop.old_key), "host": f"127.0.0.1:{shop.webkassa.port}"}
    assert (result.code, result.out) == (cause.code, "")
    assert cause.code not in (73, 78) or shop.webkassa.authorizations == 0
    flat = result.err.replace("\n", " ")
    assert re.search(cause.said.format(**facts), flat)
    assert "canary" not in result.err
    assert "a new row" not in result.err  # none was written
    # How the stored key stands; and it is true
    assert re.search(KEY[cause.key].format(**facts), flat, re.IGNORECASE)
    assert alive == (cause.key != "dead")
    # What to type now; of a dead key that is nothing for later
    assert re.search(f" {COMMAND} (update|check|status)$", result.err.rstrip())
    assert not re.search(f"{COMMAND} (update|check|status).", result.err)  # it ends its line
    assert alive or "Run again now" in flat


# A login that got no answer may take effect later -------------------------------------------------


class Unanswered(NamedTuple):
    said: str
    behaviour: Any
    verdict: Any = None  # of the probe, if it does not tell the truth
    key: str | None = "their own"


UNANSWERED = {
    "Dead": Unanswered("the stored key {old} is dead. Run again now", hang()),
    "Late": Unanswered(
        "the stored key {old} still works[,.] +but .* may (still )?(kill|end) it", late(30)
    ),
    "Unclear": Unanswered("the stored key {old} may be dead. Run again now", hang(), errors(-1)),
    "First": Unanswered("no key is stored. (Run|Try) again", late(30), key=None),
}


@pytest.mark.slow
def test_login_without_an_answer_leaves_no_certainty(shop: Shop) -> None:
    """Each of a service and a Webkassa of its own; they take the whole deadline, so all at once."""
    with contextlib.ExitStack() as stack:
        runs = {}
        for service, case in UNANSWERED.items():
            webkassa = stack.enter_context(Simulator())
            key = webkassa.issue()
            webkassa.script.append(case.behaviour)
            if case.verdict:
                webkassa.verdict = lambda token, verdict=case.verdict: verdict
            if case.key:
                insert = "INSERT INTO api_keys (service_name, api_key, created_at, updated_at)"
                shop.sql(f"{insert} VALUES (%s, %s, now(), now())", service, key)
            env = {"WEBKASSA_AUTH_URL": webkassa.url, "WEBKASSA_DEADLINE": "10s"}
            process = shop.start(WEBKASSA_SERVICE_NAME=service, WEBKASSA_KEY_COMMAND=COMMAND, **env)
            runs[service] = (process, key, webkassa)
        for service, (process, key, webkassa) in runs.items():
            result = shop.finish(process)
            show(f"vendor: no answer, {service}", result)
            assert (result.code, webkassa.authorizations) == (69, 1)
            assert f"127.0.0.1:{webkassa.port} does not answer in time" in result.err
            said = UNANSWERED[service].said.format(old=fingerprint(key))
            assert re.search(said, result.err, re.IGNORECASE)
            assert re.search(f": {COMMAND} (update|status)$", result.err.rstrip())
            assert "a new row" not in result.err  # none was written


# What is no failure ------------------------------------------------------------------------------


class News(NamedTuple):
    said: str
    arguments: tuple[str, ...] = ("update",)
    sql: str = ""
    env: Mapping[str, str] = MappingProxyType({})
    probes: Sequence[Any] = ()
    code: int = 0
    token: str = ""
    live: bool = True  # the stored key


OLD = "UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' - interval '{}' WHERE id = 1"
NO_ROW = "DELETE FROM api_keys WHERE id = 1"
NEWS = {
    "a good run": News("Stored the new key {new} from {host} in {table} in place of {old}, 30.0 h old"),
    "the first key": News("Stored the new key {new} from {host} in {table} where none was", sql=NO_ROW),
    "a new row beside others": News("(beside|other row)", sql=NO_ROW),
    "no table yet": News("WARNING: .*made the missing table {table}. Do consumers read this database", sql="DROP TABLE api_keys"),
    "young": News("Nothing to do: .*{old}, 1.0 h old; .*says alive", ("update", "--if-needed"), sql=OLD.format("1 h")),
    "young, and dead for all we know": News(
        "Nothing to do: .*{old}, 1.0 h old; .*says unclear", ("update", "--if-needed"),
        sql=OLD.format("1 h"), live=False, probes=[answer(500)]),
    "asked for in vain": News("0badc0de is (no longer stored|stored no more), but {old}", ("update", "--if-key", "0badc0de")),
    "asked for too soon": News(
        "Nothing to do: the key {old} is younger than a minute", ("update", "--if-key", "{old}"), sql=OLD.format("9 s")),
    "new key not probed": News("WARNING: .*could not be probed", probes=[answer(500)]),
    "old key of another form": News(
        "WARNING: .*looks like no key", sql="UPDATE api_keys SET api_key = 'Bearer ' || api_key WHERE id = 1"),
    "column that pads": News(
        "WARNING: .*filled up with blanks", sql="ALTER TABLE api_keys ALTER api_key TYPE char(64)"),
    "new key of another form": News("WARNING: .*looks unlike", token="Z" * 40),
    "monitor gone": News("WARNING: .*HEALTHCHECK_URL", env={"HEALTHCHECK_URL": "http://127.0.0.1:9/x"}),
    "check: good": News("ok +stored key: .*{old}", ("check",), sql=OLD.format("1 h")),
    "check: dead": News("WARN +stored key: .*{old}.* is dead", ("check",), live=False),
    "check: none": News("(?s)^(?!.*new row).*WARN +stored key: no key is stored", ("check",), sql=NO_ROW),
    "check: no table": News("(?s)^(?!.*made).*WARN +write: .*no table; do consumers read this database", ("check",), sql="DROP TABLE api_keys"),
    "status: good": News("^WEBKASSA OK - .*{old}.*[|]age=", ("status",), sql=OLD.format("1 h")),
    "status: old": News("^WEBKASSA WARNING - .*30.0 h old", ("status",), code=1),
    "status: very old": News("^WEBKASSA CRITICAL - .*50.0 h old", ("status",), sql=OLD.format("50 h"), code=2),
    "status: dead": News("^WEBKASSA CRITICAL - .*is dead", ("status",), live=False, code=2),
    "status: none": News("^WEBKASSA CRITICAL - no key is stored", ("status",), sql=NO_ROW, code=2),
    "status: no time": News("^WEBKASSA UNKNOWN - .*no usable time", ("status",), code=3, sql=NO_TIMES),
    "status: settings": News("^WEBKASSA UNKNOWN - .*settings", ("status",), env={"WEBKASSA_LOGIN": ""}, code=3),
    "status: no database": News("^WEBKASSA UNKNOWN - PostgreSQL", ("status",), env={"POSTGRES_PORT": "9"}, code=3),
}  # fmt: skip


@pytest.mark.parametrize("name", NEWS)
def test_what_is_no_failure_is_told_in_short(shop: Shop, name: str) -> None:
    news = NEWS[name]
    if news.sql:
        shop.sql(news.sql)
    if news.token:
        shop.webkassa.new_token = lambda: news.token
    if not news.live:
        shop.webkassa.live = None
    shop.webkassa.probe_script.extend(news.probes)
    old = fingerprint(shop.old_key)
    arguments = [argument.format(old=old) for argument in news.arguments]
    result = quiet(shop.main(*arguments, **{**news.env, "WEBKASSA_KEY_COMMAND": COMMAND}))
    show(name, Result(result.code, "", result.out + result.err))
    assert result.code == news.code
    facts = {"host": f"127.0.0.1:{shop.webkassa.port}", "table": "shop.public.api_keys"}
    new = fingerprint(shop.webkassa.issued[-1])
    said = news.said.format(old=old, new=new, **facts)
    assert re.search(said, result.out + result.err)
    if news.arguments[0] == "update":
        told = re.findall("^INFO: .*(Stored the new key|Nothing to do|read it)", result.err, re.M)
        assert len(told) == 1
