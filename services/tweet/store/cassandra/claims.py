"""Claims decide which of several concurrent requests creates a tweet. A claim is a row by user and name, written by
lightweight transactions (LWT) only.

The name is derived from an idempotency key, or from the original of a retweet. The row contains the whole tweet: if a
process acquired a claim and died before it stored the tweet, any other process can store it.
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

# Maximum number of attempts of one LWT. An attempt fails if another writer changed the row, or on a timeout. After the
# last one the call is rejected with UNAVAILABLE.
MAX_TRIES = 5
# TTL in seconds of a row for an idempotency key. The claim itself ends at `expires_at_s`, an hour earlier, so that
# differing clocks of Cassandra servers never end it too early.
CLAIM_TTL_S = IDEMPOTENCY_TTL_S + 3_600
# The TTL of a row that never expires, in Cassandra.
NO_TTL = 0


class ClaimRow(NamedTuple):
    """A row of `claims`. `post` is the tweet that holds the claim. `body_hash` (of the request body) and `expires_at_s`
    (Unix seconds) are set only if the claim is for an idempotency key."""

    post: NewTweet
    body_hash: bytes = b""
    expires_at_s: int = 0


def key_claim_name(key: str) -> str:
    """Returns the name of the claim for an idempotency key."""
    return f"key {key}"


def retweet_claim_name(original_id: int) -> str:
    """Returns the name of the claim for a user's retweet of an original. This claim lets a user have only one retweet
    of the original."""
    return f"retweet {original_id}"


def claim_row(post: NewTweet, claim: Claim) -> ClaimRow:
    """Returns the row with which `post` holds the idempotency key of `claim`, until IDEMPOTENCY_TTL_S after the
    request."""
    return ClaimRow(post, claim.body_hash, claim.now_s + IDEMPOTENCY_TTL_S)


def is_claimed(held: ClaimRow | None, claim: Claim) -> bool:
    """Returns whether the row `held` (None: there is no row) has not expired at `claim.now_s`, so that the key is used.
    Raises ALREADY_EXISTS (IDEMPOTENCY_KEY_REUSED) if it was used with another request body."""
    if held is None or held.expires_at_s <= claim.now_s:
        return False
    if held.body_hash != claim.body_hash:
        raise errors.already_exists(
            "this idempotency key was used with another request body: use a new key", Reason.IDEMPOTENCY_KEY_REUSED
        )
    return True


def is_unknown(error: errors.RoostError) -> bool:
    """Returns whether a transaction that failed with this error may have been applied all the same."""
    return error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Claims:
    """Reads, acquires and releases the claims of all users. Methods raise the errors of Keyspace."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace

    async def find(self, user_id: int, name: str) -> ClaimRow | None:
        """Returns the claim with this name, None if there is none. Not linearizable: may miss a transaction in
        progress."""
        return _claim_row(await self._keyspace.read(cql.CLAIM, user_id, name))

    async def acquire(self, name: str, wanted: ClaimRow, instead_of: int = 0) -> ClaimRow:
        """Acquires the claim for `wanted` if nobody holds it, or if the tweet `instead_of` (0: none) holds it. Returns
        the row of the claim after the attempt: `wanted`, or the row of another tweet if that tweet holds the claim.

        Raises UNAVAILABLE if it is still unknown after MAX_TRIES attempts who holds the claim. `wanted` may hold the
        claim then, and the next request with this name stores the tweet of `wanted`.
        """
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
        raise errors.unavailable("too many concurrent requests create this tweet: retry later", reason=Reason.CONTENDED)

    async def release(self, user_id: int, name: str, tweet_id: int) -> None:
        """Releases the claim if the tweet `tweet_id` holds it. Raises UNAVAILABLE or DEADLINE_EXCEEDED if it is unknown
        whether the claim was released."""
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
