"""The asset `crawl_performance_report`: how crawling went, by customer and website, against the time before.

It stands on the daily statistics alone. Their checks are blocking: where they find a wrong figure in the same run,
this report is not made.

No `from __future__ import annotations`: Dagster reads the annotations of assets.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
from pydantic import Field
from sqlalchemy import Connection

from assets.html import Report, Section, Table
from assets.plots import Series, Svg, bars
from assets.publish import WEEKLY, publish
from assets.specs import report_spec
from assets.statistics import TABLES, jobs_by_status, latency, pages_by_status
from resources.postgres.reports.crawl_performance import (
    Count,
    CrawlPerformance,
    InvalidPeriod,
    check_period,
    crawl_performance,
)
from resources.postgres.resource import PostgresResource

if TYPE_CHECKING:
    import pandas as pd

NAME: Final = "crawl_performance_report"

# A share of very few pages says nothing about a site.
_MIN_PAGES: Final = 20
_LARGEST: Final = 10

_NUMBERS: Final = (
    "pages", "successful", "failed", "skipped", "changed", "unchanged", "retries", "bytes", "jobs_completed",
    "jobs_failed", "active_seconds",
)  # fmt: skip


class PerformanceConfig(dg.Config):
    """Which time is reported on."""

    days: int = Field(
        default=30,
        description="Length of the period in days, 1 to 365, up to yesterday (UTC); it is compared with the time "
        "before, of the same length.",
    )


def sites_frame(performance: CrawlPerformance) -> "pd.DataFrame":
    """One row for each customer's site that was crawled in the period, with the figures of the time before beside.

    Shares are of all pages (changed: of the pages that were compared); they are missing where there is none.
    """
    import pandas as pd  # noqa: PLC0415 - loads for half a second, and no crawl needs it

    columns = ["customer", "domain", "current", "days", *_NUMBERS, "p50_ms", "p95_ms", "p99_ms", "worst_p95_ms"]
    both = pd.DataFrame.from_records(
        [[getattr(site, c) for c in columns] for site in performance.sites], columns=columns
    )
    latency = ["p50_ms", "p95_ms", "p99_ms", "worst_p95_ms"]
    both[latency] = both[latency].astype("float64")
    current = both["current"].astype(bool)
    frame = both[current].drop(columns="current").merge(
        both[~current][["customer", "domain", "pages", "failed", "p95_ms"]],
        on=["customer", "domain"], how="left", suffixes=("", "_before"),
    )  # fmt: skip
    frame["failed_share"] = share(frame["failed"], frame["pages"])
    frame["changed_share"] = share(frame["changed"], frame["changed"] + frame["unchanged"])
    frame["pages_per_second"] = ratio(frame["pages"], frame["active_seconds"])
    frame["failed_share_before"] = share(frame["failed_before"], frame["pages_before"])
    frame["pages_trend"] = trend(frame["pages"], frame["pages_before"])
    frame["p95_trend"] = trend(frame["p95_ms"], frame["p95_ms_before"])
    return frame.sort_values(["pages", "customer", "domain"], ascending=[False, True, True], ignore_index=True)


def ratio(part: "pd.Series[Any]", whole: "pd.Series[Any]") -> "pd.Series[Any]":
    """Missing where the whole is nothing."""
    return part / whole.where(whole > 0)


def share(part: "pd.Series[Any]", whole: "pd.Series[Any]") -> "pd.Series[Any]":
    """In percent; missing where the whole is nothing."""
    return 100 * ratio(part, whole)


def trend(now: "pd.Series[Any]", before: "pd.Series[Any]") -> "pd.Series[Any]":
    """Change in percent; missing where there was nothing before."""
    return 100 * (ratio(now, before) - 1)


def customers_frame(sites: "pd.DataFrame") -> "pd.DataFrame":
    """The sites' figures by customer. Latencies do not add up, and are left to the sites."""
    summed = sites.groupby("customer", as_index=False).agg(
        sites=("domain", "count"), pages=("pages", "sum"), failed=("failed", "sum"), changed=("changed", "sum"),
        unchanged=("unchanged", "sum"), active_seconds=("active_seconds", "sum"), bytes=("bytes", "sum"),
        pages_before=("pages_before", "sum"), failed_before=("failed_before", "sum"),
    )  # fmt: skip
    summed["failed_share"] = share(summed["failed"], summed["pages"])
    summed["failed_share_before"] = share(summed["failed_before"], summed["pages_before"])
    summed["changed_share"] = share(summed["changed"], summed["changed"] + summed["unchanged"])
    summed["pages_per_second"] = ratio(summed["pages"], summed["active_seconds"])
    summed["pages_trend"] = trend(summed["pages"], summed["pages_before"])
    return summed.sort_values(["pages", "customer"], ascending=[False, True], ignore_index=True)


