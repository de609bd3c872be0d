"""Limits the rate of calls by token buckets: one bucket for each pair of a rate limit class and a user or client
address.

A process has one RateLimits object for its HTTP gateway and its gRPC server, so a client that uses both has one
allowance. The policy of a method names its class; the settings define the limit of each class. `RateLimitCounts` says
where requests are counted: in the memory of the process, or with Redis for all processes of the mesh.

The classes in BY_ADDRESS count by the client's address, whether or not a token is sent: otherwise an attacker would get
an allowance for each account of their own. In addition, failed log-ins are counted for the account that the request
names (FieldPolicy `rate_limit_key`). An attacker must not be able to lock the owner out of an account by this limit,
so:

- failures count for the pair (account, address); those of one address do not affect another address;
- failures from addresses that never logged in to the account also count for the account as a whole. After
  STRANGERS_FAILURES of them, an address that never logged in to the account gets SLOWED_FAILURES attempts an hour;
  addresses that logged in to the account before are not affected;
- a successful attempt is not counted if the policy says that success proves ownership of the account.

The calls of BY_ADDRESS and the failed log-ins are counted exactly, because the limits protect accounts and such a call
costs a password hash or several writes anyway. All other classes are counted without waiting.
"""

from __future__ import annotations

import unicodedata
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager

import grpc
from google.protobuf.message import Message
from roost.options.v1 import options_pb2 as options

from services.platform.config import Settings
from services.platform.rpc import errors
from services.platform.rpc.client_address import client_key
from services.platform.rpc.contract import Method, field_policy
from services.platform.rpc.rate_limit_counts import Attempt, Counter, RateLimitCounts
from services.platform.rpc.token_buckets import Limit, Verdict

# The window of the limit of sign-ups, in seconds. It is one hour, because a limit per minute would allow thousands of
# sign-ups a day.
SIGN_UPS_WINDOW_S = 3_600.0
BY_ADDRESS = frozenset({options.RATE_LIMIT_AUTH, options.RATE_LIMIT_SIGN_UP})
# Maximum length in characters of the account in a key. The rest of a longer text is ignored: usernames and e-mail
# addresses are shorter.
MAX_ACCOUNT_CHARS = 320

# Status codes of attempts that were rejected before the credentials were checked: they do not count as failures.
NOT_TRIED = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
)


@asynccontextmanager
async def counted_attempt(
    counts: RateLimitCounts, accounts: Sequence[str], address: str, *, proves: bool
) -> AsyncIterator[None]:
    """Counts the body of the `async with` block as one attempt to log in to each account. Raises RESOURCE_EXHAUSTED if
    too many earlier attempts failed.

    If `proves` is true, success proves ownership: the attempt is not counted, and from now on the address counts as an
    address of the account's owner. An attempt that fails with a code in NOT_TRIED is not counted either.
    """
    admitted: list[Attempt] = []
    try:
        for account in accounts:
            attempt = await counts.attempt(account, address)
            if isinstance(attempt, Verdict):
                attempt.enforce()
            else:
                admitted.append(attempt)
        yield
    except Exception as error:
        if _code(error) in NOT_TRIED:
            for attempt in admitted:
                await attempt.undo()
        raise
    if proves:
        for attempt in admitted:
            await attempt.succeed()


class MethodLimit:
    """The rate limit of one method: the counter of its class, and the counts of failed log-ins to the accounts that its
    requests name."""

    def __init__(self, method: Method, counter: Counter, counts: RateLimitCounts) -> None:
        self._counter = counter
        self._counts = counts
        self._by_address = method.policy.rate_limit in BY_ADDRESS
        self._proves = method.policy.proves_account
        self._fields = tuple(
            field.name for field in method.descriptor.input_type.fields if field_policy(field).rate_limit_key
        )
        # Methods such as ChangePassword check the password of a signed-in user: failures count for the account of the
        # access token.
        self._own_account = self._proves and method.policy.access == options.ACCESS_USER
        self.names_account = bool(self._fields) or self._own_account

    def take(self, user_id: int, address: str) -> Awaitable[Verdict]:
        """Counts one call in the method's class and returns whether it is allowed.

        Counts by the user, or by the client's address if `user_id` is 0 or the class is in BY_ADDRESS.
        """
        return self._counter.take(user_id if user_id and not self._by_address else client_key(address))

    @asynccontextmanager
    async def attempt(self, request: Message, user_id: int, address: str) -> AsyncIterator[None]:
        """Counts the body of the `async with` block as an attempt to log in to the accounts that `request` names.
        Raises RESOURCE_EXHAUSTED if too many earlier attempts failed."""
        accounts = sorted({name for field in self._fields if (name := _folded(getattr(request, field)))})
        if self._own_account:
            accounts.append(f"user {user_id}")
        async with counted_attempt(self._counts, accounts, client_key(address), proves=self._proves):
            yield


class RateLimits:
    """All rate limits of one process, counted in `counts`."""

    def __init__(self, settings: Settings, counts: RateLimitCounts) -> None:
        self._counts = counts
        limits = _limits(settings) if settings.rate_limits else {}
        self._counters = {kind: counts.counter(limit, exact=kind in BY_ADDRESS) for kind, limit in limits.items()}

    def limit_of(self, method: Method) -> MethodLimit | None:
        """Returns the method's limit; None if the settings disable rate limits or the method's policy names no
        class."""
        counter = self._counters.get(method.policy.rate_limit)
        return None if counter is None else MethodLimit(method, counter, self._counts)

    async def count_read(self, address: str) -> None:
        """Counts a call outside the contract, such as reflection, as a read of `address`. Raises RESOURCE_EXHAUSTED if
        the address has used up its allowance of reads."""
        if (counter := self._counters.get(options.RATE_LIMIT_READ)) is not None:
            (await counter.take(client_key(address))).enforce()


def _limits(settings: Settings) -> dict[int, Limit]:
    return {
        options.RATE_LIMIT_READ: Limit("read", settings.reads_per_minute),
        options.RATE_LIMIT_POST: Limit("post", settings.posts_per_minute),
        options.RATE_LIMIT_ACTION: Limit("action", settings.actions_per_minute),
        options.RATE_LIMIT_AUTH: Limit("auth", settings.logins_per_minute),
        options.RATE_LIMIT_SIGN_UP: Limit("sign-up", settings.sign_ups_per_hour, SIGN_UPS_WINDOW_S),
        options.RATE_LIMIT_SEARCH: Limit("search", settings.searches_per_minute),
        options.RATE_LIMIT_ADMIN: Limit("admin", settings.admin_calls_per_minute),
    }


def _folded(name: str) -> str:
    """Returns a username or e-mail address in NFKC and folded case, without a leading @, so that all spellings of one
    account share one allowance."""
    return unicodedata.normalize("NFKC", name[:MAX_ACCOUNT_CHARS]).casefold().strip().removeprefix("@")


def _code(error: Exception) -> object:
    return errors.from_rpc(error).code if isinstance(error, grpc.aio.AioRpcError) else getattr(error, "code", None)
