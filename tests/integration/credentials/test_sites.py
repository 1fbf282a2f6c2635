"""`omniops sites`, as it is typed: keys are set, listed by name, removed; no value is ever shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from omniops_pipelines.cli import cli
from omniops_pipelines.cli.errors import sentence_for
from resources import stack
from resources.crawler.site_access import find_site, load_site_access
from resources.crawler.stored_order import plan_for_site
from resources.postgres.credentials import read_credentials, set_credentials
from resources.postgres.customers import ensure_customer
from resources.postgres.tenancy import service_connection
from resources.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from resources.crawler.site_access import SiteAccess
    from tests.support.databases import Database

pytestmark = pytest.mark.integration

VALUES = ("sesame-open-1", "swordfish-77", "c0ffee-c0ffee", "tunnel-pass-9")
Omniops = Callable[..., Result]


@pytest.fixture
def omniops(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Omniops]:
    """The program in this process, with this test's database; what it says is checked for values each time."""
    for name, value in database.environment(tmp_path / "home").items():
        if name.startswith("OMNIOPS_"):
            monkeypatch.setenv(name, value)

    def run(*arguments: str, lines: str = "") -> Result:
        result = CliRunner().invoke(cli, arguments, input=lines)
        said = result.output + str(sentence_for(result.exception) if result.exception else "")
        for value in VALUES:
            assert value not in said
        return result

    with service_connection(engine=database.engine) as connection:
        customer = ensure_customer(connection, "acme")
        connection.execute(
            text("INSERT INTO customer_configs (customer_id, domain, settings) VALUES (:c, 'shop.example', '{}')"),
            {"c": customer},
        )
    yield run
    stack.release()


def access(database: Database, domain: str = "shop.example") -> SiteAccess | None:
    with service_connection(engine=database.engine) as connection:
        customer = ensure_customer(connection, "acme")
        return load_site_access(connection, customer, domain, settings=Settings.from_environment())


def set_(omniops: Omniops, *arguments: str, lines: str = "", site: str = "shop.example") -> Result:
    return omniops("sites", "credentials", "set", "acme", site, *arguments, lines=lines)


