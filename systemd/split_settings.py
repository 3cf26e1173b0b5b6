"""usage: split_settings.py FILE own|rest

Print an account's own lines of a settings file, as they stand there, or the rest of the file. The
account keeps its row. Run by install.sh --account, with the Python that has python-dotenv.
"""

from __future__ import annotations

import sys

from dotenv.parser import parse_stream

OWN = {"WEBKASSA_LOGIN", "WEBKASSA_PASSWORD", "WEBKASSA_SERVICE_NAME"}


def split(path: str) -> tuple[str, str]:
    """Return an account's own lines, none where no login is there, and the rest."""
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(parse_stream(file))
    values = {line.key: line.value for line in lines}
    if values.get("WEBKASSA_LOGIN_FILE") or values.get("WEBKASSA_PASSWORD_FILE"):
        sys.exit(f"The login or the password is in a file of its own: put both into {path}.")
    own = "".join(line.original.string.strip() + "\n" for line in lines if line.key in OWN)
    if not values.get("WEBKASSA_SERVICE_NAME"):
        own += "WEBKASSA_SERVICE_NAME=Webkassa\n"
    rest = "".join(line.original.string for line in lines if line.key not in OWN)
    return own if values.get("WEBKASSA_LOGIN") else "", rest


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
    sys.stdout.write(split(sys.argv[1])[sys.argv[2] == "rest"])
