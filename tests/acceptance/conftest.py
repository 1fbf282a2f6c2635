"""Real processes, each test's with a database of its own on the session's cluster."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from resources.services import stop
from resources.settings import Settings
from tests.acceptance.program import Program
from tests.acceptance.ui import Ui, serve_ui

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver.remote.webdriver import WebDriver

    from tests.support.databases import Database

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let children hear SIGINT: a shell that puts the tests in the background has them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def database(stored_database: Database) -> Database:
    """A database of this test's own, with Dagster's storage."""
    return stored_database


@pytest.fixture
def home() -> Iterator[Path]:
    """A data folder with a short name: the embedded servers' sockets are in it."""
    path = Path(tempfile.mkdtemp(prefix="omniops-test-"))
    yield path / "home"
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def program(database: Database, home: Path) -> Iterator[Program]:
    """The program, with this test's database."""
    made = Program(database.environment(home))
    yield made
    made.close()


@pytest.fixture
def embedded(database: Database, home: Path) -> Iterator[Program]:
    """The program as `python -m omniops_pipelines`, with servers of its own, which end with the test."""
    stores = ("OMNIOPS_DATABASE_URL", "OMNIOPS_OWNER_DATABASE_URL", "OMNIOPS_REDIS_URL")
    environment = {name: value for name, value in database.environment(home).items() if name not in stores}
    made = Program(environment, forked=False)
    yield made
    made.close()
    stop(Settings(home, None, None, None), force=True)


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go."""
    folder = Path(os.environ.get("OMNIOPS_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def ui(program: Program, tmp_path: Path) -> Iterator[Ui]:
    """`omniops up`, with this test's database."""
    with serve_ui(program, tmp_path / "up.log") as started:
        yield started


@pytest.fixture
def browser(browser_if_any: WebDriver | None) -> WebDriver:
    """Headless Chromium with a new profile."""
    if browser_if_any is None:
        pytest.skip("no chromium and chromedriver on this machine")
    return browser_if_any


@pytest.fixture
def browser_if_any(tmp_path: Path) -> Iterator[WebDriver | None]:
    """Headless Chromium, for a test that looks at its pages too where there is one."""
    if CHROMIUM is None or CHROMEDRIVER is None:
        yield None
        return
    from selenium import webdriver

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
