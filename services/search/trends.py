"""What is talked about now: how many different people act in a window, against how many usually do.

People are counted, not acts: one account that says something a thousand times is one. Everything is bounded, and what is weakest goes
first, so a flood of made-up tags costs those who are alone with a tag, not a tag that several use.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
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
# Less than this many people a window is nothing usual.
FORGOTTEN = 0.05
# What any list can show.
MAX_RANKED = 100


class Trend(NamedTuple):
    """One that trends: how far above the usual, how many different people, how many acts in the window."""

    key: Hashable
    strength: float
    actors: int
    acts: int


@dataclass(slots=True)
class _Entry:
    # How many acts of each in the window.
    actors: dict[int, int] = field(default_factory=dict)
    acts: int = 0
    # People a window, smoothed over hours.
    usual: float = 0.0

    def strength(self) -> float:
        """By how many standard deviations of what is usual there are more people now."""
        return (len(self.actors) - self.usual) / math.sqrt(self.usual + 1.0)


@dataclass(slots=True, frozen=True)
class _Act(Generic[K]):
    actor: int
    at_s: float
    keys: tuple[K, ...]


class Trends(Generic[K]):
    """Counts acts under keys. `clock` gives unix seconds; acts come roughly in the order of their time, and may come twice."""

    def __init__(
        self, clock: Callable[[], float], min_actors: int, max_acts: int = MAX_ACTS, max_keys: int = MAX_KEYS
    ) -> None:
        self._clock = clock
        self._min_actors = min_actors
        self._max_acts = max_acts
        self._max_keys = max_keys
        self._acts: OrderedDict[Hashable, _Act[K]] = OrderedDict()
        self._entries: dict[K, _Entry] = {}
        self._stepped_s: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, act: Hashable, actor: int, keys: Iterable[K], at_s: float) -> None:
        """One act, under a name of its own; one known by its name, or out of the window, changes nothing."""
        # Time as the acts have it, where they are older than the clock: a replay of hours goes through the same hours.
        self._advance(min(at_s, self._clock()))
        counted = tuple(dict.fromkeys(keys))[:MAX_KEYS_AN_ACT]
        if not counted or act in self._acts or at_s <= self._now_s() - WINDOW_S:
            return
        self._acts[act] = _Act(actor, at_s, counted)
        for key in counted:
            entry = self._entries.setdefault(key, _Entry())
            entry.acts += 1
            entry.actors[actor] = entry.actors.get(actor, 0) + 1
        while len(self._acts) > self._max_acts:
            self.forget(next(iter(self._acts)))
        if len(self._entries) > self._max_keys:
            self._drop_weakest()

    def forget(self, act: Hashable) -> None:
        """The act was undone; unknown ones are none."""
        done = self._acts.pop(act, None)
        if done is None:
            return
        for key in done.keys:
            entry = self._entries.get(key)
            # Dropped as weak, and perhaps come again since.
            if entry is None or done.actor not in entry.actors:
                continue
            entry.acts -= 1
            entry.actors[done.actor] -= 1
            if not entry.actors[done.actor]:
                del entry.actors[done.actor]
            if not entry.actors and entry.usual < FORGOTTEN:
                del self._entries[key]

    def forget_actor(self, actor: int) -> None:
        """Nobody hears of the actor any more."""
        for act in [name for name, done in self._acts.items() if done.actor == actor]:
            self.forget(act)

    def ranking(self) -> Sequence[Trend]:
        """What trends now, the strongest first, at most MAX_RANKED."""
        self._advance(self._clock())
        trending = (
            Trend(key, entry.strength(), len(entry.actors), entry.acts)
            for key, entry in self._entries.items()
            if len(entry.actors) >= self._min_actors and len(entry.actors) > entry.usual
        )
        return heapq.nlargest(MAX_RANKED, trending, key=lambda trend: (trend.strength, trend.acts, str(trend.key)))

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
        while self._acts:
            act, done = next(iter(self._acts.items()))
            if done.at_s > now_s - WINDOW_S:
                return
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
