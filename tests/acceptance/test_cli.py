"""The command line, as its users meet it: exit status, standard output, standard error, and what was written."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.acceptance.program import (
    Ended,
    Program,
    assert_exact,
    assert_nothing_written,
    count_results,
    finish,
    job_status,
    wait_until,
)
from tests.support.crawling import crawl
from tests.support.databases import REVISIONS
from tests.support.site import Page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.databases import Database
    from tests.support.site import Site

pytestmark = pytest.mark.acceptance

SUMMARY = [
    "job_id", "run_id", "status", "finish_reason", "total_pages", "successful_pages", "failed_pages",
    "skipped_pages", "pages_per_second", "seconds",
]  # fmt: skip


@pytest.fixture
def closed_port() -> int:
    """A port of loopback on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def dead_site() -> Iterator[str]:
    """A server that takes connections and says nothing but goodbye."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        import threading

        def hang_up() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=hang_up, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        server.shutdown(socket.SHUT_RDWR)


def sentence_of(ended: Ended) -> str:
    """The one sentence on standard error; click's usage lines may stand before it."""
    lines = [line for line in ended.err.splitlines() if line.strip()]
    if ended.status == 2:
        assert lines[0].startswith("Usage: ")
        assert lines[1].startswith("Try ")
        lines = lines[2:]
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("Error: " if ended.status == 2 else "omniops: ")
    return lines[0]


# --- wrong input -------------------------------------------------------------------------------------------------

# 2: what was typed is wrong by itself. 1: it is well formed, and the world (network, database, job) says no.
WRONG: dict[str, tuple[list[str], int, str]] = {
    "no scheme": (["example.com/docs"], 2, "http"),
    "unknown scheme": (["ftp://example.com/"], 2, "ftp"),
    "no host": (["http:///docs"], 2, "host"),
    "no url and no job": ([], 2, "URL"),
    "a host that has no address": (["http://site.omniops.invalid/"], 1, "site.omniops.invalid"),
    "a private address": (["http://127.0.0.1:{open}/"], 1, "--allow-private"),
    "a private address in another spelling": (["http://2130706433:{open}/"], 1, "--allow-private"),
    "a refused connection": (["http://127.0.0.1:{closed}/", "--allow-private"], 1, "{closed}"),
    "a slug that is none": (["http://example.com/", "--customer", "Acme & Sons"], 2, "Acme & Sons"),
    "no pages": (["http://example.com/", "--max-pages", "0"], 2, "max"),
    "a word for a number": (["http://example.com/", "--max-pages", "many"], 2, "many"),
    "too much at once": (["http://example.com/", "--concurrency", "100000"], 2, "100000"),
    "a glob that is none": (["http://example.com/", "--include", "docs/**"], 2, "docs/**"),
    "a job type that there is not": (["http://example.com/", "--job-type", "everything"], 2, "everything"),
    "an option that there is not": (["http://example.com/", "--max-page", "3"], 2, "--max-pages"),
    "an unknown job without a url": (["--job-id", "nowhere"], 2, "nowhere"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_order_gives_one_sentence_and_writes_nothing(
    case: str, site: Site, closed_port: int, database: Database, program: Program
) -> None:
    arguments, status, word = WRONG[case]
    site.add("/")
    ports = {"open": site.port, "closed": closed_port}
    ended = program.run("crawl", "--json", *(argument.format(**ports) for argument in arguments)).expect(status)
    assert word.format(**ports) in sentence_of(ended)
    assert ended.out == ""
    assert sum(site.requests.values()) == 0
    assert_nothing_written(database)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("postgresql://omniops:secret@127.0.0.1:{closed}/omniops", "cannot be reached"),
        ("postgresql://omniops:secret@database.omniops.invalid/omniops", "database.omniops.invalid"),
        ("mysql://omniops:secret@127.0.0.1/omniops", "postgresql://"),
        ("nonsense", "postgresql://"),
    ],
)
def test_a_database_that_cannot_be_had_gives_one_sentence_without_the_password(
    url: str, word: str, site: Site, closed_port: int, program: Program
) -> None:
    site.add("/")
    url = url.format(closed=closed_port)
    others = [["jobs", "list"], ["migrate"]] if "127.0.0.1:" in url else []
    for command in (["crawl", site.url, "--allow-private", "--json"], *others):
        ended = program.run(*command, OMNIOPS_DATABASE_URL=url, OMNIOPS_OWNER_DATABASE_URL="").expect(1)
        assert word in sentence_of(ended)
        assert "secret" not in ended.err
        assert ended.out == ""
    assert sum(site.requests.values()) == 0


