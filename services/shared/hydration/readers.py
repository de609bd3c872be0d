"""Loads and caches what differs between readers: whom each may not see, and to which tweets each reacted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import grpc.aio
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub

from services.platform.versions import Versioned
from services.shared.hydration.cache import (
    CachedTweet,
    HydrationCache,
    R,
    ReaderCache,
    ReaderFilter,
    ReaderStates,
    ViewerStates,
    filter_keys,
    states_keys,
)
from services.shared.hydration.loader import TweetLoader

# Maximum number of users about whom graph is asked in one call; the proto states it.
MAX_CANDIDATES = 1_000
NOBODY: frozenset[int] = frozenset()


class ReaderView:
    """What one reader sees, for one page: the reader's filter, and the viewer states that are known. A reader of 0 is
    not signed in: nobody is hidden, and there are no viewer states."""

    __slots__ = ("filter", "reader_id", "states")

    def __init__(self, reader_id: int, reader_filter: ReaderFilter, states: ReaderStates) -> None:
        self.reader_id = reader_id
        self.filter = reader_filter
        self.states = states

    def equals(self, other: ReaderView) -> bool:
        """Returns whether a page for this view is a page for the other one too: both are of the same version of the same
        reader's filter and viewer states."""
        return self.filter is other.filter and self.states is other.states


class CachedView(NamedTuple):
    """What is cached for a reader; None if nothing is. Compare its versions before use."""

    filter: Versioned[ReaderFilter] | None
    states: Versioned[ReaderStates] | None


class KnownStates(NamedTuple):
    """Viewer states as indexes into VIEWER by tweet id. `were_cached` is false if some were loaded, or are missing
    because engagement did not answer."""

    by_tweet: Mapping[int, int]
    were_cached: bool


class AuthorCheck:
    """A call of graph in progress. Awaiting it adds the response to the reader's filter, or raises AioRpcError."""

    def __init__(
        self, view: ReaderView, cache: HydrationCache, user_ids: Collection[int], followees: frozenset[int], call: Any
    ) -> None:
        self._view = view
        self._followees = followees
        self._cache = cache
        self._user_ids = user_ids
        self._call = call

    def __await__(self) -> Generator[Any, None, None]:
        answer = yield from self._call.__await__()
        self._view.filter.add(self._user_ids, chain(answer.blocked_ids, answer.blocked_by_ids), answer.muted_ids)
        if self._followees:
            self._view.filter.followees = self._followees
        self._cache.filters.grew(self._view.reader_id)

    def cancel(self) -> None:
        """Cancels the call."""
        self._call.cancel()


class ReaderViews:
    """Makes the views of readers. `channel` reaches graph. Methods raise AioRpcError if graph, tweet or identity cannot
    answer."""

    def __init__(self, channel: grpc.aio.Channel, cache: HydrationCache, loader: TweetLoader) -> None:
        self._get_filter: Any = GraphServiceStub(channel).GetVisibilityFilter
        self._cache = cache
        self._loader = loader

    def cached(self, reader_id: int) -> CachedView:
        """Returns what is cached for a reader (≠ 0)."""
        return CachedView(self._cache.filters.get(reader_id), self._cache.states.get(reader_id))

    async def open(self, reader_id: int) -> ReaderView:
        """Returns the view of a reader, with what is cached and current."""
        if not reader_id:
            return ReaderView(0, ReaderFilter(), ReaderStates())
        cached = self.cached(reader_id)
        return await self.confirmed(reader_id, cached, await self._cache.versions.current(cached))

    async def confirmed(self, reader_id: int, known: CachedView, current: Sequence[bool]) -> ReaderView:
        """Returns the view of a reader (≠ 0) with those parts of `known` that are current, as `Versions.current`
        returned for them."""
        reader_filter, states = known
        if reader_filter is not None and states is not None and False not in current:
            return ReaderView(reader_id, reader_filter.value, states.value)
        cached = self._cache
        snapshot = cached.versions.snapshot()
        await snapshot.read((*filter_keys(reader_id), *states_keys(reader_id)))

        def renewed(
            entry: Versioned[R] | None,
            is_current: bool,
            keys: tuple[int, ...],
            cache: ReaderCache[R],
            empty: Callable[[], R],
        ) -> R:
            if entry is not None and is_current:
                return entry.value
            value, stamp = empty(), snapshot.stamp(keys)
            if stamp is not None:
                cache.put(reader_id, Versioned(keys, stamp, value))
            return value

        return ReaderView(
            reader_id,
            renewed(reader_filter, current[0], filter_keys(reader_id), cached.filters, ReaderFilter),
            renewed(states, current[1], states_keys(reader_id), cached.states, ReaderStates),
        )

    def author_check(
        self, view: ReaderView, user_ids: set[int], followees: frozenset[int] = NOBODY
    ) -> AuthorCheck | None:
        """Starts a call of graph about the users (≤ 1,000) whose relation to the reader the view does not know; None if
        it knows all. The call is also about the reader's `followees`, if they are few, because the reader will see their
        tweets next."""
        if not view.reader_id or not (unknown := view.filter.unknown(user_ids)):
            return None
        if followees is view.filter.followees or len(unknown) + len(followees) > MAX_CANDIDATES:
            followees = NOBODY
        request = graph.GetVisibilityFilterRequest(user_id=view.reader_id, candidate_ids=unknown | followees)
        return AuthorCheck(view, self._cache, unknown - followees, followees, self._get_filter(request))

    async def load_states(self, view: ReaderView, tweets: Iterable[CachedTweet]) -> KnownStates:
        """Returns viewer states that include those of these tweets (≤ 300), after loading the ones that the view does
        not know."""
        # Another task that hydrates a page for this reader may add states to this dict meanwhile, or put a new dict in
        # its place. No task removes states from this dict, so all states that were found in it stay in it.
        states = view.states.by_tweet
        if view.reader_id and (unknown := {i for tweet in tweets for i in tweet.stateful_ids if i not in states}):
            loaded = await self._loader.viewer_states(view.reader_id, list(unknown))
            self.add_states(view, loaded)
            return KnownStates({**states, **loaded}, False)
        return KnownStates(states, True)

    def add_states(self, view: ReaderView, states: ViewerStates) -> None:
        """Adds viewer states to the view and the cache."""
        if states:
            view.states.add(states)
            self._cache.states.grew(view.reader_id)
