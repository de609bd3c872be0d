"""Profiles, their changes, and account states."""

from __future__ import annotations

import asyncio
from typing import Any

import bcrypt
import grpc
import pytest
from roost.identity.v1 import user_pb2
from roost.identity.v1 import user_service_pb2 as pb

from services.identity import user_service
from services.platform.rpc import errors
from tests.unit.services.identity.conftest import Identity
from tests.waiting import run_ready_tasks, wait_until

NOT_FOUND = grpc.StatusCode.NOT_FOUND


def refused(code: grpc.StatusCode) -> Any:
    return pytest.raises(errors.RoostError, match=code.name)


async def people(identity: Identity, *names: str) -> list[int]:
    request = pb.ImportUsersRequest()
    for name in names:
        request.users.add(username=name, email=f"{name}@example.com")
    return list((await identity.users.ImportUsers(request, None)).user_ids)


async def suspend(identity: Identity, user_id: int) -> None:
    await identity.users.SuspendUser(pb.SuspendUserRequest(user_id=user_id, action_id=1), None)


async def reinstate(identity: Identity, user_id: int) -> None:
    await identity.users.ReinstateUser(pb.ReinstateUserRequest(user_id=user_id, action_id=1), None)


async def delete(identity: Identity, user_id: int) -> None:
    with identity.as_user(user_id):
        await identity.users.DeleteUser(pb.DeleteUserRequest(user_id=user_id), None)


async def update(identity: Identity, user_id: int, **changes: str) -> user_pb2.User:
    with identity.as_user(user_id):
        return (await identity.users.UpdateUser(pb.UpdateUserRequest(user_id=user_id, **changes), None)).user


async def test_get_user_hydrates_from_graph_and_tweet(identity: Identity) -> None:
    alice, bob = await people(identity, "alice", "bob")
    identity.graph.counts[bob] = (3, 2)
    identity.tweet.counts[bob] = 7
    identity.graph.ties[alice, bob] = {"following": True, "muting": True}
    with identity.as_user(alice):
        user = await identity.get(bob)
    assert user.metrics == user_pb2.UserMetrics(followers=3, following=2, tweets=7)
    assert user.viewer == user_pb2.UserViewer(following=True, muting=True)
    assert user.email == ""


async def test_get_user_without_reader_requests_no_relationships(identity: Identity) -> None:
    (bob,) = await people(identity, "bob")
    user = await identity.get(bob)
    assert not user.HasField("viewer")
    assert user.HasField("metrics")
    assert user.metrics.followers == 0
    assert user.email == ""


async def test_get_user_returns_email_to_owner_only(identity: Identity) -> None:
    alice, bob = await people(identity, "alice", "bob")
    with identity.as_user(alice):
        request = pb.BatchGetUsersRequest(ids=[bob, alice])
        users = (await identity.users.BatchGetUsers(request, None)).users
    assert [user.email for user in users] == ["", "alice@example.com"]
    assert [user.HasField("viewer") for user in users] == [True, False]


async def test_get_user_who_blocks_reader_returns_blocked_by_only(identity: Identity) -> None:
    alice, bob = await people(identity, "alice", "bob")
    await update(identity, bob, bio="secret", display_name="Bob B.")
    identity.graph.counts[bob] = (3, 2)
    identity.graph.ties[alice, bob] = {"blocked_by": True, "blocking": True}
    with identity.as_user(alice):
        by_id = await identity.get(bob)
        request = pb.GetUserByUsernameRequest(username="BOB")
        by_name = (await identity.users.GetUserByUsername(request, None)).user
        batch = (await identity.users.BatchGetUsers(pb.BatchGetUsersRequest(ids=[bob]), None)).users[0]
    expected = user_pb2.User(id=bob, username="bob", viewer=user_pb2.UserViewer(blocked_by=True))
    assert by_id == by_name == batch == expected


