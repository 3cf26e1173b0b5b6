"""update --if-needed: Webkassa is asked only when it must be."""

from __future__ import annotations

import pytest
from world.shop import Shop
from world.webkassa_simulator import answer, errors


@pytest.mark.parametrize(
    ("age", "probe", "asks"),
    [
        ("1 hour", None, False),
        ("23 hours 59 minutes", None, False),
        ("24 hours", None, True),
        ("-1 hour", None, True),  # a time in the future tells nothing
        ("1 hour", errors(2), True),
        ("1 hour", errors(3), True),
        ("1 hour", errors(4), False),
        ("1 hour", errors(-1), False),
        ("1 hour", [], False),
    ],
)
def test_if_needed_asks_only_for_an_old_or_dead_key(
    shop: Shop, age: str, probe: object, asks: bool
) -> None:
    shop.sql("UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' - %s::interval", age)
    if probe is not None:
        shop.webkassa.probe_script.append(answer(200, probe))
    assert shop.run("update", "--if-needed").code == 0
    assert shop.webkassa.authorizations == asks
    assert shop.holds_the_live_key == asks


def test_if_needed_obeys_max_age_and_creates_a_missing_key(shop: Shop) -> None:
    assert shop.run("update", "--if-needed", WEBKASSA_MAX_AGE="31h").code == 0
    assert shop.webkassa.authorizations == 0
    shop.sql("DELETE FROM api_keys WHERE service_name = 'Webkassa'")
    assert shop.run("update", "--if-needed").code == 0
    assert shop.holds_the_live_key
