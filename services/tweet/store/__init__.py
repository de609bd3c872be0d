"""The ports of the tweet store: tweets, their lists, the links between them, and the purge. The rows, author index,
counts and event of a write commit together or not at all.

A read sees every write that completed before it began. Methods raise UNAVAILABLE if the store cannot serve now; then
nothing was stored.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.platform.events.log import Record

# Seconds for which a repeat with the same idempotency key returns the first tweet.
IDEMPOTENCY_TTL_S = 24 * 3600
# The most items that a scan, a purge step or a list may ask the store for at once.
MAX_PAGE = 1_000


class Claim(NamedTuple):
    """An idempotency key of the author, with the SHA-256 of the request body it came with; valid for IDEMPOTENCY_TTL_S
    from `now_s` (Unix seconds)."""

    key: str
    body_hash: bytes
    now_s: int


class Retweeter(NamedTuple):
    """A user who retweeted a tweet. Lists are ordered and paged by `retweet_id`."""

    retweet_id: int
    user_id: int


class TweetStore(Protocol):
    """Stores tweets by id. A tweet is live until its author deletes it or a moderator removes it."""

    async def create(self, core: tweet_pb2.TweetCore, conversation_id: int, event: Record, claim: Claim | None) -> int:
        """Stores a live tweet of version 1 and returns its id. Stores nothing and returns the id of another tweet if
        the claim's key already created one with the same body, or if this is a retweet and the author's retweet of the
        same original is live. Raises ALREADY_EXISTS (IDEMPOTENCY_KEY_REUSED) if the key was used with another body,
        NOT_FOUND if a tweet that it replies to, quotes or retweets is not live, PERMISSION_DENIED (REMOVED) if a
        moderator removed the author's retweet of this original."""

    async def find_claimed(self, user_id: int, claim: Claim) -> int:
        """Returns the id of the tweet that the key created; 0 if the key is unused. Raises ALREADY_EXISTS
        (IDEMPOTENCY_KEY_REUSED) if the key was used with another body."""

    async def revise(self, core: tweet_pb2.TweetCore, revision: tweet_service_pb2.TweetRevision, event: Record) -> bool:
        """Stores a new version with the content of `core`. Returns False, and stores nothing, if the tweet is not live
        or its version is not the one before `revision.version`."""

    async def list_revisions(self, tweet_id: int) -> Sequence[tweet_service_pb2.TweetRevision]:
        """Returns all versions, oldest first, also of a hidden tweet; empty if the tweet does not exist."""

    async def delete(self, tweet_id: int, at_s: int, event: Record) -> bool:
        """Marks the tweet as deleted by its author at `at_s` (Unix seconds). Returns whether it was live before, and
        publishes `event` only then. Raises NOT_FOUND if it does not exist."""

    async def remove(self, tweet_id: int, action_id: int, at_s: int, event: Record) -> bool:
        """Hides the tweet by the moderator's action `action_id`, which replaces an earlier action. Returns whether it
        was live before, and publishes `event` only then. Changes nothing if the author deleted it. Raises NOT_FOUND if
        it does not exist."""

    async def restore(self, tweet_id: int, action_id: int, event: Record) -> bool:
        """Undoes `remove`. Returns whether the action hid the tweet, and publishes `event` only then. Raises
        FAILED_PRECONDITION if another action hides it, NOT_FOUND if it does not exist."""

    async def set_absent(self, author_id: int, absent: bool, at_us: int) -> None:
        """Excludes the replies, retweets and quotes of a suspended or deactivated author from the counts of the tweets
        they refer to (`absent`), or includes them again. `at_us` is the time of that decision in Unix microseconds: an
        earlier decision that arrives later changes nothing. Tweets and lists are unchanged. If the call fails, the
        caller must repeat it with the same arguments."""

    async def batch_get(self, ids: Sequence[int], viewer_id: int = 0) -> tweet_service_pb2.BatchGetTweetCoresResponse:
        """Returns tweets in the order of `ids`, hidden ones as `deleted` with an empty core. Unknown ids are left out.
        With a viewer, `retweeted` is true for tweets that the viewer retweeted. The caller may change the message."""

    async def batch_get_serialized(self, ids: Sequence[int], viewer_id: int = 0) -> bytes:
        """Returns the result of `batch_get` as a serialized BatchGetTweetCoresResponse."""

    async def scan(self, after_id: int, limit: int) -> list[tweet_pb2.TweetCore]:
        """Returns tweets above `after_id` in ascending order of id, hidden ones included, at most `limit` (≤ MAX_PAGE).
        Fewer than `limit` means that the end was reached."""


