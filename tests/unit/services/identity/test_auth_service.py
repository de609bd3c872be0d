"""Sign-up, log-in, refresh, log-out, sessions, minting."""

from __future__ import annotations

import asyncio
from typing import Any

import bcrypt
import grpc
import pytest
import structlog
from roost.identity.v1 import auth_service_pb2 as pb
from roost.identity.v1 import user_pb2, user_service_pb2

from services.identity.auth_service import MAX_AUDITED_IDS
from services.identity.store import rotation
from services.platform.rpc import context, errors
from tests.unit.services.identity.conftest import PASSWORD, Identity, Start

EXISTS = grpc.StatusCode.ALREADY_EXISTS
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED


def refused(code: grpc.StatusCode) -> Any:
    return pytest.raises(errors.RoostError, match=code.name)


async def test_sign_up_creates_account_and_session(identity: Identity) -> None:
    answer = await identity.sign_up("Alice", profile=user_pb2.Profile(bio="hi"))
    assert (answer.user.username, answer.user.display_name, answer.user.bio) == ("Alice", "Alice", "hi")
    assert answer.user.email == "Alice@example.com"
    assert answer.expires_in == 300
    actor = await identity.verifier.verify(answer.access_token)
    assert actor.user_id == answer.user.id
    (event,) = await identity.events()
    assert (event.key, event.user_created.user_id, event.user_created.username) == (
        actor.user_id,
        actor.user_id,
        "Alice",
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"username": "ALICE", "email": "other@example.com"}, "USERNAME_TAKEN"),
        ({"username": "alice2", "email": "Alice@Example.COM"}, "EMAIL_TAKEN"),
        ({"username": "Admin"}, "USERNAME_RESERVED"),
    ],
)
async def test_sign_up_with_taken_name_in_other_case_already_exists(
    identity: Identity, fields: dict[str, str], reason: str
) -> None:
    await identity.sign_up("alice")
    with refused(EXISTS) as caught:
        await identity.sign_up(**fields)
    assert caught.value.reason == reason
    assert await identity.facts() == ["user_created"]


@pytest.mark.parametrize("password", ["1234567890", "ALICE12345", "alice.liddell", "alice.liddell@example.com"])
async def test_sign_up_and_change_with_weak_password_are_invalid(identity: Identity, password: str) -> None:
    bad = grpc.StatusCode.INVALID_ARGUMENT
    with refused(bad) as caught:
        await identity.sign_up("alice", email="Alice.Liddell@example.com", password=password)
    assert [violation.field for violation in caught.value.violations] == ["password"]
    alice = (await identity.sign_up("alice", email="Alice.Liddell@example.com")).user.id
    with refused(bad) as caught:
        await change_password(identity, alice, new=password)
    assert [violation.field for violation in caught.value.violations] == ["new_password"]
    await identity.login("alice")


async def test_sign_up_concurrent_with_one_name_succeeds_once(identity: Identity) -> None:
    tries = [identity.sign_up("alice", email=f"a{number}@example.com") for number in range(10)]
    answers = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(answer, pb.SignUpResponse) for answer in answers) == 1
    assert {e.code for e in answers if isinstance(e, errors.RoostError)} == {EXISTS}


async def test_sign_up_with_invalid_profile_stores_nothing(identity: Identity) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await identity.sign_up("alice", profile=user_pb2.Profile(display_name="\u202eevil"))
    assert await identity.facts() == []
    await identity.sign_up("alice")


@pytest.mark.parametrize(("name", "free"), [("bob", True), ("ALICE", False), ("admin", False)])
async def test_check_username_availability_of_taken_and_reserved_is_false(
    identity: Identity, name: str, free: bool
) -> None:
    await identity.sign_up("alice")
    request = pb.CheckUsernameAvailabilityRequest(username=name)
    assert (await identity.auth.CheckUsernameAvailability(request, None)).available is free


