"""Customers' credentials at rest: encrypted, authenticated, and bound to their row.

AES-256-GCM. The table, the column, the customer and the row are authenticated with the text, so a ciphertext that is
copied to another row or another customer does not open. What is stored:

    version (1 byte) | key id (8) | nonce (12) | ciphertext and tag (16 more than the text)

Nothing here puts a secret into an error, and no error that the cryptography raises is passed on.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import text

from resources.postgres.secret_keys import (
    KEY_ID_BYTES,
    Keyring,
    MissingSecretKey,
    SecretError,
    SecretKey,
    key_file_locked,
    load_keyring,
    replace_key_file,
)
from resources.postgres.tenancy import service_connection
from resources.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection, Engine

    from resources.settings import Settings

VERSION: Final = 1
_NONCE_BYTES = 12
_TAG_BYTES = 16
_HEADER_BYTES = 1 + KEY_ID_BYTES
_SHORTEST = _HEADER_BYTES + _NONCE_BYTES + _TAG_BYTES

MAX_CREDENTIALS_BYTES: Final = 65_536

# Whoever writes a secret holds it shared, from reading the keys until the commit; whoever drops a key, alone. So no
# row comes into being under a key that has just been dropped.
_KEYS_LOCK = 0x6F6D6E69_6B657973
_LOCK_SHARED = text("SELECT pg_advisory_xact_lock_shared(:lock)")
_LOCK_ALONE = text("SELECT pg_advisory_xact_lock(:lock)")


class UnreadableSecret(SecretError):
    """What is stored does not open: it was altered, cut short, or belongs to another row or customer."""


class InvalidCredentials(ValueError):
    """What should be stored cannot be: the message says why, and nothing of what it was."""


class UnknownRow(LookupError):
    """The row whose secret it would be is not there, or is another customer's."""


@dataclass(frozen=True, slots=True)
class SecretColumn:
    """A column whose values are encrypted."""

    table: str
    column: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column}"


CREDENTIALS: Final = SecretColumn("customer_configs", "credentials")
WEBHOOK_SECRET: Final = SecretColumn("webhook_endpoints", "secret")
SECRET_COLUMNS: Final = (CREDENTIALS, WEBHOOK_SECRET)


# --- bytes -------------------------------------------------------------------------------------------------------


def _context(place: SecretColumn, header: bytes, customer_id: UUID, row_id: UUID) -> bytes:
    # No two places give the same bytes: names hold no NUL, and what follows them has a fixed length.
    names = f"omniops\0{place.table}\0{place.column}\0".encode()
    return names + header + customer_id.bytes + row_id.bytes


def seal(keyring: Keyring, place: SecretColumn, customer_id: UUID, row_id: UUID, plain: bytes) -> bytes:
    """Encrypt with the newest key, for one row of one customer."""
    header = bytes([VERSION]) + bytes.fromhex(keyring.newest.id)
    # Random nonces of 96 bits are safe for some four thousand million texts under one key.
    nonce = os.urandom(_NONCE_BYTES)
    cipher = AESGCM(keyring.newest.value.reveal())
    return header + nonce + cipher.encrypt(nonce, plain, _context(place, header, customer_id, row_id))


def unseal(keyring: Keyring, place: SecretColumn, customer_id: UUID, row_id: UUID, sealed: bytes) -> bytes:
    """Decrypt what `seal` gave for the same row of the same customer.

    Raises:
        MissingSecretKey: the key that it needs is not at hand.
        UnreadableSecret: it was altered, or is not of this row.
    """
    sealed = bytes(sealed)
    where = f"{place} of row {row_id}"
    if len(sealed) < _SHORTEST or sealed[0] != VERSION:
        msg = f"{where} was not written by this program, or is cut short ({len(sealed)} bytes): set it again"
        raise UnreadableSecret(msg)
    header = sealed[:_HEADER_BYTES]
    try:
        key = keyring.find(header[1:].hex())
    except MissingSecretKey as error:
        raise MissingSecretKey(f"{where}: {error}") from None
    nonce, text_and_tag = sealed[_HEADER_BYTES : _HEADER_BYTES + _NONCE_BYTES], sealed[_HEADER_BYTES + _NONCE_BYTES :]
    try:
        context = _context(place, header, customer_id, row_id)
        return AESGCM(key.value.reveal()).decrypt(nonce, text_and_tag, context)
    except InvalidTag:
        msg = (
            f"{where} does not open: it was altered, or was written for another row or another customer; set it again"
        )
        raise UnreadableSecret(msg) from None


