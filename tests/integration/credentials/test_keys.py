"""Where keys come from, and how they are changed."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from resources.postgres.credentials import (
    InvalidCredentials,
    UnknownRow,
    UnreadableSecret,
    drop_old_keys,
    key_uses,
    read_credentials,
    read_webhook_secret,
    rotate_keys,
    set_credentials,
    set_webhook_secret,
)
from resources.postgres.secret_keys import (
    InvalidSecretKey,
    MissingSecretKey,
    SecretError,
    SecretKey,
    key_file,
    load_keyring,
)
from resources.postgres.tenancy import service_connection, tenant_connection
from resources.secret import Secret
from resources.settings import PROJECT_ROOT, Settings
from tests.support.rows import make_customer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.databases import Database

PASSWORD = "correct horse battery staple"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home of this test's own, and no key in the environment."""
    return Settings(tmp_path / "home", None, None, None)


def _with(settings: Settings, *keys: str) -> Settings:
    return Settings(settings.home, None, None, None, Secret(",".join(keys)))


# --- the setting and the file ------------------------------------------------------------------------------------


def test_the_key_file_is_made_on_first_use_for_its_owner_alone(settings: Settings) -> None:
    first = load_keyring(settings, create=True)
    assert oct(key_file(settings).stat().st_mode & 0o777) == "0o600"
    assert load_keyring(settings) == first
    assert [p.name for p in settings.home.iterdir() if "secret" in p.name] == ["secret_key"]


def test_processes_that_make_it_at_once_use_one_key(settings: Settings) -> None:
    settings.home.mkdir()
    barrier = threading.Barrier(8)
    found: list[str] = []

    def load() -> None:
        barrier.wait()
        found.append(load_keyring(settings, create=True).newest.id)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_reading_makes_no_key(settings: Settings) -> None:
    with pytest.raises(MissingSecretKey, match="put back the key"):
        load_keyring(settings)
    assert not key_file(settings).exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_file_that_others_can_read_is_refused(settings: Settings, mode: int) -> None:
    load_keyring(settings, create=True)
    key_file(settings).chmod(mode)
    with pytest.raises(InvalidSecretKey, match=f"mode {mode:04o}.*chmod 600"):
        load_keyring(settings, create=True)


def test_a_key_file_that_is_a_link_is_refused(settings: Settings, tmp_path: Path) -> None:
    load_keyring(settings, create=True)
    key_file(settings).rename(tmp_path / "elsewhere")
    key_file(settings).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidSecretKey, match="plain file"):
        load_keyring(settings)


def test_an_empty_key_file_is_refused_and_not_filled(settings: Settings) -> None:
    load_keyring(settings, create=True)
    key_file(settings).write_text("\n")
    with pytest.raises(MissingSecretKey, match="is empty"):
        load_keyring(settings, create=True)


def test_the_environments_keys_count_newest_first_and_the_file_does_not(settings: Settings) -> None:
    keys = [secrets.token_urlsafe(32) for _ in range(2)]
    found = load_keyring(_with(settings, keys[0], " " + keys[1] + "= "), create=True)
    assert [key.written().reveal() for key in found.keys] == keys
    assert not key_file(settings).exists()


@pytest.mark.parametrize(
    "wrong",
    ["", "hunter2hunter2", secrets.token_urlsafe(31), secrets.token_urlsafe(33), "é" * 43, "A" * 42 + "+/"],
    ids=["empty", "word", "short", "long", "not ascii", "other alphabet"],
)
def test_a_malformed_key_is_named_by_its_place_and_not_repeated(settings: Settings, wrong: str) -> None:
    with pytest.raises(InvalidSecretKey, match="key 2 of OMNIOPS_SECRET_KEY is not 32 bytes") as caught:
        load_keyring(_with(settings, secrets.token_urlsafe(32), wrong))
    if wrong:
        assert wrong not in str(caught.value)


def test_a_key_given_twice_is_refused(settings: Settings) -> None:
    key = secrets.token_urlsafe(32)
    with pytest.raises(InvalidSecretKey, match="twice"):
        load_keyring(_with(settings, key, key))


def test_settings_do_not_show_their_keys() -> None:
    key = secrets.token_urlsafe(32)
    settings = Settings.from_environment({"OMNIOPS_SECRET_KEY": key})
    assert key not in repr(settings)
    assert settings == Settings.from_environment({"OMNIOPS_SECRET_KEY": key})
    assert hash(settings) is not None
    assert Settings.from_environment({"OMNIOPS_SECRET_KEY": ""}).secret_key is None


def test_a_keys_id_does_not_give_the_key_away() -> None:
    key = SecretKey.generate()
    assert len(key.id) == 16
    assert bytes.fromhex(key.id) not in key.value.reveal()


# --- rows --------------------------------------------------------------------------------------------------------


