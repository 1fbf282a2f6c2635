"""What `omniops doctor` looks at: each part of the installation, and what to do where it is not well."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from resources import stack
from resources.content.embed import usable_provider
from resources.content.embeddings import provider_from_settings
from resources.crawler.rendering.chromium import find_chromium, missing_browser
from resources.postgres.connection import DatabaseError, connect_once, engine_for, redact
from resources.postgres.embeddings import count_waiting
from resources.postgres.migrate import DAGSTER_SCHEMA, migration_state
from resources.postgres.tenancy import service_connection
from resources.redis import RedisWithFallback
from resources.redis.connections import InvalidRedisUrl
from resources.redis.fallback import FAILURES, State
from resources.redis.keys import CRON
from resources.services import ServiceError
from resources.settings import InvalidSetting, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

# Postgres 15 brought security_invoker views, which tenancy needs.
_OLDEST_POSTGRES = 150000
_EXTENSIONS = ("vector",)
_MANY_PAGES = 10_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One part: whether it is well, what was found, and what to do if it is not."""

    part: str
    ok: bool
    found: str
    what_to_do: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at everything. Never raises for something that is broken: that is a finding."""
    settings = Settings.from_environment()
    findings = list(_programs(settings))
    try:
        endpoints = stack.endpoints(settings)
    except ServiceError as error:
        return [*findings, Finding("embedded servers", False, str(error), f"read the logs under {settings.home}")]
    findings += _postgres(endpoints.database_url, embedded=endpoints.embedded_postgres)
    if all(finding.ok for finding in findings if finding.part == "migrations"):
        findings.append(_embeddings(endpoints.database_url))
    findings.append(_redis(endpoints.redis_url, embedded=endpoints.embedded_redis))
    return findings


def _programs(settings: Settings) -> Iterator[Finding]:
    running = ".".join(str(part) for part in sys.version_info[:3])
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding("python", fits, running, "" if fits else "use Python 3.11, 3.12 or 3.13")
    for package in ("dagster", "crawlee", "SQLAlchemy", "psycopg", "redis"):
        yield Finding(package.lower(), True, version(package))
    missing = missing_browser()
    # Not broken without: only what asks for render=browser or auto needs it.
    yield Finding("browser", True, f"none, so no render=browser: {missing}" if missing else str(find_chromium()))
    yield Finding("home", True, str(settings.home))


def _postgres(url: str, *, embedded: bool) -> list[Finding]:
    where = "embedded" if embedded else redact(url)
    findings = []
    try:
        with connect_once(url) as connection:
            number = int(connection.scalar(text("SHOW server_version_num")) or 0)
            shown = connection.scalar(text("SHOW server_version"))
            fits = number >= _OLDEST_POSTGRES
            findings.append(
                Finding("postgres", fits, f"{shown} ({where})", "" if fits else "use PostgreSQL 15 or newer")
            )
            installed: dict[str, str] = {
                row.extname: row.extversion
                for row in connection.execute(text("SELECT extname, extversion FROM pg_extension"))
            }
            for name in _EXTENSIONS:
                findings.append(
                    Finding(
                        f"extension {name}",
                        name in installed,
                        installed.get(name, "missing"),
                        "" if name in installed else f"CREATE EXTENSION {name}; as a role that may",
                    )
                )
            dagster = connection.scalar(text("SELECT to_regclass(:t) IS NOT NULL"), {"t": f"{DAGSTER_SCHEMA}.runs"})
        state = migration_state(url)
    except DatabaseError as error:
        return [*findings, Finding("postgres", False, str(error), "check OMNIOPS_DATABASE_URL, or unset it")]
    findings.append(
        Finding(
            "migrations",
            state.up_to_date,
            f"at {state.current or 'nothing'}, this version needs {state.head}",
            "" if state.up_to_date else "omniops migrate" if state.known else "update omniops_pipelines",
        )
    )
    findings.append(Finding("dagster storage", True, "ready" if dagster else "not made yet: the first run makes it"))
    return findings


def _embeddings(url: str) -> Finding:
    """Whether there is a model that can be embedded with. An endpoint is not asked: an answer may cost."""
    try:
        provider = provider_from_settings()
        if provider is None:
            return Finding("embeddings", True, "none: search is full text alone")
        engine = engine_for(url)
        usable_provider(engine)
        with service_connection(engine=engine) as connection:
            waiting = count_waiting(connection, provider.model, most=_MANY_PAGES)
    except InvalidSetting as error:
        return Finding("embeddings", False, str(error), "correct the setting")
    except (DatabaseError, DBAPIError) as error:
        what = "`omniops embed --prepare`, or correct OMNIOPS_EMBEDDINGS_DIMENSIONS"
        return Finding("embeddings", False, str(error.args[0]), what)
    more = "at least " if waiting == _MANY_PAGES else ""
    found = f"{provider.model} ({provider.name}), {provider.dimensions} dimensions; {more}{waiting:,} pages wait"
    return Finding("embeddings", True, found, "`omniops embed --missing`, or wait for the night" if waiting else "")


def _redis(url: str | None, *, embedded: bool) -> Finding:
    where = "embedded" if embedded else "OMNIOPS_REDIS_URL"
    if url is None:
        return Finding("redis", True, "not used")
    try:
        client = RedisWithFallback(url)
    except InvalidRedisUrl as error:
        return Finding("redis", False, where, str(error))
    try:
        # As the pipelines do: a write that Redis takes, or that this process's memory takes in its place.
        key = CRON.key("doctor")
        client.delete(key)
        client.set(key, CRON.encode({"asked_at": datetime.now(UTC)}), ex=60)
        state = client.snapshot()
        if client.fallback.state is State.OPEN:
            what = "check OMNIOPS_REDIS_URL; crawls go on without a cache"
            return Finding("redis", False, f"{where}: away ({state.reason})", what)
        plain = client.fallback.connect()
        try:
            info: dict[str, Any] = plain.info()
        finally:
            plain.close()
    except FAILURES as error:
        what = "check OMNIOPS_REDIS_URL; crawls go on without a cache"
        return Finding("redis", False, f"{where}: {error}", what)
    finally:
        client.close()
    name = f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info.get('redis_version')} ({where})"
    used, most = info.get("used_memory", 0) / 2**20, info.get("maxmemory", 0) / 2**20
    memory = f"{used:.0f} MB of {most:.0f} MB used" if most else f"{used:.0f} MB used, no limit"
    if state.state != State.CLOSED:
        what = "give it more memory or maxmemory-policy allkeys-lru; on a replica, use the primary's address"
        return Finding("redis", False, f"{name}, {state.state}: {state.reason}; {memory}", what)
    return Finding("redis", True, f"{name}, in use, {memory}")
