"""Rate limits: a token bucket for each (class, user or address), kept as the one moment at which it is full again (GCRA).

A process has one RateLimits object, which the HTTP gateway and the gRPC server both ask: whoever mixes protocols has one allowance. The
method's policy names the class, the settings give its numbers.

The classes BY_ADDRESS count by the client's address, whatever token comes along: with a token of one's own an attacker would
otherwise have an allowance for each account. Beside it, attempts are counted for the account that the request names (FieldPolicy
`rate_limit_key`). Such a limit must not become a way to lock somebody out of their account, so:

- failures count for (account, address), and those of one address never touch another's;
- failures from addresses that never proved to be the owner's also count for the account as a whole. When that allowance is used up,
  such addresses are slowed to a few tries an hour each, and addresses that logged in to the account before are not affected;
- an attempt that succeeds gives back what it took, if the policy says that success proves who the owner is.

The `limits` package was measured and left: a hit with its statistics cost 12–20 µs, and its memory storage starts a thread every
10 ms that walks all keys. A bucket here costs under 1 µs, and their number is bounded.
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

WINDOW_S = 60.0
# Buckets of one class: 100 bytes each. Full buckets are dropped first: they say the same as none.
MAX_BUCKETS = 100_000
# Sums of floats must not cost the last request of a window.
SLACK_S = 1e-6

# Nobody signs up by the minute: a short window would add up to thousands a day.
SIGN_UPS_WINDOW_S = 3_600.0
BY_ADDRESS = frozenset({options.RATE_LIMIT_AUTH, options.RATE_LIMIT_SIGN_UP})

# Failures at one account from one address: more than people need to remember a password, then one every three minutes.
FAILURES, FAILURES_WINDOW_S = 10, 1_800.0
# Failures at one account from all addresses that never logged in to it. NIST SP 800-63B allows 100 in a row.
STRANGERS_FAILURES, STRANGERS_WINDOW_S = 100, 3_600.0
# What each such address still has once those are used up: the owner on a new device gets in, a guesser gets nowhere.
SLOWED_FAILURES, SLOWED_WINDOW_S = 3, 3_600.0
# (account, address) pairs that proved to be the owner's, about 200 bytes each; the longest unused go first.
MAX_OWNERS = 100_000
# No account's name is longer than this, so what is longer names none.
MAX_ACCOUNT_CHARS = 320

# Codes that an attempt gets before anybody looked whether it is right: it was no guess.
NOT_TRIED = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a bucket said to one request; times in seconds."""

    bucket: Bucket
    allowed: bool
    remaining: int
    reset_s: float
    retry_after_s: float

    def enforce(self) -> None:
        """Raises RESOURCE_EXHAUSTED, with the time to wait, if the request is not allowed."""
        if not self.allowed:
            per = "a minute" if self.bucket.window_s == WINDOW_S else f"in {self.bucket.window_s / 60:g} minutes"
            message = f"more than {self.bucket.limit} {self.bucket.name} requests {per}"
            raise errors.resource_exhausted(message, self.retry_after_s, reason=Reason.RATE_LIMITED)


class Bucket:
    """The buckets of one class: `limit` requests at once, refilled evenly over `window_s`."""

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
        """Takes one request out of the key's bucket; `now` in seconds of any steady clock. A refusal takes nothing."""
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
        """Undoes one `take` of the key that was allowed."""
        if (full_at := self._full_at.get(key)) is not None:
            self._full_at[key] = full_at - self._step

    def _make_room(self, now: float) -> None:
        kept = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
        if len(kept) >= self._max_buckets:
            # Everybody is busy: a tenth goes, the longest known first, and starts anew.
            for key in list(kept)[: self._max_buckets // 10 + 1]:
                del kept[key]
        self._full_at = kept


class Attempts:
    """Failed attempts to prove to be an account's owner, by account and address; see the module for what is counted and why."""

    def __init__(self, clock: Callable[[], float], max_owners: int = MAX_OWNERS) -> None:
        self._clock = clock
        self._max_owners = max_owners
        self._failures = Bucket("failed log-in", FAILURES, FAILURES_WINDOW_S)
        self._strangers = Bucket("failed log-in", STRANGERS_FAILURES, STRANGERS_WINDOW_S)
        self._slowed = Bucket("failed log-in", SLOWED_FAILURES, SLOWED_WINDOW_S)
        # (account, address) as keys of a dict: the longest unused first.
        self._owners: dict[tuple[str, str], None] = {}

    @contextmanager
    def counted(self, accounts: Sequence[str], address: str, *, proves: bool) -> Iterator[None]:
        """Counts the context as one attempt at each account. Raises RESOURCE_EXHAUSTED if too many failed.

        `proves` says that success shows who the owner is: it is given back, and the address is the owner's from now on.
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
    """How calls of one method are limited."""

    def __init__(self, method: Method, bucket: Bucket, attempts: Attempts, clock: Callable[[], float]) -> None:
        self._bucket = bucket
        self._attempts = attempts
        self._clock = clock
        self._by_address = method.policy.rate_limit in BY_ADDRESS
        self._proves = method.policy.proves_account
        self._fields = tuple(
            field.name for field in method.descriptor.input_type.fields if field_policy(field).rate_limit_key
        )
        # A signed-in user who proves who they are once more names their own account by their token.
        self._own_account = self._proves and method.policy.access == options.ACCESS_USER
        self.names_account = bool(self._fields) or self._own_account

    def take(self, user_id: int, address: str) -> Verdict:
        """Counts one call in the method's class: of the user, or of the client's address if nobody is signed in or the class is in
        BY_ADDRESS."""
        by_user = user_id and not self._by_address
        return self._bucket.take(user_id if by_user else client_key(address), self._clock())

    @contextmanager
    def attempt(self, request: Message, user_id: int, address: str) -> Iterator[None]:
        """Counts the call in the context for the accounts that `request` names. Raises RESOURCE_EXHAUSTED if too many failed."""
        accounts = sorted({name for field in self._fields if (name := _folded(getattr(request, field)))})
        if self._own_account:
            accounts.append(f"user {user_id}")
        with self._attempts.counted(accounts, client_key(address), proves=self._proves):
            yield


class RateLimits:
    """The limits of one process; `clock` is in seconds and steady."""

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
        """Returns the method's limit; None if limits are off, or its policy has no class."""
        bucket = self._buckets.get(method.policy.rate_limit)
        return None if bucket is None else MethodLimit(method, bucket, self._attempts, self._clock)

    def count_read(self, address: str) -> None:
        """Counts a call that is not in the contract, such as reflection, as a read of `address`. Raises RESOURCE_EXHAUSTED."""
        if (bucket := self._buckets.get(options.RATE_LIMIT_READ)) is not None:
            bucket.take(client_key(address), self._clock()).enforce()


def _folded(name: str) -> str:
    """One spelling for all spellings of an account's name or e-mail address: whoever guesses must not get an allowance for each."""
    return unicodedata.normalize("NFKC", name[:MAX_ACCOUNT_CHARS]).casefold().strip().removeprefix("@")


def _code(error: Exception) -> object:
    return errors.from_rpc(error).code if isinstance(error, grpc.aio.AioRpcError) else getattr(error, "code", None)


def _give_back(taken: Sequence[tuple[Bucket, object]]) -> None:
    for bucket, key in taken:
        bucket.give_back(key)
