"""What hydration caches: tweets without what differs between readers, the authors of tweets, and what differs between
readers.

Every entry is a `Versioned` value: it is compared with the versions of what it was made of before each use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from services.platform.caching.generational import GenerationalCache
from services.platform.versions import Kind, Versioned, Versions, key_of
from services.shared.hydration.fragments import QUOTED, RETWEETED, VIEWER, framed, tombstone
from services.shared.hydration.parsed import TweetRecord

# Tweets in each of two generations, about 2 kB each: at most 80 MB.
MAX_TWEETS = 20_000
# Authors in each of two generations, about 0.4 kB each.
MAX_USERS = 20_000
# Size of each of the two caches of readers, in ids of about 100 bytes, in each of two generations: at most 200 MB in all.
MAX_READER_IDS = 500_000
# Size of a reader's entry beside its ids.
_READER_WEIGHT = 12
# Maximum number of authors whose blocks, and of tweets whose reactions, are cached for one reader: more than a reader sees
# in a day. An entry that would exceed it begins empty again.
MAX_IDS_PER_READER = 5_000


class HydratedTweet(NamedTuple):
    """A visible tweet. `data` is a serialized roost.tweet.v1.Tweet."""

    id: int
    author_id: int
    data: bytes


class CachedTweet:
    """A live tweet as all readers see it.

    A *head* has only the ids that rules need (`whole` is empty). A complete tweet also has its fragments: `plain` without
    and `whole` with the nested tweet, both without viewer state. `nested` is the retweeted or quoted tweet; None if it is
    hidden from everybody. `parent_live` says whether the tweet that this one replies to is live and its author active.
    `is_stateful` says whether the tweet has likes, bookmarks or retweets: to other tweets no reader has a viewer state.
    `stateful_ids` are the ids, of this tweet and of the nested one, for which that is true. `author_ids` are the users
    whose blocks may hide something of it.
    """

    __slots__ = (
        "author_id",
        "author_ids",
        "id",
        "is_stateful",
        "nested",
        "original_author_id",
        "original_id",
        "parent_author_id",
        "parent_id",
        "parent_live",
        "plain",
        "quoted_id",
        "stateful_ids",
        "variants",
        "whole",
    )

    def __init__(self, record: TweetRecord) -> None:
        """Makes a head."""
        self.id = record.id
        self.author_id = record.author_id
        self.original_id = record.original_id
        self.original_author_id = record.original_author_id
        self.quoted_id = record.quoted_id
        self.parent_id = record.parent_id
        self.parent_author_id = record.parent_author_id
        authors = {record.author_id, record.parent_author_id, record.original_author_id, record.quoted_author_id}
        self.author_ids = tuple(authors - {0})
        self.parent_live = False
        self.nested: CachedTweet | None = None
        self.plain = self.whole = b""
        self.is_stateful = False
        self.stateful_ids: Sequence[int] = ()
        # The results of `shown`, by viewer states; at most 2 × 8 × 8, usually one or two.
        self.variants: dict[int, HydratedTweet] = {}

    def complete(self, plain: bytes, is_stateful: bool, nested: CachedTweet | None, parent_live: bool) -> None:
        """Makes the head a complete tweet."""
        self.plain = plain
        self.is_stateful = is_stateful
        self.nested = nested
        self.parent_live = parent_live
        stateful = [self.id] if is_stateful else []
        if nested is not None and nested.is_stateful:
            stateful.append(nested.id)
        self.stateful_ids = tuple(stateful)
        self.whole = plain + self._nested_field(False, 0)

    def shown(self, states: Mapping[int, int], hides_nested: bool) -> HydratedTweet:
        """Returns the complete tweet with the reader's viewer states, which are indexes into VIEWER by tweet id. With
        `hides_nested`, a quoted tweet is a tombstone. Returns the same object for equal states."""
        own = nested = 0
        if self.stateful_ids:
            own = states.get(self.id, 0)
            nested = states.get(self.nested.id, 0) if self.nested is not None else 0
        variant = own | nested << 3 | hides_nested << 6
        found = self.variants.get(variant)
        if found is None:
            data = self.plain + VIEWER[own] + self._nested_field(hides_nested, nested) if variant else self.whole
            found = self.variants[variant] = HydratedTweet(self.id, self.author_id, data)
        return found

    def _nested_field(self, is_hidden: bool, state: int) -> bytes:
        tag = RETWEETED if self.original_id else QUOTED
        if not is_hidden and self.nested is not None:
            return framed(tag, self.nested.plain + VIEWER[state])
        return framed(tag, tombstone(self.quoted_id)) if self.quoted_id else b""


# Viewer states: an index into VIEWER by tweet id, 0 for a tweet without any.
ViewerStates = dict[int, int]


class ReaderFilter:
    """The users whom a reader may not see: `hidden` are those whom the reader blocks, and those of `followees` and
    `authors` who block the reader. These two are the users about whom graph was asked: the reader's followees, if it was
    asked about them, and at most MAX_IDS_PER_READER others."""

    __slots__ = ("authors", "followees", "hidden", "muted", "weight")

    def __init__(self) -> None:
        # Not copied: the cache of followees has the same object.
        self.followees: frozenset[int] = frozenset()
        self.authors: set[int] = set()
        self.hidden: set[int] = set()
        self.muted: set[int] = set()
        # The size when it was last counted.
        self.weight = _READER_WEIGHT

    def unknown(self, user_ids: set[int]) -> set[int]:
        """Returns those of the users about whom graph was not asked."""
        return user_ids - self.followees - self.authors

    def add(self, authors: Collection[int], hidden: Iterable[int], muted: Iterable[int]) -> None:
        """Adds a response of graph about `authors`."""
        if len(self.authors) + len(authors) > MAX_IDS_PER_READER:
            self.authors.clear()
        self.authors.update(authors)
        self.hidden.update(hidden)
        self.muted.update(muted)

    def size(self) -> int:
        """Returns the size in ids."""
        return _READER_WEIGHT + len(self.authors) + len(self.hidden) + len(self.muted)


class ReaderStates:
    """The viewer states of one reader by tweet id, at most MAX_IDS_PER_READER."""

    __slots__ = ("by_tweet", "weight")

    def __init__(self) -> None:
        self.by_tweet: ViewerStates = {}
        # The size when it was last counted.
        self.weight = _READER_WEIGHT

    def add(self, states: ViewerStates) -> None:
        """Adds viewer states."""
        if len(self.by_tweet) + len(states) > MAX_IDS_PER_READER:
            self.by_tweet = {}
        self.by_tweet.update(states)

    def size(self) -> int:
        """Returns the size in ids."""
        return _READER_WEIGHT + len(self.by_tweet)


R = TypeVar("R", ReaderFilter, ReaderStates)


class ReaderCache(Generic[R]):
    """Entries by reader. They grow while they are cached, so their sizes are counted again after each growth."""

    def __init__(self) -> None:
        self._entries: GenerationalCache[int, Versioned[R]] = GenerationalCache(
            MAX_READER_IDS, lambda entry: entry.value.weight
        )

    def get(self, reader_id: int) -> Versioned[R] | None:
        """Returns the entry; None if there is none."""
        return self._entries.get(reader_id)

    def put(self, reader_id: int, entry: Versioned[R]) -> None:
        """Stores the entry in place of an earlier one."""
        self._entries.pop(reader_id)
        entry.value.weight = entry.value.size()
        self._entries.put(reader_id, entry)

    def grew(self, reader_id: int) -> None:
        """Counts the size of the reader's entry again, if there is one."""
        entry = self._entries.get(reader_id)
        if entry is not None:
            self.put(reader_id, entry)


class HydrationCache:
    """The caches of one process, which all its services share. None in `tweets` stands for tweets that nobody sees; it
    is wrapped, as all values are. `users` has the author fragment of each user; empty if the user is not active."""

    def __init__(self, versions: Versions) -> None:
        self.versions = versions
        self.tweets: GenerationalCache[int, Versioned[CachedTweet | None]] = GenerationalCache(MAX_TWEETS)
        self.users: GenerationalCache[int, Versioned[bytes]] = GenerationalCache(MAX_USERS)
        self.filters: ReaderCache[ReaderFilter] = ReaderCache()
        self.states: ReaderCache[ReaderStates] = ReaderCache()


def filter_keys(reader_id: int) -> tuple[int, ...]:
    """Returns the version keys of a reader's filter."""
    return (key_of(Kind.RELATIONS, reader_id),)


def states_keys(reader_id: int) -> tuple[int, ...]:
    """Returns the version keys of a reader's viewer states: likes and bookmarks, and the retweets among own tweets."""
    return key_of(Kind.REACTIONS, reader_id), key_of(Kind.AUTHOR, reader_id)
