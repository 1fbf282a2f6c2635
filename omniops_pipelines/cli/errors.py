"""Which errors are for the person at the terminal, and in which words."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

from resources.content.embeddings import EmbeddingError
from resources.crawler.crawl_order import InvalidOrder, RefusedOrder
from resources.crawler.site_access import UnusableAccess
from resources.postgres.compliance import NoHold
from resources.postgres.connection import DatabaseError
from resources.postgres.credentials import InvalidCredentials, UnknownRow
from resources.postgres.customer_rows import UnknownCustomer
from resources.postgres.customers import InvalidSlug
from resources.postgres.erasure import ErasureRefused
from resources.postgres.jobs import JobIdTaken, UnknownJob
from resources.postgres.page_history import UnknownPage
from resources.postgres.queue_admin import QueueRefused, UnknownMessage
from resources.postgres.removals import NothingHeldBack
from resources.postgres.secret_keys import SecretError
from resources.services import ServiceError
from resources.settings import InvalidSetting

_EXPECTED = (
    InvalidOrder,
    RefusedOrder,
    DatabaseError,
    EmbeddingError,
    ServiceError,
    SecretError,
    UnusableAccess,
    JobIdTaken,
    UnknownJob,
    UnknownCustomer,
    InvalidSlug,
    NoHold,
    NothingHeldBack,
    ErasureRefused,
    QueueRefused,
    UnknownMessage,
    UnknownPage,
    InvalidSetting,
    InvalidCredentials,
    UnknownRow,
)


def sentence_for(error: BaseException) -> str | None:
    """The error in one sentence, or None for one that nobody foresaw (its traceback is wanted then)."""
    if isinstance(error, _EXPECTED):
        # LookupError's str() would quote the message.
        return str(error.args[0]) if error.args else str(error)
    if isinstance(error, DBAPIError):
        lines = str(error.orig).strip().splitlines()
        return f"the database stopped answering or refused: {lines[0] if lines else type(error.orig).__name__}"
    return None
