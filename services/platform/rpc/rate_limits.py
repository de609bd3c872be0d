"""Limits the rate of calls by token buckets: one bucket for each pair of a rate limit class and a user or client
address, stored as the time at which it is full again (GCRA).

A process has one RateLimits object for its HTTP gateway and its gRPC server, so a client that uses both has one
allowance. The policy of a method names its class; the settings define the limit of each class.

The classes in BY_ADDRESS count by the client's address, whether or not a token is sent: otherwise an attacker would get
an allowance for each account of their own. In addition, failed log-ins are counted for the account that the request
names (FieldPolicy `rate_limit_key`). An attacker must not be able to lock the owner out of an account by this limit,
so:

- failures count for the pair (account, address); those of one address do not affect another address;
- failures from addresses that never logged in to the account also count for the account as a whole. After
  STRANGERS_FAILURES of them, an address that never logged in to the account gets SLOWED_FAILURES attempts an hour;
  addresses that logged in to the account before are not affected;
- a successful attempt is not counted if the policy says that success proves ownership of the account.

The `limits` package was measured and rejected: to count a request and to read what remains takes 12–20 µs, and its
memory storage starts a thread every 10 ms that iterates over all keys. `Bucket.take` takes under 1 µs, and the number
of buckets is bounded.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message
from roost.options.v1 import options_pb2 as options

from services.platform.config import Settings
from services.platform.rpc import errors
from services.platform.rpc.client_address import client_key
from services.platform.rpc.contract import Method, field_policy
from services.platform.rpc.reasons import Reason

# Seconds in which the allowance of a class refills, for all classes except sign-ups.
WINDOW_S = 60.0
# Maximum number of keys of one class, about 100 bytes each. Beyond it keys whose bucket is full are evicted, because a
# full bucket equals an absent one; if there are none, the oldest tenth is evicted.
MAX_BUCKETS = 100_000
# Tolerance in seconds: a rounding error of floats must not reject the last request that the limit allows.
SLACK_S = 1e-6

# The window of the limit of sign-ups, in seconds. It is one hour, because a limit per minute would allow thousands of
# sign-ups a day.
SIGN_UPS_WINDOW_S = 3_600.0
BY_ADDRESS = frozenset({options.RATE_LIMIT_AUTH, options.RATE_LIMIT_SIGN_UP})

# Maximum number of failed log-ins to one account from one address, and the seconds in which this allowance refills: 10
# at once for a user who tries several passwords, then one every three minutes. Beyond it attempts are rejected with
# RESOURCE_EXHAUSTED.
FAILURES, FAILURES_WINDOW_S = 10, 1_800.0
# Maximum number of failed log-ins to one account from all addresses that never logged in to it, and the seconds in
# which this allowance refills. Beyond it, SLOWED_FAILURES limits each of these addresses. NIST SP 800-63B allows 100
# consecutive failures.
STRANGERS_FAILURES, STRANGERS_WINDOW_S = 100, 3_600.0
# Maximum number of failed log-ins to one account from one address that never logged in to it, when STRANGERS_FAILURES
# is used up, and the seconds in which this allowance refills: enough for the owner on a new device, too few to guess a
# password. Beyond it attempts are rejected with RESOURCE_EXHAUSTED.
SLOWED_FAILURES, SLOWED_WINDOW_S = 3, 3_600.0
# Maximum number of (account, address) pairs whose successful log-in is remembered, about 200 bytes each. Beyond it the
# least recently used is evicted.
MAX_OWNERS = 100_000
# Maximum length in characters of the account in a key. The rest of a longer text is ignored: usernames and e-mail
# addresses are shorter.
MAX_ACCOUNT_CHARS = 320

# Status codes of attempts that were rejected before the credentials were checked: they do not count as failures.
NOT_TRIED = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision of a bucket about one request.

    `remaining` is the number of further requests allowed now; `reset_s` seconds until the bucket is full,
    `retry_after_s` seconds until a request is allowed again (0 if this request is allowed).
    """

    bucket: Bucket
    allowed: bool
    remaining: int
    reset_s: float
    retry_after_s: float

    def enforce(self) -> None:
        """Raises RESOURCE_EXHAUSTED, with the time to wait, if the request is not allowed."""
        if not self.allowed:
            per = "a minute" if self.bucket.window_s == WINDOW_S else f"in {self.bucket.window_s / 60:g} minutes"
            message = f"more than {self.bucket.limit} {self.bucket.name} requests {per}: wait before you retry"
            raise errors.resource_exhausted(message, self.retry_after_s, reason=Reason.RATE_LIMITED)


