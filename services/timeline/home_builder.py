"""Builds of cold homes: one a user at a time, bounded in number, and independent of whoever asked first."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence

import structlog
from prometheus_client import Counter

from services.shared.celebrity_tiers import CelebritySubscriber
from services.timeline.fanout_rules import FanoutRules
from services.timeline.followees import RelationCache
from services.timeline.pull import TweetIdSource, newest_across_authors
from services.timeline.store import CAPACITY, HomeList, HomeTimelineStore

# Each keeps up to CALLS_IN_FLIGHT calls at the tweet service busy.
MAX_BUILDS = 64
# After a cold start of everything this many wait their turn; further readers pull for themselves.
MAX_WAITING = 1_000

_built = Counter("roost_timeline_builds", "Builds of home timelines, by how they ended.", ("outcome",))
log = structlog.get_logger(__name__)


class HomeBuild:
    """One build under way. `home` is what it pulled, once it is done; `installed` whether that is the warm home now."""

    def __init__(self, user_id: int) -> None:
        self.user_id = user_id
        self.opened_ms = 0
        self.home: HomeList | None = None
        self.installed = False
        self.task: asyncio.Task[None] | None = None
        self._seen: dict[int, Sequence[int]] = {}

    @property
    def seen(self) -> dict[int, Sequence[int]]:
        """The newest ids of the authors who have answered so far."""
        return self._seen

    async def done(self, within_s: float) -> bool:
        """Waits for the end; False where `within_s` seconds were not enough. Raises what made the build fail."""
        assert self.task is not None, "a build is handed out started"
        await asyncio.wait((self.task,), timeout=max(within_s, 0))
        if not self.task.done():
            return False
        if not self.task.cancelled():
            self.task.result()
        return True

    def so_far(self, mode: str) -> HomeList:
        """What is there of a home that is not done: for a partial page, and for nothing else."""
        ids = {tweet_id for found in self._seen.values() for tweet_id in found}
        return HomeList(sorted(ids)[-CAPACITY:], 0, self.opened_ms, mode)


class HomeBuilder:
    """The builds of this process."""

    def __init__(
        self,
        store: HomeTimelineStore,
        relations: RelationCache,
        owner: TweetIdSource,
        tiers: CelebritySubscriber,
        rules: FanoutRules,
        clock: Callable[[], float],
        keep: int = CAPACITY,
    ) -> None:
        """`clock` gives unix seconds; `keep` is how many ids a build takes, other than CAPACITY only in tests."""
        self._keep = keep
        self._store = store
        self._relations = relations
        self._owner = owner
        self._tiers = tiers
        self._rules = rules
        self._clock = clock
        self._under_way: dict[int, HomeBuild] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(MAX_BUILDS)

    def join(self, user_id: int) -> HomeBuild | None:
        """The build of this home that is under way, or a new one; None where too many wait already."""
        build = self._under_way.get(user_id)
        if build is None:
            if len(self._tasks) >= MAX_BUILDS + MAX_WAITING:
                return None
            build = self._start(user_id)
        return build

    def restart(self, user_id: int) -> HomeBuild:
        """A new build of this home, whatever is under way: that one is overtaken and will install nothing."""
        return self._start(user_id)

    async def start(self) -> None:
        """Nothing to begin: builds begin with the reads that need them."""

    async def stop(self) -> None:
        """Ends the builds under way; their homes stay cold."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, user_id: int) -> HomeBuild:
        build = HomeBuild(user_id)
        # An empty context: neither the deadline nor the identity of the first reader is the build's.
        build.task = asyncio.create_task(self._run(build), name=f"build-{user_id}", context=contextvars.Context())
        self._under_way[user_id] = build
        self._tasks.add(build.task)
        build.task.add_done_callback(lambda task: self._ended(build, task))
        return build

    def _ended(self, build: HomeBuild, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._under_way.get(build.user_id) is build:
            del self._under_way[build.user_id]
        if task.cancelled():
            outcome = "cancelled"
        elif (error := task.exception()) is not None:
            # Looked at here, since all who waited may have gone.
            log.warning("build failed", user_id=build.user_id, error=repr(error))
            outcome = "failed"
        else:
            outcome = "installed" if build.installed else "overtaken"
        _built.labels(outcome).inc()

    async def _run(self, build: HomeBuild) -> None:
        async with self._slots:
            await self.pull(build)

    async def pull(self, build: HomeBuild) -> None:
        """Open, pull, close. Whatever fails, the home is cold afterwards."""
        user_id, rules = build.user_id, self._rules
        # Before the opening: what is stamped later than this may be missing, and is pulled.
        build.opened_ms = int(self._clock() * 1000)
        opened = await self._store.open_build(user_id, build.opened_ms, rules.mode)
        if opened is None:
            return
        try:
            relations = await self._relations.fetch(user_id)
            authors = [author for author in relations.followees if rules.pushes(self._tiers, author)]
            ids, floor = await newest_across_authors(self._owner, authors, build.seen, self._keep)
            home = await self._store.close_build(opened, ids, floor)
        except BaseException:
            await self._store.abandon_build(opened)
            raise
        build.installed = home is not None
        build.home = home or HomeList(ids, floor, build.opened_ms, rules.mode)
