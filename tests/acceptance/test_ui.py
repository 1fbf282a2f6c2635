"""`omniops up`: the Dagster UI as a data engineer uses it, by GraphQL and in a browser."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.acceptance.program import Program, assert_exact, count_results, finish, job_status, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import Popen

    from selenium.webdriver.remote.webdriver import WebDriver

    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.acceptance

FINISHED = ("SUCCESS", "FAILURE", "CANCELED")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")

# Ctrl-C and a service manager's way, in turn.
_WAYS_TO_END = itertools.cycle((signal.SIGTERM, signal.SIGINT))

LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
RUN = """
query ($id: ID!) {
  runOrError(runId: $id) {
    ... on Run {
      status
      tags { key value }
      eventConnection(limit: 1000) { events {
        __typename
        ... on MessageEvent { message }
        ... on ObservationEvent { assetKey { path } metadataEntries { label ... on IntMetadataEntry { intValue } } }
        ... on MaterializationEvent { assetKey { path } }
      } }
    }
  }
}
"""


class Ui:
    """A running `omniops up`."""

    def __init__(self, process: Popen[str], port: int, log: Path) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.log = log

    def query(self, query: str, **variables: Any) -> Any:
        """The data of a GraphQL query."""
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert not answer.get("errors"), answer["errors"]
        return answer["data"]

    def is_ready(self) -> bool:
        """True if it answers and has loaded our definitions."""
        assert self.process.poll() is None, self.log.read_text()
        with suppress(OSError):
            found = self.query("{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }")
            return found["workspaceOrError"]["locationEntries"] == [{"loadStatus": "LOADED"}]
        return False

    def launch(self, **config: Any) -> str:
        """Launch the job; returns the run's id."""
        params = {
            "selector": {
                "repositoryLocationName": "omniops",
                "repositoryName": "__repository__",
                "pipelineName": "crawl",
            },
            "runConfigData": {"ops": {"plan_crawl": {"config": config}}},
            "mode": "default",
        }
        answer = self.query(LAUNCH, params=params)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        run_id: str = answer["run"]["runId"]
        return run_id

    def run(self, run_id: str) -> dict[str, Any]:
        """The run with its events."""
        found: dict[str, Any] = self.query(RUN, id=run_id)["runOrError"]
        return found

    def wait_for(self, run_id: str, *statuses: str, seconds: float = 120) -> dict[str, Any]:
        """The run when it has one of these statuses (or any final one)."""
        wait_until(lambda: self.run(run_id)["status"] in (*statuses, *FINISHED), seconds, f"the run: {statuses}")
        return self.run(run_id)


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go."""
    folder = Path(os.environ.get("OMNIOPS_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def ui(program: Program, tmp_path: Path) -> Iterator[Ui]:
    """The UI on a free port; at its end nothing of it may be left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "up.log"
    process = program.start("up", "--no-open", "--port", str(port), log=log)
    started = Ui(process, port, log)
    try:
        wait_until(started.is_ready, why="the UI")
        yield started
    finally:
        family = _family(process)
        process.send_signal(next(_WAYS_TO_END))
        assert finish(process, 60).status == 0
    wait_until(lambda: not [p for p in family if _runs(p)], 30, f"the end of {family}")


def _family(process: Popen[str]) -> list[psutil.Process]:
    """A process and all that descends from it."""
    try:
        me = psutil.Process(process.pid)
        return [me, *me.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[WebDriver]:
    """Headless Chromium with a new profile."""
    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("no chromium and chromedriver on this machine")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--window-size=1500,1000", f"--user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    driver.set_page_load_timeout(90)
    yield driver
    driver.quit()


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
