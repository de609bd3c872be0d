"""Builds cold home timelines. At most one build per user is in progress in this process. A build continues when the
call that started it ends."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

import structlog
from prometheus_client import Counter

from services.platform.log_events import LogEvent
from services.shared.celebrity_tiers import CelebritySubscriber
from services.timeline.fanout_rules import FanoutRules
from services.timeline.followees import FolloweeCache
from services.timeline.pull import DescendingMerge, TweetIdSource, merge_for_build, newest_of
from services.timeline.store import CAPACITY, HomeList, HomeTimelineStore

# Maximum number of concurrent builds in this process; further builds are queued. Each build has up to CALLS_IN_FLIGHT
# calls to the tweet service in flight.
MAX_BUILDS = 64
# Maximum number of queued builds. Beyond it a read starts no build and pulls its page. All home timelines are cold
# after a start of the mesh, so many builds are requested at once.
MAX_QUEUED = 1_000

_built = Counter("roost_timeline_builds", "Builds of home timelines, by how they ended.", ("outcome",))
log = structlog.get_logger(__name__)


class HomeBuild:
    """A build of one home timeline.

    `home` is the result: None while the build runs, and if the store refused to open it. `installed` is true if `home`
    was stored, so that the home timeline is warm. `opened_ms` is the start of the build in Unix milliseconds.
    """

    def __init__(self, user_id: int) -> None:
        self.user_id = user_id
        self.opened_ms = 0
        self.home: HomeList | None = None
        self.installed = False
        self.task: asyncio.Task[None] | None = None
        # The merge that reads the ids; None until the followees are fetched.
        self.merge: DescendingMerge | None = None

    async def done(self, within_s: float) -> bool:
        """Waits up to `within_s` seconds for the build to end. Returns whether it has ended. Raises the error of a
        failed build."""
        assert self.task is not None, "a build is handed out started"
        await asyncio.wait((self.task,), timeout=max(within_s, 0))
        if not self.task.done():
            return False
        if not self.task.cancelled():
            self.task.result()
        return True

    def so_far(self, mode: str) -> HomeList:
        """Returns the ids received so far, at most CAPACITY, as a home timeline that may lack any other ids. Use it for
        a partial page only. `mode` is the timeline mode."""
        answers = self.merge.first_answers.values() if self.merge is not None else ()
        ids = {tweet_id for found in answers for tweet_id in found}
        return HomeList(sorted(ids)[-CAPACITY:], 0, self.opened_ms, mode)


class HomeBuilder:
    """A worker that runs the builds of this process."""

    def __init__(
        self,
        store: HomeTimelineStore,
        relations: FolloweeCache,
        owner: TweetIdSource,
        tiers: CelebritySubscriber,
        rules: FanoutRules,
        clock: Callable[[], float],
        keep: int = CAPACITY,
    ) -> None:
        """`owner` reads ids from the tweet service, not from a cache. `clock` returns Unix seconds. `keep` is the
        maximum number of ids that a build stores; only tests pass another value than CAPACITY."""
        self._keep = keep
        self._store = store
        self._relations = relations
        self._owner = owner
        self._tiers = tiers
        self._rules = rules
        self._clock = clock
        self._in_progress: dict[int, HomeBuild] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(MAX_BUILDS)

    def get_or_start(self, user_id: int) -> HomeBuild | None:
        """Returns the build in progress for this user, or starts one. Returns None if MAX_QUEUED builds are queued."""
        build = self._in_progress.get(user_id)
        if build is None:
            if len(self._tasks) >= MAX_BUILDS + MAX_QUEUED:
                return None
            build = self._start(user_id)
        return build

    def restart(self, user_id: int) -> HomeBuild:
        """Starts a new build, even if an earlier build is in progress or MAX_QUEUED builds are queued. The store then
        rejects the result of the earlier build."""
        return self._start(user_id)

    async def start(self) -> None:
        """Does nothing: reads start the builds."""

    async def stop(self) -> None:
        """Cancels the builds in progress; their home timelines stay cold."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, user_id: int) -> HomeBuild:
        build = HomeBuild(user_id)
        # An empty context, because the build must not have the deadline and the actor of the call that starts it.
        build.task = asyncio.create_task(self._run(build), name=f"build-{user_id}", context=contextvars.Context())
        self._in_progress[user_id] = build
        self._tasks.add(build.task)
        build.task.add_done_callback(lambda task: self._ended(build, task))
        return build

    def _ended(self, build: HomeBuild, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._in_progress.get(build.user_id) is build:
            del self._in_progress[build.user_id]
        if task.cancelled():
            outcome = "cancelled"
        elif (error := task.exception()) is not None:
            # Logged here, because every call that awaited the build may have ended before.
            log.warning(LogEvent.HOME_BUILD_FAILED, user_id=build.user_id, error=repr(error))
            outcome = "failed"
        else:
            outcome = "installed" if build.installed else "overtaken"
        _built.labels(outcome).inc()

    async def _run(self, build: HomeBuild) -> None:
        async with self._slots:
            await self.pull(build)

    async def pull(self, build: HomeBuild) -> None:
        """Opens the build in the store, pulls the ids, and closes the build, which makes the home timeline warm. If the
        store does not open it, returns without a result. After any error the home timeline is cold."""
        user_id, rules = build.user_id, self._rules
        # The time is taken before the followees are fetched. Tweets of a user who is followed later may be missing, so
        # this user is pulled at each read.
        build.opened_ms = int(self._clock() * 1000)
        opened = await self._store.open_build(user_id, build.opened_ms, rules.mode)
        if opened is None:
            return
        try:
            relations = await self._relations.fetch(user_id)
            authors = [author for author in relations.followees if rules.pushes(self._tiers, author)]
            build.merge = merge_for_build(self._owner, authors, self._keep)
            ids, floor = await newest_of(build.merge, self._keep)
            home = await self._store.close_build(opened, ids, floor)
        except BaseException:
            await self._store.abandon_build(opened)
            raise
        build.installed = home is not None
        build.home = home or HomeList(ids, floor, build.opened_ms, rules.mode)
