"""Hydrates tweets: turns ids and a reader into visible tweets. The only place that applies the rules of deletion,
blocks, mutes, suspension and parents.

Tweets are cached for all readers, and what differs between readers is cached for each, both under their versions; so a
delete, block or suspension affects the next read. A tweet is the concatenation of serialized fragments; no message is
built.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import grpc.aio
from prometheus_client import Counter

from services.platform.shared_state import SharedUserRefs
from services.platform.versions import Kind, Snapshot, Versioned, key_of
from services.shared.hydration.cache import CachedTweet, HydratedTweet, HydrationCache
from services.shared.hydration.loader import TweetLoader
from services.shared.hydration.owner_responses import await_all
from services.shared.hydration.parsed import TweetRecord
from services.shared.hydration.readers import NOBODY, CachedView, ReaderView, ReaderViews

# Maximum number of ids hydrated at once; more ids are hydrated in several rounds. A tweet refers to up to two more
# users and two more tweets, and the services accept 1,000 ids per call.
MAX_ROUND_IDS = 300
# Cached tweets are used only if their versions are unchanged.
_hydrated = Counter("roost_hydration_tweets", "Tweets looked up by hydration, by where they came from.", ("source",))
_from_cache, _from_owner = (_hydrated.labels(source) for source in ("cache", "owner"))
# Number of ids hydrated beyond those that the page needs. Few tweets are hidden from a reader, so these usually fill the
# page.
_SPARE_IDS = 4


class ListRules(Protocol):
    """Rules of one kind of list, in addition to the rules that apply to every list."""

    def admitted(self, tweets: Sequence[CachedTweet]) -> Sequence[CachedTweet]:
        """Returns the tweets that may be in the list, in their order. Some tweets are heads: read only their ids."""

    def requires_parent(self, reply: CachedTweet) -> bool:
        """Returns whether the list shows the reply only if its parent is live and the parent's author visible."""


class Hydrated(NamedTuple):
    """The visible tweets of some ids. `parts` are the cached tweets of which the result is made, hidden ones included:
    if they are unchanged, and the reader's view too, the result is still true. It is None if something was not cached.
    """

    tweets: list[HydratedTweet]
    parts: Sequence[Versioned[CachedTweet | None]] | None


class _Loaded(NamedTuple):
    """Records by tweet id, and a snapshot with the versions of these tweets from before they were loaded."""

    records: dict[int, TweetRecord]
    snapshot: Snapshot


