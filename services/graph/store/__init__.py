"""The storage ports of graph: edges, lists of edges, visibility, counts and tiers.

Ids are positive 64-bit user ids, times are Unix milliseconds. A write that changes something commits its rows, the
counts, the resulting tier and its events together. (On Cassandra they become complete eventually, even if the process
dies in between.) A write that changes nothing stores no row and publishes no event. Once a write has returned, the next
read of any process returns its changes. The parameter `change` of a write is its write stamp. Every method raises
UNAVAILABLE if the store cannot answer. After that the outcome of a write is unknown, and the caller may repeat the
write with the same stamp.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import WriteStamp

# Called with the new tiers of users whose tier a write of this process has changed.
TierHook = Callable[[Sequence[pb.TierEntry]], None]

# Maximum number of events of one write: a block, the two follows that it ends, and a tier change of each of the two
# followees.
MAX_EVENTS = 5


class Listing(enum.Enum):
    """The kinds of lists that each user has: followers, followees, blocked and muted users."""

    FOLLOWERS = "followers"
    FOLLOWING = "following"
    BLOCKS = "blocks"
    MUTES = "mutes"


class Position(NamedTuple):
    """An entry of a list and its position for paging: the time at which the edge was created (Unix milliseconds), and
    the other user's id."""

    at_ms: int
    user_id: int


class Outcome(NamedTuple):
    """The result of a write by one user about another: the first user's relationship to the second after the write, and
    whether the write changed anything."""

    relationship: pb.Relationship
    changed: bool


class ReclassifiedBatch(NamedTuple):
    """The result of classifying one batch: how many users changed tier, and the last user id read (0 if no user was
    left)."""

    changed: int
    last_id: int


class EdgeStore(Protocol):
    """Edges between two users. Follows, blocks and mutes of a pair of users are changed together, because a block
    excludes follows."""

    async def follow(self, follower_id: int, followee_id: int, change: WriteStamp) -> Outcome:
        """Creates the follow unless it exists. Raises PERMISSION_DENIED (reason BLOCKED) if either user blocks the
        other."""

    async def unfollow(self, follower_id: int, followee_id: int, change: WriteStamp) -> Outcome:
        """Deletes the follow if it exists."""

    async def block(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        """Creates the block unless it exists, and deletes the follows between the two users in both directions."""

    async def unblock(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        """Deletes the block if it exists. Follows that the block removed are not restored."""

    async def mute(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        """Creates the mute unless it exists. Changes only the relation version of `user_id`, because the target must
        not notice."""

    async def unmute(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        """Deletes the mute if it exists. Changes only the relation version of `user_id`."""

    async def relationships(self, user_id: int, other_ids: Sequence[int]) -> list[pb.Relationship]:
        """Returns the relationship of `user_id` to each of `other_ids`, in the same order; also for users without any
        edge."""


class EdgeLists(Protocol):
    """Lists of edges of one user and of all users, and suggestions of users to follow."""

    async def page(self, listing: Listing, user_id: int, below: Position | None, limit: int) -> list[Position]:
        """Returns up to `limit` entries of a list, newest first (by time, then id), starting after `below` if it is
        given."""

    async def scan(self, kind: pb.EdgeKind.ValueType, after: tuple[int, int], limit: int) -> list[pb.Edge]:
        """Returns up to `limit` edges in ascending order of (source id, target id), starting after the pair `after`;
        (0, 0) starts at the first."""

    async def suggestions(self, user_id: int, limit: int) -> list[int]:
        """Returns the ids of up to `limit` users whom the user's followees follow. The users whom most followees follow
        come first; users with equally many are sorted by id.

        Reads only a bounded number of the user's newest followees, and a bounded number of the newest followees of
        each. Leaves out the user, and all whom the user follows, blocks or mutes, or who block the user.
        """

    async def popular(self, limit: int) -> list[int]:
        """Returns up to `limit` users with at least one follower, the most followed first, then by id.

        The result does not depend on a reader: the caller removes followees and hidden users. SQLite considers all
        users. Cassandra considers the users of a sample, and its result can be up to a minute old.
        """


class VisibilityStore(Protocol):
    """The authors who are hidden from a reader, and the reader's relation version."""

    async def filter(self, request: pb.GetVisibilityFilterRequest) -> pb.GetVisibilityFilterResponse:
        """Returns which of the candidate authors are hidden from the reader, and the reader's relation version.

        The returned version is never newer than the edges on which the response is based. Each read of a home timeline
        calls this method once; a cached response takes tens of microseconds.
        """

    async def relation_version(self, user_id: int) -> int:
        """Returns the user's relation version. The version changes with every change to an edge of the user, except
        mutes by others. Compare versions for equality only: they are not ordered."""


class CountStore(Protocol):
    """The follower and followee counts of users."""

    async def batch_get(self, user_ids: Sequence[int]) -> Mapping[int, pb.UserCounts]:
        """Returns follower and followee counts by user id; omits users without followers and followees. On Cassandra, a
        count above 1,000 can lack the changes of the last second."""

    async def set_absent(self, user_id: int, absent: bool, at_us: int) -> None:
        """Excludes the user from the follower and followee counts of others (`absent`), or includes the user again.

        `at_us` is the time of the suspension, deactivation or reinstatement in Unix microseconds. A call changes
        nothing if a call with a later `at_us` was made before. Edges,
        lists and the user's own counts stay as they are. If the call fails, the caller must repeat the call with the
        same arguments.
        """


class TierStore(Protocol):
    """The tiers of users, and the celebrity threshold by which these tiers were assigned."""

    def on_change(self, hook: TierHook) -> None:
        """Registers `hook`. The store calls `hook` on the event loop with the tiers that a write of this process
        changed, before that write returns."""

    async def reclassify(
        self, user_id: int, choice: pb.TierChoice.ValueType, change: WriteStamp
    ) -> tuple[pb.Tier.ValueType, bool]:
        """Stores the operator's `choice` for the user, and sets the tier that results from the choice and the number of
        followers. Returns that tier, and whether it differs from the tier before."""

    async def list_since(self, since_ms: int) -> list[pb.TierEntry]:
        """Returns the celebrities and the users demoted at `since_ms` or later, in no particular order."""

    async def reclassify_batch(self, after_id: int, limit: int, change: WriteStamp) -> ReclassifiedBatch:
        """Classifies up to `limit` users with ids above `after_id`, in ascending order: sets the tier of each to the
        one that the number of followers or the operator's choice gives, whatever the tier was before. Called after the
        threshold was changed."""

    async def threshold(self) -> int:
        """Returns the celebrity threshold by which all users were last classified; 0 if that never happened."""

    async def set_threshold(self, threshold: int) -> None:
        """Stores `threshold` as the celebrity threshold by which all users have been classified."""


@dataclass(frozen=True, slots=True)
class GraphStores:
    """The stores of graph on one backend. They share tables, so a write to `edges` changes the results of the other
    stores.

    `close` waits until queued writes are done. Callers must not use a store afterwards.
    """

    edges: EdgeStore
    lists: EdgeLists
    visibility: VisibilityStore
    counts: CountStore
    tiers: TierStore
    close: Callable[[], Coroutine[Any, Any, None]]
