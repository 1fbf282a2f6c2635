"""The permanent tier's tables, as SQLAlchemy sees them. Types, keys, checks, indexes and what each column holds.

The migrations make the database so; `omniops migrate --verify` compares the two. Each index has its question in a
comment beside it. What happens to the rows (tenant, retention, owner) stands in `catalogue`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    Date,
    DateTime,
    Double,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, INTERVAL, JSONB, TSVECTOR, UUID
from sqlalchemy.types import UserDefinedType

from resources.postgres.job_status import JOB_TYPES, RESULT_STATUSES, STATUSES

metadata = MetaData()

# The embedded model and its width. Other models stand beside it in the same column, each with an index of its own.
EMBEDDED_MODEL = "all-MiniLM-L6-v2-int8"
EMBEDDING_DIMENSIONS = 384

MESSAGE_STATUSES = ("pending", "processing", "completed", "failed")


class HalfVector(UserDefinedType[Any]):
    """pgvector's half-precision vector: half the index at the same recall. Values go in and out as text, `[0.1,…]`.

    Args:
        dimensions: width; None: any.
    """

    cache_ok = True

    def __init__(self, dimensions: int | None = None) -> None:
        self.dimensions = dimensions

    def get_col_spec(self, **_: Any) -> str:
        """The type as Postgres writes it."""
        return "halfvec" if self.dimensions is None else f"halfvec({self.dimensions})"


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


def _uuid_key() -> Column[Any]:
    return Column("id", UUID, primary_key=True, server_default=text("gen_random_uuid()"))


def _bigint_key() -> Column[Any]:
    return Column("id", BigInteger, Identity(always=True), primary_key=True)


def _now(name: str, comment: str | None = None) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=text("now()"), comment=comment)


def _time(name: str, comment: str | None = None) -> Column[Any]:
    return Column(name, DateTime(timezone=True), comment=comment)


def _text(name: str, *constraints: Any, required: bool = True, comment: str | None = None, **kw: Any) -> Column[Any]:
    return Column(name, Text, *constraints, nullable=not required, comment=comment, **kw)


def _json(name: str, comment: str | None = None) -> Column[Any]:
    return Column(
        name,
        JSONB,
        CheckConstraint(f"jsonb_typeof({name}) = 'object'"),
        nullable=False,
        server_default=text("'{}'::jsonb"),
        comment=comment,
    )


def _count(name: str, type_: Any = BigInteger, comment: str | None = None) -> Column[Any]:
    return Column(
        name, type_, CheckConstraint(f"{name} >= 0"), nullable=False, server_default=text("0"), comment=comment
    )


def _percentiles() -> tuple[Column[Any], ...]:
    """Of processing_time_ms; none where no page had a time."""
    return (
        Column("p50_ms", Integer, CheckConstraint("p50_ms >= 0"), comment="Median of processing_time_ms."),
        Column("p95_ms", Integer, CheckConstraint("p95_ms >= 0")),
        Column("p99_ms", Integer, CheckConstraint("p99_ms >= 0")),
    )


def _work() -> tuple[Column[Any], ...]:
    """What crawling a day's pages took, and what came of it."""
    return (
        Column(
            "active_seconds", Double, CheckConstraint("active_seconds >= 0"), nullable=False,
            server_default=text("0"), comment="Of the jobs that ended on the day, pauses left out.",
        ),
        _count("changed_pages", comment="New, or with another text than before."),
        _count("unchanged_pages", comment="Read again with the same text, or said to be unmodified."),
        Column(
            "pages_per_second", Double, CheckConstraint("pages_per_second >= 0"),
            comment="total_pages over active_seconds; none where no job ended on the day.",
        ),
        _json("pages_by_http_status", "Number of pages by status code."),
    )  # fmt: skip


def _customer(*, cascade: bool = True) -> Column[Any]:
    """The tenant. Erasure goes by the catalogue's order; the cascade is the last net under it."""
    return Column(
        "customer_id",
        UUID,
        ForeignKey("customers.id", ondelete="CASCADE" if cascade else None),
        nullable=False,
    )


# --- tenants and accounts --------------------------------------------------------------------------------------

customers = Table(
    "customers",
    metadata,
    _uuid_key(),
    _text("name", CheckConstraint("name <> ''")),
    _text("slug", CheckConstraint("slug ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'"), unique=True),
    _now("created_at"),
    comment="Tenants: the companies whose websites are read.",
)

customer_configs = Table(
    "customer_configs",
    metadata,
    _uuid_key(),
    _customer(),
    _text("domain", CheckConstraint("domain <> ''")),
    _json("settings"),
    Column("credentials", LargeBinary, comment="Encrypted before it arrives here; never plain text."),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    _now("created_at"),
    _now("updated_at"),
    UniqueConstraint("customer_id", "domain"),
    comment="How each website of a customer is crawled: limits, schedule, globs, retention.",
)

