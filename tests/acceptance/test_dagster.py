"""What Dagster loads and keeps: definitions, the Launchpad's form, runs, materialisations, failures."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
import yaml
from sqlalchemy import create_engine, text

from omniops_pipelines.definitions import build_defs, defs
from omniops_pipelines.instance import open_stack
from resources import stack
from resources.postgres.connection import driver_url
from resources.settings import PROJECT_ROOT
from tests.acceptance.program import assert_exact

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.acceptance

ASSETS = {"scraped_pages", "website_content", "scrape_jobs", "scrape_job_results", "scrape_job_stats"}
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture
def instance(database: Database, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """Dagster as the program has it, its storage in the test's database."""
    for name, value in database.environment(home).items():
        if name.startswith("OMNIOPS_"):
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("OMNIOPS_DAGSTER_DATABASE_URL", "")
    open_stack()
    with dg.DagsterInstance.get() as opened:
        yield opened
    os.environ.pop("DAGSTER_HOME", None)
    stack.release()


def run(instance: dg.DagsterInstance, **config: Any) -> dg.ExecuteInProcessResult:
    """Run the job in this process, with this configuration of its first op."""
    return defs.resolve_job_def("crawl").execute_in_process(
        run_config={"ops": {"plan_crawl": {"config": config}}, **QUIET}, instance=instance, raise_on_error=False
    )


def failure_of(result: dg.ExecuteInProcessResult, op: str = "plan_crawl") -> str:
    """The description of the `Failure` that the op raised."""
    (event,) = (event for event in result.all_events if event.is_step_failure)
    assert event.step_key == op
    data = event.step_failure_data.user_failure_data
    assert data is not None, event.step_failure_data.error
    assert data.description is not None
    return data.description


def test_the_definitions_load() -> None:
    dg.Definitions.validate_loadable(defs)
    assert {job.name for job in defs.get_repository_def().get_all_jobs()} >= {
        "crawl", "refresh", "retention", "cleanup_message_queue", "cleanup_scrape_jobs", "cleanup_conversations",
        "cleanup_analytics", "erase_customer", "statistics", "reports", "purge_runs", "embeddings",
        "reprocess", "cleanup_page_html",
    }  # fmt: skip
    assert {schedule.name for schedule in defs.get_repository_def().schedule_defs} >= {
        "message_queue_cleanup_daily", "scrape_jobs_cleanup_weekly", "conversations_retention_weekly",
        "analytics_retention_weekly", "statistics_daily", "reports_weekly", "retention_audit_monthly",
        "refresh_hourly", "purge_runs_weekly", "page_embeddings_daily", "page_html_cleanup_daily",
    }  # fmt: skip
    assert {spec.key.to_user_string() for spec in defs.resolve_all_asset_specs()} >= ASSETS


def test_loading_warns_of_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:omniops_pipelines", "-c",
         "import warnings\n"
         "with warnings.catch_warnings(record=True) as caught:\n"
         "    warnings.simplefilter('always')\n"
         "    from omniops_pipelines.definitions import defs\n"
         "    import dagster as dg\n"
         "    dg.Definitions.validate_loadable(defs)\n"
         "ours = [str(w.message) for w in caught if 'site-packages' not in w.filename]\n"
         "ours += [str(w.message) for w in caught if type(w.message).__name__ in "
         "('BetaWarning', 'PreviewWarning', 'SupersessionWarning')]\n"
         "print('\\n'.join(ours))"],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr.strip()) == ("", "")


def test_tests_and_tools_may_put_other_resources_in() -> None:
    from resources.postgres.resource import PostgresResource

    other = PostgresResource(database_url="postgresql://elsewhere/omniops")
    assert (build_defs({"postgres": other}).resources or {})["postgres"] is other


def test_only_the_urls_are_left_to_fill_in_and_every_field_is_described() -> None:
    from dagster._config.config_type import ConfigTypeKind

    schema = defs.resolve_job_def("crawl").run_config_schema.config_type
    ops = schema.fields["ops"].config_type
    config = ops.fields["plan_crawl"].config_type.fields["config"].config_type
    assert config.kind in (ConfigTypeKind.STRICT_SHAPE, ConfigTypeKind.PERMISSIVE_SHAPE)
    assert [name for name, field in config.fields.items() if field.is_required] == ["urls"]
    assert {name for name, field in config.fields.items() if not (field.description or "").strip()} == set()
    assert set(config.fields) == {
        "urls", "customer", "job_id", "job_type", "max_pages", "max_bytes", "max_depth", "max_seconds", "concurrency",
        "requests_per_minute", "include", "exclude", "respect_robots", "allow_private", "embed", "shards", "render",
        "keep_html_days",
    }  # fmt: skip


def test_what_the_launchpad_scaffolds_is_valid_once_the_urls_are_there() -> None:
    form = yaml.safe_load(
        """
        ops:
          plan_crawl:
            config:
              urls: [https://docs.example.com/]
              customer: default
              job_id: ""
              job_type: full_crawl
              max_pages: 1000
              include: []
              respect_robots: true
        """
    )
    assert dg.validate_run_config(defs.resolve_job_def("crawl"), form)