def encrypt_credentials(
    customer_id: UUID, config_id: UUID, credentials: Mapping[str, Any], *, keyring: Keyring | None = None
) -> bytes:
    """Encrypt the credentials of one configuration.

    Args:
        customer_id: whose it is.
        config_id: `customer_configs.id`.
        credentials: names and values of JSON; a value may be a `Secret`.
        keyring: the keys; those of the settings by default.

    Raises:
        InvalidCredentials: it is no mapping of names to JSON, or is too long.
        SecretError: there is no usable key.
    """
    keyring = keyring or load_keyring(create=True)
    return seal(keyring, CREDENTIALS, customer_id, config_id, _to_bytes(credentials))


def decrypt_credentials(
    customer_id: UUID, config_id: UUID, sealed: bytes, *, keyring: Keyring | None = None
) -> dict[str, Secret]:
    """Decrypt what `encrypt_credentials` gave. The values are masked until `reveal` is called.

    Raises:
        MissingSecretKey: the key that it needs is not at hand.
        UnreadableSecret: it was altered, or is another row's or another customer's.
    """
    plain = unseal(keyring or load_keyring(), CREDENTIALS, customer_id, config_id, sealed)
    return {name: Secret(value) for name, value in json.loads(plain).items()}


def _to_bytes(credentials: Mapping[str, Any]) -> bytes:
    revealed = {}
    for name, value in credentials.items():
        if not isinstance(name, str):
            msg = f"names of credentials are strings, and one is of type {type(name).__name__}"
            raise InvalidCredentials(msg)
        revealed[name] = value.reveal() if isinstance(value, Secret) else value
    try:
        # Plain ASCII holds what UTF-8 cannot, such as half a surrogate pair.
        plain = json.dumps(revealed, allow_nan=False, default=_refuse).encode("ascii")
    except (TypeError, ValueError, RecursionError):
        msg = "credentials must be JSON: strings, finite numbers, booleans, null, lists and objects"
        raise InvalidCredentials(msg) from None
    if len(plain) > MAX_CREDENTIALS_BYTES:
        msg = f"credentials of {len(plain):,} bytes are too long: at most {MAX_CREDENTIALS_BYTES:,}"
        raise InvalidCredentials(msg)
    return plain


def _refuse(_value: object) -> NoReturn:
    raise TypeError


# --- rows --------------------------------------------------------------------------------------------------------


def set_credentials(
    connection: Connection,
    customer_id: UUID,
    config_id: UUID,
    credentials: Mapping[str, Any] | None,
    *,
    settings: Settings | None = None,
) -> None:
    """Store the credentials of a configuration, in the connection's transaction.

    Args:
        connection: as the tenant or as the service.
        customer_id: whose it is.
        config_id: `customer_configs.id`.
        credentials: as for `encrypt_credentials`; None removes them.
        settings: say which keys.

    Raises:
        UnknownRow: this customer has no such configuration.
        InvalidCredentials: they cannot be stored.
        SecretError: there is no usable key.
    """
    plain = None if credentials is None else _to_bytes(credentials)
    _store(connection, CREDENTIALS, customer_id, config_id, plain, settings, also=", updated_at = now()")


def read_credentials(
    connection: Connection, customer_id: UUID, config_id: UUID, *, settings: Settings | None = None
) -> dict[str, Secret]:
    """The credentials of a configuration; empty where it has none.

    Raises:
        UnknownRow: this customer has no such configuration.
        SecretError: they cannot be decrypted.
    """
    sealed = _fetch(connection, CREDENTIALS, customer_id, config_id)
    if sealed is None:
        return {}
    return decrypt_credentials(customer_id, config_id, sealed, keyring=load_keyring(settings))


