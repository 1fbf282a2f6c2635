"""kill -9 of anything, at any moment: nothing keeps running, and the next start works."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from resources.services import ServiceError, acquire, status

from .conftest import Stack, kill, runs, wait_until

pytestmark = pytest.mark.integration


def _answers(stack: Stack, url: str) -> bool:
    import psycopg

    try:
        return stack.pg(url, "select 1") == 1
    except psycopg.OperationalError:
        return False


def test_after_kill_9_of_its_only_user_the_servers_stop(stack: Stack) -> None:
    user = stack.user()
    begin = time.monotonic()
    user.kill()
    stack.wait_until_gone()
    assert time.monotonic() - begin < 10


def test_kill_9_in_the_middle_of_the_first_start_leaves_nothing_and_the_next_start_works(
    stack: Stack,
) -> None:
    for pause in (0.1, 0.3, 0.5):
        user = stack.user(wait=False)
        wait_until(stack.supervisors)
        time.sleep(pause)  # the moment matters here, not a state
        stack.processes()
        for process in stack.supervisors():
            kill(process)
        user.kill()
        stack.wait_until_gone()
    with acquire(stack.settings) as endpoints:
        assert stack.pg(endpoints.database_url, "select 1") == 1
        stack.processes()


def test_after_kill_9_the_postmaster_comes_back_at_the_same_url_with_what_was_committed(stack: Stack) -> None:
    with acquire(stack.settings) as endpoints:
        stack.pg(endpoints.owner_database_url, "create table kept as select 42 as n")
        old = stack.server("postgres")
        stack.processes()
        old.kill()
        wait_until(lambda: _answers(stack, endpoints.database_url))
        assert stack.server("postgres").pid != old.pid
        assert stack.pg(endpoints.owner_database_url, "select n from kept") == 42


def _ignore_the_end(stack: Stack, url: str, query: str) -> None:
    import psycopg

    with suppress(psycopg.OperationalError):
        stack.pg(url, query)


def test_a_busy_backend_of_a_killed_postmaster_does_not_hold_up_the_restart(stack: Stack) -> None:
    with acquire(stack.settings, redis=False) as endpoints:
        work = "do $$ begin loop end loop; end $$"
        busy = threading.Thread(target=_ignore_the_end, args=(stack, endpoints.database_url, work))
        busy.start()
        wait_until(
            lambda: stack.pg(
                endpoints.database_url,
                "select count(*) from pg_stat_activity where query like 'do $$%' and state = 'active'",
            )
        )
        old = [process for process in stack.processes() if process not in stack.supervisors()]
        stack.server("postgres").kill()
        wait_until(lambda: _answers(stack, endpoints.database_url))
        assert not [process for process in old if runs(process)]
        busy.join()


def test_after_kill_9_valkey_comes_back_at_the_same_url(stack: Stack) -> None:
    import redis

    with acquire(stack.settings, postgres=False) as endpoints:
        stack.processes()
        stack.server("valkey").kill()
        endpoints.ensure_running()
        assert endpoints.redis_url is not None
        with redis.Redis.from_url(endpoints.redis_url) as client:
            assert client.ping()


def test_after_kill_9_of_the_supervisor_nothing_leaks_and_its_users_can_go_on(stack: Stack) -> None:
    user = stack.user()
    with acquire(stack.settings) as endpoints:
        (supervisor,) = stack.supervisors()
        supervisor.kill()
        stack.wait_until_gone()
        endpoints.ensure_running()
        assert stack.pg(endpoints.database_url, "select 1") == 1
        stack.processes()
    # The user that did nothing holds the new servers too.
    assert _answers(stack, endpoints.database_url)
    stack.leave(user)
    stack.wait_until_gone()


def test_ensure_running_right_after_the_kill_waits_for_the_old_servers_to_end(stack: Stack) -> None:
    with acquire(stack.settings) as endpoints:
        for _ in range(3):
            stack.processes()
            stack.supervisors()[0].kill()
            wait_until(lambda: not stack.supervisors())
            endpoints.ensure_running()
            assert _answers(stack, endpoints.database_url)
        stack.processes()


def test_after_kill_9_of_everything_at_once_the_next_start_works(stack: Stack) -> None:
    user = stack.user()
    for process in [*stack.processes(), psutil.Process(user.pid)]:
        kill(process)
    stack.wait_until_gone()
    assert [entry.running for entry in status(stack.settings)] == [False, False]
    assert status(stack.settings)[0].users == ()
    with acquire(stack.settings) as endpoints:
        stack.processes()
        assert stack.pg(endpoints.database_url, "select 1") == 1


def test_a_pid_file_that_names_a_stranger_is_not_believed(stack: Stack) -> None:
    user = stack.user()
    for process in [*stack.processes(), psutil.Process(user.pid)]:
        kill(process)
    stack.wait_until_gone()
    owner = (stack.home / "postgres").stat()
    # Of the server's user: only such a pid makes Postgres believe the file.
    stranger = subprocess.Popen(["sleep", "60"], user=owner.st_uid if os.geteuid() == 0 else None, cwd="/")
    pid_file = stack.home / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines() if pid_file.exists() else [""] * 8
    lines[0] = str(stranger.pid)
    pid_file.write_text("\n".join(lines) + "\n")
    with acquire(stack.settings) as endpoints:
        stack.processes()
        assert stack.pg(endpoints.database_url, "select 1") == 1
        assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_server_that_dies_again_and_again_is_left_alone_until_somebody_asks(stack: Stack) -> None:
    with acquire(stack.settings, postgres=False) as endpoints:
        for _ in range(6):
            wait_until(lambda: status(stack.settings)[1].running)
            old = stack.server("valkey")
            old.kill()
            wait_until(lambda old=old: not old.is_running())
        log = stack.home / "log" / "supervisor.log"
        wait_until(lambda: "left alone" in log.read_text())
        endpoints.ensure_running()
        stack.processes()
        assert status(stack.settings)[1].running


def test_a_server_that_hangs_is_replaced(stack: Stack) -> None:
    with acquire(stack.settings, postgres=False) as endpoints:
        stack.processes()
        old = stack.server("valkey")
        old.send_signal(signal.SIGSTOP)
        endpoints.ensure_running()
        assert stack.server("valkey").pid != old.pid
        stack.processes()


def test_a_data_folder_that_is_removed_ends_its_servers(stack: Stack) -> None:
    with acquire(stack.settings):
        stack.processes()
        shutil.rmtree(stack.home)
        stack.wait_until_gone()
        with acquire(stack.settings) as fresh:
            stack.processes()
            assert _answers(stack, fresh.database_url)


def test_a_cluster_of_another_version_is_refused_with_what_to_do(stack: Stack) -> None:
    with acquire(stack.settings, redis=False):
        stack.processes()
    stack.wait_until_gone()
    (stack.home / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(ServiceError, match=r"made by PostgreSQL 17, .* dump with pg_dump"):
        acquire(stack.settings, redis=False)


def test_a_snapshot_that_valkey_cannot_read_costs_only_the_cache(stack: Stack) -> None:
    with acquire(stack.settings, postgres=False):
        stack.processes()
    stack.wait_until_gone()
    (stack.home / "valkey" / "cache.rdb").write_bytes(b"not a snapshot")
    with acquire(stack.settings, postgres=False):
        stack.processes()
        assert status(stack.settings)[1].running


def test_a_file_in_the_place_of_the_cluster_is_an_error_that_helps(stack: Stack) -> None:
    (stack.home / "postgres").mkdir(parents=True)
    (stack.home / "postgres" / "something").touch()
    with pytest.raises(ServiceError, match="holds no Postgres cluster"):
        acquire(stack.settings, redis=False)
    assert Path(stack.home, "postgres", "something").exists()
