"""The data catalogue: what each table and key is, whose it is, how long it is kept, and who removes it.

The data persistence strategy in one place. Row-level security, cleanup, erasure, export, reports, lineage and the
documentation are driven from here; a table in the database without an entry, or an entry without a table, is a
failing test. A new table is one entry, one model and one migration.

Where a kind of data goes is decided by asking, in this order: must it survive a restart, is it needed for audit?
(permanent); can it be made again, is it read and written very often? (ephemeral); does it change only how a page
looks? (client). The client tier holds preferences alone, never credentials, personal data, payments or messages.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from resources.postgres.models import metadata
from resources.redis.keys import KEY_PATTERNS

Tier = Literal["permanent", "ephemeral", "client"]
Access = Literal["write", "read", "none"]


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long a kind of data is kept.

    Attributes:
        name: what `omniops cleanup` and `retention_runs` call it.
        keeps: in words.
        days: age at which rows go; None where it is not a number of days.
        removes: the SQL function that removes, or the command.
        schedule: in words; None: only when asked for.
    """

    name: str
    keeps: str
    days: int | None
    removes: str
    schedule: str | None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


POLICIES: Final = {
    policy.name: policy
    for policy in (
        RetentionPolicy("message_queue", "24 hours", None, "cleanup_expired_message_queue()", "daily"),
        RetentionPolicy("scrape_jobs", "90 days after its end", 90, "cleanup_old_scrape_jobs(days)", "weekly"),
        RetentionPolicy(
            "conversations",
            "90 days after the last message, or as the customer's configuration says",
            90,
            "cleanup_old_conversations(days)",
            "weekly",
        ),
        RetentionPolicy("analytics", "365 days", 365, "cleanup_old_analytics(days)", "weekly"),
        RetentionPolicy("until_erasure", "until the customer's erasure", None, "omniops erase", None),
        RetentionPolicy("for_good", "for good, as proof", None, "nothing", None),
    )
}


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One table of the permanent tier.

    Attributes:
        name: in schema `public`.
        group: as the specification groups them, and as lineage shows them.
        policy: name of its retention policy.
        tenant_column: whose row it is; None for tables of the platform.
        client_access: what client access may do with its own customer's rows.
        owner: the service that writes it.
        erase_order: 0 is erased first: children before their parents. None: not erased.
        row_key: columns that identify a row, for batches.
    """

    name: str
    group: str
    policy: str
    tenant_column: str | None = "customer_id"
    client_access: Access = "write"
    owner: str = "chat"
    erase_order: int | None = 0

    @property
    def tier(self) -> Tier:
        """Tables are the permanent tier."""
        return "permanent"

    @property
    def description(self) -> str:
        """What stands in it: the table's own comment."""
        return metadata.tables[self.name].comment or ""

    @property
    def retention(self) -> RetentionPolicy:
        """How long its rows are kept."""
        return POLICIES[self.policy]

    @property
    def row_key(self) -> tuple[str, ...]:
        """The primary key's columns."""
        return tuple(column.name for column in metadata.tables[self.name].primary_key)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, with what is derived from them, for JSON."""
        return {
            **asdict(self),
            "tier": self.tier,
            "kept": self.retention.keeps,
            "removed_by": self.retention.removes,
            "row_key": list(self.row_key),
            "description": self.description,
        }


_PIPELINES = "pipelines"

TABLES: Final = {
    entry.name: entry
    for entry in (
        # tenants and accounts
        TableEntry("customers", "tenants", "until_erasure", "id", "read", "accounts", 9),
        TableEntry("customer_configs", "tenants", "until_erasure", owner="accounts", erase_order=8),
        TableEntry("user_accounts", "tenants", "until_erasure", owner="accounts", erase_order=2),
        TableEntry("customer_members", "tenants", "until_erasure", owner="accounts", erase_order=1),
        # conversations
        TableEntry("conversations", "conversations", "conversations", erase_order=2),
        TableEntry("messages", "conversations", "conversations", erase_order=1),
        TableEntry("conversation_metadata", "conversations", "conversations", erase_order=1),
        # content
        TableEntry("scraped_pages", "content", "until_erasure", owner=_PIPELINES, erase_order=2),
        TableEntry("website_content", "content", "until_erasure", owner=_PIPELINES, erase_order=1),
        TableEntry("page_embeddings", "content", "until_erasure", owner=_PIPELINES, erase_order=1),
        # commerce
        TableEntry("orders", "commerce", "until_erasure", owner="commerce", erase_order=1),
        TableEntry("cart_operations", "commerce", "until_erasure", owner="commerce", erase_order=1),
        # analytics
        TableEntry("conversation_funnel", "analytics", "analytics", erase_order=1),
        TableEntry("alert_history", "analytics", "analytics", client_access="read", owner=_PIPELINES, erase_order=1),
        TableEntry(
            "daily_job_stats", "analytics", "analytics", client_access="read", owner=_PIPELINES, erase_order=1
        ),
        TableEntry(
            "daily_domain_stats", "analytics", "analytics", client_access="read", owner=_PIPELINES, erase_order=1
        ),
        TableEntry("storage_snapshots", "analytics", "analytics", None, "none", _PIPELINES, None),
        # rollout
        TableEntry("feature_flags", "rollout", "until_erasure", None, "none", "accounts", None),
        TableEntry(
            "feature_flag_rollouts", "rollout", "until_erasure", client_access="read", owner="accounts", erase_order=1
        ),
        # compliance
        TableEntry(
            "gdpr_audit_log", "compliance", "for_good", client_access="read", owner=_PIPELINES, erase_order=None
        ),
        TableEntry(
            "legal_holds", "compliance", "until_erasure", client_access="read", owner="compliance", erase_order=8
        ),
        TableEntry("retention_runs", "compliance", "for_good", None, "none", _PIPELINES, None),
        # integrations
        TableEntry("webhook_endpoints", "integrations", "until_erasure", owner="accounts", erase_order=2),
        TableEntry("webhook_events", "integrations", "until_erasure", owner="chat", erase_order=1),
        # billing
        TableEntry("subscriptions", "billing", "until_erasure", client_access="read", owner="billing", erase_order=2),
        TableEntry(
            "billing_events", "billing", "until_erasure", client_access="read", owner="billing", erase_order=1
        ),
        # crawling and queue
        TableEntry("scrape_jobs", "crawling", "scrape_jobs", owner=_PIPELINES, erase_order=2),
        TableEntry("scrape_job_results", "crawling", "scrape_jobs", owner=_PIPELINES, erase_order=1),
        # No role may delete statistics: they go with their job, by the foreign key's cascade.
        TableEntry(
            "scrape_job_stats", "crawling", "scrape_jobs", client_access="read", owner=_PIPELINES, erase_order=2
        ),
        TableEntry("crawl_frontier", "crawling", "scrape_jobs", owner=_PIPELINES, erase_order=1),
        TableEntry("message_queue", "crawling", "message_queue", erase_order=1),
    )
}


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key pattern of the ephemeral tier."""

    pattern: str
    holds: str
    ttl_seconds: int
    owner: str = _PIPELINES

    @property
    def tier(self) -> Tier:
        """Keys are the ephemeral tier."""
        return "ephemeral"

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return {**asdict(self), "tier": self.tier}


KEYS: Final = {p.pattern: KeyEntry(p.pattern, p.holds, p.ttl_seconds) for p in KEY_PATTERNS}


def tenant_tables() -> tuple[TableEntry, ...]:
    """Tables whose rows belong to a customer."""
    return tuple(entry for entry in TABLES.values() if entry.tenant_column is not None)


def erasure_order() -> tuple[TableEntry, ...]:
    """Tables whose rows go with their customer, children first."""
    entries = [entry for entry in TABLES.values() if entry.erase_order is not None]
    return tuple(sorted(entries, key=lambda entry: (entry.erase_order, entry.name)))
