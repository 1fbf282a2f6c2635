"""A job that another program queued is claimed by the run that it is handed to, or fails with the reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.jobs.conftest import failures
from tests.integration.retention.seeds import execute, make_customer

if TYPE_CHECKING:
    import dagster as dg

    from tests.integration.jobs.conftest import RunJob
    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.integration


def queue(
    database: Database, job_id: str, config: dict[str, Any], *, status: str = "queued", customer: str = "acme",
    job_type: str = "full_crawl",
) -> None:  # fmt: skip
    """As another program does it: one INSERT."""
    found = database.value("SELECT id FROM customers WHERE slug = :slug", slug=customer)
    execute(
        database,
        """INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, config, status)
           VALUES (:job, :customer, 'shop.example', :type, CAST(:config AS jsonb), 'queued')""",
        job=job_id, customer=found or make_customer(database, customer), config=json.dumps(config), type=job_type,
    )  # fmt: skip
    if status != "queued":
        database.manager.update_job_status(job_id, "running")
        if status != "running":
            database.manager.update_job_status(job_id, status)


def job(database: Database, job_id: str = "q") -> dict[str, Any]:
    found = database.manager.get_job_from_postgres(job_id)
    assert found is not None
    return found


def test_it_is_claimed_and_crawled_and_its_record_has_the_plan_that_was_carried_out(
    database: Database, site: Site, run_job: RunJob, ephemeral: dg.DagsterInstance
) -> None:
    site.add("/", ["/a", "/b"])
    site.add("/a")
    site.add("/b")
    # In words that are not the plan's own: an unusual spelling of the url, few fields.
    queue(database, "q", {"urls": [site.url.replace("http", "HTTP") + "?utm_source=x"], "max_pages": 2})
    result = run_job(
        "crawl", plan_crawl={"urls": [site.url], "customer": "acme", "job_id": "q", "allow_private": True}
    )
    assert result.success, failures(result)
    done = job(database)
    assert (done["status"], done["finish_reason"], done["run_id"]) == ("completed", "max_pages", result.run_id)
    assert (done["config"]["urls"], done["config"]["max_pages"], done["config"]["concurrency"]) == ([site.url], 2, 16)
    run = ephemeral.get_run_by_id(result.run_id)
    assert run is not None
    assert (run.tags["omniops/domain"], run.tags["omniops/job_id"]) == (f"127.0.0.1:{site.port}", "q")


def test_a_row_without_urls_takes_those_of_the_run(database: Database, site: Site, run_job: RunJob) -> None:
    site.add("/")
    queue(database, "q", {}, job_type="single_page")
    given = {"urls": [site.url], "customer": "acme", "job_id": "q", "allow_private": True}
    assert run_job("crawl", plan_crawl=given).success
    assert (job(database)["status"], job(database)["config"]["job_type"]) == ("completed", "single_page")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"urls": ["ftp://shop.example/"]}, "ftp"),
        ({"urls": ["http://site.omniops.invalid/"]}, "site.omniops.invalid"),
        ({"urls": ["http://169.254.169.254/"]}, "169.254.169.254"),
        ({"urls": ["http://127.0.0.1/"], "allow_private": True}, "allow_private"),
        ({"urls": "http://shop.example/"}, "a list"),
        ({"urls": [7]}, "a list"),
        ({"urls": ["http://shop.example/"], "max_pages": "many"}, "max_pages is 'many'"),
        ({"urls": ["http://shop.example/"], "max_pages": -4}, "max_pages is -4"),
        ({"urls": ["http://shop.example/"], "include": ["docs"]}, "docs"),
    ],
)
def test_what_cannot_be_crawled_as_it_stands_fails_with_the_reason_and_waits_no_longer(
    config: dict[str, Any], words: str, database: Database, run_job: RunJob
) -> None:
    queue(database, "q", config)
    urls = config["urls"] if isinstance(config["urls"], list) and isinstance(config["urls"][0], str) else []
    result = run_job("crawl", plan_crawl={"urls": urls, "customer": "acme", "job_id": "q"})
    assert words in failures(result)["plan_crawl"]
    failed = job(database)
    assert (failed["status"], failed["finish_reason"]) == ("failed", "error")
    assert words in failed["error_message"]
    assert database.value("SELECT count(*) FROM crawl_frontier") == 0


def test_an_order_for_something_else_leaves_the_job_as_it_is(database: Database, site: Site, run_job: RunJob) -> None:
    site.add("/")
    queue(database, "q", {"urls": [site.url]})
    make_customer(database, "globex")
    for order, words in (
        ({"urls": [site.url], "customer": "globex"}, "another customer"),
        ({"urls": [f"{site.url}other"], "customer": "acme"}, "not for"),
    ):
        result = run_job("crawl", plan_crawl={**order, "job_id": "q", "allow_private": True})
        assert words in failures(result)["plan_crawl"]
        assert (job(database)["status"], job(database)["run_id"]) == ("queued", None)
    assert sum(site.requests.values()) == 0


def test_a_paused_job_whose_host_is_away_for_a_moment_stays_paused(database: Database, run_job: RunJob) -> None:
    url = "http://site.omniops.invalid/"
    queue(database, "q", {"urls": [url]}, status="paused")
    result = run_job("crawl", plan_crawl={"urls": [url], "customer": "acme", "job_id": "q"})
    assert "site.omniops.invalid" in failures(result)["plan_crawl"]
    assert job(database)["status"] == "paused"


def test_a_job_that_a_run_makes_for_itself_never_looks_as_if_it_waited_for_one(
    database: Database, site: Site, run_job: RunJob
) -> None:
    site.add("/")
    # The trigger tells of each row as it is inserted, before anything else can be said of it.
    owner = connect_as_owner(database)
    with owner.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE seen (run_id text)")
        connection.exec_driver_sql("GRANT INSERT ON seen TO omniops, service_role")
        connection.exec_driver_sql(
            "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO public.seen VALUES (NEW.run_id); RETURN NEW; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER see AFTER INSERT ON scrape_jobs FOR EACH ROW EXECUTE FUNCTION see()"
        )
    result = run_job("crawl", plan_crawl={"urls": [site.url], "customer": "acme", "allow_private": True})
    assert result.success
    with owner.connect() as connection:
        assert connection.exec_driver_sql("SELECT run_id FROM seen").scalars().all() == [result.run_id]
    owner.dispose()


def connect_as_owner(database: Database) -> Any:
    from sqlalchemy import create_engine

    from resources.postgres.connection import driver_url

    return create_engine(driver_url(database.owner_url))
