"""Assets of the group `retention`: whether the policies are kept, and what they will remove.

No `from __future__ import annotations`: Dagster reads the annotations of assets.
"""

from datetime import UTC
from typing import TYPE_CHECKING, Final

import dagster as dg
from sqlalchemy import Connection

from assets.html import Report, Section, Table
from assets.plots import Series, Svg, bars
from assets.publish import WEEKLY, publish
from assets.specs import report_spec
from resources.postgres.reports import retention_audit, retention_forecast
from resources.postgres.reports.retention_audit import HISTORY_DAYS, RetentionAudit
from resources.postgres.reports.retention_forecast import HORIZON_DAYS, Forecast
from resources.postgres.resource import PostgresResource

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    import pandas as pd

_ESTIMATE: Final = (
    "Rows of large tables are by Postgres's statistics (estimated: yes); those of small ones are counted."
)


def _frame(rows: "Iterable[object]", columns: list[str]) -> "pd.DataFrame":
    import pandas as pd  # noqa: PLC0415 - loads for half a second, and no crawl needs it

    return pd.DataFrame.from_records([[getattr(row, c) for c in columns] for row in rows], columns=columns)


# --- retention_report --------------------------------------------------------------------------------------------


def report_of_audit(audit: RetentionAudit, database: str) -> Report:
    """The page of an audit."""
    policies = _frame(
        audit.policies,
        ["policy", "keeps", "schedule", "last_success", "overdue", "runs_30", "failures_30", "removed_30",
         "removed_90", "last_failure", "last_error"],
    )  # fmt: skip
    runs = policies[["policy", "keeps", "schedule", "last_success", "overdue"]].rename(
        columns={"last_success": "last success"}
    )
    runs["failed, 30 d"] = [f"{policy.failures_30} of {policy.runs_30}" for policy in audit.policies]
    runs["removed, 30 d"] = policies["removed_30"]
    runs["removed, 90 d"] = policies["removed_90"]
    failed = policies[policies["last_failure"].notna()][["policy", "last_failure", "last_error"]]
    tables = _frame(
        audit.tables, ["policy", "table", "rows", "estimated", "oldest", "expired", "violations"]
    )  # fmt: skip
    by_row = ["policy", "table", "customer", "rows"]
    failures = int(policies["failures_30"].sum())
    return Report(
        "retention_report",
        "Retention: what was kept and what was removed",
        [
            Section(
                "Policies",
                "What each policy promises, when it ran last, and what it removed in the last 30 and 90 days. A "
                "policy is overdue when no run was completed within its period and some grace.",
                [
                    Table.from_frame(runs, "Policies and their runs"),
                    Table.from_frame(
                        failed.rename(columns={"last_failure": "last failure", "last_error": "what it said"}),
                        "Runs that failed", empty="None that is known.",
                    ),
                ],
                [_removed_plot(audit)],
            ),
            Section(
                "Violations",
                "Rows that were past their age before the last period began, by the very predicate that removes: a "
                "run should have taken them. Rows under a legal hold are none. To do: launch the policy's cleanup "
                "job and read why it left them.",
                [
                    Table.from_frame(
                        _frame(audit.violations, by_row), "Rows older than their policy",
                        empty="No row is older than its policy allows.",
                    ),
                    Table.from_frame(
                        _frame(audit.excused, by_row), "Excused: a hold was released within the period",
                        empty="None.",
                    ),
                ],
            ),
            Section(
                "Rows kept",
                "What is there now. Expired: what the next run removes. A table without an oldest row goes with its "
                "parent, or is empty.",
                [Table.from_frame(tables, "Tables under a policy", note=_ESTIMATE)],
            ),
            Section(
                "Legal holds and exceptions",
                "Nothing of a held customer is removed. A customer's configuration may keep conversations for "
                "another time.",
                [
                    Table.from_frame(
                        _frame(audit.held, ["customer", "holds", "since"]), "Customers under a legal hold",
                        empty="Nobody is.",
                    ),
                    Table(
                        "Customers' own retention of conversations", ["customer", "domain", "days"], audit.overrides
                    ),
                ],
            ),
            Section(
                "Requests of customers",
                f"Exports, erasures and holds of the last {HISTORY_DAYS} days, as the audit log proves them.",
                [Table("Entries of the audit log", ["action", "status", "entries"], audit.compliance)],
            ),
        ],
        database,
        {
            "violations": audit.violating_rows,
            "overdue policies": ", ".join(audit.overdue) or "none",
            "failed runs in 30 days": failures,
            "rows removed in 30 days": int(policies["removed_30"].sum()),
            "rows expired now": int(tables["expired"].sum()),
            "customers under a hold": len(audit.held),
        },
        audit.at,
    )  # fmt: skip


def _removed_plot(audit: RetentionAudit) -> Svg:
    import pandas as pd  # noqa: PLC0415 - as above

    frame = pd.DataFrame(list(audit.removed_by_day), columns=["day", "policy", "rows"])
    wide = frame.pivot(index="day", columns="policy", values="rows")
    if not wide.empty:
        # A day without a run is a day, too.
        wide = wide.reindex(pd.date_range(wide.index.min(), wide.index.max(), freq="D"))
    days: list[datetime] = [day.to_pydatetime() for day in wide.index]
    series = [Series(str(policy), [float(v) for v in wide[policy].fillna(0)]) for policy in wide.columns]
    return bars(days, series, title=f"Rows removed by day, {HISTORY_DAYS} days", unit="rows")


