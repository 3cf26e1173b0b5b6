"""The rules of an update hold for all orders of a few updaters and faults; see `model`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import model
import pytest
from model import KINDS, updater

TIMES = {"touch", "minute"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("people", "faults", "kinds", "logins"),
    [
        (["plain"] * 3, 0, KINDS, 1),
        (["if-needed"] * 3, 0, KINDS, 1),
        (["plain", "if-key"], 0, KINDS, 1),
        (["if-key"], 0, TIMES, 1),
        (["if-key"], 1, TIMES | {"killed", "unclear"}, 1),
        (["plain"], 1, KINDS, 3),
        (["plain"] * 2, 1, {"cut off", "session ended", "late"}, 4),
    ],
)
def test_no_key_is_lost_whatever_follows_what(
    people: list[str], faults: int, kinds: set[str], logins: int
) -> None:
    found = model.explore(people, faults, kinds)
    assert found.wrong == {}
    assert found.logins == logins  # the most of one run
    assert found.rests


@pytest.fixture
def places() -> Iterator[None]:
    model.forget_places()
    yield
    model.forget_places()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "name", "instead", "people", "kinds"),
    [
        (updater.KeyStore, "take_lock", lambda *_: None, ["plain"] * 2, set()),
        (updater.KeyStore, "rehearse", lambda *_: None, ["plain"], set()),
        (updater.KeyStore, "in_transaction", lambda _: True, ["plain"], {"unsent"}),
        (updater, "reconcile_after_reconnect", lambda *_: None, ["plain"] * 2, {"session ended"}),
        (updater, "superseded_by_late_login", lambda _: False, ["plain"], {"late"}),
        (updater, "row_is_no_better", lambda *_: False, ["plain"], {"refuses all", "refused"}),
        (
            updater, "retry_or_give_up",
            lambda _, *state: updater.give_up(*state), ["plain"], {"cut off"},
        ),
        (updater.KeyAge, "correct", lambda _, row: row, ["if-needed"], set()),
        (updater.KeyAge, "correct", lambda _, row: row, ["if-key"], set()),
        (updater.KeyAge, "note_first_sight", lambda *_: None, ["if-key"], {"killed"}),
        (updater.KeyAge, "was_early", lambda _: False, ["if-key"], set()),
        (updater, "probe_stored_key", lambda *_: updater.DEAD, ["if-key"], set()),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("places")
def test_a_rule_that_is_left_out_is_missed(
    where: Any, name: str, instead: Any, people: list[str], kinds: set[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(where, name, instead)
    assert model.explore(people, min(len(kinds), 2), kinds).wrong
