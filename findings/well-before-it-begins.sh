#!/usr/bin/env bash
# cronitor 4.9.0, healthchecks-decorator 0.5.0, cronalive 0.4.1: all is well before the job begins
#
# Behaviour: under their decorators an `async def` counts as done when it has been called, which is
# before its first line runs. They tell the monitor so, and never that it failed. No error, no
# warning, and the job itself works. And sys.exit() in a job is its end without a word to the
# monitor, with 0 as with 1. sentry-sdk 2.75.0 waits for the coroutine, but calls sys.exit(0) an
# error.
# Seen: an async job that fails, and jobs that end by sys.exit(1) and sys.exit(0), under each.
# Why it matters: a renewal is made async one day, and from then on its monitor is green whatever
# happens, with a dead key, too. And a main() that ends by sys.exit(0) is overdue or failed every
# day, until nobody looks any more. Decorate a plain function that returns, and let the job fail
# once on purpose to see the alarm.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install cronitor==4.9.0 healthchecks-decorator==0.5.0 cronalive==0.4.1 sentry-sdk==2.75.0
    make_tls_proxy cronitor.link
    REQUESTS_CA_BUNDLE=certificate.pem "$PYTHON" - << 'PYTHON' || changed 'see above'
import asyncio
import contextlib
import gzip
import json
import logging
import os
import sys
import urllib.parse

import tls_proxy
import web_server

told = []


class Monitor(tls_proxy.Handler):
    """All four monitors, and a proxy on the way to the one that has https."""

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        told.extend(urllib.parse.parse_qs(url.query).get("state") or [url.path.split("/")[-1]])
        self.answer()

    def do_POST(self):
        envelope = gzip.decompress(self.read_body())
        items = [json.loads(line) for line in envelope.splitlines()]
        told.extend(item["status"] for item in items if "monitor_slug" in item)
        self.answer()


place = web_server.serve(Monitor)
os.environ.update(https_proxy=f"http://{place}", CRONALIVE_PING_DOMAIN=f"http://{place}")

import cronalive  # noqa: E402, which look at the environment
import cronitor  # noqa: E402
import healthchecks_decorator  # noqa: E402
import sentry_sdk  # noqa: E402

logging.disable()
cronitor.api_key = "key"
sentry_sdk.init(f"http://key@{place}/1")
MONITORS = {
    "cronitor": cronitor.job("renew"),
    "healthchecks": healthchecks_decorator.healthcheck(url=f"http://{place}/well", send_start=True),
    "cronalive": cronalive.monitor("well"),
    "sentry-sdk": sentry_sdk.monitor(monitor_slug="renew"),
}


async def fail():
    told.append("BEGINS")
    raise OSError("no answer")


def what_is_told(job, *arguments):
    told.clear()
    with contextlib.suppress(OSError, SystemExit):
        end = job(*arguments)
        if asyncio.iscoroutine(end):
            asyncio.run(end)
    sentry_sdk.flush()
    return " ".join(told)


seen = []
for name, monitor in MONITORS.items():
    ends = [
        what_is_told(monitor(fail)),
        what_is_told(monitor(sys.exit), 1),
        what_is_told(monitor(sys.exit), 0),
    ]
    seen.append(ends)
    print(f"{name}: an async job that fails: {ends[0]}; exit(1): {ends[1]}; exit(0): {ends[2]}")
early = [[f"{begin} {end} BEGINS", begin, begin]
         for begin, end in (("run", "complete"), ("start", "well"), ("start", "well"))]  # fmt: skip
*others, sentry = seen
late = sentry[0].replace("BEGINS ", "").replace(" BEGINS", "")
raise SystemExit(others != early or [late, *sentry[1:]] != ["in_progress error"] * 3)
PYTHON
    still_so 'three of four say that it is well before it begins'
}

main "$@"
