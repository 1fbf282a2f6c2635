"""`omniops up`: Dagster's webserver and daemon on the embedded servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

_START_SECONDS = 120.0
_STOP_SECONDS = 20.0


@click.command()
@click.option("--port", type=click.IntRange(1, 65_535), default=3000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--open/--no-open", "open_browser", default=True, help="Open the UI in a browser.  [default: yes]")
def up(port: int, host: str, open_browser: bool) -> int:
    """Start the Dagster UI and its daemon, until Ctrl-C."""
    from omniops_pipelines.cli.output import screen
    from omniops_pipelines.instance import open_stack
    from resources.settings import PROJECT_ROOT

    if _answers(host, port):
        msg = f"port {port} on {host} is in use: choose another one with --port"
        raise click.ClickException(msg)
    settings, endpoints = open_stack()
    environment = {
        **os.environ,
        # Children use the very servers that this process holds; they hold them too, by OMNIOPS_HOME.
        "OMNIOPS_HOME": str(settings.home),
        "PYTHONUNBUFFERED": "1",
        # `dagster dev` says at each start that `dg dev` supersedes it; that is no news for who types `omniops up`.
        "PYTHONWARNINGS": "ignore:Function `dev_command` is superseded",
    }
    command = [
        sys.executable, "-m", "dagster", "dev", "-w", str(PROJECT_ROOT / "workspace.yaml"),
        "-h", host, "-p", str(port), "--log-level", "warning",
    ]  # fmt: skip
    url = f"http://{host}:{port}/"
    screen.print(f"Starting Dagster at {url} …")
    status = _supervise(command, environment, host, port, url, open_browser)
    endpoints.release()
    return status


def _supervise(
    command: list[str], environment: Mapping[str, str], host: str, port: int, url: str, open_browser: bool
) -> int:
    """Run Dagster in a session of its own, and end all of it: its children outlive it otherwise."""
    from omniops_pipelines.cli.output import screen

    process = subprocess.Popen(command, env=dict(environment), start_new_session=True)
    # Ended by SIGTERM (a service manager, a test) as by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    announced = False
    deadline = time.monotonic() + _START_SECONDS
    try:
        while process.poll() is None:
            if not announced and _answers(host, port):
                announced = True
                screen.print(f"The Dagster UI is at {url}  (Ctrl-C ends it)")
                if open_browser:
                    click.launch(url)
            if not announced and time.monotonic() > deadline:
                screen.print(f"omniops: Dagster did not answer at {url} within {_START_SECONDS:.0f} s", style="red")
                return 1
            time.sleep(0.3)
        screen.print(f"omniops: Dagster ended by itself with status {process.returncode}", style="red")
        return 1
    except KeyboardInterrupt:
        screen.print("Stopping …")
        return 0
    finally:
        _end_session(process)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Interrupt the whole process group, wait, then kill what is left of it."""
    try:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(_STOP_SECONDS)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(_STOP_SECONDS)


def _answers(host: str, port: int) -> bool:
    import socket

    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False
