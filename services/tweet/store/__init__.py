"""The ports of the tweet store: tweets, their lists, the links between them, and the purge. A write commits its rows,
list entries, counts and event together or not at all.

A read returns the effect of every write that completed before it began. A tweet is hidden if its author deleted it or a
moderator removed it, otherwise it is live. Methods raise UNAVAILABLE if the store cannot answer now, DEADLINE_EXCEEDED
if the deadline of the call passes, and RESOURCE_EXHAUSTED if too many calls wait for the store. After such an error a
write may be stored on Cassandra, but not on SQLite.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.platform.events.log import Record

# Seconds after which an idempotency key expires. Until then a repeat with the key returns the tweet of the first call.
IDEMPOTENCY_TTL_S = 24 * 3600
# Maximum `limit` that callers may pass to a list, a scan or a purge.
MAX_PAGE = 1_000


class Claim(NamedTuple):
    """A request to create a tweet under an idempotency key of its author. `body_hash` is the SHA-256 of the request
    body without the key. `now_s` is the time of the request in Unix seconds; the key expires IDEMPOTENCY_TTL_S
    later."""

    key: str
    body_hash: bytes
    now_s: int


class Retweeter(NamedTuple):
    """A user who retweeted a tweet, and the id of the retweet, by which lists of retweeters are ordered."""

    retweet_id: int
    user_id: int


class TweetStore(Protocol):
    """Stores tweets by id."""

    async def create(self, core: tweet_pb2.TweetCore, conversation_id: int, event: Record, claim: Claim | None) -> int:
        """Stores a new tweet and returns its id. `claim` is None if the request has no idempotency key.

        Stores nothing, and returns the id of the tweet that exists, if a request with the same key already created a
        tweet with the same body, or if the tweet is a retweet and its author's retweet of the same original is live.

        Raises ALREADY_EXISTS (IDEMPOTENCY_KEY_REUSED) if the key was used with another body; NOT_FOUND if the parent,
        the quoted tweet or the original is hidden or does not exist; PERMISSION_DENIED (REMOVED) if a moderator removed
        the author's retweet of this original.
        """

    async def find_claimed(self, user_id: int, claim: Claim) -> int:
        """Returns the id of the tweet that the claim's key created; 0 if the key is unused or expired. Raises
        ALREADY_EXISTS (IDEMPOTENCY_KEY_REUSED) if the key was used with another body."""

    async def revise(self, core: tweet_pb2.TweetCore, revision: tweet_service_pb2.TweetRevision, event: Record) -> bool:
        """Stores an edit: `core` is the new content, `revision` the new revision. Returns False, and stores nothing, if
        the tweet is not live or the number of its latest revision is not `revision.version` - 1."""

    async def list_revisions(self, tweet_id: int) -> Sequence[tweet_service_pb2.TweetRevision]:
        """Returns all revisions of a tweet, live or hidden, oldest first. Returns an empty list if the tweet does not
        exist."""

    async def delete(self, tweet_id: int, at_s: int, event: Record) -> bool:
        """Marks the tweet as deleted by its author at `at_s` (Unix seconds). Stores `event` and returns True only if
        the tweet was live. Raises NOT_FOUND if the tweet does not exist."""

    async def remove(self, tweet_id: int, action_id: int, at_s: int, event: Record) -> bool:
        """Marks the tweet as removed by the moderation action `action_id`, even if another action removed it before.
        Changes nothing if the author deleted the tweet. Stores `event` and returns True only if the tweet was live.
        `at_s` is in Unix seconds. Raises NOT_FOUND if the tweet does not exist."""

    async def restore(self, tweet_id: int, action_id: int, event: Record) -> bool:
        """Makes a removed tweet live again. Stores `event` and returns True only if the tweet was removed by the action
        `action_id`. Raises FAILED_PRECONDITION if another action removed the tweet, NOT_FOUND if the tweet does not
        exist."""

    async def set_absent(self, author_id: int, absent: bool, at_us: int) -> None:
        """If `absent`, excludes the author's replies, retweets and quotes from the counts of the tweets to which they
        refer; otherwise includes these replies, retweets and quotes again. Tweets and lists do not change.

        `at_us` is the time in Unix microseconds at which the author became absent or active. A call changes nothing if
        a call with a later `at_us` was made before. If the call fails, the caller must repeat the call with the same
        arguments.
        """

    async def batch_get(self, ids: Sequence[int], viewer_id: int = 0) -> tweet_service_pb2.BatchGetTweetCoresResponse:
        """Returns the tweets in the order of `ids`. Leaves out unknown ids. Hidden tweets have `deleted` set and an
        empty core. `retweeted` is true if the user `viewer_id` (0: none) retweeted the tweet. The caller may change the
        message."""

    async def batch_get_serialized(self, ids: Sequence[int], viewer_id: int = 0) -> bytes:
        """Returns the result of `batch_get` as a serialized BatchGetTweetCoresResponse."""

    async def scan(self, after_id: int, limit: int) -> list[tweet_pb2.TweetCore]:
        """Returns live and hidden tweets with ids above `after_id`, in ascending order, at most `limit` (≤ MAX_PAGE).
        If the result has fewer than `limit`, no more exist."""


class TweetLists(Protocol):
    """Lists the live tweets of one author, and of all authors, by time."""

    async def batch_list_author_ids(
        self, author_ids: Sequence[int], before_id: int, per_author: int
    ) -> tweet_service_pb2.BatchListAuthorTweetIdsResponse:
        """Returns for each author the newest `per_author` ids of live tweets below `before_id` (0: no bound), newest
        first. Leaves out authors without any. The caller may change the message."""

    async def list_author(
        self, author_id: int, before_id: int, limit: int, *, replies: bool = True, retweets: bool = True
    ) -> Sequence[int]:
        """Returns the newest ids of the author's live tweets below `before_id` (0: no bound), newest first, at most
        `limit` (≤ MAX_PAGE). Leaves out replies if `replies` is false, and retweets if `retweets` is false."""

    async def list_removed(self, author_id: int, before_id: int, limit: int) -> Sequence[int]:
        """Returns the newest ids of the author's tweets that a moderator removed, below `before_id` (0: no bound), newest
        first, at most `limit` (≤ MAX_PAGE)."""

    async def list_recent(self, before_id: int, limit: int) -> Sequence[int]:
        """Returns the newest ids of live tweets of all authors below `before_id` (0: no bound), newest first, at most
        `limit` (≤ MAX_PAGE)."""

    async def batch_count(self, author_ids: Sequence[int]) -> Mapping[int, int]:
        """Returns the number of each author's live tweets, without retweets of hidden originals. Leaves out authors
        without any."""


class LinkLists(Protocol):
    """Lists the replies, quotes and retweets of a tweet, and reads the tree of replies of a conversation."""

    async def find_retweets(self, user_id: int, original_ids: Sequence[int]) -> Mapping[int, int]:
        """Returns the ids of the user's live retweets of these originals, by original id. Leaves out originals without
        one."""

    async def list_replies(
        self, tweet_id: int, bound_id: int, limit: int, *, oldest_first: bool = False
    ) -> Sequence[int]:
        """Returns ids of the live direct replies to a tweet, at most `limit` (≤ MAX_PAGE): below `bound_id`, newest
        first, or if `oldest_first`, above `bound_id`, oldest first. A `bound_id` of 0 is no bound."""

    async def list_quotes(self, tweet_id: int, before_id: int, limit: int) -> Sequence[int]:
        """Returns ids of the live quotes of a tweet below `before_id` (0: no bound), newest first, at most `limit` (≤
        MAX_PAGE)."""

    async def list_retweeters(self, tweet_id: int, before_id: int, limit: int) -> Sequence[Retweeter]:
        """Returns the live retweets of an original with retweet ids below `before_id` (0: no bound), newest first, at
        most `limit` (≤ MAX_PAGE). No user occurs twice."""

    async def batch_list_children(
        self, tweet_ids: Sequence[int], per_tweet: int, *, after_id: int = 0
    ) -> Mapping[int, Sequence[int]]:
        """Returns for each tweet the ids of its oldest `per_tweet` direct replies above `after_id`, oldest first.
        Includes hidden replies, because threads show them as tombstones. Leaves out tweets without replies."""

    async def list_ancestors(self, tweet_id: int, limit: int) -> Sequence[int]:
        """Returns the ids of a tweet's ancestors (its parent, the parent of the parent, …), nearest first, at most
        `limit` (≤ MAX_PAGE). Includes hidden ancestors. A purged ancestor is the last one, because its parent is
        unknown."""

    async def thread_version(self, conversation_id: int) -> int:
        """Returns the version of a conversation. Each new reply changes the version before the author gets the
        response. While the version is the same, `batch_list_children` and `list_ancestors` return the same ids for
        tweets of the conversation, except for purged tweets. A restart changes all versions."""


class PurgeStore(Protocol):
    """Removes deleted tweets for good."""

    async def purge(self, before_s: int, limit: int) -> int:
        """Removes for good the tweets that were deleted before `before_s` (Unix seconds), and their retweets, at most
        `limit` tweets and retweets together. The tweets that were deleted first are removed first, each after its
        retweets. Returns the number of removed tweets and retweets."""


@dataclass(frozen=True, slots=True)
class TweetStores:
    """The four stores of one backend. They share their rows: a write to `tweets` changes what the other stores return.

    `close` waits for the writes in progress. No store may be used afterwards.
    """

    tweets: TweetStore
    lists: TweetLists
    links: LinkLists
    purge: PurgeStore
    close: Callable[[], Coroutine[Any, Any, None]]
