"""Computes from all users, edges and tweets which ids every home timeline must hold, and compares them with the ids
that were read.

It implements the rules of the API documentation only and shares no code with the timeline service, so that one defect
cannot be in both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from roost.tweet.v1 import tweet_pb2

# Maximum number of entries of a home timeline.
DEPTH = 800


@dataclass(slots=True)
class ServiceData:
    """The data of the owning services: users, edges and tweet heads."""

    usernames: dict[int, str] = field(default_factory=dict)
    active: set[int] = field(default_factory=set)
    following: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    # Pairs of users with a block between them, in both directions.
    blocked_pairs: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    blocking: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    muting: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    heads: dict[int, tweet_pb2.TweetHead] = field(default_factory=dict)
    by_author: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    # Id of the newest scanned tweet; a newer one in a home timeline was posted after the scan.
    newest: int = 0

    def add_user(self, user_id: int, username: str, *, active: bool) -> None:
        """Adds a user; `active` is False for suspended and deactivated ones."""
        self.usernames[user_id] = username
        if active:
            self.active.add(user_id)

    def add_follow(self, follower: int, followee: int) -> None:
        """Adds a follow."""
        self.following[follower].add(followee)

    def add_block(self, blocker: int, blocked: int) -> None:
        """Adds a block, which hides both users from each other."""
        self.blocking[blocker].add(blocked)
        self.blocked_pairs[blocker].add(blocked)
        self.blocked_pairs[blocked].add(blocker)

    def add_mute(self, muter: int, muted: int) -> None:
        """Adds a mute."""
        self.muting[muter].add(muted)

    def add_tweet(self, head: tweet_pb2.TweetHead) -> None:
        """Adds a tweet, reply, quote or retweet, or a deleted one."""
        self.heads[head.id] = head
        self.by_author[head.author_id].append(head.id)
        self.newest = max(self.newest, head.id)


def expected_home(truth: ServiceData, reader: int) -> list[int]:
    """Returns the ids in the reader's home timeline, newest first, at most DEPTH."""
    authors = truth.following[reader] | {reader}
    ids = (tweet_id for author in authors for tweet_id in truth.by_author.get(author, ()))
    return sorted((tweet_id for tweet_id in ids if _appears(truth, reader, truth.heads[tweet_id])), reverse=True)[
        :DEPTH
    ]


def _appears(truth: ServiceData, reader: int, head: tweet_pb2.TweetHead) -> bool:
    """Returns whether a tweet of the reader or a followee appears in the reader's home timeline."""
    if not _is_visible(truth, reader, head.id) or head.author_id in truth.muting[reader]:
        return False
    if head.retweet_of_id:
        original = truth.heads.get(head.retweet_of_id)
        # The tweet of a muted author is hidden even if the reader or a followee retweets it.
        return (
            original is not None
            and _is_visible(truth, reader, original.id)
            and original.author_id not in truth.muting[reader]
        )
    if head.reply_to_id and head.author_id != reader:
        follows_both = head.reply_to_author_id == reader or head.reply_to_author_id in truth.following[reader]
        return follows_both and _is_visible(truth, reader, head.reply_to_id)
    return True


def _is_visible(truth: ServiceData, reader: int, tweet_id: int) -> bool:
    """Returns whether the tweet is live and its author is active and has no block with the reader."""
    head = truth.heads.get(tweet_id)
    return (
        head is not None
        and not head.deleted
        and head.author_id in truth.active
        and head.author_id not in truth.blocked_pairs[reader]
    )


@dataclass(frozen=True, slots=True)
class Differences:
    """Differences between a home timeline and the computed one: tweet ids by kind of fault. `unread` says why the
    timeline could not be read."""

    missing: tuple[int, ...] = ()
    extra: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()
    misordered: tuple[int, ...] = ()
    unread: str = ""

    @property
    def exact(self) -> bool:
        """Returns whether there is no fault."""
        return self.count == 0

    @property
    def count(self) -> int:
        """Returns the number of faults."""
        return len(self.missing) + len(self.extra) + len(self.repeated) + len(self.misordered) + bool(self.unread)

    def by_kind(self) -> Iterable[tuple[str, tuple[int, ...]]]:
        """Returns the kinds of fault that occurred, with their tweet ids."""
        kinds = (
            ("missing", self.missing),
            ("extra", self.extra),
            ("repeated", self.repeated),
            ("misordered", self.misordered),
        )
        return [(kind, ids) for kind, ids in kinds if ids]


def compare(expected: Sequence[int], actual: Sequence[int], newer: Iterable[int] = ()) -> Differences:
    """Compares a home timeline, as read page by page, with the computed one.

    `newer` are ids posted since the scan: each displaces one of the oldest entries and is no fault.
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
    return Differences(
        missing=tuple(tweet_id for tweet_id in wanted if tweet_id not in seen),
        extra=tuple(sorted(seen - set(expected) - since, reverse=True)),
        repeated=tuple(repeated),
        misordered=tuple(misordered),
    )