user_accounts = Table(
    "user_accounts",
    metadata,
    _uuid_key(),
    _customer(),
    _text("email", CheckConstraint("email <> '' AND email = lower(email)"), comment="Lower case."),
    _text("display_name", required=False),
    Column("active", Boolean, nullable=False, server_default=text("true")),
    _time("last_seen_at"),
    _now("created_at"),
    UniqueConstraint("customer_id", "email"),
    UniqueConstraint("id", "customer_id"),
    comment="People of a customer who may sign in.",
)

customer_members = Table(
    "customer_members",
    metadata,
    _customer(),
    Column("user_id", UUID, nullable=False),
    _text("role", CheckConstraint("role IN ('owner', 'admin', 'editor', 'viewer')")),
    _now("created_at"),
    PrimaryKeyConstraint("customer_id", "user_id"),
    ForeignKeyConstraint(
        ["user_id", "customer_id"], ["user_accounts.id", "user_accounts.customer_id"], ondelete="CASCADE"
    ),
    # Question: what may this person do? (the foreign key of user_accounts asks it too)
    Index("customer_members_user", "user_id"),
    comment="Which account may do what for its customer.",
)

# --- conversations ---------------------------------------------------------------------------------------------

conversations = Table(
    "conversations",
    metadata,
    _uuid_key(),
    _customer(),
    _text("session_id", CheckConstraint("session_id <> ''")),
    _text("domain", required=False),
    _now("created_at"),
    Column(
        "updated_at", DateTime(timezone=True), nullable=False, server_default=FetchedValue(),
        comment="Last activity. A trigger fills it from created_at where it is not given.",
    ),
    _time("ended_at"),
    UniqueConstraint("id", "customer_id"),
    # Question: which conversations of this customer are past their retention? And: its newest ones.
    Index("conversations_customer_updated", "customer_id", "updated_at"),
    # Question: which conversation does this browser session go on with?
    Index("conversations_session", "customer_id", "session_id"),
    comment="Conversations of visitors with the assistant.",
)  # fmt: skip

messages = Table(
    "messages",
    metadata,
    _bigint_key(),
    Column("conversation_id", UUID, nullable=False),
    _customer(),
    _text("role", CheckConstraint("role IN ('user', 'assistant', 'system', 'tool')")),
    _text("content"),
    _now("created_at"),
    ForeignKeyConstraint(
        ["conversation_id", "customer_id"], ["conversations.id", "conversations.customer_id"], ondelete="CASCADE"
    ),
    # Question: what was said in this conversation, in order?
    Index("messages_conversation", "conversation_id", "id"),
    # Question: all of a customer's, for export and erasure.
    Index("messages_customer", "customer_id", "id"),
    comment="What was said, in order of id.",
)

conversation_metadata = Table(
    "conversation_metadata",
    metadata,
    Column("conversation_id", UUID, primary_key=True),
    _customer(),
    Column("accuracy", Double, CheckConstraint("accuracy BETWEEN 0 AND 1"), comment="Of the answers, 0 to 1."),
    Column(
        "sources_used",
        JSONB,
        CheckConstraint("jsonb_typeof(sources_used) = 'array'"),
        nullable=False,
        server_default=text("'[]'::jsonb"),
        comment="The pages that the answers used.",
    ),
    _json("figures", "Other figures of the answers: latency, tokens, ratings."),
    _now("updated_at"),
    ForeignKeyConstraint(
        ["conversation_id", "customer_id"], ["conversations.id", "conversations.customer_id"], ondelete="CASCADE"
    ),
    # Question: all of a customer's, for export and erasure.
    Index("conversation_metadata_customer", "customer_id"),
    comment="How good a conversation's answers were, and which pages they used.",
)

# --- content ---------------------------------------------------------------------------------------------------

