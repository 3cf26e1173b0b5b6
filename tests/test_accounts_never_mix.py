"""Whatever fails, in whatever order, no row ever holds another account's token."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from typing import Any

import pytest
from world import webkassa_simulator as vendor
from world.accounts import Accounts, login, row
from world.shop import CLEAN_SLATE, CONSUMERS_TABLE, Shop
from world.webkassa_simulator import Behaviour, answer, cut, errors, late, slow

NAMES = "abcdef"

# Every write that was committed, also one that another follows
AUDIT = """
    CREATE TABLE written (service text, key text);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO written VALUES (NEW.service_name, NEW.api_key); RETURN NEW;
    END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION note()
"""

ANSWERS: list[Callable[[], Behaviour]] = [
    lambda: slow(0),
    lambda: slow(0.1),
    lambda: late(0.2, hang_up=True),
    lambda: late(0.2, reply=True),
    cut,
    vendor.same_token,
    vendor.respelled,
    vendor.wrong_length,
    vendor.unfinished_chunks,
    lambda: answer(503),
    lambda: answer(503, b"", {"Retry-After": "999"}),
    lambda: answer(200, b"<html>"),
    lambda: answer(200, errors(1)),
    lambda: answer(200, errors(-1)),
    lambda: answer(200, {"Data": {"Token": ""}}),
]
PROBE_ANSWERS: list[Callable[[], Behaviour]] = [
    lambda: slow(0),
    lambda: slow(0.1),
    cut,
    lambda: answer(503),
    lambda: answer(200, errors(2)),
    lambda: answer(200, errors(-1)),
]


class CutOff:
    """Ends the database connections of everybody who asks, at some accounts' first login."""

    def __init__(self, accounts: Accounts, names: set[str]) -> None:
        self.accounts, self.names = accounts, names
        self.lock = threading.Lock()

    def __call__(self, token: str) -> None:
        owner = self.accounts.webkassa.owner(token).partition("@")[0]
        with self.lock:
            strikes = owner in self.names
            self.names.discard(owner)
        if strikes:
            self.accounts.shop.kill_connections()


@pytest.mark.slow
@pytest.mark.xdist_group("hypothesis")
def test_no_row_ever_holds_the_token_of_another_account(shop: Shop, hypothesis: Any) -> None:
    st = hypothesis.strategies
    fate = {
        "logins": st.lists(st.sampled_from(ANSWERS), max_size=3),
        "probes": st.lists(st.sampled_from(PROBE_ANSWERS), max_size=3),
        "cut_off": st.booleans(),  # its connection to PostgreSQL, once, when it has logged in
    }
    fates = st.lists(st.fixed_dictionaries(fate), min_size=len(NAMES), max_size=len(NAMES))
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    bounds = hypothesis.settings(max_examples=12, deadline=None, phases=phases, derandomize=True)
    bounds(hypothesis.given(st.just(shop), fates, st.integers(2, 6))(play))()


def play(shop: Shop, fates: list[dict[str, Any]], jobs: int) -> None:
    shop.sql(CLEAN_SLATE)
    shop.sql(CONSUMERS_TABLE)
    shutil.rmtree(shop.home / "accounts.d", ignore_errors=True)
    accounts = Accounts(shop, *NAMES)
    shop.sql(AUDIT)
    shop.webkassa.scripts.clear()
    shop.webkassa.probe_scripts.clear()
    for name, fate in zip(NAMES, fates, strict=True):
        accounts.script(name).extend(make() for make in fate["logins"])
        shop.webkassa.probe_scripts[login(name)].extend(make() for make in fate["probes"])
    cut_off = {name for name, fate in zip(NAMES, fates, strict=True) if fate["cut_off"]}
    shop.webkassa.on_issue = CutOff(accounts, set(cut_off))

    result = shop.run("update", "--jobs", str(jobs), WEBKASSA_DEADLINE="10s")

    assert result.code in (0, 69, 71, 75, 76, 77)
    owners = shop.webkassa.issued_to
    for service, key in shop.sql("SELECT * FROM written"):
        assert row(owners[key].partition("@")[0]) == service
    for name, key in accounts.keys.items():
        assert owners[key] == login(name)
    untroubled = {n for n, fate in zip(NAMES, fates, strict=True) if not (fate["logins"] or fate["probes"])}  # fmt: skip
    # Whom it met before the login, that one's key is as it was
    assert untroubled <= accounts.renewed | (accounts.untouched if cut_off else set())
