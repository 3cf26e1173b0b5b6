#!/usr/bin/env python3
"""Renew the Webkassa key and store it in PostgreSQL, without ever losing one.

usage: webkassa_key_updater.py [--env-file FILE] [-v]
                               [update [--if-needed] | check | status [--json]]

commands:
  update           authorize against Webkassa, validate the new key, store it (the default)
    --if-needed    do nothing when the stored key is young and not dead
  check            everything but authorizing: settings, database, lock, write, host, stored key
  status           how things stand, for a person or a monitor; changes nothing
    --json         the same for machines

options:
  --env-file FILE  read settings from FILE instead of .env beside this program
  -v, --verbose    say each step
  --version        print the version
  -h, --help       print this help

exit codes of update and check:
   0  done, or nothing to do
   2  wrong usage of this command
  69  Webkassa cannot be reached or is failing
  70  a bug of this program
  73  the database refuses the write
  75  the database cannot be reached, or the lock is busy
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
import email.utils
import hashlib
import io
import ipaddress
import json
import logging
import math
import os
import queue
import random
import re
import signal
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit, urlunsplit

import dotenv.parser
import psycopg2
import psycopg2.errorcodes
import requests
from psycopg2 import sql

__version__ = "1.0.0"

log = logging.getLogger("webkassa_key_updater")

# ---------------------------------------------------------------------------------------------
# Settings: the environment first, then the settings file; every fault at once, by its name
# ---------------------------------------------------------------------------------------------

DEFAULT_AUTH_URL = "https://api.webkassa.kz/api/Authorize"
VENDOR_HOST = re.compile(r"([a-z0-9-]+\.)*webkassa\.kz")
TEST_HOSTS = {"devkkm.webkassa.kz", "127.0.0.1:1332"}  # vendor's test system; its local module's
AUTHORIZE_PATH = re.compile(r"(?:/[^?#]*)?/api/(v\d+/)?Authorize", re.IGNORECASE)
PLACEHOLDER = re.compile(r"<.+>|your[ _-].+|change[ _-]?me|x{3,}|\*{3,}|\.{3}", re.IGNORECASE)
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode: control, format, surrogate, separators
ASKING_SHARE = 0.75  # of WEBKASSA_DEADLINE; the rest is for storing what was given
STORE_PAUSE = 0.25  # seconds between two tries to store
CLOCK_SLACK = 300.0  # seconds that a stored time may lie in the future
WARNING_AGE, CRITICAL_AGE = 25 * 3600, 49 * 3600  # seconds: a daily key, with an hour to spare
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
LIBPQ_NAMES = {
    "HOST": "host",
    "PORT": "port",
    "DB": "dbname",
    "USER": "user",
    "PASSWORD": "password",
}


KNOWN_SECRETS: set[str] = set()


class Secret:
    """A value that must not be seen: `repr` and `str` are `***`, only `value` tells it."""

    def __init__(self, value: str) -> None:
        self.value = value
        KNOWN_SECRETS.add(value)

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)

    @property
    def fingerprint(self) -> str:
        """The first 8 hex digits of the SHA-256: names a token without giving it away."""
        return hashlib.sha256(self.value.encode()).hexdigest()[:8]


class Settings(NamedTuple):
    """All that one account needs; durations in seconds."""

    login: Secret
    password: Secret
    auth_url: str
    api_key: Secret | None
    probe_url: str | None  # None: the live probe is off
    service: str
    max_age: float
    deadline: float
    database: dict[str, str]  # libpq parameters
    table: tuple[str | None, str]  # schema, name
    healthcheck_url: Secret | None

    def __repr__(self) -> str:
        return "***"


def load_settings(env_file: str | None) -> Settings:
    """Given the path of a settings file or None, return the settings.

    Raise SettingsFault with all faults. What the file says goes into `os.environ` where that has
    nothing, so `PG*`, `HTTPS_PROXY`, `REQUESTS_CA_BUNDLE` work there too. Empty means "not set".
    """
    path = Path(env_file) if env_file else Path(__file__).resolve().with_name(".env")
    faults: list[str] = []
    from_file = read_env_file(path, env_file is not None, faults)
    for name in [name for name, value in os.environ.items() if not value]:
        del os.environ[name]
    for name, value in from_file.items():
        if value:
            os.environ.setdefault(name, value)
    settings = read_settings(os.environ, faults)
    if faults:
        where = path if os.path.exists(path) else f"{path}, which does not exist"
        listed = "".join(f"\n  {fault}" for fault in dict.fromkeys(faults))
        raise SettingsFault(f"The settings are wrong (environment, then {where}):{listed}")
    return settings


def read_env_file(path: Path, must_exist: bool, faults: list[str]) -> dict[str, str]:
    """Parse `path` with python-dotenv, without interpolation; name bad lines by their number."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        if must_exist:
            faults.append(f"--env-file: {path} does not exist")
        return {}
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        faults.append(f"{path}: cannot be read ({error.strerror})")
        return {}
    if "\0" in text:
        faults.append(f"{path}: is not UTF-8 text; save it as UTF-8")
        return {}
    values = {}
    for binding in dotenv.parser.parse_stream(io.StringIO(text)):
        source = binding.original.string
        line = binding.original.line + source[: len(source) - len(source.lstrip())].count("\n")
        key = binding.key or ""
        if binding.error or "=" in key or (key and binding.value is None):
            faults.append(f"{path}: line {line} is not NAME=value")
        elif key:
            values[key] = binding.value or ""
    return values


