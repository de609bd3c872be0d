"""Decides which authors are pulled when a home timeline is read, and why. Does no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from roost.timeline.v1 import timeline_service_pb2 as pb

from services.shared.celebrity_tiers import CelebritySubscriber
from services.timeline.followees import FolloweeSet
from services.timeline.store import HomeList

HYBRID, PUSH, PULL = "hybrid", "push", "pull"

# Maximum of late followees of a warm home timeline. If there are more, the home timeline is built again, because one
# build is cheaper than pulling the tweets of these followees at every read.
MAX_LATE_FOLLOWEES = 32
# Maximum age in milliseconds of a warm home timeline; an older one is dropped and built again. Graph reports for 31
# days that an author stopped being a celebrity. A home timeline older than that could lack the tweets of such an
# author, so the maximum is one day less.
MAX_AGE_MS = 30 * 24 * 3600 * 1000

Source: TypeAlias = "pb.EntrySource.ValueType"


@dataclass(frozen=True, slots=True)
class FanoutRules:
    """The settings that decide between push and pull: the mode, and the margin for clock skew and for the time from a
    stamp to its commit."""

    mode: str
    margin_ms: int

    def pushes(self, tiers: CelebritySubscriber, author: int) -> bool:
        """Returns whether fan-out and builds put the author's tweets into home timelines."""
        return self.mode == PUSH or not tiers.is_celebrity(author)

    def usable(self, home: HomeList, relations: FolloweeSet, now_ms: int) -> bool:
        """Returns whether a warm home timeline may be read. If it returns False, the caller must drop the home timeline
        and build it again."""
        age_ms = now_ms - home.opened_ms
        if home.mode != self.mode or age_ms > MAX_AGE_MS:
            return False
        # A home timeline younger than the margin is usable, however many late followees it has: a new one, built now,
        # would have the same late followees, so building it again would gain nothing.
        return age_ms <= self.margin_ms or len(self.late(home, relations)) <= MAX_LATE_FOLLOWEES

    def late(self, home: HomeList, relations: FolloweeSet) -> list[int]:
        """Returns the followees whose tweets the home timeline may lack because the follow is newer than it."""
        return list(relations.followed_after(home.opened_ms - self.margin_ms))

    def pulled(
        self, reader: int, relations: FolloweeSet, tiers: CelebritySubscriber, home: HomeList
    ) -> Mapping[int, Source]:
        """Returns the authors to pull when this home timeline is read, and why. The reader is always one of them."""
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
