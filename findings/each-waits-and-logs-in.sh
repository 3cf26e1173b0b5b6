#!/usr/bin/env bash
# httpx-auth 0.23.1 and requests-auth 8.0.0: callers who wait for a login log in themselves, too
#
# Guess, before it was run: under their lock one caller logs in and the others take its token.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install httpx-auth==0.23.1 httpx==0.28.1 requests-auth==8.0.0 requests==2.34.2
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import asyncio
import concurrent.futures
import http.server
import json
import threading
import time

import httpx
import httpx_auth
import requests
import requests_auth

CALLERS = 10
LOGIN = 0.5  # seconds
tokens = []


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(LOGIN)
        tokens.append(f"key-{len(tokens)}")
        self.answer(200, {"access_token": tokens[-1], "expires_in": 86400})

    def do_GET(self):
        time.sleep(2 * LOGIN)  # the work, at whose end the key has to be alive
        alive = self.headers["Authorization"] == f"Bearer {tokens[-1]}"
        self.answer(200 if alive else 401, {})

    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
LOGIN_DATA = {"token_url": f"{url}/login", "client_id": "shop", "client_secret": "secret"}


def in_threads(call):
    begin = threading.Barrier(CALLERS)

    def wait_and_call(_):
        begin.wait()
        return call()

    with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(wait_and_call, range(CALLERS)))


def with_httpx():
    auth = httpx_auth.OAuth2ClientCredentials(**LOGIN_DATA)
    return in_threads(lambda: httpx.get(url, auth=auth, timeout=60).status_code)


def with_requests():
    auth = requests_auth.OAuth2ClientCredentials(**LOGIN_DATA)
    return in_threads(lambda: requests.get(url, auth=auth, timeout=60).status_code)


async def async_calls(auth):
    async with httpx.AsyncClient(auth=auth, timeout=60) as client:
        answers = await asyncio.gather(*(client.get(url) for _ in range(CALLERS)))
        return [answer.status_code for answer in answers]


async def longest_pause(stop):
    pause, last = 0, time.monotonic()
    while not stop.is_set():
        await asyncio.sleep(0.01)
        now = time.monotonic()
        pause, last = max(pause, now - last), now
    return pause


async def with_httpx_async():
    stop = asyncio.Event()
    watch = asyncio.create_task(longest_pause(stop))
    await asyncio.sleep(0.1)
    statuses = await async_calls(httpx_auth.OAuth2ClientCredentials(**LOGIN_DATA))
    stop.set()
    pause = await watch
    print(f"  the longest pause of the event loop: {pause:.1f} s")
    return statuses, pause


def report(name, statuses):
    good = statuses.count(200)
    print(f"{name}: {len(tokens)} logins for {CALLERS} callers, of whom {good} are served")
    logins = len(tokens)
    tokens.clear()
    return logins, good


httpx_seen = report("httpx-auth, threads", with_httpx())
requests_seen = report("requests-auth, threads", with_requests())
httpx_auth.OAuth2.token_cache.clear()
statuses, pause = asyncio.run(with_httpx_async())
async_seen = report("httpx-auth, async", statuses)
as_found = (
    httpx_seen[0] == requests_seen[0] == CALLERS
    and max(httpx_seen[1], requests_seen[1]) < CALLERS
    and async_seen == (1, CALLERS)
    and pause >= LOGIN
)
raise SystemExit(not as_found)
PYTHON
    still_so 'as many logins as callers with threads; a loop that stands still with async'
}

main "$@"
