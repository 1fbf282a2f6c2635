"""`omniops migrate` as it is typed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from omniops_pipelines.cli import cli
from resources import stack
from resources.postgres.catalogue import TABLES
from resources.postgres.connection import connect_once
from resources.postgres.migrate import RowsWouldBeLost, SchemaNewerThanCode, UnknownRevision
from tests.support.databases import REVISIONS
from tests.support.rows import make_customer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.databases import Database

pytestmark = pytest.mark.integration


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs `omniops migrate` with these options against a database."""

    def run(database: Database, *options: str, keys: str | None = None) -> Result:
        for name, value in database.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        result = CliRunner().invoke(cli, ["migrate", *options], input=keys, standalone_mode=False)
        # As `main` does: a command's return value is its exit status.
        if isinstance(result.exception, click.ClickException):
            result.exit_code = result.exception.exit_code
        elif result.exception is None:
            result.exit_code = result.return_value or 0
        return result

    yield run
    stack.release()


def as_json(result: Result) -> dict[str, object]:
    parsed = json.loads(result.stdout)
    assert isinstance(parsed, dict)
    return parsed


def test_plain_applies_and_says_what(empty_database: Database, run: Callable[..., Result]) -> None:
    result = run(empty_database)
    assert result.exit_code == 0, result.output
    assert f"applied {', '.join(REVISIONS)} (it stood at nothing)" in result.stdout
    assert all(f"  public.{table}: " in result.stdout for table in TABLES)
    assert "cleanup_old_scrape_jobs" in result.stdout
    assert f"nothing to do, it stands at {REVISIONS[-1]}" in run(empty_database).stdout


def test_plain_as_json(empty_database: Database, run: Callable[..., Result]) -> None:
    found = as_json(run(empty_database, "--json"))
    assert (found["from"], found["to"], found["applied"]) == (None, REVISIONS[-1], [*REVISIONS])
    steps = found["steps"]
    assert isinstance(steps, list)
    created = {c["name"] for s in steps for c in s["changes"] if (c["change"], c["kind"]) == ("created", "table")}
    assert {f"public.{table}" for table in TABLES} <= created
    again = as_json(run(empty_database, "--json"))
    assert (again["applied"], again["steps"]) == ([], [])


def test_a_dry_run_prints_sql_that_says_it_was_rolled_back(
    empty_database: Database, run: Callable[..., Result]
) -> None:
    result = run(empty_database, "--dry-run")
    assert result.exit_code == 0
    assert "CREATE TABLE public.scrape_jobs" in result.stdout
    assert "was rolled back" in result.stdout
    found = as_json(run(empty_database, "--dry-run", "--json"))
    assert (found["would_apply"], found["loads"], found["rolled_back"]) == ([*REVISIONS], True, True)
    assert as_json(run(empty_database, "--status", "--json"))["current"] is None


def test_verify_agrees_or_names_the_difference_and_fails(database: Database, run: Callable[..., Result]) -> None:
    result = run(database, "--verify")
    assert (result.exit_code, "as this version wants it" in result.stdout) == (0, True)
    with connect_once(database.owner_url) as connection:
        connection.execute(text("DROP INDEX messages_customer"))
        connection.commit()
    result = run(database, "--verify")
    assert (result.exit_code, result.stdout) == (1, "index public.messages.messages_customer is missing\n")
    result = run(database, "--verify", "--json")
    assert result.exit_code == 1
    found = as_json(result)
    assert found["agrees"] is False
    assert [d["name"] for d in found["differences"]] == ["public.messages.messages_customer"]  # type: ignore[attr-defined]


def test_verify_of_an_older_database_says_what_to_do(database: Database, run: Callable[..., Result]) -> None:
    run(database, "--rollback", "0001")
    result = run(database, "--verify")
    assert result.exit_code == 1
    assert result.stdout == f"revision {REVISIONS[-1]} differs: expected `{REVISIONS[-1]}`, found `0001`\n"


def test_status_says_where_it_stands(database: Database, run: Callable[..., Result]) -> None:
    assert f"at {REVISIONS[-1]}, newest {REVISIONS[-1]}, pending nothing" in run(database, "--status").stdout
    run(database, "--rollback", "0001")
    assert as_json(run(database, "--status", "--json")) == {
        "current": REVISIONS[0], "head": REVISIONS[-1], "pending": [*REVISIONS[1:]], "known": True,
        "revisions": [*REVISIONS],
    }  # fmt: skip


def test_going_back_over_rows_wants_yes_or_a_person(database: Database, run: Callable[..., Result]) -> None:
    with database.engine.begin() as connection:
        make_customer(connection)
    refused = run(database, "--rollback", "0001")
    assert isinstance(refused.exception, RowsWouldBeLost)
    assert "public.messages (1 row)" in str(refused.exception)
    done = run(database, "--rollback", "0001", "--yes")
    assert done.exit_code == 0
    assert f"undone {', '.join(reversed(REVISIONS[1:]))}; it stands at 0001" in done.stdout
    assert "public.messages: dropped with 1 row" in done.stdout


@pytest.mark.parametrize(("answer", "goes"), [("y\n", True), ("n\n", False)])
def test_a_person_is_asked_with_the_tables_and_their_rows(
    database: Database, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, answer: str, goes: bool
) -> None:
    with database.engine.begin() as connection:
        make_customer(connection)
    monkeypatch.setattr(sys.modules["omniops_pipelines.cli.migrate"], "_is_terminal", lambda: True)
    result = run(database, "--rollback", "0001", keys=answer)
    assert "public.messages: 1 row" in result.stderr
    assert (result.exit_code == 0) is goes
    assert (as_json(run(database, "--status", "--json"))["current"] == "0001") is goes


def test_going_back_without_rows_needs_no_confirmation(database: Database, run: Callable[..., Result]) -> None:
    found = as_json(run(database, "--rollback", "base", "--json"))
    assert (found["undone"], found["to"], found["rows_lost"]) == ([*reversed(REVISIONS)], None, {})


@pytest.mark.parametrize(
    "options",
    [
        ("--dry-run", "--verify"),
        ("--verify", "--status"),
        ("--status", "--rollback"),
        ("--rollback", "0001", "--dry-run"),
        ("--yes",),
        ("--lock-wait", "-1"),
    ],
)
def test_what_excludes_each_other_is_wrong_usage(
    database: Database, run: Callable[..., Result], options: tuple[str, ...]
) -> None:
    assert run(database, *options).exit_code == 2


def test_an_unknown_revision_is_named(database: Database, run: Callable[..., Result]) -> None:
    result = run(database, "--rollback", "nonsense")
    assert isinstance(result.exception, UnknownRevision)
    assert "'nonsense'; there are: base, 0001, 0002" in str(result.exception)


def test_a_newer_database_is_refused_whatever_is_asked(database: Database, run: Callable[..., Result]) -> None:
    with connect_once(database.owner_url) as connection:
        connection.execute(text("UPDATE omniops_meta.alembic_version SET version_num = '9999'"))
        connection.commit()
    for options in ((), ("--dry-run",), ("--verify",), ("--rollback",), ("--status",)):
        assert isinstance(run(database, *options).exception, SchemaNewerThanCode), options
    result = run(database, "--status", "--json")
    assert (result.exit_code, as_json(result)["known"]) == (1, False)
