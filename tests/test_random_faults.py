"""Two updaters, a vendor and a database play through random faults (world/random_faults.py)."""

from __future__ import annotations

import pytest
from world.shop import Shop


@pytest.mark.slow
def test_live_key_is_left_whatever_goes_wrong(shop: Shop) -> None:
    from world import random_faults

    random_faults.play(shop)
    result = shop.run(POSTGRES_PORT=str(shop.server.port))
    assert (result.code, shop.key) == (0, shop.webkassa.live), result