def build_retention_report(connection: Connection, database: str) -> Report:
    """The report over a connection of the service."""
    return report_of_audit(retention_audit.retention_audit(connection), database)


@dg.multi_asset(
    name="retention_report",
    specs=[
        report_spec(
            "retention_report",
            "Whether the retention policies are kept: what each removed, what is still there, which rows should not "
            "be, who is under a legal hold, which policy is overdue. For whoever answers for data protection.",
            group="retention",
            deps=["retention_runs", "legal_holds", "gdpr_audit_log"],
            freshness_policy=WEEKLY,
            code=build_retention_report,
        )
    ],
)
def retention_report(postgres: PostgresResource) -> dg.MaterializeResult[None]:
    """Whether the retention policies are kept."""
    return publish(postgres, build_retention_report)


# --- retention_forecast ------------------------------------------------------------------------------------------


def report_of_forecast(forecast: Forecast, database: str) -> Report:
    """The page of a forecast."""
    import pandas as pd  # noqa: PLC0415 - as above

    due = _frame(forecast.due, ["policy", "table", "customer", "by", "rows"])
    concerned = int(due["customer"].nunique())
    due["customer"] = due["customer"].fillna("(platform)")
    later = due[due["by"] > pd.Timestamp(forecast.now)] if len(due) else due
    step = "day" if forecast.step_days == 1 else "week"
    by_policy = due.pivot_table(index=["policy", "table"], values="rows", aggfunc="sum").reset_index()
    by_customer = due.pivot_table(index=["customer", "policy"], values="rows", aggfunc="sum").reset_index()
    by_customer = by_customer.sort_values(["rows", "customer"], ascending=[False, True]) if len(due) else by_customer
    by_moment = due.pivot_table(index="by", columns="policy", values="rows", aggfunc="sum", fill_value=0)
    table = by_moment.astype(int).reset_index() if len(due) else by_moment.reset_index()
    table["by"] = table["by"].map(
        lambda by: "expired already" if by <= forecast.now else f"{by.astimezone(UTC):%Y-%m-%d %H:%M}"
    )
    return Report(
        "retention_forecast",
        f"Retention: what the next {HORIZON_DAYS} days will remove",
        [
            Section(
                f"By {step}",
                "Rows that are there now and fall due, counted with the very predicates that remove them. Each line "
                f"is what expires in the {step} that ends then. Rows that arrive meanwhile are not in it, nor are "
                "those of customers under a legal hold.",
                [
                    Table.from_frame(
                        table.rename(columns={"by": "until"}),
                        f"Rows by policy and {step}",
                        empty="Nothing will be removed.",
                    )
                ],
                [_due_plot(forecast, due, step)],
            ),
            Section("By table", "", [Table.from_frame(by_policy, "Rows by table", empty="None.")]),
            Section("By customer", "", [Table.from_frame(by_customer, "Rows by customer and policy", empty="None.")]),
            Section(
                "Left alone",
                "",
                [Table("Customers under a legal hold", ["customer"], [[slug] for slug in forecast.held])],
            ),
        ],
        database,
        {
            "rows expired now": int(due["rows"].sum() - later["rows"].sum()),
            f"rows to expire in {HORIZON_DAYS} days": int(later["rows"].sum()),
            "customers concerned": concerned,
            "customers under a hold": len(forecast.held),
        },
        forecast.now,
    )


def _due_plot(forecast: Forecast, due: "pd.DataFrame", step: str) -> Svg:
    import pandas as pd  # noqa: PLC0415 - as above

    wide = due.pivot_table(index="by", columns="policy", values="rows", aggfunc="sum", fill_value=0)
    wide = wide.reindex(pd.DatetimeIndex(forecast.moments), fill_value=0)
    series = [Series(str(policy), [float(v) for v in wide[policy]]) for policy in wide.columns]
    return bars(list(forecast.moments), series, title=f"Rows to be removed, by {step}", unit="rows")


def build_retention_forecast(connection: Connection, database: str) -> Report:
    """The report over a connection of the service."""
    return report_of_forecast(retention_forecast.forecast(connection), database)


@dg.multi_asset(
    name="retention_forecast",
    specs=[
        report_spec(
            "retention_forecast",
            f"What the next {HORIZON_DAYS} days will remove, by policy, customer and day, counted with the "
            "predicates that remove. For whoever wants to object before it is gone.",
            group="retention",
            deps=["message_queue", "scrape_jobs", "conversations", "daily_job_stats", "legal_holds"],
            freshness_policy=WEEKLY,
            code=build_retention_forecast,
        )
    ],
)
def retention_forecast_asset(postgres: PostgresResource) -> dg.MaterializeResult[None]:
    """What the next 30 days will remove."""
    return publish(postgres, build_retention_forecast)


RETENTION_ASSETS: Final = (retention_report, retention_forecast_asset)
