"""Claims of usernames and e-mail addresses, which make them unique across partitions.

A sign-up writes its claims before its account. After a failed sign-up its claims may remain; another sign-up can take
them over after ABANDONED_MS milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from typing import NamedTuple

from services.identity.store import NewAccount
from services.identity.store.cassandra import schema
from services.platform.cassandra.keyspace import Keyspace
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# Age in milliseconds from which a claim without an account counts as abandoned: another sign-up can take it over. It is
# far longer than a sign-up may take (MAX_SIGN_UP_S), including writes that are still in transit, so that no sign-up
# loses its claim while it runs.
ABANDONED_MS = 10 * 60 * 1000
# Maximum time in seconds from the first claim of a sign-up or import to the write of the accounts; after that the call
# fails with UNAVAILABLE.
MAX_SIGN_UP_S = 60.0
# Maximum number of attempts to claim one name; after that the call fails with ALREADY_EXISTS. An attempt fails only if
# a competing sign-up claims or releases the name at the same time, or if the outcome of the LWT is unknown.
MAX_ATTEMPTS = 5
# Maximum number of concurrent LWTs of one call of `claim` or `release`; the next LWT waits. A node processes about as
# many at once; more would only time out.
MAX_CONCURRENT_STATEMENTS = 32
# Maximum number of names in one SELECT … IN; more names are read by several statements.
NAMES_PER_READ = 100


class _ClaimTable(NamedTuple):
    """One table of claims: its statements, and the reason and the word ("username" or "email") of its ALREADY_EXISTS
    errors."""

    holder: str
    claim: str
    take: str
    free: str
    reason: Reason
    word: str


_HANDLE = _ClaimTable(
    schema.HANDLE_OF, schema.CLAIM_HANDLE, schema.TAKE_HANDLE, schema.FREE_HANDLE, Reason.USERNAME_TAKEN, "username"
)
_EMAIL = _ClaimTable(
    schema.EMAIL_OF, schema.CLAIM_EMAIL, schema.TAKE_EMAIL, schema.FREE_EMAIL, Reason.EMAIL_TAKEN, "email"
)


class Claims:
    """Reads, writes and deletes the claims in one keyspace. `clock` returns Unix seconds; `exists` returns whether an
    account with the given user id exists. Methods raise the errors of Keyspace."""

    def __init__(
        self, keyspace: Keyspace, clock: Callable[[], float], exists: Callable[[int], Awaitable[bool]]
    ) -> None:
        self._keyspace = keyspace
        self._clock = clock
        self._exists = exists

    async def username_holder(self, username_key: str) -> int:
        """Returns the user id for which the username is claimed; 0 if there is no claim. An account with this id need
        not exist."""
        rows = await self._keyspace.read(schema.HANDLE_OF, username_key)
        return int(rows[0][0]) if rows else 0

    async def email_holder(self, email_key: str) -> int:
        """Returns the user id for which the e-mail address is claimed; 0 if there is no claim. An account with this id
        need not exist."""
        rows = await self._keyspace.read(schema.EMAIL_OF, email_key)
        return int(rows[0][0]) if rows else 0

    async def username_holders(self, username_keys: Sequence[str]) -> list[int]:
        """Returns the result of `username_holder` for each username, in order."""
        lots = (username_keys[at : at + NAMES_PER_READ] for at in range(0, len(username_keys), NAMES_PER_READ))
        found = await self._keyspace.read_each(schema.HANDLES_OF, ((list(batch),) for batch in lots))
        holders: dict[str, int] = dict(chain.from_iterable(found))
        return [holders.get(key, 0) for key in username_keys]

    async def claim(self, new: Sequence[NewAccount]) -> None:
        """Claims the username and the e-mail address of each account. If one claim fails, releases all claims of this
        call and raises the error of that claim.

        Raises ALREADY_EXISTS if another user has claimed a username (reason USERNAME_TAKEN) or an e-mail address
        (EMAIL_TAKEN), and UNAVAILABLE, DEADLINE_EXCEEDED or RESOURCE_EXHAUSTED if the store cannot answer.
        """
        slots = asyncio.Semaphore(MAX_CONCURRENT_STATEMENTS)

        async def claim_one(one: NewAccount) -> None:
            async with slots:
                await self._claim(_HANDLE, one.username_key, one.account.user_id)
                await self._claim(_EMAIL, one.email_key, one.account.user_id)

        outcomes = await asyncio.gather(*(claim_one(one) for one in new), return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures:
            await self.release(new)
            raise failures[0]

    async def release(self, new: Sequence[NewAccount]) -> None:
        """Deletes the claims of these accounts. Call this method only if the accounts were certainly not created.
        Ignores errors, because another sign-up can take over a remaining claim after ABANDONED_MS milliseconds."""
        slots = asyncio.Semaphore(MAX_CONCURRENT_STATEMENTS)

        async def free(table: _ClaimTable, key: str, user_id: int) -> None:
            with contextlib.suppress(errors.RoostError):
                async with slots:
                    await self._keyspace.execute_lwt(table.free, key, user_id)

        work = [free(_HANDLE, one.username_key, one.account.user_id) for one in new]
        work += [free(_EMAIL, one.email_key, one.account.user_id) for one in new]
        await asyncio.gather(*work)

    async def free(self, username_key: str, email_key: str, user_id: int) -> None:
        """Deletes the claims of one user. Does nothing if other users have claimed the names. Raises UNAVAILABLE,
        DEADLINE_EXCEEDED or RESOURCE_EXHAUSTED if the store cannot answer: repeat the call then."""
        await self._keyspace.execute_lwt(schema.FREE_HANDLE, username_key, user_id)
        await self._keyspace.execute_lwt(schema.FREE_EMAIL, email_key, user_id)

    async def _claim(self, table: _ClaimTable, key: str, user_id: int) -> None:
        for _ in range(MAX_ATTEMPTS):
            now_ms = int(self._clock() * 1000)
            if await self._applied(table.claim, key, user_id, now_ms):
                return
            rows = await self._keyspace.read_serial(table.holder, key)
            if not rows:
                continue
            holder, claimed_ms = rows[0]
            # If the response to an earlier attempt was lost, the stored claim may belong to this sign-up.
            if holder == user_id:
                return
            if claimed_ms > now_ms - ABANDONED_MS or await self._exists(holder):
                break
            if await self._applied(table.take, user_id, now_ms, key, holder, claimed_ms):
                return
        raise errors.already_exists(f"the {table.word} is taken: choose another", table.reason)

    async def _applied(self, statement: str, *values: object) -> bool:
        try:
            applied, _ = await self._keyspace.execute_lwt(statement, *values)
        except errors.RoostError as error:
            if error.reason != Reason.OUTCOME_UNKNOWN:
                raise
            # The outcome is unknown; the caller reads the claim to find out whether it was stored.
            return False
        return applied
