"""Measure whole runs against a bare script, and how long consumers hold a dead key.

    .venv-dev/bin/python benchmarks/run.py [ROUNDS [MODULE]]

PostgreSQL (with fsync) and the simulator run on loopback. The program is measured as install.sh
installs it, and as a script. Runs alternate, so that whatever else the machine does meets all of
them. Medians, of the quotients of each round, too; CPU is user + system time of the process. Then
the same at a distance: relays delay what goes to Webkassa and to the database, and count the database's answers.
At last, how long a long directory of units holds the new key back, from the probe's answer to the
commit; MODULE is another build of webkassa_key_updater.py, which is measured in turn with this one.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import psycopg2  # noqa: E402
from world import webkassa_simulator  # noqa: E402
from world.postgres import PASSWORD, Postgres  # noqa: E402
from world.relay import Relay  # noqa: E402

# Seconds there and back. The dead window cannot be shorter than half the way to Webkassa (its
# reply), the whole of it (the probe) and half the way to the database (the commit)
WEBKASSA_DISTANCE, DATABASE_DISTANCE = 0.060, 0.020
LEAST = WEBKASSA_DISTANCE * 1.5 + DATABASE_DISTANCE / 2
COMMITTED = "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM api_keys"


def measure(command: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Run a command; return its wall and CPU time in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], env=env, check=True, capture_output=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def install(folder: Path) -> str:
    """Install the program as install.sh does, beside the libraries that are here; return its command."""
    (folder / "source").mkdir()
    for path in (
        ROOT / "pyproject.toml",
        ROOT / "requirements.txt",
        *ROOT.glob("webkassa_key_*.py"),
    ):
        shutil.copy(path, folder / "source")
    shutil.copytree(ROOT / "locale", folder / "source/locale")
    options = [
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        f"--target={folder}/lib",
    ]
    command = [sys.executable, "-m", "pip", "install", *options, str(folder / "source")]
    subprocess.run(command, check=True)
    return str(folder / "lib/bin/webkassa-key-updater")


def answered_at(webkassa: webkassa_simulator.Simulator, path: str = "Authorize") -> float:
    """Return the time at which the last answer of this kind left."""
    events = reversed(webkassa.events)
    return next(e.clock for e in events if (e.what, e.said) == ("answer", path))


# What the probe answers: units of the directory, and how they are sent. 170 units are 42 KB
DIRECTORIES = {
    "1 unit": (1, webkassa_simulator.GOOD),
    "42 KB": (170, webkassa_simulator.GOOD),
    "42 KB gzip": (170, webkassa_simulator.real_gzip()),
    "1 MiB": (4200, webkassa_simulator.GOOD),
}


def measure_directories(
    builds: dict[str, list[str]], rounds: int, env: dict[str, str],
    webkassa: webkassa_simulator.Simulator, cursor: object,
) -> None:  # fmt: skip
    """Print how long each build takes from the probe's answer to the commit, by the answer."""
    for name, (units, behaviour) in DIRECTORIES.items():
        answer = webkassa_simulator.directory(units)
        webkassa.verdict = lambda token, answer=answer: answer
        took: dict[str, list[float]] = {build: [] for build in builds}
        whole: dict[str, list[float]] = {build: [] for build in builds}
        for _ in range(rounds):
            for build, command in builds.items():
                webkassa.probe_script.append(behaviour)
                whole[build].append(measure(command, env)[0])
                cursor.execute(COMMITTED)
                took[build].append(cursor.fetchone()[0] - answered_at(webkassa, "RefUnits"))
        for build in builds:
            print(f"directory of {name}, {build}: answer to commit median"
                  f" {statistics.median(took[build]) * 1000:.1f} ms, whole run"
                  f" {statistics.median(whole[build]) * 1000:.0f} ms")  # fmt: skip
        if len(builds) > 1:
            here, other = took.values()
            print(
                f"directory of {name}: 1/{statistics.median(b / a for a, b in zip(here, other, strict=True)):.0f}"
            )


