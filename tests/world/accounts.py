"""A folder of accounts: each has a login of its own at Webkassa, and a row with a live key."""

from __future__ import annotations

from pathlib import Path

from world.shop import Shop
from world.webkassa_simulator import PASSWORD, Script

OLD_ROWS = """
    INSERT INTO api_keys (service_name, api_key, created_at, updated_at)
    SELECT name, key, now() AT TIME ZONE 'UTC' - interval '30 hours',
           now() AT TIME ZONE 'UTC' - interval '30 hours'
    FROM unnest(%s, %s) AS t (name, key)
"""


class Accounts:
    """`names` are the accounts; `old` their first keys, 30 hours old, by name."""

    def __init__(self, shop: Shop, *names: str) -> None:
        self.shop, self.webkassa, self.names = shop, shop.webkassa, sorted(names)
        self.folder = shop.home / "accounts.d"
        self.folder.mkdir()
        self.old = {name: self.webkassa.enroll(login(name), password(name)) for name in names}
        for name in ("WEBKASSA_LOGIN", "WEBKASSA_PASSWORD"):  # of the shop's only account
            shop.env.pop(name, None)
        shop.sql(OLD_ROWS, [row(name) for name in names], list(self.old.values()))
        for name in names:
            self.write(name)
        shop.options = ("--accounts-dir", str(self.folder))

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.env"

    def write(self, name: str, **settings: str) -> None:
        """Write the file of an account; a setting of "" is left out."""
        own = {"WEBKASSA_LOGIN": login(name), "WEBKASSA_PASSWORD": password(name)} | settings
        lines = [f"{setting}='{value}'\n" for setting, value in own.items() if value]
        self.file(name).write_text("".join(lines), encoding="utf-8")

    def script(self, name: str) -> Script:
        """What the next logins of an account meet."""
        return self.webkassa.scripts[login(name)]

    def logins(self, name: str) -> int:
        return self.webkassa.logins(login(name))

    @property
    def keys(self) -> dict[str, str]:
        """The stored keys by the accounts' names."""
        found = dict(self.shop.sql("SELECT service_name, api_key FROM api_keys"))
        return {name: found[row(name)] for name in self.names}

    @property
    def live(self) -> dict[str, str | None]:
        """The keys that work, by the accounts' names."""
        return {name: self.webkassa.tokens[login(name)] for name in self.names}

    @property
    def renewed(self) -> set[str]:
        """The accounts whose row holds another key than in the beginning, and one that works."""
        keys, live = self.keys, self.live
        return {name for name in self.names if keys[name] == live[name] != self.old[name]}

    @property
    def untouched(self) -> set[str]:
        """The accounts whose first key is stored, and works."""
        keys, live = self.keys, self.live
        return {name for name in self.names if keys[name] == live[name] == self.old[name]}


def login(name: str) -> str:
    return f"{name}@example.kz"


def password(name: str) -> str:
    return f"{PASSWORD}-{name}"


def row(name: str) -> str:
    return f"Webkassa:{name}"


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and not yet taken leave of."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_pending(pid: int, number: int) -> bool:
    """Say whether a signal has reached a process that holds it back."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in status if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)
