"""Decides which authors' tweets are fanned out on write, and which authors are pulled when a home timeline is read.
Does no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from roost.timeline.v1 import timeline_service_pb2 as pb

from services.shared.celebrity_tiers import CelebritySubscriber
from services.timeline.followees import FolloweeSet
from services.timeline.store import HomeList

# The timeline modes: fan-out on write for all authors but celebrities, for all authors, for none.
HYBRID, PUSH, PULL = "hybrid", "push", "pull"

# Maximum number of late followees of a warm home timeline. With more, it is dropped and built again, because one build
# is cheaper than pulling the tweets of so many authors at every read.
MAX_LATE_FOLLOWEES = 32
# Maximum age of a warm home timeline in milliseconds. An older one is dropped and built again, because it could lack
# tweets of an author who stopped being a celebrity: graph reports these authors for 31 days only. One day is left as a
# margin.
MAX_AGE_MS = 30 * 24 * 3600 * 1000

Source: TypeAlias = "pb.EntrySource.ValueType"


@dataclass(frozen=True, slots=True)
class FanoutRules:
    """Applies the timeline mode `mode` and the margin `margin_ms`, in milliseconds."""

    mode: str
    margin_ms: int

    def pushes(self, tiers: CelebritySubscriber, author: int) -> bool:
        """Returns whether home timelines store the tweets of the author. If False, the tweets are pulled at each
        read."""
        return self.mode == PUSH or not tiers.is_celebrity(author)

    def usable(self, home: HomeList, relations: FolloweeSet, now_ms: int) -> bool:
        """Returns whether a warm home timeline may be used. If False, the caller must drop the home timeline and build
        it again: the home timeline was built in another timeline mode, is older than MAX_AGE_MS milliseconds, or has
        more than MAX_LATE_FOLLOWEES late followees."""
        age_ms = now_ms - home.opened_ms
        if home.mode != self.mode or age_ms > MAX_AGE_MS:
            return False
        # Late followees do not matter while the home timeline is younger than the margin: one that is built now would
        # have the same late followees.
        return age_ms <= self.margin_ms or len(self.late(home, relations)) <= MAX_LATE_FOLLOWEES

    def late(self, home: HomeList, relations: FolloweeSet) -> list[int]:
        """Returns the late followees: the users whom the reader followed after the build of `home` began, minus the
        margin. `home` may lack their tweets."""
        return list(relations.followed_after(home.opened_ms - self.margin_ms))

    def pulled(
        self, reader: int, relations: FolloweeSet, tiers: CelebritySubscriber, home: HomeList
    ) -> Mapping[int, Source]:
        """Returns the authors to pull when `home` is read, with the reason for each. The reader is always among the
        authors."""
        found: dict[int, Source] = dict.fromkeys(self.late(home, relations), pb.ENTRY_SOURCE_PULLED_RECENT_FOLLOWEE)
        if self.mode != PUSH:
            followees = relations.followees
            for author in tiers.demoted_since(home.opened_ms - self.margin_ms):
                if author in followees:
                    found[author] = pb.ENTRY_SOURCE_PULLED_TIER_CHANGE
            for author in relations.celebrities(tiers):
                found[author] = pb.ENTRY_SOURCE_PULLED_CELEBRITY
        found[reader] = pb.ENTRY_SOURCE_PULLED_SELF
        return found
