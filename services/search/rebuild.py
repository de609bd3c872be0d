"""Builds a new search index from the tweet and identity services while searches use the old one: if the index was never
filled, or if an operator requests it."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from roost.identity.v1 import user_service_pb2 as identity
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.platform.background import BackgroundWorker
from services.platform.events.log import is_transient
from services.platform.log_events import LogEvent
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.search.consumer import FollowerCounts, cooperative_batches, tweet_change
from services.search.documents import user_document
from services.search.store import Collection, IndexChange, SearchIndex

# Seconds between a failed build (or scan) and the next attempt: RETRY_FIRST_S, doubled with each further failure up to
# RETRY_MAX_S.
RETRY_FIRST_S = 0.2
RETRY_MAX_S = 30.0
# Seconds between two checks whether the index was ever filled. The checks are repeated, because an index on OpenSearch
# may be dropped, or OpenSearch may be available late, while this process runs.
POLL_EVERY_S = 10.0

log = structlog.get_logger(__name__)

Sleep = Callable[[float], Awaitable[None]]


class Rebuilder(BackgroundWorker):
    """A worker that checks at its start, and then every POLL_EVERY_S seconds, whether the index was ever filled, and if
    not, starts a build. Operators can start a build too. At most one build runs in this process."""

    def __init__(self, channel: grpc.aio.Channel, index: SearchIndex, sleep: Sleep = asyncio.sleep) -> None:
        super().__init__("search-rebuild")
        self._scan_tweets: Any = TweetServiceStub(channel).ScanTweets
        self._scan_users: Any = UserServiceStub(channel).ScanUsers
        self._followers = FollowerCounts(channel)
        self._index = index
        self._sleep = sleep
        self._building: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins a build if the index in use was never filled completely, and starts the periodic checks. If the index
        cannot answer, logs a warning; the next check begins the build."""
        await self._build_if_never_filled()
        await super().start()

    async def stop(self) -> None:
        """Stops the checks and cancels the build in progress. The index in use does not change."""
        await super().stop()
        if self._building is not None:
            self._building.cancel()
            await asyncio.wait((self._building,))

    def begin(self) -> bool:
        """Starts a build in the background and returns True. Returns False if this process is building already."""
        if self._building is not None and not self._building.done():
            return False
        # An empty context, so that the build does not have the deadline and the actor of the call that starts it.
        self._building = asyncio.get_running_loop().create_task(
            self._build_with_retries(), context=contextvars.Context()
        )
        return True

    async def done(self) -> None:
        """Waits until the build in progress has ended, if there is one. Raises CancelledError if the build was
        cancelled."""
        if self._building is not None:
            await asyncio.shield(self._building)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(POLL_EVERY_S)
            await self._build_if_never_filled()

    async def _build_if_never_filled(self) -> None:
        try:
            if not (await self._index.build_status()).complete:
                self.begin()
        except errors.RoostError as error:
            log.warning(LogEvent.SEARCH_INDEX_CHECK_FAILED, error=str(error))

    async def _build_with_retries(self) -> None:
        """Builds the index, and after a failure again, with exponential backoff, until a build succeeds. Ends if
        another process is building the index."""
        failures = 0
        while True:
            try:
                await self._build()
                return
            except errors.RoostError as error:
                if error.reason == Reason.INDEX_BEING_BUILT:
                    # This process will use the index that the other process builds. If that process dies, the next
                    # check starts a build.
                    log.info(LogEvent.SEARCH_INDEX_BUILD_CEDED)
                    return
                failures += 1
                log.error(LogEvent.SEARCH_INDEX_BUILD_FAILED, failures=failures, error=str(error))
            except Exception as error:
                failures += 1
                log.error(LogEvent.SEARCH_INDEX_BUILD_FAILED, failures=failures, error=repr(error))
            await self._sleep(min(RETRY_FIRST_S * 2.0 ** min(failures - 1, 20), RETRY_MAX_S))

    async def _build(self) -> None:
        started_s = time.monotonic()
        await self._index.begin()
        counts = {"users": 0, "tweets": 0}
        async for users in self._resuming(self._users):
            await self._fill(users)
            counts["users"] += len(users)
        async for tweets in self._resuming(self._tweets):
            await self._fill(tweets)
            counts["tweets"] += len(tweets)
        await self._index.finish()
        log.info(LogEvent.SEARCH_INDEX_BUILT, seconds=round(time.monotonic() - started_s, 3), **counts)

    async def _fill(self, changes: list[IndexChange]) -> None:
        await self._index.fill([change for change in changes if change.document is not None])

    async def _resuming(
        self, scan: Callable[[int], AsyncIterator[list[IndexChange]]]
    ) -> AsyncIterator[list[IndexChange]]:
        """Yields the batches of a scan. `scan(after_id)` starts a scan of the ids above `after_id`. After a transient
        error it starts another scan above the last id received. Raises the AioRpcError of a scan if it is not
        transient."""
        after_id, failures = 0, 0
        while True:
            try:
                async for changes in scan(after_id):
                    yield changes
                    after_id, failures = changes[-1].id, 0
                return
            except grpc.aio.AioRpcError as error:
                if not is_transient(error):
                    raise
                failures += 1
                log.warning(LogEvent.SEARCH_INDEX_SCAN_INTERRUPTED, after_id=after_id, code=error.code().name)
            await self._sleep(min(RETRY_FIRST_S * 2.0 ** min(failures - 1, 20), RETRY_MAX_S))

    async def _tweets(self, after_id: int) -> AsyncIterator[list[IndexChange]]:
        """Scans the tweets with ids above `after_id`, in the order of ids. Yields a batch of changes for each message
        of the scan."""
        async for message in self._scan_tweets(tweet.ScanTweetsRequest(after_id=after_id)):
            changes: list[IndexChange] = []
            for part in cooperative_batches(message.cores):
                changes.extend(map(tweet_change, part))
                await asyncio.sleep(0)
            if changes:
                yield changes

    async def _users(self, after_id: int) -> AsyncIterator[list[IndexChange]]:
        """Scans the users with ids above `after_id`, in the order of ids, and reads their follower counts. Yields a
        batch of changes for each message of the scan."""
        async for message in self._scan_users(identity.ScanUsersRequest(after_id=after_id)):
            changes: list[IndexChange] = []
            for part in cooperative_batches(message.users):
                followers = await self._followers.counts([one.user.id for one in part])
                changes.extend(
                    IndexChange(
                        Collection.USERS,
                        one.user.id,
                        user_document(one.user, one.state, one.version, followers[one.user.id]),
                    )
                    for one in part
                )
                await asyncio.sleep(0)
            if changes:
                yield changes