scraped_pages = Table(
    "scraped_pages",
    metadata,
    _bigint_key(),
    _customer(),
    _text("domain", CheckConstraint("domain <> ''")),
    _text("url", CheckConstraint("url <> '' AND octet_length(url) <= 2048")),
    *(_text(n, required=False) for n in ("title", "description", "canonical_url", "lang")),
    Column("http_status", SmallInteger, CheckConstraint("http_status BETWEEN 100 AND 999")),
    *(_text(n, required=False) for n in ("etag", "last_modified")),
    _text(
        "content_hash",
        required=False,
        comment="Of the normalised main text that is kept; of the page's bytes where no text is.",
    ),
    *(_now(n) for n in ("first_seen_at", "last_seen_at", "last_changed_at")),
    _time("removed_at"),
    _text(
        "last_job_id",
        required=False,
        comment="The job that saw it last; jobs are removed after 90 days, so this is no foreign key.",
    ),
    # None of these stands in an index, so that a visit to a page that has not changed can be a heap-only update.
    _text(
        "source_hash",
        required=False,
        comment="Of what the page showed before its main text was taken out: while it is the same, nothing is "
        "extracted or written.",
    ),
    _text(
        "folded_hash",
        required=False,
        comment="Of the main text without stamps and counters that say nothing (last updated on, views): while "
        "it is the same, a change is cosmetic.",
    ),
    Column("simhash", BigInteger, comment="Of the main text: pages that say nearly the same differ in few bits."),
    Column(
        "check_interval",
        INTERVAL,
        nullable=False,
        server_default=text("'1 day'::interval"),
        comment="Halved when the page changes, half as long again when it does not: one hour to thirty days.",
    ),
    _now("next_check_at", "When it should be looked at again, where not all pages can be."),
    Column(
        "missing_crawls",
        Integer,
        CheckConstraint("missing_crawls >= 0"),
        nullable=False,
        server_default=text("0"),
        comment="Whole crawls of its site in a row that found no link to it and no sitemap entry.",
    ),
    Column(
        "removed_reason",
        Text,
        CheckConstraint(_one_of("removed_reason", ("gone", "moved", "noindex", "disallowed", "unlinked"))),
        comment="gone: 404 or 410; moved: a redirect; noindex: not wanted to be found; disallowed: forbidden by "
        "robots.txt; unlinked: nothing led to it any more.",
    ),
    _time("published_at", "As the page says; midnight UTC where it gives a day alone."),
    UniqueConstraint("customer_id", "url"),
    UniqueConstraint("id", "customer_id"),
    # Question: which removed pages still have vectors?
    Index("scraped_pages_removed", "customer_id", "id", postgresql_where=text("removed_at IS NOT NULL")),
    comment="Content: every page that was read, one row for each url of a customer.",
)

website_content = Table(
    "website_content",
    metadata,
    Column("page_id", BigInteger, primary_key=True),
    Column("customer_id", UUID, nullable=False),
    _text("markdown", required=False),
    _text("text", server_default=text("''::text")),
    _count("word_count", Integer),
    Column("search", TSVECTOR, comment="Null until the text is indexed, some moments after it was stored."),
    _now(
        "updated_at", "Since when the page says so, by our visits: it said something else before, or was away."
    ),
    Column(
        "embedded_models", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]"),
        comment="Models whose vectors are of the text as it is now.",
    ),
    Column(
        "title_search", TSVECTOR,
        comment="The words of the title, as in `search`. Null: the text waits to be indexed as texts now are.",
    ),
    ForeignKeyConstraint(
        ["page_id", "customer_id"], ["scraped_pages.id", "scraped_pages.customer_id"], ondelete="CASCADE"
    ),
    # Question: which pages are not embedded by the embedded model? (`omniops embed --prepare`: others.)
    Index(
        "website_content_unembedded", "customer_id", "page_id",
        postgresql_where=text(f"NOT embedded_models @> ARRAY['{EMBEDDED_MODEL}']"),
    ),
    # Question: which of a customer's pages contain these words? fastupdate gathers entries outside the commit that
    # adds a page.
    Index(
        "website_content_search", text("(ARRAY[customer_id])"), "search",
        postgresql_using="gin", postgresql_with={"fastupdate": "on"},
    ),
    # Question: which texts wait to be indexed, first those that are not found yet?
    Index(
        "website_content_unindexed", text("(search IS NOT NULL)"), "page_id",
        postgresql_where=text("search IS NULL OR title_search IS NULL"),
    ),
    # Question: all of a customer's: search within a tenant, counts, export, erasure.
    Index("website_content_customer", "customer_id"),
    comment="Content: what a page says, and its full-text index.",
)  # fmt: skip

page_embeddings = Table(
    "page_embeddings",
    metadata,
    Column("page_id", BigInteger, nullable=False),
    Column("customer_id", UUID, nullable=False),
    _text("model", CheckConstraint("model <> ''"), comment="Model id: vectors of two models are never compared."),
    Column("chunk_index", Integer, CheckConstraint("chunk_index >= 0"), nullable=False),
    _text("chunk_text"),
    _text(
        "chunk_hash",
        comment="Of what the model reads, headings and text: what has not changed is not embedded again.",
    ),
    Column(
        "embedding", HalfVector(), nullable=False,
        comment="As wide as its model says in omniops_meta.embedding_models.",
    ),
    _now("created_at"),
    _text(
        "heading", server_default=text("''::text"),
        comment="The headings that the chunk stands under; the model reads them too.",
    ),
    PrimaryKeyConstraint("page_id", "model", "chunk_index"),
    ForeignKeyConstraint(
        ["page_id", "customer_id"], ["scraped_pages.id", "scraped_pages.customer_id"], ondelete="CASCADE"
    ),
    # Question: which chunks are nearest to this question, by the embedded model? (`omniops embed --prepare` makes the
    # like for other models.)
    Index(
        "page_embeddings_nearest", literal_column(f"(embedding::halfvec({EMBEDDING_DIMENSIONS}))").label("as_wide"),
        postgresql_using="hnsw", postgresql_ops={"as_wide": "halfvec_cosine_ops"},
        postgresql_where=text(f"model = '{EMBEDDED_MODEL}'"),
    ),
    # Question: all of a customer's, by model: exact search, counts, export, erasure.
    Index("page_embeddings_customer", "customer_id", "model"),
    comment="Content: a page's chunks and their vectors.",
)  # fmt: skip

