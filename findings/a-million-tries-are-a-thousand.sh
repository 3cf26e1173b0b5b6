#!/usr/bin/env bash
# aiohttp-retry 2.9.1, httpx-retries 0.6.0, urllib3 2.8.0: of a million tries a thousand are made
#
# Behaviour: they wait twice as long after each failure, up to a cap (30 s, 120 s, 120 s if nothing
# is said). The doubled number is reckoned before it is cut to the cap, and after 1,024 doublings it
# is no number of the machine any more: OverflowError, in the place of the next try and of what the
# server said. urllib3 does so, too, but calls itself for each try, and comes to the end of Python's
# stack first: RecursionError. stamina 26.1.0 and tenacity 9.2.1 wait the cap and go on. (The kind
# is known: stamina had it, issue 104; redis-py has it, pull request 4320. Of these three no issue
# was found.)
# Seen: a million tries are allowed, the cap is a millisecond, and a server says 503 to each:
# OverflowError after 1,024 requests of aiohttp-retry and of httpx-retries, RecursionError after 981
# or so of urllib3. The other two make all their 1,100 tries.
# Why it matters: whoever allows a million tries means "until it is back". With the caps of these
# libraries that ends in the ninth hour of an outage, or in the second day, in a program whose tests
# have seen three tries, with an error that no list of errors has. Catch everything around such a
# loop and begin it anew, or let a timer start the program again.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install aiohttp-retry==2.9.1 aiohttp==3.14.5 httpx-retries==0.6.0 httpx==0.28.1 urllib3==2.8.0 \
        stamina==26.1.0 tenacity==9.2.1
    make_web_server
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import asyncio
import logging

import aiohttp
import aiohttp_retry
import httpx
import httpx_retries
import stamina
import tenacity
import urllib3
import web_server

MILLION, CAP, FIRST, ENOUGH = 1_000_000, 0.001, 0.0005, 1100
requests = 0


class Server(web_server.Handler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        global requests
        requests += 1
        self.answer(status=503 if requests < ENOUGH else 200)


url = f"http://{web_server.serve(Server)}"


async def by_aiohttp_retry():
    options = aiohttp_retry.ExponentialRetry(MILLION, start_timeout=FIRST, max_timeout=CAP)
    async with aiohttp_retry.RetryClient(retry_options=options) as client:
        await client.get(url)


def by_httpx_retries():
    retry = httpx_retries.Retry(total=MILLION, backoff_factor=FIRST, max_backoff_wait=CAP)
    with httpx.Client(transport=httpx_retries.RetryTransport(retry=retry)) as client:
        client.get(url)


def by_urllib3():
    retry = urllib3.Retry(
        total=MILLION, status_forcelist=[503], backoff_factor=FIRST, backoff_max=CAP
    )
    urllib3.PoolManager(retries=retry).request("GET", url)


def ask():
    global requests
    requests += 1
    raise ConnectionError


def by_stamina():
    limits = {"attempts": ENOUGH, "timeout": None, "wait_initial": FIRST, "wait_max": CAP}
    stamina.retry(on=ConnectionError, wait_jitter=0, **limits)(ask)()


def by_tenacity():
    wait = tenacity.wait_exponential(multiplier=FIRST, max=CAP)
    tenacity.retry(wait=wait, stop=tenacity.stop_after_attempt(ENOUGH), reraise=True)(ask)()


logging.disable()
seen = {}
for name, by in {
    "aiohttp-retry": lambda: asyncio.run(by_aiohttp_retry()),
    "httpx-retries": by_httpx_retries,
    "urllib3": by_urllib3,
    "stamina": by_stamina,
    "tenacity": by_tenacity,
}.items():
    requests = 0
    try:
        by()
        error = "no error"
    except Exception as raised:
        error = type(raised).__name__
    print(f"{name:13}  {error:15} after {requests:,} tries")
    seen[name] = (error, requests)
deep, number = seen.pop("urllib3")
over, given_up = ("OverflowError", 1024), ("ConnectionError", ENOUGH)
raise SystemExit(
    list(seen.values()) != [over, over, given_up, given_up]
    or deep != "RecursionError"
    or number > 1000
)
PYTHON
    still_so 'the tries end where a float does'
}

main "$@"
