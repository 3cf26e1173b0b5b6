"""What the image starts, without an engine: its daily runs and its socket."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zoneinfo
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_units import UNITS, directives, seconds
from world.shop import PROGRAM, ROOT, UPDATERS, Result, Shop, fingerprint
from world.waiting import await_
from world.webkassa_simulator import answer, slow

FOLDER = ROOT / "containers"
ALMATY = zoneinfo.ZoneInfo("Asia/Almaty")
spec = importlib.util.spec_from_file_location("serve", FOLDER / "serve.py")
serve: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serve)


class Salon:
    """A shop whose programs have the names that they have in the image."""

    def __init__(self, shop: Shop) -> None:
        self.shop, self.webkassa, self.home = shop, shop.webkassa, shop.home
        self.socket = self.home / "run/renew.sock"
        for folder in ("bin", "run", "state"):
            (self.home / folder).mkdir()
        self.constants: dict[str, Any] = {
            "SOCKET": self.socket, "SETTINGS": self.home / ".env", "TICK": 0.1}  # fmt: skip
        shop.env["PATH"] = f"{self.home}/bin:{os.environ['PATH']}"
        shop.env["STATE_DIRECTORY"] = str(self.home / "state")
        self.program(f'exec {sys.executable} {PROGRAM} "$@"')
        self.command("webkassa-key", f'exec {FOLDER}/webkassa-key.sh "$@"')

    def command(self, name: str, does: str) -> None:
        """Put a command into the image: lines of shell."""
        (self.home / "bin" / name).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (self.home / "bin" / name).chmod(0o755)

    def program(self, does: str) -> None:
        """Have the program do this; its runs are noted."""
        told = "$WEBKASSA_RUN_KIND $* $WEBKASSA_MAX_AGE $WEBKASSA_PROBE_URL"
        self.command("webkassa-key-updater", f'echo "{told}" >>{self.home}/runs\n{does}')

    @property
    def runs(self) -> list[str]:
        """What each run was told: kind, arguments, greatest age, probe."""
        file = self.home / "runs"
        return [line.strip() for line in file.read_text().splitlines()] if file.exists() else []

    def start(self, *command: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, env=self.shop.env, stdin=subprocess.DEVNULL, text=True, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.shop.started.append(process)
        return process

    def image(self, *arguments: str) -> Result:
        """Run what the image starts."""
        return self.shop.finish(self.start(FOLDER / "webkassa-key.sh", *arguments))

    def serve(self, lines: str = "", **constants: Any) -> subprocess.Popen[str]:
        """Serve, with other constants than its own, after these lines of Python."""
        return self.start(sys.executable, "-c", f"""
