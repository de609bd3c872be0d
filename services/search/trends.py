"""Ranks trends: compares how many different users acted on a key (a tag or a tweet) in the last hour with how many
usually do.

Users are counted, not actions: an account that repeats a tag a thousand times counts once. The number of keys is
bounded. If the bound is reached, the keys with the fewest users are evicted first, so a flood of invented tags evicts
tags that one user uses, not tags that several use.
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

# The length in seconds of the window in which users are counted.
WINDOW_S = 3_600.0
# Half-life of the baseline in seconds: a change that began three hours ago is half included.
BASELINE_HALF_LIFE_S = 3 * 3_600.0
# Seconds between two updates of the baselines.
STEP_S = 300.0
# The minimum of different users for a trending tag, and for a trending tweet. The tweet's author is not counted.
TAG_MIN_ACTORS = 3
TWEET_MIN_ACTORS = 2
# Maximum of actions in memory, about 300 bytes each. If there are more, the oldest are evicted and the window becomes
# shorter.
MAX_ACTS = 100_000
# The most keys for which one action is counted. A tweet with more tags than this is spam.
MAX_KEYS_PER_ACT = 10
# Maximum of keys in memory. If there are more, the weakest tenth is evicted.
MAX_KEYS = 10_000
# The heap may hold as many removed actions as there are actions, plus this many; then it is rebuilt.
MAX_STALE_HEAP_ENTRIES = 1_000
# A baseline (users per window) below this is treated as 0.
MIN_BASELINE = 0.05
# Maximum length of a ranking.
MAX_RANKED = 100


class Trend(NamedTuple):
    """A trending key. `strength` is the number of standard deviations above the baseline. `actors` is the number of
    different users and `acts` the number of actions in the window. `spelling` is the spelling that most users wrote,
    empty for a tweet.
    """

    key: Hashable
    strength: float
    actors: int
    acts: int
    spelling: str


@dataclass(slots=True)
class _KeyCounts:
    """The counts of one key: its users and spellings in the window, and its baseline."""

    # By user: the user's number of actions in the window. `spellings` has the same numbers for each spelling.
    actors: Counter[int] = field(default_factory=Counter)
    spellings: dict[str, Counter[int]] = field(default_factory=dict)
    acts: int = 0
    # Users in a window, smoothed over hours.
    baseline: float = 0.0

    def add(self, actor: int, spelling: str) -> None:
        """Counts one action."""
        self.acts += 1
        self.actors[actor] += 1
        self.spellings.setdefault(spelling, Counter())[actor] += 1

    def remove(self, actor: int, spelling: str) -> None:
        """Subtracts one action from the counts. Does nothing if the action is not in the counts, because the key was
        evicted and added again since.
        """
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
        """Returns the spelling that most users wrote; if several are equally frequent, the first in code-point order,
        which prefers capital letters (`RoostMesh` before `roostmesh`).
        """
        return min(self.spellings, key=lambda one: (-len(self.spellings[one]), one), default="")

    def strength(self) -> float:
        """Returns by how many standard deviations the current number of users is above the baseline."""
        return (len(self.actors) - self.baseline) / math.sqrt(self.baseline + 1.0)


@dataclass(slots=True, frozen=True)
class _Act(Generic[K]):
    actor: int
    at_s: float
    # Key → its spelling in this action.
    keys: dict[K, str]


class Trends(Generic[K]):
    """Counts, for each key (a tag or a tweet), the users who acted on it. `clock` returns Unix seconds.

    A key trends if at least `min_actors` different users acted on it in the window. Callers add actions roughly in the
    order of their time; an action may be added repeatedly or late.
    """

    def __init__(
        self, clock: Callable[[], float], min_actors: int, max_acts: int = MAX_ACTS, max_keys: int = MAX_KEYS
    ) -> None:
        self._clock = clock
        self._min_actors = min_actors
        self._max_acts = max_acts
        self._max_keys = max_keys
        self._acts: dict[Hashable, _Act[K]] = {}
        # A heap of actions, oldest first. A removed action stays in the heap until it is the oldest, or until the heap
        # holds too many removed actions. `_number` grows with each action and orders actions of the same time.
        self._by_time: list[tuple[float, int, Hashable, _Act[K]]] = []
        self._number = 0
        self._entries: dict[K, _KeyCounts] = {}
        self._stepped_s: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, act: Hashable, actor: int, keys: Mapping[K, str], at_s: float) -> None:
        """Counts one action, identified by `act`, of the user `actor` at `at_s` (Unix seconds).

        Does nothing if the action is known already or older than the window. `keys` maps each key to its spelling; the
        spelling is empty for tweets. Only the first MAX_KEYS_PER_ACT keys count.
        """
        # Advances the counts to the time of the action, not to the clock, so that a replay of the last hours updates
        # the baselines in the same steps as the original actions did.
        self._advance(min(at_s, self._clock()))
        counted = dict(islice(keys.items(), MAX_KEYS_PER_ACT))
        if not counted or act in self._acts or at_s <= self._now_s() - WINDOW_S:
            return
        self._acts[act] = added = _Act(actor, at_s, counted)
        self._number += 1
        heapq.heappush(self._by_time, (at_s, self._number, act, added))
        for key, spelling in counted.items():
            self._entries.setdefault(key, _KeyCounts()).add(actor, spelling)
        while len(self._acts) > self._max_acts:
            self._evict_oldest()
        if len(self._entries) > self._max_keys:
            self._evict_weakest()

    def remove(self, act: Hashable) -> None:
        """Subtracts an action that was undone from the counts. Does nothing if the action is not in memory."""
        removed = self._acts.pop(act, None)
        if removed is None:
            return
        for key, spelling in removed.keys.items():
            entry = self._entries.get(key)
            # The key was evicted after the action, and its counts with it.
            if entry is None:
                continue
            entry.remove(removed.actor, spelling)
            if not entry.actors and entry.baseline < MIN_BASELINE:
                del self._entries[key]
        if len(self._by_time) > 2 * len(self._acts) + MAX_STALE_HEAP_ENTRIES:
            self._by_time = [entry for entry in self._by_time if self._acts.get(entry[2]) is entry[3]]
            heapq.heapify(self._by_time)

    def remove_actor(self, actor: int) -> None:
        """Subtracts all actions of the user from the counts."""
        for act in [name for name, done in self._acts.items() if done.actor == actor]:
            self.remove(act)

    def ranking(self) -> Sequence[Trend]:
        """Returns the keys that trend now, strongest first, at most MAX_RANKED."""
        self._advance(self._clock())
        trending = (
            (entry.strength(), entry.acts, str(key), key, entry)
            for key, entry in self._entries.items()
            if len(entry.actors) >= self._min_actors and len(entry.actors) > entry.baseline
        )
        return [
            Trend(key, strength, len(entry.actors), acts, entry.spelling())
            for strength, acts, _, key, entry in heapq.nlargest(MAX_RANKED, trending, key=itemgetter(0, 1, 2))
        ]

    def _now_s(self) -> float:
        return self._stepped_s if self._stepped_s is not None else 0.0

    def _advance(self, now_s: float) -> None:
        """Updates the counts to the time `now_s` (Unix seconds) in steps of STEP_S seconds (five minutes).

        Each step subtracts the actions that are now older than WINDOW_S from the counts of users, and moves the
        baseline of each key towards its current count. The first call only stores `now_s` as the time of the first
        step. Later calls do nothing if `now_s` is less than one step after the last step, or before it.
        """
        if self._stepped_s is None:
            self._stepped_s = now_s
        while now_s >= self._stepped_s + STEP_S:
            steps = 1.0
            if not self._acts:
                # If no action is in memory, every key has zero users in each of these steps, so one update computes
                # all steps.
                steps = (now_s - self._stepped_s) // STEP_S
            self._stepped_s += steps * STEP_S
            self._expire(self._stepped_s)
            self._update_baselines(steps)

    def _expire(self, now_s: float) -> None:
        while self._by_time and self._by_time[0][0] <= now_s - WINDOW_S:
            self._evict_oldest()

    def _evict_oldest(self) -> None:
        _, _, act, added = heapq.heappop(self._by_time)
        if self._acts.get(act) is added:
            self.remove(act)

    def _update_baselines(self, steps: float) -> None:
        """Moves the baseline of each key towards its current number of users, as far as `steps` steps of STEP_S seconds
        would. Then drops each key that has no users and a baseline below MIN_BASELINE.
        """
        decay = math.exp2(-steps * STEP_S / BASELINE_HALF_LIFE_S)
        for key, entry in list(self._entries.items()):
            entry.baseline = entry.baseline * decay + len(entry.actors) * (1.0 - decay)
            if not entry.actors and entry.baseline < MIN_BASELINE:
                del self._entries[key]

    def _evict_weakest(self) -> None:
        weakest = heapq.nsmallest(
            max(self._max_keys // 10, 1),
            self._entries,
            key=lambda key: (len(self._entries[key].actors), self._entries[key].baseline),
        )
        for key in weakest:
            del self._entries[key]