def test_a_run_leaves_its_job_its_tags_and_row_counts_of_every_asset(
    site: Site, database: Database, instance: dg.DagsterInstance
) -> None:
    site.add("/", ["/a", "/b", "/missing"])
    site.add("/a")
    site.add("/b")
    result = run(instance, urls=[site.url], customer="acme", job_id="kept", allow_private=True)
    assert result.success
    summary = result.output_for_node("complete_crawl")
    assert (summary["status"], summary["total_pages"], summary["failed_pages"]) == ("completed", 4, 1)
    job = database.manager.get_job_from_postgres("kept")
    assert job is not None
    assert (job["run_id"], job["customer"], job["finish_reason"]) == (result.run_id, "acme", "exhausted")
    kept = instance.get_run_by_id(result.run_id)
    assert kept is not None
    domain = f"127.0.0.1:{site.port}"
    assert {name: kept.tags.get(f"omniops/{name}") for name in ("job_id", "domain", "customer")} == {
        "job_id": "kept",
        "domain": domain,
        "customer": "acme",
    }
    counted = {}
    for name in ASSETS:
        event = instance.get_latest_materialization_event(dg.AssetKey(name))
        assert event is not None, name
        assert event.run_id == result.run_id
        metadata = event.asset_materialization.metadata
        counted[name] = metadata["dagster/row_count"].value
        assert (metadata["job_id"].value, metadata["customer"].value) == ("kept", "acme")
    assert counted == {
        "scraped_pages": 3,
        "website_content": 3,
        "scrape_jobs": 1,
        "scrape_job_results": 4,
        "scrape_job_stats": 1,
    }
    (output,) = (e for e in result.all_events if e.is_successful_output and e.step_key == "complete_crawl")
    shown = output.event_specific_data.metadata
    assert shown["total_pages"].value == 4
    assert shown["finish_reason"].value == "exhausted"
    assert_exact(database, "kept", [site.url, *(f"{site.url}{path}" for path in ("a", "b", "missing"))])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"urls": []}, "no url was given"),
        ({"urls": ["example.com"]}, "http"),
        ({"urls": ["ftp://example.com/"]}, "ftp"),
        ({"urls": ["http://site.omniops.invalid/"]}, "site.omniops.invalid"),
        ({"urls": ["http://169.254.169.254/latest/meta-data/"]}, "169.254.169.254"),
        ({"urls": ["{site}"], "allow_private": False}, "private"),
        ({"urls": ["{site}"], "customer": "No Slug"}, "No Slug"),
        ({"urls": ["{site}"], "max_pages": 0}, "max_pages is 0"),
        ({"urls": ["{site}"], "concurrency": 100_000}, "100000"),
        ({"urls": ["{site}"], "max_seconds": -1}, "max_seconds"),
        ({"urls": ["{site}"], "include": ["docs"]}, "docs"),
        ({"urls": ["{site}"], "shards": 33}, "shards"),
        ({"urls": ["{site}"], "job_id": "x" * 300}, "200"),
    ],
)
def test_a_bad_value_fails_the_run_with_a_clear_word_and_writes_nothing(
    config: dict[str, Any], words: str, site: Site, database: Database, instance: dg.DagsterInstance
) -> None:
    site.add("/")
    filled = {"allow_private": True, **config, "urls": [url.format(site=site.url) for url in config["urls"]]}
    result = run(instance, **filled)
    assert not result.success
    assert words in failure_of(result)
    assert database.value("SELECT count(*) FROM customers") == 0
    assert database.value("SELECT count(*) FROM scrape_jobs") == 0
    assert sum(site.requests.values()) == 0


def test_a_job_of_another_customer_is_refused_and_keeps_its_run(
    site: Site, database: Database, instance: dg.DagsterInstance
) -> None:
    site.add("/")
    first = run(instance, urls=[site.url], customer="acme", job_id="mine", allow_private=True)
    second = run(instance, urls=[site.url], customer="globex", job_id="mine", allow_private=True)
    assert first.success
    assert "another customer" in failure_of(second)
    assert database.value("SELECT run_id FROM scrape_jobs") == first.run_id
    assert database.value("SELECT count(*) FROM customers") == 1


def test_a_failed_run_leaves_its_job_failed_with_the_reason(
    site: Site, database: Database, instance: dg.DagsterInstance
) -> None:
    site.add("/")
    # It breaks inside the crawl: a constraint of the database that no page can meet.
    owner = create_engine(driver_url(database.owner_url))
    with owner.begin() as connection:
        connection.execute(text("ALTER TABLE scrape_job_results ADD CHECK (url NOT LIKE 'http://127.%')"))
    owner.dispose()
    result = run(instance, urls=[site.url], job_id="broken", allow_private=True)
    assert not result.success
    assert "broken" in failure_of(result, "crawl_pages[1]")
    job = database.manager.get_job_from_postgres("broken")
    assert job is not None
    assert (job["status"], job["finish_reason"]) == ("failed", "error")
    assert "check constraint" in (job["error_message"] or "")
    assert job["completed_at"] is not None
    assert database.value("SELECT count(*) FROM scrape_job_results") == 0
    assert database.value("SELECT count(*) FROM omniops_meta.crawl_workers") == 0


def test_a_finished_job_is_not_crawled_again(site: Site, database: Database, instance: dg.DagsterInstance) -> None:
    site.chain(10)
    first = run(instance, urls=[site.url], job_id="once", allow_private=True)
    assert first.success
    site.requests.clear()
    second = run(instance, urls=[site.url], job_id="once", allow_private=True)
    assert second.success
    assert sum(site.requests.values()) == 0
    assert second.output_for_node("complete_crawl")["total_pages"] == 10
    assert database.value("SELECT run_id FROM scrape_jobs") == first.run_id


def test_a_run_that_is_refused_needs_no_migrated_database(
    empty_database: Database, home: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("/")
    for name, value in empty_database.environment(home).items():
        if name.startswith("OMNIOPS_"):
            monkeypatch.setenv(name, value)
    with dg.DagsterInstance.ephemeral() as ephemeral:
        result = run(ephemeral, urls=[site.url], allow_private=True)
        assert "omniops migrate" in failure_of(result)
    stack.release()
    assert empty_database.value("SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'dagster')") == 0