class Bucket:
    """The buckets of one class by key: each allows `limit` requests at once and refills evenly over `window_s`
    seconds."""

    __slots__ = ("_full_at", "_max_buckets", "_step", "limit", "name", "window_s")

    def __init__(self, name: str, limit: int, window_s: float = WINDOW_S, max_buckets: int = MAX_BUCKETS) -> None:
        self.name = name
        self.limit = limit
        self.window_s = window_s
        self._step = window_s / limit
        self._max_buckets = max_buckets
        self._full_at: dict[object, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: object, now: float) -> Verdict:
        """Counts one request of the key and returns whether it is allowed. A rejected request is not counted.

        `now` is in seconds of a monotonic clock, the same one for all calls.
        """
        full_at = self._full_at.get(key, now)
        full_at = (full_at if full_at > now else now) + self._step
        room = self.window_s - (full_at - now)
        if room < -SLACK_S:
            return Verdict(self, False, 0, full_at - self._step - now, -room)
        if key not in self._full_at and len(self._full_at) >= self._max_buckets:
            self._make_room(now)
        self._full_at[key] = full_at
        return Verdict(self, True, max(0, int(room / self._step + 0.5)), full_at - now, 0.0)

    def give_back(self, key: object) -> None:
        """Undoes one allowed `take` of the key, so that the request no longer counts."""
        if (full_at := self._full_at.get(key)) is not None:
            self._full_at[key] = full_at - self._step

    def _make_room(self, now: float) -> None:
        kept = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
        if len(kept) >= self._max_buckets:
            # No bucket is full: evicts the oldest tenth, which then start again with a full allowance.
            for key in list(kept)[: self._max_buckets // 10 + 1]:
                del kept[key]
        self._full_at = kept


class Attempts:
    """Counts failed log-ins by (account, address) and by account; the module's docstring gives the rules and their
    reasons."""

    def __init__(self, clock: Callable[[], float], max_owners: int = MAX_OWNERS) -> None:
        self._clock = clock
        self._max_owners = max_owners
        self._failures = Bucket("failed log-in", FAILURES, FAILURES_WINDOW_S)
        self._strangers = Bucket("failed log-in", STRANGERS_FAILURES, STRANGERS_WINDOW_S)
        self._slowed = Bucket("failed log-in", SLOWED_FAILURES, SLOWED_WINDOW_S)
        # (account, address) pairs with a successful log-in, as keys of a dict: least recently used first.
        self._owners: dict[tuple[str, str], None] = {}

    @contextmanager
    def counted(self, accounts: Sequence[str], address: str, *, proves: bool) -> Iterator[None]:
        """Counts the body of the `with` block as one attempt to log in to each account. Raises RESOURCE_EXHAUSTED if
        too many earlier attempts failed.

        If `proves` is true, success proves ownership: the attempt is not counted, and from now on the address counts as
        an address of the account's owner. An attempt that fails with a code in NOT_TRIED is not counted either.
        """
        taken: list[tuple[Bucket, object]] = []
        try:
            for account in accounts:
                self._take((account, address), taken)
            yield
        except Exception as error:
            if _code(error) in NOT_TRIED:
                _give_back(taken)
            raise
        if proves:
            _give_back(taken)
            for account in accounts:
                self._remember((account, address))

    def _take(self, pair: tuple[str, str], taken: list[tuple[Bucket, object]]) -> None:
        now = self._clock()
        self._take_from(self._failures, pair, now, taken)
        if pair in self._owners:
            return
        strangers = self._strangers.take(pair[0], now)
        if strangers.allowed:
            taken.append((self._strangers, pair[0]))
        else:
            self._take_from(self._slowed, pair, now, taken)

    @staticmethod
    def _take_from(bucket: Bucket, key: object, now: float, taken: list[tuple[Bucket, object]]) -> None:
        bucket.take(key, now).enforce()
        taken.append((bucket, key))

    def _remember(self, pair: tuple[str, str]) -> None:
        self._owners.pop(pair, None)
        self._owners[pair] = None
        while len(self._owners) > self._max_owners:
            del self._owners[next(iter(self._owners))]


class MethodLimit:
    """The rate limit of one method: the bucket of its class, and the counts of failed log-ins to the accounts that its
    requests name."""

    def __init__(self, method: Method, bucket: Bucket, attempts: Attempts, clock: Callable[[], float]) -> None:
        self._bucket = bucket
        self._attempts = attempts
        self._clock = clock
        self._by_address = method.policy.rate_limit in BY_ADDRESS
        self._proves = method.policy.proves_account
        self._fields = tuple(
            field.name for field in method.descriptor.input_type.fields if field_policy(field).rate_limit_key
        )
        # Methods such as ChangePassword check the password of a signed-in user: failures count for the account of the
        # access token.
        self._own_account = self._proves and method.policy.access == options.ACCESS_USER
        self.names_account = bool(self._fields) or self._own_account

    def take(self, user_id: int, address: str) -> Verdict:
        """Counts one call in the method's class and returns whether it is allowed.

        Counts by the user, or by the client's address if `user_id` is 0 or the class is in BY_ADDRESS.
        """
        by_user = user_id and not self._by_address
        return self._bucket.take(user_id if by_user else client_key(address), self._clock())

    @contextmanager
    def attempt(self, request: Message, user_id: int, address: str) -> Iterator[None]:
        """Counts the body of the `with` block as an attempt to log in to the accounts that `request` names. Raises
        RESOURCE_EXHAUSTED if too many earlier attempts failed."""
        accounts = sorted({name for field in self._fields if (name := _folded(getattr(request, field)))})
        if self._own_account:
            accounts.append(f"user {user_id}")
        with self._attempts.counted(accounts, client_key(address), proves=self._proves):
            yield


class RateLimits:
    """All rate limits of one process. `clock` returns seconds of a monotonic clock."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._attempts = Attempts(clock)
        self._buckets: dict[int, Bucket] = {}
        if settings.rate_limits:
            self._buckets = {
                options.RATE_LIMIT_READ: Bucket("read", settings.reads_per_minute),
                options.RATE_LIMIT_POST: Bucket("post", settings.posts_per_minute),
                options.RATE_LIMIT_ACTION: Bucket("action", settings.actions_per_minute),
                options.RATE_LIMIT_AUTH: Bucket("auth", settings.logins_per_minute),
                options.RATE_LIMIT_SIGN_UP: Bucket("sign-up", settings.sign_ups_per_hour, SIGN_UPS_WINDOW_S),
                options.RATE_LIMIT_SEARCH: Bucket("search", settings.searches_per_minute),
                options.RATE_LIMIT_ADMIN: Bucket("admin", settings.admin_calls_per_minute),
            }

    def limit_of(self, method: Method) -> MethodLimit | None:
        """Returns the method's limit; None if the settings disable rate limits or the method's policy names no
        class."""
        bucket = self._buckets.get(method.policy.rate_limit)
        return None if bucket is None else MethodLimit(method, bucket, self._attempts, self._clock)

    def count_read(self, address: str) -> None:
        """Counts a call outside the contract, such as reflection, as a read of `address`. Raises RESOURCE_EXHAUSTED if
        the address has used up its allowance of reads."""
        if (bucket := self._buckets.get(options.RATE_LIMIT_READ)) is not None:
            bucket.take(client_key(address), self._clock()).enforce()


def _folded(name: str) -> str:
    """Returns a username or e-mail address in NFKC and folded case, without a leading @, so that all spellings of one
    account share one allowance."""
    return unicodedata.normalize("NFKC", name[:MAX_ACCOUNT_CHARS]).casefold().strip().removeprefix("@")


def _code(error: Exception) -> object:
    return errors.from_rpc(error).code if isinstance(error, grpc.aio.AioRpcError) else getattr(error, "code", None)


def _give_back(taken: Sequence[tuple[Bucket, object]]) -> None:
    for bucket, key in taken:
        bucket.give_back(key)