@pytest.mark.parametrize(
    "fields",
    [
        {"username": "alice"},
        {"username": "ALICE"},
        {"email": "ALICE@example.com"},
        {"username": "alice@example.com"},
        {"username": "alice", "email": "alice@example.com"},
        {"username": "alice "},
        {"username": "@alice"},
        {"username": " Alice@example.com"},
        {"email": "alice@example.com "},
        {"username": " ", "email": "alice@example.com"},
    ],
)
async def test_login_by_username_or_email_succeeds(identity: Identity, fields: dict[str, str]) -> None:
    signed_up = await identity.sign_up("alice")
    answer = await identity.auth.Login(pb.LoginRequest(password=PASSWORD, **fields), None)
    assert answer.user.id == signed_up.user.id
    assert answer.user.email == "alice@example.com"
    actors = [await identity.verifier.verify(made.access_token) for made in (signed_up, answer)]
    assert actors[0].session_id != actors[1].session_id


async def test_login_failures_are_indistinguishable(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the response nor the work done reveals whether an account exists."""
    bob = await identity.sign_up("bob")
    await identity.sign_up("alice")
    with identity.as_user(bob.user.id):
        await identity.users.DeleteUser(user_service_pb2.DeleteUserRequest(user_id=bob.user.id), None)
    checked: list[bytes] = []
    check = bcrypt.checkpw

    def counted(given: bytes, known: bytes) -> bool:
        checked.append(known[:7])
        return check(given, known)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    answers = set()
    for fields in (
        {"username": "alice", "password": "wrong"},
        {"username": "nobody", "password": PASSWORD},
        {"email": "nobody@example.com", "password": PASSWORD},
        {"username": "alice", "email": "bob@example.com", "password": PASSWORD},
        {"username": "bob", "password": "wrong"},
        {"username": "bob", "password": "wrong", "reactivate": True},
    ):
        with refused(UNAUTHENTICATED) as caught:
            await identity.auth.Login(pb.LoginRequest(**fields), None)
        answers.add((caught.value.message, caught.value.reason))
    assert len(answers) == 1
    assert checked == [b"$2b$04$"] * 6


async def test_login_of_suspended_reveals_state_only_with_password(identity: Identity) -> None:
    alice = (await identity.sign_up("alice")).user.id
    await identity.users.SuspendUser(user_service_pb2.SuspendUserRequest(user_id=alice, action_id=1), None)
    with refused(UNAUTHENTICATED):
        await identity.login("alice", "wrong password")
    with refused(DENIED):
        await identity.login("alice")
    await identity.users.ReinstateUser(user_service_pb2.ReinstateUserRequest(user_id=alice, action_id=1), None)
    assert (await identity.login("alice")).user.id == alice


async def test_login_to_deactivated_account_needs_reactivate(identity: Identity) -> None:
    signed_up = await identity.sign_up("alice")
    alice = signed_up.user.id
    with identity.as_user(alice):
        await identity.users.DeleteUser(user_service_pb2.DeleteUserRequest(user_id=alice), None)
    with refused(DENIED) as caught:
        await identity.login("alice")
    assert caught.value.reason == "ACCOUNT_DEACTIVATED"
    assert "reactivate" in caught.value.message
    with refused(grpc.StatusCode.NOT_FOUND):
        await identity.get(alice)
    request = pb.LoginRequest(username="alice", password=PASSWORD, reactivate=True)
    answer = await identity.auth.Login(request, None)
    assert answer.user.email == "alice@example.com"
    assert (await identity.get(alice)).username == "alice"
    assert await identity.refresh(answer.refresh_token)
    # Ended sessions stay ended, and `reactivate` has no effect on an active account.
    with refused(UNAUTHENTICATED):
        await identity.refresh(signed_up.refresh_token)
    await identity.auth.Login(request, None)
    assert [fact for fact in await identity.facts() if fact != "session_revoked"] == [
        "user_created",
        "user_deleted",
        "user_reinstated",
    ]


async def test_login_with_reactivate_keeps_suspension(identity: Identity) -> None:
    alice = (await identity.sign_up("alice")).user.id
    await identity.users.SuspendUser(user_service_pb2.SuspendUserRequest(user_id=alice, action_id=1), None)
    with refused(DENIED) as caught:
        await identity.auth.Login(pb.LoginRequest(username="alice", password=PASSWORD, reactivate=True), None)
    assert caught.value.reason == "USER_SUSPENDED"


async def test_refresh_returns_new_tokens_of_same_session(identity: Identity) -> None:
    signed_up = await identity.sign_up("alice")
    first = await identity.verifier.verify(signed_up.access_token)
    token = signed_up.refresh_token
    for _ in range(5):
        identity.clock.now += 86_400
        answer = await identity.auth.RefreshToken(pb.RefreshTokenRequest(refresh_token=token), None)
        actor = await identity.verifier.verify(answer.access_token)
        assert (actor.user_id, actor.session_id) == (first.user_id, first.session_id)
        assert answer.expires_in == 300
        token = answer.refresh_token


async def test_refresh_repeated_after_lost_response_succeeds(identity: Identity) -> None:
    first = (await identity.sign_up("alice")).refresh_token
    lost = [await identity.refresh(first) for _ in range(3)]
    # At any later time.
    identity.clock.now += 86_400
    kept = await identity.refresh(first)
    assert {kept, *lost} == {kept}
    following = await identity.refresh(kept)
    await identity.refresh(following)
    assert "session_revoked" not in await identity.facts()


async def test_refresh_concurrent_with_one_token_keeps_session(identity: Identity) -> None:
    token = (await identity.sign_up("alice")).refresh_token
    for _ in range(5):
        identity.clock.now += 300
        here, there = await asyncio.gather(identity.refresh(token), identity.refresh(token))
        assert here == there
        token = here
    # One tab may be late, after the other has used the successor.
    newest = await identity.refresh(token)
    following = await identity.refresh(newest)
    identity.clock.now += rotation.REFRESH_GRACE_MS / 1000
    assert await identity.refresh(newest) == following
    assert await identity.refresh(token) == newest
    assert "session_revoked" not in await identity.facts()


@pytest.mark.parametrize("dead", ["long used", "replayed late"])
async def test_refresh_with_reused_token_ends_session(identity: Identity, dead: str) -> None:
    signed_up = await identity.sign_up("alice")
    actor = await identity.verifier.verify(signed_up.access_token)
    first = signed_up.refresh_token
    second = await identity.refresh(first)
    third = await identity.refresh(second)
    fourth = await identity.refresh(third)
    identity.clock.now += rotation.REFRESH_GRACE_MS / 1000 + 0.001
    with refused(UNAUTHENTICATED):
        await identity.refresh(first if dead == "long used" else second)
    for token in (fourth, third, first):
        with refused(UNAUTHENTICATED):
            await identity.refresh(token)
    revoked = [event.session_revoked for event in await identity.events() if event.HasField("session_revoked")]
    assert [(fact.user_id, fact.session_id) for fact in revoked] == [(actor.user_id, actor.session_id)]
    # This process does not wait for the event.
    with refused(UNAUTHENTICATED):
        await identity.verifier.verify(signed_up.access_token)
    # Other sessions of the same user stay live.
    await identity.refresh((await identity.login("alice")).refresh_token)


async def test_refresh_parallel_leaves_one_successor(identity: Identity) -> None:
    first = (await identity.sign_up("alice")).refresh_token
    made = await asyncio.gather(*(identity.refresh(first) for _ in range(5)))
    used = await asyncio.gather(*(identity.refresh(token) for token in made))
    assert (len(set(made)), len(set(used))) == (1, 1)


async def test_session_unused_for_ttl_expires(start: Start) -> None:
    identity = await start(refresh_token_ttl_s=3600)
    token = (await identity.sign_up("alice")).refresh_token
    identity.clock.now += 3_599
    token = await identity.refresh(token)
    identity.clock.now += 3_600
    with refused(UNAUTHENTICATED):
        await identity.refresh(token)


async def test_logout_with_any_token_ends_session(identity: Identity) -> None:
    first = (await identity.sign_up("alice")).refresh_token
    second = await identity.refresh(first)
    for _ in range(2):
        await identity.auth.Logout(pb.LogoutRequest(refresh_token=first), None)
    with refused(UNAUTHENTICATED):
        await identity.refresh(second)
    assert await identity.facts() == ["user_created", "session_revoked"]
    with refused(UNAUTHENTICATED):
        await identity.auth.Logout(pb.LogoutRequest(refresh_token="made up"), None)


async def test_refresh_of_inactive_user_is_unauthenticated(identity: Identity) -> None:
    alice, bob = await identity.sign_up("alice"), await identity.sign_up("bob")
    await identity.users.SuspendUser(user_service_pb2.SuspendUserRequest(user_id=alice.user.id, action_id=1), None)
    with identity.as_user(bob.user.id):
        await identity.users.DeleteUser(user_service_pb2.DeleteUserRequest(user_id=bob.user.id), None)
    for answer in (alice, bob):
        with refused(UNAUTHENTICATED):
            await identity.refresh(answer.refresh_token)


async def test_list_sessions_pages_newest_first(identity: Identity) -> None:
    alice = (await identity.sign_up("alice")).user.id
    actors = [await identity.verifier.verify((await identity.login()).access_token) for _ in range(4)]
    found: list[pb.Session] = []
    cursor = ""
    with identity.as_user(alice, actors[1].session_id):
        for _ in range(3):
            request = pb.ListSessionsRequest(user_id=alice, page_size=2, cursor=cursor)
            page = await identity.auth.ListSessions(request, None)
            found += page.sessions
            cursor = page.next_cursor
    assert cursor == ""
    assert [session.id for session in found[:4]] == [actor.session_id for actor in reversed(actors)]
    assert len(found) == 5
    assert [session.current for session in found] == [False, False, True, False, False]


async def test_list_sessions_returns_user_agent(identity: Identity) -> None:
    reset = context.current_call.set(context.Call(user_agent="browser"))
    alice = (await identity.sign_up("alice")).user.id
    context.current_call.set(context.Call(user_agent="phone"))
    token = (await identity.login("alice")).refresh_token
    context.current_call.set(context.Call(user_agent="another"))
    await identity.refresh(token)
    context.current_call.reset(reset)
    with identity.as_user(alice):
        page = await identity.auth.ListSessions(pb.ListSessionsRequest(user_id=alice), None)
    assert [session.user_agent for session in page.sessions] == ["phone", "browser"]


async def test_revoke_session_of_another_user_changes_nothing(identity: Identity) -> None:
    alice, bob = await identity.sign_up("alice"), await identity.sign_up("bob")
    session_id = (await identity.verifier.verify(alice.access_token)).session_id
    request = pb.RevokeSessionRequest(user_id=bob.user.id, session_id=session_id)
    with identity.as_user(bob.user.id):
        await identity.auth.RevokeSession(request, None)
    token = await identity.refresh(alice.refresh_token)
    with identity.as_user(alice.user.id):
        await identity.auth.RevokeSession(pb.RevokeSessionRequest(user_id=1, session_id=session_id), None)
    with refused(UNAUTHENTICATED):
        await identity.refresh(token)
    assert (await identity.facts()).count("session_revoked") == 1


async def test_change_password_ends_other_sessions(identity: Identity) -> None:
    here, there = await identity.sign_up("alice"), await identity.login("alice")
    session_id = (await identity.verifier.verify(here.access_token)).session_id
    with identity.as_user(here.user.id, session_id):
        with refused(DENIED):
            wrong = pb.ChangePasswordRequest(current_password="wrong", new_password="another password")
            await identity.auth.ChangePassword(wrong, None)
        right = pb.ChangePasswordRequest(current_password=PASSWORD, new_password="another password")
        await identity.auth.ChangePassword(right, None)
    await identity.refresh(here.refresh_token)
    with refused(UNAUTHENTICATED):
        await identity.refresh(there.refresh_token)
    with refused(UNAUTHENTICATED):
        await identity.login("alice")
    await identity.login("alice", "another password")
    assert (await identity.facts()).count("session_revoked") == 1


NEW_PASSWORD = "another password"


async def change_password(identity: Identity, user_id: int, current: str = PASSWORD, new: str = NEW_PASSWORD) -> None:
    with identity.as_user(user_id):
        request = pb.ChangePasswordRequest(current_password=current, new_password=new)
        await identity.auth.ChangePassword(request, None)


async def changed_behind_the_check(identity: Identity, monkeypatch: pytest.MonkeyPatch, user_id: int) -> None:
    """Makes the next password check succeed, and changes the password before the check returns."""
    check = identity.passwords.check

    async def checked(*values: Any) -> bool:
        matches = await check(*values)
        monkeypatch.setattr(identity.passwords, "check", check)
        await change_password(identity, user_id)
        return matches

    monkeypatch.setattr(identity.passwords, "check", checked)


async def test_login_with_concurrently_changed_password_opens_no_session(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = (await identity.sign_up("alice")).user.id
    await changed_behind_the_check(identity, monkeypatch, alice)
    with refused(UNAUTHENTICATED) as caught:
        await identity.login("alice")
    assert caught.value.reason == "WRONG_CREDENTIALS"
    assert await identity.stores.sessions.list_live(alice, 0, 0, 10) == []


async def test_change_password_with_concurrently_changed_password_is_denied(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = (await identity.sign_up("alice")).user.id
    await changed_behind_the_check(identity, monkeypatch, alice)
    with refused(DENIED):
        await change_password(identity, alice, new="the thief's password")
    assert (await identity.login("alice", NEW_PASSWORD)).user.id == alice


async def test_mint_tokens_covers_active_users_and_is_logged(identity: Identity) -> None:
    alice, bob = (await identity.sign_up("alice")).user.id, (await identity.sign_up("bob")).user.id
    await identity.users.SuspendUser(user_service_pb2.SuspendUserRequest(user_id=bob, action_id=1), None)
    reset = context.current_call.set(context.Call(caller=context.OPERATOR, request_id="r1"))
    with structlog.testing.capture_logs() as lines:
        answer = await identity.auth.MintTokens(pb.MintTokensRequest(user_ids=[bob, alice, 5], ttl_seconds=3600), None)
    context.current_call.reset(reset)
    assert [token.user_id for token in answer.tokens] == [alice]
    (line,) = [line for line in lines if line["event"] == "tokens.minted"]
    assert (line["operator"], line["user_ids"], line["ttl_s"], line["request_id"]) == ("operator", [alice], 3600, "r1")
    assert answer.tokens[0].access_token not in str(lines)
    identity.clock.now += 3_599
    assert (await identity.verifier.verify(answer.tokens[0].access_token)).session_id == 0
    identity.clock.now += 1
    with refused(UNAUTHENTICATED):
        await identity.verifier.verify(answer.tokens[0].access_token)


async def test_mint_tokens_for_many_users_logs_count_and_first_ids(identity: Identity) -> None:
    request = user_service_pb2.ImportUsersRequest()
    for number in range(3 * MAX_AUDITED_IDS):
        request.users.add(username=f"user{number}", email=f"user{number}@example.com")
    ids = list((await identity.users.ImportUsers(request, None)).user_ids)
    with structlog.testing.capture_logs() as lines:
        await identity.auth.MintTokens(pb.MintTokensRequest(user_ids=ids, ttl_seconds=60), None)
    (line,) = [line for line in lines if line["event"] == "tokens.minted"]
    assert (line["users"], line["user_ids"]) == (len(ids), ids[:MAX_AUDITED_IDS])


async def test_access_token_roles_come_from_settings_and_account(start: Start) -> None:
    identity = await start(admins=("Alice",))
    bob = await identity.sign_up("bob")
    request = user_service_pb2.ImportUsersRequest()
    request.users.add(username="alice", email="a@example.com")
    request.users.add(username="carol", email="c@example.com", roles=[user_pb2.ROLE_MODERATOR])
    imported = (await identity.users.ImportUsers(request, None)).user_ids
    minted = await identity.auth.MintTokens(pb.MintTokensRequest(user_ids=imported, ttl_seconds=60), None)
    made = [bob.access_token, *(token.access_token for token in minted.tokens)]
    roles = [(await identity.verifier.verify(token)).roles for token in made]
    assert roles == [frozenset(), frozenset({"admin"}), frozenset({"moderator"})]


@pytest.mark.parametrize("name", ["bossman", "BossMan", "BOSSMAN"])
async def test_sign_up_with_administrator_name_already_exists(start: Start, name: str) -> None:
    identity = await start(admins=("bossman",))
    with refused(EXISTS) as caught:
        await identity.sign_up(name)
    assert caught.value.reason == "USERNAME_RESERVED"
    request = pb.CheckUsernameAvailabilityRequest(username=name)
    assert not (await identity.auth.CheckUsernameAvailability(request, None)).available
    assert await identity.facts() == []


async def test_get_signing_keys_returns_no_private_part(identity: Identity) -> None:
    (key,) = (await identity.auth.GetSigningKeys(pb.GetSigningKeysRequest(), None)).keys
    assert (key.kty, key.crv, key.use, key.alg) == ("OKP", "Ed25519", "sig", "EdDSA")
    assert len(key.x) == 43
    assert key.kid
