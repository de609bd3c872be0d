"""What is talked about now: how many different people act in a window, against how many usually do.

People are counted, not acts: one account that says something a thousand times is one. Everything is bounded, and what is weakest goes
first, so a flood of made-up tags costs those who are alone with a tag, not a tag that several use.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

# What counts as now.
WINDOW_S = 3_600.0
# How fast what is usual follows: what began three hours ago is half usual.
USUAL_HALF_LIFE_S = 3 * 3_600.0
# What is usual is reckoned in steps of this length.
STEP_S = 300.0
# Different people before a tag trends, and before a tweet does: its author does not count.
TAG_MIN_ACTORS = 3
TWEET_MIN_ACTORS = 2
# Acts remembered, some 300 bytes each; above that the window is shorter.
MAX_ACTS = 100_000
# Keys one act may count for: a text of 280 characters holds more tags only to be counted.
MAX_KEYS_AN_ACT = 10
# Keys remembered; when there are more, the weakest tenth goes.
MAX_KEYS = 10_000
# Forgotten acts that may wait in the order of times beyond as many as there are acts.
MAX_FORGOTTEN = 1_000
# Less than this many people a window is nothing usual.
FORGOTTEN = 0.05
# What any list can show.
MAX_RANKED = 100


class Trend(NamedTuple):
    """One that trends: how far above the usual, how many different people, how many acts in the window, and as what most people
    wrote it (empty if it is never written)."""

    key: Hashable
    strength: float
    actors: int
    acts: int
    spelling: str


@dataclass(slots=True)
class _Entry:
    # How many acts of each in the window, and of these under each spelling.
    actors: Counter[int] = field(default_factory=Counter)
    spellings: dict[str, Counter[int]] = field(default_factory=dict)
    acts: int = 0
    # People a window, smoothed over hours.
    usual: float = 0.0

    def add(self, actor: int, spelling: str) -> None:
        """Counts one act."""
        self.acts += 1
        self.actors[actor] += 1
        self.spellings.setdefault(spelling, Counter())[actor] += 1

    def take_back(self, actor: int, spelling: str) -> None:
        """Counts one act less. One that was not counted, because the entry was dropped and came again since, changes nothing."""
        spelled = self.spellings.get(spelling, Counter())
        if actor not in spelled:
            return
        self.acts -= 1
        for counted in (self.actors, spelled):
            counted[actor] -= 1
            if not counted[actor]:
                del counted[actor]
        if not spelled:
            del self.spellings[spelling]

    def spelling(self) -> str:
        """As most people wrote it; of equals the first by its characters: capitals come first, and tell words apart."""
        return min(self.spellings, key=lambda one: (-len(self.spellings[one]), one), default="")

    def strength(self) -> float:
        """By how many standard deviations of what is usual there are more people now."""
        return (len(self.actors) - self.usual) / math.sqrt(self.usual + 1.0)


@dataclass(slots=True, frozen=True)
class _Act(Generic[K]):
    actor: int
    at_s: float
    # And how each was written.
    keys: dict[K, str]


class Trends(Generic[K]):
    """Counts acts under keys. `clock` gives unix seconds; acts come roughly in the order of their time, and may come twice or late."""

    def __init__(
        self, clock: Callable[[], float], min_actors: int, max_acts: int = MAX_ACTS, max_keys: int = MAX_KEYS
    ) -> None:
        self._clock = clock
        self._min_actors = min_actors
        self._max_acts = max_acts
        self._max_keys = max_keys
        self._acts: dict[Hashable, _Act[K]] = {}
        # The acts by their time, as a heap; those forgotten meanwhile stay until they come up, or are too many. The number decides
        # between equals.
        self._by_time: list[tuple[float, int, Hashable, _Act[K]]] = []
        self._number = 0
        self._entries: dict[K, _Entry] = {}
        self._stepped_s: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, act: Hashable, actor: int, keys: Mapping[K, str], at_s: float) -> None:
        """One act, under a name of its own; one known by its name, or out of the window, changes nothing.

        `keys` gives each key the spelling used; empty for keys that are not written.
        """
        # Time as the acts have it, where they are older than the clock: a replay of hours goes through the same hours.
        self._advance(min(at_s, self._clock()))
        counted = dict(islice(keys.items(), MAX_KEYS_AN_ACT))
        if not counted or act in self._acts or at_s <= self._now_s() - WINDOW_S:
            return
        self._acts[act] = added = _Act(actor, at_s, counted)
        self._number += 1
        heapq.heappush(self._by_time, (at_s, self._number, act, added))
        for key, spelling in counted.items():
            self._entries.setdefault(key, _Entry()).add(actor, spelling)
        while len(self._acts) > self._max_acts:
            self._forget_oldest()
        if len(self._entries) > self._max_keys:
            self._drop_weakest()

    def forget(self, act: Hashable) -> None:
        """The act was undone; unknown ones are none."""
        done = self._acts.pop(act, None)
        if done is None:
            return
        for key, spelling in done.keys.items():
            entry = self._entries.get(key)
            # Dropped as weak.
            if entry is None:
                continue
            entry.take_back(done.actor, spelling)
            if not entry.actors and entry.usual < FORGOTTEN:
                del self._entries[key]
        if len(self._by_time) > 2 * len(self._acts) + MAX_FORGOTTEN:
            self._by_time = [entry for entry in self._by_time if self._acts.get(entry[2]) is entry[3]]
            heapq.heapify(self._by_time)

    def forget_actor(self, actor: int) -> None:
        """Nobody hears of the actor any more."""
        for act in [name for name, done in self._acts.items() if done.actor == actor]:
            self.forget(act)

    def ranking(self) -> Sequence[Trend]:
        """What trends now, the strongest first, at most MAX_RANKED."""
        self._advance(self._clock())
        trending = (
            (entry.strength(), entry.acts, str(key), key, entry)
            for key, entry in self._entries.items()
            if len(entry.actors) >= self._min_actors and len(entry.actors) > entry.usual
        )
        return [
            Trend(key, strength, len(entry.actors), acts, entry.spelling())
            for strength, acts, _, key, entry in heapq.nlargest(MAX_RANKED, trending, key=itemgetter(0, 1, 2))
        ]

    def _now_s(self) -> float:
        return self._stepped_s if self._stepped_s is not None else 0.0

    def _advance(self, now_s: float) -> None:
        """Lets time pass up to `now_s`, step by step; never back."""
        if self._stepped_s is None:
            self._stepped_s = now_s
        while now_s >= self._stepped_s + STEP_S:
            steps = 1.0
            if not self._acts:
                # Nothing happened: all steps are alike.
                steps = (now_s - self._stepped_s) // STEP_S
            self._stepped_s += steps * STEP_S
            self._expire(self._stepped_s)
            self._learn(steps)

    def _expire(self, now_s: float) -> None:
        while self._by_time and self._by_time[0][0] <= now_s - WINDOW_S:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, _, act, added = heapq.heappop(self._by_time)
        if self._acts.get(act) is added:
            self.forget(act)

    def _learn(self, steps: float) -> None:
        """What is usual moves towards what is."""
        kept = math.exp2(-steps * STEP_S / USUAL_HALF_LIFE_S)
        for key, entry in list(self._entries.items()):
            entry.usual = entry.usual * kept + len(entry.actors) * (1.0 - kept)
            if not entry.actors and entry.usual < FORGOTTEN:
                del self._entries[key]

    def _drop_weakest(self) -> None:
        weakest = heapq.nsmallest(
            max(self._max_keys // 10, 1),
            self._entries,
            key=lambda key: (len(self._entries[key].actors), self._entries[key].usual),
        )
        for key in weakest:
            del self._entries[key]
