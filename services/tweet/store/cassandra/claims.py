"""Which of many attempts makes the tweet: rows that only lightweight transactions touch, one for each name of a user's.

A name is an idempotency key, or the original of a retweet. Its row holds all that is needed to store the tweet, so that whoever finds
a claim without its tweet stores that one, with its id, and nothing depends on the process that made the claim.
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
from services.tweet.store.cassandra.rows import Post

# Rounds of asking anew what came of a transaction: each loses to another writer, or to a time-out.
MAX_TRIES = 5
# Kept longer than it holds, so that clocks that differ never end it early; the row says itself when it ends.
CLAIM_TTL_S = IDEMPOTENCY_TTL_S + 3_600
# Cassandra's word for "for good".
NO_TTL = 0


class Held(NamedTuple):
    """A claim: the post that it is for; of an idempotency key also the hash of its body, and when it ends (unix seconds)."""

    post: Post
    body_hash: bytes = b""
    expires_at_s: int = 0


def name_of_key(key: str) -> str:
    """The name of an idempotency key."""
    return f"key {key}"


def name_of_retweet(original_id: int) -> str:
    """The name of the one retweet of an original."""
    return f"retweet {original_id}"


def by_key(post: Post, claim: Claim) -> Held:
    """The claim to a key."""
    return Held(post, claim.body_hash, claim.now_s + IDEMPOTENCY_TTL_S)


def holds(held: Held | None, claim: Claim) -> bool:
    """Whether the key is taken at the claim's time. ALREADY_EXISTS (IDEMPOTENCY_KEY_REUSED) where it is, for another body."""
    if held is None or held.expires_at_s <= claim.now_s:
        return False
    if held.body_hash != claim.body_hash:
        raise errors.already_exists("the idempotency key was used for another body", Reason.IDEMPOTENCY_KEY_REUSED)
    return True


def is_unknown(error: errors.RoostError) -> bool:
    """Whether what refused a transaction leaves open what came of it."""
    return error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Claims:
    """The claims of all users."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace

    async def find(self, user_id: int, name: str) -> Held | None:
        """Who holds it, as far as is settled."""
        return _held(await self._keyspace.read(cql.CLAIM, user_id, name))

    async def take(self, name: str, wanted: Held, instead_of: int = 0) -> Held:
        """Takes a name for `wanted`, which is free or held by the tweet `instead_of`; who holds it from now on, which may be another.
        UNAVAILABLE where that cannot be told: then it may be taken, and whoever asks next completes it."""
        user_id = wanted.post.core.head.author_id
        for _ in range(MAX_TRIES):
            try:
                if await self._try(user_id, name, wanted, instead_of):
                    return wanted
            except errors.RoostError as error:
                if not is_unknown(error):
                    raise
            held = _held(await self._keyspace.read_serial(cql.CLAIM, user_id, name))
            if held is not None and held.post.id != instead_of:
                return held
            instead_of = held.post.id if held is not None else 0
        raise errors.unavailable("others claim the same all the time", reason=Reason.CONTENDED)

    async def free(self, user_id: int, name: str, tweet_id: int) -> None:
        """Gives up a name if that tweet holds it. UNAVAILABLE where it is unknown whether it did."""
        await self._keyspace.execute_lwt(cql.FREE, user_id, name, tweet_id)

    async def _try(self, user_id: int, name: str, wanted: Held, instead_of: int) -> bool:
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


def _held(rows: list[Row]) -> Held | None:
    if not rows:
        return None
    _, body_hash, expires_at_s, conversation_id, core, event = rows[0]
    return Held(Post(tweet_pb2.TweetCore.FromString(core), conversation_id, Record(*event)), body_hash, expires_at_s)
