"""Deleted tweets and deactivated accounts are purged from the stores and their files after the grace period."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import pytest
from roost.identity.v1 import auth_service_pb2, user_pb2, user_service_pb2
from roost.tweet.v1 import reply_service_pb2
from roost.tweet.v1 import tweet_service_pb2 as pb
from roost.tweet.v1.reply_service_pb2_grpc import ReplyServiceStub

from tests.cluster import backend
from tests.conftest import SETTLE_WITHIN_S, Mesh, MeshFactory

PASSWORD = "correct horse battery"
LEFT = ("a tweet of somebody who leaves", "a reply of somebody who leaves")
FIRST, SECOND = "a text that nobody is to read again", "its second version, no better"


async def kept(mesh: Mesh) -> set[int]:
    pages = [page async for page in mesh.operator_tweets.ScanTweets(pb.ScanTweetsRequest())]
    return {core.head.id for page in pages for core in page.cores}


def files_with(folder: Path, text: str, database: str = "tweet.db") -> list[str]:
    return [path.name for path in folder.rglob(f"{database}*") if text.encode() in path.read_bytes()]


def identity_files(folder: Path, text: str) -> list[str]:
    return files_with(folder, text, "identity.db")


async def test_purge_after_grace_removes_tweet_from_store_and_files(start_mesh: MeshFactory, tmp_path: Path) -> None:
    data = tmp_path / "data"
    mesh = await start_mesh(data_dir=data, delete_grace_s=1)
    (author,) = await mesh.people("ada")
    gone, stays = await mesh.post(author, FIRST), await mesh.post(author, "a text that stays")
    with mesh.as_user(author):
        await mesh.tweets.UpdateTweet(pb.UpdateTweetRequest(tweet_id=gone, text=SECOND))
        assert backend.name == "cluster" or files_with(data, FIRST)
        # Before the call, because a busy machine may take longer to answer than the grace period.
        deleted_at = time.monotonic()
        await mesh.tweets.DeleteTweet(pb.DeleteTweetRequest(tweet_id=gone))
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while gone in await kept(mesh) or files_with(data, FIRST) or files_with(data, SECOND):
            await asyncio.sleep(0.1)
    # Not before its time: whole seconds are compared.
    assert time.monotonic() - deleted_at > 0.5
    assert stays in await kept(mesh)


async def test_purge_after_grace_erases_account_from_store_and_files(start_mesh: MeshFactory, tmp_path: Path) -> None:
    data = tmp_path / "data"
    mesh = await start_mesh(data_dir=data, delete_grace_s=1)
    name, email, display_name = "erasable", "erasable@example.net", "A Name To Forget"
    profile = user_pb2.Profile(display_name=display_name)
    request = auth_service_pb2.SignUpRequest(username=name, email=email, password=PASSWORD, profile=profile)
    signed_up = await mesh.auth.SignUp(request)
    user_id = signed_up.user.id
    credential = f"$2b${mesh.process.settings.bcrypt_cost:02}$"
    assert backend.name == "cluster" or all(identity_files(data, text) for text in (email, display_name, credential))
    (ada,) = await mesh.people("ada")
    answered = await mesh.post(ada, "a tweet that stays")
    tweet_id = await mesh.post(user_id, LEFT[0])
    with mesh.as_user(user_id):
        request_of_reply = reply_service_pb2.CreateReplyRequest(tweet_id=answered, text=LEFT[1])
        reply = await ReplyServiceStub(mesh.process.channel("")).CreateReply(request_of_reply)
        await mesh.tweets.Retweet(pb.RetweetRequest(tweet_id=answered))
        assert backend.name == "cluster" or all(files_with(data, text) for text in LEFT)
        deleted_at = time.monotonic()
        await mesh.users.DeleteUser(user_service_pb2.DeleteUserRequest(user_id=user_id))
    await erased(mesh, user_id, SETTLE_WITHIN_S)
    # Not before its time: whole seconds are compared.
    assert time.monotonic() - deleted_at > 0.5
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while any(identity_files(data, text) for text in (email, display_name, credential)):
            await asyncio.sleep(0.1)
    with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
        await mesh.auth.Login(auth_service_pb2.LoginRequest(username=name, password=PASSWORD, reactivate=True))
    with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
        await mesh.tweets.GetTweet(pb.GetTweetRequest(tweet_id=tweet_id))
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while {tweet_id, reply.tweet.id} & await kept(mesh) or any(files_with(data, text) for text in LEFT):
            await asyncio.sleep(0.1)
    # Neither the retweet is left, nor are counts of what its author did.
    assert await kept(mesh) == {answered}
    found = (await mesh.tweets.GetTweet(pb.GetTweetRequest(tweet_id=answered))).tweet.metrics
    assert (found.replies, found.retweets) == (0, 0)
    # The names are free again, and their next owner is another user.
    again = await mesh.auth.SignUp(request)
    assert again.user.id != user_id
    assert (await mesh.users.GetUserByUsername(by_name(name))).user.id == again.user.id


async def erased(mesh: Mesh, user_id: int, within_s: float) -> None:
    """Waits until the mesh knows nothing of the user but the id."""
    request = user_service_pb2.ScanUsersRequest(after_id=user_id - 1)
    async with asyncio.timeout(within_s):
        while True:
            pages = [page async for page in mesh.operator_users.ScanUsers(request)]
            (found,) = (user for page in pages for user in page.users if user.user.id == user_id)
            if found.user == user_pb2.User(id=user_id):
                assert found.state == user_pb2.USER_STATE_DEACTIVATED
                return
            await asyncio.sleep(0.1)


def by_name(username: str) -> user_service_pb2.GetUserByUsernameRequest:
    return user_service_pb2.GetUserByUsernameRequest(username=username)
