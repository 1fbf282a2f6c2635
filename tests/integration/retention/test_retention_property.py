"""Whatever rows there are: the preview, the run and a model in Python agree, and nothing else is deleted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from resources.postgres.retention import preview, run

if TYPE_CHECKING:
    from tests.support.databases import Database

pytestmark = pytest.mark.integration

_CUSTOMERS = 3
_FINISHED = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Job:
    customer: int
    status: str
    age: int
    results: int
    frontier: int


@dataclass(frozen=True)
class Conversation:
    customer: int
    age: int
    messages: tuple[int, ...]


@dataclass(frozen=True)
class Message:
    customer: int
    status: str
    expired: bool
    leased: bool | None


_OF = st.integers(0, _CUSTOMERS - 1)
# On both sides of each limit, and never on it.
_AGES = st.sampled_from((1, 29, 31, 89, 91, 400))
_WORLD = st.fixed_dictionaries({
    "jobs": st.lists(st.builds(
        Job, _OF, st.sampled_from((*_FINISHED, "queued", "running", "paused")), _AGES, st.integers(0, 6),
        st.integers(0, 3)), max_size=8),
    "conversations": st.lists(st.builds(
        Conversation, _OF, _AGES, st.lists(_AGES, max_size=3).map(tuple)), max_size=8),
    "messages": st.lists(st.builds(
        Message, _OF, st.sampled_from(("pending", "processing", "completed", "failed")), st.booleans(),
        st.sampled_from((None, True, False))), max_size=10),
    "held": st.sets(_OF), "released": st.sets(_OF), "overrides": st.dictionaries(_OF, st.sampled_from((30, 90, 200))),
    "days": st.sampled_from((30, 90)), "batch": st.integers(1, 12),
})  # fmt: skip

_TABLES = ("scrape_jobs", "scrape_job_results", "scrape_job_stats", "crawl_frontier", "conversations", "messages",
           "conversation_metadata", "message_queue")  # fmt: skip


def _fill(database: Database, world: dict[str, Any]) -> list[Any]:
    with database.engine.begin() as connection:
        for table in ("legal_holds", "customers", "retention_runs"):
            connection.execute(text(f"DELETE FROM {table}"))
        ids = list(
            connection.scalars(
                text("INSERT INTO customers (name, slug) SELECT 'c', 'c' || n FROM generate_series(0, :n) AS n "
                     "RETURNING id"),
                {"n": _CUSTOMERS - 1},
            )
        )  # fmt: skip

        def many(sql: str, rows: list[dict[str, Any]]) -> None:
            if rows:
                connection.execute(text(sql), rows)

        for column, which in (("NULL", world["held"]), ("now()", world["released"])):
            many(f"""INSERT INTO legal_holds (customer_id, reason, placed_by, released_at)
                     VALUES (:c, 'r', 'p', {column})""",
                 [{"c": ids[n]} for n in which])  # fmt: skip
        many("""INSERT INTO customer_configs (customer_id, domain, settings)
                VALUES (:c, 'd', CAST(:s AS jsonb))""",
             [{"c": ids[n], "s": f'{{"retention": {{"conversations_days": {days}}}}}'}
              for n, days in world["overrides"].items()])  # fmt: skip
        many("""INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, status, created_at, completed_at)
                VALUES (:j, :c, 'd', 'full_crawl', :s, now() - make_interval(days => :age),
                        CASE WHEN :ended THEN now() - make_interval(days => :age) END)""",
             [{"j": str(n), "c": ids[job.customer], "s": job.status, "age": job.age, "ended": job.status in _FINISHED}
              for n, job in enumerate(world["jobs"])])  # fmt: skip
        many("""INSERT INTO scrape_job_results (job_id, customer_id, url, status, created_at)
                SELECT :j, :c, 'u' || n, 'success', now() - make_interval(days => :age)
                FROM generate_series(1, :n) AS n""",
             [{"j": str(n), "c": ids[job.customer], "age": job.age, "n": job.results}
              for n, job in enumerate(world["jobs"])])  # fmt: skip
        many("""INSERT INTO crawl_frontier (job_id, url_hash, customer_id, url, depth)
                SELECT :j, n, :c, 'u', 0 FROM generate_series(1, :n) AS n""",
             [{"j": str(n), "c": ids[job.customer], "n": job.frontier}
              for n, job in enumerate(world["jobs"])])  # fmt: skip
        for conversation in world["conversations"]:
            made = connection.scalar(
                text("""INSERT INTO conversations (customer_id, session_id, created_at)
                        VALUES (:c, 's', now() - make_interval(days => :age)) RETURNING id"""),
                {"c": ids[conversation.customer], "age": conversation.age},
            )
            many("""INSERT INTO messages (conversation_id, customer_id, role, content, created_at)
                    VALUES (:id, :c, 'user', 'x', now() - make_interval(days => :age))""",
                 [{"id": made, "c": ids[conversation.customer], "age": age}
                  for age in conversation.messages])  # fmt: skip
            many("INSERT INTO conversation_metadata (conversation_id, customer_id) VALUES (:id, :c)",
                 [{"id": made, "c": ids[conversation.customer]}])  # fmt: skip
        many("""INSERT INTO message_queue (customer_id, session_id, message_key, message_data, status, expires_at,
                                           leased_until)
                VALUES (:c, 's', :k, '{}', :s, now() + make_interval(hours => CAST(:hours AS integer)),
                        now() + make_interval(hours => CAST(:leased AS integer)))""",
             [{"c": ids[m.customer], "k": str(n), "s": m.status, "hours": -1 if m.expired else 1,
               "leased": None if m.leased is None else 1 if m.leased else -1}
              for n, m in enumerate(world["messages"])])  # fmt: skip
    return ids


def _expected(world: dict[str, Any], policy: str) -> Counter[tuple[str, int]]:
    """Rows by table and customer that must go, by the rules as the specification words them."""
    found: Counter[tuple[str, int]] = Counter()
    if policy == "scrape_jobs":
        for job in world["jobs"]:
            if job.status in _FINISHED and job.age > world["days"] and job.customer not in world["held"]:
                found["scrape_jobs", job.customer] += 1
                found["scrape_job_results", job.customer] += job.results
                found["scrape_job_stats", job.customer] += job.results > 0
                found["crawl_frontier", job.customer] += job.frontier
    elif policy == "conversations":
        for c in world["conversations"]:
            days = world["overrides"].get(c.customer, world["days"])
            if min(c.age, *c.messages, 10_000) > days and c.customer not in world["held"]:
                found["conversations", c.customer] += 1
                found["messages", c.customer] += len(c.messages)
                found["conversation_metadata", c.customer] += 1
    else:
        for m in world["messages"]:
            leased = m.status == "processing" and m.leased is True
            if m.expired and not leased and m.customer not in world["held"]:
                found["message_queue", m.customer] += 1
    return Counter({key: n for key, n in found.items() if n})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=_WORLD)
def test_preview_run_and_model_agree_and_nothing_else_goes(database: Database, world: dict[str, Any]) -> None:
    ids = _fill(database, world)
    at = {customer: n for n, customer in enumerate(ids)}
    before = _rows(database)
    gone: set[tuple[str, str]] = set()
    for policy in ("message_queue", "scrape_jobs", "conversations"):
        days = None if policy == "message_queue" else world["days"]
        expected = _expected(world, policy)
        with database.engine.begin() as connection:
            seen = preview(connection, policy, days)
        assert Counter({(row.table, at[row.customer_id]): row.rows for row in seen}) == expected
        result = run(database.engine, policy, days, batch_rows=world["batch"])
        assert result.rows == tuple(seen)
        after = _rows(database)
        removed = before - after - gone
        assert Counter(table for table, _ in removed) == Counter(
            {t: n for t in _TABLES if (n := sum(c for (table, _), c in expected.items() if table == t))}
        )
        assert after <= before
        gone |= removed


def _rows(database: Database) -> set[tuple[str, str]]:
    # A job's counters follow its results: which of them there are is what matters here.
    found = set()
    for table in _TABLES:
        shown = "x.job_id" if table == "scrape_job_stats" else "concat_ws('/', CAST(x AS text), x.ctid)"
        found |= {(table, str(row["row"])) for row in database.rows(f"SELECT {shown} AS row FROM {table} AS x")}
    return found
