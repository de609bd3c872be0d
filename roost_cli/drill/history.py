"""Records the writes of a drill and their outcomes (the history), and compares the data of the mesh with the history.

A register is a boolean fact that writes set to true or false, such as "this tweet exists" or "user A follows user B".
For each register, the history has the set of possible values. When a write is sent, its value is added to the set. If
the write is acknowledged, its value becomes the only one. If the write is refused, the set from before the write is
restored. If its outcome is unknown, the set remains until a repeat of the write is acknowledged or refused. A register
whose value in the mesh is not in the set is a violation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """The kind of a register. The subject of a POST is an idempotency key; the subject of any other kind is a tweet id
    or user id."""

    POST = "post"
    DELETE = "delete"
    RETWEET = "retweet"
    LIKE = "like"
    FOLLOW = "follow"


class Register(NamedTuple):
    """A boolean fact about the user `user_id` and `subject`, such as "this user likes this tweet". Only writes of the
    user change the fact."""

    kind: Kind
    user_id: int
    subject: str | int


class Outcome(StrEnum):
    """The state of a write: sent, acknowledged, refused, or unknown (no response arrived)."""

    INVOKED = "invoke"
    OK = "ok"
    FAILED = "fail"
    UNKNOWN = "unknown"


class Event(NamedTuple):
    """One entry of the history: a write that sets a register to `value` was sent, or its outcome. `detail` is a status
    code, or the description of a violation."""

    register: Register
    value: bool
    outcome: Outcome
    detail: str = ""


class ObservedTweet(NamedTuple):
    """A tweet as the tweet service stores it. The text of a deleted tweet is empty; `retweet_of_id` is 0 if the tweet
    is not a retweet."""

    author_id: int
    text: str
    deleted: bool
    retweet_of_id: int


@dataclass(slots=True)
class Observed:
    """The data that was read from the mesh: all tweets by id, follows as (follower, followee), likes as (user, tweet),
    and the tweet ids in the user timeline of each author (`listed`)."""

    tweets: dict[int, ObservedTweet] = field(default_factory=dict)
    follows: set[tuple[int, int]] = field(default_factory=set)
    likes: set[tuple[int, int]] = field(default_factory=set)
    listed: dict[int, list[int]] = field(default_factory=dict)


class Violations(NamedTuple):
    """The violations that a check found, one text each. `lost`: acknowledged writes without an effect. `duplicated`:
    writes with more than one effect. `strange`: data that no write can have created; only an acknowledged write and a
    write whose outcome is unknown create data."""

    lost: list[str]
    duplicated: list[str]
    strange: list[str]

    def __bool__(self) -> bool:
        return bool(self.lost or self.duplicated or self.strange)


class History:
    """The writes of all clients and their outcomes. The writes to one register must be sequential."""

    def __init__(self) -> None:
        self.log: list[Event] = []
        # Ids of the tweets that acknowledged CreateTweet calls returned, by idempotency key.
        self.ids: dict[str, int] = {}
        # The same ids as a list, and as a list for each author.
        self.tweets: list[int] = []
        self.own: defaultdict[int, list[int]] = defaultdict(list)
        self._possible: defaultdict[Register, set[bool]] = defaultdict(lambda: {False})
        # For each register: the value of the last write, and the values that were possible before this write.
        self._asked: dict[Register, tuple[bool, frozenset[bool]]] = {}

    def invoke(self, register: Register, value: bool) -> None:
        """Records a write that sets `register` to `value`. Call it before the write is sent."""
        self._asked[register] = (value, frozenset(self._possible[register]))
        self._possible[register].add(value)
        self.log.append(Event(register, value, Outcome.INVOKED))

    def ok(self, register: Register, tweet_id: int = 0) -> None:
        """Records that the last write to `register` was acknowledged. `tweet_id` is the id that CreateTweet returned, 0
        for other kinds."""
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
                # A violation: two calls with the same idempotency key returned different tweets.
                detail = f"answered {tweet_id} after {self.ids[key]}"
        self.log.append(Event(register, value, Outcome.OK, detail))

    def fail(self, register: Register, code: str) -> None:
        """Records that the last write to `register` was refused with the status `code`. If it had an effect
        nevertheless, `check` reports a violation."""
        value, before = self._asked[register]
        self._possible[register] = set(before)
        self.log.append(Event(register, value, Outcome.FAILED, code))

    def unknown(self, register: Register, code: str) -> None:
        """Records that the outcome of the last write to `register` is unknown, so its value and the earlier ones remain
        possible. `code` is the status or the error."""
        self.log.append(Event(register, self._asked[register][0], Outcome.UNKNOWN, code))

    def open(self) -> list[tuple[Register, bool]]:
        """Returns the registers with more than one possible value, each with the value of its last write."""
        return [(name, self._asked[name][0]) for name, possible in self._possible.items() if len(possible) > 1]

    def subjects(self, kind: Kind, user_id: int) -> list[int]:
        """Returns the subjects of the user's registers of this kind: tweet ids or user ids. Not for POST, whose
        subjects are keys."""
        return [int(r.subject) for r in self._possible if r.kind is kind and r.user_id == user_id]

    def counts(self) -> Counter[Outcome]:
        """Returns the number of entries of the history by outcome."""
        return Counter(event.outcome for event in self.log)

    def check(self, observed: Observed) -> Violations:
        """Compares the observed data with the history and returns the violations."""
        violations = Violations([], [], [])
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
                violations.duplicated.append(self._told(register, f"is there {found} times"))
            elif bool(found) not in possible:
                kind = violations.strange if found else violations.lost
                kind.append(self._told(register, "is there" if found else "is not there"))
        violations.duplicated.extend(
            self._told(event.register, event.detail)
            for event in self.log
            if event.outcome is Outcome.OK and event.detail
        )
        self._check_lists(observed, violations)
        return violations

    def _found(
        self,
        register: Register,
        observed: Observed,
        by_text: defaultdict[str, list[int]],
        retweets: Counter[tuple[int, int]],
    ) -> int | None:
        """Returns how often the data shows the register's fact: 0, 1 or more.

        Returns None if the register cannot be checked: its tweet is missing, or the tweet that was liked or retweeted
        is deleted. `by_text` has the ids of the live tweets by text, `retweets` the number of live retweets by (user,
        tweet).
        """
        kind, user_id, subject = register
        match kind:
            case Kind.POST:
                tweet_id = self.ids.get(str(subject))
                if tweet_id is not None and tweet_id in observed.tweets and observed.tweets[tweet_id].deleted:
                    return 1
                ids = by_text.get(str(subject), [])
                # If the acknowledged tweet is missing, another tweet with the same text does not replace it.
                return len(ids) if tweet_id is None or tweet_id in ids else 0
            case Kind.DELETE:
                tweet = observed.tweets.get(int(subject))
                # A missing tweet is reported as a violation of its POST.
                return None if tweet is None else int(tweet.deleted)
            case Kind.FOLLOW:
                return int((user_id, int(subject)) in observed.follows)
        about = observed.tweets.get(int(subject))
        if about is None or about.deleted:
            return None
        return (
            retweets[user_id, int(subject)] if kind is Kind.RETWEET else int((user_id, int(subject)) in observed.likes)
        )

    def _check_lists(self, observed: Observed, violations: Violations) -> None:
        """Adds violations if the user timeline of an author does not contain each of the author's live tweets exactly
        once, retweets excluded."""
        standing: defaultdict[int, set[int]] = defaultdict(set)
        for tweet_id, tweet in observed.tweets.items():
            if not tweet.deleted and not tweet.retweet_of_id:
                standing[tweet.author_id].add(tweet_id)
        for author_id, listed in observed.listed.items():
            twice = len(listed) - len(set(listed))
            if twice:
                violations.duplicated.append(f"the list of {author_id} repeats {twice} tweets")
            if missing := standing[author_id] - set(listed):
                violations.lost.append(f"the list of {author_id} lacks {sorted(missing)[:3]}")
            if extra := set(listed) - standing[author_id]:
                violations.strange.append(f"the list of {author_id} holds {sorted(extra)[:3]}")

    def _told(self, register: Register, found: str) -> str:
        events = [event for event in self.log if event.register == register]
        told = ", ".join(f"{e.outcome} {e.value}" + (f" ({e.detail})" if e.detail else "") for e in events)
        return f"{register.kind} of {register.user_id} on {register.subject} {found}; {told}"
