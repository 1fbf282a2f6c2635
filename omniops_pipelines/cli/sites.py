"""`omniops sites`: customers' websites and the keys that they are read with. No command shows a key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from sqlalchemy import Connection, Engine

    from resources.crawler.site_access import SiteAccess
    from resources.settings import Settings


def _open() -> tuple[Engine, Settings]:
    from omniops_pipelines.instance import prepare_database
    from resources import stack
    from resources.settings import Settings

    settings = Settings.from_environment()
    prepare_database(stack.endpoints(settings))
    return stack.database_engine(settings), settings


def _customer(connection: Connection, slug: str) -> UUID:
    from resources.postgres.customer_rows import UnknownCustomer
    from resources.postgres.customers import find_customer

    found = find_customer(connection, slug)
    if found is None:
        raise UnknownCustomer(slug)
    return found


def _site(connection: Connection, customer: str, domain: str) -> tuple[UUID, UUID]:
    """Ids of the customer and of the configuration.

    Raises:
        click.ClickException: there is none.
    """
    from resources.crawler.site_access import find_site

    customer_id = _customer(connection, customer)
    config_id = find_site(connection, customer_id, domain)
    if config_id is None:
        msg = f"customer {customer} has no site {domain}: `omniops sites list` shows those that there are"
        raise click.ClickException(msg)
    return customer_id, config_id


def _domain(text: str) -> tuple[str, str | None]:
    """The domain, and the origin where a url was given instead."""
    from resources.crawler.stored_order import check_domain
    from resources.crawler.urls import InvalidUrl, normalise, origin_of, site_of

    if "://" not in text:
        return check_domain(text), None
    try:
        url = normalise(text)
    except InvalidUrl as error:
        raise click.UsageError(str(error)) from error
    if url != origin_of(url) + "/":
        msg = f"{text[:80]!r} is more than a site: give its domain, or scheme and domain, like https://shop.example"
        raise click.UsageError(msg)
    return site_of(url), origin_of(url)


@click.group()
def sites() -> None:
    """Customers' websites, and the keys that they are read with."""


@sites.command("list")
@click.option("--customer", help="Only this customer's (slug).")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def list_sites(customer: str | None, as_json: bool) -> None:
    """The configured websites, and whether there are keys for them."""
    from sqlalchemy import text

    from omniops_pipelines.cli import output
    from resources.postgres.tenancy import service_connection

    engine, _ = _open()
    with service_connection(engine=engine) as connection:
        chosen = _customer(connection, customer) if customer else None
        rows = connection.execute(
            text("""
                SELECT c.slug AS customer, k.domain, k.enabled, k.credentials IS NOT NULL AS credentials, k.updated_at
                FROM public.customer_configs AS k JOIN public.customers AS c ON c.id = k.customer_id
                WHERE CAST(:customer AS uuid) IS NULL OR k.customer_id = :customer
                ORDER BY c.slug, k.domain
            """),
            {"customer": chosen},
        ).mappings()
        found = [dict(row) for row in rows]
    if as_json:
        output.print_json(found)
    elif found:
        shown = [{**row, "enabled": _yes(row["enabled"]), "credentials": _yes(row["credentials"])} for row in found]
        output.print_table(("customer", "domain", "enabled", "credentials", "updated_at"), shown)
    else:
        click.echo("There is no configured site.")


def _yes(value: object) -> str:
    return "yes" if value else "no"


@sites.command("show")
@click.argument("customer")
@click.argument("domain")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def show_site(customer: str, domain: str, as_json: bool) -> None:
    """How a website is crawled, and the names of its keys."""
    from sqlalchemy import text

    from omniops_pipelines.cli import output
    from resources.postgres.tenancy import service_connection

    domain, _ = _domain(domain)
    engine, settings = _open()
    with service_connection(engine=engine) as connection:
        customer_id, config_id = _site(connection, customer, domain)
        row = (
            connection.execute(
                text(
                    "SELECT domain, enabled, settings, created_at, updated_at "
                    "FROM public.customer_configs WHERE id = :id"
                ),
                {"id": config_id},
            )
            .mappings()
            .one()
        )
        found = {"customer": customer, **row, "keys": _described(connection, customer_id, domain, settings)}
    if as_json:
        output.print_json(found)
    else:
        found["keys"] = ", ".join(found["keys"]) or "none"
        output.print_facts(found)