def read_settings(environ: Mapping[str, str], faults: list[str]) -> Settings:
    """Given an environment, return its settings; append what is wrong with them to `faults`."""

    def get(name: str, default: str = "", required: bool = False, strip: bool = False) -> str:
        value = environ.get(name, default)
        value = value.strip() if strip else value
        hidden = next((c for c in value if unicodedata.category(c) in INVISIBLE), None)
        if required and not value:
            faults.append(f"{name}: is not set")
        elif PLACEHOLDER.fullmatch(value):
            faults.append(f"{name}: is still a placeholder")
        elif hidden:
            faults.append(f"{name}: contains the invisible character U+{ord(hidden):04X}")
        return value

    def get_url(name: str, default: str = "", plain_http: bool = False) -> str:
        try:
            return normal_url(get(name, default, strip=True), plain_http)
        except ValueError as error:
            faults.append(f"{name}: {error}")
            return default

    def get_duration(name: str, default: str, longest: int) -> float:
        match = re.fullmatch(r"(\d{1,7})([smhd]?)", get(name, default, strip=True), re.ASCII)
        seconds = int(match[1]) * UNITS[match[2]] if match else 0
        if not 1 <= seconds <= longest:
            faults.append(f"{name}: is not a duration like {default}, from 1s to {longest}s")
        return seconds

    auth_url = get_url("WEBKASSA_AUTH_URL", DEFAULT_AUTH_URL)
    derived = re.sub("Authorize$", "references/RefUnits", auth_url, flags=re.IGNORECASE)
    probe_off = environ.get("WEBKASSA_PROBE_URL", "").strip().lower() == "off"
    api_key = get("WEBKASSA_API_KEY")
    has_ping = "HEALTHCHECK_URL" in environ
    table = get("API_KEYS_TABLE", "api_keys").split(".")

    path = urlsplit(auth_url).path
    if not AUTHORIZE_PATH.fullmatch(path) or urlsplit(auth_url).query:
        faults.append("WEBKASSA_AUTH_URL: it must end in /api/Authorize or /api/v4/Authorize")
    if "/v4/" in path and not api_key:
        faults.append(
            "WEBKASSA_API_KEY: is not set, and WEBKASSA_AUTH_URL has /v4/, which needs it"
        )
    if not re.fullmatch("[!-~]*", api_key):
        faults.append("WEBKASSA_API_KEY: must be printable ASCII without spaces")
    if len(table) > 2 or not all(table):
        faults.append("API_KEYS_TABLE: is neither a table nor schema.table")
    faults.extend(transport_faults(environ, auth_url))
    return Settings(
        login=Secret(get("WEBKASSA_LOGIN", required=True)),
        password=Secret(get("WEBKASSA_PASSWORD", required=True)),
        auth_url=auth_url,
        api_key=Secret(api_key) if api_key else None,
        probe_url=None if probe_off else get_url("WEBKASSA_PROBE_URL", derived),
        service=get("WEBKASSA_SERVICE_NAME", "Webkassa"),
        max_age=get_duration("WEBKASSA_MAX_AGE", "24h", 366 * 86400),
        deadline=get_duration("WEBKASSA_DEADLINE", "120s", 3600),
        database=database_parameters(environ, faults),
        table=(table[0] if len(table) == 2 else None, table[-1]),
        healthcheck_url=Secret(get_url("HEALTHCHECK_URL", plain_http=True)) if has_ping else None,
    )


def normal_url(text: str, plain_http: bool) -> str:
    """Add a missing https://, undo doubled slashes and /api/api; raise ValueError, a sentence."""
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if not host or not re.fullmatch("[!-~]+", parts.netloc):
        raise ValueError("has no host, or one that is not plain ASCII")
    if "@" in parts.netloc:
        raise ValueError("must not carry a login or password")
    if parts.scheme != "https" and not (
        parts.scheme == "http" and (plain_http or is_loopback(host))
    ):
        raise ValueError("must be https (http only to this very machine)")
    path = re.sub("/{2,}", "/", parts.path).rstrip("/")
    path = re.sub(r"^(/api)+(?=/|$)", "/api", path, flags=re.IGNORECASE)
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


def transport_faults(environ: Mapping[str, str], url: str) -> Iterator[str]:
    """Yield what `requests` would stumble over only in the middle of a run: CA file, proxy."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if name in environ and not os.access(environ[name], os.R_OK):
            yield f"{name}: there is no such file, or it cannot be read"
    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    if proxy and "://" in proxy and not re.match("https?://", proxy, re.IGNORECASE):
        yield "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY: is not an HTTP proxy (nor is SOCKS)"


def database_parameters(environ: Mapping[str, str], faults: list[str]) -> dict[str, str]:
    """Return libpq's parameters from DATABASE_URL or else POSTGRES_*; libpq adds its defaults."""
    names = {param: f"POSTGRES_{name}" for name, param in LIBPQ_NAMES.items()}
    given = {param: environ[name] for param, name in names.items() if name in environ}
    if "DATABASE_URL" in environ:
        names = dict.fromkeys(names, "DATABASE_URL")
        # SQLAlchemy's postgresql+psycopg2:// is what the consumers have; libpq does not know it
        url = re.sub(r"^(postgres(?:ql)?)\+\w+:", r"\1:", environ["DATABASE_URL"].strip())
        if re.match(r"[^:]+://([^/?]*@[^/?]*@|[^/?]*/[^?]*@)", url):  # it would end up in the host
            faults.append("DATABASE_URL: @, / and : of the password must be percent-encoded")
            return {}
        try:
            given = psycopg2.extensions.parse_dsn(url)
        except (psycopg2.Error, UnicodeError):
            faults.append("DATABASE_URL: is not a connection string that libpq understands")
            return {}
    if not re.fullmatch(r"(\d{1,5}(,\d{1,5})*)?", given.get("port", ""), re.ASCII):
        faults.append(f"{names['port']}: the port is not a number")
    for param, value in given.items():
        if any(unicodedata.category(c) == "Cs" for c in value):
            faults.append(f"{names.get(param, 'DATABASE_URL')}: is not valid text")
    return given


# ---------------------------------------------------------------------------------------------
# Errors: own sentences, never the libraries' texts, which carry URLs, headers, bodies and tokens
# ---------------------------------------------------------------------------------------------


