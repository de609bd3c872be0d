"""Claims decide which of several concurrent requests creates a tweet: one row per user and name, written by lightweight
transactions only.

A name is derived from an idempotency key or from the original of a retweet. The row contains the whole tweet, so that any
process that finds a claim without its tweet can store that tweet under the claimed id, even if the process that made
the claim died.
"""

from __future__ import annotations

from typing import NamedTuple

import grpc
from roost.tweet.v1 import tweet_pb2

from services.platform.cassandra.keyspace import Keyspace, Row
from services.platform.events.log import Record
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.tweet.store import IDEMPOTENCY_TTL_S, Claim
from services.tweet.store.cassandra import schema as cql
from services.tweet.store.cassandra.rows import NewTweet

# Attempts of one transaction. An attempt fails if it conflicts with another writer or times out.
MAX_TRIES = 5
# The row outlives the claim by an hour, so that clock differences never end a claim early. The row contains the time at which the
# claim ends.
CLAIM_TTL_S = IDEMPOTENCY_TTL_S + 3_600
# Cassandra's TTL for "never expires".
NO_TTL = 0


class ClaimRow(NamedTuple):
    """A claim and the tweet that it is for. The claim of an idempotency key has the hash of the request body and the
    time of its end (Unix seconds)."""

    post: NewTweet
    body_hash: bytes = b""
    expires_at_s: int = 0


def key_claim_name(key: str) -> str:
    """Returns the claim name of an idempotency key."""
    return f"key {key}"


def retweet_claim_name(original_id: int) -> str:
    """Returns the claim name of a user's only retweet of an original."""
    return f"retweet {original_id}"


def claim_row(post: NewTweet, claim: Claim) -> ClaimRow:
    """Returns the row that reserves the idempotency key of `claim` for `post`, so that a repeat of the request finds
    the first tweet. It expires after IDEMPOTENCY_TTL_S seconds."""
    return ClaimRow(post, claim.body_hash, claim.now_s + IDEMPOTENCY_TTL_S)


def is_claimed(held: ClaimRow | None, claim: Claim) -> bool:
    """Returns whether the row holds the key of `claim` at the time `claim.now_s`. Raises ALREADY_EXISTS
    (IDEMPOTENCY_KEY_REUSED) if it holds the key for another request body."""
    if held is None or held.expires_at_s <= claim.now_s:
        return False
    if held.body_hash != claim.body_hash:
        raise errors.already_exists(
            "this idempotency key was used with another request body: use a new key", Reason.IDEMPOTENCY_KEY_REUSED
        )
    return True


def is_unknown(error: errors.RoostError) -> bool:
    """Returns whether the result of a transaction that failed with this error is unknown: it may have been applied."""
    return error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Claims:
    """Reads, acquires and releases the claims of all users."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace

    async def find(self, user_id: int, name: str) -> ClaimRow | None:
        """Returns the holder of the name; None if it is free. Not linearizable: a transaction in progress may be
        missed."""
        return _claim_row(await self._keyspace.read(cql.CLAIM, user_id, name))

    async def acquire(self, name: str, wanted: ClaimRow, instead_of: int = 0) -> ClaimRow:
        """Acquires a name for `wanted` if it is free or held by the tweet `instead_of`. Returns the row that holds the
        name afterwards, which may be another one. Raises UNAVAILABLE if the outcome is unknown after MAX_TRIES: the
        claim may exist then, and the next caller completes it."""
        user_id = wanted.post.core.head.author_id
        for _ in range(MAX_TRIES):
            try:
                if await self._try(user_id, name, wanted, instead_of):
                    return wanted
            except errors.RoostError as error:
                if not is_unknown(error):
                    raise
            held = _claim_row(await self._keyspace.read_serial(cql.CLAIM, user_id, name))
            if held is not None and held.post.id != instead_of:
                return held
            instead_of = held.post.id if held is not None else 0
        raise errors.unavailable("too many concurrent requests create this tweet: try again", reason=Reason.CONTENDED)

    async def release(self, user_id: int, name: str, tweet_id: int) -> None:
        """Releases the name if the tweet `tweet_id` holds it. Raises UNAVAILABLE if it is unknown whether it was
        released."""
        await self._keyspace.execute_lwt(cql.FREE, user_id, name, tweet_id)

    async def _try(self, user_id: int, name: str, wanted: ClaimRow, instead_of: int) -> bool:
        post = wanted.post
        columns = (
            *(post.id, wanted.body_hash, wanted.expires_at_s, post.conversation_id),
            *(post.core.SerializeToString(), tuple(post.event)),
        )
        ttl_s = CLAIM_TTL_S if wanted.expires_at_s else NO_TTL
        if instead_of:
            applied, _ = await self._keyspace.execute_lwt(cql.TAKE_OVER, ttl_s, *columns, user_id, name, instead_of)
        else:
            applied, _ = await self._keyspace.execute_lwt(cql.TAKE, user_id, name, *columns, ttl_s)
        return applied


def _claim_row(rows: list[Row]) -> ClaimRow | None:
    if not rows:
        return None
    _, body_hash, expires_at_s, conversation_id, core, event = rows[0]
    return ClaimRow(
        NewTweet(tweet_pb2.TweetCore.FromString(core), conversation_id, Record(*event)), body_hash, expires_at_s
    )
