"""Whatever was crawled: both tables say what plain Python counts, and so does the check's own counting."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from resources.postgres.statistics import check_sample, compute, domains_that_do_not_add_up
from tests.integration.statistics.world import DAY, ENDED, Job, Page, expected, fill, rounded, stored

if TYPE_CHECKING:
    from tests.support.databases import Database

pytestmark = pytest.mark.integration

_DAYS = 3
# Around midnight as often as in the middle of a day.
_MOMENTS = st.one_of(
    st.integers(0, _DAYS * 86_400 - 1),
    st.sampled_from([d * 86_400 + e for d in range(_DAYS) for e in (0, 1, 86_399)]),
)
_REASONS = (None, "", "robots", "not_modified", "x" * 200)
_ERRORS = (None, "", "timeout", "http_error: 500: no", ":", "ü" * 90 + ": no", "a\nb: c")
_PAGES = st.builds(
    Page, _MOMENTS, st.sampled_from(("success", "failed", "skipped")),
    st.sampled_from((None, 100, 200, 304, 404, 999)),
    st.one_of(st.none(), st.integers(0, 9), st.sampled_from((0, 2**31 - 1))),
    st.sampled_from((None, 0, 1, 2, 30)), st.sampled_from((None, 0, 1000, 2**63 - 1)),
    st.sampled_from((None, True, False)), st.sampled_from(_REASONS), st.sampled_from(_ERRORS),
)  # fmt: skip


@st.composite
def _jobs(draw: st.DrawFn) -> Job:
    status = draw(st.sampled_from((*ENDED, "queued", "running", "paused")))
    created = draw(_MOMENTS)
    return Job(
        draw(st.sampled_from(("acme", "globex"))),
        draw(st.sampled_from(("a.example", "b.example"))),
        status,
        created,
        draw(st.one_of(st.none(), st.integers(created, created + 100))),
        # Another program may end a job without its time; and clocks may differ.
        draw(st.one_of(st.none(), _MOMENTS)) if status in ENDED else None,
        draw(st.sampled_from((0.0, 0.25, 50_000.0))),
        draw(st.lists(_PAGES, max_size=12)),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=st.lists(_jobs(), max_size=7), zone=st.sampled_from(("UTC", "Asia/Kathmandu", "America/New_York")))
def test_both_tables_say_what_plain_python_counts(database: Database, jobs: list[Job], zone: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM customers"))
        # Days are UTC's, whatever the session's or the database's time zone: this one has changes of the clock.
        connection.execute(text(f"ALTER ROLE CURRENT_USER IN DATABASE {database.name} SET timezone TO '{zone}'"))
    database.engine.dispose()
    fill(database, jobs)
    last = DAY + timedelta(days=_DAYS)
    computed = compute(database.engine, DAY, last)
    wanted = expected(jobs)
    wanted = tuple({k: v for k, v in table.items() if DAY <= k[0] <= last} for table in wanted)  # type: ignore[assignment]
    assert rounded(stored(database)) == rounded(wanted)
    assert [day.pages for day in computed.days] == [
        sum(row["total_pages"] for key, row in wanted[0].items() if key[0] == day.day) for day in computed.days
    ]
    assert [(day.customers, day.domains, day.kept) for day in computed.days] == [
        (sum(key[0] == day.day for key in wanted[0]), sum(key[0] == day.day for key in wanted[1]), 0)
        for day in computed.days
    ]
    # What the checks count, by another query, is the same.
    with database.engine.begin() as connection:
        for table in ("daily_job_stats", "daily_domain_stats"):
            found = check_sample(connection, table, seed="s", size=1000, first_day=DAY, last_day=last)
            assert (found.mismatches, found.compared) == ((), len(wanted[table == "daily_domain_stats"]))
        assert domains_that_do_not_add_up(connection, DAY, last) == []