def _customer(database: Database) -> tuple[UUID, UUID, UUID]:
    with service_connection(engine=database.engine) as connection:
        made = make_customer(connection)
    return made.customer_id, made.rows["customer_configs"]["id"], made.rows["webhook_endpoints"]["id"]


@pytest.mark.integration
def test_a_tenant_stores_and_reads_its_own_credentials(database: Database, settings: Settings) -> None:
    customer, config, endpoint = _customer(database)
    with tenant_connection(customer, engine=database.engine) as connection:
        assert read_credentials(connection, customer, config, settings=settings) == {}
        set_credentials(connection, customer, config, {"password": PASSWORD}, settings=settings)
        set_webhook_secret(connection, customer, endpoint, PASSWORD, settings=settings)
    with tenant_connection(customer, engine=database.engine) as connection:
        assert read_credentials(connection, customer, config, settings=settings) == {"password": Secret(PASSWORD)}
        assert read_webhook_secret(connection, customer, endpoint, settings=settings) == Secret(PASSWORD)
        set_credentials(connection, customer, config, None, settings=settings)
        set_webhook_secret(connection, customer, endpoint, None, settings=settings)
        assert read_credentials(connection, customer, config, settings=settings) == {}
        assert read_webhook_secret(connection, customer, endpoint, settings=settings) is None


@pytest.mark.integration
def test_nothing_readable_stands_in_the_database(database: Database, settings: Settings) -> None:
    customer, config, endpoint = _customer(database)
    with service_connection(engine=database.engine) as connection:
        set_credentials(connection, customer, config, {"password": PASSWORD}, settings=settings)
        set_webhook_secret(connection, customer, endpoint, PASSWORD, settings=settings)
    for table in ("customer_configs", "webhook_endpoints"):
        rows = database.rows(f"SELECT {table}::text AS shown FROM {table}")
        assert all(PASSWORD.encode().hex() not in str(row) and PASSWORD not in str(row) for row in rows)


@pytest.mark.integration
def test_another_customers_row_is_not_there(database: Database, settings: Settings) -> None:
    (a, _, _), (b, config, _) = _customer(database), _customer(database)
    for connect in (
        lambda: tenant_connection(a, engine=database.engine),
        lambda: service_connection(engine=database.engine),
    ):
        with connect() as connection, pytest.raises(UnknownRow, match=str(config)):
            read_credentials(connection, a, config, settings=settings)
        with connect() as connection, pytest.raises(UnknownRow, match=str(config)):
            set_credentials(connection, a, config, {}, settings=settings)
    with tenant_connection(a, engine=database.engine) as connection, pytest.raises(UnknownRow):
        read_credentials(connection, b, config, settings=settings)


@pytest.mark.integration
def test_ciphertexts_swapped_between_tenants_do_not_open(database: Database, settings: Settings) -> None:
    (a, of_a, _), (b, of_b, _) = _customer(database), _customer(database)
    with service_connection(engine=database.engine) as connection:
        set_credentials(connection, a, of_a, {"password": PASSWORD}, settings=settings)
        set_credentials(connection, b, of_b, {"password": "b"}, settings=settings)
        connection.execute(
            text("""UPDATE customer_configs AS c SET credentials = o.credentials
                    FROM customer_configs AS o WHERE c.id <> o.id""")
        )
        for customer, config in ((a, of_a), (b, of_b)):
            with pytest.raises(UnreadableSecret, match="another customer"):
                read_credentials(connection, customer, config, settings=settings)


@pytest.mark.integration
@pytest.mark.parametrize("wrong", ["", 7, "x" * 20_000])
def test_a_webhook_secret_that_is_none_is_refused(wrong: Any, database: Database, settings: Settings) -> None:
    with (
        service_connection(engine=database.engine) as connection,
        pytest.raises(InvalidCredentials, match="a text of 1 to 16,384 characters"),
    ):
        set_webhook_secret(connection, uuid4(), uuid4(), wrong, settings=settings)


# --- rotation ----------------------------------------------------------------------------------------------------


def _fill(database: Database, settings: Settings, customers: int = 3) -> list[tuple[UUID, UUID, UUID]]:
    made = [_customer(database) for _ in range(customers)]
    with service_connection(engine=database.engine) as connection:
        for customer, config, endpoint in made:
            set_credentials(connection, customer, config, {"of": str(customer)}, settings=settings)
            set_webhook_secret(connection, customer, endpoint, str(endpoint), settings=settings)
    return made


def _assert_all_readable(database: Database, settings: Settings, made: list[tuple[UUID, UUID, UUID]]) -> None:
    with service_connection(engine=database.engine) as connection:
        for customer, config, endpoint in made:
            found = read_credentials(connection, customer, config, settings=settings)
            assert found == {"of": Secret(str(customer))}
            secret = read_webhook_secret(connection, customer, endpoint, settings=settings)
            assert secret == Secret(str(endpoint))


