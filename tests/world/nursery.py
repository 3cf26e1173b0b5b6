"""Starts the program in a process that has its libraries loaded already.

Loading them is most of a run's time, and the tests run the program many hundred times. So a mother
process loads them once and forks for each run. That is a process of its own and our child, with
arguments, environment, files and signals as `python ARGUMENTS` has them; it executes the program's
file as `__main__`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import types
from pathlib import Path
from typing import Any, NoReturn

PR_SET_CHILD_SUBREAPER = 36


class Nursery:
    """The mother process, as its parent sees it."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None)
        self.socket, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with end:
            fd = end.fileno()
            subprocess.Popen([sys.executable, __file__, str(fd)], pass_fds=[fd])
        # It ends with us, when nobody holds the other end any more

    def bear(self, request: dict[str, Any], files: list[int]) -> int:
        """Start a run with these standard files and return its process, a child of ours."""
        self.libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(self.socket, [json.dumps(request).encode()], files)
            return int(self.socket.recv(20))
        finally:
            self.libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


mother = functools.cache(Nursery)


class Process(subprocess.Popen[str]):
    """`subprocess.Popen` of `python ARGUMENTS`, without the loading."""

    def _execute_child(self, *given: Any) -> None:
        command, cwd, env, pipes = given[0], given[5], given[6], given[10:16]
        files = [0 if pipes[0] < 0 else pipes[0], 1 if pipes[3] < 0 else pipes[3],
                 2 if pipes[5] < 0 else pipes[5]]  # fmt: skip
        request = {"command": command, "cwd": str(cwd or os.getcwd()), "env": env}
        try:
            self.pid = mother().bear(request, files)
        finally:
            for end in {pipes[0], pipes[3], pipes[5]} - {-1}:
                os.close(end)
        self._child_created = True


# In the mother process ---------------------------------------------------------------------------


def serve(requests: socket.socket) -> None:
    root = Path(__file__).parents[2]
    sys.path.insert(0, str(root))
    importlib.import_module("webkassa_key_updater")  # for what it loads; a run begins anew
    del sys.modules["webkassa_key_updater"], sys.path[0]
    programs: dict[str, types.CodeType] = {}
    gc.freeze()
    while True:
        text, files, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not text:
            return
        request = json.loads(text)
        name = request["command"][1]
        if name != "-c" and name not in programs:
            programs[name] = compile(Path(name).read_bytes(), name, "exec")
        read, write = os.pipe()
        between = os.fork()  # its child becomes our parent's when it ends
        if not between:
            child = os.fork()
            if not child:
                live(request, files, programs.get(name))
            os.write(write, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)
        requests.send(os.read(read, 20))
        for fd in (*files, read, write):
            os.close(fd)


def live(request: dict[str, Any], files: list[int], program: types.CodeType | None) -> NoReturn:
    """Be `python ARGUMENTS`."""
    for number, fd in enumerate(os.dup(fd) for fd in files):
        os.dup2(fd, number)
    os.closerange(3, 1024)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    sys.orig_argv = request["command"]
    sys.argv = request["command"][1:]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if program:
        main.__file__ = sys.argv[0]
        sys.path[0] = os.path.dirname(sys.argv[0])
    else:
        sys.path[0] = ""
        program = compile(sys.argv.pop(1), "<string>", "exec")
    code: Any = 0
    try:
        exec(program, vars(main))
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
