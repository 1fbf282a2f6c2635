"""Paths, urls and locks that need no server."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg.conninfo
import pytest
import redis
from sqlalchemy import make_url

from resources.services import ServiceError, locks, privileges
from resources.services.layout import Layout, make_private_folder, socket_folder


@pytest.mark.parametrize("home", ["/srv/omniops", "/srv/with a blank/and%25/ü", "/srv/" + "long/" * 40])
def test_the_urls_lead_every_client_to_the_same_socket(home: str) -> None:
    layout = Layout(Path(home))
    url = layout.postgres_url()
    parts = psycopg.conninfo.conninfo_to_dict(url)
    assert (parts["user"], parts["dbname"], parts["host"]) == ("omniops", "omniops", str(layout.sockets))
    assert make_url(url).query["host"] == str(layout.sockets)
    client = redis.Redis.from_url(layout.redis_url)
    assert client.connection_pool.connection_kwargs["path"] == str(layout.valkey_socket)


@pytest.mark.parametrize("length", range(60, 130))
def test_a_sockets_path_is_never_too_long(length: int) -> None:
    home = Path("/" + "h" * length)
    layout = Layout(home)
    for path in (layout.postgres_socket, layout.valkey_socket, layout.supervisor_socket):
        assert len(os.fsencode(path)) <= 103


def test_two_homes_never_share_a_folder_of_sockets() -> None:
    first, second = (socket_folder(Path("/" + "h" * 120 + end)) for end in "ab")
    assert first != second
    assert socket_folder(Path("/" + "h" * 120 + "a")) == first


def test_a_link_in_the_place_of_the_sockets_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ServiceError, match="not a folder of this user"):
        make_private_folder(tmp_path / "run", None)


def test_a_sockets_folder_that_is_open_to_others_is_closed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    make_private_folder(tmp_path / "run", None)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_a_lock_is_held_until_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    assert not locks.is_held(path)
    descriptor = locks.take(path, locks.EXCLUSIVE, 0)
    assert locks.is_held(path)
    with pytest.raises(locks.LockTimeoutError):
        locks.take(path, locks.SHARED, 0.02)
    os.close(descriptor)
    assert not locks.is_held(path)


def test_users_are_listed_and_those_of_dead_processes_forgotten(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "home")
    layout.prepare()
    (layout.users / "99999999-0").touch()
    share = locks.UserShare(layout, 1.0)
    assert locks.user_pids(layout) == [os.getpid()]
    assert not (layout.users / "99999999-0").exists()
    share.release()
    assert locks.user_pids(layout) == []


def test_a_user_passes_where_the_mode_bits_let_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    stranger = privileges.Account(uid=54321, gid=54321)
    owner = privileges.Account(uid=os.geteuid(), gid=os.getegid())
    assert not privileges.can_pass(tmp_path / "a" / "file", stranger)
    assert privileges.can_pass(tmp_path / "a" / "file", owner)


def test_a_home_that_is_a_file_is_an_error_that_helps(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(ServiceError, match="set OMNIOPS_HOME"):
        Layout(tmp_path / "home").prepare()
