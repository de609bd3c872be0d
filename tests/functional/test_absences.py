"""Counts equal the lengths of lists: both leave out suspended and deleted users, and include them again after their return."""

from __future__ import annotations

import asyncio
from typing import Any

from roost.identity.v1 import user_service_pb2
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from tests.conftest import SETTLE_WITHIN_S
from tests.functional.conftest import Person, Web


async def ok(web: Web, verb: str, path: str, person: Person | None = None, **options: Any) -> Any:
    answer = await web.call(verb, path, person, **options)
    assert answer.is_success, answer.text
    return answer.json()


async def counted_and_listed(web: Web, ann: Person, tweet_id: str) -> tuple[list[int], list[int]]:
    """Returns the counts of Ann and of her tweet, and the lengths of the lists that they count, in the same order."""
    user = (await ok(web, "GET", f"/v1/users/{ann.id}"))["metrics"]
    tweet = (await ok(web, "GET", f"/v1/tweets/{tweet_id}"))["metrics"]
    lists = []
    for path, key in (
        (f"users/{ann.id}/followers", "users"),
        (f"users/{ann.id}/following", "users"),
        (f"tweets/{tweet_id}/likes", "users"),
        (f"tweets/{tweet_id}/retweets", "users"),
        (f"tweets/{tweet_id}/replies", "tweets"),
        (f"tweets/{tweet_id}/quotes", "tweets"),
    ):
        lists.append(len((await ok(web, "GET", f"/v1/{path}"))[key]))
    shown = [user.get("followers", 0), user.get("following", 0)]
    return [*shown, *(tweet.get(name, 0) for name in ("likes", "retweets", "replies", "quotes"))], lists


async def until_all_are(web: Web, ann: Person, tweet_id: str, wanted: int) -> None:
    found: tuple[list[int], list[int]] = ([], [])
    try:
        async with asyncio.timeout(SETTLE_WITHIN_S):
            while found != ([wanted] * 6, [wanted] * 6):
                found = await counted_and_listed(web, ann, tweet_id)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"counts {found[0]}, lists {found[1]}; expected {wanted} of each") from None


async def test_counts_of_suspended_and_deleted_users_match_lists(web: Web) -> None:
    ann, ben, cat = [await web.sign_up(name) for name in ("ann", "ben", "cat")]
    tweet_id = await web.post(ann, "a tweet")
    for one in (ben, cat):
        await ok(web, "POST", f"/v1/users/{ann.id}/follow", one)
        await ok(web, "POST", f"/v1/users/{one.id}/follow", ann)
        await ok(web, "POST", f"/v1/tweets/{tweet_id}/likes", one)
        await ok(web, "POST", f"/v1/tweets/{tweet_id}/retweets", one)
        for link in ("reply_to_id", "quote_of_id"):
            await ok(web, "POST", "/v1/tweets", one, json={"text": "about it", link: tweet_id})
    await until_all_are(web, ann, tweet_id, 2)
    users = UserServiceStub(web.mesh.process.channel("moderation"))
    await users.SuspendUser(user_service_pb2.SuspendUserRequest(user_id=int(ben.id), action_id=7))
    await until_all_are(web, ann, tweet_id, 1)
    await users.ReinstateUser(user_service_pb2.ReinstateUserRequest(user_id=int(ben.id), action_id=7))
    await until_all_are(web, ann, tweet_id, 2)
    await ok(web, "DELETE", "/v1/users/me", cat)
    await until_all_are(web, ann, tweet_id, 1)
