"""What is encrypted opens for its own row alone, and says nothing of itself anywhere."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import traceback
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.postgres.credentials import (
    CREDENTIALS,
    MAX_CREDENTIALS_BYTES,
    WEBHOOK_SECRET,
    InvalidCredentials,
    UnreadableSecret,
    decrypt_credentials,
    encrypt_credentials,
    seal,
    unseal,
)
from resources.postgres.secret_keys import Keyring, MissingSecretKey, SecretError, SecretKey
from resources.secret import Secret

KEYRING = Keyring((SecretKey.generate(),), "a test", in_file=False)
CUSTOMER, CONFIG = uuid.uuid4(), uuid.uuid4()
PASSWORD = "correct horse battery staple"

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def _opened(sealed: bytes, **other: Any) -> dict[str, Any]:
    """Decrypt and reveal, for this test's row or another."""
    given_ = {"customer_id": CUSTOMER, "config_id": CONFIG, "keyring": KEYRING, **other}
    found = decrypt_credentials(given_["customer_id"], given_["config_id"], sealed, keyring=given_["keyring"])
    return {name: secret.reveal() for name, secret in found.items()}


@given(st.dictionaries(st.text(max_size=20), _json, max_size=6), st.uuids(), st.uuids())
def test_whatever_is_encrypted_comes_back(credentials: dict[str, Any], customer: uuid.UUID, row: uuid.UUID) -> None:
    sealed = encrypt_credentials(customer, row, credentials, keyring=KEYRING)
    assert _opened(sealed, customer_id=customer, config_id=row) == credentials


@pytest.mark.parametrize("text", ["\x00", "\ud800", "ключ", "a" * 60_000])
def test_text_that_a_database_cannot_hold_comes_back(text: str) -> None:
    assert _opened(encrypt_credentials(CUSTOMER, CONFIG, {text[:5]: text}, keyring=KEYRING)) == {text[:5]: text}


def test_a_secret_goes_in_and_comes_out_as_one() -> None:
    sealed = encrypt_credentials(CUSTOMER, CONFIG, {"password": Secret(PASSWORD)}, keyring=KEYRING)
    assert decrypt_credentials(CUSTOMER, CONFIG, sealed, keyring=KEYRING) == {"password": Secret(PASSWORD)}


def test_the_same_credentials_twice_do_not_look_the_same() -> None:
    first, second = (encrypt_credentials(CUSTOMER, CONFIG, {"p": PASSWORD}, keyring=KEYRING) for _ in range(2))
    assert first != second
    assert PASSWORD.encode() not in first


@given(st.data())
@settings(max_examples=300)
def test_any_other_bytes_are_refused(data: st.DataObject) -> None:
    sealed = encrypt_credentials(CUSTOMER, CONFIG, {"password": PASSWORD}, keyring=KEYRING)
    at = data.draw(st.integers(0, len(sealed) - 1))
    flip = data.draw(st.integers(1, 255))
    with pytest.raises((UnreadableSecret, MissingSecretKey)) as caught:
        _opened(sealed[:at] + bytes([sealed[at] ^ flip]) + sealed[at + 1 :])
    assert_silent(caught.value)


