"""`omniops search`: what a customer's assistant would find."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from resources.content.hybrid_search import SearchResult, SearchResults


@click.command()
@click.argument("query", nargs=-1, required=True)
@click.option("--customer", default="default", show_default=True, help="Whose pages (slug).")
@click.option("--domain", help="Only this website's.")
@click.option("--limit", type=int, default=10, show_default=True, help="At most so many pages.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def search(query: tuple[str, ...], customer: str, domain: str | None, limit: int, as_json: bool) -> None:
    """Find pages by words and by meaning: omniops search "how do I send it back"."""
    from omniops_pipelines.cli import output
    from omniops_pipelines.instance import prepare_database
    from resources import stack
    from resources.content.hybrid_search import InvalidSearch
    from resources.content.hybrid_search import search as find
    from resources.postgres.customer_rows import customer_id_of
    from resources.postgres.tenancy import service_connection

    prepare_database(stack.endpoints())
    with service_connection(engine=stack.database_engine()) as connection:
        customer_id = customer_id_of(connection, customer)
    try:
        found = find(" ".join(query), customer_id, limit, domain)
    except InvalidSearch as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        output.print_json(found.as_dict())
    else:
        _show(found)


def _show(found: SearchResults) -> None:
    import sys

    from rich.console import Console

    from omniops_pipelines.cli.output import harmless

    out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 100)
    if not found.results:
        out.print("Nothing was found.")
    for number, result in enumerate(found, start=1):
        _show_one(out, number, result)
    if found.notice:
        click.echo(harmless(found.notice), err=True)


def _show_one(out: Console, number: int, result: SearchResult) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from omniops_pipelines.cli.output import harmless
    from resources.postgres.search import MARK

    by = {"both": "words and meaning", "text": "words", "vector": "meaning"}[result.found_by]
    out.print(Text.assemble((f"{number:>2}. ", "dim"), (harmless(result.title or result.url), "bold")))
    out.print(Padding(Text(harmless(result.url), style="blue", overflow="fold"), (0, 0, 0, 4)))
    snippet = Text(harmless(f"{result.heading}: ") if result.heading else "", style="italic")
    for part, words in enumerate(harmless(result.snippet).split(MARK)):
        snippet.append(words, style="bold yellow not italic" if part % 2 else "not italic")
    out.print(Padding(snippet, (0, 0, 0, 4)))
    near = "" if result.similarity is None else f" (similarity {result.similarity:.2f})"
    out.print(Padding(Text(f"{result.score:.2f} by {by}{near}", style="dim"), (0, 0, 1, 4)))
