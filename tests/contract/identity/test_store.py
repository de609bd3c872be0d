"""Contract of identity's store, for every adapter."""

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
from services.identity.store import MAX_SESSIONS, Account, NewAccount, Rotation, Session, Store
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


async def create(store: Store, user_id: int, name: str, email: str = "") -> NewAccount:
    made = new(user_id, name, email)
    await store.create(made, session(user_id * 100, user_id), digest(f"first {user_id}"))
    return made


async def names(store: Store, ids: Sequence[int]) -> list[tuple[int, str, int, int]]:
    entries = (await store.refs(ids)).refs
    return [(e.user_id, user_pb2.UserRef.FromString(e.ref).display_name, e.state, e.version) for e in entries]


async def test_account_is_found_by_id_username_and_email(store: Store) -> None:
    made = await create(store, 1, "Alice")
    assert await store.accounts([1]) == [made.account]
    for found in (await store.by_username("alice"), await store.by_email("alice@example.com")):
        assert found == (made.account, HASHED)
    assert await store.credential(1) == HASHED
    assert await names(store, [1]) == [(1, "Alice", ACTIVE, 1)]


async def test_account_lookup_unknown_returns_none(store: Store) -> None:
    assert await store.accounts([1]) == []
    assert await names(store, [1, 2]) == []
    assert await store.by_username("alice") is None
    assert await store.by_email("alice@example.com") is None
    assert await store.credential(1) is None
    assert await store.scan(0, 10) == []
    assert await store.accounts([]) == []


async def test_accounts_and_refs_keep_requested_order(store: Store) -> None:
    await store.import_accounts([new(user_id, f"user{user_id}") for user_id in range(1, 1_001)])
    ids = [*range(1_000, 0, -1), 5_000, 7, 7]
    found = [account.user_id for account in await store.accounts(ids)]
    assert found == [entry[0] for entry in await names(store, ids)] == [*range(1_000, 0, -1), 7, 7]


@pytest.mark.parametrize(
    ("name", "email", "reason"),
    [("ALICE", "other@example.com", "USERNAME_TAKEN"), ("other", "ALICE@example.com", "EMAIL_TAKEN")],
)
async def test_create_with_taken_username_or_email_already_exists(
    store: Store, name: str, email: str, reason: str
) -> None:
    await create(store, 1, "Alice")
    with pytest.raises(errors.RoostError) as caught:
        await create(store, 2, name, email)
    assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS
    assert caught.value.reason == reason
    assert await store.accounts([2]) == []
    assert await store.rotate(2, 200, digest("first 2"), digest("next"), NOW_MS, LATER_MS) is Rotation.ENDED


async def test_create_concurrent_with_one_username_succeeds_once(store: Store) -> None:
    claims = (create(store, user_id, "alice", f"a{user_id}@example.com") for user_id in range(1, 11))
    answers = await asyncio.gather(*claims, return_exceptions=True)
    assert sum(isinstance(answer, NewAccount) for answer in answers) == 1
    assert len(await store.scan(0, 100)) == 1


async def test_import_repeated_returns_same_ids(store: Store) -> None:
    first = await store.import_accounts([new(1, "alice"), new(2, "bob", credential=Credential(Scheme.NONE, b""))])
    again = await store.import_accounts(
        [new(11, "bob", credential=Credential(Scheme.NONE, b"")), new(12, "carol"), new(13, "alice"), new(14, "carol")]
    )
    assert (first, again) == ([1, 2], [2, 12, 1, 12])
    assert [account.user_id for account in await store.scan(0, 100)] == [1, 2, 12]


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
async def test_import_contradicting_stored_account_stores_nothing(store: Store, other: NewAccount) -> None:
    await store.import_accounts([new(1, "alice")])
    with pytest.raises(errors.RoostError, match="ALREADY_EXISTS"):
        await store.import_accounts([new(2, "bob"), other])
    assert await store.accounts([2, 3]) == []
    assert await store.by_username("bob") is None


async def test_replace_is_read_immediately(store: Store) -> None:
    await create(store, 1, "alice")
    (account,) = await store.accounts([1])
    core = user_pb2.User(id=1, username="alice", display_name="Queen").SerializeToString()
    assert await store.replace(account._replace(core=core, version=2), [record(1)])
    assert await names(store, [1]) == [(1, "Queen", ACTIVE, 2)]
    assert (await store.by_username("alice")) == (account._replace(core=core, version=2), HASHED)