import sys
from pathlib import PosixPath
sys.path.insert(0, {str(FOLDER)!r})
import serve
for name, value in {self.constants | constants!r}.items():
    assert hasattr(serve, name)
    setattr(serve, name, value)
{lines}
serve.logging.basicConfig(format="serve: %(message)s", level=serve.logging.INFO)
serve.Server().serve()
""")  # fmt: skip

    def await_run(self, kind: str = "boot") -> None:
        """Wait until a run of this kind (and account) has ended, and left its note."""
        note = self.home / "state" / f"run-{kind}.json"
        await_(note.exists)
        note.unlink()

    @staticmethod
    def children(process: subprocess.Popen[str]) -> str:
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        return "".join(task.read_text() for task in tasks)

    def stop(self, process: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
        """Stop it; return what it and its runs have said."""
        process.send_signal(number)
        result = self.shop.finish(process)
        assert (result.code, result.out) == (0, ""), result.err
        return result.err

    def ask(self, line: str) -> str:
        """Ask as a consumer does; return the answer, or "" where it was sent away."""
        await_(self.socket.exists)
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(ConnectionError):
            client.connect(str(self.socket))
            client.sendall(f"{line}\n".encode())
            return client.makefile().readline().strip()
        return ""


@pytest.fixture
def salon(shop: Shop) -> Salon:
    return Salon(shop)


@pytest.fixture
def young(salon: Salon) -> Salon:
    """A salon whose key needs no renewal; younger than a minute, no consumer could renew it."""
    ago = "now() AT TIME ZONE 'UTC' - interval '2 min'"
    salon.shop.sql(f"UPDATE api_keys SET updated_at = {ago} WHERE id = 1")
    return salon


# The commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("-v",), ("--if-needed",), ("serv",), ("serve", "-v")])
def test_without_a_command_nothing_is_asked_of_webkassa(
    salon: Salon, arguments: tuple[str, ...]
) -> None:
    result = salon.image(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("usage: docker run ")
    assert "set -" not in result.err
    assert salon.runs == []


def test_a_command_goes_to_the_program_as_it_is(salon: Salon) -> None:
    assert "usage: webkassa_key_updater.py" in salon.image("--help").out
    assert salon.image("-v", "update", "--if-needed").code == 0
    assert salon.shop.holds_the_live_key
    assert salon.image("status").out.startswith("WEBKASSA OK")
    salon.webkassa.password = "another"
    assert salon.image("update").code == 77


@pytest.mark.parametrize("is_replaced", [True, False])
def test_settings_that_were_replaced_outside_are_told_of(
    salon: Salon, tmp_path: Path, is_replaced: bool
) -> None:
    """By `install`, as the manual has it, or by an editor: the mount keeps the file of before, with
    the password that was refused."""
    with open(tmp_path / "mounted", "x") as mounted:
        if is_replaced:
            (tmp_path / "mounted").unlink()
        text = (FOLDER / "webkassa-key.sh").read_text(encoding="utf-8")
        file = f"/proc/{os.getpid()}/fd/{mounted.fileno()}"
        text = text.replace("/opt/webkassa-key-updater/.env", file)
        (salon.home / "bin/webkassa-key").write_text(text, encoding="utf-8")
        result = salon.shop.finish(salon.start("webkassa-key", "update"))
    assert ("Restart this container" in result.err) == is_replaced
    assert (result.code, salon.shop.holds_the_live_key) == (0, True)


def test_serve_goes_to_the_program_that_serves(salon: Salon) -> None:
    salon.command("webkassa-key-serve", "echo serves $#")
    assert salon.image("serve") == Result(0, "serves 0\n", "")


def test_what_serves_is_short_enough_to_be_read() -> None:
    assert len((FOLDER / "serve.py").read_text(encoding="utf-8").splitlines()) <= 150


# What the units say ------------------------------------------------------------------------------


def unit(name: str) -> dict[str, str]:
    return {key: values[-1] for key, values in directives(UNITS / name).items()}


def told_by(name: str) -> str:
    """Return what a unit tells its run, as `Salon.runs` has it."""
    env = shlex.split(" ".join(directives(UNITS / name)["Environment"]))
    told = {
        key.removeprefix("WEBKASSA_"): value for key, value in (word.split("=") for word in env)
    }
    arguments = unit(name)["ExecStart"].split("webkassa.env ")[1]
    words = (told.get("RUN_KIND"), arguments, told.get("MAX_AGE"), told.get("PROBE_URL"))
    return " ".join(filter(None, words))


def test_times_and_retries_are_those_of_the_units() -> None:
    timer, update = unit("webkassa-key-update.timer"), unit("webkassa-key-update.service")
    many = unit("accounts/webkassa-key-update.service.d/10-if-needed.conf")
    sandbox = unit("webkassa-key-.service.d/00-sandbox.conf")
    assert timer["OnCalendar"] == f"*-*-* {serve.DAILY // 3600:02}:00:00 Asia/Almaty"
    assert seconds(timer["RandomizedDelaySec"]) == serve.SPREAD
    assert (seconds(update["RestartSec"]), int(update["StartLimitBurst"])) == serve.RETRIES
    *retries, mode = serve.RETRIES_OF_MANY
    assert [seconds(many["RestartSec"]), int(many["StartLimitBurst"])] == retries
    assert many["ExecStart"].endswith(f" update {mode}")
    assert many["Environment"] == "WEBKASSA_MAX_AGE=6h"
    assert seconds(sandbox["TimeoutStartSec"]) == serve.LONGEST_RUN
    assert seconds(sandbox["TimeoutStopSec"]) == serve.LONGEST_STOP
    never = [int(code) for code in update["RestartPreventExitStatus"].split()]
    clean = [128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)]
    assert {code for code in never if code < 128} == serve.FINAL - {0, *clean}
    assert 4 + int(unit("webkassa-key-renew.socket")["MaxConnections"]) == serve.THREADS
    assert seconds(unit("webkassa-key-net.timer")["OnUnitInactiveSec"]) == serve.HOUR
    assert Path(unit("webkassa-key-renew.socket")["ListenStream"]) == serve.SOCKET


def test_runs_are_told_what_the_units_tell_theirs(young: Salon) -> None:
    process = young.serve(HOUR=0.1)
    young.await_run("net")
    assert young.ask(fingerprint(young.shop.key)) == "0"
    young.stop(process)
    assert young.runs[:2] == [
        told_by("webkassa-key-boot.service"),
        told_by("webkassa-key-net.service"),
    ]
    assert told_by("webkassa-key-renew@.service") in young.runs


# At its start ------------------------------------------------------------------------------------


def test_old_key_is_renewed_at_the_first_start_and_not_at_ten_further_ones(salon: Salon) -> None:
    for _ in range(11):
        process = salon.serve()
        salon.await_run()
        said = salon.stop(process)
    assert salon.shop.holds_the_live_key
    assert salon.webkassa.authorizations == 1
    # A line of its own, and one for each run
    assert re.fullmatch(
        r"serve: the daily run is at 05:[0-2]\d:\d\d in Almaty\nINFO: .*\n", said
    ), said


def test_without_a_place_for_the_socket_it_renews_all_the_same(salon: Salon) -> None:
    process = salon.serve(SOCKET=salon.home / "nowhere/renew.sock")
    salon.await_run()
    said = salon.stop(process)
    assert "no consumer can ask at" in said
    assert "No such file" in said
    assert salon.shop.holds_the_live_key


def test_fault_in_one_part_of_it_ends_all(salon: Salon) -> None:
    """So that the container is started again. What is running may end before."""
    salon.webkassa.script.append(slow(2))
    process = salon.serve("serve.last_due = None")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "TypeError" in err
    assert salon.shop.key == salon.webkassa.live


# The daily run -----------------------------------------------------------------------------------

NAMES = [f"shop-{number}" for number in range(300)]


def at(text: str, zone: datetime.tzinfo = ALMATY) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=zone)


def test_daily_run_is_between_five_and_half_past_in_almaty() -> None:
    dues = {serve.last_due(at("2027-03-01 12:00"), name, ALMATY) for name in NAMES}
    assert at("2027-03-01 05:00") <= min(dues) < max(dues) < at("2027-03-01 05:30")
    assert len(dues) > 200  # not all shops at once
    assert {due.utcoffset() for due in dues} == {datetime.timedelta(hours=5)}


@pytest.mark.parametrize("name", NAMES[:5])
def test_daily_run_is_at_the_same_time_of_every_day_for_a_name(name: str) -> None:
    due = serve.last_due(at("2027-12-31 12:00"), name, ALMATY)
    second, day = datetime.timedelta(seconds=1), datetime.timedelta(days=1)
    assert serve.last_due(due, name, ALMATY) == due
    assert serve.last_due(due - second, name, ALMATY) == due - day
    assert serve.last_due(due + day - second, name, ALMATY) == due
    assert serve.last_due(due + day, name, ALMATY) == due + day


def test_daily_run_follows_almatys_time_whatever_the_clocks_zone() -> None:
    now = at("2027-06-01 05:45")
    for zone in (datetime.timezone.utc, zoneinfo.ZoneInfo("America/New_York")):
        assert serve.last_due(now.astimezone(zone), "a", ALMATY) == serve.last_due(now, "a", ALMATY)
    before = serve.last_due(at("2024-01-01 12:00"), "a", ALMATY)  # it was UTC+6 until March 2024
    assert (before.hour, before.utcoffset()) == (5, datetime.timedelta(hours=6))


# A clock that stands still until it is set; it notes what it has shown
CLOCK = """
import datetime
class Clock(datetime.datetime):
    @classmethod
    def now(cls, zone):
        text = open({file!r}).read()
        print(text, file=open({file!r} + ".shown", "a"))
        return cls.fromisoformat(text).replace(tzinfo=zone)
