"""The rules of an update hold for all orders of a few updaters and faults; see `model`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import model
import pytest
from model import updater


@pytest.mark.parametrize(
    ("people", "faults", "logins"),
    [
        (["if-needed"] * 4, 0, 1),
        (["plain", "plain", "plain"], 0, 1),
        (["plain", "if-needed", "if-key"], 0, 1),
        (["plain", "plain"], 1, 4),
    ],
)
def test_no_key_is_lost_whatever_follows_what(people: list[str], faults: int, logins: int) -> None:
    found = model.explore(people, faults)
    assert found.wrong == {}
    assert found.logins == logins  # the most of one run
    assert found.rests


@pytest.fixture
def places() -> Iterator[None]:
    model.forget_places()
    yield
    model.forget_places()


@pytest.mark.parametrize(
    ("where", "name", "instead", "people", "kinds"),
    [
        (updater.KeyStore, "take_lock", lambda *_: None, 2, set()),
        (updater.KeyStore, "rehearse", lambda *_: None, 1, set()),
        (updater.KeyStore, "in_transaction", lambda _: True, 1, set()),
        (updater, "reconcile_after_reconnect", lambda *_: None, 2, {"session ended"}),
        (updater, "superseded_by_late_login", lambda _: False, 1, {"late"}),
        (updater, "is_worse", lambda *_: False, 1, {"refuses all", "refused"}),
        (updater, "retry_or_give_up", lambda _, *state: updater.give_up(*state), 1, {"cut off"}),
    ],
)
@pytest.mark.usefixtures("places")
def test_a_rule_that_is_left_out_is_missed(
    where: Any, name: str, instead: Any, people: int, kinds: set[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(where, name, instead)
    assert model.explore(["plain"] * people, len(kinds), kinds).wrong
