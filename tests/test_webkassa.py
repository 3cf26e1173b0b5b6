"""Talking to Webkassa: whatever it answers, the row is untouched or holds a valid token."""

from __future__ import annotations

import gzip
import json
import re
import string
import zlib
from typing import Any

import pytest
from world import webkassa_simulator as vendor
from world.monitor import Monitor
from world.relay import ConnectProxy
from world.shop import Shop, fingerprint
from world.tls import Authority
from world.waiting import within
from world.webkassa_simulator import (
    ALIVE,
    Behaviour,
    Handler,
    Simulator,
    answer,
    beside,
    cut,
    drip,
    errors,
    flood,
    hang,
)

GOOD = {"Data": {"Token": "0123456789abcdef0123456789abcdef"}}
EXIT_CODES = {0, 69, 76, 77, 78}


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        *((answer(200, errors(one)), 77) for one in (1, "1", 1.0, 3)),
        (answer(200, {"Errors": {"Code": 1}}), 77),
        (answer(200, '{"Errors": [{"Code": 1, "Text": "Неверный"}]}'.encode("cp1251")), 77),
        (answer(500, errors(1)), 77),
        (answer(401, errors(-1)), 77),
        (answer(403, {"Errors": []}), 77),
        (answer(403, {"Data": None}), 77),
        *((answer(200, errors(one)), 76) for one in (7, 13)),
        (answer(404, b"<html>"), 76),
        (answer(301, b"", {"Location": "/api/v4/Authorize"}), 76),
        (answer(302), 76),
        (answer(400), 76),
    ],
)
def test_refusal_is_never_tried_again(shop: Shop, reply: Any, code: int) -> None:
    shop.webkassa.script.append(reply)
    result = shop.expect(code, 1)
    assert shop.is_untouched
    if code == 77:
        assert "is as it was" in result.err


def test_wrong_password_is_one_call(shop: Shop) -> None:
    result = shop.run(WEBKASSA_PASSWORD="canary-wrong")
    assert (result.code, len(shop.webkassa.calls)) == (77, 1)
    assert "canary-wrong" not in result.err
    assert shop.is_untouched


@pytest.mark.parametrize(
    "reply",
    [
        answer(503),
        answer(500, b"<html>"),
        answer(429),
        answer(408),
        answer(200, errors(-1)),
        answer(200, b"<html>"),
        answer(200, b"[" * 50_000),
        answer(200, {}),
        answer(200, {"Data": None, "Errors": None}),
        answer(200, GOOD | {"Errors": [{"Text": "no code"}]}),
        answer(200, GOOD | {"Errors": {"Code": -1}}),
        cut(),
        answer(401, b'"wrong URL or empty API key"'),  # not the vendor's JSON: who said that?
        answer(401),
        answer(403, b"<html>"),
        answer(403, {"error": "blocked by the firewall"}),
    ],
)
def test_passing_trouble_is_tried_again(shop: Shop, reply: Any) -> None:
    shop.webkassa.script.append(reply)
    shop.renew(logins=2)


def test_what_refuses_in_between_is_no_refusal_of_the_login(shop: Shop) -> None:
    shop.webkassa.script.extend([answer(403, b"<html>", {"Retry-After": "60"})] * 9)
    result = shop.expect(69, 1)
    assert "in between" in result.err
    assert f"{fingerprint(shop.old_key)} is as it was" in result.err


def test_byte_order_mark_and_null_errors_are_no_trouble(shop: Shop) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(GOOD | {"Errors": None}).encode()
    shop.webkassa.script.append(answer(200, body))
    assert shop.run(WEBKASSA_PROBE_URL="off").code == 0
    assert (shop.key, shop.webkassa.authorizations) == (GOOD["Data"]["Token"], 1)


