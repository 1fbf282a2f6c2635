"""The command line. Exit status: 0 done, 1 failed, 2 wrong usage. Errors are one sentence, on standard error."""

from __future__ import annotations

import sys

import click

from omniops_pipelines.cli.administration import doctor, env, services
from omniops_pipelines.cli.alerts import alerts
from omniops_pipelines.cli.catalog import catalog
from omniops_pipelines.cli.crawl import crawl, demo
from omniops_pipelines.cli.embed import embed
from omniops_pipelines.cli.jobs import jobs
from omniops_pipelines.cli.keys import keys
from omniops_pipelines.cli.migrate import migrate
from omniops_pipelines.cli.pages import pages
from omniops_pipelines.cli.queue import queue
from omniops_pipelines.cli.retention import cleanup, erase, export, holds
from omniops_pipelines.cli.search import search
from omniops_pipelines.cli.sites import sites
from omniops_pipelines.cli.up import up


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="omniops-pipelines", prog_name="omniops")
def cli() -> None:
    """Crawls customers' websites, keeps what it read in the right store for the right time, proves what happened."""


for command in (
    crawl, demo, up, search, embed, jobs, pages, sites, queue, alerts, cleanup, erase, export, holds, keys, migrate,
    catalog, services, env, doctor,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Run the command line, and give every expected error as one sentence."""
    # Imported here, because `omniops --help` needs none of it.
    from omniops_pipelines.cli.errors import sentence_for
    from omniops_pipelines.cli.output import harmless

    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("omniops: interrupted", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        sentence = sentence_for(error)
        if sentence is None:
            raise
        click.echo(f"omniops: {harmless(sentence)}", err=True)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)