class Hydrator:
    """Hydrates tweets for readers. `channel` reaches tweet, identity, graph and engagement; calls carry the deadline of
    the current call. `cache` is shared by all services of the process.

    `shared_refs` (cluster backend) supplies user references from Redis; only those that Redis does not have are read
    from identity.
    """

    def __init__(
        self, channel: grpc.aio.Channel, cache: HydrationCache, shared_refs: SharedUserRefs | None = None
    ) -> None:
        self._cache = cache
        self._loader = TweetLoader(channel, cache, shared_refs)
        self._readers = ReaderViews(channel, cache, self._loader)

    async def visible(
        self,
        reader_id: int,
        ids: Sequence[int],
        limit: int,
        *,
        hide_muted: bool = False,
        rules: ListRules | None = None,
    ) -> list[HydratedTweet]:
        """Returns the first `limit` tweets of `ids` that the reader (0: not signed in) may see, in the order of `ids`.

        Leaves out unknown and deleted tweets, tweets whose author is suspended, deactivated, blocks the reader or is
        blocked by the reader, and retweets whose original is left out. A quoted tweet that is hidden becomes a
        tombstone. With `hide_muted`, also leaves out tweets and retweeted originals of muted users; with `rules`, also
        tweets that the rules do not admit. Raises AioRpcError if an owner cannot answer, because nothing may be shown
        unchecked.
        """
        view = await self._readers.open(reader_id)
        return (await self.hydrate(view, ids, limit, hide_muted=hide_muted, rules=rules)).tweets

    async def hydrate(
        self,
        view: ReaderView,
        ids: Sequence[int],
        limit: int,
        *,
        hide_muted: bool,
        rules: ListRules | None,
        followees: frozenset[int] = NOBODY,
    ) -> Hydrated:
        """Does the same as `visible` for the view of a reader, and returns the parts of the result too. `followees` are
        those of the reader; without them, graph is asked more often."""
        found: list[HydratedTweet] = []
        parts: list[Versioned[CachedTweet | None]] | None = []
        start, size = 0, min(limit + limit // 4 + _SPARE_IDS, MAX_ROUND_IDS)
        while start < len(ids) and len(found) < limit:
            tweets, entries = await self._tweets(view, ids[start : start + size], rules, followees)
            if (check := self._readers.author_check(view, _authors_of(tweets), followees)) is not None:
                await check
            shown = _shown(tweets, view, hide_muted, rules, limit - len(found))
            states, were_cached = await self._readers.load_states(view, [tweet for tweet, _ in shown])
            parts = None if parts is None or entries is None or not were_cached else [*parts, *entries]
            found += [tweet.shown(states, hides_nested) for tweet, hides_nested in shown]
            start, size = start + size, min(size * 2, MAX_ROUND_IDS)
        return Hydrated(found, parts)

    def cached_view(self, reader_id: int) -> CachedView:
        """Returns what is cached for a reader (≠ 0). Compare the versions, then call `view`."""
        return self._readers.cached(reader_id)

    async def view(self, reader_id: int, cached: CachedView, current: Sequence[bool]) -> ReaderView:
        """Returns the view of a reader (≠ 0) from what `cached_view` returned and what `Versions.current` returned for
        it."""
        return await self._readers.confirmed(reader_id, cached, current)

    async def author_fragments(self, reader_id: int, user_ids: Iterable[int]) -> dict[int, bytes]:
        """Returns the field `author` of a tweet for each of these users (≤ 1,000), by user id. Users hidden from the
        reader (0: not signed in) are left out."""
        wanted = set(user_ids)
        view = await self._readers.open(reader_id)
        fragments = await self._loader.author_fragments(wanted, self._cache.versions.snapshot())
        if (check := self._readers.author_check(view, wanted)) is not None:
            await check
        hidden = view.filter.hidden
        return {i: fragment for i, fragment in fragments.items() if fragment and i not in hidden}

    async def _tweets(
        self, view: ReaderView, ids: Sequence[int], rules: ListRules | None, followees: frozenset[int]
    ) -> tuple[Sequence[CachedTweet], Sequence[Versioned[CachedTweet | None]] | None]:
        """Returns the tweets that somebody may see and that the rules admit, in the order of `ids`, complete. Also
        returns the cached tweets of all ids; None if a tweet was loaded."""
        entries = self._cache.tweets.get_many(ids)
        current = await self._cache.versions.current(entries)
        loaded = None
        if False in current:
            tweets = {
                i: entry.value
                for i, entry, is_current in zip(ids, entries, current, strict=True)
                if entry is not None and is_current
            }
            missing = [i for i in ids if i not in tweets]
            _from_owner.inc(len(missing))
            _from_cache.inc(len(tweets))
            loaded = await self._load(view, missing)
            tweets |= self._cache_heads(missing, loaded)
            live = [tweet for i in ids if (tweet := tweets[i]) is not None]
        else:
            _from_cache.inc(len(ids))
            live = [entry.value for entry in entries if entry is not None and entry.value is not None]
        admitted = live if rules is None else rules.admitted(live)
        heads = [tweet.id for tweet in admitted if not tweet.whole]
        if not heads:
            return admitted, None if loaded is not None else [entry for entry in entries if entry is not None]
        if loaded is None or not loaded.records.keys() >= set(heads):
            loaded = await self._load(view, heads)
        records = [record for i in heads if (record := loaded.records.get(i)) is not None]
        calls: list[Any] = [self._loader.complete(records, view.reader_id, loaded.snapshot)]
        # Started before the other calls, so that over sockets they run at the same time.
        if (check := self._readers.author_check(view, _authors_of(admitted), followees)) is not None:
            calls.append(check)
        complete, states = (await await_all(calls))[0]
        self._readers.add_states(view, states)
        return [
            done for tweet in admitted if (done := tweet if tweet.whole else complete.get(tweet.id)) is not None
        ], None

    async def _load(self, view: ReaderView, ids: Sequence[int]) -> _Loaded:
        snapshot = self._cache.versions.snapshot()
        await snapshot.read([key_of(kind, i) for kind in (Kind.TWEET, Kind.TWEET_STATE) for i in ids])
        return _Loaded(await self._loader.records(ids, view.reader_id), snapshot)

    def _cache_heads(self, ids: Sequence[int], loaded: _Loaded) -> dict[int, CachedTweet | None]:
        """Caches the heads of these tweets, and which of them do not exist or are not live; returns them by id."""
        found: dict[int, CachedTweet | None] = {}
        for i in ids:
            record = loaded.records.get(i)
            found[i] = head = None if record is None else CachedTweet(record)
            # The ids of a live tweet never change. One that is not live may be created or restored.
            keys = (key_of(Kind.TWEET if head is None else Kind.TWEET_STATE, i),)
            if (stamp := loaded.snapshot.stamp(keys)) is not None:
                self._cache.tweets.put(i, Versioned(keys, stamp, head))
        return found


def _authors_of(tweets: Sequence[CachedTweet]) -> set[int]:
    """Returns the users whose blocks may hide something of the tweets."""
    return set().union(*[tweet.author_ids for tweet in tweets])


def _shown(
    tweets: Sequence[CachedTweet], view: ReaderView, hide_muted: bool, rules: ListRules | None, limit: int
) -> list[tuple[CachedTweet, bool]]:
    """Returns the first `limit` of these tweets that the reader may see, each with whether its quoted tweet is hidden
    from the reader."""
    hidden = view.filter.hidden
    muted = view.filter.muted if hide_muted else ()
    if not hidden and not muted and rules is None:
        return [(tweet, False) for tweet in tweets[:limit]]
    found: list[tuple[CachedTweet, bool]] = []
    for tweet in tweets:
        needs_parent = tweet.parent_id and rules is not None and rules.requires_parent(tweet)
        if needs_parent and (not tweet.parent_live or tweet.parent_author_id in hidden):
            continue
        hides_nested = False
        if hidden or muted:
            if tweet.author_id in hidden or tweet.author_id in muted:
                continue
            if tweet.original_id:
                if tweet.original_author_id in hidden or tweet.original_author_id in muted:
                    continue
            elif tweet.nested is not None:
                hides_nested = tweet.nested.author_id in hidden
        found.append((tweet, hides_nested))
        if len(found) == limit:
            break
    return found
