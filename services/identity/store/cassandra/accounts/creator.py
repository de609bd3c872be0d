"""Creates accounts in Cassandra: claims the usernames and e-mail addresses, then writes each account in one batch with
its event."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.identity.store import NewAccount, Session
from services.identity.store.cassandra import schema
from services.identity.store.cassandra.accounts.claims import MAX_SIGN_UP_S, Claims
from services.identity.store.cassandra.accounts.reader import AccountReader
from services.identity.store.cassandra.accounts.rows import (
    ImportPlan,
    create_statements,
    group_into_batches,
    session_values,
)
from services.identity.store.cassandra.user_transactions import EVENT_ID_TTL_S
from services.platform.cassandra.keyspace import Keyspace, Statement
from services.platform.cassandra.outbox import Outbox
from services.platform.detached import run_to_completion
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# Maximum number of attempts of an import; after that it fails with ALREADY_EXISTS. An attempt fails if a concurrent
# request has claimed one of the usernames. IMPORT_RETRY_S is the time in seconds between two attempts.
MAX_IMPORT_ATTEMPTS = 4
IMPORT_RETRY_S = 0.3
# Maximum number of concurrent batches of one import; the next batch waits. A batch writes a few dozen rows through one
# coordinator.
MAX_CONCURRENT_BATCHES = 16
# Time in seconds between two attempts to write a batch of an import.
BATCH_RETRY_S = 1.0


class AccountCreator:
    """Creates accounts one by one or by import."""

    def __init__(self, keyspace: Keyspace, outbox: Outbox, reader: AccountReader, claims: Claims) -> None:
        self._keyspace = keyspace
        self._outbox = outbox
        self._reader = reader
        self._claims = claims

    async def create(self, new: NewAccount, session: Session, token_hash: bytes) -> None:
        """Creates the account and its first session. Raises ALREADY_EXISTS (USERNAME_TAKEN or EMAIL_TAKEN), and stores
        nothing, if another account has the username or e-mail address."""
        statements = [
            *create_statements(new, EVENT_ID_TTL_S),
            (schema.FIRST_SESSION, (schema.FIRST_WRITE_TIMESTAMP, *session_values(session, b"", token_hash))),
        ]
        await run_to_completion(self._create_accounts([new], [statements]))

    async def import_accounts(self, new: Sequence[NewAccount]) -> list[int]:
        """Implements `AccountStore.import_accounts` with one exception: if the accounts do not fit into one batch, this
        method may create only a part of them.

        That happens if this process dies, or if Cassandra is unavailable for MAX_SIGN_UP_S seconds. A repeat of the
        import creates the other accounts, as soon as the claims of the first attempt count as abandoned (ABANDONED_MS).
        """
        plan = ImportPlan(new)
        for tries_left in reversed(range(MAX_IMPORT_ATTEMPTS)):
            holders = await self._claims.username_holders(plan.names)
            missing = plan.missing(await self._reader.logins(holders), holders)
            try:
                if missing:
                    await run_to_completion(
                        self._create_accounts(missing, [create_statements(one, EVENT_ID_TTL_S) for one in missing])
                    )
            except errors.RoostError as error:
                # A concurrent request (perhaps the same import) creates one of the accounts. The next attempt finds
                # that account in the store and compares it with the import.
                if error.reason != Reason.USERNAME_TAKEN or not tries_left:
                    raise
                await asyncio.sleep(IMPORT_RETRY_S)
            else:
                break
        return plan.ids

    async def _create_accounts(self, new: Sequence[NewAccount], statements: Sequence[Sequence[Statement]]) -> None:
        """Claims the usernames and e-mail addresses, writes each account (by its item of `statements`, in one batch
        with its event), then publishes the events."""
        clock = asyncio.get_running_loop().time
        give_up = clock() + MAX_SIGN_UP_S
        await self._claims.claim(new)
        groups = ([*mine, *self._outbox.statements([one.created])] for one, mine in zip(new, statements, strict=True))
        first, *others = group_into_batches(groups)
        try:
            if clock() > give_up:
                raise errors.unavailable(
                    "the sign-up took too long, so the username may be taken: retry later",
                    reason=Reason.STORE_UNAVAILABLE,
                )
            await self._keyspace.batch(first)
        except errors.RoostError as error:
            if error.reason == Reason.STORE_UNAVAILABLE:
                await self._claims.release(new)
            raise
        slots = asyncio.Semaphore(MAX_CONCURRENT_BATCHES)

        async def store(batch: Sequence[Statement]) -> None:
            # The first batch is stored, so this import must store the other batches too. It retries each batch until
            # `give_up`.
            while True:
                async with slots:
                    try:
                        return await self._keyspace.batch(batch)
                    except errors.RoostError:
                        if clock() > give_up:
                            raise
                await asyncio.sleep(BATCH_RETRY_S)

        await asyncio.gather(*map(store, others))
        self._outbox.publish([one.created for one in new])
