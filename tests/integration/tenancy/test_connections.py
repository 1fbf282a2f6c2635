"""`tenant_connection` and `service_connection`: one transaction each, and nothing of it left behind."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import InvalidRequestError, ProgrammingError

from resources.postgres.connection import driver_url
from resources.postgres.tenancy import service_connection, tenant_connection
from tests.support.rows import make_customer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from tests.support.databases import Database

pytestmark = pytest.mark.integration

_WHO = text("SELECT current_user::text, coalesce(current_setting('request.jwt.claims', true), '')")


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """One connection, which each user hands on to the next."""
    made = create_engine(driver_url(database.url), pool_size=1, max_overflow=0, pool_timeout=5)
    yield made
    made.dispose()


def test_what_a_tenant_writes_is_committed_and_only_that_tenant_reads_it(engine: Engine) -> None:
    with service_connection(engine=engine) as connection:
        a, b = make_customer(connection), make_customer(connection)
    with tenant_connection(a.customer_id, engine=engine) as connection:
        connection.execute(
            text(
                "INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type) VALUES ('j', :c, 'x', 'full_crawl')"
            ),
            {"c": a.customer_id},
        )
    jobs = text("SELECT count(*) FROM scrape_jobs")
    with tenant_connection(str(a.customer_id), engine=engine) as connection:
        assert connection.scalar(jobs) == 2
    with tenant_connection(b.customer_id, engine=engine) as connection:
        assert connection.scalar(jobs) == 1
    with tenant_connection(uuid.uuid4(), engine=engine) as connection:
        assert connection.scalar(jobs) == 0
    with service_connection(engine=engine) as connection:
        assert connection.scalar(jobs) == 3


def test_an_exception_rolls_back(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), service_connection(engine=engine) as connection:  # noqa: PT012
        make_customer(connection)
        raise ZeroDivisionError
    with service_connection(engine=engine) as connection:
        assert connection.scalar(text("SELECT count(*) FROM customers")) == 0


@pytest.mark.parametrize("fails", [False, True])
def test_a_pooled_connection_carries_neither_role_nor_claims_to_its_next_user(engine: Engine, fails: bool) -> None:
    try:
        with tenant_connection(uuid.uuid4(), engine=engine) as connection:
            assert connection.execute(_WHO).one()[0] == "authenticated"
            if fails:
                connection.execute(text("SELECT 1 / 0"))
    except Exception:  # noqa: BLE001 - whatever it was, the connection goes back
        pass
    with engine.connect() as connection:
        assert tuple(connection.execute(_WHO).one()) == ("omniops", "")


def test_after_a_commit_inside_the_block_nothing_runs_with_more_rights(engine: Engine) -> None:
    with tenant_connection(uuid.uuid4(), engine=engine) as connection:
        connection.commit()
        with pytest.raises(InvalidRequestError, match="closed transaction"):
            connection.execute(_WHO)


def test_a_savepoint_that_is_rolled_back_leaves_the_tenant_in_force(engine: Engine) -> None:
    with tenant_connection(uuid.uuid4(), engine=engine) as connection:
        with pytest.raises(ProgrammingError), connection.begin_nested():
            connection.execute(text("SELECT nothing FROM nowhere"))
        assert connection.execute(_WHO).one()[0] == "authenticated"


@pytest.mark.parametrize("wrong", ["", "acme", "1234", None, 7, "00000000-0000-4000-8000-00000000000g", "\x00"])
def test_a_customer_id_that_is_no_uuid_is_refused_by_name(wrong: object, engine: Engine) -> None:
    with pytest.raises(ValueError, match="is not a uuid") as caught, tenant_connection(wrong, engine=engine):  # type: ignore[arg-type]
        pytest.fail("it was let in")
    assert repr(wrong) in str(caught.value)


def test_claims_that_a_caller_left_in_the_session_do_not_reach_the_service(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT set_config('request.jwt.claims', 'left over', false)"))
        connection.commit()
    with service_connection(engine=engine) as connection:
        assert tuple(connection.execute(_WHO).one()) == ("service_role", "")


_QUEUE = (
    "INSERT INTO scrape_jobs (job_id, customer_id, domain, job_type, config) VALUES (:id, :c, 'x', 'full_crawl', {})"
)
_CONFIGURE = "INSERT INTO customer_configs (customer_id, domain, settings) VALUES (:c, :id, {})"


@pytest.mark.parametrize("allowed", ["true", '"yes"', "1"])
@pytest.mark.parametrize(
    ("statement", "around"),
    [(_QUEUE, '{{"allow_private": {}}}'), (_CONFIGURE, '{{"crawl": {{"allow_private": {}}}}}')],
)
def test_only_the_service_may_allow_private_addresses(
    engine: Engine, statement: str, around: str, allowed: str
) -> None:
    with service_connection(engine=engine) as connection:
        customer = make_customer(connection).customer_id
    insert = text(statement.format("CAST(:json AS jsonb)"))
    given = {"c": customer, "id": "a", "json": around.format(allowed)}
    with (
        pytest.raises(ProgrammingError, match="only the service may allow private addresses"),
        tenant_connection(customer, engine=engine) as connection,
    ):
        connection.execute(insert, given)
    with tenant_connection(customer, engine=engine) as connection:
        connection.execute(insert, {**given, "json": around.format("false")})
    with service_connection(engine=engine) as connection:
        connection.execute(insert, {**given, "id": "b"})


def test_a_tenant_may_not_turn_private_addresses_on_later(engine: Engine) -> None:
    with service_connection(engine=engine) as connection:
        customer = make_customer(connection).customer_id
    with (
        pytest.raises(ProgrammingError, match="only the service may allow private addresses"),
        tenant_connection(customer, engine=engine) as connection,
    ):
        connection.execute(text("""UPDATE scrape_jobs SET config = '{"allow_private": true}'"""))
