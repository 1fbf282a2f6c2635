"""The Launchpad's form: what Dagster fills in by itself can be launched once the required fields are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
import yaml
from dagster._config.config_type import ConfigTypeKind
from dagster._core.snap.snap_to_yaml import default_values_yaml_from_type_snap

from omniops_pipelines.definitions import defs as project
from omniops_pipelines.jobs.maintenance import PURGED_JOBS
from tests.integration.jobs.conftest import QUIET, failures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.databases import Database

pytestmark = pytest.mark.integration

OP_JOBS = sorted(PURGED_JOBS)
# What a person has to fill in.
REQUIRED = {
    "crawl": {"plan_crawl": {"urls": ["https://docs.example.com/"]}},
    "control_crawl": {"control_jobs": {"job_ids": ["20261128-103000-docs.example.com-0123abcd"]}},
    "erase_customer": {"erase_everything": {"customer": "acme"}},
    "reprocess": {"read_kept_pages": {"customer": "acme"}},
}


def scaffold(job: str) -> dict[str, Any]:
    """What the Launchpad shows by "scaffold all default config": the text that the webserver makes for it."""
    snapshot = project.resolve_job_def(job).get_job_snapshot()
    schema = snapshot.config_schema_snapshot
    root = schema.get_config_snap(snapshot.mode_def_snaps[0].root_config_key)
    made: dict[str, Any] = yaml.safe_load(default_values_yaml_from_type_snap(schema, root)) or {}
    return made


def filled_in(job: str) -> dict[str, Any]:
    form = scaffold(job)
    for op, fields in REQUIRED.get(job, {}).items():
        form.setdefault("ops", {}).setdefault(op, {}).setdefault("config", {}).update(fields)
    return form


def op_fields(job: str) -> Iterator[tuple[str, str, Any]]:
    """Each field of each op of a job: op, name, field."""
    schema = project.resolve_job_def(job).run_config_schema.config_type
    for op, field in schema.fields["ops"].config_type.fields.items():
        config = field.config_type.fields.get("config")
        # An op without a configuration of its own takes anything, and uses none of it.
        if config is not None and config.config_type.kind is ConfigTypeKind.STRICT_SHAPE:
            for name, inner in config.config_type.fields.items():
                yield op, name, inner


def test_the_jobs_of_ops_are_those_whose_runs_are_purged_and_no_others() -> None:
    jobs = project.get_repository_def().get_all_jobs()
    of_ops = {job.name for job in jobs if not job.asset_layer.asset_graph.executable_asset_keys}
    assert of_ops - {"__ASSET_JOB"} == set(PURGED_JOBS)


@pytest.mark.parametrize("job", OP_JOBS)
def test_the_scaffold_is_valid_as_it_stands_once_the_required_fields_are_there(job: str) -> None:
    assert dg.validate_run_config(project.resolve_job_def(job), filled_in(job))
    if job in REQUIRED:
        with pytest.raises(dg.DagsterInvalidConfigError):
            dg.validate_run_config(project.resolve_job_def(job), scaffold(job))


@pytest.mark.parametrize("job", OP_JOBS)
def test_every_field_is_described_and_only_what_has_no_safe_default_is_required(job: str) -> None:
    fields = list(op_fields(job))
    assert fields
    assert [(op, name) for op, name, field in fields if not (field.description or "").strip()] == []
    required = {op: [name] for op, name, field in fields if field.is_required}
    assert required == {op: list(wanted) for op, wanted in REQUIRED.get(job, {}).items()}


@pytest.mark.parametrize("job", [job for job in OP_JOBS if "crawl" not in job])
def test_what_removes_or_queues_only_looks_until_somebody_says_otherwise(job: str) -> None:
    assert {op["config"]["dry_run"] for op in filled_in(job)["ops"].values()} == {True}


@pytest.mark.parametrize("job", [job for job in OP_JOBS if job not in REQUIRED])
def test_a_scaffold_runs_as_it_stands(job: str, database: Database, defs: dg.Definitions) -> None:
    # The url of the test's database stands in the resource, not in the form.
    form = {"ops": filled_in(job)["ops"], **QUIET}
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def(job).execute_in_process(
            run_config=form, instance=instance, raise_on_error=False
        )
        assert result.success, failures(result)


def test_enums_are_written_by_their_names() -> None:
    form = filled_in("crawl")
    for name in ("full_crawl", "incremental", "sitemap", "single_page"):
        form["ops"]["plan_crawl"]["config"]["job_type"] = name
        assert dg.validate_run_config(project.resolve_job_def("crawl"), form)
    form["ops"]["plan_crawl"]["config"]["job_type"] = "FULL"
    with pytest.raises(dg.DagsterInvalidConfigError):
        dg.validate_run_config(project.resolve_job_def("crawl"), form)


@pytest.mark.parametrize("job", OP_JOBS)
def test_a_misspelt_field_and_a_wrong_type_are_refused_by_the_form(job: str) -> None:
    for change in ({"dry-run": False}, {"dry_run": "perhaps"}, {"max_pages": "many"}):
        form = filled_in(job)
        op = next(iter(form["ops"].values()))
        op["config"].update(change)
        with pytest.raises(dg.DagsterInvalidConfigError):
            dg.validate_run_config(project.resolve_job_def(job), form)
