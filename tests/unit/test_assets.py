"""The asset graph, derived from the data catalogue."""

from __future__ import annotations

from assets.audit import AUDIT_TABLES
from assets.content import CONTENT_TABLES
from assets.specs import WEBSITE, asset_specs
from resources.postgres.catalogue import TABLES
from resources.postgres.models import metadata


def test_every_table_of_the_catalogue_is_an_asset_and_so_is_the_website() -> None:
    assert {spec.key.to_user_string() for spec in asset_specs()} == {*TABLES, WEBSITE}


def test_every_asset_has_a_description_a_group_and_its_columns() -> None:
    for spec in asset_specs():
        name = spec.key.to_user_string()
        assert spec.description, name
        assert spec.group_name, name
        if name != WEBSITE:
            columns = {column.name for column in spec.metadata["dagster/column_schema"].columns}
            assert columns == set(metadata.tables[name].columns.keys())


def test_the_content_and_audit_groups_are_what_the_crawl_materialises() -> None:
    groups = {spec.key.to_user_string(): spec.group_name for spec in asset_specs()}
    assert {groups[table.name] for table in CONTENT_TABLES} == {"content"}
    assert {groups[table.name] for table in AUDIT_TABLES} == {"audit"}


def test_the_graph_has_no_cycle_and_leads_from_the_website_to_the_counters() -> None:
    parents = {
        spec.key.to_user_string(): {dep.asset_key.to_user_string() for dep in spec.deps} for spec in asset_specs()
    }

    def ancestors(name: str, path: tuple[str, ...] = ()) -> set[str]:
        assert name not in path, f"a cycle through {name}"
        return parents[name].union(*(ancestors(parent, (*path, name)) for parent in parents[name]))

    for name in parents:
        ancestors(name)
    assert WEBSITE in ancestors("scrape_job_stats")
    assert WEBSITE in ancestors("website_content")


def test_the_graph_is_one_piece_but_for_what_is_the_platforms_own() -> None:
    neighbours: dict[str, set[str]] = {spec.key.to_user_string(): set() for spec in asset_specs()}
    for spec in asset_specs():
        for dep in spec.deps:
            neighbours[spec.key.to_user_string()].add(dep.asset_key.to_user_string())
            neighbours[dep.asset_key.to_user_string()].add(spec.key.to_user_string())
    seen, todo = set(), ["customers"]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += neighbours[name]
    # Sizes of tables, and the log of retention runs and of erasures: made by the platform about itself.
    assert set(neighbours) - seen == {"storage_snapshots", "retention_runs", "gdpr_audit_log"}
