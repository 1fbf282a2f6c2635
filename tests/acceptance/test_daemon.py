"""What Dagster's daemon does by itself: queued jobs become runs, a backfill is one run."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from resources.settings import PROJECT_ROOT
from tests.acceptance.program import wait_until
from tests.acceptance.ui import serve_ui
from tests.support.site import serve_site

if TYPE_CHECKING:
    from pathlib import Path

    from selenium.webdriver.remote.webdriver import WebDriver

    from tests.acceptance.program import Program
    from tests.acceptance.ui import Ui
    from tests.support.databases import Database

pytestmark = pytest.mark.acceptance

# So many that the daemon is killed with runs of every kind under way: done, running, queued in Dagster, not yet seen.
# Each is a process, so there are more of them only where somebody asked for a long test (`make soak`).
JOBS = 24 if "OMNIOPS_SOAK_ROUNDS" in os.environ else 10
# Queued at the moment of the kill.
UNSEEN = 2
# Done before the kill.
DONE = 2

# A run for a website waits for the one before, so the jobs are about several, and fewer than there are jobs.
HOSTS = tuple(f"127.0.0.{n}" for n in range(1, 5))

BACKFILL = """
mutation ($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
BACKFILL_STATUS = """
query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status error { message } runs(limit: 10) { id status } }
  }
}
"""
MATERIALISED = """
query ($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode { assetPartitionStatuses { ... on TimePartitionStatuses { ranges { startKey endKey status } } } }
  }
}
"""


def queue(database: Database, job_id: str, config: dict[str, Any], domain: str = "127.0.0.1") -> None:
    """What another program does to have something crawled."""
    with database.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO customers (name, slug) VALUES ('Acme', 'acme') ON CONFLICT DO NOTHING"),
        )
        connection.execute(
            text("""INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, config)
                    SELECT :job, id, :domain, 'single_page', CAST(:config AS jsonb) FROM customers
                    WHERE slug = 'acme'"""),
            {"job": job_id, "domain": domain, "config": json.dumps(config)},
        )


def statuses(database: Database) -> Counter[object]:
    """Jobs by status."""
    return Counter({row["status"]: row["n"] for row in database.rows(
        "SELECT status, count(*) AS n FROM scrape_jobs GROUP BY status")})  # type: ignore[misc]  # fmt: skip


@pytest.fixture
def impatient(program: Program, home: Path) -> Program:
    """The program on an instance like its own, on which a run that does not start is given up after one minute."""
    folder = home.parent / "dagster-home"
    folder.mkdir()
    config = (PROJECT_ROOT / "omniops_pipelines" / "dagster.yaml").read_text()
    for theirs, ours in (("start_timeout_seconds: 180", "start_timeout_seconds: 60"),
                         ("poll_interval_seconds: 30", "poll_interval_seconds: 10")):  # fmt: skip
        assert config.count(theirs) == 1
        config = config.replace(theirs, ours)
    (folder / "dagster.yaml").write_text(config)
    program.environment["DAGSTER_HOME"] = str(folder)
    return program


@pytest.mark.timeout(900)
def test_queued_rows_become_jobs_exactly_once_though_the_daemon_is_killed(
    impatient: Program, database: Database, tmp_path: Path
) -> None:
    with serve_site(*HOSTS[1:]) as site:
        urls = {}
        for n in range(JOBS):
            site.add(f"/page{n}")
            urls[f"job-{n}"] = f"http://{HOSTS[n % len(HOSTS)]}:{site.port}/page{n}"
        early, late = list(urls)[:-UNSEEN], list(urls)[-UNSEEN:]
        for job_id in early:
            queue(database, job_id, {"urls": [urls[job_id]], "allow_private": True})
        bad = {
            "bad-type": {"urls": "http://127.0.0.1/"},
            "bad-number": {"urls": ["http://127.0.0.1/"], "max_pages": -1},
            "bad-address": {"urls": ["http://127.0.0.1:1/"]},
        }
        for job_id, config in bad.items():
            queue(database, job_id, config)

        with serve_ui(impatient, tmp_path / "first.log") as ui:
            wait_until(lambda: statuses(database)["completed"] >= DONE, 300, "the first jobs")
            for job_id in late:
                queue(database, job_id, {"urls": [urls[job_id]], "allow_private": True})
            ui.kill()
        before = statuses(database)
        assert DONE <= before["completed"] < len(early), before
        assert before["queued"] >= UNSEEN, before

        with serve_ui(impatient, tmp_path / "second.log"):
            wait_until(lambda: statuses(database)["completed"] >= JOBS, 600, "all jobs")
            wait_until(lambda: statuses(database) == {"completed": JOBS, "failed": 3}, 60, "the bad ones")
            # Time for whatever would be started a second time.
            ticks = "SELECT count(*) FROM dagster.job_ticks"
            seen = database.value(ticks)
            wait_until(lambda: database.value(ticks) != seen, 60, "another tick")

    results = {(row["job_id"], row["url"]) for row in database.rows("SELECT job_id, url FROM scrape_job_results")}
    assert results == set(urls.items())
    assert database.value("SELECT count(*) FROM scrape_job_results") == JOBS
    succeeded = database.rows("""
        SELECT t.value AS job_id, count(*) AS runs FROM dagster.runs AS r
        JOIN dagster.run_tags AS t ON t.run_id = r.run_id AND t.key = 'omniops/job_id'
        WHERE r.status = 'SUCCESS' GROUP BY t.value HAVING count(*) > 1""")
    assert succeeded == []
    reasons = {
        row["job_id"]: str(row["error_message"])
        for row in database.rows("SELECT job_id, error_message FROM scrape_jobs WHERE status = 'failed'")
    }
    assert set(reasons) == set(bad)
    assert "must be a list" in reasons["bad-type"]
    assert "max_pages is -1" in reasons["bad-number"]
    assert "private" in reasons["bad-address"]


