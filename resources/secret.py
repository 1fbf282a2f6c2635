"""A value that must not be seen: it says nothing of itself unless it is asked by name."""

from __future__ import annotations

import hmac
from typing import Any, NoReturn

_MASK = "********"


class Secret:
    """Holds a value, and masks it in `repr`, `str`, formatting, logs and tracebacks; it cannot be pickled or JSON.

    Equality takes the same time wherever two strings differ.

    Args:
        value: what must not be seen.
    """

    __slots__ = ("__value",)
    __value: Any

    def __init__(self, value: Any) -> None:
        object.__setattr__(self, "_Secret__value", value)

    def reveal(self) -> Any:
        """The value itself. Whoever calls this answers for where it goes."""
        return self.__value

    def __repr__(self) -> str:
        return f"Secret({_MASK})"

    def __str__(self) -> str:
        return _MASK

    def __format__(self, _spec: str) -> str:
        return _MASK

    def __bool__(self) -> bool:
        return bool(self.__value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        mine, theirs = self.__value, other.reveal()
        if isinstance(mine, str) and isinstance(theirs, str):
            return hmac.compare_digest(mine.encode("utf-8", "surrogatepass"), theirs.encode("utf-8", "surrogatepass"))
        if isinstance(mine, bytes) and isinstance(theirs, bytes):
            return hmac.compare_digest(mine, theirs)
        return type(mine) is type(theirs) and bool(mine == theirs)

    def __hash__(self) -> int:
        return hash((Secret, self.__value))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        msg = "a secret cannot be changed"
        raise AttributeError(msg)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, _memo: object) -> Secret:
        return self

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        msg = "a secret is not pickled: it would be readable wherever that goes"
        raise TypeError(msg)
