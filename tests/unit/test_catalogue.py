"""The data catalogue and the models: each has an entry for what the other has, and erasure can follow it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import ForeignKeyConstraint, UniqueConstraint

from omniops_pipelines.cli import cli
from omniops_pipelines.cli.catalog import markdown
from resources.postgres import models
from resources.postgres.catalogue import (
    KEYS,
    POLICIES,
    TABLES,
    TableEntry,
    erasure_order,
    tenant_tables,
)
from resources.postgres.models import metadata
from resources.redis import keys

_PAGE = Path(__file__).parents[2] / "docs" / "data-catalogue.md"
_GROUPS = {
    "tenants": {"customers", "customer_configs", "user_accounts", "customer_members"},
    "conversations": {"conversations", "messages", "conversation_metadata"},
    "content": {"scraped_pages", "website_content", "page_embeddings"},
    "commerce": {"orders", "cart_operations"},
    "analytics": {
        "conversation_funnel", "alert_history", "daily_job_stats", "daily_domain_stats", "storage_snapshots",
    },
    "rollout": {"feature_flags", "feature_flag_rollouts"},
    "compliance": {"gdpr_audit_log", "legal_holds", "retention_runs"},
    "integrations": {"webhook_endpoints", "webhook_events"},
    "billing": {"subscriptions", "billing_events"},
    "crawling": {"scrape_jobs", "scrape_job_results", "scrape_job_stats", "crawl_frontier", "message_queue"},
}  # fmt: skip
# Rows of the platform, not of a customer.
_PLATFORM = {"storage_snapshots", "feature_flags", "retention_runs"}
# No role may delete these: the foreign key's cascade does.
_GO_WITH_THEIR_PARENT = {"scrape_job_stats"}
_FOREIGN_KEYS = [
    pytest.param(key, id=f"{table.name}-{'-'.join(key.column_keys)}")
    for table in metadata.sorted_tables
    for key in sorted(table.foreign_key_constraints, key=lambda key: key.column_keys)
]


def test_there_are_the_31_tables_of_the_specification_and_no_others() -> None:
    by_group = {group: {e.name for e in TABLES.values() if e.group == group} for group in _GROUPS}
    assert by_group == _GROUPS
    assert len(TABLES) == 31


def test_every_table_has_an_entry_and_every_entry_a_table() -> None:
    assert set(TABLES) == set(metadata.tables)
    assert all(name == entry.name for name, entry in TABLES.items())


def test_every_key_pattern_has_an_entry_and_every_entry_a_pattern() -> None:
    written = {value.pattern for value in vars(keys).values() if isinstance(value, keys.KeyPattern)}
    assert written == {pattern.pattern for pattern in keys.KEY_PATTERNS} == set(KEYS)


def test_every_key_lives_from_a_minute_to_a_day() -> None:
    assert all(60 <= entry.ttl_seconds <= 24 * 3600 for entry in KEYS.values())


@pytest.mark.parametrize("entry", TABLES.values(), ids=TABLES)
def test_an_entry_says_all_that_there_is_to_say(entry: TableEntry) -> None:
    assert entry.description, "a comment in models.py is the description"
    assert entry.policy in POLICIES
    assert entry.owner
    assert entry.row_key


@pytest.mark.parametrize("entry", TABLES.values(), ids=TABLES)
def test_a_tenant_column_exists_and_is_the_customer(entry: TableEntry) -> None:
    table = metadata.tables[entry.name]
    if entry.name in _PLATFORM:
        assert entry.tenant_column is None
        assert "customer_id" not in table.columns
        assert (entry.client_access, entry.erase_order) == ("none", None)
        return
    assert entry.tenant_column == ("id" if entry.name == "customers" else "customer_id")
    column = table.columns[entry.tenant_column]
    # Alerts can be the platform's own.
    assert column.nullable is (entry.name == "alert_history")
    assert entry in tenant_tables()


def test_every_tenant_table_is_erased_but_the_proof_of_erasure() -> None:
    assert {e.name for e in tenant_tables()} - {e.name for e in erasure_order()} == {"gdpr_audit_log"}


@pytest.mark.parametrize("key", _FOREIGN_KEYS)
def test_erasure_takes_children_before_their_parents(key: ForeignKeyConstraint) -> None:
    order = [entry.name for entry in erasure_order()]
    child, parent = key.table.name, key.referred_table.name
    if parent in order:
        # Not by name within one number: two tables of one number have nothing to do with each other.
        child_order, parent_order = TABLES[child].erase_order, TABLES[parent].erase_order
        assert child_order is not None
        assert parent_order is not None
        if child in _GO_WITH_THEIR_PARENT:
            assert (child_order, key.ondelete) == (parent_order, "CASCADE")
        else:
            assert child_order < parent_order
        assert order.index(child) < order.index(parent)


@pytest.mark.parametrize("key", _FOREIGN_KEYS)
def test_a_child_belongs_to_its_parents_customer_by_its_foreign_key(key: ForeignKeyConstraint) -> None:
    child, parent = TABLES[key.table.name], TABLES[key.referred_table.name]
    if child.tenant_column is None or parent.tenant_column is None:
        # What is the platform's has no customer to agree with.
        assert parent.name == "feature_flags"
        return
    pairs = {element.parent.name: element.column.name for element in key.elements}
    assert pairs.get(child.tenant_column) == parent.tenant_column
    if len(pairs) > 1:
        unique = [set(c.columns.keys()) for c in key.referred_table.constraints if isinstance(c, UniqueConstraint)]
        assert set(pairs.values()) in unique


def test_every_tenant_table_leads_to_its_customer_by_foreign_keys() -> None:
    for entry in tenant_tables():
        if entry.name in ("customers", "gdpr_audit_log"):
            continue
        seen, waiting = set(), [entry.name]
        while waiting:
            name = waiting.pop()
            seen.add(name)
            waiting += {k.referred_table.name for k in metadata.tables[name].foreign_key_constraints} - seen
        assert "customers" in seen, entry.name


def test_every_index_has_its_question_beside_it() -> None:
    source = Path(models.__file__).read_text(encoding="utf-8")
    lines = source.splitlines()
    asked, unasked = set(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Index":
            assert isinstance(node.args[0], ast.Constant)
            name, above = str(node.args[0].value), node.lineno - 2
            comment: list[str] = []
            while lines[above].strip().startswith("#"):
                comment.insert(0, lines[above].strip())
                above -= 1
            if comment and comment[0].startswith("# Question: "):
                asked.add(name)
            else:
                unasked.append(name)
    assert unasked == []
    assert asked == {index.name for table in metadata.tables.values() for index in table.indexes}


# --- omniops catalog -------------------------------------------------------------------------------------------


def test_the_page_in_the_documentation_is_up_to_date() -> None:
    assert _PAGE.read_text(encoding="utf-8") == markdown(), "run: omniops catalog --markdown > docs/data-catalogue.md"


def test_the_catalogue_as_json_has_everything() -> None:
    result = CliRunner().invoke(cli, ["catalog", "--json"])
    found = json.loads(result.stdout)
    assert {table["name"] for table in found["tables"]} == set(TABLES)
    assert {key["pattern"]: key["ttl_seconds"] for key in found["keys"]} == {
        k: e.ttl_seconds for k, e in KEYS.items()
    }
    assert {policy["name"] for policy in found["policies"]} == set(POLICIES)
    fields = {"name", "tier", "group", "policy", "kept", "tenant_column", "client_access", "owner", "description"}
    assert all(fields <= set(table) for table in found["tables"])


def test_the_catalogue_as_a_table_shows_every_table_and_key() -> None:
    result = CliRunner().invoke(cli, ["catalog"])
    assert result.exit_code == 0
    assert all(name in result.stdout for name in (*TABLES, *KEYS, *_GROUPS))


def test_one_form_at_a_time() -> None:
    assert CliRunner().invoke(cli, ["catalog", "--json", "--markdown"]).exit_code == 2
