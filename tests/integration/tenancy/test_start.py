"""The program does not start as a role that row-level security does not bind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acceptance.program import Program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.databases import Database

pytestmark = pytest.mark.acceptance


@pytest.fixture
def program(database: Database, tmp_path: Path) -> Iterator[Program]:
    """The program, with one url for everything, as many a first try has it."""
    environment = database.environment(tmp_path / "home")
    del environment["OMNIOPS_OWNER_DATABASE_URL"]
    made = Program(environment)
    yield made
    made.close()


@pytest.mark.parametrize("command", [["crawl", "http://example.com/"], ["jobs", "list"]], ids=lambda c: c[0])
@pytest.mark.parametrize(("role", "why"), [("admin_url", "is a superuser"), ("owner_url", "owns the tables")])
def test_one_url_of_a_superuser_or_an_owner_is_refused_in_one_sentence(
    command: list[str], role: str, why: str, program: Program, database: Database
) -> None:
    ended = program.run(*command, OMNIOPS_DATABASE_URL=getattr(database, role)).expect(1)
    assert why in ended.err
    assert "OMNIOPS_OWNER_DATABASE_URL" in ended.err
    assert ended.err.count("\n") == 1
    assert ended.out == ""


def test_a_superuser_is_refused_before_there_is_a_table_too(program: Program, empty_database: Database) -> None:
    ended = program.run("jobs", "list", OMNIOPS_DATABASE_URL=empty_database.admin_url).expect(1)
    assert "is a superuser" in ended.err


def test_the_role_that_is_meant_to_run_it_is_not_refused(program: Program) -> None:
    program.run("jobs", "list").expect(0)
