"""A server's files below a folder, and what its tools would say: systemctl, systemd-run, the program.

They are started some hundred times, so they are shell and awk."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "systemd"))
import server_status

ROOT = Path(__file__).parents[1]
ACTIVE = {"LoadState": "loaded", "UnitFileState": "enabled", "ActiveState": "active"}
# Prints the properties that were asked for, as systemctl does, or fails as an old one does
SYSTEMCTL = """#!/bin/sh
exec awk -F '\t' -v typed="$*" '
BEGIN {{
    for (n = split(typed, words, " "); n; n--)
        if (sub("^--property=", "", words[n])) properties = split(words[n], name, ",")
        else if (words[n] == "--timestamp=unix") is_unix = 1
        else if (words[n] ~ /[.]/) unit[++units] = words[n]
}}
$1 == "old" {{ is_old = 1 }}
{{ value[$1, $2] = is_old || $2 == "NextElapseUSecRealtime" ? $4 : $3 }} # a date in any case
END {{
    if (is_old && is_unix) exit 1
    for (u = units; u; u--) {{
        found = (unit[u], "Id") in value
        for (p = 1; p <= properties; p++)
            print name[p] "=" (found ? value[unit[u], name[p]] : name[p] == "Id" ? unit[u] : \
                name[p] == "LoadState" ? "not-found" : name[p] == "ActiveState" ? "inactive" : "")
        print ""
    }}
}}' {units}
"""
PROGRAM = """
case $* in *--version*) echo 2.0.0 && exit ;; esac
cat {report}
exit $(cat {report}.code)
"""


class Box(server_status.Server):
    """A good server; a test spoils it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.is_root, self.user, self.bin = True, "root", root / "bin"
        self.now = float(int(time.time()))
        self.is_old = False  # systemd
        self.owner = 0  # of its files, whoever runs the tests
        for folder in (self.current / "venv/bin", self.current / "alerts/bin", self.config,
                       self.state, self.units, self.socket.parent, self.bin):  # fmt: skip
            folder.mkdir(parents=True)
        for name in ("install.sh", ".env.example"):
            (self.current / name).touch()
        for name in server_status.UNITS:
            (self.units / name).touch()
        self.script(self.current / "venv/bin/python", 'shift\nexec sh "$@"')
        unwrap = 'while [ "$1" != -- ]; do shift; done\nshift\nexec "$@"'
        self.script(self.bin / "systemd-run", unwrap)
        self.script(self.apprise, "")  # finds nothing wrong with the addresses
        program = PROGRAM.format(report=root / "report")
        (self.current / "venv/bin/webkassa-key-updater").write_text(program)
        self.script(self.bin / "systemctl", SYSTEMCTL.format(units=root / "units"))
        self.settings.write_text("")
        self.settings.chmod(0o640)
        with socket.socket(socket.AF_UNIX) as listener:
            os.chdir(self.socket.parent)  # the path of a socket must be short
            listener.bind(self.socket.name)
            os.chdir("/")
        self.says("OK", "key 1a2b3c4d, 4.0 h old; the probe says alive", age_seconds=14400)
        self.properties: dict[str, Any] = {
            name: ACTIVE | {"Id": name, "SubState": "waiting", "NextElapseUSecRealtime": f"@{self.now + 900:.0f}"}
            for name in server_status.UNITS if name.endswith((".timer", ".socket"))
        }  # fmt: skip
        self.unit(server_status.NET_TIMER, NextElapseUSecRealtime="")
        self.unit(server_status.HEAL_TIMER, UnitFileState="disabled", ActiveState="inactive")
        for name in server_status.UNITS:
            if name.endswith(".service"):
                self.unit(name, LoadState="loaded", ActiveState="inactive", SubState="dead")
        self.note("daily", self.now - 14400, renewed=True)

    def owner_of(self, found: os.stat_result) -> tuple[int, int]:
        user, group = super().owner_of(found)
        return self.owner if user == os.geteuid() else user, 0 if group == os.getegid() else group

    def script(self, path: Path, line: str) -> None:
        path.write_text(line if line.startswith("#!") else f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def says(self, level: str, message: str, **facts: Any) -> None:
        """Let the program's own status be this."""
        account = {"status": level, "message": message, "service": "Webkassa"}
        account |= {"fingerprint": "1a2b3c4d", "probe": "alive"} if "age_seconds" in facts else {}
        account |= facts
        self.report(level, message, [account])

    def report(self, level: str, message: str, accounts: list[dict[str, Any]]) -> None:
        report = {"status": level, "message": message, "accounts": accounts}
        (self.root / "report").write_text(json.dumps(report))
        code = ("OK", "WARNING", "CRITICAL", "UNKNOWN").index(level)
        (self.root / "report.code").write_text(f"{code}")

    def looks_at_addresses(self) -> None:
        """Have Apprise's Python look at the addresses, as on a server; it takes a second."""
        self.script(self.apprise, f"exec {sys.executable} {__file__} {self.root}")

    def unit(self, name: str, **properties: str) -> None:
        self.properties[name] = self.properties.get(name, {"Id": name}) | properties
        rows = [f"{unit}\t{key}\t{value}\t{date_of(value)}\n"
                for unit, values in self.properties.items() for key, value in values.items()]  # fmt: skip
        (self.root / "units").write_text(("old\n" if self.is_old else "") + "".join(rows))

    def ended(self, name: str, moment: float, status: int = 0, way: int = 1, run: str = "") -> None:
        """Let systemd know of a run of a service."""
        self.unit(name, ExecMainExitTimestamp=f"@{moment:.0f}", ExecMainStatus=f"{status}",
                  ExecMainStartTimestamp=f"@{moment - 1:.0f}", ExecMainCode=f"{way}",
                  ActiveState="failed" if status else "inactive", InvocationID=run or "b2" * 16,
                  SubState="failed" if status else "dead", Result="exit-code")  # fmt: skip

    def note(
        self, kind: str, moment: float, code: int = 0, outcome: str = "stored the new key 1a2b3c4d",
        *, account: str = "", since: float | None = None, renewed: bool = False, run: str = "",
    ) -> None:  # fmt: skip
        """Write what the program notes at the end of an update."""
        note = {"account": account, "kind": kind, "time": moment, "code": code, "outcome": outcome,
                "since": since or moment, "key": "as it was", "invocation": run,
                "renewed": moment if renewed else None}  # fmt: skip
        name = f"run-{kind}.{account}.json" if account else f"run-{kind}.json"
        (self.state / name).write_text(json.dumps(note))

    def make_many(self, *names: str) -> None:
        """Let there be many accounts."""
        self.accounts.mkdir()
        for name in names:
            (self.accounts / f"{name}.env").touch()
        (self.units / "webkassa-key-.service.d").mkdir()
        (self.units / "webkassa-key-.service.d/10-accounts.conf").touch()
        self.many, self.renew = True, "sudo webkassa-key update --if-needed"
        (self.state / "run-daily.json").unlink()


def date_of(value: str) -> str:
    """Return a moment as systemd 250 and older say it."""
    moment = time.gmtime(int(value[1:])) if value[:1] == "@" else None
    return time.strftime("%a %Y-%m-%d %H:%M:%S UTC", moment) if moment else value


# What is the same in every language: levels, names of things, commands, paths, units, zones
NO_LANGUAGE = re.compile(
    r"sudo webkassa-key \w+|sudo (?:systemctl|journalctl|chown|chmod|install) .*|systemctl cat \S+|--[a-z-]+"
    r"|/\S+|webkassa-key-\S+|\w+\.(?:conf|env|sh|md)\b|LoadCredential=|[|]age=\S+|\b[0-9a-f]{8}\b"
    r"|\b(?:OK|WARNING|CRITICAL|UNKNOWN|UNSEEN|OFF|TEST|WEBKASSA|Webkassa|Apprise|API|Python|UTC)\b"
    r"|\b(?:NAME|systemd|sudo|cron|nano|root|json|nobody)\b"
)


def english_in(said: str) -> list[str]:
    """Return what stands in Latin letters there and is no name, command or path."""
    said = said.replace(os.uname().nodename, "")
    return re.findall(r"[A-Za-z][A-Za-z' -]*[A-Za-z]", NO_LANGUAGE.sub(" ", said))


if __name__ == "__main__":  # as Apprise's Python, when the status asks what is wrong with alerts
    import server_alert

    server = server_status.Server(Path(sys.argv[1]))
    print("".join(f"{line}\n" for line in server_alert.look(server)), end="")