def _described(connection: Connection, customer_id: UUID, domain: str, settings: Settings) -> list[str]:
    from resources.crawler.site_access import load_site_access

    access = load_site_access(connection, customer_id, domain, settings=settings)
    return [] if access is None else [f"for {access.origin}", *access.described()]


@sites.command("limit")
@click.argument("customer")
@click.argument("domain")
@click.option("--requests-per-minute", type=int, required=True, metavar="N", help="In any 60 s; 0: no limit.")
def limit_site(customer: str, domain: str, requests_per_minute: int) -> None:
    """Limit how often a website is asked by the crawls that its configuration orders.

    A job that runs or waits keeps the limit that it was made with.
    """
    import json

    from sqlalchemy import text

    from resources.crawler.crawl_order import InvalidOrder
    from resources.crawler.stored_order import plan_for_site
    from resources.postgres.tenancy import service_connection

    domain, _ = _domain(domain)
    engine, _ = _open()
    with service_connection(engine=engine) as connection:
        _, config_id = _site(connection, customer, domain)
        kept = connection.execute(
            text("SELECT settings FROM public.customer_configs WHERE id = :id FOR UPDATE"), {"id": config_id}
        ).scalar_one()
        crawl = kept.get("crawl", {})
        # What is no object is refused as it stands.
        limited = {**crawl, "requests_per_minute": requests_per_minute} if isinstance(crawl, dict) else crawl
        try:
            plan_for_site(customer, domain, {**kept, "crawl": limited})
        except InvalidOrder as error:
            raise click.ClickException(str(error)) from error
        connection.execute(
            text("UPDATE public.customer_configs SET settings = CAST(:settings AS jsonb) WHERE id = :id"),
            {"id": config_id, "settings": json.dumps({**kept, "crawl": limited})},
        )
    limit = f"at most {requests_per_minute:,} requests in any 60 s" if requests_per_minute else "no limit"
    click.echo(f"{domain}: {limit}")


# ------------------------------------------------------------------------------------------ keys


@sites.group("credentials")
def credentials() -> None:
    """The keys of a website: headers, basic authentication, cookies, a proxy. Values are never shown."""


@credentials.command("show")
@click.argument("customer")
@click.argument("domain")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def show_credentials(customer: str, domain: str, as_json: bool) -> None:
    """The names of a website's keys, and the one origin that they are sent to."""
    from omniops_pipelines.cli import output
    from resources.postgres.tenancy import service_connection

    domain, _ = _domain(domain)
    engine, settings = _open()
    with service_connection(engine=engine) as connection:
        customer_id, _ = _site(connection, customer, domain)
        found = _described(connection, customer_id, domain, settings)
    if as_json:
        output.print_json({"customer": customer, "domain": domain, "keys": found})
    else:
        click.echo("\n".join(found) if found else "There are no keys for this site.")


@credentials.command("set")
@click.argument("customer")
@click.argument("domain")
@click.option("--header", "headers", multiple=True, metavar="NAME[=env:VARIABLE]", help="A header. Repeatable.")
@click.option("--basic", metavar="USER[=env:VARIABLE]", help="Basic authentication: asks for the password.")
@click.option("--cookie", "cookies", multiple=True, metavar="NAME[=env:VARIABLE]", help="A cookie. Repeatable.")
@click.option("--proxy", metavar="URL", help="An HTTP proxy, like http://proxy.example:3128.")
@click.option("--proxy-user", metavar="USER[=env:VARIABLE]", help="User of the proxy: asks for the password.")
@click.option("--create", is_flag=True, help="Configure the site, not enabled for refreshes, if it is not.")
def set_site_credentials(customer: str, domain: str, *, proxy: str | None, create: bool, **given: Any) -> None:
    """Set keys of a website; a kind that is named replaces what there is of it, the other kinds stay.

    DOMAIN is a host, and its keys are then sent by https alone; http://HOST sends them over http, for all to read.
    Values are asked for without being shown; if standard input is no terminal, each is one line of it, in the
    order headers, basic, cookies, proxy. NAME=env:VARIABLE reads one from the environment.
    """
    from resources.postgres.tenancy import service_connection

    if not any(given.values()) and proxy is None:
        raise click.UsageError("name at least one of --header, --basic, --cookie and --proxy")
    if given["proxy_user"] and proxy is None:
        raise click.UsageError("--proxy-user goes with --proxy")
    domain, origin = _domain(domain)
    new = _ask(given, proxy)
    engine, settings = _open()
    with service_connection(engine=engine) as connection:
        access = _store(connection, customer, domain, origin, new, settings, create=create)
    click.echo(f"Set for {access.origin}: {', '.join(access.described())}")
    if access.has_keys and access.origin.startswith("http://"):
        click.echo("They are sent over http: whoever is on the way can read them.", err=True)


