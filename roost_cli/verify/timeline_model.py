"""What every home timeline must hold, by brute force from the truth, and how an answer differs from it.

The rules are those of the API's words alone; nothing here knows how homes are kept, so that both cannot be wrong in the
same way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from roost.tweet.v1 import tweet_pb2

# A home is the newest 800 entries that its reader may see.
DEPTH = 800


@dataclass(slots=True)
class Truth:
    """What the owners of the data say: users by id with their names, edges by who made them, and heads of tweets."""

    usernames: dict[int, str] = field(default_factory=dict)
    active: set[int] = field(default_factory=set)
    following: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    # Both ways: who is hidden from whom by a block, whoever made it.
    apart: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    blocking: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    muting: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    heads: dict[int, tweet_pb2.TweetHead] = field(default_factory=dict)
    by_author: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    # The newest tweet known: what a home shows above it was posted since.
    newest: int = 0

    def add_user(self, user_id: int, username: str, *, active: bool) -> None:
        """A user, also a hidden one."""
        self.usernames[user_id] = username
        if active:
            self.active.add(user_id)

    def add_follow(self, follower: int, followee: int) -> None:
        """One follows the other."""
        self.following[follower].add(followee)

    def add_block(self, blocker: int, blocked: int) -> None:
        """One blocks the other: neither sees the other."""
        self.blocking[blocker].add(blocked)
        self.apart[blocker].add(blocked)
        self.apart[blocked].add(blocker)

    def add_mute(self, muter: int, muted: int) -> None:
        """One mutes the other."""
        self.muting[muter].add(muted)

    def add_tweet(self, head: tweet_pb2.TweetHead) -> None:
        """A tweet, reply, quote or retweet, also a deleted one."""
        self.heads[head.id] = head
        self.by_author[head.author_id].append(head.id)
        self.newest = max(self.newest, head.id)


def expected_home(truth: Truth, reader: int) -> list[int]:
    """The ids that the reader's home must hold, newest first, at most DEPTH."""
    authors = truth.following[reader] | {reader}
    ids = (tweet_id for author in authors for tweet_id in truth.by_author.get(author, ()))
    return sorted((tweet_id for tweet_id in ids if _shows(truth, reader, truth.heads[tweet_id])), reverse=True)[:DEPTH]


def _shows(truth: Truth, reader: int, head: tweet_pb2.TweetHead) -> bool:
    """Whether a tweet of the reader or a followee shows in the reader's home."""
    if not _stands(truth, reader, head.id) or head.author_id in truth.muting[reader]:
        return False
    if head.retweet_of_id:
        original = truth.heads.get(head.retweet_of_id)
        # Whoever retweets, the reader included: a muted author's tweet stays away.
        return (
            original is not None
            and _stands(truth, reader, original.id)
            and original.author_id not in truth.muting[reader]
        )
    if head.reply_to_id and head.author_id != reader:
        follows_both = head.reply_to_author_id == reader or head.reply_to_author_id in truth.following[reader]
        return follows_both and _stands(truth, reader, head.reply_to_id)
    return True


def _stands(truth: Truth, reader: int, tweet_id: int) -> bool:
    """Whether a tweet exists and the reader may see it at all."""
    head = truth.heads.get(tweet_id)
    return (
        head is not None
        and not head.deleted
        and head.author_id in truth.active
        and head.author_id not in truth.apart[reader]
    )


@dataclass(frozen=True, slots=True)
class Findings:
    """How an answer differs from what it must be: tweet ids by kind of fault; `unread` says why there was no answer."""

    missing: tuple[int, ...] = ()
    extra: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()
    misordered: tuple[int, ...] = ()
    unread: str = ""

    @property
    def exact(self) -> bool:
        """Whether there is nothing to report."""
        return self.count == 0

    @property
    def count(self) -> int:
        """How many entries are at fault."""
        return len(self.missing) + len(self.extra) + len(self.repeated) + len(self.misordered) + bool(self.unread)

    def by_kind(self) -> Iterable[tuple[str, tuple[int, ...]]]:
        """The kinds that have entries, with them."""
        kinds = (
            ("missing", self.missing),
            ("extra", self.extra),
            ("repeated", self.repeated),
            ("misordered", self.misordered),
        )
        return [(kind, ids) for kind, ids in kinds if ids]


def compare(expected: Sequence[int], actual: Sequence[int], newer: Iterable[int] = ()) -> Findings:
    """Compares a home, as answered page by page, with what it must hold.

    `newer` are ids posted since the truth was read: they push as many of the oldest entries out, and are no fault.
    """
    since = set(newer)
    first_seen: list[int] = []
    repeated: list[int] = []
    seen: set[int] = set()
    for tweet_id in actual:
        if tweet_id in seen:
            repeated.append(tweet_id)
        else:
            seen.add(tweet_id)
            first_seen.append(tweet_id)
    misordered = []
    lowest: int | None = None
    for tweet_id in first_seen:
        if lowest is not None and tweet_id > lowest:
            misordered.append(tweet_id)
        else:
            lowest = tweet_id
    wanted = expected[: DEPTH - len(since & seen)]
    return Findings(
        missing=tuple(tweet_id for tweet_id in wanted if tweet_id not in seen),
        extra=tuple(sorted(seen - set(expected) - since, reverse=True)),
        repeated=tuple(repeated),
        misordered=tuple(misordered),
    )
