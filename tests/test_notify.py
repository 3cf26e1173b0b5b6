"""Consumers hear of a new key."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psycopg2
import pytest
from world.postgres import Postgres
from world.shop import Shop
from world.webkassa_simulator import Simulator


def test_consumers_are_notified_once_without_the_key(shop: Shop) -> None:
    with contextlib.closing(shop.connect()) as consumer, consumer.cursor() as cursor:
        cursor.execute("LISTEN webkassa_key_updated")
        assert shop.run("check").code == 0  # a rehearsal tells nobody
        assert shop.run().code == 0
        cursor.execute("SELECT 1")
        consumer.poll()
        heard = [(note.channel, note.payload) for note in consumer.notifies]
    assert heard == [("webkassa_key_updated", "Webkassa")]


@pytest.mark.slow
def test_key_is_stored_though_the_queue_of_notifications_is_full(
    webkassa: Simulator, tmp_path: Path
) -> None:
    """That shows at the commit alone: the rehearsal cannot know. Somebody has listened and not ended
    a transaction since; the queue's size is a setting from PostgreSQL 17 on."""
    server = Postgres("fsync=off", "max_notify_queue_pages=64")
    try:
        with contextlib.closing(Shop(server, webkassa, tmp_path)) as shop:
            shop.sql("LISTEN somebody")
            with shop.transaction("LISTEN webkassa_key_updated") as listener:
                listener.execute("COMMIT; BEGIN; SELECT 1")
                with pytest.raises(psycopg2.Error, match="NOTIFY queue"):
                    shop.sql(
                        "SELECT pg_notify('a', repeat(i::text, 900)) FROM generate_series(1, 999) i"
                    )
                result = shop.renew()
        assert "Storing took more than one try; perhaps nobody was notified." in result.err
    finally:
        server.remove()
