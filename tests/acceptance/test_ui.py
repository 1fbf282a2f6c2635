"""The Dagster UI as a data engineer uses it, by GraphQL and in a browser."""

from __future__ import annotations

import shutil
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from tests.acceptance.program import Program, assert_exact, count_results, job_status, wait_until
from tests.acceptance.ui import Ui, serve_ui
from tests.support.databases import Database, a_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver.remote.webdriver import WebDriver

    from resources.services import Endpoints
    from tests.support.site import Site

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

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


@pytest.fixture(scope="module")
def database(cluster: Endpoints, stored_template: str) -> Iterator[Database]:
    """One for all these tests: they share a UI, whose processes take half a minute to load."""
    yield from a_database(cluster, stored_template)


@pytest.fixture(scope="module")
def ui(database: Database) -> Iterator[Ui]:
    """`omniops up`."""
    folder = Path(tempfile.mkdtemp(prefix="omniops-test-"))
    program = Program(database.environment(folder / "home"))
    with serve_ui(program, folder / "up.log") as started:
        yield started
    program.close()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_crawl_launched_in_the_ui_runs_reports_and_is_cancelled_cleanly(
    ui: Ui, site: Site, database: Database
) -> None:
    jobs = database.value("SELECT count(*) FROM scrape_jobs")
    # Refused by the form itself, then by the first op.
    bad = ui.launch(urls=["nonsense"])
    site.chain(300)
    site.latency = 0.7
    run_id = ui.launch(urls=[site.url], allow_private=True, job_id="slow", customer="acme")
    run = ui.wait_for(run_id)
    assert run["status"] == "SUCCESS", [event["message"] for event in run["eventConnection"]["events"]]
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    assert (tags["omniops/job_id"], tags["omniops/customer"]) == ("slow", "acme")
    events = run["eventConnection"]["events"]
    observed = [event for event in events if event["__typename"] == "ObservationEvent"]
    assert 1 <= len(observed) <= 10
    assert {event["assetKey"]["path"][0] for event in observed} == {"scraped_pages"}
    progress = [
        entry["intValue"]
        for event in observed
        for entry in event["metadataEntries"]
        if entry["label"] == "total_pages"
    ]
    assert progress == sorted(progress)
    assert 0 < progress[-1] <= 300
    materialised = {event["assetKey"]["path"][0] for event in events if event["__typename"] == "MaterializationEvent"}
    assert materialised == {
        "scraped_pages", "website_content", "scrape_jobs", "scrape_job_results", "scrape_job_stats",
    }  # fmt: skip
    assert len(events) < 100, "the log is for people: no line for each page"
    assert_exact(database, "slow", [site.url, *(f"{site.url}p{n}" for n in range(1, 300))])

    refused = ui.wait_for(bad)
    assert refused["status"] == "FAILURE"
    assert database.value("SELECT count(*) FROM scrape_jobs") == jobs + 1

    site.latency = 1.0
    run_id = ui.launch(urls=[site.url], allow_private=True, job_id="stopped", customer="acme")
    wait_until(lambda: count_results(database, "stopped") >= 20, why="20 pages")
    asked = time.monotonic()
    answer = ui.query("mutation ($id: String!) { terminateRun(runId: $id) { __typename } }", id=run_id)
    assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess"
    assert ui.wait_for(run_id, seconds=60)["status"] == "CANCELED"
    assert time.monotonic() - asked < 30
    assert job_status(database, "stopped") == "cancelled"
    assert database.value("SELECT finish_reason FROM scrape_jobs WHERE job_id = 'stopped'") == "cancelled"
    assert database.value("SELECT count(*) FROM omniops_meta.crawl_workers") == 0
    kept = count_results(database, "stopped")
    assert 20 <= kept < 300
    assert database.value("SELECT total_pages FROM scrape_job_stats WHERE job_id = 'stopped'") == kept


def test_a_person_launches_a_crawl_from_the_launchpad_and_sees_it(
    ui: Ui, site: Site, database: Database, browser: WebDriver, screenshots: Path
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    site.chain(60)
    site.latency = 0.6
    waiting = WebDriverWait(browser, 90)

    def see(text: str) -> None:
        waiting.until(
            lambda b: text in b.find_element(By.TAG_NAME, "body").text, f"{text!r} on {browser.current_url}"
        )

    def picture(name: str) -> None:
        browser.save_screenshot(str(screenshots / f"{name}.png"))

    browser.get(f"{ui.url}/locations/omniops/jobs/crawl/playground")
    waiting.until(lambda b: b.find_elements(By.CSS_SELECTOR, ".CodeMirror"))
    config = f'ops:\n  plan_crawl:\n    config:\n      urls: ["{site.url}"]\n      allow_private: true\n'
    config += "      customer: acme\n      job_id: by-hand\n"
    browser.execute_script("document.querySelector('.CodeMirror').CodeMirror.setValue(arguments[0])", config)
    button = "//button[contains(., 'Launch Run')]"
    waiting.until(lambda b: any(e.is_enabled() for e in b.find_elements(By.XPATH, button)))
    picture("launchpad")
    browser.find_element(By.XPATH, button).click()
    waiting.until(lambda b: "/runs/" in b.current_url)
    run_id = browser.current_url.rsplit("/", 1)[1].partition("?")[0]
    see("crawl_pages")
    try:
        wait_until(lambda: count_results(database, "by-hand") >= 20, why="20 pages")
    except AssertionError:
        picture("stuck")
        raise AssertionError((ui.run(run_id), ui.log.read_text())) from None
    picture("run-under-way")
    wait_until(lambda: job_status(database, "by-hand") == "completed", why="the job's end")
    see("Success")
    see("ASSET_MATERIALIZATION")
    picture("run")
    assert_exact(database, "by-hand", [site.url, *(f"{site.url}p{n}" for n in range(1, 60))])

    for name, path, shown in (
        # The list shows what fits on the screen; this one is at its top.
        ("assets", "/assets", "alert_history"),
        ("lineage", "/asset-groups", "content"),
        ("asset", "/assets/scraped_pages", "Row count"),
        ("job", "/locations/omniops/jobs/crawl", "plan_crawl"),
        ("runs", "/runs", "by-hand"),
    ):
        browser.get(ui.url + path)
        see(shown)
        time.sleep(0.5)  # the picture is for people: let the animation end
        picture(name)


def test_a_backfill_of_ninety_days_is_one_run_equals_sql_and_is_seen(
    ui: Ui, database: Database, browser_if_any: WebDriver | None, screenshots: Path
) -> None:
    today = datetime.now(UTC).date()
    days = [(today - timedelta(days=n)).isoformat() for n in range(90, 0, -1)]
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO customers (name, slug) VALUES ('North', 'north'), ('South', 'south')"))
        connection.execute(
            text("""
                INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, status, created_at, started_at,
                                         completed_at)
                SELECT c.slug || '-' || d, c.id, c.slug || '.example', 'full_crawl', 'completed',
                       t.at, t.at, t.at + interval '1 hour'
                FROM unnest(ARRAY['north', 'south']) AS slug JOIN customers AS c USING (slug)
                CROSS JOIN generate_series(1, 90) AS d
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
                WHERE j.domain IN ('north.example', 'south.example')
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

    wait_until(lambda: state()["status"] in ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED"), 600, "the backfill")
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
        FROM scrape_job_results AS r WHERE r.url LIKE 'https://shop.example/%' GROUP BY 1, 2 ORDER BY 1, 2"""
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
