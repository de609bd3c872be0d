"""Interprets the responses of the services that own tweets, users, relations and counts."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from typing import Any

import grpc.aio
import structlog
from roost.engagement.v1 import engagement_service_pb2 as engagement

from services.platform.log_events import LogEvent
from services.shared.hydration.parsed import ActiveUser

log = structlog.get_logger(__name__)


async def no_response() -> None:
    """Returns None in place of the response of a call that is not needed, because no reader is signed in."""


async def counts_or_empty(call: Any) -> tuple[dict[int, engagement.TweetCounts], dict[int, int]]:
    """Awaits the call of BatchGetCounts. Returns the counts by tweet id, and the reader's like and bookmark by tweet
    id, as an index into VIEWER.

    If the call fails, returns two empty dicts and logs the error: counts are derived data and hide no tweet, so the
    page is returned without counts.
    """
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        log.warning(LogEvent.COUNTS_LOAD_FAILED, code=error.code().name, details=error.details())
        return {}, {}
    counts = {counts.tweet_id: counts for counts in answer.counts}
    return counts, {state.tweet_id: state.liked + 4 * state.bookmarked for state in answer.states}


def visible_authors(
    refs: Sequence[ActiveUser], rules: Any, user_ids: set[int]
) -> tuple[dict[int, bytes], Container[int]]:
    """Returns the author fragments of the users whom the reader may see, by user id, and the users in `user_ids` whom
    the reader mutes. `rules` is graph's GetVisibilityFilterResponse, or None if no reader is signed in."""
    fragments = dict(refs)
    muted: Container[int] = ()
    if rules is not None:
        # Iterates over the users of the page, because they are few, whereas a user may have blocked many.
        for user_id in (*user_ids.intersection(rules.blocked_ids), *rules.blocked_by_ids):
            fragments.pop(user_id, None)
        muted = user_ids.intersection(rules.muted_ids)
    return fragments, muted


async def await_all(calls: Sequence[Any]) -> list[Any]:
    """Returns the results of the calls. If one fails, cancels the others and raises its error.

    A call over a connection starts when the stub is called, so these calls run concurrently. In-process calls run one
    after the other: they are answered from memory, and tasks would take more time than they save.
    """
    try:
        return [await call for call in calls]
    except BaseException:
        for call in calls:
            call.close() if asyncio.iscoroutine(call) else call.cancel()
        raise