# --- commerce --------------------------------------------------------------------------------------------------

orders = Table(
    "orders",
    metadata,
    _uuid_key(),
    _customer(),
    _text("external_id", comment="The shop's own number."),
    Column("conversation_id", UUID, comment="The conversation that led to it; those are removed earlier, so no key."),
    _text("status", CheckConstraint("status IN ('pending', 'paid', 'fulfilled', 'cancelled', 'refunded')")),
    Column("total_amount", Numeric(12, 2), CheckConstraint("total_amount >= 0"), nullable=False),
    _text("currency", CheckConstraint("currency ~ '^[A-Z]{3}$'"), comment="ISO 4217."),
    _json("details"),
    _now("created_at"),
    UniqueConstraint("customer_id", "external_id"),
    comment="Orders in customers' shops that the assistant helped with.",
)

cart_operations = Table(
    "cart_operations",
    metadata,
    _bigint_key(),
    _customer(),
    _text("session_id", CheckConstraint("session_id <> ''")),
    _text("operation", CheckConstraint("operation IN ('add', 'remove', 'update', 'clear', 'checkout')")),
    _text("product_id", required=False),
    Column("quantity", Integer, CheckConstraint("quantity >= 0")),
    _json("details"),
    _now("created_at"),
    # Question: what happened to this session's cart, in order? And all of a customer's.
    Index("cart_operations_session", "customer_id", "session_id", "id"),
    comment="What the assistant did to carts.",
)

# --- analytics -------------------------------------------------------------------------------------------------

conversation_funnel = Table(
    "conversation_funnel",
    metadata,
    _bigint_key(),
    _customer(),
    Column("conversation_id", UUID, comment="Conversations are removed earlier, so no foreign key."),
    _text("stage", CheckConstraint("stage IN ('opened', 'asked', 'answered', 'clicked', 'converted', 'escalated')")),
    _now("created_at"),
    # Question: how many reached each stage in this time? And: which are past their retention?
    Index("conversation_funnel_customer_created", "customer_id", "created_at"),
    comment="How far conversations came, one row a step.",
)

alert_history = Table(
    "alert_history",
    metadata,
    _bigint_key(),
    Column("customer_id", UUID, ForeignKey("customers.id", ondelete="CASCADE"), comment="None: the platform's own."),
    _text("alert", CheckConstraint("alert <> ''"), comment="Which alert, for example storage_over_budget."),
    _text("episode", comment="What it is about; one open alert for each."),
    _text("severity", CheckConstraint("severity IN ('info', 'warning', 'critical')")),
    _text("message"),
    _json("details"),
    _now("opened_at"),
    _time("closed_at"),
    _text("what_to_do", server_default=text("''::text")),
    _text("run_id", required=False, comment="Of the Dagster run that it is about."),
    Column(
        "occurrences",
        BigInteger,
        CheckConstraint("occurrences >= 1"),
        nullable=False,
        server_default=text("1"),
        comment="How often it was found while the episode was open.",
    ),
    _now("last_seen_at"),
    # Question: is this episode open already? (One alert for each.)
    Index("alert_history_open", "alert", "episode", unique=True, postgresql_where=text("closed_at IS NULL")),
    # Question: which are past their retention? And the newest ones.
    Index("alert_history_opened", "opened_at"),
    # Question: all of a customer's, for export and erasure.
    Index("alert_history_customer", "customer_id", postgresql_where=text("customer_id IS NOT NULL")),
    comment="Alerts, one row for each episode.",
)