def _ask(given: Mapping[str, Any], proxy: str | None) -> dict[str, Any]:
    """The new keys, in the form in which they are kept."""
    new: dict[str, Any] = {}
    if given["headers"]:
        new["headers"] = dict(_value(spec, "header") for spec in given["headers"])
    if given["basic"]:
        user, password = _value(given["basic"], "password of")
        new["basic"] = {"username": user, "password": password}
    if given["cookies"]:
        new["cookies"] = dict(_value(spec, "cookie") for spec in given["cookies"])
    if proxy is not None:
        new["proxy"] = {"url": proxy}
        if given["proxy_user"]:
            user, password = _value(given["proxy_user"], "proxy's password of")
            new["proxy"] |= {"username": user, "password": password}
    return new


def _value(spec: str, what: str) -> tuple[str, str]:
    """Name and value of one key: from the environment, a hidden prompt, or a line of standard input."""
    import os
    import sys

    name, equals, source = spec.partition("=")
    name = name.strip()
    if ":" in name or (equals and not source.startswith("env:")):
        # The option's value is not repeated: it is a key that somebody typed.
        msg = (
            f"the value of a {what.removesuffix(' of')} on the command line can be read by others: "
            "give the name alone, or NAME=env:VARIABLE"
        )
        raise click.UsageError(msg)
    if equals:
        variable = source.removeprefix("env:")
        if not os.environ.get(variable):
            msg = f"the environment has no {variable}, which should hold the value for {name}"
            raise click.UsageError(msg)
        return name, os.environ[variable]
    if sys.stdin.isatty():
        return name, click.prompt(f"Value for {what} {name}", hide_input=True)
    line = sys.stdin.readline()
    if not line.strip("\r\n"):
        msg = f"standard input has no line for {what} {name}"
        raise click.UsageError(msg)
    return name, line.strip("\r\n")


def _store(
    connection: Connection,
    customer: str,
    domain: str,
    origin: str | None,
    new: Mapping[str, Any],
    settings: Settings,
    *,
    create: bool,
) -> SiteAccess:
    from sqlalchemy import text

    from resources.crawler.site_access import check_access
    from resources.postgres.credentials import read_credentials, set_credentials

    if create:
        connection.execute(
            text("""
                INSERT INTO public.customer_configs (customer_id, domain, settings, enabled)
                VALUES (:customer, :domain, '{}', false) ON CONFLICT (customer_id, domain) DO NOTHING
            """),
            {"customer": _customer(connection, customer), "domain": domain},
        )
    customer_id, config_id = _site(connection, customer, domain)
    kept: dict[str, Any] = dict(read_credentials(connection, customer_id, config_id, settings=settings))
    kept.update(new)
    if origin is not None:
        kept["origin"] = origin
    access = check_access(domain, kept, private_proxy=settings.private_proxies)
    set_credentials(connection, customer_id, config_id, kept, settings=settings)
    return access


@credentials.command("clear")
@click.argument("customer")
@click.argument("domain")
def clear_credentials(customer: str, domain: str) -> None:
    """Remove all keys of a website. What else its configuration keeps under seal stays."""
    from resources.crawler.site_access import NAMES
    from resources.postgres.credentials import read_credentials, set_credentials
    from resources.postgres.secret_keys import SecretError
    from resources.postgres.tenancy import service_connection

    domain, _ = _domain(domain)
    engine, settings = _open()
    with service_connection(engine=engine) as connection:
        customer_id, config_id = _site(connection, customer, domain)
        try:
            kept = read_credentials(connection, customer_id, config_id, settings=settings)
        except SecretError:
            kept = {}  # unreadable is of no use to anybody
        others = {name: value for name, value in kept.items() if name not in NAMES}
        set_credentials(connection, customer_id, config_id, others or None, settings=settings)
    click.echo(f"The keys of {domain} are removed.")