@pytest.mark.parametrize("down", ["graph", "tweet"])
async def test_get_user_without_counts_has_no_metrics(identity: Identity, down: str) -> None:
    (bob,) = await people(identity, "bob")
    getattr(identity, down).down = True
    for reader in (0, bob):
        with identity.as_user(reader):
            user = await identity.get(bob)
        assert user.username == "bob"
        assert not user.HasField("metrics")


@pytest.mark.parametrize("fault", ["graph is down", "graph leaves somebody out"])
async def test_get_user_without_relationships_is_unavailable(identity: Identity, fault: str) -> None:
    alice, bob, carol = await people(identity, "alice", "bob", "carol")
    identity.graph.ties[alice, bob] = {"blocked_by": True}
    identity.graph.down = fault == "graph is down"
    identity.graph.answered = [carol]
    batch = pb.BatchGetUsersRequest(ids=[carol, bob])
    with identity.as_user(alice):
        for read in (identity.get(bob), identity.users.BatchGetUsers(batch, None)):
            with refused(grpc.StatusCode.UNAVAILABLE) as caught:
                await read
            assert caught.value.reason == "RELATIONSHIPS_UNKNOWN"
        # The reader's own profile needs no relationships.
        assert (await identity.get(alice)).username == "alice"


async def test_batch_get_users_calls_each_service_once(identity: Identity) -> None:
    ids = await people(identity, *(f"user{number}" for number in range(20)))
    reader = ids[0]
    identity.graph.calls = identity.tweet.calls = 0
    with identity.as_user(reader):
        request = pb.BatchGetUsersRequest(ids=[*reversed(ids), 5])
        users = (await identity.users.BatchGetUsers(request, None)).users
    assert [user.id for user in users] == ids[::-1]
    assert (identity.graph.calls, identity.tweet.calls) == (2, 1)


@pytest.mark.parametrize("hide", [suspend, delete])
async def test_get_user_inactive_is_not_found(identity: Identity, hide: Any) -> None:
    alice, bob = await people(identity, "alice", "bob")
    await hide(identity, bob)
    with refused(NOT_FOUND):
        await identity.get(bob)
    with refused(NOT_FOUND):
        await identity.users.GetUserByUsername(pb.GetUserByUsernameRequest(username="bob"), None)
    users = (await identity.users.BatchGetUsers(pb.BatchGetUsersRequest(ids=[bob, alice]), None)).users
    assert [user.id for user in users] == [alice]
    with refused(NOT_FOUND):
        await identity.get(1)


async def test_update_user_changes_set_fields_only(identity: Identity) -> None:
    (alice,) = await people(identity, "alice")
    await update(identity, alice, bio="first", location="here")
    user = await update(identity, alice, bio="", display_name="A\u030a")
    assert (user.bio, user.location, user.display_name, user.username) == ("", "here", "Å", "alice")
    assert user.email == "alice@example.com"
    assert await identity.get(alice) == user_pb2.User(
        id=alice,
        username="alice",
        display_name="Å",
        location="here",
        created_at=user.created_at,
        metrics=user_pb2.UserMetrics(),
    )
    updates = [event.user_updated.version for event in await identity.events() if event.HasField("user_updated")]
    assert updates == [2, 3]


async def test_update_user_without_change_publishes_nothing(identity: Identity) -> None:
    (alice,) = await people(identity, "alice")
    await update(identity, alice)
    await update(identity, alice, display_name="alice")
    assert await identity.facts() == ["user_created"]


async def test_update_user_parallel_applies_all(identity: Identity) -> None:
    (alice,) = await people(identity, "alice")
    changes = [{"bio": "b"}, {"location": "l"}, {"website": "https://a.b"}, {"display_name": "d"}]
    await asyncio.gather(*(update(identity, alice, **change) for change in changes))
    user = await identity.get(alice)
    assert (user.bio, user.location, user.website, user.display_name) == ("b", "l", "https://a.b", "d")


