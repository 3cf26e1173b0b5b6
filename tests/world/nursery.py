"""Starts the program in a process that has its libraries loaded already.

Loading them is most of a run's time, and the tests run the program many hundred times. So a mother
process loads them and the program once and forks for each run. That is a process of its own, with
arguments, environment, files and signals as `python ARGUMENTS` has them. The program itself does
nothing but define when it is loaded (tests/test_shape.py): it is run as the installed command runs
it. Anything else is executed as `__main__`.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import gc
import hashlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
import traceback
import types
from pathlib import Path
from typing import Any, NoReturn


class Nursery:
    """The mother process, as its parent sees it."""

    def __init__(self) -> None:
        self.asking = threading.Lock()
        self.socket, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with end:
            fd = end.fileno()
            subprocess.Popen([sys.executable, __file__, str(fd)], pass_fds=[fd])
        # It ends with us, when nobody holds the other end any more

    def bear(self, request: dict[str, Any], files: list[int]) -> int:
        """Start a run with these standard files and return its process."""
        return self.ask(request, files)

    def reap(self, pid: int) -> int:
        """Return the status of a process that has ended; until now the number is no other's."""
        return self.ask({"ended": pid}, [])

    def ask(self, request: dict[str, Any], files: list[int]) -> int:
        with self.asking:
            socket.send_fds(self.socket, [json.dumps(request).encode()], files)
            return int(self.socket.recv(20))


mother = functools.cache(Nursery)