class Failure(Exception):
    """What happened, in a sentence. `code`: exit code; `advice`: what to do; `key_state`: how the
    stored key stands after an update that failed."""

    code = 70
    advice = ""
    key_state = "Nothing was asked of Webkassa; the stored key is as it was."

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(what)
        self.advice = advice or self.advice


class SettingsFault(Failure):
    code = 78
    advice = "Mend them, then run: webkassa_key_updater.py check"


class StoreUnavailable(Failure):
    code = 75
    advice = "When it is back, run: webkassa_key_updater.py update"


class WriteRefused(Failure):
    code = 73
    advice = "Mend the table, then run: webkassa_key_updater.py check"


class WebkassaFailure(Failure):
    """`retry`: worth another try; `wait`: seconds that Webkassa asks for; `others`: hosts that it
    names instead; `may_kill`: it may have logged us in, so the stored key may be dead."""

    code = 69
    advice = "Try later: webkassa_key_updater.py update"
    retry = may_kill = True
    wait = 0.0
    others: tuple[str, ...] = ()


class Nonsense(WebkassaFailure):
    code = 76
    advice = "Look at WEBKASSA_AUTH_URL, then run: webkassa_key_updater.py update"


class Refused(WebkassaFailure):
    code = 77
    advice = "Correct the login, password or API key, then run: webkassa_key_updater.py update"
    retry = may_kill = False


# ---------------------------------------------------------------------------------------------
# Webkassa: authorize kills the key before it; probe asks whether a key is alive
# ---------------------------------------------------------------------------------------------

CONNECT_TIMEOUT, READ_TIMEOUT, PROBE_TIMEOUT, PING_TIMEOUT = 5.0, 30.0, 5.0, 10.0  # seconds
ANSWER_LIMIT = 65536  # bytes
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

# Error codes, from the vendor's manual and public integrations
UNKNOWN_ERROR, BAD_LOGIN, NOT_AUTHORIZED, OTHER_DOMAIN = -1, 1, 3, 505
DEAD_CODES = {2, 3}  # session expired, not authorized
ALIVE_CODES = {4, 5, 6, 7, 10, 11, 13}  # the token was accepted, the operation was not

ALIVE, DEAD, UNCLEAR, OFF = "alive", "dead", "unclear", "off"  # a probe's verdicts

# By what stands in an exception's type or TLS reason: may the login have taken effect, and why not
TROUBLES = (
    ("wrong_signature_type", False, f"needs weak TLS; set WEBKASSA_AUTH_URL={DEFAULT_AUTH_URL}"),
    ("certificate_verify", False, "shows a bad certificate; is REQUESTS_CA_BUNDLE needed?"),
    ("no_certificate_or_crl", False, "cannot be asked: REQUESTS_CA_BUNDLE holds no certificate"),
    ("invalidproxyurl", False, "cannot be asked: the URL of the proxy is wrong"),
    ("invalidurl", False, "cannot be asked: the URL of the proxy is wrong"),
    ("proxyerror", False, "cannot be reached through the proxy"),
    ("connecttimeout", False, "accepts no connection"),
    ("nameresolution", False, "has a name that cannot be resolved"),
    ("newconnection", False, "refuses the connection, or there is no network"),
    ("sslerror", True, "and this machine do not agree on TLS"),
    ("timeout", True, "does not answer in time"),
    ("", True, "broke the connection off"),
)


class Answer(NamedTuple):
    """An HTTP answer; `body` is the JSON in it, None where there is none."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def errors(self) -> Any:
        return self.body.get("Errors") if isinstance(self.body, dict) else None

    @property
    def codes(self) -> set[int]:
        errors = self.errors if isinstance(self.errors, list) else [self.errors]
        found = [str(error.get("Code")) for error in errors if isinstance(error, dict)]
        numbers = [re.fullmatch(r" *(-?[0-9]{1,9})(\.0)? *", code) for code in found]
        return {int(number[1]) for number in numbers if number}


def new_session() -> requests.Session:
    session = requests.Session()
    session.auth = lambda request: request  # else requests takes a login from ~/.netrc
    session.headers["User-Agent"] = f"webkassa-key-updater/{__version__}"
    session.headers["Accept-Encoding"] = "identity"
    return session


def exchange(
    session: requests.Session, method: str, url: str, seconds: float, **more: Any
) -> Answer:
    """Send one request and return its answer; raise WebkassaFailure when none comes in `seconds`.

    The timeouts of `requests` are per read and leave out DNS: a server that drips a byte a second
    would hold us for hours. So a thread does it, which is left behind and ends with the process.
    """
    timeout = (min(CONNECT_TIMEOUT, seconds), min(READ_TIMEOUT, seconds))
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            with session.request(
                method, url, timeout=timeout, allow_redirects=False, stream=True, **more
            ) as response:
                content = response.raw.read(ANSWER_LIMIT + 1, decode_content=True)
                results.put((response.status_code, response.headers, content))
        except Exception as error:
            results.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        result = results.get(timeout=seconds)
    except queue.Empty:
        result = TimeoutError()
    if isinstance(result, Exception):
        raise no_answer(urlsplit(url).netloc, result)
    status, headers, content = result
    try:
        text = content.decode("utf-8-sig", "replace")  # a Russian Text may be in another encoding
        body = json.loads(text) if len(content) <= ANSWER_LIMIT else None
    except (ValueError, RecursionError):
        body = None
    return Answer(status, headers, body)


def no_answer(host: str, error: Exception) -> WebkassaFailure:
    """Say why there is no answer. What `error` says is not shown: it can carry secrets."""
    cause: Any = error.args[0] if error.args else None
    cause = getattr(cause, "reason", cause)  # urllib3's, in a MaxRetryError
    tls = getattr(cause.args[0], "reason", "") if getattr(cause, "args", None) else ""  # OpenSSL's
    signs = f"{type(error).__name__} {type(cause).__name__} {tls}".lower()
    _, may_kill, what = next(trouble for trouble in TROUBLES if trouble[0] in signs)
    failure = WebkassaFailure(f"{host} {what}.")
    failure.may_kill = may_kill
    return failure


def read_token(host: str, answer: Answer) -> Secret:
    """Return the token of an answer to Authorize; raise a WebkassaFailure if it holds none."""
    codes, status = answer.codes, answer.status
    said = f"{host} answers HTTP {status}" + "".join(f", error code {c}" for c in sorted(codes))
    data = answer.body.get("Data") if isinstance(answer.body, dict) else None
    token = data.get("Token") if isinstance(data, dict) else None
    failure: WebkassaFailure
    if codes & {BAD_LOGIN, NOT_AUTHORIZED} or status in (401, 403):
        failure = Refused(f"{said}: login, password or API key refused.")
    elif OTHER_DOMAIN in codes or status == OTHER_DOMAIN:
        failure = WebkassaFailure(f"{said}: this account is served on another host.")
        failure.others = alternative_hosts(host, answer.headers.get("AlternativeDomainNames", ""))
        failure.retry = failure.may_kill = False
    elif UNKNOWN_ERROR in codes or status in (408, 429) or status >= 500:
        failure = WebkassaFailure(f"{said}: it is failing.")
    elif codes or not 200 <= status < 300:
        failure = Nonsense(f"{said}: not an answer to a login.")
        failure.retry = False
    elif answer.errors or not isinstance(token, str) or not re.fullmatch("[!-~]{1,255}", token):
        failure = Nonsense(f"{said}, but no usable token.")
    else:
        return Secret(token)
    failure.wait = seconds_asked(answer.headers.get("Retry-After", ""))
    raise failure


def seconds_asked(retry_after: str) -> float:
    """Return the seconds that a Retry-After header (RFC 9110: a number or a date) asks for."""
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        if re.fullmatch(r"[0-9.]+", retry_after):
            return float(retry_after)
        return email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
    return 0.0


def alternative_hosts(host: str, header: str) -> tuple[str, ...]:
    """Return the hosts of an AlternativeDomainNames header, as far as all is the vendor's."""
    names = [name.strip().lower() for name in (host.removesuffix(":443"), *header.split(","))]
    vendors = [VENDOR_HOST.fullmatch(name) is not None for name in names]
    return tuple(n for n, ok in zip(names[1:], vendors[1:], strict=True) if ok and vendors[0])


