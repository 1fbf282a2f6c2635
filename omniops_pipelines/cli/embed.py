"""`omniops embed`: vectors for what has none, another model beside the old one, and removing a model's vectors."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from sqlalchemy import Engine

    from resources.content.embed import EmbedProgress
    from resources.content.embeddings import EmbeddingProvider


@click.command()
@click.option("--missing", is_flag=True, help="Embed the pages that the configured model has not embedded yet.")
@click.option("--prepare", is_flag=True, help="Make the configured model's indexes, as the role that migrates.")
@click.option("--forget", metavar="MODEL", help="Remove a model's vectors.")
@click.option("--models", is_flag=True, help="List the models that were used, and what they have not embedded.")
@click.option("--customer", help="With --missing: only this customer's pages (slug).")
@click.option("--domain", help="With --missing: only this website's.")
@click.option("--limit", type=click.IntRange(1), help="With --missing: at most so many pages.")
@click.option("--yes", is_flag=True, help="With --forget: remove them; embedding again costs what it cost.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def embed(
    missing: bool,
    prepare: bool,
    forget: str | None,
    models: bool,
    customer: str | None,
    domain: str | None,
    limit: int | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Make vectors of pages, for search. Stop it at any moment: what is stored stays, and the next run goes on.

    Which model: OMNIOPS_EMBEDDINGS and its like. To change it, run `--prepare` and `--missing` with the new settings
    while everything else still runs with the old ones, then change them for all, then `--forget` the old model.
    """
    if sum((missing, prepare, forget is not None, models)) != 1:
        msg = "say one of --missing, --prepare, --forget MODEL and --models"
        raise click.UsageError(msg)
    if (customer or domain or limit) and not missing:
        msg = "--customer, --domain and --limit go with --missing"
        raise click.UsageError(msg)
    if models:
        _list(as_json)
    elif prepare:
        _prepare(as_json)
    elif forget is not None:
        _forget(forget, yes, as_json)
    else:
        _missing(customer, domain, limit, as_json)


def _missing(customer: str | None, domain: str | None, limit: int | None, as_json: bool) -> None:
    from omniops_pipelines.cli import output
    from resources import stack
    from resources.content.embed import embed_missing, usable_provider
    from resources.postgres import embeddings as store
    from resources.postgres.tenancy import service_connection

    _provider()
    engine = _engine()
    provider = usable_provider(engine)
    customer_id = _customer(engine, customer)
    with service_connection(engine=engine) as connection:
        if domain is not None and not store.has_pages(connection, domain, customer_id):
            msg = (
                f"there is no page of {domain[:80]!r}: write the host, with the port where it is not the scheme's own"
            )
            raise click.BadParameter(msg, param_hint="--domain")
        waiting = store.count_waiting(connection, provider.model, customer_id=customer_id, domain=domain)
    if limit is not None:
        waiting = min(waiting, limit)
    with _stoppable() as stop, _bar(waiting) as show:
        done = embed_missing(
            engine,
            provider,
            customer_id=customer_id,
            domain=domain,
            limit=limit,
            stop=stop,
            on_progress=show,
            cache=stack.cache(),
        )
    if as_json:
        output.print_json({"model": provider.model, **done.as_dict()})
    else:
        output.print_facts({"model": provider.model, **done.as_dict()})
    if done.stopped is not None and not done.bounded:
        raise SystemExit(1)


def _prepare(as_json: bool) -> None:
    from omniops_pipelines.cli import output
    from resources import stack
    from resources.postgres.embeddings import prepare_model

    provider = _provider()
    _engine()
    made = prepare_model(stack.endpoints().owner_database_url, provider.model, provider.dimensions)
    if as_json:
        output.print_json({"model": provider.model, "dimensions": provider.dimensions, "indexes": made})
    elif made:
        click.echo(f"{provider.model} is ready to embed with: made {' and '.join(made)}.")
    else:
        click.echo(f"{provider.model} was ready already.")


def _forget(model: str, yes: bool, as_json: bool) -> None:
    from omniops_pipelines.cli import output
    from resources.content.embeddings import provider_from_settings
    from resources.postgres import embeddings as store
    from resources.postgres.tenancy import service_connection

    engine = _engine()
    with service_connection(engine=engine) as connection:
        known = [found.model for found in store.list_models(connection)]
    if model not in known:
        msg = f"no vectors were made with {model!r}; there are: {', '.join(known) or 'none'}"
        raise click.UsageError(msg)
    provider = provider_from_settings()
    if not yes:
        in_use = " It is the configured one: search would be full text alone." if _is(provider, model) else ""
        msg = f"all vectors of {model} would be removed: say --yes.{in_use}"
        raise click.UsageError(msg)
    pages = 0
    while True:
        with service_connection(engine=engine) as connection:
            some = store.forget_model(connection, model)
        pages += some
        if not some:
            break
    if as_json:
        output.print_json({"model": model, "pages": pages})
    else:
        click.echo(f"The vectors of {pages:,} pages by {model} were removed.")


def _list(as_json: bool) -> None:
    from dataclasses import asdict

    from omniops_pipelines.cli import output
    from resources.content.embeddings import provider_from_settings
    from resources.postgres import embeddings as store
    from resources.postgres.tenancy import service_connection

    engine = _engine()
    provider = provider_from_settings()
    with service_connection(engine=engine) as connection:
        rows = [
            {
                **asdict(model),
                "in_use": _is(provider, model.model),
                "waiting_pages": store.count_waiting(connection, model.model),
            }
            for model in store.list_models(connection)
        ]
    if as_json:
        output.print_json(rows)
    elif rows:
        columns = ("model", "provider", "dimensions", "in_use", "waiting_pages", "indexed", "created_at")
        output.print_table(columns, rows)
    else:
        click.echo("Nothing was embedded yet.")


def _is(provider: EmbeddingProvider | None, model: str) -> bool:
    return provider is not None and provider.model == model


def _provider() -> EmbeddingProvider:
    from resources.content.embeddings import provider_from_settings

    provider = provider_from_settings()
    if provider is None:
        msg = "OMNIOPS_EMBEDDINGS is none: there is no model to embed with"
        raise click.UsageError(msg)
    return provider


def _engine() -> Engine:
    from omniops_pipelines.instance import prepare_database
    from resources import stack

    prepare_database(stack.endpoints())
    return stack.database_engine()


def _customer(engine: Engine, slug: str | None) -> UUID | None:
    from resources.postgres.customer_rows import customer_id_of
    from resources.postgres.tenancy import service_connection

    if slug is None:
        return None
    with service_connection(engine=engine) as connection:
        return customer_id_of(connection, slug)


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends the run after the batch that is under way; a second one ends it at once."""
    asked = threading.Event()

    def ask(_signal: int, _frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        click.echo("stopping; once more to stop at once", err=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar(pages: int) -> Iterator[Callable[[EmbedProgress], None] | None]:
    """A bar on standard error, where a person reads that."""
    from omniops_pipelines.cli import output

    if not output.screen.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TextColumn("pages"), TimeRemainingColumn())
    with Progress(*columns, console=output.screen) as bar:
        task = bar.add_task("embedding", total=pages)
        yield lambda progress: bar.update(task, completed=progress.pages)
