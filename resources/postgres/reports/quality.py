"""What has to be true of the rows: the questions behind the asset checks.

Each question is a set of rows that should not be there, read in bounded cost: by index, by the latest jobs, or on a
sample of a large table. Whether the newest crawl of a site is as usual is decided by a pure function of numbers
(`usual_bound`); what it needs is read here.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from resources.postgres.catalogue import TABLES
from resources.postgres.models import metadata
from resources.postgres.reports.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

MAX_SAMPLES: Final = 20

# The latest crawls are what somebody can still act on.
LATEST_JOBS: Final = 20
LATEST_DAYS: Final = 7

# Of each job: the first by url.
_RESULTS_OF_A_JOB: Final = 2_000


@dataclass(frozen=True, slots=True)
class Violations:
    """Rows that should not be there.

    Attributes:
        checked: rows (or jobs) that were looked at.
        count: how many are wrong; of a sample, where it is `estimated`, scaled to the table.
        samples: some of them, as columns by name; keys, no personal data.
        estimated: True if only a sample of the table was read.
    """

    checked: int
    count: int
    samples: tuple[Mapping[str, Any], ...] = ()
    estimated: bool = False


# --- audit -------------------------------------------------------------------------------------------------------


def results_without_job(connection: Connection) -> Violations:
    """Results whose job is not there.

    The primary key begins with the job, so that the jobs that have results are found by a jump from one to the next,
    however many results each has.
    """
    row = connection.execute(
        text("""
            WITH RECURSIVE jobs (job_id) AS (
                (SELECT r.job_id FROM scrape_job_results AS r ORDER BY r.job_id LIMIT 1)
                UNION ALL
                SELECT (SELECT r.job_id FROM scrape_job_results AS r WHERE r.job_id > jobs.job_id
                        ORDER BY r.job_id LIMIT 1)
                FROM jobs WHERE jobs.job_id IS NOT NULL
            ), lost AS MATERIALIZED (
                SELECT jobs.job_id FROM jobs WHERE jobs.job_id IS NOT NULL
                  AND NOT EXISTS (SELECT 1 FROM scrape_jobs AS j WHERE j.job_id = jobs.job_id)
            )
            SELECT (SELECT count(*) FROM jobs WHERE job_id IS NOT NULL), (SELECT count(*) FROM lost),
                   ARRAY(SELECT l.job_id FROM lost AS l ORDER BY 1 LIMIT :samples)
        """),
        {"samples": MAX_SAMPLES},
    ).one()
    return Violations(row[0], row[1], tuple({"job_id": job_id} for job_id in row[2]))


# --- tenancy -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ParentKey:
    """A foreign key, with the tenants on both sides.

    Attributes:
        child: table that has the key.
        parent: table that it leads to.
        columns: of the child by those of the parent, the tenant left out where there is another.
        child_tenant: column of the child that says whose it is.
        parent_tenant: column of the parent.
    """

    child: str
    parent: str
    columns: tuple[tuple[str, str], ...]
    child_tenant: str
    parent_tenant: str


@cache
def parent_keys() -> tuple[ParentKey, ...]:
    """Every foreign key between two tables of tenants, from the models."""
    found = []
    for name in TABLES:
        child_tenant = TABLES[name].tenant_column
        for key in metadata.tables[name].foreign_key_constraints:
            parent = key.referred_table.name
            parent_tenant = TABLES[parent].tenant_column
            if child_tenant is None or parent_tenant is None:
                continue
            pairs = tuple((element.parent.name, element.column.name) for element in key.elements)
            own = tuple(pair for pair in pairs if pair[0] != child_tenant) or pairs
            found.append(ParentKey(name, parent, own, child_tenant, parent_tenant))
    return tuple(sorted(found, key=lambda key: (key.child, key.parent)))


def children_of_other_tenants(connection: Connection, table: str, *, max_rows: int | None = None) -> Violations:
    """Rows of a table whose parent is not there, or is another customer's.

    Args:
        connection: as the service.
        table: the child.
        max_rows: of a table of more rows than this, a sample of about so many is read.
    """
    sampler = Sampler.over(connection, [table]) if max_rows is None else Sampler.over(connection, [table], max_rows)
    keys = TABLES[table].row_key
    # A url is shown as its hash: it may name a person.
    shown = ", ".join(f"'md5_of_url', md5(x.{c})" if c == "url" else f"'{c}', x.{c}" for c in keys)
    checked = count = 0
    samples: list[Mapping[str, Any]] = []
    for key in (key for key in parent_keys() if key.child == table):
        joined = " AND ".join(f"p.{of_parent} = x.{of_child}" for of_child, of_parent in key.columns)
        present = " AND ".join(f"x.{of_child} IS NOT NULL" for of_child, _ in key.columns)
        row = connection.execute(
            text(f"""
                WITH read AS MATERIALIZED (
                    SELECT CASE WHEN p.{key.parent_tenant} IS DISTINCT FROM x.{key.child_tenant}
                                THEN jsonb_build_object({shown}, 'parent', '{key.parent}',
                                                        'customer_id', x.{key.child_tenant},
                                                        'parent_customer_id', p.{key.parent_tenant}) END AS wrong
                    FROM {table} AS x {sampler.clause(table)} LEFT JOIN {key.parent} AS p ON {joined}
                    WHERE {present}
                )
                SELECT (SELECT count(*) FROM read), (SELECT count(wrong) FROM read),
                       ARRAY(SELECT r.wrong FROM read AS r WHERE r.wrong IS NOT NULL LIMIT :samples)
            """),  # noqa: S608 - names of the models
            {"samples": MAX_SAMPLES},
        ).one()
        checked = max(checked, row[0])
        count += row[1]
        samples += row[2]
    return Violations(
        checked, sampler.scaled(table, count), tuple(samples[:MAX_SAMPLES]), estimated=sampler.share(table) < 1
    )


# --- content -----------------------------------------------------------------------------------------------------

# The latest jobs that have ended, by the index of finished jobs.
_LATEST: Final = """
    latest AS MATERIALIZED (
        SELECT j.job_id, j.customer_id, j.domain, coalesce(j.completed_at, j.created_at) AS ended_at
        FROM scrape_jobs AS j
        WHERE j.status IN ('completed', 'failed', 'cancelled')
          AND coalesce(j.completed_at, j.created_at) >= now() - make_interval(days => :days)
        ORDER BY coalesce(j.completed_at, j.created_at) DESC LIMIT :jobs
    )
