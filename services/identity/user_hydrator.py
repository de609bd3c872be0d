"""Users as a reader may see them: the core joined with counts and relationships, which other services own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

import grpc
import structlog
from roost.graph.v1 import graph_service_pb2
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.identity.v1 import user_pb2
from roost.tweet.v1 import tweet_service_pb2
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.identity.store import Account
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# Less than a read's own deadline: a service that hangs costs the counts, not the profile.
FRAGMENT_TIMEOUT_S = 0.5

A = TypeVar("A")

_log = structlog.get_logger(__name__)


class UserHydrator:
    """Joins users. If graph or tweet does not answer, they come without counts; without the relationships to the reader
    nobody is shown.
    """

    def __init__(self, graph: GraphServiceStub, tweet: TweetServiceStub) -> None:
        self._graph = graph
        self._tweet = tweet

    async def users(self, reader_id: int, accounts: Sequence[Account]) -> list[user_pb2.User]:
        """The accounts that take part, as new messages, in order; `reader_id` is the caller, or 0.

        Of users who block the reader nothing shows but that. The e-mail address is in the reader's own user only.
        Raises UNAVAILABLE if graph does not say who blocks the reader.
        """
        shown = [account for account in accounts if account.state == user_pb2.USER_STATE_ACTIVE]
        ids = list(dict.fromkeys(account.user_id for account in shown))
        if not ids:
            return []
        others = [user_id for user_id in ids if user_id != reader_id] if reader_id else []
        follows, tweets, ties = await asyncio.gather(self._follows(ids), self._tweets(ids), self._ties(others))
        users = []
        for account in shown:
            user = user_pb2.User.FromString(account.core)
            # None of the reader themself, and to a visitor: `_ties` answers for everybody else.
            tie = ties.get(account.user_id)
            if tie is not None and tie.blocked_by:
                viewer = user_pb2.UserViewer(blocked_by=True)
                users.append(user_pb2.User(id=user.id, username=user.username, viewer=viewer))
                continue
            if tie is not None:
                user.viewer.CopyFrom(_viewer(tie))
            if follows is not None and tweets is not None:
                counts = follows.get(account.user_id) or graph_service_pb2.UserCounts()
                user.metrics.followers = counts.followers
                user.metrics.following = counts.following
                user.metrics.tweets = tweets.get(account.user_id, 0)
                # Present also where all are zero.
                user.metrics.SetInParent()
            if account.user_id == reader_id:
                user.email = account.email
            users.append(user)
        return users

    async def _follows(self, ids: Sequence[int]) -> Mapping[int, graph_service_pb2.UserCounts] | None:
        request = graph_service_pb2.BatchGetUserCountsRequest(ids=ids)
        answer = await _or_none(self._graph.BatchGetUserCounts(request, timeout=FRAGMENT_TIMEOUT_S))
        return answer.counts if answer is not None else None

    async def _tweets(self, ids: Sequence[int]) -> Mapping[int, int] | None:
        request = tweet_service_pb2.BatchGetAuthorCountsRequest(user_ids=ids)
        answer = await _or_none(self._tweet.BatchGetAuthorCounts(request, timeout=FRAGMENT_TIMEOUT_S))
        return answer.tweets if answer is not None else None

    async def _ties(self, others: Sequence[int]) -> Mapping[int, graph_service_pb2.Relationship]:
        if not others:
            return {}
        request = graph_service_pb2.BatchGetRelationshipsRequest(ids=others)
        try:
            # Without FRAGMENT_TIMEOUT_S: nobody may be shown without it, so it may take what the read has left.
            answer = await self._graph.BatchGetRelationships(request)
        except grpc.aio.AioRpcError as error:
            _log.warning("profile not shown without its relationships", code=error.code().name, details=error.details())
            raise _unknown_relationships() from error
        ties = {tie.user_id: tie for tie in answer.relationships}
        if not ties.keys() >= set(others):
            raise _unknown_relationships()
        return ties


def _viewer(tie: graph_service_pb2.Relationship) -> user_pb2.UserViewer:
    return user_pb2.UserViewer(
        following=tie.following, followed_by=tie.followed_by, blocking=tie.blocking, muting=tie.muting
    )


def _unknown_relationships() -> errors.RoostError:
    return errors.unavailable(
        "whether you may see this profile cannot be told now: try again", reason=Reason.RELATIONSHIPS_UNKNOWN
    )


async def _or_none(call: Awaitable[A]) -> A | None:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        _log.warning("profile joined without a part", code=error.code().name, details=error.details())
        return None