def main(rounds: int, other: str | None) -> None:
    server = Postgres()
    with contextlib.ExitStack() as stack:
        stack.callback(server.remove)
        webkassa = stack.enter_context(webkassa_simulator.Simulator())
        webkassa.password = "without-a-dollar"  # python-dotenv's own reading would expand it
        url = f"postgresql://postgres:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/postgres"
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        env_file = folder / "env"
        login = (
            f"WEBKASSA_LOGIN={webkassa_simulator.LOGIN}\nWEBKASSA_PASSWORD={webkassa.password}\n"
        )
        env_file.write_text(
            f"{login}WEBKASSA_AUTH_URL={webkassa.url}\nDATABASE_URL={url}\n", encoding="utf-8"
        )
        env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "ENV_FILE": str(env_file)}
        env["PYTHONPATH"] = str(folder / "lib")
        ours = [install(folder), "--env-file", str(env_file)]
        script = [str(ROOT / "webkassa_key_updater.py"), "--env-file", str(env_file)]
        bare = [str(ROOT / "benchmarks" / "bare.py")]
        connection = psycopg2.connect(url)
        connection.autocommit = True
        cursor = connection.cursor()
        measure(ours, env)  # creates the table, and warms the caches

        windows, bare_times, times = [], [], {"installed": [], "as a script": []}
        for _ in range(rounds):
            bare_times.append(measure(bare, env))
            times["installed"].append(measure(ours, env))
            cursor.execute(COMMITTED)
            windows.append(cursor.fetchone()[0] - answered_at(webkassa))
            times["as a script"].append(measure(script, env))

        far = stack.enter_context(Relay(("127.0.0.1", webkassa.port)))
        database = stack.enter_context(Relay(("127.0.0.1", server.port)))
        far.delay_to_server = far.delay_to_client = WEBKASSA_DISTANCE / 2
        database.delay_to_server = database.delay_to_client = DATABASE_DISTANCE / 2
        env_file.write_text(
            f"{login}WEBKASSA_AUTH_URL={webkassa.url.replace(str(webkassa.port), str(far.port))}\n"
            f"DATABASE_URL={url.replace(str(server.port), str(database.port))}\n",
            encoding="utf-8",
        )
        far_windows, round_trips = [], []
        for _ in range(rounds):
            before = database.round_trips
            measure(ours, env)
            round_trips.append(database.round_trips - before)
            cursor.execute(COMMITTED)
            far_windows.append(cursor.fetchone()[0] - answered_at(webkassa))

        env_file.write_text(
            f"{login}WEBKASSA_AUTH_URL={webkassa.url}\nDATABASE_URL={url}\n", encoding="utf-8"
        )
        builds = {"this build": script}
        if other:
            builds["the other"] = [other, "--env-file", str(env_file)]
        measure_directories(builds, min(rounds, 5), env, webkassa, cursor)

    python = platform.python_version()
    print(f"{rounds} rounds, Python {python}, {os.cpu_count()} cores, {platform.machine()}")
    for position, name in enumerate(("wall", "CPU")):
        bares = [one[position] for one in bare_times]
        print(f"{name}: bare script {statistics.median(bares) * 1000:.0f} ms", end="")
        for how, mine in times.items():
            mine = [one[position] for one in mine]
            quotient = statistics.median(a / b for a, b in zip(mine, bares, strict=True))
            print(f", {how} {statistics.median(mine) * 1000:.0f} ms ({quotient:.2f} x)", end="")
        print()
    print(
        f"dead window (answer to commit, probe on): median {statistics.median(windows) * 1000:.1f} ms,"
        f" worst {max(windows) * 1000:.1f} ms"
    )
    far_window = statistics.median(far_windows)
    print(
        f"at a distance (Webkassa {WEBKASSA_DISTANCE * 1000:.0f} ms, database"
        f" {DATABASE_DISTANCE * 1000:.0f} ms there and back): dead window median"
        f" {far_window * 1000:.0f} ms, best {min(far_windows) * 1000:.0f} ms, least possible"
        f" {LEAST * 1000:.0f} ms, {far_window / LEAST:.2f} x"
    )
    print(f"database round trips of a whole run: {statistics.median(round_trips):.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50, sys.argv[2] if len(sys.argv) > 2 else None)
