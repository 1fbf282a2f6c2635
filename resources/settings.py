"""Settings, read from the environment in one place.

They live at the bottom of the house because the parts that need them (the database, the cache, the embedded
servers) stand below Dagster and the command line, and are used by programs that know neither.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

PROJECT_ROOT = Path(__file__).resolve().parent.parent

# What a small managed database holds; whoever has more says so.
DEFAULT_STORAGE_BUDGET_BYTES = 10 * 1024**3
# Where `omniops up` serves the Dagster UI.
DEFAULT_UI_URL = "http://127.0.0.1:3000"
DEFAULT_ALERT_SETTLE_SECONDS = 300.0
DEFAULT_CRAWL_LEASE_SECONDS = 30.0
# Before anything was crawled with this program.
DEFAULT_STATISTICS_FIRST_DAY = date(2025, 1, 1)


class InvalidSetting(ValueError):
    """A variable of the environment has a value that cannot be meant; the message is for a person."""


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
        storage_budget_bytes: what the permanent tier may take on disk (`OMNIOPS_STORAGE_BUDGET_BYTES`); 10 GiB if
            not set. Reports and alerts measure against it; nothing is refused because of it.
        ui_url: of the Dagster UI, for links in alerts (`OMNIOPS_UI_URL`).
        alert_webhooks: urls that alerts are sent to, separated by spaces or commas (`OMNIOPS_ALERT_WEBHOOKS`); None:
            they are kept in `alert_history` alone.
        alert_webhook_secret: signs what is sent (`OMNIOPS_ALERT_WEBHOOK_SECRET`).
        alert_allow_private: receivers may be on private addresses (`OMNIOPS_ALERT_ALLOW_PRIVATE`), for a person's
            own machine.
        alert_settle_seconds: an alert that comes back so soon after it was over goes on, and nobody is told twice
            (`OMNIOPS_ALERT_SETTLE_SECONDS`).
        statistics_first_day: the first day, in UTC, that has daily statistics (`OMNIOPS_STATISTICS_FIRST_DAY`).
        source_url: of this project's files at a revision, for links from assets to their code, for example
            https://git.example/omniops/blob/main (`OMNIOPS_SOURCE_URL`); None: they open the files of this machine.
        chromium: the browser that renders pages, by path or name (`OMNIOPS_CHROMIUM`); None: one is looked for.
        private_proxies: a site's proxy may be at a private address (`OMNIOPS_PRIVATE_PROXIES`).
        crawl_lease_seconds: a crawl's worker that is silent for so long is replaced by another one
            (`OMNIOPS_CRAWL_LEASE_SECONDS`), 1 to 3,600.
        ca_bundle: authorities that sites' certificates may be signed by, beside the system's: a PEM file
            (`OMNIOPS_CA_BUNDLE`).
    """

    home: Path
    database_url: str | None
    owner_database_url: str | None
    redis_url: str | None
    secret_key: Secret | None = None
    storage_budget_bytes: int = DEFAULT_STORAGE_BUDGET_BYTES
    ui_url: str = DEFAULT_UI_URL
    alert_webhooks: Secret | None = None
    alert_webhook_secret: Secret | None = None
    alert_allow_private: bool = False
    alert_settle_seconds: float = DEFAULT_ALERT_SETTLE_SECONDS
    statistics_first_day: date = DEFAULT_STATISTICS_FIRST_DAY
    source_url: str | None = None
    chromium: str | None = None
    private_proxies: bool = False
    crawl_lease_seconds: float = DEFAULT_CRAWL_LEASE_SECONDS
    ca_bundle: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings; an empty variable counts as one that is not set.

        Raises:
            InvalidSetting: a value cannot be meant.
        """
        env = os.environ if environ is None else environ
        home = env.get("OMNIOPS_HOME") or str(PROJECT_ROOT / ".omniops")
        return cls(
            home=Path(home).expanduser().resolve(),
            database_url=env.get("OMNIOPS_DATABASE_URL") or None,
            owner_database_url=env.get("OMNIOPS_OWNER_DATABASE_URL") or None,
            redis_url=env.get("OMNIOPS_REDIS_URL") or None,
            secret_key=Secret(env["OMNIOPS_SECRET_KEY"]) if env.get("OMNIOPS_SECRET_KEY") else None,
            storage_budget_bytes=_bytes(env, "OMNIOPS_STORAGE_BUDGET_BYTES", DEFAULT_STORAGE_BUDGET_BYTES),
            ui_url=env.get("OMNIOPS_UI_URL") or DEFAULT_UI_URL,
            alert_webhooks=_secret(env, "OMNIOPS_ALERT_WEBHOOKS"),
            alert_webhook_secret=_secret(env, "OMNIOPS_ALERT_WEBHOOK_SECRET"),
            alert_allow_private=_yes_or_no(env, "OMNIOPS_ALERT_ALLOW_PRIVATE"),
            alert_settle_seconds=_seconds(env, "OMNIOPS_ALERT_SETTLE_SECONDS", DEFAULT_ALERT_SETTLE_SECONDS),
            statistics_first_day=_day(env, "OMNIOPS_STATISTICS_FIRST_DAY", DEFAULT_STATISTICS_FIRST_DAY),
            source_url=_web_page(env, "OMNIOPS_SOURCE_URL"),
            chromium=(env.get("OMNIOPS_CHROMIUM") or "").strip() or None,
            private_proxies=_yes_or_no(env, "OMNIOPS_PRIVATE_PROXIES"),
            crawl_lease_seconds=_lease(env, "OMNIOPS_CRAWL_LEASE_SECONDS", DEFAULT_CRAWL_LEASE_SECONDS),
            ca_bundle=_certificates(env, "OMNIOPS_CA_BUNDLE"),
        )


def _bytes(env: Mapping[str, str], name: str, default: int) -> int:
    value = (env.get(name) or "").strip()
    if not value:
        return default
    if not value.isascii() or not value.isdigit() or len(value) > 18 or int(value) == 0:
        msg = f"{name} is {value!r}: it must be a number of bytes, at least 1; the default is {default}"
        raise InvalidSetting(msg)
    return int(value)


def _web_page(env: Mapping[str, str], name: str) -> str | None:
    value = (env.get(name) or "").strip().rstrip("/")
    if value and not value.startswith(("https://", "http://")):
        msg = f"{name} is {value[:40]!r}, but it must begin with https:// or http://"
        raise InvalidSetting(msg)
    return value or None


def _certificates(env: Mapping[str, str], name: str) -> Path | None:
    value = (env.get(name) or "").strip()
    if not value:
        return None
    import ssl  # noqa: PLC0415 - it takes a command longer to load than all the rest of this

    path = Path(value).expanduser().resolve()
    try:
        ssl.create_default_context().load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        msg = f"{name} is {value[:200]!r}, but it must be a readable file of certificates in PEM form ({error})"
        raise InvalidSetting(msg) from error
    return path


def _secret(env: Mapping[str, str], name: str) -> Secret | None:
    return Secret(env[name]) if env.get(name) else None


def _yes_or_no(env: Mapping[str, str], name: str) -> bool:
    value = (env.get(name) or "0").strip().lower()
    if value not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        msg = f"{name} is {value[:40]!r}, but it must be 1 (yes) or 0 (no)"
        raise InvalidSetting(msg)
    return value in ("1", "true", "yes", "on")


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    value = env.get(name) or str(default)
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        msg = f"{name} is {value[:40]!r}, but it must be a number of seconds from 0 to 86400"
        raise InvalidSetting(msg)
    return seconds


def _lease(env: Mapping[str, str], name: str, default: float) -> float:
    seconds = _seconds(env, name, default)
    if not 1 <= seconds <= 3_600:
        msg = f"{name} is {seconds:g}, but it must be from 1 to 3,600 seconds"
        raise InvalidSetting(msg)
    return seconds


def _day(env: Mapping[str, str], name: str, default: date) -> date:
    value = (env.get(name) or "").strip()
    if not value:
        return default
    try:
        day = date.fromisoformat(value)
    except ValueError:
        day = date.min
    if not date(2000, 1, 1) <= day <= date(2100, 1, 1):
        msg = f"{name} is {value[:40]!r}, but it must be a day like {default}, from 2000 on"
        raise InvalidSetting(msg)
    return day


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """How the message queue leases, tries again and waits. Each has its variable, `OMNIOPS_QUEUE_` and its name.

    Attributes:
        lease_seconds: a handler that died gives its message back after that; a living one renews at a third of it.
        max_tries: a message is given up when so many tries have failed, or died.
        backoff_seconds: before the second try; doubled for each further one, less a random part of up to a half.
        max_backoff_seconds: the longest of these.
        max_handling_seconds: a lease is not renewed beyond that, so that a handler that hangs ends as a dead one.
        poll_seconds: a worker looks for messages at least so often, whether or not it was woken.
        notify: whether `enqueue` wakes workers (after its commit).
        reconnect_seconds: how long a lost database is tried again, before that is an error.
    """

    lease_seconds: float = 30.0
    max_tries: int = 5
    backoff_seconds: float = 1.0
    max_backoff_seconds: float = 300.0
    max_handling_seconds: float = 3600.0
    poll_seconds: float = 1.0
    notify: bool = True
    reconnect_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InvalidSetting: a value is out of its range.
        """
        for name, (least, most) in _QUEUE_RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                msg = f"queue setting {name} is {value!r}, and must be a number from {least:g} to {most:g}"
                raise InvalidSetting(msg)
        if not isinstance(self.max_tries, int):
            msg = f"queue setting max_tries is {self.max_tries!r}, and must be a whole number"
            raise InvalidSetting(msg)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> QueueSettings:
        """Read the settings; an empty variable counts as one that is not set.

        Raises:
            InvalidSetting: a variable's value is no number, no yes or no, or out of range.
        """
        env = os.environ if environ is None else environ
        found: dict[str, Any] = {}
        for field in fields(cls):
            variable = f"OMNIOPS_QUEUE_{field.name.upper()}"
            given = env.get(variable, "").strip()
            if not given:
                continue
            kind: type[Any] = type(field.default)
            try:
                found[field.name] = _YES_NO[given.lower()] if kind is bool else kind(given)
            except (ValueError, KeyError):
                wanted = {bool: "yes or no", int: "a whole number"}.get(kind, "a number")
                msg = f"{variable} is {given!r}, and must be {wanted}"
                raise InvalidSetting(msg) from None
        return cls(**found)


