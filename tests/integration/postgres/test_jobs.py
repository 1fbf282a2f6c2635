"""The audit trail of jobs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from resources.postgres.customers import InvalidSlug, ensure_customer
from resources.postgres.job_status import QUOTAS, STATUSES, TRANSITIONS, InvalidJobTransition, may_reopen
from resources.postgres.jobs import MAX_ERROR_MESSAGE, JobIdTaken, PersistentJobManager, UnknownJob, to_json
from resources.redis import RedisWithFallback
from resources.redis.keys import CRAWL_JOB, CRAWL_RESULTS

if TYPE_CHECKING:
    from tests.support.databases import Database

pytestmark = pytest.mark.integration


@pytest.fixture
def metadata(database: Database) -> dict[str, Any]:
    with database.engine.begin() as connection:
        customer_id = ensure_customer(connection, "acme")
    return {
        "customer_id": customer_id,
        "domain": "acme.example",
        "job_type": "full_crawl",
        "config": {"max_pages": 5},
    }


@pytest.fixture
def job_id(database: Database, metadata: dict[str, Any]) -> str:
    # Redis is shared by all tests, so ids are not.
    made = f"job-{uuid4()}"
    database.manager.create_job(made, {"asked_by": "test"}, metadata)
    return made


def test_a_job_is_created_queued_in_both_stores(database: Database, job_id: str) -> None:
    redis = RedisWithFallback(database.redis_url)
    job = database.manager.get_job_from_postgres(job_id)
    assert job is not None
    assert (job["status"], job["customer"], job["metadata"]) == ("queued", "acme", {"asked_by": "test"})
    assert redis.ttl(CRAWL_JOB.key(job_id)) in range(3500, 3601)
    assert database.manager.get_job(job_id) == job


def test_the_same_job_twice_is_one_and_another_one_is_refused(
    database: Database, job_id: str, metadata: dict[str, Any]
) -> None:
    again = database.manager.create_job(job_id, None, metadata)
    assert again["metadata"] == {"asked_by": "test"}
    with pytest.raises(JobIdTaken, match="another job"):
        database.manager.create_job(job_id, None, {**metadata, "domain": "other.example"})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"job_type": "weekly"}, "weekly"),
        ({"domain": ""}, "domain"),
        ({"customer_id": str(uuid4())}, "no customer"),
        ({"job_id": "another"}, "another"),
    ],
)
def test_a_malformed_job_is_refused_and_nothing_is_written(
    database: Database, metadata: dict[str, Any], change: dict[str, Any], word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        database.manager.create_job("bad", None, {**metadata, **change})
    assert database.value("SELECT count(*) FROM scrape_jobs") == 0


def test_status_moves_as_the_table_says_and_no_other_way(database: Database, metadata: dict[str, Any]) -> None:
    paths = {
        "queued": [],
        "running": ["running"],
        "paused": ["running", "paused"],
        "completed": ["running", "completed"],
        "failed": ["running", "failed"],
        "cancelled": ["cancelled"],
    }
    manager = database.manager
    for start, path in paths.items():
        for wanted in STATUSES:
            job_id = f"{start}-{wanted}-{uuid4()}"
            manager.create_job(job_id, None, metadata)
            for status in path:
                manager.update_job_status(job_id, status)
            if wanted == start or wanted in TRANSITIONS[start]:
                assert manager.update_job_status(job_id, wanted)["status"] == wanted
            else:
                with pytest.raises(InvalidJobTransition, match=f"is {start} and cannot become {wanted}"):
                    manager.update_job_status(job_id, wanted)


def test_the_database_has_the_same_table_of_transitions(database: Database) -> None:
    rows = database.rows(
        """SELECT a AS current, b AS wanted, scrape_job_may_move(a, b) AS may
           FROM unnest(CAST(:s AS text[])) AS a CROSS JOIN unnest(CAST(:s AS text[])) AS b""",
        s=list(STATUSES),
    )
    assert {(r["current"], r["wanted"]) for r in rows if r["may"]} == {
        (current, wanted) for current, following in TRANSITIONS.items() for wanted in following
    }


@pytest.mark.parametrize("quota", QUOTAS)
def test_a_raised_quota_is_the_one_way_out_of_completed(
    database: Database, metadata: dict[str, Any], quota: str
) -> None:
    manager, job_id = database.manager, f"job-{uuid4()}"
    manager.create_job(job_id, None, {**metadata, "config": {quota: 5}})
    manager.update_job_status(job_id, "running")
    manager.complete_job(job_id, quota)
    for config in (None, {}, {quota: 5}, {quota: 4}, {quota: "9"}, {quota: True}, {"max_depth": 9}):
        with pytest.raises(InvalidJobTransition):
            manager.update_job_status(job_id, "running", config=config)
    job = manager.update_job_status(job_id, "running", config={quota: 6})
    assert (job["status"], job["finish_reason"], job["completed_at"]) == ("running", None, None)
    # It is over for another reason now.
    manager.complete_job(job_id)
    with pytest.raises(InvalidJobTransition):
        manager.update_job_status(job_id, "running", config={quota: 7})


def test_the_database_reopens_the_same_jobs(database: Database) -> None:
    values = [None, 5, 6, 6.5, "7", True, [8], 2**50]
    for reason in (*QUOTAS, "exhausted", "cancelled", None):
        for before in values:
            for after in values:
                had = dict.fromkeys(QUOTAS, before)
                has = dict.fromkeys(had, after)
                answer = database.value(
                    "SELECT scrape_job_may_reopen(CAST(:reason AS text), CAST(:had AS jsonb), CAST(:has AS jsonb))",
                    reason=reason, had=to_json(had), has=to_json(has),
                )  # fmt: skip
                assert answer is may_reopen(reason, had, has), (reason, before, after)


def test_pauses_do_not_count_as_work(database: Database, job_id: str) -> None:
    manager = database.manager
    manager.update_job_status(job_id, "running")
    manager.add_job_results(job_id, [({"url": f"http://x/{n}"}, {"status": "success"}) for n in range(10)])
    manager.update_job_status(job_id, "paused")
    time.sleep(1.0)
    manager.update_job_status(job_id, "running")
    manager.complete_job(job_id)
    job = manager.get_job_from_postgres(job_id)
    assert job is not None
    assert job["active_seconds"] < 0.9
    assert manager.get_job_stats(job_id).pages_per_second == pytest.approx(10 / job["active_seconds"], rel=0.01)


def test_results_go_to_both_stores(database: Database, job_id: str) -> None:
    page = {"url": "http://x/a", "title": "A", "text": "words " * 20_000}
    result = {"status": "success", "http_status": 200, "processing_time_ms": 12, "content_hash": "h"}
    database.manager.add_job_result(job_id, page, result)
    (cached,) = database.manager.get_job_results(job_id)
    (kept,) = database.manager.get_job_results_from_postgres(job_id)
    assert (cached["title"], cached["status"], kept["http_status"]) == ("A", "success", 200)
    assert len(cached["text"]) == 32_000
    redis = RedisWithFallback(database.redis_url)
    assert redis.ttl(CRAWL_RESULTS.key(job_id)) in range(86_300, 86_401)


def test_a_result_again_replaces_the_first(database: Database, job_id: str) -> None:
    for status in ("failed", "success"):
        database.manager.add_job_result(job_id, {"url": "http://x/a"}, {"status": status})
    stats = database.manager.get_job_stats(job_id)
    assert (stats.total_pages, stats.successful_pages, stats.failed_pages) == (1, 1, 0)


@pytest.mark.parametrize(
    ("result", "word"),
    [
        ({"url": "http://x/", "status": "fine"}, "fine"),
        ({"status": "success"}, "no url"),
        ({"url": "http://x/" + "y" * 65_536, "status": "success"}, "2048"),
        ({"url": "http://x/\x00", "status": "success"}, "NUL"),
        ({"url": "http://x/", "status": "success", "processing_time_ms": -1}, "negative"),
    ],
)
def test_a_malformed_result_is_refused_with_its_whole_batch(
    database: Database, job_id: str, result: dict[str, Any], word: str
) -> None:
    good = ({"url": "http://x/good"}, {"status": "success"})
    with pytest.raises(ValueError, match=word):
        database.manager.add_job_results(job_id, [good, ({}, result)])
    assert database.manager.get_job_results_from_postgres(job_id) == []


def test_a_long_or_dirty_message_is_kept_in_its_essence(database: Database, job_id: str) -> None:
    database.manager.update_job_status(job_id, "running")
    job = database.manager.fail_job(job_id, "start\x00" + "x" * 10_000_000 + "\ud800 end")
    assert len(job["error_message"]) < MAX_ERROR_MESSAGE + 100
    assert job["error_message"].startswith("start")
    assert job["error_message"].endswith("? end")


def test_an_unknown_job_is_named(database: Database) -> None:
    manager = database.manager
    assert manager.get_job(f"nowhere-{uuid4()}") is None
    for call in (
        lambda: manager.update_job_status("nowhere", "running"),
        lambda: manager.add_job_result("nowhere", {"url": "http://x/"}, {"status": "success"}),
    ):
        with pytest.raises(UnknownJob, match="nowhere"):
            call()


def test_results_are_read_in_pages_that_miss_and_repeat_nothing(database: Database, job_id: str) -> None:
    urls = [f"http://x/{n:04}" for n in range(250)]
    database.manager.add_job_results(job_id, [({"url": url}, {"status": "success"}) for url in urls])
    read: list[str] = []
    after = None
    while page := database.manager.get_job_results_from_postgres(job_id, after_url=after, limit=100):
        read += [row["url"] for row in page]
        after = page[-1]["url"]
    assert read == urls


def test_everything_works_without_redis(database: Database, metadata: dict[str, Any]) -> None:
    manager = PersistentJobManager(database.engine, RedisWithFallback("redis://127.0.0.1:1/0"))
    job_id = f"job-{uuid4()}"
    manager.create_job(job_id, None, metadata)
    manager.update_job_status(job_id, "running")
    manager.add_job_result(job_id, {"url": "http://x/"}, {"status": "success"})
    job = manager.get_job(job_id)
    assert job is not None
    assert job["status"] == "running"
    assert [result["url"] for result in manager.get_job_results(job_id)] == ["http://x/"]
    assert manager.get_job_stats(job_id).total_pages == 1


@pytest.mark.parametrize("slug", ["", "Acme", "a b", "-a", "a-", "x" * 64, "ä", "a;drop"])
def test_a_bad_slug_makes_no_customer(database: Database, slug: str) -> None:
    with pytest.raises(InvalidSlug), database.engine.begin() as connection:
        ensure_customer(connection, slug)
    assert database.value("SELECT count(*) FROM customers") == 0


def test_separators_in_a_value_do_not_shift_the_others(database: Database, job_id: str) -> None:
    batch = [
        ({"url": "http://x/a"}, {"status": "failed", "error_message": "one\x1ftwo\x1ethree", "content_hash": None}),
        ({"url": "http://x/b"}, {"status": "skipped", "skip_reason": "robots_txt", "http_status": 200}),
        ({"url": "http://x/c"}, {"status": "success", "content_hash": "h\x1fh", "error_message": "\x1e"}),
    ]
    database.manager.add_job_results(job_id, batch)
    rows = database.manager.get_job_results_from_postgres(job_id)
    assert [(r["url"][-1], r["error_message"], r["skip_reason"], r["content_hash"]) for r in rows] == [
        ("a", "one two three", None, None),
        ("b", None, "robots_txt", None),
        ("c", " ", None, "h h"),
    ]
    assert rows[1]["http_status"] == 200
