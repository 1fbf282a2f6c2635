"""The pure parts: growth, bloat, what is usual, what of a statement is shown, and the budget's setting."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.postgres.catalogue import POLICIES
from resources.postgres.reports.quality import Crawl, FieldCoverage, unusual_crawls, usual_bound
from resources.postgres.reports.retention_audit import allowed_delay
from resources.postgres.reports.sampling import Sampler
from resources.postgres.reports.slow_queries import MAX_TEXT, without_literals
from resources.postgres.reports.storage import days_to_full, heap_bloat, trend_per_day
from resources.postgres.retention import REMOVABLE
from resources.settings import DEFAULT_STORAGE_BUDGET_BYTES, InvalidSetting, Settings

_DAY = date(2026, 1, 1)


def _daily(values: list[float]) -> list[tuple[date, float]]:
    return [(_DAY + timedelta(days=n), value) for n, value in enumerate(values)]


def test_the_trend_is_the_slope_and_a_single_jump_does_not_move_it() -> None:
    assert trend_per_day(_daily([10.0 * n for n in range(30)])) == pytest.approx(10)
    jumped = [10.0 * n + (100_000 if n == 12 else 0) for n in range(30)]
    assert trend_per_day(_daily(jumped)) == pytest.approx(10)
    assert trend_per_day(_daily([5.0] * 10)) == 0
    assert trend_per_day(_daily([100.0 - n for n in range(10)])) == pytest.approx(-1)


def test_there_is_no_trend_of_less_than_two_days() -> None:
    assert trend_per_day([]) is None
    assert trend_per_day(_daily([7.0])) is None
    assert trend_per_day([(_DAY, 1.0), (_DAY, 2.0)]) is None


def test_days_to_full_count_from_what_is_left() -> None:
    assert days_to_full(60, 100, 4.0) == 10
    assert days_to_full(100, 100, None) == 0
    assert days_to_full(120, 100, -5.0) == 0
    assert days_to_full(60, 100, 0.0) is None
    assert days_to_full(60, 100, -1.0) is None
    assert days_to_full(60, 100, None) is None
    assert days_to_full(0, 10**12, 1.0) is None, "in ten years or more"


@settings(deadline=None)
@given(
    pages=st.integers(1, 10_000),
    rows=st.integers(1, 1_000_000),
    width=st.floats(1, 4_000),
)
def test_bloat_is_never_negative_and_never_more_than_the_heap(pages: int, rows: int, width: float) -> None:
    bloat = heap_bloat(pages * 8192, rows, width)
    assert bloat is not None
    assert 0 <= bloat < pages * 8192


def test_bloat_is_the_heap_where_no_row_is_left_and_unknown_where_statistics_and_rows_disagree() -> None:
    assert heap_bloat(0, 0, None) == 0
    assert heap_bloat(81_920, 0, None) == 81_920
    assert heap_bloat(81_920, 0, 40.0) is None
    assert heap_bloat(81_920, 500, None) is None
    # 8,168 bytes of a page hold 113 rows of 40 bytes, each with its 28 of headers and item pointer, aligned.
    assert heap_bloat(10 * 8192, 113 * 4, 40.0) == 6 * 8192
    # What a fillfactor leaves free is not lost.
    assert heap_bloat(10 * 8192, 56 * 10, 40.0, fillfactor=50) == 0


# --- crawls as usual ---------------------------------------------------------------------------------------------


def test_what_is_usual_follows_the_earlier_crawls_and_not_one_bad_one() -> None:
    assert usual_bound([0.01] * 10) == pytest.approx(0.06)
    assert usual_bound([0.01] * 9 + [1.0]) == pytest.approx(0.06)
    assert usual_bound([0.4, 0.42, 0.38, 0.41, 0.39]) > 0.45
    assert usual_bound([0.5, 0.9, 0.1, 0.7, 0.3]) == 1.0, "a site without a habit has no bound"


def test_without_a_history_only_a_crawl_that_mostly_fails_is_unusual() -> None:
    assert usual_bound([]) == usual_bound([0.0, 0.0]) == 0.5


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=30))
def test_the_bound_is_a_share_above_the_median(history: list[float]) -> None:
    bound = usual_bound(history)
    assert 0 < bound <= 1
    if len(history) >= 3:
        assert bound >= min(1.0, sorted(history)[(len(history) - 1) // 2])


def _crawls(domain: str, shares: list[float], pages: int = 100) -> list[Crawl]:
    return [Crawl("acme", domain, f"{domain}-{n}", pages, {"failed": share}) for n, share in enumerate(shares)]


def test_only_the_newest_crawl_of_a_site_is_judged_and_the_worst_comes_first() -> None:
    found = unusual_crawls(
        [
            *_crawls("a", [0.2, 0.01, 0.01, 0.01]),
            *_crawls("b", [0.9, 0.01, 0.01, 0.01]),
            *_crawls("was-bad", [0.01, 0.9, 0.01, 0.01]),
            *_crawls("too-small", [1.0, 0.0, 0.0, 0.0], pages=19),
        ]
    )
    assert [(one.domain, one.job_id) for one in found] == [("b", "b-0"), ("a", "a-0")]
    assert found[0].compared_with == 3


def test_fields_are_judged_by_their_bound_and_not_on_a_few_pages() -> None:
    shares = {"title": 0.1, "description": 0.2, "lang": 0.2, "text": 0.9}
    assert FieldCoverage(100, shares).missing() == {"title": 0.1, "lang": 0.2}
    assert FieldCoverage(19, shares).missing() == {}


# --- statements --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT * FROM t WHERE id = $1 AND name = $2", "SELECT * FROM t WHERE id = $1 AND name = $2"),
        ("SELECT 'it''s secret', 42, 1.5e3", "SELECT ?, ?, ?"),
        (r"ALTER ROLE x PASSWORD E'se\'cret' VALID", "ALTER ROLE x PASSWORD ? VALID"),
        (r"SELECT 'C:\', 'secret'", "SELECT ?, ?"),
        ("DO $$ BEGIN secret; END $$", "DO ?"),
        ("SELECT $tag$ secret $$ still $tag$, 1", "SELECT ?, ?"),
        ("SELECT 1 /* jane@example.org */ -- and 'more'\n+ 2", "SELECT ? + ?"),
        ('SELECT "it\'s a name" FROM "t1"', 'SELECT "it\'s a name" FROM "t1"'),
        ("SET x = 'cut off in the mid", "SET x = ?"),
        ("DO $$ cut off", "DO ?"),
        ("SELECT   a\n\tFROM t2", "SELECT a FROM t2"),
    ],
)
def test_a_statement_is_shown_without_its_literals(statement: str, shown: str) -> None:
    assert without_literals(statement) == shown


def test_a_long_statement_is_cut() -> None:
    shown = without_literals("SELECT " + "a, " * 1000)
    assert len(shown) == MAX_TEXT
    assert shown.endswith("…")


@settings(deadline=None)
@given(st.text(alphabet="ab'\"$\\/*-\n1 ", max_size=60), st.text(alphabet="xyz", min_size=3, max_size=6))
def test_whatever_stands_in_quotes_is_not_shown(before: str, secret: str) -> None:
    # The text before may itself leave a quote open; then more is hidden, never less.
    if any(c in before for c in "'\"$/-\\"):
        before = before.translate(str.maketrans("", "", "'\"$/-\\"))
    assert secret not in without_literals(f"{before} = '{secret}' AND 1")


# --- bounds ------------------------------------------------------------------------------------------------------


def test_a_small_table_is_read_and_a_large_one_sampled() -> None:
    sampler = Sampler({"small": 1_000, "large": 10_000_000}, max_rows=100_000)
    assert sampler.clause("small") == ""
    assert sampler.clause("unknown") == ""
    assert sampler.clause("large") == "TABLESAMPLE SYSTEM (1.000000)"
    assert sampler.scaled("large", 12) == 1_200
    assert sampler.scaled("small", 12) == 12


def test_every_policy_that_removes_has_a_period() -> None:
    assert allowed_delay("message_queue") < timedelta(days=2)
    assert all(allowed_delay(policy) > timedelta(days=1) for policy in REMOVABLE)
    for policy in set(POLICIES) - set(REMOVABLE):
        with pytest.raises(ValueError, match="no period"):
            allowed_delay(policy)


def test_the_budget_is_a_number_of_bytes() -> None:
    assert Settings.from_environment({}).storage_budget_bytes == DEFAULT_STORAGE_BUDGET_BYTES
    given_ = {"OMNIOPS_STORAGE_BUDGET_BYTES": " 123456 "}
    assert Settings.from_environment(given_).storage_budget_bytes == 123456


@pytest.mark.parametrize("value", ["10GB", "-1", "0", "1.5", "1e9", "٣", "9" * 30])
def test_a_budget_that_is_no_number_of_bytes_is_refused_in_words(value: str) -> None:
    with pytest.raises(InvalidSetting, match=r"OMNIOPS_STORAGE_BUDGET_BYTES is .* must be a number of bytes"):
        Settings.from_environment({"OMNIOPS_STORAGE_BUDGET_BYTES": value})
