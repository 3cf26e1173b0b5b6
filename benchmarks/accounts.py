"""Measure updates of many accounts, against one process for each and against the bound.

    .venv-dev/bin/python benchmarks/accounts.py [--counts 1,10,100,1000] [--jobs 1,4,16] [--plot FILE.svg]
        [--beside PROGRAM]

PostgreSQL (with fsync) and the simulator, with TLS, run on loopback; each of the two calls to Webkassa, login
and probe, takes 100 ms. The bound is what these calls alone take: accounts x 0.2 s / jobs. One
process for each account is measured up to 100 accounts: its cost for each does not change.
CPU is user + system time of all processes of the command; memory is their PSS together, at its
peak, seen in a second run, since looking costs time (of more than 100 accounts: in the one run, but
seldom). --beside names the webkassa_key_updater.py of another build, measured up to 100 accounts.
The plot needs matplotlib, which is not among the requirements: .venv-dev/bin/pip install 'matplotlib>=3.8,<4'
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import certifi  # noqa: E402
from world.accounts import Accounts, children, row  # noqa: E402
from world.postgres import Postgres  # noqa: E402
from world.shop import PROGRAM, UPDATERS, Shop, connect  # noqa: E402
from world.tls import Authority  # noqa: E402
from world.webkassa_simulator import Simulator  # noqa: E402

LATENCY = 0.1  # seconds, of each call
CALLS = 2  # login and probe
PROCESSES_UP_TO = SECOND_LOOK_UP_TO = 100  # accounts
MANY, EACH, BESIDE = "one command", "a process each", "the other build"
GREY = "#767676"  # text that can be read on white and on black


class Figures(NamedTuple):
    way: str
    accounts: int
    jobs: int
    wall: float  # seconds
    cpu: float  # milliseconds for each account
    pss: float  # MiB
    connections: int

    @property
    def bound(self) -> float:
        return self.accounts * CALLS * LATENCY / min(self.jobs, self.accounts)


class Bench:
    """A database and a Webkassa with `count` accounts."""

    def __init__(self, stack: contextlib.ExitStack, count: int, tls: bool = True) -> None:
        self.server = Postgres()
        stack.callback(self.server.remove)
        with contextlib.closing(connect(self.server, "postgres")) as admin:
            admin.cursor().execute("CREATE DATABASE shop")
        self.home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        authority = Authority() if tls else None
        context = authority.server_context("127.0.0.1") if authority else None
        self.webkassa = stack.enter_context(Simulator(tls=context))
        self.shop = Shop(self.server, self.webkassa, self.home)
        if authority:  # beside all that a machine trusts: reading these takes its time
            ca_file = authority.write(self.home / "ca.pem")
            ca_file.write_text(Path(certifi.where()).read_text() + ca_file.read_text())
            self.shop.env["REQUESTS_CA_BUNDLE"] = str(ca_file)
        self.accounts = Accounts(self.shop, *(f"shop-{number:04}" for number in range(count)))
        self.webkassa.latency = LATENCY

    def many(self, count: int, jobs: int) -> None:
        """Update the first accounts in one command."""
        folder = self.home / f"first-{count}"
        if not folder.exists():
            folder.mkdir()
            for name in self.accounts.names[:count]:
                (folder / f"{name}.env").symlink_to(self.accounts.file(name))
        self.run("--accounts-dir", str(folder), "--jobs", str(jobs))

    def each(self, count: int, jobs: int) -> None:
        """Update the first accounts, each in a process of its own."""
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(self.one, self.accounts.names[:count]))

    def one(self, name: str) -> None:
        base = {n: v for n, v in self.shop.env.items() if n not in ("WEBKASSA_LOGIN", "WEBKASSA_PASSWORD")}  # fmt: skip
        self.run("--env-file", str(self.accounts.file(name)), env=base | {"WEBKASSA_SERVICE_NAME": row(name)})  # fmt: skip

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        command = self.shop.command("update", *arguments)
        done = subprocess.run(command, env=env or self.shop.env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)

    def measure(self, way: str, count: int, jobs: int) -> Figures:
        work = functools.partial(self.each if way == EACH else self.many, count, jobs)
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        if count <= SECOND_LOOK_UP_TO:
            work()
        else:
            pss, connections = self.watch(work, 0.5)
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if self.accounts.keys != self.accounts.live:
            raise SystemExit("A row does not hold the live key.")
        if count <= SECOND_LOOK_UP_TO:
            pss, connections = self.watch(work, 0.05)
        return Figures(way, count, jobs, wall, cpu / count * 1000, pss, connections)

    def watch(self, work: Callable[[], None], pause: float) -> tuple[float, int]:
        """Do the work; look every `pause` seconds; return the peaks of MiB and of connections."""
        ended, memory, connections = threading.Event(), [0.0], [0]

        def look() -> None:
            with contextlib.closing(self.shop.connect()) as database, database.cursor() as cursor:
                while not ended.wait(pause):
                    cursor.execute(UPDATERS)
                    connections.append(len(cursor.fetchall()))
                    memory.append(sum(map(pss_of, descendants(os.getpid()))))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            work()
        finally:
            ended.set()
            watcher.join()
        return max(memory), max(connections)


def descendants(pid: int) -> list[int]:
    """Return the processes below this one, but for the server."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *(grandchild for grandchild in grandchildren(child))]
    return found


