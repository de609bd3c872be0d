"""The port of the engagement store. A like or a bookmark is a row, never a counter; rows, counts and event of a write
commit together, or nothing does.

What a write changed is what the next read answers. UNAVAILABLE where the store refuses for now: nothing was stored
then. Tweet ids are those of originals; whether a tweet exists is not the store's concern.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from roost.engagement.v1 import engagement_service_pb2 as pb

from services.platform.events.log import Record


class Kind(enum.Enum):
    """What a user may have done with a tweet."""

    LIKE = "likes"
    BOOKMARK = "bookmarks"


class Entry(NamedTuple):
    """One entry of a list. `place` is the id minted for the like or bookmark: a later one has a greater one."""

    place: int
    id: int


class EngagementStore(Protocol):
    """Likes by tweet and by user, bookmarks by user, and how many there are of each tweet."""

    async def like(self, tweet_id: int, user_id: int, event: Record) -> int:
        """Makes the row unless it is there, its place being the event's id; how many like the tweet now.

        The event is published only where the row was made. An existing row keeps its place.
        """

    async def unlike(self, tweet_id: int, user_id: int, event: Record) -> int:
        """Takes the row out, if it is there; how many like the tweet now. Published only where it was."""

    async def bookmark(self, tweet_id: int, user_id: int, place: int) -> bool:
        """Makes the row unless it is there; whether it did."""

    async def unbookmark(self, tweet_id: int, user_id: int) -> bool:
        """Takes the row out, if it is there; whether it was."""

    async def list_likers(self, tweet_id: int, below: int, limit: int) -> list[Entry]:
        """Up to `limit` user ids with places under `below` (0: no bound), newest first."""

    async def list_tweets(self, kind: Kind, user_id: int, below: int, limit: int) -> list[Entry]:
        """Up to `limit` ids of the tweets that the user likes or keeps, bounds and order as of likers."""

    async def batch_get_counts(self, ids: Sequence[int]) -> pb.BatchGetCountsResponse:
        """Exact counts in the order asked for; tweets without any are left out. A message of the caller's own.

        Part of every read of a page: tens of microseconds for 100 ids where they are known.
        """

    async def batch_get_viewer_states(self, user_id: int, ids: Sequence[int]) -> pb.BatchGetViewerStatesResponse:
        """What the user did with these tweets, in the order asked for; tweets of which nothing is true are left out.
        A message of the caller's own, and as cheap as the counts."""

    async def set_absent(self, user_id: int, absent: bool, at_us: int) -> None:
        """Leaves the user's likes out of the counts of likes, or counts them again, as decided at `at_us` (Unix microseconds): an earlier
        decision that comes later changes nothing. Rows and lists stay. To be called again with the same decision if it fails."""

    async def close(self) -> None:
        """Finishes what was begun and gives the store free."""