def left(deadline: float) -> float:
    """Return the seconds until `deadline` (`time.monotonic`), at least a millisecond."""
    return max(deadline - time.monotonic(), 0.001)


class Webkassa:
    """The vendor, as one account sees it. `url` and `probe_url` move when it names another host."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url, self.probe_url = settings.auth_url, settings.probe_url
        self.session = new_session()

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc.lower()

    def post(self, url: str, body: dict[str, str], seconds: float) -> Answer:
        """POST JSON; the API key goes to the host of Authorize only."""
        api_key = self.settings.api_key if urlsplit(url).netloc.lower() == self.host else None
        headers = {"x-api-key": api_key.value} if api_key else {}
        return exchange(self.session, "POST", url, seconds, json=body, headers=headers)

    def authorize(self, deadline: float) -> Secret:
        """Log in until a token comes, or a refusal, or the `deadline` (`time.monotonic`)."""
        settings = self.settings
        login = {"Login": settings.login.value, "Password": settings.password.value}
        tried, may_kill = {self.host}, False
        attempt = 0
        while True:
            try:
                return read_token(self.host, self.post(self.url, login, left(deadline)))
            except WebkassaFailure as failure:
                failure.may_kill = may_kill = may_kill or failure.may_kill
                backoff = min(2**attempt / 4, 30) * random.uniform(0.5, 1)
                attempt += 1
                pause = max(backoff, failure.wait)
                others = [host for host in failure.others if host not in tried]
                if others:
                    tried.add(others[0])
                    self.move_to(others[0])
                    log.warning("%s Set WEBKASSA_AUTH_URL=%s", failure, self.url)
                elif not failure.retry or pause >= left(deadline):
                    raise
                else:
                    log.debug("%s Trying again in %.1f s.", failure, pause)
                    if signal.sigtimedwait(STOP_SIGNALS, pause):
                        raise

    def move_to(self, host: str) -> None:
        """Replace the host of Authorize, and of the probe where it is the same."""
        old = self.host
        if self.probe_url and urlsplit(self.probe_url).netloc.lower() == old:
            self.probe_url = urlunsplit(urlsplit(self.probe_url)._replace(netloc=host))
        self.url = urlunsplit(urlsplit(self.url)._replace(netloc=host))

    def probe(self, key: Secret | None) -> str:
        """Ask a read-only directory with `key`, once, for 5 s at most; return a verdict.

        Only codes 2 and 3 condemn a key. That the directory refuses a dead key is not verified, so
        ALIVE is weaker than DEAD. It never raises: a token in hand must still be stored.
        """
        if key is None or self.probe_url is None:
            return OFF
        try:
            answer = self.post(self.probe_url, {"Token": key.value}, PROBE_TIMEOUT)
        except Exception as error:
            log.debug("Probe: %s", error if isinstance(error, Failure) else type(error).__name__)
            return UNCLEAR
        if answer.codes & DEAD_CODES:
            return DEAD
        good = 200 <= answer.status < 300 and isinstance(answer.body, dict) and not answer.errors
        return ALIVE if good or answer.codes & ALIVE_CODES else UNCLEAR


# ---------------------------------------------------------------------------------------------
# Key store: one row of a PostgreSQL table, found by looking, written by one updater at a time
# ---------------------------------------------------------------------------------------------

CHANNEL = "webkassa_key_updated"  # NOTIFY; the payload is the service name, never the token
CONNECT_DEFAULTS = {  # a peer that falls silent is noticed within 15 s
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "5",
    "keepalives_count": "2",
    "tcp_user_timeout": "15000",
    "client_encoding": "UTF8",
    "fallback_application_name": "webkassa_key_updater",
}
SHOWN_PARAMETERS = ("host", "hostaddr", "port", "dbname", "user")
PASSING_STATES = ("08", "40", "53", "57")  # SQLSTATE classes that pass by themselves ...
DISK_FULL = "53100"  # ... but for this one
LOCK_TIMEOUT, DENIED = "55P03", "42501"

# Settings of this transaction alone, as far as the server knows them. An idle-in-transaction
# timeout shorter than Authorize would break the lock; none at all would let a host that lost its
# power hold it for hours. In UTC, `clock_timestamp()` suits naive columns as it suits aware ones.
SET_LOCAL = """
    SELECT set_config(name, CASE WHEN name = 'synchronous_commit' AND setting <> 'off'
                                 THEN setting ELSE wanted.value END, true)
    FROM pg_settings JOIN (VALUES
        ('lock_timeout', %(wait)s), ('statement_timeout', %(statement)s),
        ('idle_in_transaction_session_timeout', %(idle)s), ('transaction_timeout', '0'),
        ('tcp_keepalives_idle', '10'), ('tcp_keepalives_interval', '5'),
        ('tcp_keepalives_count', '3'), ('synchronous_commit', 'local'), ('TimeZone', 'UTC')
    ) AS wanted (name, value) USING (name)
