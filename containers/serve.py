#!/usr/bin/env python3
"""usage: docker run [OPTION ...] IMAGE COMMAND

commands:
  update   log in at Webkassa and store the new key; the key in use dies with that login
  check    all that an update needs, but no login
  status   how it stands; changes nothing

Without a command nothing is done: a container that is started again and again must not log in
each time. Options, and exit codes: IMAGE --help
"""

# What the image starts, by the name of webkassa-key

from __future__ import annotations

import os
import sys

PROGRAM = "webkassa-key-updater"


def main(arguments: list[str]) -> int:
    """Do what was asked for, or end as the program that does; return the exit code."""
    if {"update", "check", "status", "-h", "--help", "--version"} & set(arguments):
        os.execvp(PROGRAM, [PROGRAM, *arguments])
    print(__doc__, end="", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
