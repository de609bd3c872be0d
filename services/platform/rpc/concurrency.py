"""Limits the number of concurrent operations: in total, and for each key such as a client's address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# Seconds after which a rejected caller should retry. An operation may start as soon as another one ends, so a short
# wait is enough.
RETRY_AFTER_S = 1.0


class ConcurrencyLimit:
    """Allows `most` concurrent operations in total and `most_per_key` for one key. `what` names the operations in error
    messages, such as "calls"."""

    def __init__(self, what: str, most: int, most_per_key: int) -> None:
        self._what = what
        self._most = most
        self._most_per_key = most_per_key
        self._total = 0
        self._by_key: dict[str, int] = {}

    @property
    def total(self) -> int:
        """The number of operations in progress."""
        return self._total

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Counts one operation of `key` until the end of the context.

        Raises UNAVAILABLE if the maximum of all operations is reached, RESOURCE_EXHAUSTED if the maximum of `key` is
        reached. A rejected operation is not counted.
        """
        if self._total >= self._most:
            message = f"the server is overloaded, because too many {self._what} are in progress: retry later"
            raise errors.unavailable(message, RETRY_AFTER_S, reason=Reason.OVERLOADED)
        own = self._by_key.get(key, 0)
        if own >= self._most_per_key:
            message = (
                f"more than {self._most_per_key} {self._what} from one address at once: wait until some have ended"
            )
            raise errors.resource_exhausted(message, RETRY_AFTER_S, reason=Reason.TOO_MANY_AT_ONCE)
        self._by_key[key] = own + 1
        self._total += 1
        try:
            yield
        finally:
            self._total -= 1
            left = self._by_key[key] - 1
            if left:
                self._by_key[key] = left
            else:
                del self._by_key[key]