@pytest.mark.parametrize("status", [302, 307, 308])
def test_redirect_is_never_followed(shop: Shop, status: int) -> None:
    with Simulator() as elsewhere:
        shop.webkassa.script.append(vendor.redirect(elsewhere.url, status))
        assert shop.run().code == 76
        assert elsewhere.calls == []
    assert shop.is_untouched


def test_token_in_a_redirect_counts(shop: Shop) -> None:
    """requests read the body by itself, whole, to be ready for the next host."""
    there = {"Location": "https://x.example/"}
    shop.webkassa.script.append(Behaviour(lambda handler, good: handler.send(302, good, there)))
    assert "HTTP 302" in shop.renew().err


FLAWED = {
    "too long, closed": vendor.wrong_length(),
    "too long, open": vendor.wrong_length(leave_open=True),
    "chunked, closed": vendor.unfinished_chunks(),
    "chunked, open": vendor.unfinished_chunks(leave_open=True),
    "no length, closed": vendor.no_length(leave_open=False),
    "no length, open": vendor.no_length(leave_open=True),
    "gzip": vendor.real_gzip(),
    "false gzip": vendor.false_gzip(),
}


@pytest.mark.parametrize("flaw", FLAWED)  # a proxy may ignore that we accept no compressed answer
def test_whole_json_is_an_answer_however_its_transfer_ends(shop: Shop, flaw: str) -> None:
    """A token thrown away is a dead key; and waiting for more is a longer dead window."""
    shop.webkassa.script.append(FLAWED[flaw])
    shop.webkassa.probe_script.append(FLAWED[flaw])
    assert "could not be probed" not in shop.renew().err
    assert shop.webkassa.probes == 1
    assert shop.webkassa.stamps("probe")[0] - shop.webkassa.stamps("login")[-1] < 6


@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_interim_answer_is_not_the_answer(shop: Shop, status: int) -> None:
    """Python skips but 100. The real one came late, and was taken for that to the next login."""
    shop.webkassa.script.extend([vendor.interim(status)] * 2)
    shop.renew()


@pytest.mark.parametrize(
    "reply", [answer(503), answer(200, b"<html>"), answer(200, {}), answer(429)]
)
def test_connection_of_an_answer_without_a_token_is_not_used_again(shop: Shop, reply: Any) -> None:
    """A late answer to one login would be taken for the answer to the next."""
    shop.webkassa.script.append(reply)
    assert shop.run().code == 0
    first, second, probe, *_ = (call.client_port for call in shop.webkassa.calls)
    assert first != second == probe


def test_interim_answer_and_then_none_may_have_been_a_login(shop: Shop) -> None:
    def act(handler: Handler, good: bytes) -> None:
        handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        handler.hang_up()

    shop.webkassa.script.append(act)
    shop.renew(logins=2)


def test_late_body_of_a_head_answer_is_not_taken_for_the_probes(shop: Shop) -> None:
    """`check` reaches the host, then probes the stored key."""
    assert shop.run("check").code == 0
    assert [call.method for call in shop.webkassa.calls] == ["HEAD", "POST"]
    assert len({call.client_port for call in shop.webkassa.calls}) == 2


def test_probe_brings_no_cookie_of_the_login(shop: Shop) -> None:
    """Consumers have none. Seen: a dead key "still works" by it, and the token in hand was lost."""

    def let_in(handler: Handler, good: bytes) -> None:
        handler.send(200, json.dumps(ALIVE).encode() if "Cookie" in handler.headers else good)

    cookie = {"Set-Cookie": "session=1; Path=/"}
    shop.webkassa.script.extend([beside(errors(-1), headers=cookie)] * 3)
    shop.webkassa.probe_script.extend([let_in] * 9)
    shop.renew()


@pytest.mark.parametrize("reply", [answer(200, vendor.directory(4500)), vendor.real_gzip()])
def test_long_directory_is_read_whole_and_at_once(shop: Shop, reply: Any) -> None:
    """Consumers hold a dead key meanwhile. A parse at every brace took minutes for so long a list."""
    units = vendor.directory(4500)
    assert 512 * 1024 < len(json.dumps(units)) < 1024 * 1024
    shop.webkassa.verdict = lambda token: units
    shop.webkassa.probe_script.append(reply)
    with within(40):
        result = shop.expect(0, 1)
    assert "could not be probed" not in result.err


