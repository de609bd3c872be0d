"""The port: what the service needs of a store of edges.

Ids are positive 64-bit user ids, times Unix milliseconds. A write that changes something commits its rows, the counts, the
tier that follows from them and its events together (in a cluster: in the end all of them, though a process dies in between); one
that changes nothing leaves no trace. Whatever returned is seen by the next read, in whatever process. Every method raises
UNAVAILABLE when the store cannot answer now; a write may then have happened or not, and may be repeated.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import Change

TierHook = Callable[[Sequence[pb.TierEntry]], None]

# Events that one write can cause at most: a block ends two follows, and each may end a tier.
MAX_EVENTS = 5


class Listing(enum.Enum):
    """The lists of people that a user has."""

    FOLLOWERS = "followers"
    FOLLOWING = "following"
    BLOCKS = "blocks"
    MUTES = "mutes"


class Position(NamedTuple):
    """One entry of a list: since when, and who."""

    at_ms: int
    user_id: int


class Outcome(NamedTuple):
    """How the two stand after a write, and whether the write changed anything."""

    relationship: pb.Relationship
    changed: bool


class Judged(NamedTuple):
    """A batch of users judged: how many changed their tier, and the last one's id, 0 when there was none left."""

    changed: int
    last_id: int


class GraphStore(Protocol):
    """Edges between users, the counts of them, and tiers."""

    def on_tier_change(self, hook: TierHook) -> None:
        """Calls `hook` on the event loop with every tier that changes, before the write that caused it returns here."""

    async def follow(self, follower_id: int, followee_id: int, change: Change) -> Outcome:
        """Makes the edge, if it is not there. PERMISSION_DENIED where either blocks the other."""

    async def unfollow(self, follower_id: int, followee_id: int, change: Change) -> Outcome:
        """Removes the edge, if it is there."""

    async def block(self, user_id: int, target_id: int, change: Change) -> Outcome:
        """Makes the edge, if it is not there, and removes the follows between the two, both ways."""

    async def unblock(self, user_id: int, target_id: int, change: Change) -> Outcome:
        """Removes the edge, if it is there. No follow comes back."""

    async def mute(self, user_id: int, target_id: int, change: Change) -> Outcome:
        """Makes the edge, if it is not there. Only the relation version of `user_id` changes: the target must not notice."""

    async def unmute(self, user_id: int, target_id: int, change: Change) -> Outcome:
        """Removes the edge, if it is there."""

    async def relationships(self, user_id: int, other_ids: Sequence[int]) -> list[pb.Relationship]:
        """How `user_id` stands to each of the others, in the order asked for; also to those without any edge."""

    async def page(self, listing: Listing, user_id: int, below: Position | None, limit: int) -> list[Position]:
        """Up to `limit` entries of a list, newest first, by time and then id; those under `below` where it is given."""

    async def scan(self, kind: pb.EdgeKind.ValueType, after: tuple[int, int], limit: int) -> list[pb.Edge]:
        """Up to `limit` edges by ascending source and target; those behind the pair `after`, (0, 0) for the first."""

    async def visibility(self, request: pb.GetVisibilityFilterRequest) -> pb.GetVisibilityFilterResponse:
        """What hides authors from a reader. Once per home read: tens of microseconds where it was asked for before.

        The version is never newer than what is answered with it.
        """

    async def relation_version(self, user_id: int) -> int:
        """Another one after every change to an edge of the user, mutes by others excepted: to be compared for equality alone."""

    async def counts(self, user_ids: Sequence[int]) -> Mapping[int, pb.UserCounts]:
        """Followers and followees, exactly; users without any are left out."""

    async def set_absent(self, user_id: int, absent: bool, at_us: int) -> None:
        """Leaves the user out of the counts of followers and followees of others, or counts the user again, as decided at `at_us` (Unix
        microseconds): an earlier decision that comes later changes nothing. Edges, lists and the user's own counts stay. To be called
        again with the same decision if it fails."""

    async def suggestions(self, user_id: int, limit: int) -> list[int]:
        """Up to `limit` users followed by those whom the user follows, the most often found first, then by id.

        Only a bounded part of the newest followees, and of theirs, is looked at. Without the user, and without those whom the user
        follows, blocks or mutes, or who block the user.
        """

    async def popular(self, limit: int) -> list[int]:
        """Returns up to `limit` users whom anybody follows, those with the most followers first, then by id.

        Whoever asks is not looked at: the caller leaves out whom the reader follows, and who is hidden. A large cluster looks at a sample
        of followers, and may answer a minute late; one process answers exactly.
        """

    async def reclassify(
        self, user_id: int, choice: pb.TierChoice.ValueType, change: Change
    ) -> tuple[pb.Tier.ValueType, bool]:
        """Lets `choice` decide the user's tier from now on. The tier that stands then, and whether it changed."""

    async def tiers(self, since_ms: int) -> list[pb.TierEntry]:
        """The celebrities, and whoever ceased to be one at `since_ms` or later, in no promised order."""

    async def judge_afresh(self, after_id: int, limit: int, change: Change) -> Judged:
        """Gives up to `limit` users behind `after_id`, by ascending id, the tier that their count or decree says, whatever they were."""

    async def threshold(self) -> int:
        """The threshold that all tiers were last judged by; 0 at first."""

    async def set_threshold(self, threshold: int) -> None:
        """Records it."""

    async def close(self) -> None:
        """Finishes what is queued. Nothing may be asked afterwards."""