def grandchildren(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return children(pid)
    return []


def pss_of(pid: int) -> float:
    """Return MiB: what a process has for itself, and its share of what it has with others."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def print_table(figures: list[Figures]) -> None:
    print("| | accounts | jobs | wall | x bound | CPU an account | peak memory | connections |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for f in figures:
        print(
            f"| {f.way} | {f.accounts:,} | {f.jobs} | {f.wall:.1f} s | {f.wall / f.bound:.2f} |"
            f" {f.cpu:.1f} ms | {f.pss:.0f} MiB | {f.connections} |"
        )


def plot(figures: list[Figures], file: Path) -> None:
    """Draw wall and CPU against the number of accounts."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    colours = {"text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"}
    pyplot.rcParams.update(dict.fromkeys(colours, GREY) | {"svg.hashsalt": "accounts"})
    figure, (wall, cpu) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    shown: dict[tuple[str, int], list[Figures]] = {}
    for f in figures:
        shown.setdefault((f.way, f.jobs), []).append(f)
    tones = dict(zip(sorted({f.jobs for f in figures}), ("#2f81f7", "#d9822b", "#2da44e")))  # noqa: B905
    for (way, jobs), line in shown.items():
        style: dict[str, Any] = {
            "color": tones.get(jobs, GREY), "marker": "o" if way == MANY else "x",
            "linestyle": "-" if way == MANY else "--", "label": f"{way}, jobs {jobs}",
        }  # fmt: skip
        counts = [f.accounts for f in line]
        wall.plot(counts, [f.wall for f in line], **style)
        cpu.plot(counts, [f.cpu for f in line], **style)
        if way == MANY:
            bound = "the calls alone" if jobs == max(tones) else None
            wall.plot(counts, [f.bound for f in line], color=GREY, linestyle=":", label=bound)
    for axes, title in ((wall, "Wall time, s"), (cpu, "CPU an account, ms")):
        axes.set(xscale="log", title=title, xlabel="accounts")
        axes.grid(color=GREY, alpha=0.25)
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
    wall.set_yscale("log")
    cpu.set_ylim(bottom=0)
    figure.legend(*wall.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(file, transparent=True, metadata={"Date": None})


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--counts", type=numbers, default=[1, 10, 100, 1000])
    parser.add_argument("--jobs", type=numbers, default=[1, 4, 16])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--beside", type=Path)
    options = parser.parse_args()
    python = platform.python_version()
    print(f"Python {python}, {os.cpu_count()} cores, {platform.machine()}, {LATENCY * 1000:.0f} ms a call\n")  # fmt: skip
    with contextlib.ExitStack() as stack:
        bench = Bench(stack, max(options.counts))
        bench.many(1, 1)  # warms the caches
        figures = []
        for way, program in (MANY, PROGRAM), (EACH, PROGRAM), (BESIDE, options.beside):
            bench.shop.program = [str(program)]
            figures += [bench.measure(way, count, jobs)
                        for jobs in options.jobs for count in options.counts
                        if program and (way == MANY or count <= PROCESSES_UP_TO)]  # fmt: skip
    print_table(figures)
    with contextlib.ExitStack() as stack:
        count = min(100, max(options.counts))
        f = Bench(stack, count, tls=False).measure(MANY, count, max(options.jobs))
        print(
            f"\nWithout TLS, {f.accounts} accounts, jobs {f.jobs}: {f.cpu:.1f} ms CPU an account."
        )
    if options.plot:
        plot([f for f in figures if f.way != BESIDE], options.plot)


if __name__ == "__main__":
    main()
