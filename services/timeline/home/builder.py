"""Builds cold home timelines: one build per user at a time, bounded in number, independent of the request that started
it."""

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

# Builds that run at once; each has up to CALLS_IN_FLIGHT calls at the tweet service.
MAX_BUILDS = 64
# Builds that may queue, as after a cold start of the mesh. Beyond that a read starts no build and pulls its own page.
MAX_QUEUED = 1_000

_built = Counter("roost_timeline_builds", "Builds of home timelines, by how they ended.", ("outcome",))
log = structlog.get_logger(__name__)


class HomeBuild:
    """A build of one home timeline. `home` is its result, set when the build is done. `installed` is true if `home` was
    stored as the warm home timeline."""

    def __init__(self, user_id: int) -> None:
        self.user_id = user_id
        self.opened_ms = 0
        self.home: HomeList | None = None
        self.installed = False
        self.task: asyncio.Task[None] | None = None
        # Set once the authors are known.
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
        """Returns the ids found so far as an incomplete home timeline; use it for a partial page only."""
        answers = self.merge.first_answers.values() if self.merge is not None else ()
        ids = {tweet_id for found in answers for tweet_id in found}
        return HomeList(sorted(ids)[-CAPACITY:], 0, self.opened_ms, mode)


class HomeBuilder:
    """Runs the builds of this process."""

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
        """`clock` returns Unix seconds. `keep` is how many ids a build stores; only tests pass another value than
        CAPACITY."""
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
        """Returns the build in progress for this user, or starts one. Returns None if too many builds are queued."""
        build = self._in_progress.get(user_id)
        if build is None:
            if len(self._tasks) >= MAX_BUILDS + MAX_QUEUED:
                return None
            build = self._start(user_id)
        return build

    def restart(self, user_id: int) -> HomeBuild:
        """Starts a new build, even if an earlier one is in progress; the earlier one then does not store its result."""
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
        # An empty context: the build must not inherit the deadline or identity of the first reader.
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
            # Logged here, because all callers that awaited the build may have been cancelled.
            log.warning(LogEvent.HOME_BUILD_FAILED, user_id=build.user_id, error=repr(error))
            outcome = "failed"
        else:
            outcome = "installed" if build.installed else "overtaken"
        _built.labels(outcome).inc()

    async def _run(self, build: HomeBuild) -> None:
        async with self._slots:
            await self.pull(build)

    async def pull(self, build: HomeBuild) -> None:
        """Opens the build in the store, pulls the ids and closes it. After any error the home timeline is cold."""
        user_id, rules = build.user_id, self._rules
        # Read before the followees are fetched: a user followed after this time may be missing from the build and is
        # pulled at each read.
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
