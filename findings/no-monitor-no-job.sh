#!/usr/bin/env bash
# cronitor 4.9.0 and healthchecks-io 0.4.4: while the monitor cannot be reached, the job is not run
#
# Behaviour: a decorator (or `with` block) tells a monitor that the job begins, runs it, and tells
# its end. In these two an error of the first call is the caller's: the job is not begun. bearwatch
# 0.1.3 tells the end only: the job is done, and then the error takes the place of what it returns.
# healthchecks-decorator 0.5.0, cronalive 0.4.1 and sentry-sdk 2.75.0 run it as if nothing were.
# Seen: nobody listens at the monitor's address; one daily job under each of the six.
# Why it matters: the monitor is what is to notice that a key was not renewed, and its own outage,
# or a firewall in its way, is why it is not: every job of a fleet in the same hour. With bearwatch
# the key is new and its owner is told that it is not, so he logs in again. Begin the job first and
# keep the monitor's errors from it, or have it told by another process (systemd's OnSuccess=).

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install cronitor==4.9.0 healthchecks-io==0.4.4 bearwatch==0.1.3 \
        healthchecks-decorator==0.5.0 cronalive==0.4.1 sentry-sdk==2.75.0
    cd "$TMP"
    "$PYTHON" - "127.0.0.1:$(free_port)" << 'PYTHON' || changed 'see above'
import logging
import os
import sys

address = f"http://{sys.argv[1]}"
os.environ.update(https_proxy=address, CRONALIVE_PING_DOMAIN=address)

import bearwatch  # noqa: E402, which look at the environment
import cronalive  # noqa: E402
import cronitor  # noqa: E402
import healthchecks_decorator  # noqa: E402
import healthchecks_io  # noqa: E402
import sentry_sdk  # noqa: E402

logging.disable()
begun = []


def renew():
    begun.append(True)
    return "key"


def by_healthchecks_io():
    client = healthchecks_io.Client(ping_url=f"{address}/")
    with healthchecks_io.CheckTrap(client, uuid="6a6ea5ec-8d3b-4a70-a4a3-2c8f1e0b8c11"):
        return renew()


cronitor.api_key = "key"
sentry_sdk.init(f"http://key@{sys.argv[1]}/1")
JOBS = {
    "cronitor": cronitor.job("renew")(renew),
    "healthchecks-io": by_healthchecks_io,
    "bearwatch": lambda: bearwatch.BearWatch("key", base_url=address).wrap("renew", renew),
    "healthchecks-decorator": healthchecks_decorator.healthcheck(url=address)(renew),
    "cronalive": cronalive.monitor("renew")(renew),
    "sentry-sdk": sentry_sdk.monitor(monitor_slug="renew")(renew),
}
seen = []
for name, job in JOBS.items():
    begun.clear()
    try:
        end = job()
    except Exception as error:
        end = type(error).__name__
    print(f"{name:23} job {'run' if begun else 'not run'}; the caller gets {end}")
    seen.append((len(begun), end == "key"))
raise SystemExit(seen != [(0, False)] * 2 + [(1, False)] + [(1, True)] * 3)
PYTHON
    still_so 'two of six run no job, and one calls it failed'
}

main "$@"
