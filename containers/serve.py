#!/usr/bin/env python3
"""Renew the Webkassa key in a container, as the units in systemd/ do on a server: at the same times,
each time by a run of the program. A signal is passed on to what is running, and waited for."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import socket
import socketserver
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

SETTINGS = Path("/opt/webkassa-key-updater/.env")
SOCKET = Path("/run/webkassa-key/renew.sock")
TICK, MINUTE, HOUR = 5, 60, 3600  # seconds
DAILY, SPREAD = 5 * HOUR, 30 * MINUTE  # after midnight in Almaty, and how much later at most
RETRIES = (5 * MINUTE, 24)  # pause, starts
# With many accounts a repetition leaves keys alone that are younger than 6 h; so it comes before
RETRIES_OF_MANY = (15 * MINUTE, 8, "--if-needed")
# Good; what does not heal (1 is Python's own); ended by SIGHUP, SIGINT, SIGTERM
FINAL = {0, 1, 2, 73, 77, 78, 129, 130, 143}
LONGEST_RUN, LONGEST_STOP = 20 * MINUTE, 13 * MINUTE
THREADS = 4 + 32  # main, start, daily, listen; and the consumers'
log = logging.getLogger("serve")


def last_due(now: datetime, name: str, zone: tzinfo) -> datetime:
    """Return when the daily run was due last: for one name at the same time of every day."""
    midnight = now.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)
    delay = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % SPREAD
    due = midnight + timedelta(seconds=DAILY + delay)
    return due if due <= now else due - timedelta(days=1)


def may_have_accounts() -> bool:
    """Say whether the settings name a folder of many accounts. A wrong yes does no harm."""
    grep = ["grep", "-qs", "^[^#]*WEBKASSA_ACCOUNTS_DIR", str(SETTINGS)]
    return bool(os.environ.get("WEBKASSA_ACCOUNTS_DIR")) or subprocess.call(grep) == 0


class Server(socketserver.ThreadingUnixStreamServer):
    """Runs the program when it is time, and when a consumer asks, until it is told to stop."""

    request_queue_size, timeout = 128, 1

    def __init__(self) -> None:
        super().__init__("", socketserver.BaseRequestHandler, bind_and_activate=False)
        self.stopping = threading.Event()
        self.running: set[subprocess.Popen[bytes]] = set()

    def serve(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self.stop)
        with ThreadPoolExecutor() as pool:
            jobs = [pool.submit(job) for job in (self.start, self.daily, self.listen)]
            while not self.stopping.is_set() and not any(j.done() and j.exception() for j in jobs):
                wait(jobs, timeout=1)  # not for ever: a signal may have come to another thread
            self.stop(signal.SIGTERM)
        for job in jobs:
            job.result()

    def stop(self, number: int, _: object = None) -> None:
        """Pass a signal on. A run between login and commit ends after the commit."""
        self.stopping.set()
        for process in [*self.running]:
            process.send_signal(number)

    def start(self) -> None:
        """Renew what is old or dead; then, by a clock that cannot be set, what is a day old."""
        self.keep_trying("boot", *RETRIES, "--if-needed", WEBKASSA_MAX_AGE="20h")
        while not self.stopping.wait(HOUR):
            self.run("net", "--if-needed", WEBKASSA_MAX_AGE="25h", WEBKASSA_PROBE_URL="off")

    def daily(self) -> None:
        zone, name = ZoneInfo("Asia/Almaty"), socket.gethostname()
        done = last_due(datetime.now(zone), name, zone)
        log.info("the daily run is at %s in Almaty", done.time())
        while not self.stopping.wait(TICK):  # the clock may be set meanwhile
            now = datetime.now(zone)
            due = last_due(now, name, zone)
            if due > done:
                retries = RETRIES_OF_MANY if may_have_accounts() else RETRIES
                self.keep_trying("daily", *retries, WEBKASSA_MAX_AGE="6h")
            if due > done or done > now + timedelta(hours=1):  # the clock was ahead
                done = due

    def keep_trying(self, kind: str, pause: int, starts: int, *mode: str, **settings: str) -> None:
        for left in reversed(range(starts)):
            code = self.run(kind, *mode, **settings)
            again = left and code not in FINAL and not self.stopping.is_set()
            if code:
                say = f"tried again in {pause} s" if again else "not tried again"
                log.info("%s: exit code %s, %s", kind, code, say)
            if not again or self.stopping.wait(pause):
                break

    def run(self, kind: str, *mode: str, stdin: Any = subprocess.DEVNULL, **settings: str) -> int:
        """Update; return the exit code, of a run that a signal ended as a shell has it."""
        command, env = ["webkassa-key", "update", *mode], {"WEBKASSA_RUN_KIND": kind}
        try:
            process = subprocess.Popen(command, env={**os.environ, **env, **settings}, stdin=stdin)
        except OSError as error:  # no memory, no free process: it may heal
            log.error("%s: cannot be started: %s", kind, error.strerror)
            return 75
        self.running.add(process)
        if self.stopping.is_set():
            process.terminate()
        for limit, end in ((LONGEST_RUN, process.terminate), (LONGEST_STOP, process.kill)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(limit)
            end()  # where it has not ended
        code = process.wait()
        self.running.discard(process)
        return code if code >= 0 else 128 - code

    def listen(self) -> None:
        new = SOCKET.with_name("new.sock")  # soon in the place of an earlier container's
        try:
            new.unlink(missing_ok=True)
            self.socket.bind(str(new))
            self.server_activate()
            new.chmod(0o666)  # whoever has the volume may ask
            new.rename(SOCKET)
            while not self.stopping.is_set():
                self.handle_request()
            self.server_close()  # when all have their answers
        except OSError as error:
            log.error("no consumer can ask at %s: %s", SOCKET, error.strerror)

    def verify_request(self, *_: object) -> bool:
        return threading.active_count() < THREADS  # who is sent away comes again

    def finish_request(self, request: Any, _: object) -> None:
        code = self.run("consumer", "--if-key", "-", stdin=request)
        with contextlib.suppress(OSError):  # it may be gone
            request.sendall(b"%d\n" % code)


if __name__ == "__main__":
    logging.basicConfig(format="serve: %(message)s", level=logging.INFO)
    Server().serve()
