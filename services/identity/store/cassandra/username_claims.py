"""Claims on names and addresses: what makes them unique. A claim comes before its account, and may outlive a sign-up that failed."""

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

# After it a claim without an account is given up. Far longer than a sign-up may go on (below) and than its writes may still be on
# their way, so that who takes it over meets nobody.
ABANDONED_MS = 10 * 60 * 1000
# The longest from the first claim to the write of the account.
MAX_HELD_S = 60.0
# Rivals of one name come and go; this many in a row means that something else is wrong.
MAX_TRIES = 5
# Conditional writes on their way at once: a node works on about as many, more would only time out.
MAX_CONCURRENT_STATEMENTS = 32
# In one statement: a node gathers them.
NAMES_PER_READ = 100


class _Kind(NamedTuple):
    """One table of claims: its statements, and what a refusal is called."""

    holder: str
    claim: str
    take: str
    free: str
    reason: Reason
    word: str


_HANDLE = _Kind(
    schema.HANDLE_OF, schema.CLAIM_HANDLE, schema.TAKE_HANDLE, schema.FREE_HANDLE, Reason.USERNAME_TAKEN, "username"
)
_EMAIL = _Kind(schema.EMAIL_OF, schema.CLAIM_EMAIL, schema.TAKE_EMAIL, schema.FREE_EMAIL, Reason.EMAIL_TAKEN, "email")


class Claims:
    """The claims of one keyspace. `clock` gives unix seconds; `exists` says whether there is an account of this id."""

    def __init__(
        self, keyspace: Keyspace, clock: Callable[[], float], exists: Callable[[int], Awaitable[bool]]
    ) -> None:
        self._keyspace = keyspace
        self._clock = clock
        self._exists = exists

    async def username_holder(self, username_key: str) -> int:
        """Who claims the name: perhaps without an account. 0 where nobody does."""
        rows = await self._keyspace.read(schema.HANDLE_OF, username_key)
        return int(rows[0][0]) if rows else 0

    async def email_holder(self, email_key: str) -> int:
        """Who claims the address, as `username_holder`."""
        rows = await self._keyspace.read(schema.EMAIL_OF, email_key)
        return int(rows[0][0]) if rows else 0

    async def username_holders(self, username_keys: Sequence[str]) -> list[int]:
        """One holder a name, in their order."""
        lots = (username_keys[at : at + NAMES_PER_READ] for at in range(0, len(username_keys), NAMES_PER_READ))
        found = await self._keyspace.read_each(schema.HANDLES_OF, ((list(lot),) for lot in lots))
        holders: dict[str, int] = dict(chain.from_iterable(found))
        return [holders.get(key, 0) for key in username_keys]

    async def hold(self, new: Sequence[NewAccount]) -> None:
        """Claims both keys of each, all or none. ALREADY_EXISTS as in `create` of the port; what was claimed is free again then."""
        room = asyncio.Semaphore(MAX_CONCURRENT_STATEMENTS)

        async def hold_one(one: NewAccount) -> None:
            async with room:
                await self._claim(_HANDLE, one.username_key, one.account.user_id)
                await self._claim(_EMAIL, one.email_key, one.account.user_id)

        outcomes = await asyncio.gather(*(hold_one(one) for one in new), return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures:
            await self.release(new)
            raise failures[0]

    async def release(self, new: Sequence[NewAccount]) -> None:
        """Gives up the claims of accounts that were certainly not made. What cannot be reached is given up by time."""
        room = asyncio.Semaphore(MAX_CONCURRENT_STATEMENTS)

        async def free(kind: _Kind, key: str, user_id: int) -> None:
            with contextlib.suppress(errors.RoostError):
                async with room:
                    await self._keyspace.execute_lwt(kind.free, key, user_id)

        work = [free(_HANDLE, one.username_key, one.account.user_id) for one in new]
        work += [free(_EMAIL, one.email_key, one.account.user_id) for one in new]
        await asyncio.gather(*work)

    async def _claim(self, kind: _Kind, key: str, user_id: int) -> None:
        for _ in range(MAX_TRIES):
            now_ms = int(self._clock() * 1000)
            if await self._applied(kind.claim, key, user_id, now_ms):
                return
            rows = await self._keyspace.read_serial(kind.holder, key)
            if not rows:
                continue
            holder, claimed_ms = rows[0]
            # Our own, if the answer was lost.
            if holder == user_id:
                return
            if claimed_ms > now_ms - ABANDONED_MS or await self._exists(holder):
                break
            if await self._applied(kind.take, user_id, now_ms, key, holder, claimed_ms):
                return
        raise errors.already_exists(f"the {kind.word} is taken", kind.reason)

    async def _applied(self, statement: str, *values: object) -> bool:
        try:
            applied, _ = await self._keyspace.execute_lwt(statement, *values)
        except errors.RoostError as error:
            if error.reason != Reason.OUTCOME_UNKNOWN:
                raise
            # The caller looks who holds it now.
            return False
        return applied
