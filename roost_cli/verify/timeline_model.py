"""Computes from all users, edges and tweets which tweet ids a home timeline must contain, and compares them with the
ids that were read.

The module follows the rules in the API documentation and shares no code with the timeline service, so that a defect of
the service is not in this module too.
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
    """The users, edges and tweets of a mesh, without the texts of tweets. Users and tweets are named by id."""

    usernames: dict[int, str] = field(default_factory=dict)
    active: set[int] = field(default_factory=set)
    following: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    # For each user, the users who block the user or whom the user blocks.
    blocked_pairs: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    blocking: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    muting: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    heads: dict[int, tweet_pb2.TweetHead] = field(default_factory=dict)
    by_author: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    # The greatest tweet id. A greater id in a home timeline is that of a tweet that was posted after the scan.
    newest: int = 0

    def add_user(self, user_id: int, username: str, *, active: bool) -> None:
        """Adds a user. `active` is false for suspended and deactivated users."""
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
        """Adds a tweet, reply, quote or retweet, also a deleted one."""
        self.heads[head.id] = head
        self.by_author[head.author_id].append(head.id)
        self.newest = max(self.newest, head.id)


def expected_home(truth: ServiceData, reader: int) -> list[int]:
    """Returns the tweet ids that the reader's home timeline must contain, newest first, at most DEPTH."""
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
        # A tweet of a muted author does not appear, even if the reader or a followee retweets it.
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
    """Returns whether the tweet exists and is not deleted, its author is active, and there is no block between the
    author and the reader."""
    head = truth.heads.get(tweet_id)
    return (
        head is not None
        and not head.deleted
        and head.author_id in truth.active
        and head.author_id not in truth.blocked_pairs[reader]
    )


@dataclass(frozen=True, slots=True)
class Differences:
    """The differences between a home timeline that was read and the computed one.

    `missing` are the ids that were not read, `extra` those that must not be there, `repeated` those that were read more
    than once, `misordered` those that came after a smaller id. `unread` says why the home timeline could not be read
    completely, "" if it could.
    """

    missing: tuple[int, ...] = ()
    extra: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()
    misordered: tuple[int, ...] = ()
    unread: str = ""

    @property
    def exact(self) -> bool:
        """Returns whether there are no differences."""
        return self.count == 0

    @property
    def count(self) -> int:
        """Returns the number of differences."""
        return len(self.missing) + len(self.extra) + len(self.repeated) + len(self.misordered) + bool(self.unread)

    def by_kind(self) -> Iterable[tuple[str, tuple[int, ...]]]:
        """Returns the kinds of difference that occurred, each with its tweet ids."""
        kinds = (
            ("missing", self.missing),
            ("extra", self.extra),
            ("repeated", self.repeated),
            ("misordered", self.misordered),
        )
        return [(kind, ids) for kind, ids in kinds if ids]


def compare(expected: Sequence[int], actual: Sequence[int], newer: Iterable[int] = ()) -> Differences:
    """Compares the tweet ids of a home timeline, in the order in which they were read, with the computed ids.

    `newer` are the ids of tweets that were posted after the scan. These ids are not differences, and each of them in
    `actual` takes the place of one of the oldest expected ids.
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