"""
FIND_TABLE = """
    SELECT c.oid, n.nspname, c.relname, c.relname = %(name)s AND
           CASE WHEN %(schema)s IS NULL THEN pg_table_is_visible(c.oid)
                ELSE n.nspname = %(schema)s END AS found,
           ARRAY(SELECT attname::text FROM pg_attribute
                 WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'f') AND n.nspname !~ '^(pg_|information_schema$)'
      AND lower(c.relname) = lower(%(name)s)
      AND (%(schema)s IS NULL OR lower(n.nspname) = lower(%(schema)s))
    ORDER BY found DESC LIMIT 1
"""
CREATE_TABLE = """
    CREATE TABLE {} (
        id serial PRIMARY KEY,
        service_name varchar(50) UNIQUE NOT NULL,
        api_key varchar(255) NOT NULL,
        user_id varchar(255),
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now())
"""
SELECT_ROWS = """
    SELECT api_key::text, CASE WHEN isfinite(changed)
               THEN extract(epoch FROM clock_timestamp() - changed)::float8 END,
           to_char(changed, 'YYYY-MM-DD HH24:MI:SS')
    FROM (SELECT api_key, coalesce({times}) AS changed FROM {table} WHERE service_name = %s) AS r
"""
MISSING_GRANTS = """
    SELECT format('GRANT %%s TO %%I;', missing, current_user) FROM (
        SELECT format('USAGE ON SCHEMA %%I', n.nspname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = %(oid)s AND NOT has_schema_privilege(n.oid, 'USAGE')
        UNION ALL SELECT format('%%s ON %%I.%%I', privilege, n.nspname, c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
             unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS privilege
        WHERE c.oid = %(oid)s AND NOT has_table_privilege(c.oid, privilege)
        UNION ALL SELECT format('USAGE ON SEQUENCE %%I.%%I', n.nspname, s.relname)
        FROM pg_class s JOIN pg_namespace n ON n.oid = s.relnamespace
             JOIN pg_depend d ON d.objid = s.oid AND d.refobjid = %(oid)s AND d.deptype = 'a'
        WHERE s.relkind = 'S' AND NOT has_sequence_privilege(s.oid, 'USAGE')
        UNION ALL SELECT format('CREATE ON SCHEMA %%I', coalesce(%(schema)s, current_schema))
        WHERE %(oid)s IS NULL) AS m (missing)
"""


class Stored(NamedTuple):
    """What the database has of a service: the table (`oid` None: not yet), the row, its key."""

    oid: int | None
    table: sql.Identifier
    columns: tuple[str, ...]
    rows: int = 0
    key: Secret | None = None
    age: float | None = None  # seconds, by the database's clock
    changed: str | None = None  # UTC

    @property
    def fingerprint(self) -> str:
        return self.key.fingerprint if self.key else "none"


def identifier(*names: str) -> sql.Identifier:
    """Quote a name for `KeyStore.run`, where a % would start a placeholder."""
    return sql.Identifier(*(name.replace("%", "%%") for name in names))


class KeyStore:
    """One transaction at a time on the table; what is not committed is rolled back in the end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connection: Any = None
        self.deadline = 0.0  # of waiting for locks, by `time.monotonic`

    def __enter__(self) -> KeyStore:
        self.open(self.settings.deadline)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, seconds: float) -> None:
        """Connect, and bound this transaction: `seconds` to wait for a lock, and idle time."""
        where = {k: v for k, v in self.settings.database.items() if k in SHOWN_PARAMETERS}
        shown = " ".join(f"{param}={value}" for param, value in where.items())
        try:
            parameters: dict[str, Any] = {**CONNECT_DEFAULTS, **self.settings.database}
            self.connection = psycopg2.connect(**parameters)
        except (psycopg2.Error, UnicodeError):  # UnicodeError: the server's text, not in UTF-8
            raise StoreUnavailable(
                f"PostgreSQL cannot be reached or does not let us in ({shown or 'by default'}).",
                f'To see why: psql "{shown}"; then run: webkassa_key_updater.py check',
            ) from None
        # A snapshot older than the wait for the lock would not see what it waited for
        self.connection.set_session(isolation_level="READ COMMITTED")
        self.deadline = time.monotonic() + seconds
        wait, idle = int(seconds * 1000) + 1, int(self.settings.deadline * 1000) + 60_000
        limits = {"wait": str(wait), "statement": str(wait + 5000), "idle": str(idle)}
        self.run(SET_LOCAL, limits)

    def close(self) -> None:
        with contextlib.suppress(psycopg2.Error):
            self.connection.rollback()
        self.connection.close()

    def run(self, statement: str | sql.Composable, values: Any = ()) -> list[Any]:
        """Execute one statement and return its rows; raise StoreUnavailable or WriteRefused."""
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(statement, values)
                return cursor.fetchall() if cursor.description else []
        except (psycopg2.Error, UnicodeError) as error:
            raise self.failure(error) from None

    def commit(self) -> None:
        try:
            self.connection.commit()
        except psycopg2.Error as error:
            raise self.failure(error) from None

    def failure(self, error: Exception) -> Failure:
        """Name an error by SQLSTATE and names: its text can carry the token. So can a name that a
        trigger made up."""
        code = getattr(error, "pgcode", None)
        if code is None:
            return StoreUnavailable("The connection to PostgreSQL broke.")
        if code == LOCK_TIMEOUT:
            return StoreUnavailable("Another transaction holds the lock or the row too long.")
        diag = error.diag  # type: ignore[attr-defined]
        parts = [code, diag.schema_name, diag.table_name, diag.column_name, diag.constraint_name]
        with contextlib.suppress(KeyError):
            parts[0] += f" {psycopg2.errorcodes.lookup(code).lower()}"
        shown = ", ".join(p for p in parts if p and not any(s in p for s in KNOWN_SECRETS))
        if code.startswith(PASSING_STATES) and code != DISK_FULL:
            return StoreUnavailable(f"PostgreSQL cannot serve now: {shown}.")
        grants = self.missing_grants() if code == DENIED else ""
        return WriteRefused(f"PostgreSQL refuses: {shown}.", grants)

    def missing_grants(self) -> str:
        """Return the advice to grant what is missing."""
        try:
            self.connection.rollback()
        except psycopg2.Error as error:
            raise self.failure(error) from None
        table = self.find_table()
        values = {"oid": table[0] if table else None, "schema": self.settings.table[0]}
        grants = " ".join(row[0] for row in self.run(MISSING_GRANTS, values))
        return f"As the table's owner run: {grants}" if grants else ""

    def find_table(self) -> tuple[int, str, str, bool, list[str]] | None:
        schema, name = self.settings.table
        tables = self.run(FIND_TABLE, {"schema": schema, "name": name})
        return tables[0] if tables else None

    def look(self) -> Stored:
        """Return what is stored. Raise WriteRefused when the table cannot serve or has two rows."""
        wanted = [part for part in self.settings.table if part]
        table = self.find_table()
        if table is None:
            return Stored(None, identifier(*wanted), ("created_at", "updated_at"))
        oid, schema, name, found, columns = table
        if not found:  # a table of our own beside the one that consumers read would help nobody
            raise WriteRefused(
                f"There is no table {'.'.join(wanted)} in sight, but there is {schema}.{name}.",
                f"{self.missing_grants()} Set API_KEYS_TABLE={schema}.{name}, or to the schema and "
                "name of a new table.",
            )
        for column in ("service_name", "api_key"):
            if column not in columns:
                raise WriteRefused(f"The table {schema}.{name} has no column {column}.")
        times = [c for c in ("updated_at", "created_at") if c in columns]
        dates = [sql.SQL("{}::timestamptz").format(sql.Identifier(c)) for c in times]
        query = sql.SQL(SELECT_ROWS).format(
            times=sql.SQL(", ").join(dates or [sql.SQL("NULL::timestamptz")]),
            table=identifier(schema, name),
        )
        rows = self.run(query, (self.settings.service,))
        if len(rows) > 1:
            raise WriteRefused(
                f"The table {schema}.{name} has {len(rows)} rows of {self.settings.service}.",
                "Delete all but one, then run: webkassa_key_updater.py check",
            )
        key, age, changed = rows[0] if rows else (None, None, None)
        key = Secret(key) if key else None
        return Stored(oid, identifier(schema, name), tuple(times), len(rows), key, age, changed)

    def lock(self) -> None:
        """Take this service's advisory lock until the transaction ends; it works across hosts."""
        digest = hashlib.sha256(f"webkassa_key_updater:{self.settings.service}".encode()).digest()
        number = int.from_bytes(digest[:8], "big", signed=True)
        self.shorten_wait()
        self.run("SELECT pg_advisory_xact_lock(%s)", (number,))
        self.shorten_wait()

    def shorten_wait(self) -> None:
        """Table, lock and row are waited for within one deadline."""
        wait = str(math.ceil(left(self.deadline) * 1000))
        self.run("SELECT set_config('lock_timeout', %s, true)", (wait,))

    def write(self, stored: Stored, token: str) -> None:
        """Write `token` into the row, read it back and notify, in the open transaction.

        UPDATE when there is a row, else INSERT: with ON CONFLICT a NOT NULL column without a
        default breaks even the update. Raise WriteRefused when the row does not hold `token` then.
        """
        values = {"token": token, "service": self.settings.service}
        if stored.oid is None:
            self.run(sql.SQL(CREATE_TABLE).format(stored.table))
        if stored.rows:
            now = "".join(f", {column} = clock_timestamp()" for column in stored.columns[:1])
            write = "UPDATE {} SET api_key = %(token)s" + now + " WHERE service_name = %(service)s"
        else:
            names = ", ".join(("service_name", "api_key", *stored.columns))
            now = ", clock_timestamp()" * len(stored.columns)
            write = "INSERT INTO {} (" + names + ") VALUES (%(service)s, %(token)s" + now + ")"
        read = "SELECT api_key::text FROM {} WHERE service_name = %(service)s"
        written = self.run(sql.SQL(write + " RETURNING 1").format(stored.table), values)
        if written != [(1,)] or self.run(sql.SQL(read).format(stored.table), values) != [(token,)]:
            raise WriteRefused(
                "A trigger or row-level security swallows or changes the written row."
            )
        self.run("SELECT pg_notify(%s, %s)", (CHANNEL, self.settings.service))

    def rehearse(self, stored: Stored) -> None:
        """Make the write that will be needed, with a stand-in token, and take it back.

        The row stays locked, so that nobody comes between this and the real write.
        """
        row = sql.SQL("SELECT 1 FROM {} WHERE service_name = %s FOR NO KEY UPDATE")
        if stored.rows:
            self.run(row.format(stored.table), (self.settings.service,))
        length = max(32, len(stored.key.value) if stored.key else 0)
        self.run("SAVEPOINT rehearsal")
        self.write(stored, os.urandom(length).hex()[:length])
        self.run("SET CONSTRAINTS ALL IMMEDIATE")  # else the commit would raise what is deferred
        self.run("ROLLBACK TO SAVEPOINT rehearsal")


# ---------------------------------------------------------------------------------------------
# Update: the order is the product
# ---------------------------------------------------------------------------------------------


def update(settings: Settings, if_needed: bool) -> str:
    """Renew the key and return a sentence that says what was done. Raise a Failure.

    Step 1, the settings, is done. Authorizing kills the key in use: nothing is asked of Webkassa
    before it is certain that the answer can be kept, and nothing that it gave is given up.
    """
    webkassa = Webkassa(settings)
    with KeyStore(settings) as store:
        # 2. Lock: one updater at a time; who finds that the key changed meanwhile is done
        before = store.look()
        store.lock()
        stored = store.look()
        if stored.key and stored.key != before.key:
            return f"another updater has just stored the key {stored.fingerprint}"
        if if_needed and is_fresh(stored, webkassa):
            return f"the key {stored.fingerprint} is young and not dead: nothing to do"

        # 3. Rehearse the very write that will be needed
        store.rehearse(stored)

        # 4. Authorize: it kills the old key, so no signal may stop us before the new one is kept
        if webkassa.host in TEST_HOSTS:
            log.warning("%s is Webkassa's TEST system: its keys serve no shop.", webkassa.host)
        log.debug("Rehearsed the write; logging in at %s", webkassa.host)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        start = time.monotonic()
        try:
            token = webkassa.authorize(start + ASKING_SHARE * settings.deadline)

            # 5. Validate: consumers hold a dead key meanwhile, so once and for 5 s at most
            verdict = webkassa.probe(token)
            if verdict == DEAD:
                raise Nonsense(f"{webkassa.host} gave a key and calls it dead; it was not stored.")
        except WebkassaFailure as failure:
            failure.key_state = state_after(failure, stored, webkassa)
            raise

        # 6. Store and commit; 7. should the connection die, again and again
        kept = keep(store, stored, token, webkassa, start + settings.deadline)

    if not kept:
        return "another updater logged in after us and has stored its key; ours is dead"
    if not re.fullmatch("[0-9a-f]{32}", token.value):
        log.warning("The new key looks unlike those that Webkassa gave so far.")
    if verdict == UNCLEAR:
        log.warning("The new key is stored, but whether it works could not be probed.")
    old = f"in place of {described(stored)}" if stored.key else "where none was"
    return f"stored the new key {token.fingerprint} from {webkassa.host} {old}"


def is_fresh(stored: Stored, webkassa: Webkassa) -> bool:
    """Say whether the key is younger than WEBKASSA_MAX_AGE and not called dead by the probe."""
    young = stored.age is not None and -CLOCK_SLACK < stored.age < webkassa.settings.max_age
    return young and stored.key is not None and webkassa.probe(stored.key) != DEAD


def state_after(failure: WebkassaFailure, stored: Stored, webkassa: Webkassa) -> str:
    """Say how the stored key stands after `failure`; probe it where that is not certain."""
    if not stored.key:
        return "No key is stored."
    verdict = webkassa.probe(stored.key) if failure.may_kill else None
    said = {None: "is as it was", ALIVE: "still works", DEAD: "is dead"}
    return f"The stored key {stored.fingerprint} {said.get(verdict, 'may be dead')}."


def keep(
    store: KeyStore, stored: Stored, token: Secret, webkassa: Webkassa, deadline: float
) -> bool:
    """Store `token` and commit; whatever fails, connect and try again until the `deadline`.

    Return False when somebody logged in after us and stored a key: ours is dead then.
    """
    now: Stored | None = stored
    while True:
        try:
            if now is None:
                store.open(left(deadline))
                store.lock()
                now = store.look()
                if now.key == token:  # the commit had gone through
                    return True
                if now.key and now.key != stored.key and webkassa.probe(now.key) != DEAD:
                    return False
            store.write(now, token.value)
            store.commit()
            return True
        except Exception as failure:  # not even a bug of ours may cost the token
            store.close()  # lets go of the lock, too
            now = None
            log.debug("Not stored yet: %s", type(failure).__name__)
            if time.monotonic() >= deadline:
                if not isinstance(failure, Failure):
                    raise
                failure.key_state = (
                    f"Webkassa gave the key {token.fingerprint}, but it could not be stored and is "
                    f"lost; the stored key {stored.fingerprint} is dead."
                )
                failure.advice = "Mend it, then run at once: webkassa_key_updater.py update"
                raise
            time.sleep(STORE_PAUSE)


def described(stored: Stored) -> str:
    """Return fingerprint and age of a stored key, for a person."""
    age = "" if stored.age is None else f", {stored.age / 3600:.1f} h old"
    return f"{stored.fingerprint}{age}"


# ---------------------------------------------------------------------------------------------
# Check and status: they never authorize
# ---------------------------------------------------------------------------------------------

OK, WARNING, CRITICAL, UNKNOWN = range(4)  # exit codes of monitoring plug-ins
LEVELS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
UPDATE_ADVICE = "; run: webkassa_key_updater.py update"


def say(text: str) -> None:
    """Print, whether or not anybody can read it: the exit code is the truth all the same."""
    with contextlib.suppress(OSError):
        print(text)


def check(settings: Settings) -> int:
    """Try everything but authorizing, print each result, return an exit code."""
    webkassa, stored, codes = Webkassa(settings), None, []

    def fail(failure: Failure) -> None:
        codes.append(failure.code)
        say(f"FAIL  {failure} {failure.advice}")

    try:
        with KeyStore(settings) as store:
            say(f"ok    database: PostgreSQL {store.run('SHOW server_version')[0][0]}")
            store.lock()
            say("ok    lock: taken")
            found = store.look()
            store.rehearse(found)
            there = "row" if found.rows else "table, no row yet" if found.oid else "no table yet"
            say(f"ok    write: rehearsed and taken back ({there})")
            stored = found
    except Failure as failure:
        fail(failure)
    try:
        url = urlunsplit(urlsplit(webkassa.url)._replace(path="/"))
        exchange(webkassa.session, "HEAD", url, PING_TIMEOUT)  # carries no credentials
        test = ", Webkassa's TEST system," if webkassa.host in TEST_HOSTS else ""
        say(f"ok    webkassa: {webkassa.host}{test} answers")
    except Failure as failure:
        fail(failure)
    if stored:
        say(f"ok    stored key: {judge(stored, webkassa.probe(stored.key))[1]}")
    return codes[0] if codes else 0


def judge(stored: Stored, verdict: str) -> tuple[int, str]:
    """Given a stored key and the probe's verdict, return a monitoring level and a sentence."""
    if not stored.key:
        return CRITICAL, "no key is stored" + UPDATE_ADVICE
    if verdict == DEAD:
        return CRITICAL, f"key {described(stored)}, is dead{UPDATE_ADVICE}"
    if stored.age is None or stored.age < -CLOCK_SLACK:
        return UNKNOWN, f"key {described(stored)}: its row holds no usable time of change"
    if stored.age > WARNING_AGE:
        level = CRITICAL if stored.age > CRITICAL_AGE else WARNING
        return level, f"key {described(stored)}, is too old{UPDATE_ADVICE}"
    return OK, f"key {described(stored)}, probe says {verdict}"


def status(env_file: str | None, as_json: bool) -> int:
    """Print how things stand like a monitoring plug-in, or as JSON; return the level."""
    accounts: list[dict[str, Any]] = []
    try:
        settings = load_settings(env_file)
        with KeyStore(settings) as store:
            stored = store.look()
        verdict = Webkassa(settings).probe(stored.key)
        level, what = judge(stored, verdict)
        account = {"service": settings.service, "fingerprint": stored.fingerprint}
        age = None if stored.age is None else round(stored.age)
        accounts.append(account | {"age_seconds": age, "changed": stored.changed, "probe": verdict})
    except Failure as failure:
        level, what = UNKNOWN, f"{failure} {failure.advice}"
    if as_json:
        report = {"status": LEVELS[level], "message": what, "accounts": accounts}
        say(json.dumps(report, indent=2))
        return level
    ages = [a["age_seconds"] for a in accounts if a["age_seconds"] is not None]
    data = f"|age={max(ages)}s;{WARNING_AGE};{CRITICAL_AGE}" if ages else ""
    first, *more = what.splitlines()
    say("\n".join([f"WEBKASSA {LEVELS[level]} - {first}{data}", *more]))
    for account in accounts:
        say(", ".join(f"{name} {value}" for name, value in account.items()))
    return level


# ---------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser whose help is the text at the top of this file."""

    def format_help(self) -> str:
        return __doc__ or ""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"webkassa_key_updater.py: {message}; see --help\n")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(allow_abbrev=False)
    commands = ("update", "check", "status")
    parser.add_argument("command", nargs="?", default="update", choices=commands)
    parser.add_argument("--env-file")
    parser.add_argument("--if-needed", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(argv)
    if options.if_needed and options.command != "update":
        parser.error("--if-needed goes with update")
    if options.json and options.command != "status":
        parser.error("--json goes with status")
    return options


def run_update(settings: Settings, if_needed: bool) -> int:
    """Update, say how it went in one line, tell the monitor; return the exit code."""
    code = 0
    try:
        log.info("%s: %s.", settings.service, update(settings, if_needed))
    except Failure as failure:
        code = failure.code
        log.error("%s: %s %s %s", settings.service, failure, failure.key_state, failure.advice)
    except Exception as error:
        code = report_bug(error)
    if settings.healthcheck_url:
        ping(settings.healthcheck_url.value, code)
    return code


def ping(url: str, code: int) -> None:
    """Tell a Healthchecks-compatible monitor how it ended; never change how it ends."""
    parts = urlsplit(url)
    try:
        url = urlunsplit(parts._replace(path=parts.path + ("/fail" if code else "")))
        exchange(new_session(), "GET", url, PING_TIMEOUT)
    except Exception:
        log.warning("The monitor at HEALTHCHECK_URL could not be told.")


def report_bug(error: Exception) -> int:
    """Say where a bug struck, not what the exception says: that can carry secrets."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{type(error).__name__} in {frame.name}, {Path(frame.filename).name}:{frame.lineno}"
    log.error("A bug of this program: %s. See: webkassa_key_updater.py status", where)
    return Failure.code


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`; return the exit code (see the text at the top)."""
    options = parse_arguments(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # None where it is closed
        sys.stdout.reconfigure(errors="backslashreplace")
    log.handlers, log.propagate = [logging.StreamHandler()], False
    log.handlers[0].setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    log.setLevel(logging.DEBUG if options.verbose else logging.INFO)
    try:
        if options.command == "status":
            return status(options.env_file, options.json)
        settings = load_settings(options.env_file)
        if options.command == "check":
            say(f"ok    settings: service {settings.service}")
            return check(settings)
        return run_update(settings, options.if_needed)
    except Failure as failure:
        log.error("%s\n%s", failure, failure.advice)
        return failure.code
    except Exception as error:
        code = report_bug(error)
        return UNKNOWN if options.command == "status" else code


if __name__ == "__main__":
    # psycopg2 waits in C, where Python's own handler of Ctrl-C would not run
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    exit_code = main()
    with contextlib.suppress(OSError, AttributeError):  # nobody reads on, or it is closed
        sys.stdout.flush()
    os._exit(exit_code)  # at once, whatever the thread of an unanswered request is doing