daily_job_stats = Table(
    "daily_job_stats",
    metadata,
    Column("day", Date, nullable=False, comment="UTC."),
    _customer(),
    *(_count(n, comment=c) for n, c in (
        ("jobs_completed", None), ("jobs_failed", None), ("jobs_cancelled", None), ("jobs_unfinished", None),
        ("total_pages", None), ("successful_pages", None), ("failed_pages", None), ("skipped_pages", None),
        ("retries", "Tries after the first."), ("bytes", "On the wire."),
    )),
    *_percentiles(),
    *_work(),
    _json("pages_by_reason", "Number of pages by skip reason or error."),
    _now("computed_at"),
    _time("frozen_at", "Since then rows that it was computed from have been removed: it stays as it is."),
    PrimaryKeyConstraint("day", "customer_id"),
    # Question: this customer's days.
    Index("daily_job_stats_customer", "customer_id", "day"),
    comment="Crawling by day and customer. Outlives the rows that it was computed from.",
)  # fmt: skip

daily_domain_stats = Table(
    "daily_domain_stats",
    metadata,
    Column("day", Date, nullable=False, comment="UTC."),
    _customer(),
    _text("domain", CheckConstraint("domain <> ''")),
    *(_count(n, comment=c) for n, c in (
        ("jobs", "Jobs that have pages of the day."), ("jobs_completed", None), ("jobs_failed", None),
        ("jobs_cancelled", None), ("jobs_unfinished", None), ("total_pages", None), ("successful_pages", None),
        ("failed_pages", None), ("skipped_pages", None), ("retries", "Tries after the first."),
        ("bytes", "On the wire."),
    )),
    *_percentiles(),
    *_work(),
    _json("pages_by_reason", "Number of pages by skip reason or error."),
    _now("computed_at"),
    _time("frozen_at", "Since then rows that it was computed from have been removed: it stays as it is."),
    PrimaryKeyConstraint("day", "customer_id", "domain"),
    # Question: this customer's days.
    Index("daily_domain_stats_customer", "customer_id", "day"),
    comment="Crawling by day, customer and domain. Outlives the rows that it was computed from.",
)  # fmt: skip

storage_snapshots = Table(
    "storage_snapshots",
    metadata,
    _bigint_key(),
    _now("taken_at"),
    _text("table_name", CheckConstraint("table_name <> ''")),
    *(_count(n, comment=c) for n, c in (
        ("row_estimate", "By the planner's statistics."), ("table_bytes", None), ("index_bytes", None),
        ("toast_bytes", None), ("dead_rows", None),
    )),
    Column(
        "bloat_bytes", BigInteger, CheckConstraint("bloat_bytes >= 0"),
        comment="Estimate of what dead rows and empty space take; none where it cannot be told.",
    ),
    # Question: how did this table grow?
    Index("storage_snapshots_table_taken", "table_name", "taken_at"),
    # Question: which are past their retention?
    Index("storage_snapshots_taken", "taken_at"),
    comment="Sizes of the platform's tables, over time.",
)  # fmt: skip

# --- rollout ---------------------------------------------------------------------------------------------------

feature_flags = Table(
    "feature_flags",
    metadata,
    _text("name", CheckConstraint("name ~ '^[a-z][a-z0-9_]*$'"), primary_key=True),
    _text("description", server_default=text("''::text")),
    Column("enabled", Boolean, nullable=False, server_default=text("false"), comment="For everybody."),
    _now("created_at"),
    _now("updated_at"),
    comment="Features that can be switched, platform-wide.",
)

feature_flag_rollouts = Table(
    "feature_flag_rollouts",
    metadata,
    _text("flag_name", ForeignKey("feature_flags.name", ondelete="CASCADE")),
    _customer(),
    Column(
        "percentage", SmallInteger, CheckConstraint("percentage BETWEEN 0 AND 100"), nullable=False,
        server_default=text("100"), comment="Of the customer's visitors.",
    ),
    _now("updated_at"),
    PrimaryKeyConstraint("flag_name", "customer_id"),
    # Question: which features does this customer have?
    Index("feature_flag_rollouts_customer", "customer_id"),
    comment="Which customers have a feature.",
)  # fmt: skip

# --- compliance ------------------------------------------------------------------------------------------------

gdpr_audit_log = Table(
    "gdpr_audit_log",
    metadata,
    _bigint_key(),
    Column(
        "customer_id", UUID, nullable=False,
        comment="Whom it was about. No foreign key: the entry proves an erasure after the customer is gone.",
    ),
    _text("action", CheckConstraint("action IN ('export', 'erasure_preview', 'erasure', 'hold', 'release')")),
    _text("actor", comment="The role or program that asked; no personal data."),
    _text("status", CheckConstraint("status IN ('started', 'completed', 'refused', 'failed')")),
    _json("details", "Counts by table; no personal data."),
    _now("created_at"),
    _time("completed_at"),
    # Question: what was done about this customer?
    Index("gdpr_audit_log_customer", "customer_id", "created_at"),
    comment="Proof of exports and erasures. Kept for good.",
)  # fmt: skip

