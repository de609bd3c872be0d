"""What the embedded store keeps in process memory, written through. One process owns that store, so nobody else
changes it."""

from __future__ import annotations

from array import array
from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

from cachetools import LRUCache

from services.engagement.store import Kind

# Tweets with counts, newest ids first, at about 200 bytes: 15 MB. Pages are mostly made of new tweets.
NEWEST_COUNTS = 65_536
# How many go at once where the newest get too many: taking one off the front costs as much as a thousand.
_SLACK = 1_024
# Older tweets, as far as somebody reads them, at about 300 bytes: 20 MB.
OLDER_COUNTS = 65_536
# Ids that users like or keep, at about 72 bytes in a set: 72 MB; with 200 each, some 5,000 readers. Packed they would take
# a ninth, and a page's look-ups thirty times as long.
MAX_MARKED_IDS = 1_000_000
# What an entry costs beside its ids, in ids: two sets, a tuple, and its place in the cache.
_MARKS_WEIGHT = 10
# Who has more is not kept but asked row by row, so that one user cannot push out hundreds of others.
MAX_KEPT_MARKS = 20_000


class Counts:
    """Frames of counts by tweet id; an empty frame says that there are none.

    Complete from `floor` upwards, so that a tweet nobody liked yet is known too, without having been looked up. Below
    it, what was read or written lately.
    """

    def __init__(self, newest: Sequence[tuple[int, bytes]], floor: int) -> None:
        """`newest` is all that is counted from `floor` on, by ascending id."""
        self._newest = dict(newest)
        self._ascending = array("q", self._newest)
        self._floor = floor
        self._older: LRUCache[int, bytes] = LRUCache(OLDER_COUNTS)

    def frames(self, ids: Sequence[int]) -> list[bytes | None]:
        """One frame an id, in their order; None where the store must be asked."""
        floor, older = self._floor, self._older
        found: list[bytes | None] = list(map(self._newest.get, ids))
        if None in found:
            for place, frame in enumerate(found):
                if frame is None:
                    tweet_id = ids[place]
                    found[place] = b"" if tweet_id >= floor else older.get(tweet_id)
        return found

    def put(self, tweet_id: int, frame: bytes) -> None:
        """Stores the frame in place of any other."""
        if tweet_id < self._floor:
            self._older[tweet_id] = frame
            return
        if tweet_id not in self._newest:
            insort(self._ascending, tweet_id)
        self._newest[tweet_id] = frame
        if len(self._ascending) > NEWEST_COUNTS + _SLACK:
            for gone in self._ascending[:_SLACK]:
                del self._newest[gone]
            del self._ascending[:_SLACK]
            self._floor = self._ascending[0]


class Marked(NamedTuple):
    """The tweet ids that one user likes and keeps."""

    likes: set[int]
    bookmarks: set[int]


class Marks:
    """What users like and keep, least recently used out first. None stands for who has too many to be kept."""

    def __init__(self) -> None:
        self._users: LRUCache[int, Marked | None] = LRUCache(MAX_MARKED_IDS, _weight)

    def __contains__(self, user_id: int) -> bool:
        return user_id in self._users

    def get(self, user_id: int) -> Marked | None:
        """What is known of a user who is in here. Not to be changed."""
        return self._users[user_id]

    def put(self, user_id: int, marked: Marked | None) -> None:
        """Stores all that the user likes and keeps."""
        if marked is not None and len(marked.likes) + len(marked.bookmarks) > MAX_KEPT_MARKS:
            marked = None
        self._users[user_id] = marked

    def change(self, user_id: int, kind: Kind, tweet_id: int, present: bool) -> None:
        """Follows one write, if the user is known."""
        marked = self._users.get(user_id)
        if marked is None:
            return
        ids = marked.likes if kind is Kind.LIKE else marked.bookmarks
        if present:
            ids.add(tweet_id)
        else:
            ids.discard(tweet_id)
        # Stored again, because it weighs more or less now.
        self.put(user_id, marked)


def _weight(marked: Marked | None) -> int:
    return _MARKS_WEIGHT + (0 if marked is None else len(marked.likes) + len(marked.bookmarks))
