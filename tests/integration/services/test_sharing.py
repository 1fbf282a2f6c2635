"""Who holds the servers, and when they stop."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from resources.services import Endpoints, ServiceError, acquire, start, status, stop
from resources.settings import Settings

from .conftest import Stack, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.integration


def test_several_processes_share_one_server_and_the_last_one_out_stops_it(stack: Stack) -> None:
    first = stack.user()
    postmaster = stack.server("postgres").pid
    second = stack.user()
    stack.leave(first)
    assert stack.server("postgres").pid == postmaster
    stack.leave(second)
    stack.wait_until_gone()


def test_two_processes_that_start_at_once_on_a_fresh_home_get_the_same_server(stack: Stack) -> None:
    users = [stack.user(wait=False) for _ in range(4)]
    urls = {stack.wait_for(user) for user in users}
    assert len(urls) == 1
    assert len(stack.supervisors()) == 1
    first = stack.pg(urls.pop(), "select pg_postmaster_start_time()")
    assert first is not None


def test_the_urls_work_with_every_client_the_project_uses(stack: Stack) -> None:
    import psycopg
    import psycopg2
    import redis
    from sqlalchemy import create_engine, text

    with acquire(stack.settings) as endpoints:
        stack.processes()
        psycopg.connect(endpoints.database_url).close()
        psycopg2.connect(endpoints.owner_database_url).close()
        for driver in ("psycopg", "psycopg2"):
            engine = create_engine(endpoints.database_url.replace("postgresql:", f"postgresql+{driver}:"))
            with engine.connect() as connection:
                assert connection.execute(text("select current_user")).scalar() == "omniops"
            engine.dispose()
        assert endpoints.redis_url is not None
        client = redis.Redis.from_url(endpoints.redis_url)
        assert client.ping()
        client.close()


def test_the_runtime_role_has_no_more_rights_than_it_needs(stack: Stack) -> None:
    with acquire(stack.settings, redis=False) as endpoints:
        stack.processes()

        def ask(query: str) -> object:
            return stack.pg(endpoints.database_url, query)

        assert ask("select array[rolsuper, rolbypassrls, rolcreaterole] from pg_roles "
                   "where rolname = 'omniops'") == [False, False, False]  # fmt: skip
        for right, has in (("CONNECT", True), ("TEMPORARY", True), ("CREATE", False)):
            assert ask(f"select has_database_privilege('omniops', '{right}')") is has
        assert ask("select pg_get_userbyid(datdba) from pg_database where datname = 'omniops'") == "omniops_owner"
        assert ask("select count(*) from pg_extension where extname in "
                   "('vector', 'pg_trgm', 'pg_stat_statements', 'unaccent')") == 4  # fmt: skip
        assert ask("select count(*) >= 0 from pg_stat_statements") is True
        # The owner can do what a migration does.
        stack.pg(endpoints.owner_database_url, "create role some_role; grant some_role to omniops; "
                 "create schema some_schema; create table public.some_table (n int)")  # fmt: skip
        assert ask("select current_setting('fsync') || current_setting('listen_addresses')") == "on"


def test_a_forked_child_neither_keeps_the_servers_nor_takes_them_from_its_parent(stack: Stack) -> None:
    endpoints = acquire(stack.settings)
    stack.processes()
    fork = multiprocessing.get_context("fork")
    hold = fork.Event()
    child = fork.Process(target=hold.wait)
    child.start()
    quick = fork.Process(target=_release, args=(endpoints,))
    quick.start()
    quick.join()
    assert status(stack.settings)[0].running
    assert status(stack.settings)[0].users == (os.getpid(),)
    endpoints.release()
    stack.wait_until_gone()
    hold.set()
    child.join()


def _release(endpoints: Endpoints) -> None:
    endpoints.release()


def test_several_holds_in_one_process_are_independent_and_may_be_released_twice(stack: Stack) -> None:
    first, second = acquire(stack.settings), acquire(stack.settings)
    stack.processes()
    first.release()
    first.release()
    assert stack.pg(second.database_url, "select 1") == 1
    second.release()
    stack.wait_until_gone()


def test_a_part_that_was_not_asked_for_is_not_started_until_somebody_does(stack: Stack) -> None:
    with acquire(stack.settings, redis=False) as endpoints:
        assert endpoints.redis_url is None
        assert [entry.running for entry in status(stack.settings)] == [True, False]
        with acquire(stack.settings):
            assert [entry.running for entry in status(stack.settings)] == [True, True]
            stack.processes()


def test_urls_of_other_servers_are_used_as_they_are_and_nothing_is_started(folder: Path) -> None:
    settings = Settings(folder / "home", "postgresql://a@b/c", None, "redis://d")
    with acquire(settings) as endpoints:
        assert endpoints.database_url == endpoints.owner_database_url == "postgresql://a@b/c"
        assert endpoints.redis_url == "redis://d"
        assert not endpoints.embedded_postgres
        assert not endpoints.embedded_redis
        endpoints.ensure_running()
    assert status(settings) == []
    assert stop(settings) is False
    assert not (folder / "home").exists()


def test_started_servers_stay_until_they_are_stopped(stack: Stack) -> None:
    endpoints = start(stack.settings)
    stack.processes()
    (postgres, valkey) = status(stack.settings)
    assert postgres.running
    assert postgres.kept
    assert postgres.users == ()
    assert postgres.version.startswith("18.")
    assert valkey.running
    assert valkey.pid == stack.server("valkey").pid
    stack.leave(stack.user())
    assert stack.pg(endpoints.database_url, "select 1") == 1
    assert stop(stack.settings) is True
    assert stack.processes() == []
    assert stop(stack.settings) is False
    assert [entry.running for entry in status(stack.settings)] == [False, False]


def test_stopping_is_refused_while_a_process_uses_the_servers_unless_forced(stack: Stack) -> None:
    user = stack.user()
    with pytest.raises(ServiceError, match=rf"in use by process {user.pid}\b"):
        stop(stack.settings)
    assert status(stack.settings)[0].users == (user.pid,)
    assert stop(stack.settings, force=True) is True
    assert stack.processes() == []


def test_the_cache_survives_from_one_command_to_the_next(stack: Stack) -> None:
    import redis

    for expected in (b"1", b"2"):
        with acquire(stack.settings, postgres=False) as endpoints:
            stack.processes()
            assert endpoints.redis_url is not None
            with redis.Redis.from_url(endpoints.redis_url) as client:
                client.incr("commands")
                assert client.get("commands") == expected
        stack.wait_until_gone()


def test_everything_in_the_data_folder_is_private(stack: Stack) -> None:
    with acquire(stack.settings):
        stack.processes()
        assert stat.S_IMODE(stack.home.stat().st_mode) & 0o707 == 0o700
        for path in [path for folder in ("locks", "run", "log") for path in (stack.home / folder).rglob("*")]:
            assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path


def test_a_home_too_long_for_a_socket_works_and_its_sockets_are_private(
    folder: Path, make_stack: Callable[[Path], Stack]
) -> None:
    stack = make_stack(folder / ("long" * 20) / ("name" * 20) / "home with a blank")
    with acquire(stack.settings) as endpoints:
        stack.processes()
        assert stack.pg(endpoints.database_url, "select 1") == 1
        sockets = endpoints.database_url.partition("host=")[2]
        assert sockets.startswith("/tmp/omniops-")
        assert stat.S_IMODE(Path(sockets).stat().st_mode) == 0o700
    stack.wait_until_gone()
    assert not Path(sockets).exists()


def test_joining_is_quick(stack: Stack) -> None:
    with acquire(stack.settings):
        stack.processes()
        times = []
        for _ in range(10):
            begin = time.perf_counter()
            acquire(stack.settings).release()
            times.append(time.perf_counter() - begin)
    assert sorted(times)[5] < 0.1
    wait_until(lambda: not stack.processes())