async def test_replace_over_another_version_returns_false(store: Store) -> None:
    await create(store, 1, "alice")
    (account,) = await store.accounts([1])
    changes = (store.replace(account._replace(state=SUSPENDED, version=2), [record(1)]) for _ in range(5))
    assert sorted(await asyncio.gather(*changes)) == [False, False, False, False, True]
    assert not await store.replace(account._replace(version=4), [record(1)])
    assert not await store.replace(account._replace(user_id=9, version=2), [record(9)])
    assert (await names(store, [1]))[0][2:] == (SUSPENDED, 2)


async def test_scan_ascends_by_id(store: Store) -> None:
    for user_id in (3, 1, 2):
        await create(store, user_id, f"user{user_id}")
    assert [account.user_id for account in await store.scan(0, 2)] == [1, 2]
    assert [account.user_id for account in await store.scan(2, 2)] == [3]


async def test_rotate_successor_replaces_token(store: Store) -> None:
    await create(store, 1, "alice")
    token = "first 1"
    for turn in range(5):
        following = f"turn {turn}"
        outcome = await store.rotate(1, 100, digest(token), digest(following), NOW_MS + turn, LATER_MS)
        assert outcome is Rotation.DONE
        token = following
    (found,) = await store.sessions(1, NOW_MS, 0, 10)
    assert (found.session_id, found.used_ms, found.expires_ms) == (100, NOW_MS + 4, LATER_MS)


async def test_rotate_repeat_is_valid_during_grace_period(store: Store) -> None:
    await create(store, 1, "alice")

    async def rotate(presented: str, successor: str, after_ms: int) -> Rotation:
        return await store.rotate(1, 100, digest(presented), digest(successor), NOW_MS + after_ms, LATER_MS)

    for after_ms in (0, 1, 500_000):
        assert await rotate("first 1", "a", after_ms) is Rotation.DONE
    for after_ms in (600_000, 600_000 + REFRESH_GRACE_MS, 700_000):
        assert await rotate("a", "b", after_ms) is Rotation.DONE
    assert await rotate("first 1", "a", 600_000 + REFRESH_GRACE_MS) is Rotation.DONE
    # A repeat changes nothing, not even the time of the first use.
    (found,) = await store.sessions(1, NOW_MS, 0, 10)
    assert found.used_ms == NOW_MS + 600_000
    assert await rotate("first 1", "a", 600_001 + REFRESH_GRACE_MS) is Rotation.REUSED
    assert await rotate("x", "y", 600_000) is Rotation.REUSED
    assert await rotate("b", "c", 700_000) is Rotation.DONE
    assert await rotate("a", "b", 700_000) is Rotation.DONE
    # Two successors were used since the token was.
    assert await rotate("first 1", "a", 700_000) is Rotation.REUSED
    # None of these attempts changed the session.
    assert await rotate("c", "d", 700_000) is Rotation.DONE


async def test_rotate_parallel_with_one_token_all_succeed(store: Store) -> None:
    await create(store, 1, "alice")
    for presented, successor in (("first 1", "a"), ("a", "b"), ("b", "c")):
        outcomes = await asyncio.gather(
            *(store.rotate(1, 100, digest(presented), digest(successor), NOW_MS, LATER_MS) for _ in range(5))
        )
        assert set(outcomes) == {Rotation.DONE}


async def test_rotate_after_expiry_returns_ended(store: Store) -> None:
    await create(store, 1, "alice")
    assert await store.rotate(1, 100, digest("first 1"), digest("a"), LATER_MS, LATER_MS + 1) is Rotation.ENDED
    assert await store.sessions(1, LATER_MS, 0, 10) == []
    assert len(await store.sessions(1, LATER_MS - 1, 0, 10)) == 1


async def test_sessions_page_newest_first(store: Store) -> None:
    await create(store, 1, "alice")
    await create(store, 2, "bob")
    for session_id in (101, 102, 103):
        assert await store.open_session(session(session_id, 1), digest(f"{session_id}"), HASHED)
    assert [s.session_id for s in await store.sessions(1, NOW_MS, 0, 2)] == [103, 102]
    assert [s.session_id for s in await store.sessions(1, NOW_MS, 102, 10)] == [101, 100]


