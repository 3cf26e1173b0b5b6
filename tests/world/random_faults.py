"""Two updaters, a vendor and a database play through random faults.

At every rest: whoever ended with 0 left the live key in the row, unless a login came later. Time is
bounded (RANDOM_FAULTS_SECONDS); what was not played this time is played another time. Hypothesis
is loaded here, in one worker, and not where all of them look for tests.
"""

from __future__ import annotations

import os
import time
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from world import webkassa_simulator as vendor
from world.nursery import Process
from world.relay import CutAtCommit, Link, Relay, as_it_is
from world.shop import Result, Shop, fingerprint
from world.waiting import await_
from world.webkassa_simulator import UNCLEAR, Simulator, answer, cut, errors, late, slow

TIME = float(os.environ.get("RANDOM_FAULTS_SECONDS", "25"))
# 73: a token that could not be stored, 78: one that no probe calls alive; no other setting is wrong
CODES = {0, 69, 73, 75, 76, 78}
WISHES = [(), ("--if-needed",)]
LATE = 0.6  # seconds


AUTHORIZE = {
    "a token beside an error": lambda: vendor.beside(errors(7)),
    "an interim answer first": lambda: vendor.interim(seconds=0.3),
    "chunks without an end": vendor.unfinished_chunks,
    "good": lambda: slow(0),
    "slow": lambda: slow(0.5),
    "failing": lambda: answer(503),
    "refusing for a while": lambda: answer(429),
    "half an answer": cut,
    "late, and no answer": lambda: late(LATE, hang_up=True),
    "late, and an answer": lambda: late(LATE, reply=True),
    "too long": vendor.wrong_length,
    "other names": vendor.respelled,
    "the same token": vendor.same_token,
}
PROBE = {
    "good": lambda: slow(0),
    "slow": lambda: slow(0.4),
    "unclear": lambda: answer(200, UNCLEAR),
    "dead": lambda: answer(200, errors(2)),
    "the API key is missing": lambda: answer(401, errors(3)),
}