def test_what_follows_a_whole_json_does_not_spoil_it(shop: Shop) -> None:
    shop.webkassa.script.append(answer(200, json.dumps(GOOD).encode() + b"\n<br />Notice"))
    shop.run(WEBKASSA_PROBE_URL="off")
    assert (shop.key, shop.webkassa.authorizations) == (GOOD["Data"]["Token"], 1)


def deflate_bare(content: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(content) + compressor.flush()


CODED = {
    "gzip, chunked": ("Transfer-Encoding: gzip, chunked", gzip.compress),
    "identity, chunked": ("Transfer-Encoding: identity, chunked", bytes),
    "deflate": ("Content-Encoding: deflate", zlib.compress),
    "bare deflate": ("Content-Encoding: deflate", deflate_bare),
    "a line before": ("X: y", lambda good: b"Notice: undefined index\n" + good),
    "100 headers": ("\r\n".join(f"X-{n}: y" for n in range(100)), bytes),  # Python reads their end
    "200 headers": ("\r\n".join(f"X-{n}: y" for n in range(200)), bytes),
}


@pytest.mark.parametrize("coding", CODED)
def test_token_is_read_however_the_answer_is_coded(shop: Shop, coding: str) -> None:
    field, encode = CODED[coding]

    def act(handler: Handler, good: bytes) -> None:
        body = encode(good)
        if "chunked" in field:
            body = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        handler.raw(field, body=body)
        handler.close_connection = True

    shop.webkassa.script.append(act)
    shop.renew()


def test_length_that_counts_characters_instead_of_bytes_costs_no_token(shop: Shop) -> None:
    def act(handler: Handler, good: bytes) -> None:
        text = json.dumps(json.loads(good) | {"Text": "Успешная авторизация"}, ensure_ascii=False)
        handler.raw(f"Content-Length: {len(text)}", body=text.encode())
        handler.close_connection = True

    shop.webkassa.script.append(act)
    shop.renew()


def test_answer_without_content_that_has_some_is_read(shop: Shop) -> None:
    shop.webkassa.script.append(lambda handler, good: handler.send(204, good))
    shop.renew()


@pytest.mark.parametrize("flaw", FLAWED)
def test_dead_key_is_known_as_dead_however_the_transfer_ends(shop: Shop, flaw: str) -> None:
    shop.webkassa.live = None
    shop.webkassa.probe_script.append(FLAWED[flaw])
    assert shop.run("status").code == 2


@pytest.mark.parametrize(
    "reply",
    [vendor.respelled(), vendor.respelled(str.upper), answer(200, {"Data": {}}), answer(200, b"<html>"), answer(204),
     answer(200, {}), answer(200, {"Errors": [{"Text": "x"}]})],
)  # fmt: skip
def test_login_without_a_usable_token_is_tried_three_times_at_most(shop: Shop, reply: Any) -> None:
    """Each may have been a login, whatever its bytes, and have killed the key before it."""
    shop.webkassa.script.extend([reply] * 9)
    result = shop.expect(76, 3)
    assert shop.is_untouched
    if reply.logs_in:
        assert f"{fingerprint(shop.old_key)} is dead" in result.err


def test_no_compressed_answer_is_asked_for(shop: Shop) -> None:
    assert shop.run().code == 0
    assert {call.headers["accept-encoding"] for call in shop.webkassa.calls} == {"identity"}


# Time and size -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "least"),
    [
        ("1", 1.0),
        ("1.5", 1.5),
        *((odd, 0) for odd in ("nonsense", "-5", "nan", "1.2.3", "Wed, 01 Jan 2020 00:00:00 GMT")),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 0),  # a date would trust somebody's clock
        ("1" * 400, None),
        ("86400", None),
    ],
)
def test_retry_after_is_obeyed_as_far_as_the_deadline_allows(
    shop: Shop, header: str, least: float | None
) -> None:
    shop.webkassa.script.append(answer(503, b"", {"Retry-After": header}))
    with within(11, least=least or 0):
        result = shop.main("update")
    made = (69, 1) if least is None else (0, 2)
    assert (result.code, shop.webkassa.authorizations) == made