def test_a_database_that_is_not_migrated_is_left_as_it_is(site: Site, empty_database: Database, home: Path) -> None:
    site.add("/")
    program = Program(empty_database.environment(home))
    for command in (["crawl", site.url, "--allow-private", "--json"], ["jobs", "list"]):
        ended = program.run(*command).expect(1)
        assert "omniops migrate" in sentence_of(ended)
    assert empty_database.value("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    assert empty_database.value("SELECT to_regnamespace('dagster') IS NULL") is True
    assert sum(site.requests.values()) == 0
    program.close()


def test_a_job_of_another_customer_or_site_is_refused_and_unchanged(
    site: Site, database: Database, program: Program
) -> None:
    site.add("/")
    program.run("crawl", site.url, "--allow-private", "--customer", "acme", "--job-id", "mine").expect(0)
    before = database.rows("SELECT * FROM scrape_jobs"), database.rows("SELECT * FROM customers")
    runs = database.value("SELECT count(*) FROM dagster.runs")
    other = program.run("crawl", "--customer", "globex", "--job-id", "mine", "--json").expect(1)
    assert "another customer" in sentence_of(other)
    elsewhere = program.run("crawl", f"{site.url}other", "--job-id", "mine", "--json").expect(1)
    assert "leave the url out" in sentence_of(elsewhere)
    assert (database.rows("SELECT * FROM scrape_jobs"), database.rows("SELECT * FROM customers")) == before
    assert database.value("SELECT count(*) FROM dagster.runs") == runs
    assert other.out == elsewhere.out == ""


# --- crawl -------------------------------------------------------------------------------------------------------


def test_json_is_one_object_with_the_named_keys_in_success_failure_and_resume(
    site: Site, dead_site: str, database: Database, program: Program
) -> None:
    site.chain(20)
    done = program.run("crawl", site.url, "--allow-private", "--job-id", "done", "--json").expect(0)
    assert list(done.json) == SUMMARY
    assert (done.json["status"], done.json["finish_reason"]) == ("completed", "exhausted")
    assert (done.json["total_pages"], done.json["successful_pages"]) == (20, 20)
    assert database.value("SELECT run_id FROM scrape_jobs") == done.json["run_id"]
    assert database.value("SELECT status FROM dagster.runs") == "SUCCESS"

    site.requests.clear()
    again = program.run("crawl", "--job-id", "done", "--json").expect(0)
    assert again.json == done.json
    assert "nothing was fetched" in again.err
    assert sum(site.requests.values()) == 0

    failed = program.run("crawl", dead_site, "--allow-private", "--no-respect-robots", "--json").expect(1)
    assert list(failed.json) == SUMMARY
    assert (failed.json["status"], failed.json["finish_reason"]) == ("failed", "site_unreachable")
    assert "could be reached" in failed.err

    closed = program.run("crawl", dead_site, "--allow-private", "--json").expect(0)
    assert (closed.json["status"], closed.json["finish_reason"]) == ("completed", "disallowed")


def test_a_person_sees_the_job_and_its_figures(site: Site, program: Program) -> None:
    site.chain(20)
    site.add("/p3", ["/missing"])
    ended = program.run("crawl", site.url, "--allow-private", "--job-id", "a-job", "--customer", "acme").expect(0)
    assert ended.err.splitlines() == ["Job a-job"]
    shown = dict(line.split(None, 2)[::2] for line in ended.out.splitlines() if " pages " in line)
    assert "failed" in ended.out
    assert "finish reason" in ended.out
    assert "exhausted" in ended.out
    assert shown


def test_limits_and_globs_of_the_command_line_hold(site: Site, database: Database, program: Program) -> None:
    site.chain(60)
    few = program.run("crawl", site.url, "--allow-private", "--max-pages", "7", "--json").expect(0)
    assert (few.json["finish_reason"], few.json["total_pages"]) == ("max_pages", 7)
    one = program.run("crawl", site.url, "--allow-private", "--job-type", "single_page", "--json").expect(0)
    assert one.json["total_pages"] == 1
    part = program.run(
        "crawl", site.url, "--allow-private", "--exclude", "/p1", "--exclude", "/p2?", "--job-id", "part", "--json"
    ).expect(0)
    assert part.json["status"] == "completed"
    excluded = database.rows("SELECT url FROM scrape_job_results WHERE job_id = 'part' AND skip_reason = 'excluded'")
    assert {str(row["url"]).rsplit("/", 1)[1] for row in excluded} >= {"p1"}


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_crawl_pauses_its_job_and_says_how_to_resume(
    signal_number: signal.Signals, site: Site, database: Database, program: Program
) -> None:
    site.chain(200)
    site.latency = 0.3
    job_id = "a-job-with-a-name-that-is-long-enough-to-be-wrapped-at-eighty-columns"
    process = program.start("crawl", site.url, "--allow-private", "--job-id", job_id, "--json")
    wait_until(lambda: count_results(database, job_id) >= 20, why="20 pages")
    asked = time.monotonic()
    process.send_signal(signal_number)
    ended = finish(process).expect(1)
    assert time.monotonic() - asked < 15
    assert list(ended.json) == SUMMARY
    assert ended.json["status"] == "paused"
    assert f"omniops crawl --job-id {job_id}" in ended.err
    assert job_status(database, job_id) == "paused"
    assert database.value("SELECT count(*) FROM omniops_meta.crawl_workers") == 0
    assert database.value("SELECT status FROM dagster.runs") == "CANCELED"
    site.latency = 0.0
    resumed = program.run("crawl", "--job-id", job_id, "--json").expect(0)
    assert resumed.json["total_pages"] == 200
    assert_exact(database, job_id, [site.url, *(f"{site.url}p{n}" for n in range(1, 200))])


def test_an_interruption_before_the_first_page_is_a_clean_end_too(
    site: Site, database: Database, program: Program
) -> None:
    site.chain(5)

    async def never(_: object) -> Any:
        import asyncio

        await asyncio.sleep(60)

    site.pages["/robots.txt"] = never
    process = program.start("crawl", site.url, "--allow-private", "--job-id", "early")
    wait_until(lambda: job_status(database, "early") == "running", why="the job")
    process.send_signal(signal.SIGINT)
    finish(process, 30).expect(1)
    assert job_status(database, "early") == "paused"


def test_pages_that_most_of_a_site_lost_are_removed_when_somebody_says_so(
    site: Site, database: Database, program: Program
) -> None:
    site.chain(8)
    crawl(database, site.url, "before")
    for n in range(1, 8):
        del site.pages[f"/p{n}"]
    crawl(database, site.url, "after", job_type="incremental")
    removed = "SELECT count(*) FROM scraped_pages WHERE removed_at IS NOT NULL"
    shown = program.run("jobs", "settle", "after").expect(0)
    assert f"{site.url}p1" in shown.out
    assert "Nothing was changed" in shown.err
    program.run("jobs", "settle", "after", "--accept-removals").expect(1)  # nobody is there to be asked
    assert database.value(removed) == 0
    accepted = program.run("jobs", "settle", "after", "--accept-removals", "--yes", "--json").expect(0)
    assert accepted.json["accepted"]
    assert accepted.json["total"] == database.value(removed) == 7


# --- the audit trail ---------------------------------------------------------------------------------------------


def test_jobs_are_listed_shown_and_counted(site: Site, program: Program) -> None:
    site.add("/", ["/a", "/gone", "/list.json"])
    site.add("/a")
    site.pages["/gone"] = Page(b"", 410)
    site.pages["/list.json"] = Page(b"{}", headers={"Content-Type": "application/json"})
    for job in ("first", "second"):
        program.run("crawl", site.url, "--allow-private", "--job-id", job, "--customer", f"of-{job}").expect(0)

    listed = program.run("jobs", "list", "--json").expect(0).json
    assert [job["job_id"] for job in listed] == ["second", "first"]
    assert [job["job_id"] for job in program.run("jobs", "list", "--customer", "of-first", "--json").json] == [
        "first"
    ]
    assert program.run("jobs", "list", "--status", "failed", "--json").expect(0).json == []
    table = program.run("jobs", "list").expect(0).out
    assert "first" in table
    assert "of-second" in table

    shown = program.run("jobs", "show", "first", "--json").expect(0).json
    assert shown["stats"]["total_pages"] == 4
    assert {(r["status"], r["reason"], r["pages"]) for r in shown["reasons"]} == {
        ("success", "200", 2),
        ("failed", "HTTP 410", 1),
        ("skipped", "content_type", 1),
    }
    assert "HTTP 410" in program.run("jobs", "show", "first").expect(0).out

    results = program.run("jobs", "results", "first", "--json").expect(0).out.splitlines()
    assert len(results) == 4
    page = program.run("jobs", "results", "first", "--limit", "3").expect(0)
    assert "--after" in page.err
    everything = program.run("jobs", "results", "first", "--limit", "1", "--all", "--json").expect(0)
    assert everything.out.splitlines() == results
    failed = program.run("jobs", "results", "first", "--status", "failed", "--json").expect(0).json
    assert (failed["url"], failed["http_status"]) == (f"{site.url}gone", 410)

    stats = program.run("jobs", "stats", "first", "--json").expect(0).json
    assert (stats["job_id"], stats["total_pages"], stats["skipped_pages"]) == ("first", 4, 1)
    assert "total pages" in program.run("jobs", "stats", "first").expect(0).out


@pytest.mark.parametrize("command", ["show", "results", "stats"])
def test_a_job_that_there_is_not_is_said_to_be_none(command: str, program: Program) -> None:
    ended = program.run("jobs", command, "nowhere").expect(1)
    assert "nowhere" in sentence_of(ended)
    assert ended.out == ""


# --- what it stands on -------------------------------------------------------------------------------------------


def test_env_makes_psql_work_beside_the_program(database: Database, program: Program) -> None:
    lines = program.run("env").expect(0).out
    assert all(line.startswith("export OMNIOPS_") for line in lines.splitlines())
    query = "psql \"$OMNIOPS_DATABASE_URL\" -Atc 'SELECT count(*) FROM scrape_jobs'"
    if shutil.which("psql") is None:
        query = 'echo "$OMNIOPS_DATABASE_URL"'
    shell = subprocess.run(["bash", "-c", f"{lines}\n{query}"], capture_output=True, text=True, check=True)
    assert shell.stdout.strip() == ("0" if "psql" in query else database.url)
    assert shell.stderr == ""


def test_the_doctor_finds_a_working_installation_well(site: Site, program: Program) -> None:
    site.add("/")
    program.run("crawl", site.url, "--allow-private").expect(0)
    findings = program.run("doctor", "--json").expect(0).json
    assert all(finding["ok"] for finding in findings)
    parts = {finding["part"]: finding["found"] for finding in findings}
    assert {"python", "dagster", "postgres", "extension vector", "migrations", "redis", "dagster storage"} <= set(
        parts
    )
    assert parts["dagster storage"] == "ready"
    assert "postgres" in program.run("doctor").expect(0).out


def test_the_doctor_says_what_is_wrong_and_what_to_do(closed_port: int, empty_database: Database, home: Path) -> None:
    program = Program(empty_database.environment(home))
    away = program.run("doctor", OMNIOPS_DATABASE_URL=f"postgresql://x:secret@127.0.0.1:{closed_port}/x").expect(1)
    assert "OMNIOPS_DATABASE_URL" in away.out
    assert "secret" not in away.out
    findings = program.run("doctor", "--json").expect(1).json
    assert [(f["part"], f["what_to_do"]) for f in findings if not f["ok"]] == [("migrations", "omniops migrate")]
    no_cache = program.run("doctor", "--json", OMNIOPS_REDIS_URL=f"redis://127.0.0.1:{closed_port}/0").expect(1).json
    assert any(f["part"] == "redis" and "OMNIOPS_REDIS_URL" in f["what_to_do"] for f in no_cache)
    program.close()


def test_a_crawl_needs_no_cache(site: Site, closed_port: int, database: Database, program: Program) -> None:
    site.chain(10)
    ended = program.run(
        "crawl", site.url, "--allow-private", "--job-id", "bare", "--json",
        OMNIOPS_REDIS_URL=f"redis://127.0.0.1:{closed_port}/0",
    ).expect(0)  # fmt: skip
    assert ended.json["total_pages"] == 10
    assert_exact(database, "bare", [site.url, *(f"{site.url}p{n}" for n in range(1, 10))])


def test_migrations_run_once_whoever_asks_and_however_often(empty_database: Database, home: Path) -> None:
    program = Program(empty_database.environment(home))
    both = [finish(process).expect(0) for process in [program.start("migrate", "--json") for _ in range(2)]]
    assert sorted(len(ended.json["applied"]) for ended in both) == [0, len(REVISIONS)]
    assert "nothing to do" in program.run("migrate").expect(0).out
    assert empty_database.value("SELECT count(*) FROM customers") == 0
    program.close()


def test_the_embedded_servers_start_stay_and_stop(embedded: Program) -> None:
    assert embedded.run("services", "stop").expect(0).out == "Nothing was running.\n"
    assert {s["running"] for s in embedded.run("services", "status", "--json").expect(0).json} == {False}
    embedded.run("services", "start").expect(0)
    found = embedded.run("services", "status", "--json").expect(0).json
    assert {s["name"]: (s["running"], s["kept"]) for s in found} == {"postgres": (True, True), "valkey": (True, True)}
    assert "postgres" in embedded.run("services", "status").expect(0).out
    assert embedded.run("doctor", "--json").expect(0).json
    lines = embedded.run("env").expect(0).out
    if shutil.which("psql"):
        query = "psql \"$OMNIOPS_DATABASE_URL\" -Atc 'SELECT count(*) FROM customers'"
        shell = subprocess.run(["bash", "-c", f"{lines}\n{query}"], capture_output=True, text=True, check=True)
        assert shell.stdout == "0\n"
    assert embedded.run("services", "stop").expect(0).out == "Stopped.\n"
    assert {s["running"] for s in embedded.run("services", "status", "--json").expect(0).json} == {False}


def test_the_demo_crawls_its_own_site_with_nothing_set_up(embedded: Program) -> None:
    first = embedded.run("demo", "--port", "0", "--json").expect(0)
    assert list(first.json) == SUMMARY
    assert first.json["status"] == "completed"
    assert 30 <= first.json["successful_pages"] <= 60
    assert first.json["failed_pages"] >= 1
    assert first.json["skipped_pages"] >= 2