"""


def successes_without_content(connection: Connection) -> Violations:
    """Results of the latest jobs that say `success`, of which no page or no text is kept."""
    row = connection.execute(
        text(f"""
            WITH {_LATEST}, successes AS MATERIALIZED (
                SELECT l.job_id, l.customer_id, r.url FROM latest AS l CROSS JOIN LATERAL (
                    SELECT r.url FROM scrape_job_results AS r WHERE r.job_id = l.job_id AND r.status = 'success'
                    ORDER BY r.url LIMIT :results) AS r
            ), lacking AS MATERIALIZED (
                SELECT s.job_id, p.id, md5(s.url) AS url FROM successes AS s
                LEFT JOIN scraped_pages AS p ON p.customer_id = s.customer_id AND p.url = s.url
                LEFT JOIN website_content AS w ON w.page_id = p.id
                WHERE w.page_id IS NULL
            )
            SELECT (SELECT count(*) FROM successes), (SELECT count(*) FROM lacking),
                   ARRAY(SELECT jsonb_build_object('job_id', w.job_id, 'page_id', w.id, 'md5_of_url', w.url)
                         FROM lacking AS w ORDER BY w.job_id, w.url LIMIT :samples)
        """),  # noqa: S608 - constants of this module
        {"days": LATEST_DAYS, "jobs": LATEST_JOBS, "results": _RESULTS_OF_A_JOB, "samples": MAX_SAMPLES},
    ).one()
    return Violations(row[0], row[1], tuple(row[2]))


# Shares of pages that have a field, below which something is wrong with the reading or the site. Few sites describe
# each page; a page without a title or a text is rare.
FIELD_BOUNDS: Final[Mapping[str, float]] = {"title": 0.8, "description": 0.1, "lang": 0.3, "text": 0.8}

# Fewer pages say nothing about a site.
MIN_PAGES: Final = 20


@dataclass(frozen=True, slots=True)
class FieldCoverage:
    """How many pages of the latest jobs have each field.

    Attributes:
        pages: that were looked at.
        shares: by field, 1 being every page.
    """

    pages: int
    shares: Mapping[str, float]

    def missing(self) -> dict[str, float]:
        """Fields below their bound, with their share; none while there are too few pages to tell."""
        if self.pages < MIN_PAGES:
            return {}
        return {field: self.shares[field] for field, bound in FIELD_BOUNDS.items() if self.shares[field] < bound}


def field_coverage(connection: Connection) -> FieldCoverage:
    """Coverage of the fields that are read from pages, over the successes of the latest jobs."""
    row = connection.execute(
        text(f"""
            WITH {_LATEST}, pages AS (
                SELECT DISTINCT p.id, p.title, p.description, p.lang, w.word_count
                FROM latest AS l CROSS JOIN LATERAL (
                    SELECT r.url FROM scrape_job_results AS r WHERE r.job_id = l.job_id AND r.status = 'success'
                    ORDER BY r.url LIMIT :results) AS r
                JOIN scraped_pages AS p ON p.customer_id = l.customer_id AND p.url = r.url
                LEFT JOIN website_content AS w ON w.page_id = p.id
            )
            SELECT count(*), count(*) FILTER (WHERE title <> ''), count(*) FILTER (WHERE description <> ''),
                   count(*) FILTER (WHERE lang <> ''), count(*) FILTER (WHERE word_count > 0)
            FROM pages
        """),  # noqa: S608 - constants of this module
        {"days": LATEST_DAYS, "jobs": LATEST_JOBS, "results": _RESULTS_OF_A_JOB},
    ).one()
    pages = row[0]
    shares = {field: (n / pages if pages else 0.0) for field, n in zip(FIELD_BOUNDS, row[1:], strict=True)}
    return FieldCoverage(pages, shares)


# --- crawls as usual ---------------------------------------------------------------------------------------------

# Crawls of a site that are compared with its newest.
HISTORY_JOBS: Final = 10
_MIN_HISTORY: Final = 3
# Beside the spread of the earlier crawls: a site that never failed may fail a little.
_ALLOWANCE: Final = 0.05
# Where there is no history to compare with.
_BOUND_WITHOUT_HISTORY: Final = 0.5
# The median absolute deviation of a normal distribution is 0.6745 of its standard deviation.
_MAD_TO_DEVIATION: Final = 1.4826


def usual_bound(history: Sequence[float]) -> float:
    """The share up to which a crawl is as usual: the median of the earlier ones, three deviations and an allowance.

    Median and median absolute deviation do not move for one bad crawl among the earlier ones.

    Args:
        history: the same share in the earlier crawls, 0 to 1, in any order.
    """
    if len(history) < _MIN_HISTORY:
        return _BOUND_WITHOUT_HISTORY
    middle = statistics.median(history)
    spread = statistics.median(abs(share - middle) for share in history)
    return min(1.0, middle + 3 * _MAD_TO_DEVIATION * spread + _ALLOWANCE)


@dataclass(frozen=True, slots=True)
class UnusualCrawl:
    """A site's newest crawl that is worse than its earlier ones.

    Attributes:
        customer: slug.
        domain: of the site.
        job_id: the newest crawl.
        what: `failed`, `4xx` or `5xx`.
        share: of its pages.
        bound: up to which it would have been as usual.
        compared_with: number of earlier crawls.
    """

    customer: str
    domain: str
    job_id: str
    what: str
    share: float
    bound: float
    compared_with: int


@dataclass(frozen=True, slots=True)
class Crawl:
    """A crawl's figures, for the comparison; the newest of a site first."""

    customer: str
    domain: str
    job_id: str
    pages: int
    shares: Mapping[str, float]


