"""A bound on what is under way at once: in all, and for each key such as a client's address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# What is refused here ends as soon as something else does: a short wait is enough.
RETRY_AFTER_S = 1.0


class ConcurrencyLimit:
    """Counts what is under way: at most `most` in all and `most_per_key` of one key. `what` names it in refusals, such as "calls"."""

    def __init__(self, what: str, most: int, most_per_key: int) -> None:
        self._what = what
        self._most = most
        self._most_per_key = most_per_key
        self._total = 0
        self._by_key: dict[str, int] = {}

    @property
    def total(self) -> int:
        """How many are under way."""
        return self._total

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Counts one more of `key` as long as the context lasts.

        Raises UNAVAILABLE if there are too many in all, RESOURCE_EXHAUSTED if the key has its share; nothing is counted then.
        """
        if self._total >= self._most:
            message = f"too many {self._what} are under way"
            raise errors.unavailable(message, RETRY_AFTER_S, reason=Reason.OVERLOADED)
        own = self._by_key.get(key, 0)
        if own >= self._most_per_key:
            message = f"more than {self._most_per_key} {self._what} from one address at once"
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
