"""The port of the tweet store. Rows, author index, counts and event of a write commit together, or nothing does.

What a write changed is what the next read answers. UNAVAILABLE where the store refuses for now: nothing was stored
then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.platform.events.log import Record

# The longest that a key makes repeats safe.
IDEMPOTENCY_TTL_S = 24 * 3600
# What one scan message, one purge step and one list may ask of the store at once.
MAX_PAGE = 1_000


class Claim(NamedTuple):
    """An idempotency key of the author, with the hash of the body it came with; valid from `now_s` (unix seconds) for
    IDEMPOTENCY_TTL_S."""

    key: str
    body_hash: bytes
    now_s: int


class Retweeter(NamedTuple):
    """Who retweeted a tweet; lists of them are ordered and paged by the retweet's id."""

    retweet_id: int
    user_id: int


class TweetStore(Protocol):
    """Tweets by id, by author and by time. A tweet stands until it is deleted by its author or removed by a
    moderator."""

    async def create(self, core: tweet_pb2.TweetCore, conversation_id: int, event: Record, claim: Claim | None) -> int:
        """Stores a standing tweet of version 1 and returns its id; or stores nothing and returns the id of another:
        of the tweet that the claim's key made within its time with the same body, or of the retweet that stands where
        this is one of the same author and original. ALREADY_EXISTS (IDEMPOTENCY_KEY_REUSED) if the key was used for
        another body, NOT_FOUND if a tweet that it replies to, quotes or retweets does not stand, PERMISSION_DENIED
        (REMOVED) if a moderator removed the author's retweet of this original."""

    async def find_claimed(self, user_id: int, claim: Claim) -> int:
        """The id of the tweet that the key made; 0 if it is free. ALREADY_EXISTS as with `create`."""

    async def revise(self, core: tweet_pb2.TweetCore, revision: tweet_service_pb2.TweetRevision, event: Record) -> bool:
        """Stores a new version: `core` is what stands from now on. False, and nothing stored, if the tweet does not
        stand, or not at the version before this one."""

    async def list_revisions(self, tweet_id: int) -> Sequence[tweet_service_pb2.TweetRevision]:
        """All versions, oldest first, also of a hidden tweet; none if there is no such tweet."""

    async def delete(self, tweet_id: int, at_s: int, event: Record) -> bool:
        """Marks the tweet as deleted by its author at `at_s` (unix seconds). The event is published only if it
        stood until then, which is what is returned. NOT_FOUND if there is none."""

    async def remove(self, tweet_id: int, action_id: int, at_s: int, event: Record) -> bool:
        """Hides the tweet by a moderator's action; the latest one counts. Returned and published as with `delete`;
        changes nothing where its author deleted it. NOT_FOUND if there is none."""

    async def restore(self, tweet_id: int, action_id: int, event: Record) -> bool:
        """Undoes `remove`; True, and published, if it hid the tweet until then. FAILED_PRECONDITION if another
        action hides it, NOT_FOUND if there is none."""

    async def find_retweets(self, user_id: int, original_ids: Sequence[int]) -> Mapping[int, int]:
        """The ids of the user's standing retweets by original; originals without one are left out."""

    async def set_absent(self, author_id: int, absent: bool, at_us: int) -> None:
        """Leaves the author's replies, retweets and quotes out of the counts of what they answer, retweet or quote, or counts
        them again, as decided at `at_us` (Unix microseconds): an earlier decision that comes later changes nothing.
        Tweets and lists stay. To be called again with the same decision if it fails."""

    async def purge(self, before_s: int, limit: int) -> int:
        """Removes for good at most `limit` tweets that were deleted before `before_s` (unix seconds), the longest
        deleted first, each behind the retweets of it, which count too; how many."""

    async def batch_get(self, ids: Sequence[int], viewer_id: int = 0) -> tweet_service_pb2.BatchGetTweetCoresResponse:
        """Tweets in the order asked for, also hidden ones (`deleted`, empty core); unknown ids are left out. With a
        viewer, `retweeted` is true where they retweeted it. A message of the caller's own."""

    async def batch_get_serialized(self, ids: Sequence[int], viewer_id: int = 0) -> bytes:
        """The same, as a serialised BatchGetTweetCoresResponse."""

    async def batch_list_author_ids(
        self, author_ids: Sequence[int], before_id: int, per_author: int
    ) -> tweet_service_pb2.BatchListAuthorTweetIdsResponse:
        """Per author the newest `per_author` standing ids below `before_id` (0: no bound), newest first; authors
        without any are left out. A message of the caller's own."""

    async def list_author(
        self, author_id: int, before_id: int, limit: int, *, replies: bool = True, retweets: bool = True
    ) -> Sequence[int]:
        """The newest standing ids of an author below `before_id` (0: no bound), newest first, at most `limit` (≤
        MAX_PAGE); without replies or retweets where they are not wanted."""

    async def list_recent(self, before_id: int, limit: int) -> Sequence[int]:
        """The newest standing ids of everybody below `before_id` (0: no bound), newest first, at most `limit` (≤
        MAX_PAGE)."""

    async def list_replies(
        self, tweet_id: int, bound_id: int, limit: int, *, oldest_first: bool = False
    ) -> Sequence[int]:
        """The standing direct replies to a tweet, newest first below `bound_id`, or oldest first above it (0: no
        bound); at most `limit` (≤ MAX_PAGE)."""

    async def list_quotes(self, tweet_id: int, before_id: int, limit: int) -> Sequence[int]:
        """The standing quotes of a tweet below `before_id` (0: no bound), newest first, at most `limit` (≤ MAX_PAGE)."""

    async def list_retweeters(self, tweet_id: int, before_id: int, limit: int) -> Sequence[Retweeter]:
        """The standing retweets of an original with ids below `before_id` (0: no bound), newest first, at most `limit`
        (≤ MAX_PAGE). Each user is there once."""

    async def batch_list_children(
        self, tweet_ids: Sequence[int], per_tweet: int, *, after_id: int = 0
    ) -> Mapping[int, Sequence[int]]:
        """For threads: the oldest `per_tweet` direct replies above `after_id` of each of the tweets, oldest first, also
        hidden ones, which leave tombstones. At most MAX_PAGE tweets times `per_tweet`; those without any are left out."""

    async def list_ancestors(self, tweet_id: int, limit: int) -> Sequence[int]:
        """For threads: the tweet it answers, the one that answers, and so on, at most `limit` (≤ MAX_PAGE); also hidden
        ones. Ends behind one that was purged."""

    async def thread_version(self, conversation_id: int) -> int:
        """Another one after each reply to the conversation that was stored, before its writer gets an answer. Where it
        is equal, so are `batch_list_children` and `list_ancestors` of the tweets in it, but for those that were purged
        meanwhile. Not kept over restarts."""

    async def batch_count(self, author_ids: Sequence[int]) -> Mapping[int, int]:
        """How many tweets of each author stand, not counting retweets whose original does not; authors without any
        are left out. Exact."""

    async def scan(self, after_id: int, limit: int) -> list[tweet_pb2.TweetCore]:
        """Tweets above `after_id` by ascending id, also hidden ones, at most `limit` (≤ MAX_PAGE); fewer only at
        the end."""

    async def close(self) -> None:
        """Finishes what was begun and gives the store free."""