@pytest.mark.integration
def test_rotation_encrypts_everything_with_a_new_key_and_the_old_one_can_go(
    database: Database, settings: Settings
) -> None:
    made = _fill(database, settings)
    old = load_keyring(settings).newest.id
    done = rotate_keys(database.engine, settings, batch=2)
    assert (done.made, done.reencrypted, done.failed, done.unused) == (True, 6, (), (old,))
    assert [key.id for key in load_keyring(settings).keys] == [done.key_id, old]
    assert drop_old_keys(database.engine, settings) == ((old,), ())
    assert [key.id for key in load_keyring(settings).keys] == [done.key_id]
    assert oct(key_file(settings).stat().st_mode & 0o777) == "0o600"
    _assert_all_readable(database, settings, made)


@pytest.mark.integration
def test_a_rotation_that_was_killed_goes_on_to_the_same_key(database: Database, settings: Settings) -> None:
    made = _fill(database, settings)
    script = """
import os, signal, sys
from pathlib import Path
from resources.postgres.connection import engine_for
from resources.postgres.credentials import rotate_keys
from resources.settings import Settings
rotate_keys(engine_for(sys.argv[1]), Settings(Path(sys.argv[2]), None, None, None), batch=2,
            after_batch=lambda _: os.kill(os.getpid(), signal.SIGKILL))
"""
    killed = subprocess.run(
        [sys.executable, "-c", script, database.url, str(settings.home)],
        cwd=PROJECT_ROOT,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        check=False,
    )
    assert killed.returncode == -9
    newest, old = load_keyring(settings).keys
    assert sorted(use.total for use in key_uses(database.engine, load_keyring(settings))) == [2, 4]
    _assert_all_readable(database, settings, made)
    assert drop_old_keys(database.engine, settings) == ((), (old.id,))

    done = rotate_keys(database.engine, settings, batch=2)
    assert (done.made, done.key_id, done.reencrypted, done.unused) == (False, newest.id, 4, (old.id,))
    _assert_all_readable(database, settings, made)


@pytest.mark.integration
def test_a_value_that_does_not_open_is_named_and_stops_neither_this_rotation_nor_the_next(
    database: Database, settings: Settings
) -> None:
    made = _fill(database, settings)
    with service_connection(engine=database.engine) as connection:
        connection.execute(
            text("UPDATE customer_configs SET credentials = credentials || '\\x00' WHERE id = :id"),
            {"id": made[0][1]},
        )
    first = rotate_keys(database.engine, settings, batch=1)
    second = rotate_keys(database.engine, settings, batch=1)
    for done in (first, second):
        assert (done.made, done.reencrypted, len(done.failed)) == (True, 5, 1)
        assert str(made[0][1]) in done.failed[0]
    assert first.key_id != second.key_id
    _assert_all_readable(database, settings, made[1:])


@pytest.mark.integration
def test_keys_in_the_environment_rotate_to_the_first_and_are_dropped_by_hand(
    database: Database, settings: Settings
) -> None:
    old, new = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    made = _fill(database, _with(settings, old))
    both = _with(settings, new, old)
    done = rotate_keys(database.engine, both)
    assert (done.made, done.in_file, done.reencrypted) == (False, False, 6)
    with pytest.raises(SecretError, match=f"only you can change: nothing needs {done.unused[0]} any more"):
        drop_old_keys(database.engine, both)
    assert not key_file(settings).exists()
    _assert_all_readable(database, _with(settings, new), made)


@pytest.mark.integration
def test_uses_say_which_keys_are_missing_and_what_is_foreign(database: Database, settings: Settings) -> None:
    made = _fill(database, _with(settings, secrets.token_urlsafe(32)), customers=2)
    with service_connection(engine=database.engine) as connection:
        connection.execute(
            text("UPDATE customer_configs SET credentials = 'plain' WHERE id = :id"), {"id": made[0][1]}
        )
    uses = key_uses(database.engine, load_keyring(_with(settings, secrets.token_urlsafe(32))))
    assert [(use.at_hand, use.newest, use.total) for use in uses[:1]] == [(True, True, 0)]
    assert sorted((use.key_id == "unreadable", use.at_hand, use.total) for use in uses[1:]) == [
        (False, False, 3),
        (True, False, 1),
    ]


@pytest.mark.integration
def test_a_write_under_way_keeps_its_key_from_being_dropped(database: Database, settings: Settings) -> None:
    customer, config, _ = _customer(database)
    load_keyring(settings, create=True)
    dropped: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    with service_connection(engine=database.engine) as connection:
        set_credentials(connection, customer, config, {"password": PASSWORD}, settings=settings)
        # Nothing that is committed needs the old key; what is under way does.
        old = load_keyring(settings).newest.id
        rotate_keys(database.engine, settings)
        thread = threading.Thread(target=lambda: dropped.append(drop_old_keys(database.engine, settings)))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join()
    assert dropped == [((), (old,))]
