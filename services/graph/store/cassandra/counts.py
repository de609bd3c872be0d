"""Reads follower and followee counts from Cassandra."""

from __future__ import annotations

from collections.abc import Sequence

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import EdgeLists, Listing, Position
from services.graph.store.cassandra.follow_counts import FollowCounts
from services.graph.store.cassandra.relationship import FOLLOWERS, FOLLOWING

# Maximum number of edges processed at once when a user becomes absent or active again.
ABSENCE_STEP = 500


class CassandraCountStore:
    """Implements CountStore on Cassandra. `lists` reads the lists of the same keyspace."""

    def __init__(self, follow_counts: FollowCounts, lists: EdgeLists) -> None:
        self._follow_counts = follow_counts
        self._lists = lists

    async def batch_get(self, user_ids: Sequence[int]) -> dict[int, pb.UserCounts]:
        found = await self._follow_counts.of(user_ids)
        return {
            user_id: pb.UserCounts(followers=followers.edges, following=following.edges)
            for user_id, (followers, following) in found.items()
            if followers.edges or following.edges
        }

    async def set_absent(self, user_id: int, absent: bool, at_us: int) -> None:
        """Excludes the user from the follower and followee counts of others if `absent` is true, and includes the user
        again if it is false, as `CountStore.set_absent` says.

        A follow that is created while the call reads the user's followers and followees may be missed. It is then
        counted until the follower unfollows, or until a later call excludes the user again.
        """
        for listing, side in ((Listing.FOLLOWING, FOLLOWERS), (Listing.FOLLOWERS, FOLLOWING)):
            below: Position | None = None
            while page := await self._lists.page(listing, user_id, below, ABSENCE_STEP):
                await self._follow_counts.set_absent(user_id, side, [entry.user_id for entry in page], absent, at_us)
                below = page[-1]
