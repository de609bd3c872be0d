"""The index built anew from its owners, online: at a first start, and when an operator asks for it."""

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

from services.platform.events.log import is_transient
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.search.consumer import Followers, cooperative_batches, tweet_change
from services.search.documents import user_document
from services.search.store import Change, Collection, SearchIndex

# After a failure; then twice as long, up to the most.
RETRY_FIRST_S = 0.2
RETRY_MOST_S = 30.0
# An index that several processes share may be dropped while they run, or be there only after them: noticed within this.
LOOK_EVERY_S = 10.0

_log = structlog.get_logger(__name__)

Sleep = Callable[[float], Awaitable[None]]


class Rebuilder:
    """Builds the index anew, one at a time; a worker that does so by itself where it was never filled."""

    def __init__(self, channel: grpc.aio.Channel, index: SearchIndex, sleep: Sleep = asyncio.sleep) -> None:
        self._scan_tweets: Any = TweetServiceStub(channel).ScanTweets
        self._scan_users: Any = UserServiceStub(channel).ScanUsers
        self._followers = Followers(channel)
        self._index = index
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins where the index was never filled, now or whenever that is seen later."""
        await self._look()
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_for_ever(), name="search-rebuild")

    async def stop(self) -> None:
        """Gives up what is under way: the index in use stays."""
        for task in filter(None, (self._looking, self._task)):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def begin(self) -> bool:
        """Begins, unless it is under way: then it answers False."""
        if self._task is not None and not self._task.done():
            return False
        # In an empty context: neither the deadline nor the name of whoever asked ends with the call.
        self._task = asyncio.get_running_loop().create_task(self._until_done(), context=contextvars.Context())
        return True

    async def done(self) -> None:
        """Returns once what is under way has ended; raises what ended it."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._look()

    async def _look(self) -> None:
        try:
            if not await self._index.filled():
                self.begin()
        except errors.RoostError as error:
            _log.warning("the search index cannot be asked, will be asked again", error=str(error))

    async def _until_done(self) -> None:
        failures = 0
        while True:
            try:
                await self._build()
                return
            except errors.RoostError as error:
                if error.reason == Reason.INDEX_BEING_BUILT:
                    # It serves this process too. Where its builder dies, the next look begins again.
                    _log.info("the search index is being built by another process")
                    return
                failures += 1
                _log.error("search index not built, will begin again", failures=failures, error=str(error))
            except Exception as error:
                failures += 1
                _log.error("search index not built, will begin again", failures=failures, error=repr(error))
            await self._sleep(min(RETRY_FIRST_S * 2.0 ** min(failures - 1, 20), RETRY_MOST_S))

    async def _build(self) -> None:
        begun = time.monotonic()
        await self._index.begin()
        counts = {"users": 0, "tweets": 0}
        async for users in self._through(self._users):
            await self._fill(users)
            counts["users"] += len(users)
        async for tweets in self._through(self._tweets):
            await self._fill(tweets)
            counts["tweets"] += len(tweets)
        await self._index.finish()
        _log.info("search index built", seconds=round(time.monotonic() - begun, 3), **counts)

    async def _fill(self, changes: list[Change]) -> None:
        await self._index.fill([change for change in changes if change.document is not None])

    async def _through(self, scan: Callable[[int], AsyncIterator[list[Change]]]) -> AsyncIterator[list[Change]]:
        """A scan to its end, taken up again behind the last id after a failure that passes."""
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
                _log.warning("scan interrupted, will go on", after_id=after_id, code=error.code().name)
            await self._sleep(min(RETRY_FIRST_S * 2.0 ** min(failures - 1, 20), RETRY_MOST_S))

    async def _tweets(self, after_id: int) -> AsyncIterator[list[Change]]:
        async for message in self._scan_tweets(tweet.ScanTweetsRequest(after_id=after_id)):
            changes: list[Change] = []
            for part in cooperative_batches(message.cores):
                changes.extend(map(tweet_change, part))
                await asyncio.sleep(0)
            if changes:
                yield changes

    async def _users(self, after_id: int) -> AsyncIterator[list[Change]]:
        async for message in self._scan_users(identity.ScanUsersRequest(after_id=after_id)):
            changes: list[Change] = []
            for part in cooperative_batches(message.users):
                followers = await self._followers.counts([one.user.id for one in part])
                changes.extend(
                    Change(
                        Collection.USERS,
                        one.user.id,
                        user_document(one.user, one.state, one.version, followers[one.user.id]),
                    )
                    for one in part
                )
                await asyncio.sleep(0)
            if changes:
                yield changes
