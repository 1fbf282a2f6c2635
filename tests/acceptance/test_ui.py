"""The Dagster UI as a data engineer uses it, by GraphQL and in a browser."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.program import assert_exact, count_results, job_status, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from selenium.webdriver.remote.webdriver import WebDriver

    from tests.acceptance.ui import Ui
    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.acceptance


def test_a_crawl_launched_in_the_ui_runs_reports_and_is_cancelled_cleanly(
    ui: Ui, site: Site, database: Database
) -> None:
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
    assert database.value("SELECT count(*) FROM scrape_jobs") == 1

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

    for name, path, text in (
        # The list shows what fits on the screen; this one is at its top.
        ("assets", "/assets", "alert_history"),
        ("lineage", "/asset-groups", "content"),
        ("asset", "/assets/scraped_pages", "Row count"),
        ("job", "/locations/omniops/jobs/crawl", "plan_crawl"),
        ("runs", "/runs", "by-hand"),
    ):
        browser.get(ui.url + path)
        see(text)
        time.sleep(0.5)  # the picture is for people: let the animation end
        picture(name)
