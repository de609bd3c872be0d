"""The history of a drill's writes and their outcomes, and the check of a mesh's data against it.

A register is a boolean fact that writes set to true or false: a tweet exists, an edge exists. For each register the
history has the set of values that the mesh's data may show. When a write is sent, its value is added to the set. If the
write is acknowledged, only its value remains; if the write is refused, the set from before the write is restored. If no
answer comes, both values stay possible until a repeat of the write is acknowledged or refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """The kind of a register. The subject of a POST is its idempotency key; of all others an id."""

    POST = "post"
    DELETE = "delete"
    RETWEET = "retweet"
    LIKE = "like"
    FOLLOW = "follow"


class Register(NamedTuple):
    """A boolean fact, such as "this user likes this tweet", that only writes of the user `user_id` change."""

    kind: Kind
    user_id: int
    subject: str | int


class Outcome(StrEnum):
    """The state of a write: sent, acknowledged, refused, or of unknown outcome."""

    INVOKED = "invoke"
    OK = "ok"
    FAILED = "fail"
    UNKNOWN = "unknown"


class Event(NamedTuple):
    """One entry of the history: a write of a register, or the outcome of one."""

    register: Register
    value: bool
    outcome: Outcome
    detail: str = ""


class ObservedTweet(NamedTuple):
    """A tweet as the tweet service returns it; the text of a deleted one is empty."""

    author_id: int
    text: str
    deleted: bool
    retweet_of_id: int


@dataclass(slots=True)
class Observed:
    """The observed data: tweets by id, follows and likes as (user, subject), and the ids that each author's tweet
    list returned."""

    tweets: dict[int, ObservedTweet] = field(default_factory=dict)
    follows: set[tuple[int, int]] = field(default_factory=set)
    likes: set[tuple[int, int]] = field(default_factory=set)
    listed: dict[int, list[int]] = field(default_factory=dict)


class Faults(NamedTuple):
    """Violations: acknowledged writes that are lost, duplicates, and data that no write could have created."""

    lost: list[str]
    duplicated: list[str]
    strange: list[str]

    def __bool__(self) -> bool:
        return bool(self.lost or self.duplicated or self.strange)


class History:
    """All writes of all clients. The writes of a user to one register are sequential."""

    def __init__(self) -> None:
        self.log: list[Event] = []
        # The tweet id that each acknowledged post returned, by idempotency key.
        self.ids: dict[str, int] = {}
        # The ids of all acknowledged posts, of all users and by user.
        self.tweets: list[int] = []
        self.own: defaultdict[int, list[int]] = defaultdict(list)
        self._possible: defaultdict[Register, set[bool]] = defaultdict(lambda: {False})
        # Per register: the value written last, and the values that were possible before.
        self._asked: dict[Register, tuple[bool, frozenset[bool]]] = {}

    def invoke(self, register: Register, value: bool) -> None:
        """Records that a write that sets `register` to `value` is about to be sent."""
        self._asked[register] = (value, frozenset(self._possible[register]))
        self._possible[register].add(value)
        self.log.append(Event(register, value, Outcome.INVOKED))

    def ok(self, register: Register, tweet_id: int = 0) -> None:
        """Records that the last write of the register was acknowledged. `tweet_id` is the id that a post returned; it
        is 0 for other kinds."""
        value, _ = self._asked[register]
        self._possible[register] = {value}
        detail = ""
        if register.kind is Kind.POST:
            key = str(register.subject)
            if key not in self.ids:
                self.ids[key] = tweet_id
                self.tweets.append(tweet_id)
                self.own[register.user_id].append(tweet_id)
            elif self.ids[key] != tweet_id:
                # A fault: two calls with one idempotency key returned two different tweets.
                detail = f"answered {tweet_id} after {self.ids[key]}"
        self.log.append(Event(register, value, Outcome.OK, detail))

    def fail(self, register: Register, code: str) -> None:
        """Records that the last write was refused: `check` reports a fault if the write had an effect all the same."""
        value, before = self._asked[register]
        self._possible[register] = set(before)
        self.log.append(Event(register, value, Outcome.FAILED, code))

    def unknown(self, register: Register, code: str) -> None:
        """Records that the last write got no answer, so both its value and the values from before it stay possible."""
        self.log.append(Event(register, self._asked[register][0], Outcome.UNKNOWN, code))

    def open(self) -> list[tuple[Register, bool]]:
        """Returns the registers whose value is unknown, with the value written last."""
        return [(name, self._asked[name][0]) for name, possible in self._possible.items() if len(possible) > 1]

    def subjects(self, kind: Kind, user_id: int) -> list[int]:
        """Returns the ids that the user has written to in registers of this kind."""
        return [int(r.subject) for r in self._possible if r.kind is kind and r.user_id == user_id]

    def counts(self) -> Counter[Outcome]:
        """Returns the number of events by outcome."""
        return Counter(event.outcome for event in self.log)

    def check(self, observed: Observed) -> Faults:
        """Compares the observed data with the history and returns the violations."""
        faults = Faults([], [], [])
        by_text: defaultdict[str, list[int]] = defaultdict(list)
        retweets: Counter[tuple[int, int]] = Counter()
        for tweet_id, tweet in observed.tweets.items():
            if tweet.retweet_of_id and not tweet.deleted:
                retweets[tweet.author_id, tweet.retweet_of_id] += 1
            elif not tweet.deleted:
                by_text[tweet.text].append(tweet_id)
        for register, possible in self._possible.items():
            found = self._found(register, observed, by_text, retweets)
            if found is None:
                continue
            if found > 1:
                faults.duplicated.append(self._told(register, f"is there {found} times"))
            elif bool(found) not in possible:
                kind = faults.strange if found else faults.lost
                kind.append(self._told(register, "is there" if found else "is not there"))
        faults.duplicated.extend(
            self._told(event.register, event.detail)
            for event in self.log
            if event.outcome is Outcome.OK and event.detail
        )
        self._check_lists(observed, faults)
        return faults

    def _found(
        self,
        register: Register,
        observed: Observed,
        by_text: defaultdict[str, list[int]],
        retweets: Counter[tuple[int, int]],
    ) -> int | None:
        """Returns how often the register's fact occurs in the data (0, 1 or more); None if the data does not contain
        the tweet that the register is about, so that the register cannot be checked."""
        kind, user_id, subject = register
        match kind:
            case Kind.POST:
                tweet_id = self.ids.get(str(subject))
                if tweet_id is not None and tweet_id in observed.tweets and observed.tweets[tweet_id].deleted:
                    return 1
                ids = by_text.get(str(subject), [])
                # A different tweet than the acknowledged one counts as a loss, even with the same text.
                return len(ids) if tweet_id is None or tweet_id in ids else 0
            case Kind.DELETE:
                tweet = observed.tweets.get(int(subject))
                # A missing tweet is counted as a fault of its post.
                return None if tweet is None else int(tweet.deleted)
            case Kind.FOLLOW:
                return int((user_id, int(subject)) in observed.follows)
        about = observed.tweets.get(int(subject))
        if about is None or about.deleted:
            return None
        return (
            retweets[user_id, int(subject)] if kind is Kind.RETWEET else int((user_id, int(subject)) in observed.likes)
        )

    def _check_lists(self, observed: Observed, faults: Faults) -> None:
        """Checks that each author's tweet list holds every tweet that the author posted and did not delete, exactly
        once."""
        standing: defaultdict[int, set[int]] = defaultdict(set)
        for tweet_id, tweet in observed.tweets.items():
            if not tweet.deleted and not tweet.retweet_of_id:
                standing[tweet.author_id].add(tweet_id)
        for author_id, listed in observed.listed.items():
            twice = len(listed) - len(set(listed))
            if twice:
                faults.duplicated.append(f"the list of {author_id} repeats {twice} tweets")
            if missing := standing[author_id] - set(listed):
                faults.lost.append(f"the list of {author_id} lacks {sorted(missing)[:3]}")
            if extra := set(listed) - standing[author_id]:
                faults.strange.append(f"the list of {author_id} holds {sorted(extra)[:3]}")

    def _told(self, register: Register, found: str) -> str:
        events = [event for event in self.log if event.register == register]
        told = ", ".join(f"{e.outcome} {e.value}" + (f" ({e.detail})" if e.detail else "") for e in events)
        return f"{register.kind} of {register.user_id} on {register.subject} {found}; {told}"