legal_holds = Table(
    "legal_holds",
    metadata,
    _uuid_key(),
    _customer(cascade=False),
    _text("reason", CheckConstraint("reason <> ''")),
    _text("placed_by"),
    _now("placed_at"),
    _time("released_at", "None: in force."),
    # Question: is this customer held? Asked for every removal.
    Index("legal_holds_in_force", "customer_id", postgresql_where=text("released_at IS NULL")),
    # Question: all of a customer's (and its foreign key's).
    Index("legal_holds_customer", "customer_id"),
    comment="While one is in force, nothing of its customer is removed.",
)

retention_runs = Table(
    "retention_runs",
    metadata,
    _bigint_key(),
    _text("policy", CheckConstraint("policy <> ''")),
    Column("dry_run", Boolean, nullable=False),
    _text("status", CheckConstraint("status IN ('running', 'completed', 'failed')")),
    _now("started_at"),
    _time("completed_at"),
    Column("cutoff", DateTime(timezone=True), comment="What is older goes."),
    _count("rows_removed", comment="Or, in a dry run, rows that would be."),
    _count("expired_unprocessed", comment="Queued messages that expired before anybody handled them."),
    _json("details", "By table and customer: rows, bytes, oldest."),
    _text("error_message", required=False),
    _text("run_id", required=False, comment="Of the Dagster run."),
    # Question: when did this policy run last, and how did it end?
    Index("retention_runs_policy_started", "policy", "started_at"),
    # Question: which are past their own retention?
    Index("retention_runs_started", "started_at"),
    comment="What retention did, one row for each policy and run.",
)

# --- integrations ----------------------------------------------------------------------------------------------

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    _uuid_key(),
    _customer(),
    _text("url", CheckConstraint("url ~ '^https?://'")),
    Column("secret", LargeBinary, comment="Encrypted before it arrives here; never plain text."),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    _now("created_at"),
    UniqueConstraint("customer_id", "url"),
    UniqueConstraint("id", "customer_id"),
    comment="Where a customer wants to hear of events.",
)

webhook_events = Table(
    "webhook_events",
    metadata,
    _bigint_key(),
    Column("endpoint_id", UUID, nullable=False),
    _customer(),
    _text("event"),
    _json("payload"),
    _text(
        "status", CheckConstraint("status IN ('pending', 'delivered', 'failed')"), server_default=text("'pending'")
    ),
    _count("attempts", Integer),
    _text("last_error", required=False),
    _now("created_at"),
    _time("delivered_at"),
    ForeignKeyConstraint(
        ["endpoint_id", "customer_id"], ["webhook_endpoints.id", "webhook_endpoints.customer_id"], ondelete="CASCADE"
    ),
    # Question: what is to be delivered?
    Index("webhook_events_pending", "id", postgresql_where=text("status = 'pending'")),
    # Question: what was sent to this endpoint? (its foreign key asks too)
    Index("webhook_events_endpoint", "endpoint_id", "id"),
    # Question: which are past their retention? And all of a customer's.
    Index("webhook_events_customer_created", "customer_id", "created_at"),
    comment="Deliveries to webhooks.",
)

# --- billing ---------------------------------------------------------------------------------------------------

subscriptions = Table(
    "subscriptions",
    metadata,
    _uuid_key(),
    _customer(),
    _text("plan", CheckConstraint("plan <> ''")),
    _text("status", CheckConstraint("status IN ('trialing', 'active', 'past_due', 'cancelled')")),
    _text("external_id", required=False, comment="At the payment provider.", unique=True),
    _time("current_period_end"),
    _now("created_at"),
    _now("updated_at"),
    UniqueConstraint("id", "customer_id"),
    # Question: what has this customer subscribed to?
    Index("subscriptions_customer", "customer_id"),
    comment="What customers have subscribed to.",
)

billing_events = Table(
    "billing_events",
    metadata,
    _bigint_key(),
    _customer(),
    Column("subscription_id", UUID),
    _text("event", CheckConstraint("event <> ''")),
    Column("amount", Numeric(12, 2)),
    _text("currency", CheckConstraint("currency ~ '^[A-Z]{3}$'"), required=False, comment="ISO 4217."),
    _json("details", "Never card numbers."),
    _now("created_at"),
    ForeignKeyConstraint(
        ["subscription_id", "customer_id"], ["subscriptions.id", "subscriptions.customer_id"], ondelete="CASCADE"
    ),
    # Question: what was billed to this customer, in order?
    Index("billing_events_customer", "customer_id", "id"),
    # Question: the foreign key's.
    Index("billing_events_subscription", "subscription_id"),
    comment="What was billed, and what came of it.",
)

# --- crawling and queue ----------------------------------------------------------------------------------------

