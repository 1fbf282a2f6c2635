"""What the embedded servers raise."""

from __future__ import annotations


class ServiceError(RuntimeError):
    """An embedded server cannot be had; the message says what happened, why, and what to do."""
