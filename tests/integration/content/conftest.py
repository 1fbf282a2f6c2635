"""The command line in this process; processes that read pages, and do it badly."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from omniops_pipelines.cli import main
from resources import stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.databases import Database

    Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mischief(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers whose extractor hangs, sleeps, crashes or swells, by the page's url."""
    folder = tmp_path_factory.mktemp("site")
    # Read by Python when it starts, before the worker's own code: a hook that wraps the extractor once it is there.
    (folder / "sitecustomize.py").write_text(
        "import builtins, sys\n"
        "_import = builtins.__import__\n"
        "def hooked(name, *args, **kwargs):\n"
        "    module = _import(name, *args, **kwargs)\n"
        "    main = sys.modules.get('resources.content.extraction')\n"
        "    if main is not None and hasattr(main, 'extract') and not hasattr(main, '_wrapped'):\n"
        "        main._wrapped = True\n"
        "        import os, time\n"
        "        real = main.extract\n"
        "        def extract(body, url, **options):\n"
        "            if url.endswith('/hang'):\n"
        "                while True: pass\n"
        "            if url.endswith('/sleep'): time.sleep(600)\n"
        "            if url.endswith('/crash'): os.kill(os.getpid(), 11)\n"
        "            if url.endswith('/swell'):\n"
        "                hoard = []\n"
        "                while True: hoard.append(bytearray(64 * 2**20))\n"
        "            return real(body, url, **options)\n"
        "        main.extract = extract\n"
        "    return module\n"
        "builtins.__import__ = hooked\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.fixture
def omniops(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    for name, value in database.environment(tmp_path / "home").items():
        if name.startswith("OMNIOPS_"):
            monkeypatch.setenv(name, value)

    def call(*arguments: str, **environment: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr("sys.argv", ["omniops", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    yield call
    stack.release()