_YES_NO = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_QUEUE_RANGES = {
    "lease_seconds": (0.1, 86_400.0),
    "max_tries": (1, 1_000),
    "backoff_seconds": (0.0, 86_400.0),
    "max_backoff_seconds": (0.0, 86_400.0),
    "max_handling_seconds": (0.1, 604_800.0),
    "poll_seconds": (0.01, 3_600.0),
    "reconnect_seconds": (0.0, 3_600.0),
}


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What the ephemeral tier leaves to choose.

    Attributes:
        search_cache_seconds: how long search results are cached (`OMNIOPS_SEARCH_CACHE_SECONDS`), 1 to 86,400.
        rate_limit_shares: how many processes may be at one domain (`OMNIOPS_RATE_LIMIT_SHARES`): without Redis each
            has so large a part of the domain's limit; 1 to 1,000.
    """

    search_cache_seconds: int = 300
    rate_limit_shares: int = 4

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> CacheSettings:
        """Read the settings; an empty variable counts as one that is not set.

        Raises:
            InvalidSetting: a variable's value is no whole number, or out of range.
        """
        env = os.environ if environ is None else environ
        found: dict[str, int] = {}
        for name, (least, most) in _CACHE_RANGES.items():
            variable = f"OMNIOPS_{name.upper()}"
            given = env.get(variable, "").strip()
            if not given:
                continue
            if not given.isascii() or not given.isdigit() or not least <= int(given) <= most:
                msg = f"{variable} is {given!r}, and must be a whole number from {least:,} to {most:,}"
                raise InvalidSetting(msg)
            found[name] = int(given)
        return cls(**found)


_CACHE_RANGES = {"search_cache_seconds": (1, 86_400), "rate_limit_shares": (1, 1_000)}


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """Which model makes vectors. Each but the first has its variable, `OMNIOPS_EMBEDDINGS_` and its name.

    Attributes:
        provider: `minilm` (the embedded model), `openai` (any OpenAI-compatible endpoint) or `none`
            (`OMNIOPS_EMBEDDINGS`).
        url: of the endpoint, up to what stands before `/embeddings`.
        model: the endpoint's name for it.
        dimensions: width of its vectors, 1 to 4,000.
        send_dimensions: ask the endpoint for this width; not every one knows the question.
        api_key: of the endpoint; None: it needs none.
        allow_private: the endpoint may be on a private address, such as a server of one's own.
        max_tokens: of one text: pieces of pages are made to fit.
        batch: texts of one request.
        concurrency: requests at once.
        timeout_seconds: of one request.
        max_tries: of one request.
        max_run_tokens: a run stops before it has sent more to an endpoint; what is left is embedded by the next. At
            least `max_tokens`: a longer page than this is embedded by several runs, a longer piece could be by none.
        threads: of the embedded model; 0: one for each core, four at most.
    """

    provider: str = "minilm"
    url: str = "https://api.openai.com/v1"
    model: str = ""
    dimensions: int = 0
    send_dimensions: bool = False
    api_key: Secret | None = None
    allow_private: bool = False
    max_tokens: int = 512
    batch: int = 64
    concurrency: int = 4
    timeout_seconds: float = 30.0
    max_tries: int = 5
    max_run_tokens: int = 20_000_000
    threads: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InvalidSetting: a value is out of its range, or one is missing.
        """
        if self.provider not in _PROVIDERS:
            msg = f"OMNIOPS_EMBEDDINGS is {self.provider[:40]!r}, and must be one of {', '.join(_PROVIDERS)}"
            raise InvalidSetting(msg)
        for name, (least, most) in _EMBEDDING_RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most and not (name == "dimensions" and self.provider != "openai"):
                msg = f"OMNIOPS_EMBEDDINGS_{name.upper()} is {value:g}, and must be from {least:,} to {most:,}"
                raise InvalidSetting(msg)
        if self.provider == "openai" and not self.model.strip():
            msg = "OMNIOPS_EMBEDDINGS is openai, so OMNIOPS_EMBEDDINGS_MODEL must name the endpoint's model"
            raise InvalidSetting(msg)
        if self.provider == "openai" and self.max_run_tokens < self.max_tokens:
            msg = (
                f"OMNIOPS_EMBEDDINGS_MAX_RUN_TOKENS is {self.max_run_tokens:,}, but one piece of a page may have "
                f"{self.max_tokens:,} tokens (OMNIOPS_EMBEDDINGS_MAX_TOKENS): no run could send it. Set it to that "
                "or more"
            )
            raise InvalidSetting(msg)
        if not {"@", "?", "#"}.isdisjoint(self.url):
            msg = "OMNIOPS_EMBEDDINGS_URL has a name, a query or a fragment in it: a key goes into ..._API_KEY alone"
            raise InvalidSetting(msg)
        if len(self.model) > 200 or not self.model.isprintable():
            msg = "OMNIOPS_EMBEDDINGS_MODEL must be a name of up to 200 printable characters"
            raise InvalidSetting(msg)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> EmbeddingSettings:
        """Read the settings; an empty variable counts as one that is not set.

        Raises:
            InvalidSetting: a value cannot be meant, or one is missing.
        """
        env = os.environ if environ is None else environ
        prefix = "OMNIOPS_EMBEDDINGS"
        found: dict[str, Any] = {
            "send_dimensions": _yes_or_no(env, f"{prefix}_SEND_DIMENSIONS"),
            "allow_private": _yes_or_no(env, f"{prefix}_ALLOW_PRIVATE"),
            "api_key": _secret(env, f"{prefix}_API_KEY"),
        }
        if url := _web_page(env, f"{prefix}_URL"):
            found["url"] = url
        for name, variable in (("provider", prefix), ("model", f"{prefix}_MODEL")):
            if given := (env.get(variable) or "").strip():
                found[name] = given
        for name in _EMBEDDING_RANGES:
            given = (env.get(f"{prefix}_{name.upper()}") or "").strip()
            if given:
                found[name] = _number(f"{prefix}_{name.upper()}", given, whole=name != "timeout_seconds")
        return cls(**found)

    @property
    def lacks_key(self) -> bool:
        """True if the endpoint is known to answer nobody without a key, and there is none."""
        return self.provider == "openai" and self.api_key is None and "//api.openai.com" in self.url

    def as_environment(self) -> dict[str, str]:
        """The variables that give these settings, but for the key, which is never shown."""
        found = {"OMNIOPS_EMBEDDINGS": self.provider}
        for field in fields(self):
            if field.name in ("provider", "api_key"):
                continue
            value = getattr(self, field.name)
            shown = (
                f"{value:g}" if isinstance(value, float) else str(int(value) if isinstance(value, bool) else value)
            )
            found[f"OMNIOPS_EMBEDDINGS_{field.name.upper()}"] = shown
        return found


def _number(variable: str, given: str, *, whole: bool) -> float:
    try:
        value: float = int(given) if whole else float(given)
    except ValueError:
        value = float("nan")
    if value != value:  # noqa: PLR0124 - not a number
        msg = f"{variable} is {given[:40]!r}, and must be a {'whole ' if whole else ''}number"
        raise InvalidSetting(msg)
    return value


_PROVIDERS = ("minilm", "openai", "none")
_EMBEDDING_RANGES = {
    "dimensions": (1, 4_000),
    "max_tokens": (64, 8_192),
    "batch": (1, 2_048),
    "concurrency": (1, 64),
    "timeout_seconds": (0.1, 600),
    "max_tries": (1, 20),
    "max_run_tokens": (1, 10**12),
    "threads": (0, 256),
}