@pytest.mark.slow
def test_deadline_holds_against_a_server_that_drips(shop: Shop) -> None:
    """All at once: each is another service, and the same account."""
    shop.webkassa.script.extend([hang(), drip(0.5), drip(0.5, headers_too=True)])
    with within(40, least=10):
        runs = [shop.start(WEBKASSA_DEADLINE="10s", WEBKASSA_SERVICE_NAME=name) for name in "abc"]
        results = [shop.finish(run) for run in runs]
    assert [result.code for result in results] == [69] * 3
    assert shop.webkassa.authorizations == 3
    assert all("does not answer in time" in result.err for result in results)


@pytest.mark.slow
def test_login_that_was_given_up_is_told_to_have_killed_the_key(shop: Shop) -> None:
    shop.webkassa.script.append(hang())  # it does log us in
    result = shop.expect(69, 1, WEBKASSA_DEADLINE="10s")
    assert f"{fingerprint(shop.old_key)} is dead" in result.err
    assert "un again now" in result.err
    assert shop.is_untouched


def test_answer_that_drips_but_arrives_is_kept(shop: Shop) -> None:
    shop.webkassa.script.append(drip(0.02))
    shop.renew()


def test_flood_is_read_no_further_than_64_kib(shop: Shop) -> None:
    shop.webkassa.script.append(flood())
    assert shop.run().code == 0  # the second try
    assert shop.webkassa.authorizations == 2


def test_token_is_read_out_of_an_answer_that_is_over_the_limit(shop: Shop) -> None:
    padded = {**GOOD, "x": "x" * 65536}
    shop.webkassa.script.append(answer(200, padded))
    assert shop.run(WEBKASSA_PROBE_URL="off").code == 0
    assert (shop.webkassa.authorizations, shop.key) == (1, GOOD["Data"]["Token"])


def test_compressed_answer_is_unpacked_no_further_than_64_kib(shop: Shop) -> None:
    bomb = gzip.compress(json.dumps({"x": "x" * 65536, **GOOD}).encode())
    shop.webkassa.script.append(answer(200, bomb, {"Content-Encoding": "gzip"}))
    shop.renew(logins=2)


def test_webkassa_down_for_the_whole_deadline(shop: Shop) -> None:
    shop.webkassa.script.extend([answer(503)] * 100)
    with within(40):
        result = shop.run(WEBKASSA_DEADLINE="10s")
    assert result.code == 69
    assert 4 <= shop.webkassa.authorizations <= 9
    assert "still works" in result.err
    assert shop.is_untouched


def test_failing_webkassa_that_asks_for_haste_is_not_hammered(shop: Shop) -> None:
    shop.webkassa.script.extend([answer(503, b"", {"Retry-After": "0"})] * 1000)
    assert shop.run(WEBKASSA_DEADLINE="10s").code == 69
    assert shop.webkassa.authorizations <= 9


def test_host_that_cannot_be_reached_leaves_the_key_as_it_was(shop: Shop) -> None:
    urls = {
        "http://127.0.0.1:9/api/Authorize": "refuses the connection",
        "https://webkassa.invalid/api/Authorize": "name",
    }
    shop.sql(
        "INSERT INTO api_keys SELECT 3, 'b', api_key, '', now(), now() FROM api_keys WHERE id = 1"
    )
    shop.env["WEBKASSA_DEADLINE"] = "10s"
    runs = [shop.start(WEBKASSA_AUTH_URL=url, WEBKASSA_SERVICE_NAME=name)
            for url, name in zip(urls, ("Webkassa", "b"), strict=True)]  # fmt: skip
    for run, said in zip(runs, urls.values(), strict=True):
        result = shop.finish(run)
        assert result.code == 69
        assert said in result.err
        assert "is as it was" in result.err