def test_a_backfill_of_ninety_days_is_one_run_equals_sql_and_is_seen(
    ui: Ui, database: Database, browser_if_any: WebDriver | None, screenshots: Path
) -> None:
    today = datetime.now(UTC).date()
    days = [(today - timedelta(days=n)).isoformat() for n in range(90, 0, -1)]
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO customers (name, slug) VALUES ('Acme', 'acme'), ('Bits', 'bits')"))
        connection.execute(
            text("""
                INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, status, created_at, started_at,
                                         completed_at)
                SELECT c.slug || '-' || d, c.id, c.slug || '.example', 'full_crawl', 'completed',
                       t.at, t.at, t.at + interval '1 hour'
                FROM customers AS c CROSS JOIN generate_series(1, 90) AS d
                CROSS JOIN LATERAL (
                    SELECT (current_date - d)::timestamp AT TIME ZONE 'UTC' + interval '9 hours' AS at) AS t
            """)
        )
        connection.execute(
            text("""
                INSERT INTO scrape_job_results (job_id, customer_id, url, status, processing_time_ms, bytes, tries,
                                                http_status, created_at)
                SELECT j.job_id, j.customer_id, 'https://shop.example/' || n,
                       CASE WHEN n % 5 = 0 THEN 'failed' ELSE 'success' END, n, 100, 1, 200, j.created_at
                FROM scrape_jobs AS j CROSS JOIN generate_series(1, 20) AS n
            """)
        )
    params = {
        "assetSelection": [{"path": ["daily_job_stats"]}, {"path": ["daily_domain_stats"]}],
        "partitionNames": days,
    }
    answer = ui.query(BACKFILL, params=params)["launchPartitionBackfill"]
    assert answer["__typename"] == "LaunchBackfillSuccess", answer

    def state() -> dict[str, Any]:
        found: dict[str, Any] = ui.query(BACKFILL_STATUS, id=answer["backfillId"])["partitionBackfillOrError"]
        return found

    wait_until(lambda: state()["status"] in ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED"), 180, "the backfill")
    ended = state()
    assert ended["status"] == "COMPLETED_SUCCESS", ended
    assert [run["status"] for run in ended["runs"]] == ["SUCCESS"]
    for asset in ("daily_job_stats", "daily_domain_stats"):
        found = ui.query(MATERIALISED, key={"path": [asset]})["assetNodeOrError"]["assetPartitionStatuses"]
        assert found["ranges"] == [{"startKey": days[0], "endKey": days[-1], "status": "MATERIALIZED"}]
    wanted = """
        SELECT (r.created_at AT TIME ZONE 'UTC')::date AS day, r.customer_id, count(*) AS total_pages,
               count(*) FILTER (WHERE r.status = 'failed') AS failed_pages,
               percentile_disc(0.95) WITHIN GROUP (ORDER BY r.processing_time_ms) AS p95_ms
        FROM scrape_job_results AS r GROUP BY 1, 2 ORDER BY 1, 2"""
    kept = "SELECT day, customer_id, total_pages, failed_pages, p95_ms FROM daily_job_stats ORDER BY day, customer_id"
    assert database.rows(kept) == database.rows(wanted)
    assert database.value("SELECT count(*) FROM daily_domain_stats") == 180
    if browser_if_any is not None:
        look_at_the_assets(ui, browser_if_any, screenshots)


def look_at_the_assets(ui: Ui, browser: WebDriver, screenshots: Path) -> None:
    """The plots on the asset's page, and the lineage as one graph."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(browser, 90)
    browser.get(f"{ui.url}/assets/daily_job_stats?view=overview")
    # Markdown is shown when it is asked for, one entry at a time.
    show = "//*[self::button or self::a][contains(translate(., 'MARKDOWNSHO', 'markdownsho'), 'show markdown')]"
    waiting.until(lambda b: len(b.find_elements(By.XPATH, show)) >= 3)
    browser.execute_script("arguments[0].scrollIntoView()", browser.find_element(By.XPATH, show))
    browser.save_screenshot(str(screenshots / "statistics.png"))
    width = "return document.querySelector('img[src^=\"data:image/svg+xml\"]')?.naturalWidth ?? 0"
    for entry in browser.find_elements(By.XPATH, show):
        browser.execute_script("arguments[0].click()", entry)
        time.sleep(0.5)  # the dialog opens
        if browser.execute_script(width) > 100:
            break
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
        time.sleep(0.5)
    assert browser.execute_script(width) > 100
    browser.save_screenshot(str(screenshots / "plot.png"))
    browser.get(f"{ui.url}/asset-groups")
    waiting.until(lambda b: "statistics" in b.find_element(By.TAG_NAME, "body").text)
    time.sleep(1.0)  # the picture is for people: let the animation end
    browser.save_screenshot(str(screenshots / "lineage.png"))