_HEADINGS: Final = {
    "customer": "customer", "domain": "domain", "sites": "sites", "days": "days crawled", "pages": "pages",
    "failed": "failed", "skipped": "skipped", "failed_share": "failed %", "failed_share_before": "failed % before",
    "changed_share": "changed %", "pages_per_second": "pages/s", "p50_ms": "p50 ms", "p95_ms": "p95 ms",
    "p99_ms": "p99 ms", "worst_p95_ms": "p95 ms, worst day", "pages_trend": "pages, change %",
    "p95_trend": "p95, change %", "retries": "retries", "bytes": "bytes", "reason": "why", "code": "HTTP status",
}  # fmt: skip

_LATENCY_NOTE: Final = "Latencies are of the typical day: the median of the days' percentiles."


def _table(
    frame: "pd.DataFrame", columns: Sequence[str], title: str, *, empty: str = "None.", note: str = ""
) -> Table:
    shown = frame[list(columns)].rename(columns=_HEADINGS)
    for name in shown.columns:
        # Whole numbers that a missing value made fractions of.
        if shown[name].dtype == "float64" and name.endswith((" ms", "worst day")):
            shown[name] = shown[name].astype("Int64")
    return Table.from_frame(shown, title, empty=empty, note=note)


def report_of(performance: CrawlPerformance, database: str) -> Report:
    """The page, from what was read."""
    title = f"Crawling, {performance.first_day} to {performance.last_day} (UTC)"
    days = [day for day in performance.days if day.day >= performance.first_day]
    if not days:
        since = [
            Table("Days with rows and no statistics", ["day"], [[day] for day in performance.missing], empty="None.")
        ]
        return Report(
            NAME, title,
            [Section(
                "Nothing was crawled",
                "There are no daily statistics of these days. Start a crawl (job `crawl`), or, if days are listed "
                "below, compute their statistics: materialise daily_job_stats, or look why statistics_daily did not "
                "run.", since if performance.missing else [],
            )],
            database, {"pages": 0, "days without statistics": len(performance.missing)}, performance.at,
        )  # fmt: skip
    sites = sites_frame(performance)
    customers = customers_frame(sites)
    total = sites[["pages", "failed", "changed", "unchanged", "active_seconds"]].sum()
    pages_before = sum(d.successful + d.failed + d.skipped for d in performance.days if d.day < performance.first_day)
    figures: dict[str, object] = {
        "pages": int(total["pages"]),
        "pages in the time before": pages_before,
        "failed %": _rounded(100 * total["failed"] / total["pages"]) if total["pages"] else None,
        "changed %": _rounded(100 * total["changed"] / (total["changed"] + total["unchanged"]))
        if total["changed"] + total["unchanged"]
        else None,
        "pages/s": _rounded(total["pages"] / total["active_seconds"]) if total["active_seconds"] else None,
        "customers": len(customers),
        "sites": len(sites),
        "days without statistics": len(performance.missing),
    }
    return Report(
        NAME, title, [_overview(performance, customers), _sites(sites), _worst(sites), _why(performance)], database,
        figures, performance.at,
    )  # fmt: skip


def _rounded(value: float) -> float:
    return round(float(value), 2)


def _overview(performance: CrawlPerformance, customers: "pd.DataFrame") -> Section:
    days = [day for day in performance.days if day.day >= performance.first_day]
    text = f"Compared with the time before, as long as this one: from {performance.before} on."
    if performance.missing:
        text += (
            f" {len(performance.missing)} days have rows and no statistics, and are not in here: materialise their "
            "partitions of daily_job_stats."
        )
    return Section(
        "By customer",
        text,
        [
            _table(
                customers,
                ["customer", "sites", "pages", "pages_trend", "failed_share", "failed_share_before", "changed_share",
                 "pages_per_second", "bytes"],
                "Customers",
            )
        ],
        [pages_by_status(days), latency(days), jobs_by_status(days)],
    )  # fmt: skip