serve.datetime = Clock
"""
CLOCKS = {
    "goes on": "01 04:59 0, 01 05:31 1, 01 23:59 1, 02 04:59 1, 02 05:31 2, 03 05:31 3",
    "was ahead at the start": "09 12:00 0, 01 04:59 0, 01 05:31 1, 02 05:31 2",
    "was behind at the start": "01 00:00 0, 09 12:00 1, 10 04:59 1, 10 05:31 2",
    "is set back by less than an hour": "01 05:31 0, 02 05:31 1, 02 04:58 1, 02 05:31 1, 03 05:31 2",
    "is set back by hours": "01 05:31 0, 02 05:31 1, 02 02:00 1, 02 05:31 2",
    "is set back by days": "01 05:31 0, 09 05:31 1, 02 04:59 1, 02 05:31 2",
    "stood still for days, with the machine": "01 05:31 0, 05 12:00 1, 06 05:31 2",
}


@pytest.mark.parametrize("story", CLOCKS.values(), ids=CLOCKS)
def test_no_day_is_lost_and_none_has_two_runs_where_the_clock(young: Salon, story: str) -> None:
    """Each step: the clock is set to that day and time, and so many daily runs were made by then."""
    young.program("exit 0")
    file, process = young.home / "clock", None
    shown = Path(f"{file}.shown")
    for step in story.split(", "):
        day, hour, runs = step.split()
        (young.home / "set").write_text(f"2027-03-{day}T{hour}")
        (young.home / "set").rename(file)
        shown.unlink(missing_ok=True)
        process = process or young.serve(CLOCK.format(file=str(file)))
        # It has looked at this time, has done what there was to do, and looks again
        await_(lambda: shown.exists() and shown.read_text().count("\n") >= 4)
        assert [run.split()[0] for run in young.runs].count("daily") == int(runs), step
    assert process
    young.stop(process)


def serve_at_noon(salon: Salon, first: str = "boot") -> subprocess.Popen[str]:
    """Serve; after the first run, let the daily one become due."""
    file = salon.home / "clock"
    file.write_text("2027-03-01T04:59")
    process = salon.serve(CLOCK.format(file=str(file)))
    await_(Path(f"{file}.shown").exists)
    salon.await_run(first)
    (salon.home / "set").write_text("2027-03-01T12:00")
    (salon.home / "set").rename(file)
    return process


def test_daily_run_renews_even_a_young_key(young: Salon) -> None:
    process = serve_at_noon(young)
    young.await_run("daily")
    young.stop(process)
    assert [run.split()[:2] for run in young.runs] == [["boot", "update"], ["daily", "update"]]
    assert "--if-needed" not in young.runs[1]
    assert young.shop.holds_the_live_key
    assert young.webkassa.authorizations == 1


@pytest.mark.parametrize("said_in", ["environment", "settings file"])
def test_daily_run_leaves_young_ones_of_many_keys_alone(young: Salon, said_in: str) -> None:
    for name in (PROGRAM.name, "webkassa_key_accounts.py"):
        shutil.copy(ROOT / name, young.home)
    young.program(f'exec {sys.executable} {young.home}/{PROGRAM.name} "$@"')
    (young.home / "accounts.d").mkdir()
    login = [f"{n}='{young.shop.env.pop(n)}'\n" for n in ("WEBKASSA_LOGIN", "WEBKASSA_PASSWORD")]
    text = "".join([*login, "WEBKASSA_SERVICE_NAME=Webkassa\n"])
    (young.home / "accounts.d/a.env").write_text(text, encoding="utf-8")
    folder = f"{young.home}/accounts.d"
    if said_in == "environment":
        young.shop.env["WEBKASSA_ACCOUNTS_DIR"] = folder
    else:
        (young.home / ".env").write_text(f"A=1\n export WEBKASSA_ACCOUNTS_DIR = '{folder}'\n")
    process = serve_at_noon(young, "boot.a")
    young.await_run("daily.a")
    said = young.stop(process)
    assert young.runs[1] == "daily update --if-needed 6h", said
    assert young.shop.is_untouched
    assert young.webkassa.authorizations == 0


def test_example_of_the_settings_names_no_accounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "SETTINGS", tmp_path / ".env")
    monkeypatch.delenv("WEBKASSA_ACCOUNTS_DIR", raising=False)
    assert not serve.may_have_accounts()
    shutil.copy(ROOT / ".env.example", tmp_path / ".env")
    assert not serve.may_have_accounts()


# Retries -----------------------------------------------------------------------------------------


def test_key_comes_with_a_retry_when_webkassa_is_back(salon: Salon) -> None:
    salon.webkassa.script.append(answer(503, b"", {"Retry-After": "3600"}))
    process = salon.serve(RETRIES=(0.1, 24))
    await_(lambda: salon.shop.holds_the_live_key)
    said = salon.stop(process)
    assert "serve: boot: exit code 69, tried again in 0.1 s\n" in said
    assert len(salon.runs) == 2


@pytest.mark.parametrize("code", [0, 1, 2, 69, 70, 71, 73, 75, 76, 77, 78])
def test_what_may_heal_is_tried_24_times_and_what_does_not_once(salon: Salon, code: int) -> None:
    salon.program(f"exit {code}")
    process = salon.serve(RETRIES=(0, 24), HOUR=0.1)
    await_(lambda: any(run.startswith("net") for run in salon.runs))
    said = salon.stop(process)
    tries = [run for run in salon.runs if run.startswith("boot")]
    assert len(tries) == (24 if code in (69, 70, 71, 75, 76) else 1)
    assert ("not tried again" in said) == bool(code)


def test_run_without_end_is_ended(salon: Salon) -> None:
    salon.program("trap '' TERM; exec sleep 999")
    process = salon.serve(LONGEST_RUN=0.5, LONGEST_STOP=0.5, RETRIES=(0, 2), HOUR=999)
    await_(lambda: len(salon.runs) == 2)
    await_(lambda: not salon.children(process))
    said = salon.stop(process)
    assert said.count("exit code 137") == 2


# Signals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stop_in_the_middle_of_a_login_is_obeyed_after_the_commit(
    salon: Salon, number: int
) -> None:
    salon.webkassa.script.append(slow(2))
    process = salon.serve()
    await_(lambda: salon.webkassa.authorizations)
    salon.stop(process, number)
    assert salon.shop.holds_the_live_key
    assert len(salon.runs) == 1


def test_stop_is_passed_on_to_a_run_that_waits_for_the_lock(salon: Salon) -> None:
    with salon.shop.lock_held():
        process = salon.serve()
        await_(lambda: salon.shop.sql(UPDATERS))
        start = time.monotonic()
        said = salon.stop(process)
        assert time.monotonic() - start < 30  # it would wait for 77 s
    assert "boot: exit code 143, not tried again" in said
    assert salon.webkassa.calls == []


def test_signal_that_comes_to_another_thread_is_obeyed(young: Salon) -> None:
    """The kernel may choose any thread; Python's handlers run in the main one, which sleeps."""
    process = young.serve()
    young.await_run()
    await_(young.socket.exists)
    threads = [int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir()]
    other = next(thread for thread in threads if thread != process.pid)
    assert ctypes.CDLL(None).tgkill(process.pid, other, signal.SIGTERM) == 0
    assert young.shop.finish(process).code == 0


