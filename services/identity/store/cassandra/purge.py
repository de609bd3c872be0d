"""Erases deactivated accounts in Cassandra."""

from __future__ import annotations

from collections.abc import Callable

from roost.identity.v1 import user_pb2

from services.identity.password import Scheme
from services.identity.profile import fold_email, fold_username
from services.identity.store import Account, PurgedEvent
from services.identity.store.cassandra import schema as cql
from services.identity.store.cassandra.accounts.claims import Claims
from services.identity.store.cassandra.accounts.reader import AccountReader
from services.identity.store.cassandra.shared_refs import SharedUserRefs
from services.identity.store.cassandra.user_transactions import EVENT_ID_TTL_S, UserTransactions, event_ids
from services.identity.store.user_refs import encode_roles, erased
from services.platform.cassandra.keyspace import Keyspace
from services.platform.events.log import Record

# Maximum number of listed deactivations that one read returns.
STEP = 100
# Maximum number of days that one read of the list of days returns.
DAYS_PAGE = 64
# If a deactivation is still listed without a change of its account after this many seconds, the deactivation counts as
# failed, and its entry is dropped. The change of an account takes far less time.
SETTLED_S = 600
# The entry of a day is kept if it was written in the last so many seconds, because the clocks of processes differ.
CLOCK_MARGIN_S = 60
# Smaller than every day, time and id: the bound of a list in ascending order from the first entry on.
_NO_BOUND = -1


class Purger:
    """Erases deactivated accounts by the day of their deactivation, the earliest first. `clock` returns Unix
    seconds."""

    def __init__(
        self,
        keyspace: Keyspace,
        transactions: UserTransactions,
        reader: AccountReader,
        claims: Claims,
        refs: SharedUserRefs,
        clock: Callable[[], float],
    ) -> None:
        self._keyspace = keyspace
        self._transactions = transactions
        self._reader = reader
        self._claims = claims
        self._refs = refs
        self._clock = clock

    async def purge(self, before_s: int, limit: int, purged: PurgedEvent) -> int:
        """Implements `PurgeStore.purge`."""
        count, day = 0, _NO_BOUND
        last_day = before_s // cql.DAY_S
        while days := await self._keyspace.read(cql.DAYS, cql.ALL_DAYS, day, last_day, DAYS_PAGE):
            for (day,) in days:
                count += await self._purge_day(day, before_s, limit - count, purged)
                if count == limit:
                    return count
        return count

    async def _purge_day(self, day: int, before_s: int, remaining: int, purged: PurgedEvent) -> int:
        begun_us = int((self._clock() - CLOCK_MARGIN_S) * 1_000_000)
        after, count = (_NO_BOUND, _NO_BOUND), 0
        while rows := await self._keyspace.read(cql.DEACTIVATIONS, day, *after, before_s, STEP):
            for at_s, user_id, version in rows:
                after = (at_s, user_id)
                count += await self._purge_listed(day, at_s, user_id, version, purged)
                if count == remaining:
                    return count
        past = day < before_s // cql.DAY_S
        if past and not await self._keyspace.read(cql.ANY_DEACTIVATION, day):
            # If an account is listed in this day meanwhile, the row of the day is written with a timestamp later than
            # `begun_us`, so it stays.
            await self._keyspace.write(cql.DROP_DAY, begun_us, cql.ALL_DAYS, day)
        return count

    async def _purge_listed(self, day: int, at_s: int, user_id: int, version: int, purged: PurgedEvent) -> bool:
        """Erases an account that was deactivated at `at_s` with the given version, if it is still deactivated, and
        drops its entry of the list. Returns whether it erased the account."""
        login = await self._reader.login(user_id)
        if login is None or login.account.version < version:
            # The account is listed before it is changed, so the change may be in progress, or it has failed.
            if at_s < self._clock() - SETTLED_S:
                await self._keyspace.write(cql.DROP_DEACTIVATION, day, at_s, user_id)
            return False
        account = login.account
        # If the account is one version later and has no credential, an earlier purge was interrupted. If it has a
        # credential, this deactivation failed because of a concurrent change and was repeated: the account is listed
        # again, with the time of the repeat.
        is_interrupted = account.version == version + 1 and login.credential.scheme == Scheme.NONE
        due = account.state == user_pb2.USER_STATE_DEACTIVATED and (account.version == version or is_interrupted)
        if due and not await self._erase(account, version, await purged(user_id, at_s)):
            return False
        await self._keyspace.write(cql.DROP_DEACTIVATION, day, at_s, user_id)
        return due

    async def _erase(self, account: Account, version: int, record: Record) -> bool:
        """Erases an account whose deactivation has the given version, and publishes `record`. Returns False if another
        process changes the account now.

        First removes the credential, then frees the username and the e-mail address, and last removes both from the
        account: if this purge is interrupted, the next purge still finds both in the account.
        """
        user_id = account.user_id
        if account.version == version:
            change = (int(Scheme.NONE), b"", version + 1, user_id, version)
            if not await self._transactions.execute(user_id, [], cql.CLEAR_CREDENTIAL, *change):
                return False
        username = user_pb2.User.FromString(account.core).username
        await self._claims.free(fold_username(username), fold_email(account.email), user_id)
        gone = erased(account, version + 2)
        values = (gone.core, gone.email, encode_roles(gone), gone.version, user_id, version + 1)
        events = (EVENT_ID_TTL_S, event_ids([record]), user_id)
        return await self._transactions.execute(
            user_id, [record], cql.CLEAR_PROFILE, *values, *events, before_publish=lambda: self._refs.put(gone)
        )