def _sites(sites: "pd.DataFrame") -> Section:
    return Section(
        "By site",
        "Every website that was crawled. Throughput is over the active time of the jobs that ended, pauses left out.",
        [
            _table(
                sites,
                ["customer", "domain", "days", "pages", "pages_trend", "failed_share", "failed_share_before",
                 "changed_share", "pages_per_second", "p50_ms", "p95_ms", "p99_ms", "p95_trend"],
                "Sites",
                note=_LATENCY_NOTE,
            )
        ],
    )  # fmt: skip


def _worst(sites: "pd.DataFrame") -> Section:
    known = sites[sites["pages"] >= _MIN_PAGES]
    slow = known[known["p95_ms"].notna()].sort_values(["p95_ms", "domain"], ascending=[False, True]).head(_LARGEST)
    failing = known[known["failed"] > 0].sort_values(["failed_share", "domain"], ascending=[False, True])
    return Section(
        "Worth a look",
        f"Of the sites with at least {_MIN_PAGES} pages. Slow sites are crawled more politely and take longer; a "
        "site that fails much has often begun to refuse the crawler, or has moved.",
        [
            _table(
                slow, ["customer", "domain", "pages", "p50_ms", "p95_ms", "worst_p95_ms", "p95_trend"],
                "Slowest sites", empty="No page was timed.", note=_LATENCY_NOTE,
            ),
            _table(
                failing.head(_LARGEST), ["customer", "domain", "pages", "failed", "failed_share",
                                         "failed_share_before", "retries"],
                "Sites that fail most", empty="No page failed.",
            ),
        ],
        [_bars_of((slow["domain"] + " (" + slow["customer"] + ")").tolist(), slow["p95_ms"].tolist(),
                  "p95 of the slowest sites", "ms")]
        if len(slow) else [],
    )  # fmt: skip


def _why(performance: CrawlPerformance) -> Section:
    reasons = _counts(performance.reasons, "reason")
    codes = _counts(performance.codes, "code")
    by_reason = reasons.groupby("reason")[["pages"]].sum().reset_index()
    by_reason = by_reason.sort_values(["pages", "reason"], ascending=[False, True])
    by_code = codes.groupby("code")[["pages"]].sum().reset_index().sort_values("code")
    plots = []
    if len(by_reason):
        top = by_reason.head(_LARGEST)
        plots.append(_bars_of(top["reason"].tolist(), top["pages"].tolist(), "Why pages failed or were skipped"))
    if len(by_code):
        plots.append(_bars_of(by_code["code"].tolist(), by_code["pages"].tolist(), "Pages by HTTP status"))
    return Section(
        "Why, and with which status",
        "Reasons of pages that failed or were skipped, and the status of every page that was answered.",
        [
            _table(by_reason, ["reason", "pages"], "Reasons", empty="Every page was read."),
            _table(by_code, ["code", "pages"], "HTTP status", empty="No page was answered."),
            _table(reasons.head(50), ["customer", "domain", "reason", "pages"], "Reasons by site", empty="None."),
        ],
        plots,
    )


def _counts(counts: Sequence[Count], what: str) -> "pd.DataFrame":
    import pandas as pd  # noqa: PLC0415 - as above

    return pd.DataFrame.from_records(
        [[c.customer, c.domain, c.what, c.pages] for c in counts], columns=["customer", "domain", what, "pages"]
    ).astype({"pages": "int64"})


def _bars_of(names: Sequence[str], values: Sequence[float], title: str, unit: str = "pages") -> Svg:
    return bars([str(name) for name in names], [Series(unit, [float(v) for v in values])], title=title, unit=unit)


def build_performance_report(connection: Connection, database: str, days: int) -> Report:
    """Read the last days and make the page."""
    return report_of(crawl_performance(connection, days), database)


@dg.multi_asset(
    name=NAME,
    specs=[
        report_spec(
            NAME,
            "How crawling went in the last weeks: pages, failures and their reasons, throughput, latency and change, "
            "by customer and site, against the time before. A page for people, in OMNIOPS_HOME/reports.",
            group="statistics",
            deps=TABLES,
            code=build_performance_report,
            freshness_policy=WEEKLY,
        )
    ],
)
def crawl_performance_report(config: PerformanceConfig, postgres: PostgresResource) -> dg.MaterializeResult[None]:
    """Read the daily statistics, and write the page.

    Raises:
        Failure: the days are out of range, the database cannot be used, or the page not be written.
    """
    try:
        days = check_period(config.days)
    except InvalidPeriod as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    return publish(postgres, lambda connection, database: build_performance_report(connection, database, days))


PERFORMANCE_ASSETS: Final = (crawl_performance_report,)