scrape_jobs = Table(
    "scrape_jobs",
    metadata,
    _text("job_id", CheckConstraint("job_id <> '' AND octet_length(job_id) <= 200"), primary_key=True),
    _customer(),
    _text("domain", CheckConstraint("domain <> ''")),
    _text("job_type", CheckConstraint(_one_of("job_type", JOB_TYPES))),
    _text("status", CheckConstraint(_one_of("status", STATUSES)), server_default=text("'queued'::text")),
    _json("config"),
    _json("metadata"),
    _now("created_at"),
    *(_time(n) for n in ("started_at", "completed_at", "paused_at")),
    Column(
        "paused_seconds", Double, CheckConstraint("paused_seconds >= 0"), nullable=False, server_default=text("0")
    ),
    *(_text(n, required=False) for n in ("finish_reason", "error_message", "run_id")),
    Column(
        "discovery", JSONB, CheckConstraint("jsonb_typeof(discovery) = 'object'"), nullable=False,
        server_default=text("'{}'::jsonb"),
        comment="sitemaps: who reads them, or what became of them; not_followed: urls left out that have no row in "
        "the frontier, by reason.",
    ),
    Column(
        "removals", JSONB(none_as_null=True), CheckConstraint("jsonb_typeof(removals) = 'object'"),
        comment="What became of pages that the job did not find: counts, written once at its end.",
    ),
    UniqueConstraint("job_id", "customer_id"),
    # Question: what did this customer have crawled lately?
    Index("scrape_jobs_customer_created", "customer_id", text("created_at DESC")),
    # Question: which jobs are waiting or under way? (Finished jobs are most of the table and stay out.)
    Index(
        "scrape_jobs_unfinished", "status", "created_at",
        postgresql_where=text("status IN ('queued', 'running', 'paused')"),
    ),
    # Question: which finished jobs are past their retention?
    Index(
        "scrape_jobs_finished", text("coalesce(completed_at, created_at)"),
        postgresql_where=text("status IN ('completed', 'failed', 'cancelled')"),
    ),
    comment="Audit trail: one row for each crawl, from its creation to its end.",
)  # fmt: skip

scrape_job_results = Table(
    "scrape_job_results",
    metadata,
    _text("job_id"),
    Column("customer_id", UUID, nullable=False),
    _text("url", CheckConstraint("url <> '' AND octet_length(url) <= 2048")),
    _text("status", CheckConstraint(_one_of("status", RESULT_STATUSES))),
    Column("http_status", SmallInteger, CheckConstraint("http_status BETWEEN 100 AND 999")),
    Column(
        "processing_time_ms", Integer, CheckConstraint("processing_time_ms >= 0"),
        comment="From the first byte sent to the page being read, the last try only.",
    ),
    *(_text(n, required=False) for n in ("error_message", "skip_reason", "content_hash")),
    Column("depth", SmallInteger, CheckConstraint("depth >= 0")),
    Column("tries", SmallInteger, CheckConstraint("tries >= 0")),
    Column(
        "bytes", BigInteger, CheckConstraint("bytes >= 0"),
        comment="Body as it came over the wire, before decompression.",
    ),
    _text("redirected_to", required=False),
    _count(
        "repairs", Integer, "Malformed links, undecodable bytes, NULs and half surrogate pairs that were cleaned."
    ),
    _now("created_at"),
    Column(
        "changed", Boolean,
        comment="True: the page was new or said something else than before. None: not read, or not known.",
    ),
    # Question: all results of a job, page by page (keyset on url); and: one row for each url of a job.
    PrimaryKeyConstraint("job_id", "url"),
    ForeignKeyConstraint(
        ["job_id", "customer_id"], ["scrape_jobs.job_id", "scrape_jobs.customer_id"], ondelete="CASCADE"
    ),
    # Question: which results are of this day? (Statistics. Rows arrive in the order of time, so summaries of ranges
    # of blocks find them, and cost next to nothing to keep.)
    Index(
        "scrape_job_results_created", "created_at", postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": "on"},
    ),
    comment="Audit trail: one row for each url of a job, with its outcome.",
)  # fmt: skip

scrape_job_stats = Table(
    "scrape_job_stats",
    metadata,
    _text("job_id", primary_key=True),
    Column("customer_id", UUID, nullable=False),
    *(_count(n) for n in ("total_pages", "successful_pages", "failed_pages", "skipped_pages")),
    Column("avg_processing_time_ms", Integer, CheckConstraint("avg_processing_time_ms >= 0")),
    Column("pages_per_second", Numeric(12, 3), CheckConstraint("pages_per_second >= 0")),
    _now("updated_at"),
    *(_count(n) for n in ("timed_pages", "total_processing_time_ms")),
    # Their sum may be longer than any of the pages' own sizes can be.
    Column(
        "total_bytes",
        Numeric(30, 0),
        CheckConstraint("total_bytes >= 0"),
        nullable=False,
        server_default=text("0"),
        comment="On the wire, all pages of the job: what max_bytes counts.",
    ),
    CheckConstraint("total_pages = successful_pages + failed_pages + skipped_pages"),
    ForeignKeyConstraint(
        ["job_id", "customer_id"], ["scrape_jobs.job_id", "scrape_jobs.customer_id"], ondelete="CASCADE"
    ),
    comment="Counters of a job, kept by a trigger on scrape_job_results; nothing else writes it.",
)