# What is sent ------------------------------------------------------------------------------------


def test_v4_sends_the_api_key_and_legacy_sends_none(shop: Shop) -> None:
    assert shop.run().code == 0
    assert all("x-api-key" not in call.headers for call in shop.webkassa.calls)
    url = shop.webkassa.url_v4
    key = vendor.API_KEY
    assert shop.run(WEBKASSA_AUTH_URL=url, WEBKASSA_API_KEY=key).code == 0
    paths = [call.path for call in shop.webkassa.calls[2:]]
    assert paths == ["/api/v4/Authorize", "/api/v4/references/RefUnits"]
    assert shop.holds_the_live_key


def test_api_key_goes_to_the_host_of_authorize_only(shop: Shop) -> None:
    with Simulator() as other:
        other.probe_script.append(answer(200, {"Data": []}))
        probe = f"{other.origin}/api/references/RefUnits"
        env = {"WEBKASSA_PROBE_URL": probe, "WEBKASSA_API_KEY": vendor.API_KEY}
        assert shop.run(**env).code == 0
        assert [call.headers.get("x-api-key") for call in other.calls] == [None]


def test_netrc_is_not_read(shop: Shop) -> None:
    (shop.home / ".netrc").write_text("machine 127.0.0.1 login someone password canary-netrc\n")
    assert shop.run().code == 0
    assert all("authorization" not in call.headers for call in shop.webkassa.calls)


def test_login_and_token_travel_in_the_body_only(shop: Shop) -> None:
    assert shop.run().code == 0
    first, second = shop.webkassa.calls
    login = {"Login": vendor.LOGIN, "Password": vendor.PASSWORD}
    assert first.body == login
    assert second.body == {"Token": shop.webkassa.live}


def test_token_of_an_unknown_form_is_stored_with_a_warning(shop: Shop) -> None:
    shop.webkassa.new_token = lambda: "New.Format-" + "x" * 244
    result = shop.run()
    assert result.code == 0
    assert "looks unlike" in result.err
    assert shop.holds_the_live_key


def test_test_system_is_called_by_its_name(tls_shop: Shop) -> None:
    env = {"WEBKASSA_AUTH_URL": "https://devkkm.webkassa.kz/api/Authorize"}
    result = tls_shop.run("check", **env)
    assert result.code == 0
    assert re.search("^WARN .*devkkm.webkassa.kz.*TEST system", result.out, re.MULTILINE)
    assert "from devkkm.webkassa.kz in" in tls_shop.run(**env).err
    said = tls_shop.run("status", **env)
    assert said.code == 1
    assert re.search("^WEBKASSA WARNING - .* alive, but of Webkassa's TEST system[|]", said.out)


# TLS, proxies, other hosts: a proxy that leads every host name to a simulator with TLS -----------


def test_proxy_and_ca_of_the_settings_file_are_used(tls_shop: Shop) -> None:
    tls_shop.renew()
    assert tls_shop.proxy.hosts == ["api.webkassa.kz"]
    result = tls_shop.run("check")
    assert result.code == 0
    assert "api.webkassa.kz" in result.out


@pytest.mark.parametrize("command", ["update", "check"])
def test_unknown_certificate_is_never_accepted(tls_shop: Shop, command: str) -> None:
    other = Authority().write(tls_shop.home / "other.pem")
    env = {"REQUESTS_CA_BUNDLE": str(other), "WEBKASSA_DEADLINE": "10s"}
    result = tls_shop.run_in_vain(69, command, **env)
    assert "certificate" in result.out + result.err