class World(RuleBasedStateMachine):
    """`shop` and `end` are set by the test."""

    shop: Shop
    end: float

    def __init__(self) -> None:
        super().__init__()
        self.is_played = not self.is_over
        self.running: list[Process] = []
        self.by_hand: list[str] = []  # the tokens of those who log in past the updaters
        self.is_late = False  # a login may take effect some time after everybody has ended
        self.ended_well: list[float] = []  # when, by time.time, since the last rest
        self.relay = Relay(("127.0.0.1", self.shop.server.port)).__enter__()
        self.shop.env["POSTGRES_PORT"] = str(self.relay.port)
        self.shop.env["WEBKASSA_DEADLINE"] = "10s"

    @property
    def webkassa(self) -> Simulator:
        return self.shop.webkassa

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.end

    @initialize(age=st.sampled_from(["1 hour", "30 hours"]), alive=st.booleans())
    def stored_key(self, age: str, alive: bool) -> None:
        self.webkassa.script.clear()
        self.webkassa.probe_script.clear()
        old = self.webkassa.issue()
        if not alive:
            self.webkassa.live = None
        self.shop.sql(
            "UPDATE api_keys SET api_key = %s, updated_at = now() AT TIME ZONE 'UTC' - %s::interval"
            " WHERE service_name = 'Webkassa'", old, age,
        )  # fmt: skip

    # What is done

    @rule(wish=st.sampled_from(WISHES))
    def one_updater_starts(self, wish: tuple[str, ...]) -> None:
        self.an_updater_starts(wish)

    def an_updater_starts(self, wish: tuple[str, ...]) -> None:
        if not self.is_over and len(self.running) < 2:
            self.running.append(self.shop.start("update", "-v", *wish))

    @rule(wishes=st.tuples(st.sampled_from(WISHES), st.sampled_from(WISHES)))
    def two_updaters_start(self, wishes: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
        for wish in wishes:
            self.an_updater_starts(wish)

    @rule()
    def a_consumer_asks_for_another_key(self) -> None:
        if self.shop.key:
            self.an_updater_starts(("--if-key", fingerprint(self.shop.key)))

    @rule()
    def an_application_touches_the_row(self) -> None:
        self.shop.sql(
            "UPDATE api_keys SET updated_at = now() AT TIME ZONE 'UTC' WHERE service_name = 'Webkassa'"
        )

    @rule()
    def one_reaches_webkassa(self) -> None:
        """The faults that follow strike while it is asked, or soon after."""
        asked = self.webkassa.authorizations + self.webkassa.probes
        if self.running and not self.is_over:
            await_(
                lambda: self.webkassa.authorizations + self.webkassa.probes > asked or self.are_done
            )

    @property
    def are_done(self) -> bool:
        return all(process.poll() is not None for process in self.running)

    # What goes wrong

    @rule(how=st.sampled_from(sorted(AUTHORIZE)))
    def webkassa_misbehaves_at_a_login(self, how: str) -> None:
        self.is_late = self.is_late or "late" in how
        self.webkassa.script.append(AUTHORIZE[how]())

    @rule(how=st.sampled_from(sorted(PROBE)))
    def webkassa_misbehaves_at_a_probe(self, how: str) -> None:
        self.webkassa.probe_script.append(PROBE[how]())

    @rule()
    def webkassa_refuses_connections_for_a_moment(self) -> None:
        if self.running and not self.is_over:
            with self.webkassa.refusing_connections():
                time.sleep(0.1)

    @rule()
    def connections_are_cut(self) -> None:
        self.relay.cut()

    @rule()
    def sessions_are_ended(self) -> None:
        if self.running:
            self.shop.kill_connections()

    @rule()
    def connection_is_cut_at_the_next_login(self) -> None:
        """The lock is gone while the login is on its way."""

        def strike(event: Any) -> None:
            if event.what == "asked":
                self.webkassa.on_event = lambda event: None
                self.relay.cut()

        self.webkassa.on_event = strike

    @rule(is_done=st.booleans())
    def connection_is_cut_at_the_next_commit(self, is_done: bool) -> None:
        if is_done:
            CutAtCommit(self.relay)
            return

        def strike(link: Link, data: bytes) -> bytes | None:
            if not data.endswith(b"COMMIT\0"):
                return data
            self.relay.to_server = as_it_is
            link.cut()
            return None

        self.relay.to_server = strike

    @rule()
    def somebody_logs_in_by_hand_and_stores_nothing(self) -> None:
        self.by_hand.append(self.webkassa.issue())

    @rule(number=st.integers(0, 1))
    def an_updater_is_killed(self, number: int) -> None:
        if number < len(self.running):
            process = self.running.pop(number)
            process.kill()
            process.communicate()

    # What must hold

    @rule()
    def rest(self) -> None:
        """All end; the faults that did not strike yet are called off."""
        if not self.is_played:
            return
        for process in self.running:
            out, err = process.communicate(timeout=60)
            ended = time.time()
            result = self.shop.watched(Result(process.wait(), out, err))
            assert result.code in CODES, result
            # --if-needed leaves a young key alone that the probe could not judge, be it dead
            if result.code == 0 and "Nothing to do" not in err:
                self.ended_well.append(ended)
        self.running.clear()
        self.call_faults_off()
        if self.is_late:
            time.sleep(LATE + 0.1)
        self.is_late = False
        if self.ended_well:
            self.live_key_is_stored_unless_a_login_came_later()
        assert self.shop.key in self.webkassa.issued
        self.ended_well.clear()

    def call_faults_off(self) -> None:
        self.webkassa.script.clear()
        self.webkassa.probe_script.clear()
        self.webkassa.on_event = lambda event: None
        self.relay.to_server = self.relay.to_client = as_it_is

    def live_key_is_stored_unless_a_login_came_later(self) -> None:
        """Later than the row was committed and its key was called alive for the last time. What
        somebody does by hand between these two, nobody can see."""
        key = self.shop.key
        ((committed,),) = self.shop.sql(
            "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM api_keys"
            " WHERE service_name = 'Webkassa'"
        )
        events = list(self.webkassa.events)
        seen = [e.clock for e in events if (e.what, e.said, e.token) == ("probe", "alive", key)]
        looked = max([committed, *seen])
        later = [e for e in events if e.what == "login" and e.clock > looked]
        unseen = [
            e for e in events if e.token in self.by_hand and e.clock > max(seen, default=committed)
        ]
        assert key == self.webkassa.live or later or unseen, "a dead key was left with exit code 0"

    def teardown(self) -> None:
        try:
            if self.is_played:
                self.rest()
        finally:
            for process in self.running:
                process.kill()
                process.communicate()
            self.relay.__exit__()


def play(shop: Shop) -> None:
    class Bounded(World):
        pass

    Bounded.shop, Bounded.end = shop, time.monotonic() + TIME
    bounds = settings(
        max_examples=int(60 + 2 * TIME), stateful_step_count=10, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(Bounded, settings=bounds)  # type: ignore[no-untyped-call, unused-ignore]
