"""The frontier: leases, takeover, fencing, budgets."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from resources.crawler.plan import CrawlPlan
from resources.crawler.urls import url_hash
from resources.postgres.connection import engine_for, is_connection_lost
from resources.postgres.frontier import (
    Batch,
    CrawlFrontier,
    FinishedUrl,
    FoundLink,
    FrontierUrl,
    PageContent,
    ProcessIdentity,
    WorkerReplaced,
    has_died,
    this_process,
)
from tests.support.crawling import make_job

if TYPE_CHECKING:
    from tests.support.databases import Database

pytestmark = pytest.mark.integration


@pytest.fixture
def frontier(database: Database) -> CrawlFrontier:
    make_job(database, "job", CrawlPlan(urls=("http://x/",)))
    return database.frontier("job")


def _urls(*paths: str) -> list[FrontierUrl]:
    return [FrontierUrl(url_hash(f"http://x{p}"), f"http://x{p}", 0) for p in paths]


def _done(url: FrontierUrl, **fields: object) -> FinishedUrl:
    return FinishedUrl(url.hash, url.url, url.depth, "success", **fields)  # type: ignore[arg-type]


def _link(path: str, depth: int = 1, skip: str | None = None) -> FoundLink:
    return FoundLink(url_hash(f"http://x{path}"), f"http://x{path}", depth, skip)


def test_seeds_are_entered_once(frontier: CrawlFrontier) -> None:
    assert frontier.seed(_urls("/a", "/b")) == 2
    assert frontier.seed(_urls("/b", "/c")) == 1


def test_two_workers_never_get_the_same_url(frontier: CrawlFrontier) -> None:
    frontier.seed(_urls(*(f"/{n}" for n in range(50))))
    first, second = frontier.register_worker(), frontier.register_worker()
    claimed = [frontier.claim(first, 30), frontier.claim(second, 30)]
    assert [len(part) for part in claimed] == [30, 20]
    assert len({url.hash for part in claimed for url in part}) == 50


def test_nearer_urls_are_claimed_first(frontier: CrawlFrontier) -> None:
    frontier.seed(_urls("/seed"))
    worker = frontier.register_worker()
    (seed,) = frontier.claim(worker, 1)
    frontier.commit(worker, Batch([_done(seed)], [_link("/deep", 2), _link("/near", 1)]), own_links=0)
    assert [url.url for url in frontier.claim(worker, 10)] == ["http://x/near", "http://x/deep"]


def test_a_commit_is_all_or_nothing(frontier: CrawlFrontier, database: Database) -> None:
    (seed,) = _urls("/")
    frontier.seed([seed])
    worker = frontier.register_worker()
    frontier.claim(worker, 1)
    broken = _done(seed)
    broken.status = "no such status"
    with pytest.raises(Exception, match="scrape_job_results_status_check"):
        frontier.commit(worker, Batch([broken], [_link("/a")]), own_links=10)
    assert database.value("SELECT count(*) FROM crawl_frontier") == 1
    assert database.value("SELECT done FROM crawl_frontier") is False


def test_writing_a_batch_again_changes_nothing(frontier: CrawlFrontier, database: Database) -> None:
    frontier.seed(_urls("/"))
    worker = frontier.register_worker()
    (seed,) = frontier.claim(worker, 1)
    batch = Batch([_done(seed, processing_time_ms=5)], [_link("/a")])
    first = frontier.commit(worker, batch, own_links=10)
    again = frontier.commit(worker, batch, own_links=10)
    assert (first.acknowledged, again.acknowledged) == ({seed.hash}, frozenset())
    assert database.value("SELECT total_pages FROM scrape_job_stats") == 1


def test_the_late_commit_of_a_replaced_worker_is_refused(frontier: CrawlFrontier, database: Database) -> None:
    frontier.seed(_urls("/"))
    late = frontier.register_worker(lease_seconds=-1)
    (url,) = frontier.claim(late, 1)
    assert frontier.take_over_dead_workers() == 1
    with pytest.raises(WorkerReplaced, match="took over"):
        frontier.commit(late, Batch([_done(url)]), own_links=0)
    with pytest.raises(WorkerReplaced):
        frontier.heartbeat(late)
    assert database.value("SELECT count(*) FROM scrape_job_results") == 0
    heir = frontier.register_worker()
    assert frontier.claim(heir, 10) == [url]


def test_a_worker_that_rests_learns_that_it_was_replaced(frontier: CrawlFrontier) -> None:
    late = frontier.register_worker(lease_seconds=-1)
    assert frontier.take_over_dead_workers() == 1
    with pytest.raises(WorkerReplaced):
        frontier.reserve_pages(late, 10, 100)
    with pytest.raises(WorkerReplaced):
        frontier.rest(late)


def test_urls_of_an_expired_lease_keep_the_others_until_they_are_taken_over(frontier: CrawlFrontier) -> None:
    frontier.seed(_urls("/"))
    frontier.claim(frontier.register_worker(lease_seconds=-1), 1)
    other = frontier.register_worker()
    assert frontier.anything_left(other)
    assert frontier.take_over_dead_workers() == 1
    assert len(frontier.claim(other, 10)) == 1


def test_what_a_frozen_worker_has_locked_is_free_before_long(frontier: CrawlFrontier, database: Database) -> None:
    frontier.seed(_urls("/", "/a"))
    engine = engine_for(database.url, idle_in_transaction_seconds=0.3)
    frozen = frontier.register_worker(lease_seconds=-1)
    with engine.connect() as connection:
        # As a commit that was frozen after its statement: all of its locks are held, and nobody says COMMIT.
        connection.execute(text("SELECT 1 FROM scrape_jobs FOR UPDATE"))
        connection.execute(text("SELECT 1 FROM crawl_frontier FOR UPDATE"))
        connection.execute(
            text("UPDATE omniops_meta.crawl_workers SET busy = true WHERE worker_id = :w"), {"w": frozen}
        )
        assert frontier.take_over_dead_workers() == 1
        heir = frontier.register_worker()
        assert frontier.reserve_pages(heir, 10, 100).granted == 10
        with pytest.raises(DBAPIError) as lost:
            connection.execute(text("SELECT 1"))
    assert is_connection_lost(lost.value)
    # Awake again it has a new connection, and hears the truth.
    with pytest.raises(WorkerReplaced):
        CrawlFrontier(engine, frontier.job_id, frontier._customer_id).heartbeat(frozen)


def test_a_live_worker_is_not_taken_over(frontier: CrawlFrontier) -> None:
    frontier.seed(_urls("/"))
    worker = frontier.register_worker()
    frontier.claim(worker, 1)
    assert frontier.take_over_dead_workers() == 0
    assert frontier.anything_left(frontier.register_worker())


def test_the_worker_of_a_dead_process_is_taken_over_before_its_lease_ends(
    frontier: CrawlFrontier, database: Database
) -> None:
    frontier.seed(_urls("/"))
    worker = frontier.register_worker()
    frontier.claim(worker, 1)
    child = subprocess.Popen([sys.executable, "-c", ""])
    started = psutil.Process(child.pid).create_time()
    child.wait()
    with database.engine.begin() as connection:
        connection.execute(
            text("UPDATE omniops_meta.crawl_workers SET pid = :pid, pid_started = :started"),
            {"pid": child.pid, "started": started},
        )
    assert frontier.take_over_dead_workers() == 1


def test_a_process_on_another_machine_is_not_judged() -> None:
    me = this_process()
    assert not has_died(me)
    assert not has_died(ProcessIdentity("elsewhere", 1, 0.0))
    assert has_died(ProcessIdentity(me.machine, me.pid, me.started - 100))


def test_pages_are_reserved_for_all_workers_together(frontier: CrawlFrontier) -> None:
    frontier.seed(_urls(*(f"/{n}" for n in range(20))))
    first, second = frontier.register_worker(), frontier.register_worker()
    assert frontier.reserve_pages(first, 6, 10).granted == 6
    assert frontier.reserve_pages(second, 6, 10).granted == 4
    assert frontier.reserve_pages(second, 6, 10).granted == 0
    urls = frontier.claim(first, 6)
    frontier.commit(first, Batch([_done(url) for url in urls[:2]]), own_links=0)
    assert frontier.reserve_pages(second, 6, 10).granted == 0
    frontier.release_worker(first)
    # Two are done, four are the second's: the first's other four are free again.
    assert frontier.reserve_pages(second, 6, 10).granted == 4


def test_a_worker_owns_no_more_links_than_it_wants(frontier: CrawlFrontier) -> None:
    frontier.seed(_urls("/"))
    worker = frontier.register_worker()
    (seed,) = frontier.claim(worker, 1)
    links = [_link(f"/{n}") for n in range(10)]
    done = frontier.commit(worker, Batch([_done(seed)], links), own_links=3)
    assert len(done.owned) == 3
    assert len(frontier.claim(worker, 100)) == 7


def test_an_adopted_url_of_another_worker_is_left_to_it(frontier: CrawlFrontier, database: Database) -> None:
    frontier.seed(_urls("/target", "/source"))
    other, worker = frontier.register_worker(), frontier.register_worker()
    (target,) = frontier.claim(other, 1)
    (source,) = frontier.claim(worker, 1)
    skipped = FinishedUrl(source.hash, source.url, 0, "skipped", skip_reason="redirect")
    done = frontier.commit(worker, Batch([skipped, _done(target, adopted=True)]), own_links=0)
    assert done.acknowledged == {source.hash}
    frontier.commit(other, Batch([_done(target)]), own_links=0)
    assert database.value("SELECT count(*) FROM scrape_job_results") == 2


def test_text_that_postgres_cannot_hold_is_cleaned_at_the_boundary(
    frontier: CrawlFrontier, database: Database
) -> None:
    frontier.seed(_urls("/"))
    worker = frontier.register_worker()
    (seed,) = frontier.claim(worker, 1)
    content = PageContent("x", "t\x00", "\ud800", None, "en", 200, 'W/"\udcff"', None, "hash", "a\x00b \udfff", 2)
    frontier.commit(worker, Batch([_done(seed, error_message="\x00", content=content)]), own_links=0)
    (page,) = database.rows("SELECT title, description, etag FROM scraped_pages")
    assert page == {"title": "t", "description": "?", "etag": 'W/"?"'}
    assert database.value("SELECT text FROM website_content") == "ab ?"


def test_unchanged_text_is_not_written_again(frontier: CrawlFrontier, database: Database) -> None:
    frontier.seed(_urls("/"))
    worker = frontier.register_worker()
    (seed,) = frontier.claim(worker, 1)
    content = PageContent("x", "T", None, None, "en", 200, None, None, "hash", "some words", 2)
    frontier.commit(worker, Batch([_done(seed, content=content)]), own_links=0)
    before = database.value("SELECT xmin::text FROM website_content")
    make_job(database, "second", CrawlPlan(urls=("http://x/",)))
    second = database.frontier("second")
    second.seed([seed])
    worker = second.register_worker()
    second.claim(worker, 1)
    second.commit(worker, Batch([_done(seed, content=content)]), own_links=0)
    assert database.value("SELECT xmin::text FROM website_content") == before
    assert database.value("SELECT last_job_id FROM scraped_pages") == "second"
    assert database.value("SELECT last_changed_at < last_seen_at FROM scraped_pages") is True
