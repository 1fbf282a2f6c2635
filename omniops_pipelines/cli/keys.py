"""`omniops keys`: the keys that encrypt customers' credentials. No command shows a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from resources.settings import Settings


def _open() -> tuple[Engine, Settings]:
    from omniops_pipelines.instance import prepare_database
    from resources import stack
    from resources.settings import Settings

    settings = Settings.from_environment()
    prepare_database(stack.endpoints(settings))
    return stack.database_engine(settings), settings


@click.group()
def keys() -> None:
    """The keys that encrypt customers' credentials."""


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def list_keys(as_json: bool) -> None:
    """Ids of the keys, newest first, and how many values each encrypts."""
    from omniops_pipelines.cli import output
    from resources.postgres.credentials import SECRET_COLUMNS, key_uses
    from resources.postgres.secret_keys import load_keyring

    engine, settings = _open()
    keyring = load_keyring(settings)
    uses = key_uses(engine, keyring)
    columns = [str(place) for place in SECRET_COLUMNS]
    rows = [
        {
            "key": use.key_id,
            "state": "newest" if use.newest else "old" if use.at_hand else "MISSING",
            **{column: use.rows.get(column, 0) for column in columns},
        }
        for use in uses
    ]
    if as_json:
        output.print_json({"source": keyring.source, "keys": rows})
    else:
        output.print_table(("key", "state", *columns), rows, title=f"Keys in {keyring.source}")


@keys.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def rotate(as_json: bool) -> int:
    """Encrypt all credentials with a new key.

    The key file gets a new first key, then everything is encrypted anew in batches. Killed, it goes on where it was
    when it is run again. Where the keys stand in OMNIOPS_SECRET_KEY, put the new one first (a comma, then the old
    ones) and run this.
    """
    from dataclasses import asdict

    from omniops_pipelines.cli import output
    from resources.postgres.credentials import rotate_keys

    engine, settings = _open()
    done = rotate_keys(engine, settings)
    if as_json:
        output.print_json(asdict(done))
        return 1 if done.failed else 0
    if done.made:
        click.echo(f"Key {done.key_id} was made and encrypts from now on.")
    elif done.in_file:
        click.echo(f"The rotation to key {done.key_id} that was under way is finished; run this again for a new key.")
    else:
        click.echo(f"OMNIOPS_SECRET_KEY holds the keys: its first one, {done.key_id}, encrypts.")
    click.echo(f"{done.reencrypted:,} values were encrypted with it anew.")
    if done.unused:
        how = "`omniops keys drop-old` removes them" if done.in_file else "take them out of OMNIOPS_SECRET_KEY"
        click.echo(f"Older keys that nothing needs any more: {', '.join(done.unused)} ({how}).")
    for failure in done.failed:
        click.echo(f"omniops: {failure}", err=True)
    return 1 if done.failed else 0


@keys.command("drop-old")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")
def drop_old(as_json: bool) -> None:
    """Take older keys that nothing is encrypted with out of the key file.

    Backups of the database from before the rotation cannot be read without them.
    """
    from omniops_pipelines.cli import output
    from resources.postgres.credentials import drop_old_keys

    engine, settings = _open()
    dropped, kept = drop_old_keys(engine, settings)
    if as_json:
        output.print_json({"dropped": dropped, "kept": kept})
        return
    click.echo(f"Dropped: {', '.join(dropped)}." if dropped else "No key was dropped.")
    if kept:
        click.echo(f"Still needed: {', '.join(kept)} (run `omniops keys rotate` first).")
