"""Settings, read from the environment in one place.

They live at the bottom of the house because the parts that need them (the database, the cache, the embedded
servers) stand below Dagster and the command line, and are used by programs that know neither.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resources.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

PROJECT_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment asks for.

    Attributes:
        home: data folder of the embedded servers and of Dagster (`OMNIOPS_HOME`).
        database_url: the permanent tier (`OMNIOPS_DATABASE_URL`); None means the embedded Postgres.
        owner_database_url: the role that migrates (`OMNIOPS_OWNER_DATABASE_URL`); None means derived where
            Postgres is embedded, else the same as `database_url`.
        redis_url: the ephemeral tier (`OMNIOPS_REDIS_URL`); None means the embedded Valkey.
        secret_key: keys of the customers' credentials, newest first (`OMNIOPS_SECRET_KEY`); None means the file
            `secret_key` in `home`.
    """

    home: Path
    database_url: str | None
    owner_database_url: str | None
    redis_url: str | None
    secret_key: Secret | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings; an empty variable counts as one that is not set."""
        env = os.environ if environ is None else environ
        home = env.get("OMNIOPS_HOME") or str(PROJECT_ROOT / ".omniops")
        return cls(
            home=Path(home).expanduser().resolve(),
            database_url=env.get("OMNIOPS_DATABASE_URL") or None,
            owner_database_url=env.get("OMNIOPS_OWNER_DATABASE_URL") or None,
            redis_url=env.get("OMNIOPS_REDIS_URL") or None,
            secret_key=Secret(env["OMNIOPS_SECRET_KEY"]) if env.get("OMNIOPS_SECRET_KEY") else None,
        )
