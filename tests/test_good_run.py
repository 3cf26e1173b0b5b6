"""A good run: one line said, one row changed."""

from __future__ import annotations

import json
import re

from world.shop import Shop, fingerprint, seconds_ago


def test_good_run_says_one_line_and_stores_the_live_key(shop: Shop) -> None:
    before = shop.row()
    result = shop.finish(shop.start())
    assert (result.code, result.out, result.err.count("\n")) == (0, "", 1)
    assert shop.holds_the_live_key
    assert fingerprint(shop.key) in result.err
    assert fingerprint(shop.old_key) in result.err
    assert "30.0 h old" in result.err
    assert "127.0.0.1" in result.err  # the host is shown
    after = shop.row()
    assert abs(seconds_ago(after["updated_at"])) < 10
    expected = before | {"api_key": shop.key, "updated_at": after["updated_at"]}
    assert after == expected
    assert shop.row("Other") == shop.foreign_row


def test_update_tells_machines_what_happened(shop: Shop) -> None:
    """On standard output alone, and as before on standard error."""
    reports = []
    for arguments, env in (((), {}), (("--if-needed",), {}), ((), {"POSTGRES_PORT": "9"})):
        result = shop.run("update", "--json", *arguments, **env)
        report = json.loads(result.out)
        assert (report["code"], report["account"]) == (result.code, None)
        assert report["message"] in result.err
        reports.append((report["what"], report["fingerprint"]))
    new = fingerprint(shop.key)
    assert reports == [("renewed", new), ("nothing to do", new), ("failed", "none")]
    assert shop.run("check", "--json").code == 2


def test_log_carries_no_time_or_line_breaks_that_a_journal_adds_itself(shop: Shop) -> None:
    result = shop.finish(shop.start())
    assert re.fullmatch(
        rf"INFO: Webkassa: Stored the new key {fingerprint(shop.key)} from 127\.0\.0\.1:\d+"
        rf" in shop\.public\.api_keys in place of {fingerprint(shop.old_key)}, 30\.0 h old\.\n",
        result.err,
    )
