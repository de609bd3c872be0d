"""Contract of identity's stores, for every adapter."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from functools import partial
from itertools import count

import grpc
import pytest
from roost.identity.v1 import user_pb2

from services.identity.password import Credential, Scheme
from services.identity.store import MAX_SESSIONS, Account, IdentityStores, NewAccount, Rotation, Session
from services.identity.store.rotation import REFRESH_GRACE_MS
from services.platform.events.log import Record
from services.platform.rpc import errors

ACTIVE, SUSPENDED = user_pb2.USER_STATE_ACTIVE, user_pb2.USER_STATE_SUSPENDED
HASHED = Credential(Scheme.PEPPERED, b"$2b$04$" + b"." * 53)
NOW_MS = 1_800_000_000_000
LATER_MS = NOW_MS + 1_000_000
_event_ids = count(1)


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def record(user_id: int, topic: str = "user.updated") -> Record:
    return Record(topic, user_id, next(_event_ids), b"fact", "")


def new(user_id: int, name: str, email: str = "", credential: Credential = HASHED, bio: str = "") -> NewAccount:
    email = email or f"{name}@example.com"
    core = user_pb2.User(id=user_id, username=name, display_name=name, bio=bio).SerializeToString()
    account = Account(user_id, core, email, ACTIVE, 1, frozenset({user_pb2.ROLE_MODERATOR}))
    return NewAccount(account, name.lower(), email.lower(), credential, record(user_id, "user.created"))


def session(session_id: int, user_id: int, used_ms: int = NOW_MS, expires_ms: int = LATER_MS) -> Session:
    return Session(session_id, user_id, used_ms, expires_ms, "tests")


async def create(stores: IdentityStores, user_id: int, name: str, email: str = "") -> NewAccount:
    made = new(user_id, name, email)
    await stores.accounts.create(made, session(user_id * 100, user_id), digest(f"first {user_id}"))
    return made


async def names(stores: IdentityStores, ids: Sequence[int]) -> list[tuple[int, str, int, int]]:
    entries = (await stores.accounts.refs(ids)).refs
    return [(e.user_id, user_pb2.UserRef.FromString(e.ref).display_name, e.state, e.version) for e in entries]


async def test_account_is_found_by_id_username_and_email(stores: IdentityStores) -> None:
    made = await create(stores, 1, "Alice")
    assert await stores.accounts.batch_get([1]) == [made.account]
    for found in (await stores.accounts.by_username("alice"), await stores.accounts.by_email("alice@example.com")):
        assert found == (made.account, HASHED)
    assert await stores.credentials.get(1) == HASHED
    assert await names(stores, [1]) == [(1, "Alice", ACTIVE, 1)]


async def test_account_lookup_unknown_returns_none(stores: IdentityStores) -> None:
    assert await stores.accounts.batch_get([1]) == []
    assert await names(stores, [1, 2]) == []
    assert await stores.accounts.by_username("alice") is None
    assert await stores.accounts.by_email("alice@example.com") is None
    assert await stores.credentials.get(1) is None
    assert await stores.accounts.scan(0, 10) == []
    assert await stores.accounts.batch_get([]) == []


async def test_accounts_and_refs_keep_requested_order(stores: IdentityStores) -> None:
    await stores.accounts.import_accounts([new(user_id, f"user{user_id}") for user_id in range(1, 1_001)])
    ids = [*range(1_000, 0, -1), 5_000, 7, 7]
    found = [account.user_id for account in await stores.accounts.batch_get(ids)]
    assert found == [entry[0] for entry in await names(stores, ids)] == [*range(1_000, 0, -1), 7, 7]


@pytest.mark.parametrize(
    ("name", "email", "reason"),
    [("ALICE", "other@example.com", "USERNAME_TAKEN"), ("other", "ALICE@example.com", "EMAIL_TAKEN")],
)
async def test_create_with_taken_username_or_email_already_exists(
    stores: IdentityStores, name: str, email: str, reason: str
) -> None:
    await create(stores, 1, "Alice")
    with pytest.raises(errors.RoostError) as caught:
        await create(stores, 2, name, email)
    assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS
    assert caught.value.reason == reason
    assert await stores.accounts.batch_get([2]) == []
    assert await stores.sessions.rotate(2, 200, digest("first 2"), digest("next"), NOW_MS, LATER_MS) is Rotation.ENDED


async def test_create_concurrent_with_one_username_succeeds_once(stores: IdentityStores) -> None:
    claims = (create(stores, user_id, "alice", f"a{user_id}@example.com") for user_id in range(1, 11))
    answers = await asyncio.gather(*claims, return_exceptions=True)
    assert sum(isinstance(answer, NewAccount) for answer in answers) == 1
    assert len(await stores.accounts.scan(0, 100)) == 1


async def test_import_repeated_returns_same_ids(stores: IdentityStores) -> None:
    first = await stores.accounts.import_accounts(
        [new(1, "alice"), new(2, "bob", credential=Credential(Scheme.NONE, b""))]
    )
    again = await stores.accounts.import_accounts(
        [new(11, "bob", credential=Credential(Scheme.NONE, b"")), new(12, "carol"), new(13, "alice"), new(14, "carol")]
    )
    assert (first, again) == ([1, 2], [2, 12, 1, 12])
    assert [account.user_id for account in await stores.accounts.scan(0, 100)] == [1, 2, 12]


@pytest.mark.parametrize(
    "other",
    [
        new(3, "alice", "other@example.com"),
        new(3, "alice", bio="other"),
        new(3, "alice", credential=Credential(Scheme.NONE, b"")),
        new(3, "other", "alice@example.com"),
    ],
    ids=["address", "profile", "credential", "name"],
)
async def test_import_contradicting_stored_account_stores_nothing(stores: IdentityStores, other: NewAccount) -> None:
    await stores.accounts.import_accounts([new(1, "alice")])
    with pytest.raises(errors.RoostError, match="ALREADY_EXISTS"):
        await stores.accounts.import_accounts([new(2, "bob"), other])
    assert await stores.accounts.batch_get([2, 3]) == []
    assert await stores.accounts.by_username("bob") is None


async def test_replace_is_read_immediately(stores: IdentityStores) -> None:
    await create(stores, 1, "alice")
    (account,) = await stores.accounts.batch_get([1])
    core = user_pb2.User(id=1, username="alice", display_name="Queen").SerializeToString()
    assert await stores.accounts.replace(account._replace(core=core, version=2), [record(1)])
    assert await names(stores, [1]) == [(1, "Queen", ACTIVE, 2)]
    assert (await stores.accounts.by_username("alice")) == (account._replace(core=core, version=2), HASHED)


async def test_replace_over_another_version_returns_false(stores: IdentityStores) -> None:
    await create(stores, 1, "alice")
    (account,) = await stores.accounts.batch_get([1])
    changes = (stores.accounts.replace(account._replace(state=SUSPENDED, version=2), [record(1)]) for _ in range(5))
    assert sorted(await asyncio.gather(*changes)) == [False, False, False, False, True]
    assert not await stores.accounts.replace(account._replace(version=4), [record(1)])
    assert not await stores.accounts.replace(account._replace(user_id=9, version=2), [record(9)])
    assert (await names(stores, [1]))[0][2:] == (SUSPENDED, 2)


async def test_scan_ascends_by_id(stores: IdentityStores) -> None:
    for user_id in (3, 1, 2):
        await create(stores, user_id, f"user{user_id}")
    assert [account.user_id for account in await stores.accounts.scan(0, 2)] == [1, 2]
    assert [account.user_id for account in await stores.accounts.scan(2, 2)] == [3]


async def test_rotate_successor_replaces_token(stores: IdentityStores) -> None:
    await create(stores, 1, "alice")
    token = "first 1"
    for turn in range(5):
        following = f"turn {turn}"
        outcome = await stores.sessions.rotate(1, 100, digest(token), digest(following), NOW_MS + turn, LATER_MS)
        assert outcome is Rotation.DONE
        token = following
    (found,) = await stores.sessions.list_live(1, NOW_MS, 0, 10)
    assert (found.session_id, found.used_ms, found.expires_ms) == (100, NOW_MS + 4, LATER_MS)


async def test_rotate_repeat_is_valid_during_grace_period(stores: IdentityStores) -> None:
    await create(stores, 1, "alice")

    async def rotate(presented: str, successor: str, after_ms: int) -> Rotation:
        return await stores.sessions.rotate(1, 100, digest(presented), digest(successor), NOW_MS + after_ms, LATER_MS)

    for after_ms in (0, 1, 500_000):
        assert await rotate("first 1", "a", after_ms) is Rotation.DONE
    for after_ms in (600_000, 600_000 + REFRESH_GRACE_MS, 700_000):
        assert await rotate("a", "b", after_ms) is Rotation.DONE
    assert await rotate("first 1", "a", 600_000 + REFRESH_GRACE_MS) is Rotation.DONE
    # A repeat changes nothing, not even the time of the first use.
    (found,) = await stores.sessions.list_live(1, NOW_MS, 0, 10)
    assert found.used_ms == NOW_MS + 600_000
    assert await rotate("first 1", "a", 600_001 + REFRESH_GRACE_MS) is Rotation.REUSED
    assert await rotate("x", "y", 600_000) is Rotation.REUSED
    assert await rotate("b", "c", 700_000) is Rotation.DONE
    assert await rotate("a", "b", 700_000) is Rotation.DONE
    # Two successors were used since the token was.
    assert await rotate("first 1", "a", 700_000) is Rotation.REUSED
    # None of these attempts changed the session.
    assert await rotate("c", "d", 700_000) is Rotation.DONE


async def test_rotate_parallel_with_one_token_all_succeed(stores: IdentityStores) -> None:
    await create(stores, 1, "alice")
    for presented, successor in (("first 1", "a"), ("a", "b"), ("b", "c")):
        outcomes = await asyncio.gather(
            *(stores.sessions.rotate(1, 100, digest(presented), digest(successor), NOW_MS, LATER_MS) for _ in range(5))
        )
        assert set(outcomes) == {Rotation.DONE}


async def test_rotate_after_expiry_returns_ended(stores: IdentityStores) -> None:
    await create(stores, 1, "alice")
    assert (
        await stores.sessions.rotate(1, 100, digest("first 1"), digest("a"), LATER_MS, LATER_MS + 1) is Rotation.ENDED
    )
    assert await stores.sessions.list_live(1, LATER_MS, 0, 10) == []
    assert len(await stores.sessions.list_live(1, LATER_MS - 1, 0, 10)) == 1


async def test_sessions_page_newest_first(stores: IdentityStores) -> None:
    await create(stores, 1, "alice")
    await create(stores, 2, "bob")
    for session_id in (101, 102, 103):
        assert await stores.sessions.open(session(session_id, 1), digest(f"{session_id}"), HASHED)
    assert [s.session_id for s in await stores.sessions.list_live(1, NOW_MS, 0, 2)] == [103, 102]
    assert [s.session_id for s in await stores.sessions.list_live(1, NOW_MS, 102, 10)] == [101, 100]


async def test_open_session_above_bound_ends_least_recently_used(stores: IdentityStores) -> None:
    await create(stores, 1, "alice")
    for number in range(1, MAX_SESSIONS + 1):
        assert await stores.sessions.open(session(1_000 + number, 1, NOW_MS + number), digest(f"{number}"), HASHED)
    left = {s.session_id for s in await stores.sessions.list_live(1, NOW_MS, 0, 2 * MAX_SESSIONS)}
    assert left == {1_000 + number for number in range(1, MAX_SESSIONS + 1)}


async def test_end_session_by_owner_succeeds_once(stores: IdentityStores) -> None:
    await create(stores, 1, "alice")
    assert not await stores.sessions.end(100, 2, [record(2)])
    assert await stores.sessions.end(100, 1, [record(1)])
    assert not await stores.sessions.end(100, 1, [record(1)])
    assert await stores.sessions.rotate(1, 100, digest("first 1"), digest("a"), NOW_MS, LATER_MS) is Rotation.ENDED


async def test_open_session_of_inactive_account_returns_false(stores: IdentityStores) -> None:
    await create(stores, 1, "alice")
    (account,) = await stores.accounts.batch_get([1])
    assert await stores.accounts.replace(account._replace(state=SUSPENDED, version=2), [record(1)], end_sessions=True)
    assert await stores.sessions.list_live(1, NOW_MS, 0, 10) == []
    assert not await stores.sessions.open(session(101, 1), digest("a"), HASHED)
    assert not await stores.sessions.open(session(102, 9), digest("a"), HASHED)


async def test_set_credential_ends_other_sessions(stores: IdentityStores) -> None:
    await create(stores, 1, "alice")
    await create(stores, 2, "bob")
    await stores.sessions.open(session(101, 1), digest("a"), HASHED)
    changed = Credential(Scheme.PEPPERED, b"$2b$05$" + b"." * 53)
    assert await stores.credentials.replace(1, HASHED, changed, 101, [record(1)])
    assert await stores.credentials.get(1) == changed
    assert [s.session_id for s in await stores.sessions.list_live(1, NOW_MS, 0, 10)] == [101]
    assert await stores.credentials.replace(1, changed, HASHED, 0, [record(1)])
    assert await stores.sessions.list_live(1, NOW_MS, 0, 10) == []
    assert len(await stores.sessions.list_live(2, NOW_MS, 0, 10)) == 1


@pytest.mark.parametrize(
    "other", [Credential(Scheme.PEPPERED, b"$2b$05$" + b"." * 53), HASHED._replace(scheme=Scheme.IMPORTED)]
)
async def test_open_session_with_changed_credential_stores_nothing(stores: IdentityStores, other: Credential) -> None:
    await create(stores, 1, "alice")
    assert await stores.credentials.replace(1, HASHED, other, 0, [record(1)])
    assert not await stores.sessions.open(session(101, 1), digest("a"), HASHED)
    assert await stores.sessions.list_live(1, NOW_MS, 0, 10) == []
    assert await stores.sessions.rotate(1, 101, digest("a"), digest("b"), NOW_MS, LATER_MS) is Rotation.ENDED
    assert await stores.sessions.open(session(102, 1), digest("a"), other)


async def test_set_credential_with_changed_credential_stores_nothing(stores: IdentityStores) -> None:
    await create(stores, 1, "alice")
    changed = [Credential(Scheme.PEPPERED, b"$2b$0%d$" % number + b"." * 53) for number in range(5, 9)]
    outcomes = await asyncio.gather(*(stores.credentials.replace(1, HASHED, one, 100, [record(1)]) for one in changed))
    assert sorted(outcomes) == [False, False, False, True]
    assert await stores.credentials.get(1) == changed[outcomes.index(True)]
    assert not await stores.credentials.replace(1, HASHED, HASHED, 0, [record(1)])
    assert not await stores.credentials.replace(9, HASHED, HASHED, 0, [record(9)])
    assert [s.session_id for s in await stores.sessions.list_live(1, NOW_MS, 0, 10)] == [100]


async def test_open_session_concurrent_with_password_change_leaves_no_session(stores: IdentityStores) -> None:
    await create(stores, 1, "alice")
    changed = Credential(Scheme.PEPPERED, b"$2b$05$" + b"." * 53)
    opened = [stores.sessions.open(session(200 + number, 1), digest(f"{number}"), HASHED) for number in range(10)]
    await asyncio.gather(*opened[:5], stores.credentials.replace(1, HASHED, changed, 0, [record(1)]), *opened[5:])
    assert await stores.sessions.list_live(1, NOW_MS, 0, 20) == []


async def test_secret_is_created_once(stores: IdentityStores) -> None:
    makers = (partial(bytes, [number]) for number in range(1, 6))
    values = await asyncio.gather(*(stores.secrets.get_or_create("key", make) for make in makers))
    assert len(set(values)) == 1
    assert await stores.secrets.get_or_create("key", lambda: b"n") == values[0]
    assert await stores.secrets.get_or_create("other", lambda: b"another") == b"another"
