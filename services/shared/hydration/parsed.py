"""Parses tweet cores and user references, and caches the results: the same cores and references occur on many pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

from roost.identity.v1 import user_pb2, user_service_pb2
from roost.tweet.v1 import tweet_pb2

from services.platform.caching.generational import GenerationalCache
from services.shared.hydration.fragments import NO_METRICS, author_fragment, metrics_fragment

_ACTIVE = user_pb2.USER_STATE_ACTIVE

# Maximum number of messages in each of the two generations of a cache; beyond it, the older generation is dropped. A
# message takes about 1 kB, key included: at most 60 MB per cache.
MAX_CACHED = 30_000


class TweetRecord(NamedTuple):
    """A live tweet as hydration reads it; an id of 0 means none. `data` is the core fragment, `metrics` the metrics
    fragment of a tweet without likes and bookmarks."""

    id: int
    author_id: int
    original_id: int
    original_author_id: int
    quoted_id: int
    quoted_author_id: int
    parent_id: int
    parent_author_id: int
    data: bytes
    metrics: bytes
    retweets: int
    replies: int
    quotes: int
    retweeted: bool


class ActiveUser(NamedTuple):
    """An active user as hydration reads it. `fragment` is the field `author` of a tweet."""

    user_id: int
    fragment: bytes


T = TypeVar("T")
# The value that is cached for a message for which `parse` returned None.
_OMITTED: Any = object()


class ParseCache(Generic[T]):
    """Parses serialized messages and caches the results. The cache keys are the serialized bytes, so an entry is never
    out of date.

    Parsing a core takes 3 µs, a cache hit 0.3 µs (measured).
    """

    def __init__(self, parse: Callable[[bytes], T | None], max_cached: int = MAX_CACHED) -> None:
        """`parse` returns None for a message that `read` leaves out. `max_cached` is the number of messages in each of
        the two generations of the cache."""
        self._parse = parse
        # A message that `read` leaves out has the value _OMITTED, because the cache cannot hold None.
        self._cache: GenerationalCache[bytes, Any] = GenerationalCache(max_cached)

    def read(self, serialized: Iterable[bytes]) -> list[T]:
        """Returns the parsed messages in order, without those that `parse` leaves out."""
        known = list(serialized)
        found: list[Any] = self._cache.get_many(known)
        if None in found:
            found = [self._read(data) if one is None else one for data, one in zip(known, found, strict=True)]
        return [one for one in found if one is not _OMITTED]

    def _read(self, data: bytes) -> Any:
        parsed = self._parse(data)
        kept = _OMITTED if parsed is None else parsed
        self._cache.put(data, kept)
        return kept


def parse_live_core(data: bytes) -> TweetRecord | None:
    """Parses a serialized TweetCore; returns None if the tweet is not live."""
    message = tweet_pb2.TweetCore.FromString(data)
    head = message.head
    if head.deleted:
        return None
    counted = message.retweets or message.replies or message.quotes
    return TweetRecord(
        head.id,
        head.author_id,
        head.retweet_of_id,
        head.retweet_of_author_id,
        head.quote_of_id,
        head.quote_of_author_id,
        head.reply_to_id,
        head.reply_to_author_id,
        message.core,
        metrics_fragment(0, message.retweets, message.replies, message.quotes, 0) if counted else NO_METRICS,
        message.retweets,
        message.replies,
        message.quotes,
        message.retweeted,
    )


def parse_active_user(data: bytes) -> ActiveUser | None:
    """Parses a serialized UserRefEntry; returns None if the user is suspended or deactivated."""
    entry = user_service_pb2.UserRefEntry.FromString(data)
    return ActiveUser(entry.user_id, author_fragment(entry.ref)) if entry.state == _ACTIVE else None