@pytest.mark.slow
def test_what_cannot_have_been_sent_leaves_the_key_as_it_was(tls_shop: Shop) -> None:
    junk = tls_shop.home / "junk.pem"
    junk.write_text("junk")
    tls_shop.env["WEBKASSA_DEADLINE"] = "10s"
    faults = (
        {"REQUESTS_CA_BUNDLE": str(junk)},
        {"HTTPS_PROXY": "http://proxy:abc"},
        {"HTTPS_PROXY": "socks5://127.0.0.1:1080"},
    )
    runs = []
    for name, env in zip("abc", faults, strict=True):  # each another service, all at once
        tls_shop.sql("INSERT INTO api_keys VALUES (DEFAULT, %s, 'k', '', now(), now())", name)
        runs.append(tls_shop.start("-v", WEBKASSA_SERVICE_NAME=name, **env))
    for run in runs:
        result = tls_shop.finish(run)
        assert result.code in (69, 78)
        assert "is as it was" in result.err
    assert tls_shop.webkassa.calls == []


@pytest.mark.slow
def test_certificate_of_another_name_is_never_accepted(tls_shop: Shop) -> None:
    url = "https://kassa.example.kz/api/Authorize"
    tls_shop.run_in_vain(69, WEBKASSA_AUTH_URL=url, WEBKASSA_DEADLINE="10s")


@pytest.mark.parametrize("status", [200, 505])
def test_505_leads_to_the_vendors_other_hosts_only(tls_shop: Shop, status: int) -> None:
    """And at once: for how long one host is to be left alone says nothing of the next."""
    hosts = (
        "evil.example, webkassa.kz.evil.example, evilwebkassa.kz, http://x.webkassa.kz,"
        "kkm.webkassa.kz:81, kkm2.webkassa.kz"
    )
    headers = {"AlternativeDomainNames": hosts, "Retry-After": "999"}
    tls_shop.webkassa.script.append(answer(status, errors(505), headers))
    result = tls_shop.run()
    assert result.code == 0
    assert tls_shop.proxy.hosts == ["api.webkassa.kz", "kkm2.webkassa.kz"]
    assert "WEBKASSA_AUTH_URL=https://kkm2.webkassa.kz/api/Authorize" in result.err
    assert tls_shop.holds_the_live_key
    assert tls_shop.webkassa.calls[-1].headers["host"] == "kkm2.webkassa.kz"


def test_505_everywhere_ends(tls_shop: Shop) -> None:
    hosts = {"AlternativeDomainNames": "a.webkassa.kz, b.webkassa.kz, api.webkassa.kz"}
    tls_shop.webkassa.script.extend([answer(200, errors(505), hosts)] * 9)
    result = tls_shop.expect(69, 3)
    assert "is as it was" in result.err


def test_505_of_another_vendor_leads_nowhere(shop: Shop) -> None:
    hosts = {"AlternativeDomainNames": "api.webkassa.kz"}
    shop.webkassa.script.append(answer(505, b"", hosts))
    shop.expect(69, 1)


class HalfDown(ConnectProxy):
    """A proxy that cannot reach the hosts called `down`."""

    @property
    def refusal(self) -> str:
        return "502 Bad Gateway" if self.hosts[-1].startswith("down") else ""

    @refusal.setter
    def refusal(self, value: str) -> None:
        pass


@pytest.mark.parametrize(
    "hosts", ["down.webkassa.kz, up.webkassa.kz", "up.webkassa.kz,down.webkassa.kz"]
)
def test_every_host_that_505_names_is_tried(tls_shop: Shop, hosts: str) -> None:
    reply = answer(200, errors(505), {"AlternativeDomainNames": hosts})
    tls_shop.webkassa.script.append(reply)
    with HalfDown(("127.0.0.1", tls_shop.webkassa.port)) as proxy:
        result = tls_shop.run(HTTPS_PROXY=proxy.url)
    assert result.code == 0
    assert tls_shop.holds_the_live_key
    assert proxy.hosts[-1] == "up.webkassa.kz"