async def test_update_user_concurrent_calls_are_serialised(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    (alice,) = await people(identity, "alice")
    # The lock serialises the changes, so each first attempt succeeds.
    monkeypatch.setattr(user_service, "MAX_ATTEMPTS", 1)
    updated = await asyncio.gather(*(update(identity, alice, bio=f"bio {number}") for number in range(50)))
    assert [user.bio for user in updated] == [f"bio {number}" for number in range(50)]
    assert (await identity.stores.accounts.batch_get([alice]))[0].version == 51


async def test_update_user_after_lost_race_is_retried(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    (alice,) = await people(identity, "alice")
    monkeypatch.setattr(user_service, "MAX_BACKOFF_S", 0.0)
    replace, lost = identity.stores.accounts.replace, [False] * 10

    async def contended(*values: Any, **options: Any) -> bool:
        return lost.pop() if lost else await replace(*values, **options)

    monkeypatch.setattr(identity.stores.accounts, "replace", contended)
    assert (await update(identity, alice, bio="mine")).bio == "mine"
    lost += [False] * user_service.MAX_ATTEMPTS
    with refused(grpc.StatusCode.UNAVAILABLE) as caught:
        await update(identity, alice, bio="never")
    assert caught.value.reason == "CONTENDED"
    assert not lost


async def test_update_user_invalid_stores_nothing(identity: Identity) -> None:
    (alice,) = await people(identity, "alice")
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await update(identity, alice, bio="fine", display_name="\u200b")
    assert (await identity.get(alice)).bio == ""


async def test_state_changes_are_idempotent_and_published(identity: Identity) -> None:
    (alice,) = await people(identity, "alice")
    for _ in range(2):
        await suspend(identity, alice)
    for _ in range(2):
        await reinstate(identity, alice)
    for _ in range(2):
        await delete(identity, alice)
    # Suspending or reinstating does not reactivate a deactivated account.
    await suspend(identity, alice)
    await reinstate(identity, alice)
    assert await identity.facts() == ["user_created", "user_suspended", "user_reinstated", "user_deleted"]
    versions = [event.user_deleted.version for event in await identity.events()]
    assert versions[-1] == 4
    with refused(NOT_FOUND):
        await identity.get(alice)
    with refused(NOT_FOUND):
        await suspend(identity, 1)


async def test_delete_user_while_suspended_is_denied(identity: Identity) -> None:
    (alice,) = await people(identity, "alice")
    await suspend(identity, alice)
    with refused(grpc.StatusCode.PERMISSION_DENIED):
        await delete(identity, alice)
    with refused(NOT_FOUND):
        await update(identity, alice, bio="hidden")


async def test_batch_get_user_refs_returns_state_of_last_write(identity: Identity) -> None:
    alice, bob = await people(identity, "alice", "bob")

    async def refs() -> list[pb.UserRefEntry]:
        request = pb.BatchGetUserRefsRequest(ids=[bob, 5, alice, bob])
        return entries_of(await identity.users.BatchGetUserRefs(request, None))

    before = await refs()
    assert [entry.user_id for entry in before] == [bob, alice, bob]
    assert user_pb2.UserRef.FromString(before[1].ref) == user_pb2.UserRef(
        id=alice, username="alice", display_name="alice"
    )
    await update(identity, alice, display_name="Queen")
    await suspend(identity, bob)
    after = await refs()
    assert user_pb2.UserRef.FromString(after[1].ref).display_name == "Queen"
    assert [entry.state for entry in after] == [
        user_pb2.USER_STATE_SUSPENDED,
        user_pb2.USER_STATE_ACTIVE,
        user_pb2.USER_STATE_SUSPENDED,
    ]
    assert [entry.version for entry in after] == [2, 2, 2]


async def test_update_user_cancelled_after_commit_is_read(identity: Identity) -> None:
    """A caller may be cancelled between commit and cache update; readers must still see the new state."""
    ids = await people(identity, *(f"user{number}" for number in range(30)))
    before = asyncio.all_tasks()
    for user_id in ids:
        task = asyncio.create_task(suspend(identity, user_id))
        for _ in range(user_id % 7):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    # Changes that outlive their callers end, and so do the writes that are queued.
    await wait_until(lambda: asyncio.all_tasks() <= before)
    await identity.stores.db.write(lambda _: None)
    await run_ready_tasks()
    stored = {account.user_id: account.state for account in await identity.stores.accounts.scan(0, 100)}
    request = pb.BatchGetUserRefsRequest(ids=ids)
    shown = {entry.user_id: entry.state for entry in entries_of(await identity.users.BatchGetUserRefs(request, None))}
    assert shown == stored


async def test_import_users_is_idempotent_and_atomic(identity: Identity) -> None:
    alice, bob = await people(identity, "alice", "bob")
    again = await people(identity, "bob", "carol", "alice", "carol")
    assert again == [bob, again[1], alice, again[1]]
    request = pb.ImportUsersRequest()
    request.users.add(username="dave", email="dave@example.com")
    request.users.add(username="alice", email="alice@example.com", profile=user_pb2.Profile(bio="other"))
    with refused(grpc.StatusCode.ALREADY_EXISTS):
        await identity.users.ImportUsers(request, None)
    with refused(NOT_FOUND):
        await identity.users.GetUserByUsername(pb.GetUserByUsernameRequest(username="dave"), None)
    assert await identity.facts() == ["user_created"] * 3


async def test_login_with_imported_hash_succeeds(identity: Identity) -> None:
    request = pb.ImportUsersRequest()
    hashed = bcrypt.hashpw(b"from elsewhere", bcrypt.gensalt(4)).decode()
    request.users.add(username="alice", email="alice@example.com", password_hash=hashed)
    await identity.users.ImportUsers(request, None)
    await identity.login("alice", "from elsewhere")
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        await identity.login("alice", "from elsewhere?")
    await people(identity, "bob")
    for password in ("", "anything", "*"):
        with refused(grpc.StatusCode.UNAUTHENTICATED):
            await identity.login("bob", password)


async def test_import_users_invalid_names_index_of_user(identity: Identity) -> None:
    request = pb.ImportUsersRequest()
    request.users.add(username="alice", email="alice@example.com")
    request.users.add(username="bob", email="bob@example.com", profile=user_pb2.Profile(bio="a\0b"))
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as caught:
        await identity.users.ImportUsers(request, None)
    assert caught.value.violations[0].field == "users[1].profile.bio"


async def test_scan_users_returns_all_states(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.identity.user_service.ACCOUNTS_PER_SCAN_MESSAGE", 2)
    ids = await people(identity, *(f"user{number}" for number in range(5)))
    await suspend(identity, ids[1])
    await delete(identity, ids[2])
    pages = [page async for page in identity.users.ScanUsers(pb.ScanUsersRequest(after_id=ids[0]), None)]
    found = [(entry.user.id, entry.state) for page in pages for entry in page.users]
    assert [len(page.users) for page in pages] == [2, 2]
    assert found == [
        (ids[1], user_pb2.USER_STATE_SUSPENDED),
        (ids[2], user_pb2.USER_STATE_DEACTIVATED),
        (ids[3], user_pb2.USER_STATE_ACTIVE),
        (ids[4], user_pb2.USER_STATE_ACTIVE),
    ]
    assert not any(entry.user.email for page in pages for entry in page.users)


async def test_token_of_suspended_user_is_revoked_by_event(identity: Identity) -> None:
    alice = await identity.sign_up("alice")
    await identity.verifier.verify(alice.access_token)
    await suspend(identity, alice.user.id)
    event = (await identity.events())[-1]
    identity.revocations.revoke_user(event.user_suspended.user_id, event.occurred_at.ToNanoseconds() / 1e9)
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        await identity.verifier.verify(alice.access_token)


def entries_of(answer: pb.SerializedUserRefs) -> list[pb.UserRefEntry]:
    """Returns the declared response type of a wire response."""
    return list(pb.BatchGetUserRefsResponse.FromString(answer.SerializeToString()).refs)