def set_webhook_secret(
    connection: Connection,
    customer_id: UUID,
    endpoint_id: UUID,
    secret: str | Secret | None,
    *,
    settings: Settings | None = None,
) -> None:
    """Store the secret that signs an endpoint's deliveries; None removes it.

    Raises:
        UnknownRow: this customer has no such endpoint.
        InvalidCredentials: it is no text, empty or too long.
        SecretError: there is no usable key.
    """
    value = secret.reveal() if isinstance(secret, Secret) else secret
    if value is not None and (not isinstance(value, str) or not 0 < len(value) <= MAX_CREDENTIALS_BYTES // 4):
        msg = f"a webhook's secret is a text of 1 to {MAX_CREDENTIALS_BYTES // 4:,} characters"
        raise InvalidCredentials(msg)
    plain = None if value is None else value.encode("utf-8", "surrogatepass")
    _store(connection, WEBHOOK_SECRET, customer_id, endpoint_id, plain, settings)


def read_webhook_secret(
    connection: Connection, customer_id: UUID, endpoint_id: UUID, *, settings: Settings | None = None
) -> Secret | None:
    """The secret that signs an endpoint's deliveries, or None.

    Raises:
        UnknownRow: this customer has no such endpoint.
        SecretError: it cannot be decrypted.
    """
    sealed = _fetch(connection, WEBHOOK_SECRET, customer_id, endpoint_id)
    if sealed is None:
        return None
    plain = unseal(load_keyring(settings), WEBHOOK_SECRET, customer_id, endpoint_id, sealed)
    return Secret(plain.decode("utf-8", "surrogatepass"))


def _store(
    connection: Connection,
    place: SecretColumn,
    customer_id: UUID,
    row_id: UUID,
    plain: bytes | None,
    settings: Settings | None,
    *,
    also: str = "",
) -> None:
    sealed = None
    if plain is not None:
        connection.execute(_LOCK_SHARED, {"lock": _KEYS_LOCK})
        sealed = seal(load_keyring(settings, create=True), place, customer_id, row_id, plain)
    updated = connection.execute(
        text(
            f"UPDATE public.{place.table} SET {place.column} = :sealed{also} "  # noqa: S608 - constants
            "WHERE id = :row AND customer_id = :customer"
        ),
        {"sealed": sealed, "row": row_id, "customer": customer_id},
    )
    if updated.rowcount != 1:
        raise _unknown(place, customer_id, row_id)


def _fetch(connection: Connection, place: SecretColumn, customer_id: UUID, row_id: UUID) -> bytes | None:
    found = connection.execute(
        text(
            f"SELECT {place.column} FROM public.{place.table} "  # noqa: S608 - constants
            "WHERE id = :row AND customer_id = :customer"
        ),
        {"row": row_id, "customer": customer_id},
    ).one_or_none()
    if found is None:
        raise _unknown(place, customer_id, row_id)
    sealed: bytes | None = found[0]
    return sealed


def _unknown(place: SecretColumn, customer_id: UUID, row_id: UUID) -> UnknownRow:
    return UnknownRow(f"customer {customer_id} has no row {row_id} in {place.table}")


# --- rotation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyUse:
    """How much a key encrypts.

    Attributes:
        key_id: its name; `unreadable` for what this program did not write.
        at_hand: whether it can decrypt: it is in the setting or the file.
        newest: whether it is the one that encrypts.
        rows: by column, how many values.
    """

    key_id: str
    at_hand: bool
    newest: bool
    rows: dict[str, int]

    @property
    def total(self) -> int:
        """Over all columns."""
        return sum(self.rows.values())


@dataclass(frozen=True, slots=True)
class Rotation:
    """What `rotate_keys` did.

    Attributes:
        key_id: everything is encrypted with it now.
        made: whether it was made by this call; False where an earlier rotation was finished, or where the keys stand
            in the environment.
        in_file: whether the keys are the file's.
        reencrypted: values that were encrypted anew.
        failed: values that could not be: where, and why.
        unused: ids of the older keys that nothing needs any more.
    """

    key_id: str
    made: bool
    in_file: bool
    reencrypted: int
    failed: tuple[str, ...]
    unused: tuple[str, ...]


def key_uses(engine: Engine, keyring: Keyring) -> list[KeyUse]:
    """Each key that is at hand, newest first, and then those that are needed and are not."""
    with service_connection(engine=engine) as connection:
        return _uses(connection, keyring)


def _uses(connection: Connection, keyring: Keyring) -> list[KeyUse]:
    counts: dict[str, dict[str, int]] = {key.id: {} for key in keyring.keys}
    for place in SECRET_COLUMNS:
        rows = connection.execute(
            text(f"""
                SELECT CASE WHEN length({place.column}) >= :shortest AND get_byte({place.column}, 0) = :version
                            THEN encode(substring({place.column} FROM 2 FOR 8), 'hex')
                            ELSE 'unreadable' END AS key_id,
                       count(*) AS n
                FROM public.{place.table} WHERE {place.column} IS NOT NULL GROUP BY 1 ORDER BY 1
            """),  # noqa: S608 - constants
            {"shortest": _SHORTEST, "version": VERSION},
        )
        for key_id, n in rows:
            counts.setdefault(key_id, {})[str(place)] = n
    at_hand = {key.id for key in keyring.keys}
    return [KeyUse(key_id, key_id in at_hand, key_id == keyring.newest.id, rows) for key_id, rows in counts.items()]


def rotate_keys(
    engine: Engine, settings: Settings, *, batch: int = 100, after_batch: Callable[[int], None] | None = None
) -> Rotation:
    """Encrypt everything with a new key; a rotation that was cut short is finished, without another key.

    The key file gets a new first key before anything is encrypted with it. Where the keys stand in
    `OMNIOPS_SECRET_KEY`, its first one is the new one. Older keys stay at hand until they are dropped.

    Args:
        engine: the permanent tier.
        settings: say which keys.
        batch: values in one transaction.
        after_batch: told how many values are done, after each commit.

    Raises:
        SecretError: there is no usable key.
    """
    with key_file_locked(settings):
        keyring = load_keyring(settings, create=True)
        done, failed = _reencrypt(engine, keyring, batch, after_batch)
        made = keyring.in_file and done == 0
        if made:
            # Nothing was left of an earlier rotation, so this is a new one.
            keyring = replace_key_file(settings, (SecretKey.generate(), *keyring.keys))
            done, failed = _reencrypt(engine, keyring, batch, after_batch)
        unused = [use.key_id for use in key_uses(engine, keyring) if use.at_hand and not use.newest and not use.total]
    return Rotation(keyring.newest.id, made, keyring.in_file, done, tuple(failed), tuple(unused))


def _reencrypt(
    engine: Engine, keyring: Keyring, batch: int, after_batch: Callable[[int], None] | None
) -> tuple[int, list[str]]:
    """Encrypt with the newest key what another one encrypts; returns how many, and which could not be and why."""
    done = 0
    failed: list[str] = []
    for place in SECRET_COLUMNS:
        after: UUID | None = UUID(int=0)
        while after is not None:
            after, n, bad = _reencrypt_batch(engine, keyring, place, after, batch)
            done += n
            failed += bad
            if after_batch is not None and n:
                after_batch(done)
    return done, failed


def _reencrypt_batch(
    engine: Engine, keyring: Keyring, place: SecretColumn, after: UUID, batch: int
) -> tuple[UUID | None, int, list[str]]:
    """Encrypt the next values anew.

    Returns:
        Where to go on (None at the end), how many were encrypted, and which could not be and why.
    """
    with service_connection(engine=engine) as connection:
        rows = connection.execute(
            text(f"""
                SELECT id, customer_id, {place.column} AS sealed FROM public.{place.table}
                WHERE id > :after AND {place.column} IS NOT NULL
                  AND substring({place.column} FROM 1 FOR :header) <> :newest
                ORDER BY id LIMIT :batch FOR UPDATE
            """),  # noqa: S608 - constants
            {
                "after": after,
                "header": _HEADER_BYTES,
                "newest": bytes([VERSION]) + bytes.fromhex(keyring.newest.id),
                "batch": batch,
            },
        ).all()
        changed, failed = [], []
        for row in rows:
            try:
                plain = unseal(keyring, place, row.customer_id, row.id, row.sealed)
            except SecretError as error:
                failed.append(str(error))
                continue
            changed.append({"id": row.id, "sealed": seal(keyring, place, row.customer_id, row.id, plain)})
        if changed:
            connection.execute(
                text(f"UPDATE public.{place.table} SET {place.column} = :sealed WHERE id = :id"),  # noqa: S608
                changed,
            )
    return (rows[-1].id if len(rows) == batch else None), len(changed), failed


def drop_old_keys(engine: Engine, settings: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Take the older keys that nothing needs out of the key file.

    Returns:
        Ids of the keys dropped, and of those kept because something is still encrypted with them.

    Raises:
        SecretError: the keys stand in the environment, or there is none.
    """
    with key_file_locked(settings), service_connection(engine=engine) as connection:
        keyring = load_keyring(settings)
        connection.execute(_LOCK_ALONE, {"lock": _KEYS_LOCK})
        old = [use for use in _uses(connection, keyring) if use.at_hand and not use.newest]
        unused = tuple(use.key_id for use in old if not use.total)
        if not keyring.in_file:
            found = f"nothing needs {', '.join(unused)} any more" if unused else "there is none that nothing needs"
            msg = f"the keys stand in {keyring.source}, which only you can change: {found}"
            raise SecretError(msg)
        if unused:
            replace_key_file(settings, tuple(key for key in keyring.keys if key.id not in unused))
    return unused, tuple(use.key_id for use in old if use.total)