@pytest.mark.parametrize("where", ["environment", "file"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_address_is_never_asked_through_a_proxy(
    shop: Shop, monitor: Monitor, host: str, where: str
) -> None:
    """Login, password and token would go there in clear."""
    shop.env["WEBKASSA_AUTH_URL"] = f"http://{host}:{shop.webkassa.port}/api/Authorize"
    shop.env["HEALTHCHECK_URL"] = f"{monitor.origin.replace('127.0.0.1', host)}/uuid"
    with ConnectProxy(("127.0.0.1", shop.webkassa.port)) as proxy:
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy")
        if where == "file":
            file = shop.home / "settings"
            file.write_text("".join(f"{name}={proxy.url}\n" for name in names))
            shop.options = ("--env-file", str(file))
        else:
            shop.env |= dict.fromkeys(names, proxy.url)
        assert shop.run("check").code == 0
        assert shop.run("status").code == 1
        assert shop.run().code == 0
        assert proxy.links == []
    assert shop.holds_the_live_key
    assert monitor.paths[-1] == "/uuid"


# Any answer whatsoever ---------------------------------------------------------------------------


def answers(st: Any) -> dict[str, Any]:
    tokens = st.one_of(
        st.text(string.hexdigits.lower(), min_size=32, max_size=32),
        st.text(max_size=300),
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=260),
        st.none() | st.integers() | st.lists(st.text()),
    )
    numbers = st.one_of(
        st.integers(-2, 14), st.integers(), st.text(), st.floats(), st.none(), st.lists(st.none())
    )
    anything = st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    )
    error_lists = st.one_of(
        st.lists(st.fixed_dictionaries({}, optional={"Code": numbers, "Text": st.text()})), anything
    )
    shaped = st.fixed_dictionaries(
        {},
        optional={
            "Data": st.fixed_dictionaries({}, optional={"Token": tokens}) | anything,
            "Errors": error_lists,
        },
    )
    bodies = st.one_of(
        (shaped | anything).map(lambda value: json.dumps(value).encode()), st.binary(max_size=300)
    )
    statuses = st.one_of(
        st.sampled_from([200, 200, 200, 201, 400, 401, 403, 500, 503, 505]), st.integers(200, 599)
    )
    return {"status": statuses, "body": bodies, "probe_status": statuses, "probe": bodies}


def is_token(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[!-~]{1,255}", value) is not None


@pytest.mark.slow
@pytest.mark.xdist_group("hypothesis")
def test_any_answer_leaves_the_row_or_stores_a_valid_token(shop: Shop, hypothesis: Any) -> None:
    bounds = hypothesis.settings(
        max_examples=80, deadline=None, suppress_health_check=[*hypothesis.HealthCheck]
    )
    shops = hypothesis.strategies.just(shop)
    bounds(hypothesis.given(shop=shops, **answers(hypothesis.strategies))(play))()


def play(shop: Shop, status: int, body: bytes, probe_status: int, probe: bytes) -> None:
    shop.sql("UPDATE api_keys SET api_key = %s WHERE service_name = 'Webkassa'", shop.old_key)
    shop.webkassa.script.clear()
    shop.webkassa.probe_script.clear()
    shop.webkassa.script.append(answer(status, body, {"Retry-After": "0"}))
    shop.webkassa.script.extend([answer(401, errors(1))] * 2)  # which ends it
    shop.webkassa.probe_script.extend([answer(probe_status, probe)] * 2)
    result = shop.main("update")
    assert result.code in EXIT_CODES
    if result.code == 0:
        assert 200 <= status < 300
    if shop.key == shop.old_key:
        assert result.code != 0
        assert shop.is_untouched
    else:  # a token in any answer counts, while the row holds a key that may be dead
        assert shop.key is not None
        assert is_token(shop.key)
        assert shop.key.encode() in body
