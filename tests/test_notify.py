"""Consumers hear of a new key."""

from __future__ import annotations

import contextlib

from world.shop import Shop


def test_consumers_are_notified_once_without_the_key(shop: Shop) -> None:
    with contextlib.closing(shop.connect()) as consumer, consumer.cursor() as cursor:
        cursor.execute("LISTEN webkassa_key_updated")
        assert shop.run("check").code == 0  # a rehearsal tells nobody
        assert shop.run().code == 0
        cursor.execute("SELECT 1")
        consumer.poll()
        heard = [(note.channel, note.payload) for note in consumer.notifies]
    assert heard == [("webkassa_key_updated", "Webkassa")]
