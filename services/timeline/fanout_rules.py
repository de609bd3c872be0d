"""Which authors a read pulls, and why: the rules that decide between push and pull, without any I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from roost.timeline.v1 import timeline_service_pb2 as pb

from services.shared.celebrity_tiers import CelebritySubscriber
from services.timeline.followees import Relations
from services.timeline.store import HomeList

HYBRID, PUSH, PULL = "hybrid", "push", "pull"

# Beyond this many late followees a rebuild is cheaper than pulling them at every read.
MAX_LATE_FOLLOWEES = 32
# Tiers that changed are known for 31 days: an older home could lack somebody who ceased to be a celebrity before that.
MAX_AGE_MS = 30 * 24 * 3600 * 1000

Source: TypeAlias = "pb.EntrySource.ValueType"


@dataclass(frozen=True, slots=True)
class FanoutRules:
    """The settings the rules depend on: the mode, and the margin for clock skew and the time from a stamp to its commit."""

    mode: str
    margin_ms: int

    def pushes(self, tiers: CelebritySubscriber, author: int) -> bool:
        """Whether builds and fan-out put the author's tweets into homes."""
        return self.mode == PUSH or not tiers.is_celebrity(author)

    def usable(self, home: HomeList, relations: Relations, now_ms: int) -> bool:
        """Whether a warm home may be read; if not it is to be dropped and built anew."""
        age_ms = now_ms - home.opened_ms
        if home.mode != self.mode or age_ms > MAX_AGE_MS:
            return False
        # A young home is kept whatever happens: built anew it would have as many late followees.
        return age_ms <= self.margin_ms or len(self.late(home, relations)) <= MAX_LATE_FOLLOWEES

    def late(self, home: HomeList, relations: Relations) -> list[int]:
        """The followees whose tweets the home may lack, because the follow is no older than the home."""
        return list(relations.followed_after(home.opened_ms - self.margin_ms))

    def pulled(
        self, reader: int, relations: Relations, tiers: CelebritySubscriber, home: HomeList
    ) -> Mapping[int, Source]:
        """The authors whose tweets this home does not get by push, or may lack, and why. The reader is always one."""
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
