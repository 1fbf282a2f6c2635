"""Each check passes on good rows and fails on bad ones, planted around what forbids them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from assets.checks import AGED_TABLES, CHECKS, SAME_CUSTOMER, TENANT_TABLES, WITHIN_POLICY
from assets.specs import asset_specs
from resources.postgres.catalogue import TABLES
from resources.postgres.connection import driver_url
from resources.postgres.models import metadata
from resources.postgres.reports import quality
from resources.postgres.reports.quality import parent_keys
from tests.integration.retention.seeds import execute, make_customer, make_job
from tests.support.crawling import crawl
from tests.support.rows import make_customer as make_full_customer

if TYPE_CHECKING:
    from collections.abc import Callable

    from resources.postgres.resource import PostgresResource
    from tests.support.databases import Database
    from tests.support.site import Site


def _run(postgres: PostgresResource, *names: tuple[str, str]) -> dict[tuple[str, str], dg.AssetCheckEvaluation]:
    """Run checks (asset, name) as the UI does, on the external assets."""
    keys = [dg.AssetCheckKey(dg.AssetKey(asset), name) for asset, name in names]
    defs = dg.Definitions(
        assets=asset_specs(),
        asset_checks=CHECKS,
        jobs=[
            dg.define_asset_job(
                "checks", selection=dg.AssetSelection.checks(*keys), executor_def=dg.in_process_executor
            )
        ],
        resources={"postgres": postgres},
    )
    result = defs.resolve_job_def("checks").execute_in_process(raise_on_error=False)
    # A blocking check that fails ends its step in failure, so that the run is seen.
    assert result.success or any(e.blocking and not e.passed for e in result.get_asset_check_evaluations())
    return {(e.asset_key.to_user_string(), e.check_name): e for e in result.get_asset_check_evaluations()}


def _one(postgres: PostgresResource, asset: str, name: str) -> dg.AssetCheckEvaluation:
    (evaluation,) = _run(postgres, (asset, name)).values()
    return evaluation


def test_every_table_with_a_parent_is_checked_for_its_customer() -> None:
    children = {
        table.name
        for table in metadata.tables.values()
        for key in table.foreign_key_constraints
        if TABLES[table.name].tenant_column and TABLES[key.referred_table.name].tenant_column
    }
    assert set(TENANT_TABLES) == children
    specs = {
        spec.asset_key.to_user_string()
        for check in CHECKS
        for spec in check.check_specs
        if spec.name == SAME_CUSTOMER
    }
    assert specs == children
    composite = {(key.child, key.parent) for key in parent_keys() if key.columns[0][0] != key.child_tenant}
    assert composite == {
        ("billing_events", "subscriptions"), ("conversation_metadata", "conversations"),
        ("crawl_frontier", "scrape_jobs"), ("customer_members", "user_accounts"), ("messages", "conversations"),
        ("page_embeddings", "scraped_pages"), ("scrape_job_results", "scrape_jobs"),
        ("scrape_job_stats", "scrape_jobs"), ("webhook_events", "webhook_endpoints"),
        ("website_content", "scraped_pages"),
    }  # fmt: skip


def test_a_row_of_another_customer_than_its_parents_is_found_whatever_the_pair(database: Database) -> None:
    """For every foreign key: a child given to another customer, and a child whose parent is gone."""
    with database.engine.begin() as connection:
        make_full_customer(connection)
        other = make_full_customer(connection)
    engine = create_engine(driver_url(database.admin_url), poolclass=NullPool)
    with engine.connect() as connection:
        for key in parent_keys():
            with connection.begin() as clean:
                assert quality.children_of_other_tenants(connection, key.child).count == 0, key
                clean.rollback()
            for tenant in (other.customer_id, None):
                with connection.begin() as planted:
                    connection.execute(text("SET LOCAL session_replication_role = replica"))
                    if tenant is not None and key.parent != "customers":
                        connection.execute(
                            text(
                                f"UPDATE {key.child} SET {key.child_tenant} = :tenant "
                                f"WHERE {key.child_tenant} IS DISTINCT FROM :tenant"
                            ),
                            {"tenant": tenant},
                        )
                    else:
                        connection.execute(
                            text(f"DELETE FROM {key.parent} WHERE {key.parent_tenant} <> :kept"),
                            {"kept": other.customer_id},
                        )
                    found = quality.children_of_other_tenants(connection, key.child)
                    assert found.count >= 1, (key, tenant)
                    assert found.samples[0]["customer_id"] != found.samples[0]["parent_customer_id"]
                    planted.rollback()
    engine.dispose()


def test_the_tenancy_check_fails_with_samples_and_is_an_error(
    database: Database, postgres: PostgresResource, plant: Callable[..., None]
) -> None:
    with database.engine.begin() as connection:
        make_full_customer(connection)
        other = make_full_customer(connection)
    wanted = [("messages", SAME_CUSTOMER), ("orders", SAME_CUSTOMER)]
    assert all(e.passed for e in _run(postgres, *wanted).values())
    plant("UPDATE messages SET customer_id = :other WHERE customer_id <> :other", other=other.customer_id)
    found = _run(postgres, *wanted)
    failed = found["messages", SAME_CUSTOMER]
    assert not failed.passed
    assert failed.severity == dg.AssetCheckSeverity.ERROR
    assert failed.metadata["violations"].value == 1
    assert str(other.customer_id) in str(failed.metadata["samples"].value)
    assert found["orders", SAME_CUSTOMER].passed


def test_a_large_table_is_sampled_for_its_customers(database: Database, plant: Callable[..., None]) -> None:
    customer = make_customer(database, "acme")
    make_job(database, customer, "job", age_days=1, results=20_000)
    plant("ANALYZE scrape_job_results")
    plant("UPDATE scrape_job_results SET customer_id = gen_random_uuid()")
    with database.engine.connect() as connection:
        whole = quality.children_of_other_tenants(connection, "scrape_job_results")
        part = quality.children_of_other_tenants(connection, "scrape_job_results", max_rows=5_000)
    assert (whole.checked, whole.count, whole.estimated) == (20_000, 20_000, False)
    assert part.estimated
    assert part.checked < 10_000
    assert part.count == pytest.approx(20_000, rel=0.4)
    assert "md5_of_url" in part.samples[0]


def test_results_without_a_job_are_found(
    database: Database, postgres: PostgresResource, plant: Callable[..., None]
) -> None:
    customer = make_customer(database, "acme")
    check = ("scrape_job_results", "results_have_a_job")
    assert _one(postgres, *check).passed
    for job in ("a", "b", "c", "d"):
        make_job(database, customer, job, age_days=1, results=5)
    assert _one(postgres, *check).metadata["checked"].value == 4
    plant("DELETE FROM scrape_jobs WHERE job_id IN ('a', 'd')")
    failed = _one(postgres, *check)
    assert (failed.passed, failed.blocking, failed.metadata["violations"].value) == (False, True, 2)
    assert "| a |" in str(failed.metadata["samples"].value)


def test_a_success_without_content_is_found(database: Database, postgres: PostgresResource, site: Site) -> None:
    site.chain(12)
    crawl(database, site.url)
    execute(database, "UPDATE scrape_jobs SET status = 'completed', completed_at = now()")
    check = ("website_content", "successes_have_content")
    passed = _one(postgres, *check)
    assert (passed.passed, passed.metadata["checked"].value) == (True, 12)
    execute(database, "DELETE FROM website_content WHERE page_id = (SELECT min(page_id) FROM website_content)")
    execute(database, "DELETE FROM scraped_pages WHERE id = (SELECT max(id) FROM scraped_pages)")
    failed = _one(postgres, *check)
    assert not failed.passed
    assert failed.metadata["violations"].value == 2
    # An older job is nobody's business any more.
    execute(database, "UPDATE scrape_jobs SET completed_at = now() - interval '30 days'")
    assert _one(postgres, *check).metadata["checked"].value == 0


def test_pages_that_lose_their_fields_are_found(database: Database, postgres: PostgresResource, site: Site) -> None:
    for n in range(30):
        site.add(f"/p{n}", [f"/p{n + 1}"] if n < 29 else [], head="<meta name='description' content='About it.'>")
    site.pages["/"] = site.pages["/p0"]
    crawl(database, site.url)
    execute(database, "UPDATE scrape_jobs SET status = 'completed', completed_at = now()")
    check = ("scraped_pages", "fields_are_extracted")
    assert _one(postgres, *check).passed
    execute(database, "UPDATE scraped_pages SET title = NULL WHERE id % 2 = 0")
    failed = _one(postgres, *check)
    assert not failed.passed
    assert failed.severity == dg.AssetCheckSeverity.WARN
    assert failed.metadata["below their bound"].value == "title"
    execute(database, "UPDATE website_content SET word_count = 0, text = ''")
    assert _one(postgres, *check).metadata["below their bound"].value == "title, text"


def test_rows_kept_beyond_their_policy_fail_the_check_of_their_table(
    database: Database, postgres: PostgresResource
) -> None:
    wanted = [(table, WITHIN_POLICY) for table in AGED_TABLES]
    customer = make_customer(database, "acme")
    make_job(database, customer, "young", age_days=80)
    assert [key for key, e in _run(postgres, *wanted).items() if not e.passed] == []
    make_job(database, customer, "old", age_days=120)
    execute(
        database,
        "INSERT INTO daily_job_stats (day, customer_id) VALUES (current_date - 400, :c)",
        c=customer,
    )
    failed = {asset for (asset, _), e in _run(postgres, *wanted).items() if not e.passed}
    assert failed == {"scrape_jobs", "daily_job_stats"}


def _history(database: Database, domain: str, shares: list[tuple[int, int, int]]) -> None:
    """Crawls of a site, the oldest first: pages that were read, failed with 404, and with 503."""
    customer = database.value("SELECT id FROM customers WHERE slug = 'acme'") or make_customer(database, "acme")
    for number, (successes, client, server) in enumerate(shares):
        job = f"{domain}-{number}"
        make_job(database, customer, job, age_days=len(shares) - number)  # type: ignore[arg-type]
        execute(database, "UPDATE scrape_jobs SET domain = :d WHERE job_id = :j", d=domain, j=job)
        execute(
            database,
            """INSERT INTO scrape_job_results (job_id, customer_id, url, status, http_status)
               SELECT :j, :c, 'https://x/' || n, CASE WHEN n <= :ok THEN 'success' ELSE 'failed' END,
                      CASE WHEN n <= :ok THEN 200 WHEN n <= :ok + :client THEN 404 ELSE 503 END
               FROM generate_series(1, :ok + :client + :server) AS n""",
            j=job, c=customer, ok=successes, client=client, server=server,
        )  # fmt: skip


def test_a_crawl_that_fails_more_than_its_site_usually_does_is_found(
    database: Database, postgres: PostgresResource
) -> None:
    wanted = [("scrape_job_stats", "failure_rate_is_usual"), ("scrape_job_results", "status_codes_are_usual")]
    _history(database, "steady.example", [(98, 1, 1), (97, 2, 1), (98, 2, 0), (99, 0, 1), (97, 2, 1)])
    _history(database, "always-bad.example", [(60, 40, 0), (58, 42, 0), (61, 39, 0), (60, 40, 0), (59, 41, 0)])
    _history(database, "new.example", [(90, 10, 0)])
    _history(database, "tiny.example", [(5, 0, 0), (5, 0, 0), (5, 0, 0), (0, 5, 0)])
    assert [key for key, e in _run(postgres, *wanted).items() if not e.passed] == []
    _history(database, "broken.example", [(98, 2, 0), (99, 1, 0), (98, 2, 0), (97, 3, 0), (70, 5, 25)])
    _history(database, "dead.example", [(10, 90, 0)])
    found = _run(postgres, *wanted)
    assert not any(e.passed for e in found.values())
    shown = {key[1]: str(e.metadata["samples"].value) for key, e in found.items()}
    rates = shown["failure_rate_is_usual"]
    assert "broken.example-4" in rates
    assert "dead.example" in rates
    codes = shown["status_codes_are_usual"]
    broken = [line for line in codes.splitlines() if "broken.example" in line]
    assert len(broken) == 1, "5xx are unusual there, 4xx are not"
    assert "| 5xx | 25.0% |" in broken[0]
    for fine in ("steady.example", "always-bad.example", "new.example", "tiny.example"):
        assert fine not in rates + codes


def test_a_blocking_check_holds_back_what_is_computed_from_its_table(
    database: Database, postgres: PostgresResource, plant: Callable[..., None]
) -> None:
    @dg.asset(deps=["scrape_job_results"])
    def computed() -> None:
        """Stands for the daily statistics."""

    def attempt() -> Any:
        defs = dg.Definitions(
            assets=[*asset_specs(), computed],
            asset_checks=CHECKS,
            jobs=[
                dg.define_asset_job(
                    "compute",
                    selection=dg.AssetSelection.assets("computed")
                    | dg.AssetSelection.checks(
                        dg.AssetCheckKey(dg.AssetKey("scrape_job_results"), "results_have_a_job")
                    ),
                    executor_def=dg.in_process_executor,
                )
            ],
            resources={"postgres": postgres},
        )
        return defs.resolve_job_def("compute").execute_in_process(raise_on_error=False)

    customer = make_customer(database, "acme")
    make_job(database, customer, "a", age_days=1, results=5)
    assert attempt().success
    plant("DELETE FROM scrape_jobs")
    blocked = attempt()
    assert not blocked.success
    assert blocked.asset_materializations_for_node("computed") == []
