"""Whatever happens in whatever order: the queue and a model in Python agree.

Time does not pass by itself: leases, backoffs and expiry are an hour or a day long, and the rules shift them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from resources.postgres.message_queue import PersistentMessageQueue
from resources.postgres.queue_admin import QueueRefused, drop, redrive
from resources.postgres.queue_core import Claim, GoOn, PostgresStore
from resources.postgres.queue_messages import LeaseLost, MessageConflict, QueuedMessage
from resources.postgres.queue_sync import SyncRunner
from resources.postgres.tenancy import tenant_connection
from tests.integration.queue.conftest import STILL, execute, make_customer, message

if TYPE_CHECKING:
    from uuid import UUID

    from tests.support.databases import Database

pytestmark = pytest.mark.integration

_SESSIONS = ("s0", "s1")
_TRIES = STILL.max_tries


@dataclass
class Modelled:
    key: str
    value: int
    status: str = "pending"
    tries: int = 0
    lease: object = None  # the claim that has it
    live: bool = False
    waiting: bool = False
    expired: bool = False
    redrive: bool = False

    @property
    def open(self) -> bool:
        return self.status in ("pending", "processing")

    @property
    def leased(self) -> bool:
        return self.status == "processing" and self.live

    @property
    def gone(self) -> bool:
        return self.expired and not self.leased


@dataclass
class Session:
    messages: list[Modelled] = field(default_factory=list)

    def head(self) -> Modelled | None:
        return next((m for m in self.messages if m.open and not m.gone), None)

    def reopen(self) -> bool:
        head = self.head()
        if head is not None and head.leased:
            return False
        opened = [m for m in self.messages if m.redrive and m.status == "failed"]
        for m in opened:
            m.status, m.redrive, m.tries, m.waiting, m.live, m.lease = "pending", False, 0, False, False, None
        return bool(opened)

    def claim(self, lease: object) -> tuple[str, Modelled | None, list[str]]:
        dead: list[str] = []
        while True:
            head = self.head()
            if head is not None and head.leased:
                return "leased", head, dead
            if self.reopen():
                continue
            if head is None:
                return "empty", None, dead
            tries = head.tries + (head.status == "processing")
            if tries >= _TRIES:
                head.status, head.tries, head.live = "failed", tries, False
                dead.append(head.key)
                continue
            if head.status == "pending" and head.waiting:
                return "waiting", head, dead
            head.status, head.tries, head.lease, head.live = "processing", tries, lease, True
            return "claimed", head, dead


@dataclass(eq=False)
class Held:
    """A claim that somebody thinks is theirs."""

    session: str
    message: QueuedMessage
    modelled: Modelled
    lease: object


class Queue(RuleBasedStateMachine):
    database: Database
    number = 0
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        Queue.number += 1
        self.customer: UUID = make_customer(self.database, f"c{Queue.number}")
        self.model = {name: Session() for name in _SESSIONS}
        self.runner = SyncRunner(self.database.engine, STILL)

    def teardown(self) -> None:
        self.runner.close()

    def _store(self, session: str) -> PostgresStore:
        return PostgresStore(self.customer, STILL, session)

    def _row(self, m: Modelled, session: str, assignment: str) -> None:
        # The newest row of that key: an older one is gone.
        execute(
            self.database,
            f"UPDATE message_queue SET {assignment} WHERE customer_id = :c AND session_id = :s AND message_key = :k",
            c=self.customer, s=session, k=m.key,
        )  # fmt: skip

    def _held(self, session: str, claim: Claim, modelled: Modelled | None, lease: object) -> Any:
        if claim.message is None:
            return multiple()
        assert modelled is not None
        return Held(session, claim.message, modelled, lease)

    def _compare(self, claim: Claim, expected: tuple[str, Modelled | None, list[str]]) -> None:
        outcome, modelled, dead = expected
        assert (claim.outcome, list(claim.dead)) == (outcome, dead)
        assert claim.key == (modelled.key if modelled else None)
        if outcome == "claimed":
            assert claim.message is not None
            assert modelled is not None
            assert (claim.message.value, claim.message.retry_count) == (modelled.value, modelled.tries)

    @rule(session=st.sampled_from(_SESSIONS), keys=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 9)),
                                                            min_size=1, max_size=4))  # fmt: skip
    def enqueue(self, session: str, keys: list[tuple[str, int]]) -> None:
        # Mostly the same body for the same key, so that most are taken.
        wanted = [(key, 1 if value < 9 else 2) for key, value in keys]
        there = {m.key: m for m in self.model[session].messages}
        bodies: dict[str, int] = {}
        conflict = any(bodies.setdefault(key, value) != value for key, value in wanted) or any(
            key in there and not there[key].gone and there[key].value != value for key, value in wanted
        )
        queue = PersistentMessageQueue(True, self.customer, session, engine=self.database.engine, settings=STILL)
        messages = [message(key, value) for key, value in wanted]
        if conflict:
            with pytest.raises(MessageConflict):
                queue.enqueue_many(messages)
            # A row that had expired is removed only together with what takes its place.
            return
        taken = queue.enqueue_many(messages)
        assert [t.key for t in taken] == list(bodies)
        for t in taken:
            old = there.get(t.key)
            if old is not None and old.gone:
                self.model[session].messages.remove(old)
                old = None
            assert t.new == (old is None)
            if old is None:
                self.model[session].messages.append(Modelled(t.key, bodies[t.key]))

    @rule(target=claims, session=st.sampled_from(_SESSIONS))
    def claim(self, session: str) -> Any:
        lease = object()
        claim = self.runner.run(self._store(session).claim())
        expected = self.model[session].claim(lease)
        self._compare(claim, expected)
        return self._held(session, claim, expected[1], lease)

    @rule(target=claims, cursor=st.sampled_from(("", *_SESSIONS)))
    def claim_next(self, cursor: str) -> Any:
        claim = self.runner.run(self._store("").claim_next(cursor))
        lease = object()
        return self._check_next(claim, cursor, lease)

    def _check_next(self, claim: Claim, cursor: str, lease: object) -> Any:
        dead: list[str] = []
        for session in _SESSIONS:
            model = self.model[session]
            first = next((m for m in model.messages if m.open), None)
            if session <= cursor or first is None:
                continue
            # Passed over by the look at its first row.
            if first.leased or (first.status == "pending" and first.waiting and not first.expired):
                continue
            outcome, modelled, died = model.claim(lease)
            dead += died
            if outcome == "claimed":
                assert (claim.outcome, list(claim.dead), claim.cursor) == ("claimed", dead, session)
                assert claim.message is not None
                assert modelled is not None
                assert (claim.message.session_id, claim.message.key) == (session, modelled.key)
                return Held(session, claim.message, modelled, lease)
        assert (claim.outcome, claim.message, list(claim.dead)) == ("end", None, dead)
        return multiple()

    def _is_theirs(self, held: Held) -> bool:
        m = held.modelled
        there = any(m is one for one in self.model[held.session].messages)
        return there and m.leased and m.lease is held.lease

    @rule(target=claims, held=consumes(claims), go_on=st.sampled_from((None, "own", "others")))
    def acknowledge(self, held: Held, go_on: str | None) -> Any:
        store = self._store(held.session)
        how = {None: None, "own": GoOn(), "others": GoOn(True, True, held.session)}[go_on]
        if not self._is_theirs(held):
            done = held.modelled.status == "completed" and held.modelled.lease is held.lease
            if not (done and any(held.modelled is m for m in self.model[held.session].messages)):
                with pytest.raises(LeaseLost):
                    self.runner.run(store.acknowledge(held.message, how))
            return multiple()
        claim = self.runner.run(store.acknowledge(held.message, how))
        held.modelled.status, held.modelled.live = "completed", False
        self.model[held.session].reopen()
        if claim is None:
            return multiple()
        lease = object()
        expected = self.model[held.session].claim(lease)
        if go_on == "own":
            self._compare(claim, expected)
            return self._held(held.session, claim, expected[1], lease)
        if expected[0] == "claimed":
            assert claim.key == (expected[1].key if expected[1] else None)
            return self._held(held.session, claim, expected[1], lease)
        rest = self._check_next(Claim(claim.outcome, claim.message, claim.key, cursor=claim.cursor,
                                      dead=claim.dead[len(expected[2]):]), held.session, lease)  # fmt: skip
        assert list(claim.dead[: len(expected[2])]) == expected[2]
        return rest

    @rule(held=consumes(claims), others=st.booleans())
    def acknowledge_too_late(self, held: Held, others: bool) -> None:
        if self._is_theirs(held):
            held.modelled.live = False
            self._row(held.modelled, held.session, "leased_until = now() - interval '1 second'")
            with pytest.raises(LeaseLost):
                self.runner.run(self._store(held.session).acknowledge(held.message, GoOn(True, others)))

    @rule(held=consumes(claims))
    def acknowledging_twice_is_acknowledging_once(self, held: Held) -> None:
        if self._is_theirs(held):
            for _ in range(2):
                assert self.runner.run(self._store(held.session).acknowledge(held.message, None)) is None
            assert self.runner.run(self._store(held.session).was_acknowledged(held.message))
            held.modelled.status, held.modelled.live = "completed", False
            self.model[held.session].reopen()

    @rule(
        held=consumes(claims),
        counted=st.sampled_from((True, True, False)),
        fatal=st.sampled_from((True, False, False)),
    )
    def fail(self, held: Held, counted: bool, fatal: bool) -> None:
        m = held.modelled
        theirs = self._is_theirs(held)
        repeated = (
            not theirs and m.lease is held.lease and m.status in ("pending", "failed") and m.lease is not None
            and any(m is one for one in self.model[held.session].messages)
        )  # fmt: skip
        failed = self.runner.run(
            self._store(held.session).fail(held.message, "no", 3600.0, 0 if fatal else _TRIES, counted=counted)
        )
        if theirs:
            m.tries += counted
            dead = counted and (fatal or m.tries >= _TRIES)
            m.status, m.live, m.waiting = "failed" if dead else "pending", False, True
            assert failed.outcome == ("dead" if dead else "retry")
            self.model[held.session].reopen()
        elif not repeated:
            assert failed.outcome == "lost"

    @rule(target=claims, held=claims)
    def somebody_forgets_that_it_was_done_already(self, held: Held) -> Any:
        """A second copy of a claim, to be used after the first."""
        return held

    @rule(session=st.sampled_from(_SESSIONS))
    def a_handler_dies_and_its_lease_runs_out(self, session: str) -> None:
        for m in self.model[session].messages:
            if m.leased:
                m.live = False
                self._row(m, session, "leased_until = now() - interval '1 second'")

    @rule(session=st.sampled_from(_SESSIONS))
    def the_backoff_passes(self, session: str) -> None:
        for m in self.model[session].messages:
            if m.waiting and m.status == "pending":
                m.waiting = False
                self._row(m, session, "available_at = now()")

    @rule(session=st.sampled_from(_SESSIONS), which=st.integers(0, 7))
    def a_day_passes(self, session: str, which: int) -> None:
        messages = self.model[session].messages
        if which < len(messages):
            messages[which].expired = True
            self._row(messages[which], session, "expires_at = now() - interval '1 second'")

    @rule()
    def clean_up(self) -> None:
        gone = 0
        for session in self.model.values():
            gone += sum(m.gone for m in session.messages)
            session.messages = [m for m in session.messages if not m.gone]
        with self.database.engine.begin() as connection:
            row = connection.execute(
                text("SELECT coalesce(sum(removed), 0) AS n FROM remove_expired_messages(1000) AS r "
                     "WHERE r.customer_id = :c"),
                {"c": self.customer},
            ).one()  # fmt: skip
        assert row.n == gone

    @rule(session=st.sampled_from(_SESSIONS), first_only=st.booleans())
    def redrive(self, session: str, first_only: bool) -> None:
        failed = [m for m in self.model[session].messages if m.status == "failed"][: 1 if first_only else None]
        rows = self.database.rows(
            "SELECT id, message_key FROM message_queue WHERE customer_id = :c AND session_id = :s", c=self.customer,
            s=session,
        )  # fmt: skip
        ids: dict[str, Any] = {str(row["message_key"]): row["id"] for row in rows}
        if not failed:
            return
        done = redrive(self.database.engine, [ids[m.key] for m in failed])
        for m in failed:
            m.redrive, m.expired = True, False
        self.model[session].reopen()
        assert [(row["key"], row["status"]) for row in done] == [(m.key, m.status) for m in failed]

    @rule(session=st.sampled_from(_SESSIONS), which=st.integers(0, 7))
    def drop(self, session: str, which: int) -> None:
        messages = self.model[session].messages
        if which >= len(messages):
            return
        m = messages[which]
        row = self.database.value(
            "SELECT id FROM message_queue WHERE customer_id = :c AND session_id = :s AND message_key = :k",
            c=self.customer, s=session, k=m.key,
        )  # fmt: skip
        wanted: Any = [row]
        if m.leased:
            with pytest.raises(QueueRefused, match="is being handled"):
                drop(self.database.engine, messages=wanted)
        else:
            assert [r["key"] for r in drop(self.database.engine, messages=wanted)] == [m.key]
            messages.remove(m)

    @invariant()
    def the_rows_are_the_models(self) -> None:
        with tenant_connection(self.customer, engine=self.database.engine) as connection:
            rows = connection.execute(
                text("SELECT session_id, message_key, status, retry_count, leased_until > now() AS live "
                     "FROM message_queue ORDER BY session_id, position")
            ).all()  # fmt: skip
        found = {
            name: [(r.message_key, r.status, r.retry_count) for r in rows if r.session_id == name]
            for name in _SESSIONS
        }
        expected = {name: [(m.key, m.status, m.tries) for m in self.model[name].messages] for name in _SESSIONS}
        assert found == expected
        for name in _SESSIONS:
            assert sum(bool(r.live) and r.status == "processing" for r in rows if r.session_id == name) <= 1

    @rule(session=st.sampled_from(_SESSIONS))
    def load(self, session: str) -> None:
        queue = PersistentMessageQueue(True, self.customer, session, engine=self.database.engine, settings=STILL)
        assert [m.key for m in queue.load_persisted_messages()] == [
            m.key for m in self.model[session].messages if m.open and not m.gone
        ]


def test_the_queue_and_its_model_agree_whatever_happens(database: Database) -> None:
    machine = type("QueueOfThisDatabase", (Queue,), {"database": database})
    examples = 40 * int(os.environ.get("OMNIOPS_SOAK_ROUNDS", "1"))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=min(examples, 2_000), stateful_step_count=40, deadline=None,
            suppress_health_check=list(HealthCheck), derandomize=False,
        ),
    )  # fmt: skip