crawl_frontier = Table(
    "crawl_frontier",
    metadata,
    _text("job_id"),
    Column(
        "url_hash", BigInteger, nullable=False,
        comment="BLAKE2b-64 of the url: a key of eight bytes, also what workers remember.",
    ),
    Column("customer_id", UUID, nullable=False),
    _text("url", CheckConstraint("url <> '' AND octet_length(url) <= 2048")),
    Column("depth", Integer, CheckConstraint("depth >= 0"), nullable=False),
    Column("position", BigInteger, Identity(always=True), nullable=False),
    Column(
        "worker_id", BigInteger,
        comment="The worker that holds or has finished it; its lease is one row of omniops_meta.crawl_workers.",
    ),
    Column("done", Boolean, nullable=False, server_default=text("false")),
    _text("skip_reason", required=False),
    _text(
        "found_by", CheckConstraint(_one_of("found_by", ("seed", "link", "sitemap", "known"))),
        server_default=text("'link'::text"),
        comment="What led to it: a start url, a link, a sitemap, or only that it was there before (known).",
    ),
    _time("lastmod", "When it changed last, by its sitemap."),
    PrimaryKeyConstraint("job_id", "url_hash"),
    ForeignKeyConstraint(
        ["job_id", "customer_id"], ["scrape_jobs.job_id", "scrape_jobs.customer_id"], ondelete="CASCADE"
    ),
    # Question: what is to be fetched next, breadth first? `done` stands in no index, so that an acknowledgement
    # can be a heap-only update; a finished url keeps its worker and is therefore not in here.
    Index(
        "crawl_frontier_claimable", "job_id", "depth", "position",
        postgresql_where=text("worker_id IS NULL AND skip_reason IS NULL"),
    ),
    # Question: how many urls were met and not followed, by reason? Urls that are followed stand outside.
    Index(
        "crawl_frontier_unfollowed", "job_id", "skip_reason", postgresql_where=text("skip_reason IS NOT NULL"),
    ),
    comment="Urls that a job knows: waiting, leased by a worker, done, or not to be followed.",
)  # fmt: skip

message_queue = Table(
    "message_queue",
    metadata,
    _uuid_key(),
    Column("position", BigInteger, Identity(always=True), nullable=False, comment="Order of arrival."),
    _customer(),
    _text("session_id", CheckConstraint("session_id <> ''")),
    Column("conversation_id", UUID, comment="The message may be older than its conversation's row, so no key."),
    _text("message_key", CheckConstraint("message_key <> ''"), comment="The sender's; the same key is one message."),
    Column("message_data", JSONB, nullable=False),
    _text("status", CheckConstraint(_one_of("status", MESSAGE_STATUSES)), server_default=text("'pending'")),
    _count("retry_count", Integer, "Tries that failed, or whose lease ran out."),
    Column(
        "expires_at", DateTime(timezone=True), nullable=False, server_default=text("now() + interval '24 hours'")
    ),
    _now("created_at"),
    _now("available_at", "Not before then: backoff after a failure."),
    _time("leased_until", "A handler has it until then."),
    Column("lease_token", UUID, comment="Fences a handler whose lease ran out."),
    _time("completed_at", "When it was completed, or given up."),
    _text("error_message", required=False),
    # As Postgres writes it, so that the two can be compared.
    Column(
        "is_open", Boolean, Computed("status = ANY (ARRAY['pending'::text, 'processing'::text])", persisted=True),
        comment="Neither completed nor failed.",
    ),
    _time("redrive_requested_at", "Failed, and to be opened again as soon as nobody handles its session."),
    UniqueConstraint("customer_id", "session_id", "message_key"),
    CheckConstraint("octet_length(session_id) <= 512", name="message_queue_session_id_length"),
    CheckConstraint("octet_length(message_key) <= 512", name="message_queue_message_key_length"),
    # Question: what is this session's next message, and which session comes after this one?
    Index("message_queue_open", "customer_id", "session_id", "position", postgresql_where=text("is_open")),
    # Question: which failed messages of this session are to be opened again?
    Index(
        "message_queue_redrive", "customer_id", "session_id",
        postgresql_where=text("redrive_requested_at IS NOT NULL"),
    ),
    # Question: which have expired?
    Index("message_queue_expires", "expires_at"),
    comment="Chat messages on their way, for 24 hours.",
)  # fmt: skip
