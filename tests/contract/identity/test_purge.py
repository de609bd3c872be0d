"""Contract of the purge of deactivated accounts, for every adapter."""

from __future__ import annotations

import asyncio

from roost.identity.v1 import user_pb2

from services.identity.password import Credential, Scheme
from services.identity.store import Account, IdentityStores
from services.platform.events.log import Record
from tests.contract.identity.test_store import ACTIVE, HASHED, create, digest, record, session

DEACTIVATED = user_pb2.USER_STATE_DEACTIVATED
DUE_S, BEFORE_S = 10, 20


async def deactivate(stores: IdentityStores, user_id: int, at_s: int = DUE_S) -> Account:
    (found,) = await stores.accounts.batch_get([user_id])
    account = found._replace(state=DEACTIVATED, version=found.version + 1)
    deleted = [record(user_id, "user.deleted")]
    assert await stores.accounts.replace(account, deleted, end_sessions=True, deactivated_s=at_s)
    return account


async def purge(stores: IdentityStores, before_s: int, limit: int = 10) -> int:
    return await stores.purge.purge(before_s, limit, purged_event)


async def purged_event(user_id: int, deactivated_s: int) -> Record:
    return record(user_id, "user.purged")


async def activate(stores: IdentityStores, account: Account) -> bool:
    active = account._replace(state=ACTIVE, version=account.version + 1)
    return await stores.accounts.replace(active, [record(account.user_id, "user.reinstated")])


async def test_purge_erases_account_and_frees_its_names(stores: IdentityStores) -> None:
    await create(stores, 1, "Alice")
    await create(stores, 2, "bob")
    deactivated = await deactivate(stores, 1)
    assert [entry.state for entry in (await stores.accounts.refs([1])).refs] == [DEACTIVATED]
    assert await purge(stores, DUE_S, 10) == 0
    assert await purge(stores, BEFORE_S, 10) == 1
    (account,) = await stores.accounts.batch_get([1])
    assert (account.email, account.roles, account.state) == ("", frozenset(), DEACTIVATED)
    assert account.version > deactivated.version
    assert user_pb2.User.FromString(account.core) == user_pb2.User(id=1)
    assert await stores.credentials.get(1) == Credential(Scheme.NONE, b"")
    (entry,) = (await stores.accounts.refs([1])).refs
    assert user_pb2.UserRef.FromString(entry.ref) == user_pb2.UserRef(id=1)
    assert (entry.state, entry.version) == (DEACTIVATED, account.version)
    assert await stores.accounts.by_username("alice") is None
    assert await stores.accounts.by_email("alice@example.com") is None
    assert [found.user_id for found in await stores.accounts.scan(0, 10)] == [1, 2]
    # The names are free, and the purge does not touch their next owner.
    await create(stores, 3, "alice", "ALICE@example.com")
    assert await purge(stores, BEFORE_S, 10) == 0
    found = await stores.accounts.by_username("alice")
    assert found is not None
    assert (found.account.user_id, found.credential) == (3, HASHED)
    assert not await stores.sessions.open(session(900, 1), digest("late"), HASHED)


async def test_purge_publishes_one_event_for_each_account(stores: IdentityStores) -> None:
    for user_id in (1, 2):
        await create(stores, user_id, f"user{user_id}")
        await deactivate(stores, user_id, user_id)
    made: list[tuple[int, int]] = []

    async def purged(user_id: int, deactivated_s: int) -> Record:
        made.append((user_id, deactivated_s))
        return record(user_id, "user.purged")

    assert await stores.purge.purge(BEFORE_S, 10, purged) == 2
    assert await stores.purge.purge(BEFORE_S, 10, purged) == 0
    assert made == [(1, 1), (2, 2)]


async def test_purge_erases_only_due_accounts_up_to_limit(stores: IdentityStores) -> None:
    for user_id in range(1, 6):
        await create(stores, user_id, f"user{user_id}")
    for user_id, at_s in ((1, 11), (2, 10), (3, 12), (4, BEFORE_S)):
        await deactivate(stores, user_id, at_s)
    assert await purge(stores, BEFORE_S, 2) == 2

    async def erased() -> list[int]:
        return [account.user_id for account in await stores.accounts.scan(0, 10) if not account.email]

    assert await erased() == [1, 2]
    assert await purge(stores, BEFORE_S, 2) == 1
    assert await purge(stores, BEFORE_S, 2) == 0
    assert await erased() == [1, 2, 3]
    assert await purge(stores, BEFORE_S + 1, 2) == 1
    assert await erased() == [1, 2, 3, 4]


async def test_purge_leaves_activated_account(stores: IdentityStores) -> None:
    await create(stores, 1, "alice")
    assert await activate(stores, await deactivate(stores, 1))
    assert await purge(stores, BEFORE_S, 10) == 0
    found = await stores.accounts.by_username("alice")
    assert found is not None
    assert (found.account.email, found.credential) == ("alice@example.com", HASHED)
    # The time of its last deactivation counts.
    await deactivate(stores, 1, BEFORE_S)
    assert await purge(stores, BEFORE_S, 10) == 0
    assert await stores.accounts.by_email("alice@example.com") is not None
    assert await purge(stores, BEFORE_S + 1, 10) == 1


async def test_purge_concurrent_with_activation_keeps_account_whole_or_erases_it(stores: IdentityStores) -> None:
    people = range(1, 13)
    for user_id in people:
        await create(stores, user_id, f"user{user_id}")
    deactivated = [await deactivate(stores, user_id) for user_id in people]

    async def activate_all() -> dict[int, bool]:
        # The last account first: the purge begins with the first one, so the two meet in between.
        return {account.user_id: await activate(stores, account) for account in reversed(deactivated)}

    activated, erased = await asyncio.gather(activate_all(), purge(stores, BEFORE_S, 100))
    assert erased == list(activated.values()).count(False)
    for account in await stores.accounts.batch_get(people):
        found = await stores.accounts.by_username(f"user{account.user_id}")
        if activated[account.user_id]:
            assert found is not None
            assert (found.account, found.credential) == (account, HASHED)
            assert (account.state, account.email) == (ACTIVE, f"user{account.user_id}@example.com")
        else:
            assert found is None
            assert (account.state, account.email) == (DEACTIVATED, "")