def test_consumer_has_its_answer_when_the_container_is_stopped(young: Salon) -> None:
    process = young.serve()
    young.await_run()
    young.webkassa.live = None
    young.webkassa.script.append(slow(2))
    answers: list[str] = []
    dead = fingerprint(young.shop.old_key)
    asking = threading.Thread(target=lambda: answers.append(young.ask(dead)))
    asking.start()
    await_(lambda: young.webkassa.authorizations)
    young.stop(process)
    asking.join()
    assert answers == ["0"]
    assert young.shop.holds_the_live_key


def test_stop_between_two_tries_is_obeyed_at_once(salon: Salon) -> None:
    salon.shop.env["POSTGRES_PORT"] = "1"
    process = salon.serve()
    salon.await_run()
    start = time.monotonic()
    said = salon.stop(process)
    assert time.monotonic() - start < 10
    assert len(salon.runs) == 1
    assert "exit code 75" in said


# A consumer asks for a new key -------------------------------------------------------------------


def test_consumer_gets_a_new_key_for_a_dead_one(young: Salon) -> None:
    process = young.serve()
    young.await_run()
    young.webkassa.issue()  # somebody else logs in
    assert young.ask(fingerprint(young.shop.old_key)) == "0"
    assert young.shop.holds_the_live_key
    assert young.ask(fingerprint(young.shop.old_key)) == "0"  # it is stored no more
    assert young.ask("") == "0"
    assert young.webkassa.authorizations == 1
    assert young.ask("nonsense") == "2"
    young.webkassa.password = "another"
    young.webkassa.live = None
    assert young.ask("") == "77"
    young.stop(process)


