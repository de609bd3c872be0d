"""What was asked of a mesh and what it answered, and whether what is there now agrees with it.

Each thing that a write decides (a tweet is there, an edge is there) is a register. A write makes its value possible; the
acknowledgement makes it the only one, a refusal impossible, and where neither came both stay possible, until a repeat is
acknowledged.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What a register says. The subject of a post is its idempotency key, of all others an id."""

    POST = "post"
    DELETE = "delete"
    RETWEET = "retweet"
    LIKE = "like"
    FOLLOW = "follow"


class Register(NamedTuple):
    """One thing that only this user's writes decide."""

    kind: Kind
    user_id: int
    subject: str | int


class Outcome(StrEnum):
    """How a write stands: asked for, acknowledged, refused, or without an answer."""

    INVOKED = "invoke"
    OK = "ok"
    FAILED = "fail"
    UNKNOWN = "unknown"


class Event(NamedTuple):
    """One line of the log."""

    register: Register
    value: bool
    outcome: Outcome
    detail: str = ""


class Seen(NamedTuple):
    """A tweet as its owner tells of it; the text of a deleted one is empty."""

    author_id: int
    text: str
    deleted: bool
    retweet_of_id: int


@dataclass(slots=True)
class Observed:
    """What is there: tweets by id, edges and likes by who made them, and the ids that each author's list answers."""

    tweets: dict[int, Seen] = field(default_factory=dict)
    follows: set[tuple[int, int]] = field(default_factory=set)
    likes: set[tuple[int, int]] = field(default_factory=set)
    listed: dict[int, list[int]] = field(default_factory=dict)


class Faults(NamedTuple):
    """What must not be: acknowledged and gone, there twice, and there or changed without anybody's wish."""

    lost: list[str]
    duplicated: list[str]
    strange: list[str]

    def __bool__(self) -> bool:
        return bool(self.lost or self.duplicated or self.strange)


class History:
    """Every write of all clients. A user's writes to one register come one after another."""

    def __init__(self) -> None:
        self.log: list[Event] = []
        # The ids that posts were answered with, by key.
        self.ids: dict[str, int] = {}
        # The same, as the ids of everybody and of each user.
        self.tweets: list[int] = []
        self.own: defaultdict[int, list[int]] = defaultdict(list)
        self._possible: defaultdict[Register, set[bool]] = defaultdict(lambda: {False})
        # The value that was asked for last, and what was possible before.
        self._asked: dict[Register, tuple[bool, frozenset[bool]]] = {}

    def invoke(self, register: Register, value: bool) -> None:
        """A write is about to be sent."""
        self._asked[register] = (value, frozenset(self._possible[register]))
        self._possible[register].add(value)
        self.log.append(Event(register, value, Outcome.INVOKED))

    def ok(self, register: Register, tweet_id: int = 0) -> None:
        """It was acknowledged; posts with their tweet's id."""
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
                # Kept for the checker: one key, two tweets.
                detail = f"answered {tweet_id} after {self.ids[key]}"
        self.log.append(Event(register, value, Outcome.OK, detail))

    def fail(self, register: Register, code: str) -> None:
        """It was refused: it must not have had an effect."""
        value, before = self._asked[register]
        self._possible[register] = set(before)
        self.log.append(Event(register, value, Outcome.FAILED, code))

    def unknown(self, register: Register, code: str) -> None:
        """No answer came: it may have had its effect or not."""
        self.log.append(Event(register, self._asked[register][0], Outcome.UNKNOWN, code))

    def open(self) -> list[tuple[Register, bool]]:
        """The registers that may be either, with the value that was asked for last."""
        return [(name, self._asked[name][0]) for name, possible in self._possible.items() if len(possible) > 1]

    def subjects(self, kind: Kind, user_id: int) -> list[int]:
        """The ids on which the user ever wrote in this kind."""
        return [int(r.subject) for r in self._possible if r.kind is kind and r.user_id == user_id]

    def counts(self) -> Counter[Outcome]:
        """Events by outcome."""
        return Counter(event.outcome for event in self.log)

    def check(self, observed: Observed) -> Faults:
        """How what is there disagrees with the history."""
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
        """How often what the register tells of is there; None where that cannot be seen."""
        kind, user_id, subject = register
        match kind:
            case Kind.POST:
                tweet_id = self.ids.get(str(subject))
                if tweet_id is not None and tweet_id in observed.tweets and observed.tweets[tweet_id].deleted:
                    return 1
                ids = by_text.get(str(subject), [])
                # Another tweet in the place of the one that was answered is a loss, whatever its text.
                return len(ids) if tweet_id is None or tweet_id in ids else 0
            case Kind.DELETE:
                tweet = observed.tweets.get(int(subject))
                # One that is not there at all is its post's fault.
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
        """An author's list is what the author posted and did not delete, each once."""
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
