#!/usr/bin/env bash
# circuitbreaker 2.1.3, aiobreaker 1.2.0, purgatory 3.0.1: half-open lets everybody through
#
# Behaviour: after failures a circuit breaker refuses calls for a while; then it is half-open, and
# "allows one test-execution", as the manual of circuitbreaker has it, and aiobreaker's in like
# words. All three let through every call that comes until the first has ended. pybreaker 1.4.1
# lets one through; with threads, the others wait for its end.
# Seen: 20 callers come when the time is over, and each login takes 1 s: 20 logins at once,
# although none succeeds. pybreaker: one login.
# Why it matters: the longer a login hangs before it fails, the more go along with the trial. A
# service that has just come back gets them all; where each login ends the key before it, 19 of 20
# are handed a dead key, and where failed ones are counted, the account is closed. Let one task of
# one process log in, under a lock, and the others read what it got.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install circuitbreaker==2.1.3 aiobreaker==1.2.0 purgatory==3.0.1 pybreaker==1.4.1
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import asyncio
import datetime
import time

import aiobreaker
import circuitbreaker
import purgatory
import pybreaker

logins = []


async def log_in():
    logins.append("begun")
    await asyncio.sleep(1)
    raise OSError("no answer")


def log_in_by_thread():
    logins.append("begun")
    time.sleep(1)
    raise OSError("no answer")


async def suppress(call):
    try:
        await call()
    except Exception:
        pass


async def twenty(call):
    """Return how many of 20 callers log in when the circuit is half-open."""
    for _ in range(3):
        await suppress(call)
    logins.clear()
    await suppress(call)
    assert not logins, "the circuit is open"
    await asyncio.sleep(3)
    await asyncio.gather(*(suppress(call) for _ in range(20)))
    return len(logins)


async def main():
    by_aiobreaker = aiobreaker.CircuitBreaker(3, datetime.timedelta(seconds=3))
    by_purgatory = purgatory.AsyncCircuitBreakerFactory(default_threshold=3, default_ttl=3)
    by_pybreaker = pybreaker.CircuitBreaker(fail_max=3, reset_timeout=3)

    async def call_purgatory():
        async with await by_purgatory.get_breaker("Webkassa"):
            await log_in()

    calls = {
        "circuitbreaker": circuitbreaker.circuit(failure_threshold=3, recovery_timeout=3)(log_in),
        "aiobreaker": lambda: by_aiobreaker.call_async(log_in),
        "purgatory": call_purgatory,
        "pybreaker": lambda: asyncio.to_thread(by_pybreaker.call, log_in_by_thread),
    }
    seen = []
    for name, call in calls.items():
        seen.append(await twenty(call))
        print(f"{name:15} of 20 callers log in: {seen[-1]}")
    raise SystemExit(seen != [20, 20, 20, 1])


asyncio.run(main())
PYTHON
    still_so 'half-open lets 20 of 20 through'
}

main "$@"
