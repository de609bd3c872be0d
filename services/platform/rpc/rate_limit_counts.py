"""Defines the port through which rate limits count, the limits of failed log-ins, and the adapter that counts in the
memory of this process.

The adapter of the cluster backend is `services.platform.redis.rate_limits.RedisCounts`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from services.platform.rpc.token_buckets import Buckets, Limit, Verdict

# Maximum number of failed log-ins to one account from one address, and the seconds in which this allowance refills: 10
# at once for a user who tries several passwords, then one every three minutes. Beyond it attempts are rejected with
# RESOURCE_EXHAUSTED.
FAILURES = Limit("failed log-in", 10, 1_800.0)
# Maximum number of failed log-ins to one account from all addresses that never logged in to it, and the seconds in
# which this allowance refills. Beyond it, SLOWED_FAILURES limits each of these addresses. NIST SP 800-63B allows 100
# consecutive failures.
STRANGERS_FAILURES = Limit("failed log-in", 100, 3_600.0)
# Maximum number of failed log-ins to one account from one address that never logged in to it, when STRANGERS_FAILURES
# is used up, and the seconds in which this allowance refills: enough for the owner on a new device, too few to guess a
# password. Beyond it attempts are rejected with RESOURCE_EXHAUSTED.
SLOWED_FAILURES = Limit("failed log-in", 3, 3_600.0)
# Maximum number of (account, address) pairs whose successful log-in is remembered, about 200 bytes each. Beyond it the
# least recently used is evicted.
MAX_OWNERS = 100_000


class Counter(Protocol):
    """Counts the requests of one limit by key."""

    async def take(self, key: object) -> Verdict:
        """Counts one request of the key and returns whether it is allowed. A rejected request is not counted. Raises no
        error."""


class Attempt(Protocol):
    """One admitted attempt to log in to an account from an address. It counts as failed until `undo` or `succeed` is
    called."""

    async def undo(self) -> None:
        """Makes the attempt not count, because the credentials were not checked. Raises no error."""

    async def succeed(self) -> None:
        """Makes the attempt not count. From now on the address counts as an address of the account's owner. Raises no
        error."""


class RateLimitCounts(Protocol):
    """Where the requests of a process are counted."""

    def counter(self, limit: Limit, *, exact: bool) -> Counter:
        """Returns the counter of a limit; call this method once for each limit.

        If `exact` is true, each request is counted in the whole mesh before it is allowed. Otherwise a request that
        enters another process may count up to a fraction of a second late, and `take` is fast.
        """

    async def attempt(self, account: str, address: str) -> Attempt | Verdict:
        """Counts an attempt to log in to the account from the address, in the whole mesh. Returns the attempt if it is
        admitted, otherwise the verdict of the limit that rejects it; a rejected attempt is not counted. Raises no
        error."""


class Taken(NamedTuple):
    """One request that was counted: the buckets, and the key in them."""

    buckets: Buckets
    key: object


class MemoryCounts(RateLimitCounts):
    """Counts in the memory of this process. `clock` returns seconds of a monotonic clock."""

    def __init__(self, clock: Callable[[], float], max_owners: int = MAX_OWNERS) -> None:
        self._clock = clock
        self._max_owners = max_owners
        self._failures = Buckets(FAILURES)
        self._strangers = Buckets(STRANGERS_FAILURES)
        self._slowed = Buckets(SLOWED_FAILURES)
        # (account, address) pairs with a successful log-in, as keys of a dict: least recently used first.
        self._owners: dict[tuple[str, str], None] = {}

    def counter(self, limit: Limit, *, exact: bool) -> Counter:
        return _MemoryCounter(Buckets(limit), self._clock)

    async def attempt(self, account: str, address: str) -> Attempt | Verdict:
        now, pair = self._clock(), (account, address)
        failures = self._failures.take(pair, now)
        if not failures.allowed:
            return failures
        taken = [Taken(self._failures, pair)]
        if pair not in self._owners:
            if self._strangers.take(account, now).allowed:
                taken.append(Taken(self._strangers, account))
            else:
                slowed = self._slowed.take(pair, now)
                if not slowed.allowed:
                    self._failures.give_back(pair)
                    return slowed
                taken.append(Taken(self._slowed, pair))
        return _MemoryAttempt(taken, pair, self._remember)

    def _remember(self, pair: tuple[str, str]) -> None:
        self._owners.pop(pair, None)
        self._owners[pair] = None
        while len(self._owners) > self._max_owners:
            del self._owners[next(iter(self._owners))]


class _MemoryCounter(Counter):
    def __init__(self, buckets: Buckets, clock: Callable[[], float]) -> None:
        self._buckets = buckets
        self._clock = clock

    async def take(self, key: object) -> Verdict:
        return self._buckets.take(key, self._clock())


class _MemoryAttempt(Attempt):
    def __init__(self, taken: list[Taken], pair: tuple[str, str], remember: Callable[[tuple[str, str]], None]) -> None:
        self._taken = taken
        self._pair = pair
        self._remember = remember

    async def undo(self) -> None:
        for buckets, key in self._taken:
            buckets.give_back(key)

    async def succeed(self) -> None:
        await self.undo()
        self._remember(self._pair)