def unusual_crawls(crawls: Sequence[Crawl]) -> list[UnusualCrawl]:
    """Sites whose newest crawl is outside of what their earlier crawls make usual.

    Args:
        crawls: of any number of sites; of each, the newest first. Those of fewer than `MIN_PAGES` pages are left out.
    """
    sites: dict[tuple[str, str], list[Crawl]] = {}
    for crawl in crawls:
        if crawl.pages >= MIN_PAGES:
            sites.setdefault((crawl.customer, crawl.domain), []).append(crawl)
    unusual = []
    for (customer, domain), (newest, *earlier) in sites.items():
        for what, share in newest.shares.items():
            bound = usual_bound([crawl.shares[what] for crawl in earlier])
            if share > bound:
                unusual.append(UnusualCrawl(customer, domain, newest.job_id, what, share, bound, len(earlier)))
    return sorted(unusual, key=lambda found: found.bound - found.share)


# Sites that had a crawl lately, and of each the newest crawls. Skips are no failures, and stand in no share.
_CRAWLS: Final = f"""
    WITH {_LATEST}, sites AS (
        SELECT DISTINCT l.customer_id, l.domain FROM latest AS l
    ), crawls AS (
        SELECT c.slug AS customer, s.domain, j.job_id, j.ended_at
        FROM sites AS s JOIN customers AS c ON c.id = s.customer_id CROSS JOIN LATERAL (
            SELECT j.job_id, coalesce(j.completed_at, j.created_at) AS ended_at FROM scrape_jobs AS j
            WHERE j.customer_id = s.customer_id AND j.domain = s.domain
              AND j.status IN ('completed', 'failed') AND j.job_type <> 'single_page'
            ORDER BY j.created_at DESC LIMIT :history + 1
        ) AS j
    )
"""  # noqa: S608 - constants of this module


