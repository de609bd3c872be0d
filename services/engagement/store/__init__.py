"""The port of the engagement store. A like or bookmark is a row, never only a counter. The rows, counts and event of a
write are committed together or not at all. (On Cassandra they become complete eventually, even if the process dies in
between.)

A read returns every write that completed before the read began. Methods raise UNAVAILABLE if the store cannot answer
now. After that, a write may be stored on Cassandra, but not on SQLite; the caller can repeat it. Tweet ids are the ids
of originals; the caller checks that a tweet exists.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from roost.engagement.v1 import engagement_service_pb2 as pb

from services.platform.events.log import Record


class ReactionKind(enum.Enum):
    """The kinds of reaction of a user to a tweet."""

    LIKE = "likes"
    BOOKMARK = "bookmarks"


class ReactionEntry(NamedTuple):
    """One entry of a list. `reaction_id` is the Snowflake minted for the like or bookmark, so a later reaction has a
    greater reaction id; `id` is the id of the listed user or tweet."""

    reaction_id: int
    id: int


class EngagementStore(Protocol):
    """Stores likes by tweet and by user, bookmarks by user, and the counts of both by tweet."""

    async def like(self, tweet_id: int, user_id: int, event: Record) -> int:
        """Stores the like if it does not exist, with the event's id as its reaction id. Returns the number of likes of
        the tweet.

        Publishes `event` only if the like was stored. An existing like keeps its reaction id.
        """

    async def unlike(self, tweet_id: int, user_id: int, event: Record) -> int:
        """Deletes the like if it exists. Publishes `event` only if a like was deleted. Returns the number of likes of
        the tweet."""

    async def bookmark(self, tweet_id: int, user_id: int, reaction_id: int) -> bool:
        """Stores the bookmark if it does not exist. Returns whether it was stored."""

    async def unbookmark(self, tweet_id: int, user_id: int) -> bool:
        """Deletes the bookmark if it exists. Returns whether it existed."""

    async def list_likers(self, tweet_id: int, below: int, limit: int) -> list[ReactionEntry]:
        """Returns up to `limit` users who like the tweet, with reaction ids below `below` (0: no bound), newest
        first."""

    async def list_tweets(self, kind: ReactionKind, user_id: int, below: int, limit: int) -> list[ReactionEntry]:
        """Returns up to `limit` tweets that the user reacted to, with reaction ids below `below` (0: no bound), newest
        first."""

    async def batch_get_counts(self, ids: Sequence[int]) -> pb.BatchGetCountsResponse:
        """Returns the numbers of likes and bookmarks of these tweets, in the order of `ids`. Leaves out tweets without
        likes and bookmarks. The caller may change the message. On Cassandra, a number above 1,000 can lack the changes
        of the last seconds.

        Every read of a page calls this method. It takes tens of microseconds for 100 cached ids.
        """

    async def batch_get_viewer_states(self, user_id: int, ids: Sequence[int]) -> pb.BatchGetViewerStatesResponse:
        """Returns the user's reactions to these tweets, in the order of `ids`. Leaves out tweets to which the user has
        no reaction. The caller may change the message. Every read of a page calls this method. It takes tens of
        microseconds for 100 cached ids."""

    async def set_absent(self, user_id: int, absent: bool, at_us: int) -> None:
        """Excludes the likes of a suspended or deactivated user from the counts (`absent`), or includes these likes
        again. `at_us` is the time of the suspension, deactivation or reinstatement in Unix microseconds. A call changes
        nothing if a call with a later `at_us` was made before. Rows and lists are unchanged. If the call fails, the
        caller must repeat the call with the same arguments."""

    async def close(self) -> None:
        """Finishes the writes in progress and releases the store."""
