#!/usr/bin/env bash
# cashews 7.6.0 and cachebox 6.2.10: one caller runs into its timeout, and all others are cancelled
#
# Behaviour: their async caches let one caller ask, and the others wait for what it gets. When that
# one is cancelled (its own wait_for, a client that hung up), the call is cut off, and whoever
# waits gets a CancelledError of its own, though nobody cancelled it. `except Exception` does not
# catch that: the task ends, without a log line. async-lru 2.4.0 goes on for the others; aiocache
# 0.12.3 (cached_stampede) lets all of them ask at once.
# Seen: five consumers want a key, the first for 1 s at most, the others for as long as it takes
# and with a loop that tries again after an Exception. All four loops are over, the login is cut
# off.
# Why it matters: one impatient request, and the background task that renews or reads the key is
# gone until a restart, in a process that looks well; a login that was cut off may have killed the
# key. Call what such a cache keeps through asyncio.shield() (the last line), and watch for tasks
# that end.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install cashews==7.6.0 cachebox==6.2.10 async-lru==2.4.0 aiocache==0.12.3
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import asyncio

import aiocache
import cachebox
from async_lru import alru_cache
from cashews import cache

cache.setup("mem://")
CACHES = {
    "cashews": cache(ttl="1h"),
    "cashews, lock=True": cache(ttl="1h", lock=True),
    "cachebox": cachebox.cached(cachebox.TTLCache(10, 3600)),
    "async-lru": alru_cache(ttl=3600),
    "aiocache": aiocache.cached_stampede(ttl=3600, lease=60),
    "cashews, shield()": cache(ttl="1h"),
}


async def try_cache(name):
    logins = {"begun": 0, "cut off": 0}

    async def get_key():
        logins["begun"] += 1
        try:
            await asyncio.sleep(3)
        except asyncio.CancelledError:
            logins["cut off"] += 1
            raise
        return "key"

    get_key.__qualname__ = name  # cashews and aiocache make their keys of it
    get_key = CACHES[name](get_key)

    async def consumer():
        while True:
            try:
                return await get_key()
            except Exception as error:
                print("tries again after", repr(error))

    async def impatient():
        await asyncio.wait_for(asyncio.shield(get_key()) if "shield" in name else get_key(), 1)

    tasks = [asyncio.create_task(impatient())]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(consumer()) for _ in range(4)]
    await asyncio.wait(tasks, timeout=60)
    ends = ["cancelled" if one.cancelled() else one.exception() or one.result() for one in tasks]
    print(f"{name:18}  the first: {ends[0]!r}; the others: {', '.join(ends[1:])}; logins: {logins}")
    return ends[1:], *logins.values()


async def main():
    seen = [await try_cache(name) for name in CACHES]
    cancelled, good = ["cancelled"] * 4, ["key"] * 4
    raise SystemExit(seen != [(cancelled, 1, 1)] * 3 + [(good, 1, 0), (good, 5, 1), (good, 1, 0)])


asyncio.run(main())
PYTHON
    still_so 'who only waits is cancelled along with the first'
}

main "$@"
