"""What the fragment owners answer, as the hydrator reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from typing import Any, Protocol

import grpc.aio
import structlog
from roost.engagement.v1 import engagement_service_pb2 as engagement

from services.shared.hydration.parsed import Ref

_log = structlog.get_logger(__name__)


class Shared(Protocol):
    """What an owner says of somebody to all processes at once; `data` is a serialised BatchGetUserRefsResponse of that one."""

    @property
    def data(self) -> bytes: ...


class SharedUserRefs(Protocol):
    """Where identity says how people stand now, before it answers whoever changed it."""

    async def users(self, ids: Sequence[int]) -> Sequence[Shared | None]:
        """What stands there, in order; None: ask identity. Raises nothing."""


async def no_response() -> None:
    """Nobody reads: there is nothing to ask."""


async def counts_or_empty(call: Any) -> tuple[dict[int, engagement.TweetCounts], dict[int, int]]:
    """Likes and bookmarks by tweet, and what the reader did by tweet, as VIEWER counts it.

    Without an answer the tweets are shown uncounted: counts are derived, and hide nobody.
    """
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        _log.warning("tweets joined without their counts", code=error.code().name, details=error.details())
        return {}, {}
    counts = {counts.tweet_id: counts for counts in answer.counts}
    return counts, {state.tweet_id: state.liked + 4 * state.bookmarked for state in answer.states}


def visible_authors(refs: Sequence[Ref], rules: Any, user_ids: set[int]) -> tuple[dict[int, bytes], Container[int]]:
    """The author fragment of each of these people whom the reader may see, and whom the reader mutes."""
    fragments = dict(refs)
    muted: Container[int] = ()
    if rules is not None:
        # A user's blocks may be many, the people of a page are few.
        for user_id in (*user_ids.intersection(rules.blocked_ids), *rules.blocked_by_ids):
            fragments.pop(user_id, None)
        muted = user_ids.intersection(rules.muted_ids)
    return fragments, muted


async def await_all(calls: Sequence[Any]) -> list[Any]:
    """The answers of calls; where one fails, the others are cancelled and its error is raised.

    One after the other in process, where each is answered from memory; over sockets all are under way already.
    """
    try:
        return [await call for call in calls]
    except BaseException:
        for call in calls:
            call.close() if asyncio.iscoroutine(call) else call.cancel()
        raise