class Process:
    """A run of `python ARGUMENTS` without the loading; to be used like a `subprocess.Popen` whose
    two outputs are pipes. `stdin` may also be what is read there. With a `terminal`, that is all
    three files, and the run leads the session there."""

    def __init__(
        self, command: list[str], env: dict[str, str], *, cwd: str | Path = ".",
        stdin: bytes | int = 0, stderr: int | None = None, terminal: int | None = None,
        start_new_session: bool = False,
    ) -> None:  # fmt: skip
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        ends = [out_end, err_end]
        if isinstance(stdin, bytes):
            text, (stdin, write) = stdin, os.pipe()
            ends.append(stdin)
            os.write(write, text)
            os.close(write)
        files = [stdin, out_end, err_end if stderr is None else stderr]
        if terminal is not None:
            files, start_new_session = [terminal] * 3, True
        request = {"command": command, "cwd": os.path.abspath(cwd), "env": env,
                   "session": start_new_session}  # fmt: skip
        try:
            self.pid = mother().bear(request, files)
        finally:
            for end in ends:
                os.close(end)
        self.ended = open(os.pidfd_open(self.pid))  # noqa: SIM115  # readable from the end on
        self.stdout, self.stderr = open(out, encoding="utf-8"), open(err, encoding="utf-8")  # noqa: SIM115
        self.returncode: int | None = None
        self.reaping = threading.Lock()

    def poll(self) -> int | None:
        with self.reaping:
            if self.returncode is None and select.select([self.ended], [], [], 0)[0]:
                self.returncode = os.waitstatus_to_exitcode(mother().reap(self.pid))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        select.select([self.ended], [], [], timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        said: dict[str, str] = {}
        readers = [
            threading.Thread(target=lambda n, f: said.update({n: f.read()}), args=pipe, daemon=True)
            for pipe in (("out", self.stdout), ("err", self.stderr))
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return said["out"], said["err"]

    def send_signal(self, number: int) -> None:
        with self.reaping:
            if self.returncode is None:
                with contextlib.suppress(ProcessLookupError):  # it has ended this very moment
                    os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# A python whose runs of the program are those of a Process; anything else it does itself
QUICK_PYTHON = """#!{python} -IS
import json, os, socket, sys
if os.path.basename(sys.argv[1] if sys.argv[1:] else "") != "webkassa_key_updater.py":
    os.execv("{python}", ["{python}", *sys.argv[1:]])
request = {{"command": sys.argv, "cwd": os.getcwd(), "env": dict(os.environ), "session": False}}
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
    door.connect("{door}")
    socket.send_fds(door, [json.dumps(request).encode()], [0, 1, 2])
    code = os.waitstatus_to_exitcode(int(door.recv(20)))
sys.exit(code if code >= 0 else 128 - code)
"""


@functools.cache
def quick_python() -> str:
    """Return the path of a QUICK_PYTHON, for what starts the program by a shell: twenty times as
    fast. A signal to it does not reach the run."""
    folder = tempfile.TemporaryDirectory(prefix="webkassa-python-")
    atexit.register(folder.cleanup)
    door, python = Path(folder.name, "door"), Path(folder.name, "python")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(door))
    listener.listen()
    threading.Thread(target=answer_the_door, args=[listener], daemon=True).start()
    python.write_text(QUICK_PYTHON.format(python=sys.executable, door=door), encoding="utf-8")
    python.chmod(0o755)
    return str(python)


def answer_the_door(listener: socket.socket) -> None:
    while True:
        visitor, _ = listener.accept()
        threading.Thread(target=run_for, args=[visitor], daemon=True).start()


def run_for(visitor: socket.socket) -> None:
    """Start the run that a QUICK_PYTHON asks for, and tell its status."""
    with visitor:
        text, files, _, _ = socket.recv_fds(visitor, 1 << 20, 3)
        pid = mother().bear(json.loads(text), files)
        for fd in files:
            os.close(fd)
        with open(os.pidfd_open(pid)) as ended:
            select.select([ended], [], [])
        visitor.send(b"%d" % mother().reap(pid))


def quick_hash(
    name: str, text: bytes, salt: bytes, rounds: int, slow: Any = hashlib.pbkdf2_hmac
) -> Any:
    """Make what is slow on purpose, so that nobody tries passwords on it, in a few rounds."""
    assert rounds >= 200_000
    return slow(name, text, salt, 10)


# In the mother process ---------------------------------------------------------------------------

USUAL = {
    "WEBKASSA_LOGIN": "cashier@example.kz", "WEBKASSA_PASSWORD": "usual", "WEBKASSA_DEADLINE": "12s",
    "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": "5432", "POSTGRES_PASSWORD": "usual",
}  # fmt: skip


def serve(requests: socket.socket) -> None:
    root = Path(__file__).parents[2]
    sys.path.insert(0, str(root))
    program = importlib.import_module("webkassa_key_updater")
    del sys.path[0]
    programs: dict[bytes, types.CodeType] = {}
    hashlib.pbkdf2_hmac = quick_hash  # type: ignore[assignment]
    program.parse_arguments([])  # compiles regular expressions, which every run would do anew
    program.read_account(USUAL, [])
    gc.freeze()
    while True:
        text, files, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not text:
            return
        request = json.loads(text)
        if "ended" in request:
            requests.send(b"%d" % os.waitpid(request["ended"], 0)[1])
            continue
        name, other = request["command"][1], None
        if name not in ("-c", program.__file__):
            text = Path(request["cwd"], name).read_bytes()
            other = programs[text] = programs.get(text) or compile(text, name, "exec")
        child = os.fork()
        if not child:
            be_python(request, files, program, other)
        requests.send(b"%d" % child)
        for fd in files:
            os.close(fd)


def be_python(
    request: dict[str, Any], files: list[int], ours: types.ModuleType, other: types.CodeType | None
) -> NoReturn:
    """Be `python ARGUMENTS`."""
    for number, fd in enumerate(os.dup(fd) for fd in files):
        os.dup2(fd, number)
    os.closerange(3, 1024)
    if request["session"]:
        os.setsid()
        with contextlib.suppress(OSError):  # Ctrl-C then is a signal to its group
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    sys.orig_argv = request["command"]
    sys.argv = request["command"][1:]
    sys.executable = os.path.abspath(request["command"][0])
    sys.path[0] = os.path.dirname(sys.argv[0])
    code: Any = 0
    try:
        if sys.argv[0] == ours.__file__:
            sys.modules["__main__"] = ours
            ours.run_as_program()
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        if other:
            main.__file__ = os.path.abspath(sys.argv[0])
        else:
            other = compile(sys.argv.pop(1), "<string>", "exec")
        exec(other, vars(main))
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
