"""`omniops keys`, as it is typed: no key and no credential in anything that it says."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from resources.postgres.credentials import read_credentials, set_credentials
from resources.postgres.secret_keys import key_file, load_keyring
from resources.postgres.tenancy import service_connection
from resources.secret import Secret
from resources.settings import Settings
from tests.acceptance.program import Ended, Program
from tests.support.rows import CustomerRows, make_customer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.databases import Database

pytestmark = pytest.mark.acceptance

PASSWORD = "correct horse battery staple"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home of this test's own, and no key in the environment."""
    return Settings(tmp_path / "home", None, None, None)


@pytest.fixture
def program(database: Database, settings: Settings) -> Iterator[Program]:
    """The program, with this test's database and home."""
    made = Program(database.environment(settings.home))
    yield made
    made.close()


@pytest.fixture
def customer(database: Database) -> CustomerRows:
    """A customer with a configuration."""
    with service_connection(engine=database.engine) as connection:
        return make_customer(connection)


def _set(database: Database, customer: CustomerRows, settings: Settings) -> None:
    with service_connection(engine=database.engine) as connection:
        config = customer.rows["customer_configs"]["id"]
        set_credentials(connection, customer.customer_id, config, {"p": PASSWORD}, settings=settings)


def _assert_silent(ended: Ended, *keyfuls: Settings) -> None:
    for settings in keyfuls:
        for key in load_keyring(settings).keys:
            assert key.written().reveal() not in ended.out + ended.err
    assert PASSWORD not in ended.out + ended.err


def test_keys_are_listed_rotated_and_dropped_without_being_shown(
    program: Program, database: Database, settings: Settings, customer: CustomerRows
) -> None:
    _set(database, customer, settings)
    old = load_keyring(settings).newest.id

    listed = program.run("keys", "list", "--json").expect(0)
    assert listed.json["keys"] == [
        {"key": old, "state": "newest", "customer_configs.credentials": 1, "webhook_endpoints.secret": 0}
    ]
    rotated = program.run("keys", "rotate").expect(0)
    new = load_keyring(settings).newest.id
    assert new != old
    assert new in rotated.out
    assert old in rotated.out
    table = program.run("keys", "list").expect(0)
    assert table.out.index(new) < table.out.index(old)
    for ended in (listed, rotated, table):
        _assert_silent(ended, settings)

    assert program.run("keys", "drop-old", "--json").expect(0).json == {"dropped": [old], "kept": []}
    assert program.run("keys", "drop-old").expect(0).out == "No key was dropped.\n"
    with service_connection(engine=database.engine) as connection:
        config = customer.rows["customer_configs"]["id"]
        found = read_credentials(connection, customer.customer_id, config, settings=settings)
    assert found == {"p": Secret(PASSWORD)}


def test_keys_of_the_environment_are_rotated_to_the_first_and_dropped_by_hand(
    program: Program, database: Database, settings: Settings, customer: CustomerRows
) -> None:
    old, new = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    before = Settings(settings.home, None, None, None, Secret(old))
    after = Settings(settings.home, None, None, None, Secret(f"{new},{old}"))
    _set(database, customer, before)
    rotated = program.run("keys", "rotate", OMNIOPS_SECRET_KEY=f"{new},{old}").expect(0)
    assert f"its first one, {load_keyring(after).newest.id}, encrypts" in rotated.out
    assert "take them out of OMNIOPS_SECRET_KEY" in rotated.out
    refused = program.run("keys", "drop-old", OMNIOPS_SECRET_KEY=f"{new},{old}").expect(1)
    assert "which only you can change" in refused.err
    for ended in (rotated, refused):
        _assert_silent(ended, after)
    assert not key_file(settings).exists()


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("hunter2hunter2", "key 1 of OMNIOPS_SECRET_KEY is not 32 bytes of base64url"),
        (secrets.token_urlsafe(32), "which is not in OMNIOPS_SECRET_KEY"),
    ],
    ids=["malformed", "unknown"],
)
def test_a_wrong_key_is_one_sentence_without_the_key(
    key: str, why: str, program: Program, database: Database, settings: Settings, customer: CustomerRows
) -> None:
    _set(database, customer, settings)
    ended = program.run("keys", "rotate", OMNIOPS_SECRET_KEY=key).expect(1)
    assert why in ended.err
    assert ended.err.count("\n") == 1
    assert key not in ended.out + ended.err
    _assert_silent(ended, settings)


def test_without_any_key_listing_says_so_and_makes_none(program: Program, settings: Settings) -> None:
    ended = program.run("keys", "list").expect(1)
    assert "OMNIOPS_SECRET_KEY is not set" in ended.err
    assert not key_file(settings).exists()