class TweetLists(Protocol):
    """The live tweets of one author, and of all authors, by time."""

    async def batch_list_author_ids(
        self, author_ids: Sequence[int], before_id: int, per_author: int
    ) -> tweet_service_pb2.BatchListAuthorTweetIdsResponse:
        """Returns for each author the newest `per_author` live ids below `before_id` (0: no bound), newest first.
        Authors without any are left out. The caller may change the message."""

    async def list_author(
        self, author_id: int, before_id: int, limit: int, *, replies: bool = True, retweets: bool = True
    ) -> Sequence[int]:
        """Returns the author's newest live ids below `before_id` (0: no bound), newest first, at most `limit` (≤
        MAX_PAGE). `replies` and `retweets` say whether those are included."""

    async def list_recent(self, before_id: int, limit: int) -> Sequence[int]:
        """Returns the newest live ids of all authors below `before_id` (0: no bound), newest first, at most `limit` (≤
        MAX_PAGE)."""

    async def batch_count(self, author_ids: Sequence[int]) -> Mapping[int, int]:
        """Returns the exact number of live tweets of each author. Retweets count only if their original is live.
        Authors without any are left out."""


class LinkLists(Protocol):
    """The tweets that refer to a tweet: replies, quotes and retweets; and the conversations of replies."""

    async def find_retweets(self, user_id: int, original_ids: Sequence[int]) -> Mapping[int, int]:
        """Returns the ids of the user's live retweets by original id. Originals without one are left out."""

    async def list_replies(
        self, tweet_id: int, bound_id: int, limit: int, *, oldest_first: bool = False
    ) -> Sequence[int]:
        """Returns the live direct replies to a tweet: newest first below `bound_id`, or oldest first above it (0: no
        bound). At most `limit` (≤ MAX_PAGE)."""

    async def list_quotes(self, tweet_id: int, before_id: int, limit: int) -> Sequence[int]:
        """Returns the live quotes of a tweet below `before_id` (0: no bound), newest first, at most `limit` (≤
        MAX_PAGE)."""

    async def list_retweeters(self, tweet_id: int, before_id: int, limit: int) -> Sequence[Retweeter]:
        """Returns the live retweets of an original with ids below `before_id` (0: no bound), newest first, at most
        `limit` (≤ MAX_PAGE). Each user occurs once."""

    async def batch_list_children(
        self, tweet_ids: Sequence[int], per_tweet: int, *, after_id: int = 0
    ) -> Mapping[int, Sequence[int]]:
        """Returns for each tweet its oldest `per_tweet` direct replies above `after_id`, oldest first. Hidden replies
        are included: threads show them as tombstones. Tweets without replies are left out. At most MAX_PAGE tweets
        times `per_tweet`."""

    async def list_ancestors(self, tweet_id: int, limit: int) -> Sequence[int]:
        """Returns the tweet that this one replies to, then that one's parent, and so on: nearest first, at most `limit`
        (≤ MAX_PAGE). Hidden ancestors are included. The list ends with the first one that was purged."""

    async def thread_version(self, conversation_id: int) -> int:
        """Returns the version of a conversation. It changes with each stored reply, before the writer gets its
        response. As long as it is equal, `batch_list_children` and `list_ancestors` of the conversation's tweets return
        the same ids, except for purged tweets. Versions change at a restart."""


class PurgeStore(Protocol):
    """Removes deleted tweets for good."""

    async def purge(self, before_s: int, limit: int) -> int:
        """Removes for good tweets deleted before `before_s` (Unix seconds), the longest deleted first, each after its
        retweets. Returns how many rows it removed, retweets included, at most `limit`."""


@dataclass(frozen=True, slots=True)
class TweetStores:
    """The stores of one backend. All use the same rows: a write to `tweets` changes the results of the other stores.

    `close` finishes the writes in progress; no store may be used afterwards.
    """

    tweets: TweetStore
    lists: TweetLists
    links: LinkLists
    purge: PurgeStore
    close: Callable[[], Coroutine[Any, Any, None]]