def latest_failures(connection: Connection) -> list[Crawl]:
    """The share of failed pages in the newest and the earlier crawls of each site, from the jobs' counters."""
    rows = connection.execute(
        text(f"""
            {_CRAWLS}
            SELECT k.customer, k.domain, k.job_id, t.successful_pages + t.failed_pages AS pages,
                   t.failed_pages AS failed
            FROM crawls AS k JOIN scrape_job_stats AS t ON t.job_id = k.job_id
            ORDER BY k.customer, k.domain, k.ended_at DESC
        """),  # noqa: S608 - constants of this module
        {"days": LATEST_DAYS, "jobs": LATEST_JOBS, "history": HISTORY_JOBS},
    )
    return [
        Crawl(r.customer, r.domain, r.job_id, r.pages, {"failed": r.failed / r.pages if r.pages else 0.0})
        for r in rows
    ]


def latest_status_codes(connection: Connection) -> list[Crawl]:
    """The shares of 4xx and 5xx answers in the newest and the earlier crawls of each site.

    Of each crawl the first 2,000 results by url are read, so that the cost does not grow with the sites.
    """
    rows = connection.execute(
        text(f"""
            {_CRAWLS}
            SELECT k.customer, k.domain, k.job_id, a.pages, a.client, a.server
            FROM crawls AS k CROSS JOIN LATERAL (
                SELECT count(r.http_status) AS pages,
                       count(*) FILTER (WHERE r.http_status BETWEEN 400 AND 499) AS client,
                       count(*) FILTER (WHERE r.http_status >= 500) AS server
                FROM (SELECT r.http_status FROM scrape_job_results AS r WHERE r.job_id = k.job_id
                      ORDER BY r.url LIMIT :results) AS r
            ) AS a
            ORDER BY k.customer, k.domain, k.ended_at DESC
        """),  # noqa: S608 - constants of this module
        {"days": LATEST_DAYS, "jobs": LATEST_JOBS, "history": HISTORY_JOBS, "results": _RESULTS_OF_A_JOB},
    )
    return [
        Crawl(
            r.customer,
            r.domain,
            r.job_id,
            r.pages,
            {"4xx": r.client / max(r.pages, 1), "5xx": r.server / max(r.pages, 1)},
        )
        for r in rows
    ]
