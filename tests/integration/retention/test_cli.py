"""`omniops cleanup`, `erase`, `export` and `holds` at the terminal: what they print, and their exit status."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from omniops_pipelines.cli import main
from resources import stack
from resources.postgres.retention import REMOVABLE
from tests.integration.retention.seeds import make_customer, make_job, make_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.databases import Database

pytestmark = pytest.mark.integration


@pytest.fixture
def omniops(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    for name, value in database.environment(tmp_path / "home").items():
        if name.startswith("OMNIOPS_"):
            monkeypatch.setenv(name, value)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["omniops", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    yield call
    stack.release()


def test_cleanup_shows_what_would_go_and_then_removes_it(database: Database, omniops: Any) -> None:
    customer = make_customer(database, "acme")
    make_job(database, customer, "old", age_days=100, results=12)
    make_messages(database, customer, 3, expired_hours=1)
    status, out, _ = omniops("cleanup", "--dry-run", "--json")
    seen = json.loads(out)
    assert status == 0
    assert [result["policy"] for result in seen] == list(REMOVABLE)
    rows = {row["table"]: row["rows"] for result in seen for row in result["rows"]}
    assert rows == {"message_queue": 3, "scrape_jobs": 1, "scrape_job_results": 12, "scrape_job_stats": 1}
    assert all(row["customer"] == "acme" and row["bytes"] > 0 for result in seen for row in result["rows"])
    status, out, _ = omniops("cleanup", "scrape_jobs", "message_queue")
    assert status == 0
    assert "scrape_jobs: 14 rows removed" in out
    assert "message_queue: 3 rows removed" in out
    assert omniops("cleanup", "scrape_jobs")[1].startswith("scrape_jobs: nothing has expired")


def test_wrong_use_of_cleanup_is_named_and_does_nothing(database: Database, omniops: Any) -> None:
    for arguments, word in (
        (("jobs",), "'jobs' is unknown; the policies are"),
        (("for_good",), "for good, as proof"),
        (("scrape_jobs", "--days", "0"), "retention of 0 days"),
        (("scrape_jobs", "--days", "99999"), "retention of 99999 days"),
        (("message_queue", "--days", "3"), "takes no days"),
        (("--days", "x"), "not a valid integer"),
    ):
        status, out, err = omniops("cleanup", *arguments)
        assert (status, out) == (2, "")
        assert word in " ".join(err.split())
    assert database.value("SELECT count(*) FROM retention_runs") == 0


def test_a_customer_is_held_exported_and_erased(database: Database, omniops: Any, tmp_path: Path) -> None:
    make_job(database, make_customer(database, "acme"), "job", age_days=100, results=4)
    assert omniops("holds", "place", "acme", "--reason", "case 1")[0] == 0
    assert [hold["reason"] for hold in json.loads(omniops("holds", "list", "--json")[1])] == ["case 1"]
    assert "Under a legal hold, so nothing of theirs goes: acme" in omniops("cleanup", "scrape_jobs")[1]
    status, _, err = omniops("erase", "acme", "--confirm", "acme")
    assert status == 1
    assert err.startswith("omniops: customer acme is under a legal hold")
    assert omniops("holds", "release", "acme")[0] == 0
    assert omniops("export", "acme", "--out", str(tmp_path / "acme.jsonl"))[0] == 0
    printed = omniops("export", "acme")[1].splitlines()
    assert {json.loads(line)["table"] for line in printed} >= {"customers", "scrape_jobs", "scrape_job_results"}
    assert omniops("erase", "acme")[0] == 2
    assert omniops("erase", "acme", "--confirm", "other")[0] == 2
    assert {row["table"] for row in json.loads(omniops("erase", "acme", "--dry-run", "--json")[1])["rows"]} >= {
        "customers",
        "legal_holds",
    }
    status, out, _ = omniops("erase", "acme", "--confirm", "acme", "--json")
    assert status == 0
    assert json.loads(out)["rows"]["scrape_job_results"] == 4
    assert "Nothing to do: the erasure was completed" in omniops("erase", "acme", "--confirm", "acme")[1]
    assert omniops("erase", "nobody", "--confirm", "nobody")[0] == 1
    assert database.value("SELECT count(*) FROM customers") == 0