async def test_open_session_above_bound_ends_least_recently_used(store: Store) -> None:
    await create(store, 1, "alice")
    for number in range(1, MAX_SESSIONS + 1):
        assert await store.open_session(session(1_000 + number, 1, NOW_MS + number), digest(f"{number}"), HASHED)
    left = {s.session_id for s in await store.sessions(1, NOW_MS, 0, 2 * MAX_SESSIONS)}
    assert left == {1_000 + number for number in range(1, MAX_SESSIONS + 1)}


async def test_end_session_by_owner_succeeds_once(store: Store) -> None:
    await create(store, 1, "alice")
    assert not await store.end_session(100, 2, [record(2)])
    assert await store.end_session(100, 1, [record(1)])
    assert not await store.end_session(100, 1, [record(1)])
    assert await store.rotate(1, 100, digest("first 1"), digest("a"), NOW_MS, LATER_MS) is Rotation.ENDED


async def test_open_session_of_inactive_account_returns_false(store: Store) -> None:
    await create(store, 1, "alice")
    (account,) = await store.accounts([1])
    assert await store.replace(account._replace(state=SUSPENDED, version=2), [record(1)], end_sessions=True)
    assert await store.sessions(1, NOW_MS, 0, 10) == []
    assert not await store.open_session(session(101, 1), digest("a"), HASHED)
    assert not await store.open_session(session(102, 9), digest("a"), HASHED)


async def test_set_credential_ends_other_sessions(store: Store) -> None:
    await create(store, 1, "alice")
    await create(store, 2, "bob")
    await store.open_session(session(101, 1), digest("a"), HASHED)
    changed = Credential(Scheme.PEPPERED, b"$2b$05$" + b"." * 53)
    assert await store.set_credential(1, HASHED, changed, 101, [record(1)])
    assert await store.credential(1) == changed
    assert [s.session_id for s in await store.sessions(1, NOW_MS, 0, 10)] == [101]
    assert await store.set_credential(1, changed, HASHED, 0, [record(1)])
    assert await store.sessions(1, NOW_MS, 0, 10) == []
    assert len(await store.sessions(2, NOW_MS, 0, 10)) == 1


@pytest.mark.parametrize(
    "other", [Credential(Scheme.PEPPERED, b"$2b$05$" + b"." * 53), HASHED._replace(scheme=Scheme.IMPORTED)]
)
async def test_open_session_with_changed_credential_stores_nothing(store: Store, other: Credential) -> None:
    await create(store, 1, "alice")
    assert await store.set_credential(1, HASHED, other, 0, [record(1)])
    assert not await store.open_session(session(101, 1), digest("a"), HASHED)
    assert await store.sessions(1, NOW_MS, 0, 10) == []
    assert await store.rotate(1, 101, digest("a"), digest("b"), NOW_MS, LATER_MS) is Rotation.ENDED
    assert await store.open_session(session(102, 1), digest("a"), other)


async def test_set_credential_with_changed_credential_stores_nothing(store: Store) -> None:
    await create(store, 1, "alice")
    changed = [Credential(Scheme.PEPPERED, b"$2b$0%d$" % number + b"." * 53) for number in range(5, 9)]
    outcomes = await asyncio.gather(*(store.set_credential(1, HASHED, one, 100, [record(1)]) for one in changed))
    assert sorted(outcomes) == [False, False, False, True]
    assert await store.credential(1) == changed[outcomes.index(True)]
    assert not await store.set_credential(1, HASHED, HASHED, 0, [record(1)])
    assert not await store.set_credential(9, HASHED, HASHED, 0, [record(9)])
    assert [s.session_id for s in await store.sessions(1, NOW_MS, 0, 10)] == [100]


async def test_open_session_concurrent_with_password_change_leaves_no_session(store: Store) -> None:
    await create(store, 1, "alice")
    changed = Credential(Scheme.PEPPERED, b"$2b$05$" + b"." * 53)
    opened = [store.open_session(session(200 + number, 1), digest(f"{number}"), HASHED) for number in range(10)]
    await asyncio.gather(*opened[:5], store.set_credential(1, HASHED, changed, 0, [record(1)]), *opened[5:])
    assert await store.sessions(1, NOW_MS, 0, 20) == []


async def test_secret_is_created_once(store: Store) -> None:
    makers = (partial(bytes, [number]) for number in range(5))
    values = await asyncio.gather(*(store.secret("key", make) for make in makers))
    assert len(set(values)) == 1
    assert await store.secret("key", lambda: b"n") == values[0]
    assert await store.secret("other", lambda: b"another") == b"another"