def test_keys_are_read_from_standard_input_and_the_environment_and_shown_by_name(
    omniops: Omniops, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_COOKIE", VALUES[2])
    done = set_(
        omniops, "--header", "X-Api-Key", "--basic", "reader", "--cookie", "session=env:SHOP_COOKIE", "--proxy",
        "http://proxy.example:3128", "--proxy-user", "p", lines=f"{VALUES[0]}\n{VALUES[1]}\n{VALUES[3]}\n",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = access(database)
    assert found is not None
    sent = found.headers_for("https://shop.example/")
    assert (sent["X-Api-Key"], sent["Cookie"]) == (VALUES[0], f"session={VALUES[2]}")
    assert found.proxy is not None
    assert (found.proxy.host, found.proxy.port) == ("proxy.example", 3128)
    shown = omniops("sites", "credentials", "show", "acme", "SHOP.example")
    assert shown.output.splitlines() == [
        "for https://shop.example", "header X-Api-Key", "basic authentication", "cookie session",
        "proxy with credentials",
    ]  # fmt: skip
    assert "cookie session" in omniops("sites", "show", "acme", "shop.example").output
    assert "shop.example" in omniops("sites", "list").output
    assert '"credentials": true' in omniops("sites", "list", "--customer", "acme", "--json").output


def test_setting_a_kind_keeps_the_others_and_clearing_keeps_what_is_no_key(
    omniops: Omniops, database: Database
) -> None:
    with service_connection(engine=database.engine) as connection:
        customer = ensure_customer(connection, "acme")
        config = find_site(connection, customer, "shop.example")
        assert config is not None
        set_credentials(
            connection, customer, config, {"token": "of another program"}, settings=Settings.from_environment()
        )
    assert set_(omniops, "--header", "A", lines=VALUES[0]).exit_code == 0
    assert set_(omniops, "--cookie", "b", lines=VALUES[2]).exit_code == 0
    assert set_(omniops, "--header", "C", lines=VALUES[0]).exit_code == 0
    found = access(database)
    assert found is not None
    assert found.described() == ["header C", "cookie b"]
    assert omniops("sites", "credentials", "clear", "acme", "shop.example").exit_code == 0
    assert access(database) is None
    with service_connection(engine=database.engine) as connection:
        kept = read_credentials(connection, customer, config, settings=Settings.from_environment())
    assert list(kept) == ["token"]
    assert "no keys" in omniops("sites", "credentials", "show", "acme", "shop.example").output


def test_a_site_that_is_not_configured_is_made_only_when_asked(omniops: Omniops, database: Database) -> None:
    refused = set_(omniops, "--header", "A", lines=VALUES[0], site="http://localhost:8000")
    assert refused.exit_code == 1
    assert "no site localhost:8000" in refused.output
    made = set_(omniops, "--create", "--header", "A", lines=VALUES[0], site="http://localhost:8000")
    assert made.exit_code == 0, made.output
    assert "can read them" in made.output
    found = access(database, "localhost:8000")
    assert found is not None
    assert found.origin == "http://localhost:8000"
    assert database.value("SELECT enabled FROM customer_configs WHERE domain = 'localhost:8000'") is False


@pytest.mark.parametrize(
    ("arguments", "lines", "says"),
    [
        ((), "", "at least one"),
        (("--header", f"X-A={VALUES[0]}"), "", "on the command line"),
        (("--header", f"X-A: {VALUES[0]}"), "", "on the command line"),
        (("--basic", f"reader:{VALUES[1]}"), "", "on the command line"),
        (("--header", "X-A=env:NOT_THERE"), "", "NOT_THERE"),
        (("--header", "X-A"), "", "no line"),
        (("--header", "Host"), VALUES[0], "Host"),
        (("--header", "X A"), VALUES[0], "name"),
        (("--cookie", "a"), f"{VALUES[2]}; x", "cookie a"),
        (("--proxy-user", "p"), VALUES[3], "--proxy"),
        (("--proxy", f"http://p:{VALUES[3]}@proxy.example:1"), "", "beside"),
        (("--proxy", "socks5://proxy.example:1"), "", "http://proxy.example:3128"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words_and_changes_nothing(
    omniops: Omniops, database: Database, arguments: tuple[str, ...], lines: str, says: str
) -> None:
    result = set_(omniops, *arguments, lines=lines)
    assert result.exit_code != 0
    said = result.output + str(sentence_for(result.exception) if result.exception else "")
    assert says in said, said
    assert access(database) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "nobody", "shop.example"), "no customer"),
        (("show", "acme", "other.example"), "no site"),
        (("show", "acme", "https://shop.example/path"), "more than a site"),
        (("show", "acme", "not a host"), "host"),
        (("credentials", "clear", "acme", "other.example"), "no site"),
        (("list", "--customer", "nobody"), "no customer"),
        (("limit", "acme", "other.example", "--requests-per-minute", "5"), "no site"),
        (("limit", "acme", "shop.example", "--requests-per-minute", "-1"), "between 0 and"),
        (("limit", "acme", "shop.example"), "--requests-per-minute"),
    ],
)
def test_a_site_that_is_not_there_is_said_to_be_so(omniops: Omniops, arguments: tuple[str, ...], says: str) -> None:
    result = omniops("sites", *arguments)
    assert result.exit_code != 0
    assert says in result.output + str(sentence_for(result.exception) if result.exception else "")


def configure(database: Database, settings: dict[str, Any]) -> None:
    with service_connection(engine=database.engine) as connection:
        connection.execute(
            text("UPDATE customer_configs SET settings = CAST(:s AS jsonb) WHERE domain = 'shop.example'"),
            {"s": json.dumps(settings)},
        )


def configured(database: Database) -> Any:
    return database.value("SELECT settings FROM customer_configs WHERE domain = 'shop.example'")


def test_a_site_is_limited_and_keeps_its_other_settings(omniops: Omniops, database: Database) -> None:
    configure(database, {"a": 1, "crawl": {"max_pages": 7}})
    done = omniops("sites", "limit", "acme", "SHOP.example", "--requests-per-minute", "30")
    assert done.exit_code == 0, done.output
    assert "30 requests" in done.output
    assert configured(database) == {"a": 1, "crawl": {"max_pages": 7, "requests_per_minute": 30}}
    plan = plan_for_site("acme", "shop.example", configured(database))
    assert (plan.requests_per_minute, plan.max_pages) == (30, 7)
    assert "no limit" in omniops("sites", "limit", "acme", "shop.example", "--requests-per-minute", "0").output
    assert plan_for_site("acme", "shop.example", configured(database)).requests_per_minute == 0


def test_a_configuration_that_cannot_be_crawled_is_named_and_left_alone(omniops: Omniops, database: Database) -> None:
    configure(database, {"crawl": [1]})
    refused = omniops("sites", "limit", "acme", "shop.example", "--requests-per-minute", "30")
    assert refused.exit_code == 1
    assert "settings.crawl" in refused.output
    assert configured(database) == {"crawl": [1]}
