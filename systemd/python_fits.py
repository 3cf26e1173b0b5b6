"""Run by install.sh in each Python of the machine: can this one carry the updater? Prints its version,
like 3.11. Exit code 1: no; 3: yes, but venv is missing."""

import os
import sys

# One in a home (pyenv, conda) is out of the service's sight; one that is not root's may change
HOMES = ("/root/", "/home/")
binary = os.stat(os.path.realpath(sys.executable))
is_in_home = os.path.realpath(sys.base_prefix).startswith(HOMES)
if is_in_home or binary.st_uid or binary.st_mode & 0o22 or sys.version_info < (3, 10):
    sys.exit(1)
print(".".join(map(str, sys.version_info[:2])))
try:
    import ensurepip  # noqa: F401 # Debian has a package for it
    import venv  # noqa: F401
except ImportError:
    sys.exit(3)
