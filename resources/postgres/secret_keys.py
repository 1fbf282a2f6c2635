"""The keys that encrypt what must not be read from the database.

They come from `OMNIOPS_SECRET_KEY` (one or more, newest first, separated by commas; each 32 bytes as base64url), or
else from the file `secret_key` in `OMNIOPS_HOME`, one a line, which is made on first use. The newest encrypts; all
decrypt.

A key is named by its id, which is derived from it and does not give it away.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import os
import secrets
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resources.secret import Secret
from resources.services.layout import Layout
from resources.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VARIABLE: Final = "OMNIOPS_SECRET_KEY"
KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 8

_HOW_TO_MAKE_ONE = "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"


class SecretError(RuntimeError):
    """Something encrypted cannot be had; the message is one sentence for a person and holds no secret."""


class InvalidSecretKey(SecretError):
    """What should be a key is none, or its file is not kept safely."""


class MissingSecretKey(SecretError):
    """There is no key, or not the one that is needed."""


@dataclass(frozen=True, slots=True)
class SecretKey:
    """One key.

    Attributes:
        value: its 32 bytes.
    """

    value: Secret

    @property
    def id(self) -> str:
        """Its name, 16 hexadecimal digits."""
        digest = hashlib.blake2b(self.value.reveal(), digest_size=KEY_ID_BYTES, person=b"omniops-key-id")
        return digest.hexdigest()

    @classmethod
    def generate(cls) -> SecretKey:
        """A new one."""
        return cls(Secret(secrets.token_bytes(KEY_BYTES)))

    @classmethod
    def parse(cls, written: str, where: str) -> SecretKey:
        """Read a key as it is written.

        Args:
            written: base64url, with or without its padding.
            where: for the error: `key 2 of OMNIOPS_SECRET_KEY`.

        Raises:
            InvalidSecretKey: it is not 32 bytes of base64url.
        """
        try:
            value = base64.b64decode(
                written.rstrip("=") + "=" * (-len(written.rstrip("=")) % 4), b"-_", validate=True
            )
        except (binascii.Error, ValueError):
            value = b""
        # What stands there may be a password that somebody thought would do, so it is not repeated.
        if len(value) != KEY_BYTES:
            msg = f"{where} is not {KEY_BYTES} bytes of base64url: {_HOW_TO_MAKE_ONE}"
            raise InvalidSecretKey(msg)
        return cls(Secret(value))

    def written(self) -> Secret:
        """As it stands in a file or a setting."""
        return Secret(base64.urlsafe_b64encode(self.value.reveal()).decode().rstrip("="))


@dataclass(frozen=True, slots=True)
class Keyring:
    """All keys at hand.

    Attributes:
        keys: newest first; there is at least one.
        source: where they come from: `OMNIOPS_SECRET_KEY` or the file's path.
        in_file: whether that is the file, which can be rewritten.
    """

    keys: tuple[SecretKey, ...]
    source: str
    in_file: bool

    @property
    def newest(self) -> SecretKey:
        """The one that encrypts."""
        return self.keys[0]

    def find(self, key_id: str) -> SecretKey:
        """The key with this id.

        Raises:
            MissingSecretKey: it is not at hand.
        """
        for key in self.keys:
            if key.id == key_id:
                return key
        msg = (
            f"this was encrypted with key {key_id}, which is not in {self.source} "
            f"(there: {', '.join(key.id for key in self.keys)}): add that key after the first one"
        )
        raise MissingSecretKey(msg)


def key_file(settings: Settings) -> Path:
    """Where the keys stand where the environment gives none."""
    return settings.home / "secret_key"


def load_keyring(settings: Settings | None = None, *, create: bool = False) -> Keyring:
    """The keys at hand, read anew each time: another process may have rotated them a moment ago.

    Args:
        settings: say where; the environment's by default.
        create: make the key file where there is no key yet, which is for whoever encrypts. Whoever decrypts has no
            use for a new key.

    Raises:
        InvalidSecretKey: a key is malformed, or the file can be read by others.
        MissingSecretKey: there is none.
    """
    settings = settings or Settings.from_environment()
    if settings.secret_key is not None:
        written = settings.secret_key.reveal().split(",")
        return Keyring(_parse(written, VARIABLE), VARIABLE, in_file=False)
    path = key_file(settings)
    try:
        lines = _read_private(path)
    except FileNotFoundError:
        if not create:
            msg = (
                f"there is no key for credentials: {path} is missing and {VARIABLE} is not set; "
                "put back the key that they were encrypted with"
            )
            raise MissingSecretKey(msg) from None
        _create(settings, path)
        lines = _read_private(path)
    return Keyring(_parse(lines, str(path)), str(path), in_file=True)


@contextmanager
def key_file_locked(settings: Settings) -> Iterator[None]:
    """Keep other processes from rewriting the key file; they wait."""
    _prepare_home(settings)
    descriptor = Layout(settings.home).open_private(settings.home / "secret_key.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace_key_file(settings: Settings, keys: tuple[SecretKey, ...]) -> Keyring:
    """Write the key file anew, newest first; the caller holds its lock. A reader finds the old one or the new one."""
    path = key_file(settings)
    draft = _write_draft(settings, path, keys)
    draft.replace(path)
    _sync_folder(path.parent)
    return load_keyring(settings)


def _parse(written: list[str], source: str) -> tuple[SecretKey, ...]:
    keys = []
    for number, text in enumerate(written, 1):
        key = SecretKey.parse(text.strip(), f"key {number} of {source}")
        if key in keys:
            msg = f"key {number} of {source} stands there twice: leave one out"
            raise InvalidSecretKey(msg)
        keys.append(key)
    if not keys:
        msg = f"{source} is empty: put back the key that credentials were encrypted with, or remove the file"
        raise MissingSecretKey(msg)
    return tuple(keys)


def _read_private(path: Path) -> list[str]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        msg = f"the key file {path} cannot be read ({error.strerror}): it must be a plain file of this user's"
        raise InvalidSecretKey(msg) from None
    with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            msg = f"the key file {path} is not a plain file"
            raise InvalidSecretKey(msg)
        # As root we act for the data folder's owner, whose file it is then.
        if found.st_uid not in {os.geteuid(), path.parent.stat().st_uid}:
            msg = f"the key file {path} belongs to another user (uid {found.st_uid}), who could change it"
            raise InvalidSecretKey(msg)
        if stat.S_IMODE(found.st_mode) & 0o077:
            msg = f"the key file {path} can be read by others (mode {stat.S_IMODE(found.st_mode):04o}): chmod 600 it"
            raise InvalidSecretKey(msg)
        return [line for line in file.read().splitlines() if line.strip()]


def _prepare_home(settings: Settings) -> None:
    if not settings.home.exists():
        Layout(settings.home).prepare()


def _create(settings: Settings, path: Path) -> None:
    _prepare_home(settings)
    draft = _write_draft(settings, path, (SecretKey.generate(),))
    # A link fails where there is a file already: of two processes that are first at once, both use one key.
    with suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()
    _sync_folder(path.parent)


def _write_draft(settings: Settings, path: Path, keys: tuple[SecretKey, ...]) -> Path:
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with os.fdopen(Layout(settings.home).open_private(draft, os.O_EXCL), "w", encoding="ascii") as file:
        file.writelines(f"{key.written().reveal()}\n" for key in keys)
        file.flush()
        os.fsync(file.fileno())
    return draft


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
