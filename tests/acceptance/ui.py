"""`omniops up` as a person has it: a running webserver and daemon, asked by GraphQL."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import urllib.request
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil

from tests.acceptance.program import finish, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.acceptance.program import Process, Program

# Ctrl-C and a service manager's way, in turn.
_WAYS_TO_END = itertools.cycle((signal.SIGTERM, signal.SIGINT))

FINISHED = ("SUCCESS", "FAILURE", "CANCELED")
REPOSITORY = {"repositoryLocationName": "omniops", "repositoryName": "__repository__"}

LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
RUN = """
query ($id: ID!) {
  runOrError(runId: $id) {
    ... on Run {
      status
      tags { key value }
      eventConnection(limit: 1000) { events {
        __typename
        ... on MessageEvent { message }
        ... on ObservationEvent { assetKey { path } metadataEntries { label ... on IntMetadataEntry { intValue } } }
        ... on MaterializationEvent { assetKey { path } }
      } }
    }
  }
}
"""


class Ui:
    """A running `omniops up`."""

    def __init__(self, process: Process, port: int, log: Path) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.log = log

    def query(self, query: str, **variables: Any) -> Any:
        """The data of a GraphQL query."""
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert not answer.get("errors"), answer["errors"]
        return answer["data"]

    def is_ready(self) -> bool:
        """True if it answers and has loaded our definitions."""
        assert self.process.poll() is None, self.log.read_text()
        with suppress(OSError):
            found = self.query("{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }")
            return found["workspaceOrError"]["locationEntries"] == [{"loadStatus": "LOADED"}]
        return False

    def launch(self, **config: Any) -> str:
        """Launch a crawl; returns the run's id."""
        params = {
            "selector": {**REPOSITORY, "pipelineName": "crawl"},
            "runConfigData": {"ops": {"plan_crawl": {"config": config}}},
            "mode": "default",
        }
        answer = self.query(LAUNCH, params=params)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        run_id: str = answer["run"]["runId"]
        return run_id

    def run(self, run_id: str) -> dict[str, Any]:
        """The run with its events."""
        found: dict[str, Any] = self.query(RUN, id=run_id)["runOrError"]
        return found

    def wait_for(self, run_id: str, *statuses: str, seconds: float = 120) -> dict[str, Any]:
        """The run when it has one of these statuses (or any final one)."""
        wait_until(lambda: self.run(run_id)["status"] in (*statuses, *FINISHED), seconds, f"the run: {statuses}")
        return self.run(run_id)

    def kill(self) -> None:
        """End all of it at once, with every run under way, as a power cut does."""
        for process in reversed(_family(self.process)):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(30)


@contextmanager
def serve_ui(program: Program, log: Path) -> Iterator[Ui]:
    """The UI on a free port; at its end nothing of it may be left, unless it was killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = program.start("up", "--no-open", "--port", str(port), log=log)
    started = Ui(process, port, log)
    family: list[psutil.Process] = []
    try:
        wait_until(started.is_ready, why="the UI")
        yield started
    finally:
        family = _family(process)
        if process.poll() is None:
            process.send_signal(next(_WAYS_TO_END))
            assert finish(process, 60).status == 0
    wait_until(lambda: not [p for p in family if _runs(p)], 30, f"the end of {family}")


def _family(process: Process) -> list[psutil.Process]:
    """A process and all that descends from it."""
    try:
        me = psutil.Process(process.pid)
        return [me, *me.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
