"""Awaits and interprets the responses of the services that own what hydration shows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grpc.aio
import structlog
from roost.engagement.v1 import engagement_service_pb2 as engagement

from services.platform.log_events import LogEvent

log = structlog.get_logger(__name__)


class Counts(NamedTuple):
    """The response of engagement: the counts of each tweet with likes or bookmarks, and the reactions of the viewer as
    an index into VIEWER, both by tweet id."""

    by_tweet: Mapping[int, engagement.TweetCounts]
    states: Mapping[int, int]


async def counts_or_none(call: Any) -> Counts | None:
    """Awaits BatchGetCounts. If the call fails, returns None and logs the error: counts are derived data and hide no
    tweet, so the page is returned without counts."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        log.warning(LogEvent.COUNTS_LOAD_FAILED, code=error.code().name, details=error.details())
        return None
    return Counts(
        {counts.tweet_id: counts for counts in answer.counts},
        {state.tweet_id: state.liked + 4 * state.bookmarked for state in answer.states},
    )


async def await_all(calls: Sequence[Any]) -> list[Any]:
    """Returns the results of the calls. If one fails, cancels the others and raises its error.

    The calls were started when they were made (see AbstractChannel), so over sockets they run at the same time. In
    process they run one after the other, each answered from memory: tasks would cost more than they gain.
    """
    try:
        return [await call for call in calls]
    except BaseException:
        for call in calls:
            call.close() if asyncio.iscoroutine(call) else call.cancel()
        raise