def test_every_single_flipped_byte_is_refused() -> None:
    sealed = encrypt_credentials(CUSTOMER, CONFIG, {"password": PASSWORD}, keyring=KEYRING)
    for at in range(len(sealed)):
        with pytest.raises(SecretError):
            _opened(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(foreign: bytes) -> None:
    with pytest.raises(SecretError):
        _opened(foreign)


def test_every_truncation_and_any_addition_is_refused() -> None:
    sealed = encrypt_credentials(CUSTOMER, CONFIG, {"password": PASSWORD}, keyring=KEYRING)
    for cut in (*(sealed[:n] for n in range(len(sealed))), sealed + b"\0", b"\0" + sealed):
        with pytest.raises(SecretError):
            _opened(cut)


@pytest.mark.parametrize("moved", [{"customer_id": uuid.uuid4()}, {"config_id": uuid.uuid4()}])
def test_it_opens_for_no_other_customer_and_no_other_row(moved: dict[str, uuid.UUID]) -> None:
    sealed = encrypt_credentials(CUSTOMER, CONFIG, {"password": PASSWORD}, keyring=KEYRING)
    with pytest.raises(UnreadableSecret, match="another customer") as caught:
        _opened(sealed, **moved)
    assert_silent(caught.value)


def test_customer_and_row_cannot_change_places() -> None:
    sealed = encrypt_credentials(CUSTOMER, CONFIG, {"password": PASSWORD}, keyring=KEYRING)
    with pytest.raises(UnreadableSecret):
        _opened(sealed, customer_id=CONFIG, config_id=CUSTOMER)


def test_it_opens_in_no_other_column() -> None:
    sealed = seal(KEYRING, CREDENTIALS, CUSTOMER, CONFIG, b"{}")
    with pytest.raises(UnreadableSecret):
        unseal(KEYRING, WEBHOOK_SECRET, CUSTOMER, CONFIG, sealed)


def test_without_its_key_the_error_names_the_key_that_is_missing() -> None:
    sealed = encrypt_credentials(CUSTOMER, CONFIG, {"password": PASSWORD}, keyring=KEYRING)
    other = Keyring((SecretKey.generate(),), "a test", in_file=False)
    with pytest.raises(MissingSecretKey, match=f"key {KEYRING.newest.id}, which is not in a test") as caught:
        _opened(sealed, keyring=other)
    assert_silent(caught.value)


def test_an_older_key_still_opens_and_the_newest_encrypts() -> None:
    sealed = encrypt_credentials(CUSTOMER, CONFIG, {"password": PASSWORD}, keyring=KEYRING)
    both = Keyring((SecretKey.generate(), *KEYRING.keys), "a test", in_file=False)
    assert _opened(sealed, keyring=both) == {"password": PASSWORD}
    with pytest.raises(MissingSecretKey):
        _opened(encrypt_credentials(CUSTOMER, CONFIG, {}, keyring=both))


@pytest.mark.parametrize(
    ("credentials", "why"),
    [
        ({"password": math.nan}, "JSON"),
        ({"password": b"\x00"}, "JSON"),
        ({"password": object()}, "JSON"),
        ({7: PASSWORD}, "of type int"),
        ({"password": PASSWORD * 10_000}, f"at most {MAX_CREDENTIALS_BYTES:,}"),
        ({"password": [PASSWORD, {1, 2}]}, "JSON"),
    ],
)
def test_what_cannot_be_kept_is_refused_without_being_repeated(credentials: dict[Any, Any], why: str) -> None:
    with pytest.raises(InvalidCredentials, match=why) as caught:
        encrypt_credentials(CUSTOMER, CONFIG, credentials, keyring=KEYRING)
    assert_silent(caught.value)


# --- nowhere to be seen ------------------------------------------------------------------------------------------


def assert_silent(error: BaseException) -> None:
    """Neither the secret nor a key is in the error, what it came from, its traceback or its pickle."""
    shown = [repr(error), str(error), "".join(traceback.format_exception(error)), repr(pickle.dumps(error))]
    for text in shown:
        for hidden in (PASSWORD, KEYRING.newest.written().reveal(), repr(KEYRING.newest.value.reveal())):
            assert hidden not in text
    assert error.__cause__ is None


def test_a_secret_is_masked_wherever_it_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(PASSWORD)
    keyring = KEYRING
    logging.getLogger("test").warning("%s %r %s", secret, {"password": secret}, keyring)
    shown = [
        repr(secret), str(secret), f"{secret}", f"{secret:>40}", f"{secret!r}", "%s" % secret, repr([secret]),  # noqa: UP031
        repr({"p": secret}), caplog.text, repr(keyring), repr(keyring.newest), repr(dir(secret)),
        repr(copy.deepcopy(secret)),
    ]  # fmt: skip
    for text in shown:
        assert PASSWORD not in text
        assert keyring.newest.written().reveal() not in text


def test_a_secret_is_neither_pickled_nor_json_nor_listed() -> None:
    secret = Secret(PASSWORD)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        json.dumps({"password": secret})
    with pytest.raises(TypeError):
        vars(secret)
    with pytest.raises(AttributeError):
        secret.value = 1  # type: ignore[attr-defined]


def test_dagster_takes_no_secret_as_metadata() -> None:
    import dagster as dg

    with pytest.raises(dg.DagsterError, match="password") as caught:
        dg.AssetMaterialization("a", metadata={"password": Secret(PASSWORD)})
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_secrets_are_equal_by_value_and_never_to_the_value_itself() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert Secret(1) != Secret(True)
    assert len({Secret("a"), Secret("a")}) == 1
