"""Hydrates users for a reader: adds the counts of tweet and graph, and the reader's relationships, to accounts."""

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
from services.platform.log_events import LogEvent
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# Maximum time in seconds to wait for the counts of graph or tweet; after it, users are returned without metrics. It is
# shorter than the deadline of a read, so that a service that does not answer cannot make the read fail.
FRAGMENT_TIMEOUT_S = 0.5

A = TypeVar("A")

log = structlog.get_logger(__name__)


class UserHydrator:
    """Hydrates users. If graph or tweet does not return counts, users have no metrics; if graph does not return the
    relationships with the reader, hydration fails."""

    def __init__(self, graph: GraphServiceStub, tweet: TweetServiceStub) -> None:
        self._graph = graph
        self._tweet = tweet

    async def users(self, reader_id: int, accounts: Sequence[Account]) -> list[user_pb2.User]:
        """Returns the active accounts as new messages, in order. `reader_id` is the calling user (0: not signed in).

        A user who blocks the reader has only id, username and `viewer.blocked_by`. Only the reader's own user has the
        e-mail address. Raises UNAVAILABLE (RELATIONSHIPS_UNKNOWN) if graph does not return who blocks the reader.
        """
        active = [account for account in accounts if account.state == user_pb2.USER_STATE_ACTIVE]
        ids = list(dict.fromkeys(account.user_id for account in active))
        if not ids:
            return []
        others = [user_id for user_id in ids if user_id != reader_id] if reader_id else []
        follows, tweets, relationships = await asyncio.gather(
            self._follows(ids), self._tweets(ids), self._relationships(others)
        )
        users = []
        for account in active:
            user = user_pb2.User.FromString(account.core)
            # None if the account is the reader's own, or if no reader is signed in.
            relationship = relationships.get(account.user_id)
            if relationship is not None and relationship.blocked_by:
                viewer = user_pb2.UserViewer(blocked_by=True)
                users.append(user_pb2.User(id=user.id, username=user.username, viewer=viewer))
                continue
            if relationship is not None:
                user.viewer.CopyFrom(_viewer(relationship))
            if follows is not None and tweets is not None:
                counts = follows.get(account.user_id) or graph_service_pb2.UserCounts()
                user.metrics.followers = counts.followers
                user.metrics.following = counts.following
                user.metrics.tweets = tweets.get(account.user_id, 0)
                # SetInParent makes the field `metrics` present even if all counts are zero.
                user.metrics.SetInParent()
            if account.user_id == reader_id:
                user.email = account.email
            users.append(user)
        return users

    async def _follows(self, ids: Sequence[int]) -> Mapping[int, graph_service_pb2.UserCounts] | None:
        request = graph_service_pb2.BatchGetUserCountsRequest(ids=ids)
        answer = await _response_or_none(self._graph.BatchGetUserCounts(request, timeout=FRAGMENT_TIMEOUT_S))
        return answer.counts if answer is not None else None

    async def _tweets(self, ids: Sequence[int]) -> Mapping[int, int] | None:
        request = tweet_service_pb2.BatchGetAuthorCountsRequest(user_ids=ids)
        answer = await _response_or_none(self._tweet.BatchGetAuthorCounts(request, timeout=FRAGMENT_TIMEOUT_S))
        return answer.tweets if answer is not None else None

    async def _relationships(self, others: Sequence[int]) -> Mapping[int, graph_service_pb2.Relationship]:
        if not others:
            return {}
        request = graph_service_pb2.BatchGetRelationshipsRequest(ids=others)
        try:
            # FRAGMENT_TIMEOUT_S does not apply: no user may be returned without relationships, so the call may use all
            # remaining time.
            answer = await self._graph.BatchGetRelationships(request)
        except grpc.aio.AioRpcError as error:
            log.warning(LogEvent.RELATIONSHIPS_FAILED, code=error.code().name, details=error.details())
            raise _unknown_relationships() from error
        relationships = {relationship.user_id: relationship for relationship in answer.relationships}
        if not relationships.keys() >= set(others):
            raise _unknown_relationships()
        return relationships


def _viewer(relationship: graph_service_pb2.Relationship) -> user_pb2.UserViewer:
    return user_pb2.UserViewer(
        following=relationship.following,
        followed_by=relationship.followed_by,
        blocking=relationship.blocking,
        muting=relationship.muting,
    )


def _unknown_relationships() -> errors.RoostError:
    return errors.unavailable(
        "it is unknown at the moment whether you may see this profile: retry later", reason=Reason.RELATIONSHIPS_UNKNOWN
    )


async def _response_or_none(call: Awaitable[A]) -> A | None:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        log.warning(LogEvent.USER_COUNTS_FAILED, code=error.code().name, details=error.details())
        return None
