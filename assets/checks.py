"""Checks of what the tables hold; each says what it means and what to do.

They look at the tables as they are, whoever wrote them, so they stand at external assets as well; the job `reports`
runs them all, and the UI any of them. What is asked is in `resources.postgres.reports.quality`.

Severity: an *error* is something that must not be, whatever was crawled; a *warning* is something that a person
should look at. Two checks are blocking, those of `scrape_job_results`: where its rows belong to nobody or to another
customer, daily statistics made from it would be wrong and would be frozen, so they wait. No other one blocks, since
the reports downstream are what explains a failure.

No `from __future__ import annotations`: Dagster reads the annotations of checks.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import dagster as dg
from sqlalchemy import Connection

from assets.html import Table, as_markdown_table
from assets.publish import snapshot
from resources.postgres.catalogue import POLICIES, TABLES
from resources.postgres.reports import quality, retention_audit
from resources.postgres.reports.quality import FIELD_BOUNDS, MIN_PAGES, UnusualCrawl, Violations
from resources.postgres.reports.retention_forecast import tables_by_age
from resources.postgres.resource import PostgresResource
from resources.postgres.retention import REMOVABLE

_BLOCKING: Final = frozenset({"scrape_job_results"})

# Tables whose rows a policy's predicate finds by their own age; what goes with a parent is the parent's.
AGED_TABLES: Final = tuple(table for policy in REMOVABLE for table in tables_by_age(policy))
TENANT_TABLES: Final = tuple(sorted({key.child for key in quality.parent_keys()}))


def _result(
    violations: Violations, asset: str, name: str, *, severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
) -> dg.AssetCheckResult:
    metadata: dict[str, Any] = {
        "violations": violations.count,
        "checked": violations.checked,
        "estimated": violations.estimated,
    }
    if violations.samples:
        metadata["samples"] = _records(violations.samples)
    return dg.AssetCheckResult(
        passed=violations.count == 0, asset_key=asset, check_name=name, severity=severity, metadata=metadata
    )


def _records(rows: "tuple[Any, ...] | list[Any]") -> dg.MarkdownMetadataValue:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = Table("Samples", columns, [[row.get(column) for column in columns] for row in rows])
    return dg.MetadataValue.md(as_markdown_table(table))


# --- audit trail -------------------------------------------------------------------------------------------------


@dg.asset_check(
    asset="scrape_job_results",
    blocking=True,
    description="Every result belongs to a job that is there. A foreign key forbids anything else, so a failure "
    "means that rows were changed around it (a restore, a superuser). To do: find out what did it; restore the jobs, "
    "or delete the results.",
)
def results_have_a_job(postgres: PostgresResource) -> dg.AssetCheckResult:
    """No result without its job."""
    with snapshot(postgres) as connection:
        return _result(quality.results_without_job(connection), "scrape_job_results", "results_have_a_job")


# --- tenancy -----------------------------------------------------------------------------------------------------

SAME_CUSTOMER: Final = "same_customer_as_parent"


@dg.multi_asset_check(
    name="tenancy_checks",
    specs=[
        dg.AssetCheckSpec(
            SAME_CUSTOMER,
            asset=table,
            blocking=table in _BLOCKING,
            description="Every row belongs to the same customer as "
            + " and ".join(sorted({key.parent for key in quality.parent_keys() if key.child == table}))
            + ", which it refers to. A composite foreign key forbids anything else, so a failure means that rows "
            "were changed around it, and that a customer may see another's data. To do: stop what writes the table, "
            "find the rows in the samples, and restore them.",
        )
        for table in TENANT_TABLES
    ],
    can_subset=True,
)
def tenancy_checks(
    context: dg.AssetCheckExecutionContext, postgres: PostgresResource
) -> Iterator[dg.AssetCheckResult]:
    """No row of another customer than its parent's, table by table."""
    yield from _each_selected(context, postgres, quality.children_of_other_tenants)


def _each_selected(
    context: dg.AssetCheckExecutionContext,
    postgres: PostgresResource,
    look: Callable[[Connection, str], Violations],
) -> Iterator[dg.AssetCheckResult]:
    for key in sorted(context.selected_asset_check_keys):
        table = key.asset_key.to_user_string()
        with snapshot(postgres) as connection:
            found = look(connection, table)
        yield _result(found, table, key.name)


# --- retention ---------------------------------------------------------------------------------------------------

WITHIN_POLICY: Final = "kept_no_longer_than_policy"


