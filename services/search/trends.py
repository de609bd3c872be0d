"""Ranks trends. The key of a trend is a hashtag or the id of a tweet; an action of a user on it is a tweet with the
hashtag, or a like, retweet, quote or reply. A key trends if more different users act on it in the last hour than usual.

Users are counted, not actions: a user who repeats a hashtag a thousand times counts once. If there are too many keys,
those with the fewest users are evicted, so a flood of invented hashtags evicts hashtags that one user uses, not those
of several users.
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

# Length of the window in seconds: users are counted by their actions in the last hour.
WINDOW_S = 3_600.0
# Half-life of the baseline in seconds. The baseline of a key is its usual number of users per window. If that number
# changes, the baseline moves half of the way to the new number in three hours.
BASELINE_HALF_LIFE_S = 3 * 3_600.0
# Seconds per step. At each step actions older than the window are subtracted, and the baselines are updated.
STEP_S = 300.0
# Minimum number of different users in the window for a hashtag, and for a tweet, to trend. The author of a tweet does
# not count for it.
TAG_MIN_ACTORS = 3
TWEET_MIN_ACTORS = 2
# Maximum number of actions in memory, about 300 bytes each. Beyond it the oldest are evicted, so the window is shorter
# than an hour.
MAX_ACTS = 100_000
# Maximum number of keys for which one action counts; further keys are ignored. A tweet with more hashtags is spam.
MAX_KEYS_PER_ACT = 10
# Maximum number of keys in memory. Beyond it the tenth with the fewest users is evicted.
MAX_KEYS = 10_000
# The heap of actions may contain as many removed actions as there are actions in memory, plus this number. Beyond it
# the heap is rebuilt.
MAX_STALE_HEAP_ENTRIES = 1_000
# A key without users is dropped once its baseline (in users per window) is below this number.
MIN_BASELINE = 0.05
# Maximum number of trends in a ranking; weaker ones are left out.
MAX_RANKED = 100


class Trend(NamedTuple):
    """A trend. `strength` says by how many standard deviations the number of users is above the baseline. `actors` is
    the number of different users in the window, `acts` the number of their actions. `spelling` is the spelling of the
    hashtag that most users wrote, "" for a tweet."""

    key: Hashable
    strength: float
    actors: int
    acts: int
    spelling: str


@dataclass(slots=True)
class _KeyCounts:
    """The counts of one key in the window, and its baseline."""

    # `actors` has the number of actions in the window by user id; `spellings` has the same for each spelling.
    actors: Counter[int] = field(default_factory=Counter)
    spellings: dict[str, Counter[int]] = field(default_factory=dict)
    acts: int = 0
    # The usual number of users per window; see BASELINE_HALF_LIFE_S.
    baseline: float = 0.0

    def add(self, actor: int, spelling: str) -> None:
        """Counts one action of the user `actor`."""
        self.acts += 1
        self.actors[actor] += 1
        self.spellings.setdefault(spelling, Counter())[actor] += 1

    def remove(self, actor: int, spelling: str) -> None:
        """Subtracts one action of the user `actor`. Does nothing if the action is not counted: the key may have been
        evicted and added again since."""
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
        """Returns the spelling that most users wrote, of equally frequent ones the first in code-point order
        (`RoostMesh` before `roostmesh`). Returns "" if there is none."""
        return min(self.spellings, key=lambda one: (-len(self.spellings[one]), one), default="")

    def strength(self) -> float:
        """Returns by how many standard deviations the number of users is above the baseline. The deviation is the
        square root of the baseline, as of a Poisson distribution; 1 is added so that a few users of a new key are not
        infinitely strong."""
        return (len(self.actors) - self.baseline) / math.sqrt(self.baseline + 1.0)


@dataclass(slots=True, frozen=True)
class _Act(Generic[K]):
    actor: int
    at_s: float
    # The keys of this action, each with its spelling.
    keys: dict[K, str]


class Trends(Generic[K]):
    """Counts the users who act on each key. `clock` returns Unix seconds.

    A key trends if at least `min_actors` different users acted on it in the window, and more than its baseline. Callers
    add actions roughly in the order of time; an action may be added twice or late.
    """

    def __init__(
        self, clock: Callable[[], float], min_actors: int, max_acts: int = MAX_ACTS, max_keys: int = MAX_KEYS
    ) -> None:
        self._clock = clock
        self._min_actors = min_actors
        self._max_acts = max_acts
        self._max_keys = max_keys
        self._acts: dict[Hashable, _Act[K]] = {}
        # A heap of actions, oldest first. A removed action stays in it until it is the oldest, or until the heap is
        # rebuilt (MAX_STALE_HEAP_ENTRIES). `_number` grows with each action and orders actions of equal time.
        self._by_time: list[tuple[float, int, Hashable, _Act[K]]] = []
        self._number = 0
        self._entries: dict[K, _KeyCounts] = {}
        self._stepped_s: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, act: Hashable, actor: int, keys: Mapping[K, str], at_s: float) -> None:
        """Counts the action `act` (any id of the action) of the user `actor` at `at_s` (Unix seconds). `keys` has the
        spelling of each key, "" for a tweet; only the first MAX_KEYS_PER_ACT keys count.

        Does nothing if the action is counted already, or is older than the window.
        """
        # The counts are advanced to the time of the action, not of the clock. So a replay of the last hours makes the
        # same steps, and the same baselines, as the actions did.
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
        """Subtracts the action `act` from the counts of its keys, because the action was undone or is too old. Does
        nothing if the action is not in memory."""
        removed = self._acts.pop(act, None)
        if removed is None:
            return
        for key, spelling in removed.keys.items():
            entry = self._entries.get(key)
            # The key was evicted after this action.
            if entry is None:
                continue
            entry.remove(removed.actor, spelling)
            if not entry.actors and entry.baseline < MIN_BASELINE:
                del self._entries[key]
        if len(self._by_time) > 2 * len(self._acts) + MAX_STALE_HEAP_ENTRIES:
            self._by_time = [entry for entry in self._by_time if self._acts.get(entry[2]) is entry[3]]
            heapq.heapify(self._by_time)

    def remove_actor(self, actor: int) -> None:
        """Subtracts all actions of the user."""
        for act in [name for name, done in self._acts.items() if done.actor == actor]:
            self.remove(act)

    def ranking(self) -> Sequence[Trend]:
        """Returns the trends of now, strongest first, at most MAX_RANKED."""
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

        Each step subtracts the actions that are older than WINDOW_S seconds, and moves the baseline of each key towards
        its number of users. The first call only stores `now_s` as the time from which steps are counted. Later calls do
        nothing if `now_s` is less than one step after the last step, or before it.
        """
        if self._stepped_s is None:
            self._stepped_s = now_s
        while now_s >= self._stepped_s + STEP_S:
            steps = 1.0
            if not self._acts:
                # Without actions in memory all keys have 0 users in each step, so one update can compute all steps.
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
        """Moves the baseline of each key towards its number of users by `steps` steps of STEP_S seconds. Then drops the
        keys that have no users and a baseline below MIN_BASELINE."""
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