def test_eight_consumers_at_once_make_one_login(young: Salon) -> None:
    process = young.serve()
    young.await_run()
    young.webkassa.live = None
    dead = fingerprint(young.shop.old_key)
    with ThreadPoolExecutor(8) as pool:
        assert {*pool.map(young.ask, [dead] * 8)} == {"0"}
    assert young.webkassa.authorizations == 1
    young.stop(process)


def test_everybody_who_has_the_volume_may_ask(young: Salon) -> None:
    process = young.serve("import os; os.umask(0o077)")
    await_(young.socket.exists)
    assert young.socket.stat().st_mode & 0o777 == 0o666
    assert [path.name for path in young.socket.parent.iterdir()] == ["renew.sock"]
    young.stop(process)


def test_whoever_is_one_too_many_is_sent_away_and_has_his_turn(young: Salon) -> None:
    young.program('[ "$WEBKASSA_RUN_KIND" != consumer ] || read line')
    process = young.serve(THREADS=4 + 3)
    await_(young.socket.exists)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
        for client in clients:
            client.connect(str(young.socket))
        await_(lambda: len(young.runs) == 4)
        assert young.ask("") == ""
        clients[0].sendall(b"\n")
        assert clients[0].recv(9) == b"0\n"
        await_(lambda: young.ask("") == "0")
        clients[1].close()  # gives up: nobody minds
        for client in clients[2:]:
            client.sendall(b"\n")
            assert client.recv(9) == b"0\n"
    young.stop(process)


def test_new_container_takes_the_socket_over(young: Salon) -> None:
    first = young.serve()
    young.await_run()
    second = young.serve()
    young.await_run()
    assert "boot" in young.runs[1]
    young.stop(first)
    assert young.ask("") == "0"
    young.stop(second)
    third = young.serve()  # in the place of one that was killed
    young.await_run()
    await_(lambda: young.ask("") == "0")
    young.stop(third)