@dg.multi_asset_check(
    name="retention_checks",
    specs=[
        dg.AssetCheckSpec(
            WITHIN_POLICY,
            asset=table,
            description=f"No row is kept longer than its policy says ({TABLES[table].retention.keeps}, and the "
            f"period of its schedule, {POLICIES[TABLES[table].policy].schedule}), unless a legal hold keeps it. By "
            "the predicate that removes. A failure means that a removal did not run, or failed. To do: see the runs "
            "of the policy in retention_report, and launch its cleanup job.",
        )
        for table in AGED_TABLES
    ],
    can_subset=True,
)
def retention_checks(
    context: dg.AssetCheckExecutionContext, postgres: PostgresResource
) -> Iterator[dg.AssetCheckResult]:
    """No row older than its policy, table by table."""
    yield from _each_selected(context, postgres, retention_audit.violations_of_table)


# --- content -----------------------------------------------------------------------------------------------------


@dg.asset_check(
    asset="website_content",
    description="Every page that one of the latest jobs calls a success is kept, with its text. A failure means that "
    "the assistant does not know pages that were read. To do: crawl them again; if it stays, look at the log of the "
    "job in the samples.",
)
def successes_have_content(postgres: PostgresResource) -> dg.AssetCheckResult:
    """No success without content."""
    with snapshot(postgres) as connection:
        return _result(quality.successes_without_content(connection), "website_content", "successes_have_content")


@dg.asset_check(
    asset="scraped_pages",
    description="Pages of the latest jobs have a title, a description, a language and a text, at least as often as "
    + ", ".join(f"{field} {bound:.0%}" for field, bound in FIELD_BOUNDS.items())
    + f" (of {MIN_PAGES} pages or more). A failure means that a site has changed or its pages are made by scripts. "
    "To do: look at some of its pages in a browser.",
)
def fields_are_extracted(postgres: PostgresResource) -> dg.AssetCheckResult:
    """Coverage of what is read from pages."""
    with snapshot(postgres) as connection:
        coverage = quality.field_coverage(connection)
    missing = coverage.missing()
    return dg.AssetCheckResult(
        passed=not missing,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "pages": coverage.pages,
            "below their bound": ", ".join(missing) or "none",
            **{f"pages with {field}": f"{share:.1%}" for field, share in coverage.shares.items()},
        },
    )


# --- crawls as usual ---------------------------------------------------------------------------------------------


@dg.asset_check(
    asset="scrape_job_stats",
    description="In the newest crawl of each site no more pages failed than its earlier crawls make usual (their "
    "median, three deviations and five points). A failure means that the site is down, blocks us or has changed. To "
    "do: look at the failed results of the job.",
)
def failure_rate_is_usual(postgres: PostgresResource) -> dg.AssetCheckResult:
    """The share of failed pages of each site's newest crawl."""
    with snapshot(postgres) as connection:
        crawls = quality.latest_failures(connection)
    return _as_usual(len(crawls), quality.unusual_crawls(crawls))


@dg.asset_check(
    asset="scrape_job_results",
    description="In the newest crawl of each site no more pages answered 4xx or 5xx than its earlier crawls make "
    "usual (their median, three deviations and five points). A failure means dead links, blocking or a broken site. "
    "To do: look at the results of the job by status code.",
)
def status_codes_are_usual(postgres: PostgresResource) -> dg.AssetCheckResult:
    """The shares of 4xx and 5xx of each site's newest crawl."""
    with snapshot(postgres) as connection:
        crawls = quality.latest_status_codes(connection)
    return _as_usual(len(crawls), quality.unusual_crawls(crawls))


def _as_usual(compared: int, unusual: list[UnusualCrawl]) -> dg.AssetCheckResult:
    metadata: dict[str, Any] = {"crawls compared": compared, "unusual": len(unusual)}
    if unusual:
        metadata["samples"] = _records([
            {
                "customer": found.customer, "domain": found.domain, "job_id": found.job_id, "what": found.what,
                "share": f"{found.share:.1%}", "usual up to": f"{found.bound:.1%}",
                "earlier crawls": found.compared_with,
            }
            for found in unusual[: quality.MAX_SAMPLES]
        ])  # fmt: skip
    return dg.AssetCheckResult(passed=not unusual, severity=dg.AssetCheckSeverity.WARN, metadata=metadata)


CHECKS: Final = (
    results_have_a_job,
    tenancy_checks,
    retention_checks,
    successes_have_content,
    fields_are_extracted,
    failure_rate_is_usual,
    status_codes_are_usual,
)
