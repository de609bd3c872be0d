"""Ids and a reader in, visible joined tweets out: the one place that applies deletion, block, mute, suspension and
parent rules.

Everything is asked of its owner at each read, in two rounds at most, so that a delete, a block or a suspension acts
on the next read. A tweet is joined by concatenating serialised fragments (concatenation is merge in Protobuf's wire
format); no message is built.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable, Sequence
from typing import Any, NamedTuple

import grpc.aio
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.identity.v1 import user_pb2
from roost.identity.v1 import user_service_pb2 as identity
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

# Each tweet names up to two people to show and two other tweets, and the owners answer for 1,000 at once.
MAX_ROUND_IDS = 300
# A little more than the page wants: mostly nothing is hidden, and then one round is enough.
_SPARE_IDS = 4


class Joined(NamedTuple):
    """A tweet that may be shown; `data` is a serialised roost.tweet.v1.Tweet."""

    id: int
    author_id: int
    data: bytes


class _People(NamedTuple):
    """Who may be seen on this page: the author fragment of each, absent where hidden; and whom the reader mutes."""

    fragments: dict[int, bytes]
    muted: Container[int]


class Hydrator:
    """Joins tweets for readers. `channel` reaches tweet, identity and graph; the calls carry the current deadline."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        # Any: the generated stubs' types know the socket's call class only.
        self._get_cores: Any = TweetServiceStub(channel).BatchGetTweetCores
        self._get_refs: Any = UserServiceStub(channel).BatchGetUserRefs
        self._get_filter: Any = GraphServiceStub(channel).GetVisibilityFilter

    async def visible(
        self,
        reader_id: int,
        ids: Sequence[int],
        *,
        hide_muted: bool = False,
        following: Container[int] | None = None,
        limit: int,
    ) -> list[Joined]:
        """The first `limit` tweets of `ids` that the reader (0: nobody signed in) may see, in the order given.

        Left out: unknown and deleted tweets, those whose author is suspended, deactivated or blocks or is blocked by the
        reader, and retweets whose original is left out. A quoted tweet that may not be seen is a tombstone. With
        `hide_muted` also what muted people wrote, whoever retweets it. With `following`, the rules of a home: only what
        the reader and these people posted, another's reply only where the reader is, or follows, the author replied to,
        and the parent stands. Raises AioRpcError when an owner cannot answer: nothing is shown unchecked.
        """
        found: list[Joined] = []
        start, size = 0, min(limit + limit // 4 + _SPARE_IDS, MAX_ROUND_IDS)
        while start < len(ids) and len(found) < limit:
            batch = ids[start : start + size]
            response = await self._get_cores(tweet.BatchGetTweetCoresRequest(ids=batch))
            cores = _standing(response.cores)
            if following is not None:
                cores = _of_home(cores, reader_id, following)
            if cores:
                people, nested = await self._ask_owners(reader_id, cores, following is not None)
                own = None if following is None else reader_id
                _join(cores, people, nested, people.muted if hide_muted else (), own, limit, found)
            start, size = start + size, min(size * 2, MAX_ROUND_IDS)
        return found

    async def author_fragments(self, reader_id: int, user_ids: Iterable[int]) -> dict[int, bytes]:
        """`Tweet.author` of each of these people (≤ 1,000) as bytes to append to a core; those hidden from the
        reader are absent."""
        people: _People = (await self._people(reader_id, set(user_ids), ()))[0]
        return people.fragments

    async def _ask_owners(
        self, reader_id: int, cores: Sequence[_Core], want_parents: bool
    ) -> tuple[_People, dict[int, _Core]]:
        user_ids: set[int] = set()
        others: set[int] = set()
        for core in cores:
            user_ids.add(core[1])
            if core[3]:
                others.add(core[3])
                user_ids.add(core[2].retweet_of_author_id)
            elif core[4]:
                others.add(core[4])
                user_ids.add(core[2].quote_of_author_id)
            if want_parents and core[5]:
                others.add(core[5])
        more = [self._get_cores(tweet.BatchGetTweetCoresRequest(ids=others))] if others else []
        people, *answers = await self._people(reader_id, user_ids, more)
        return people, {core[0]: core for answer in answers for core in _standing(answer.cores)}

    async def _people(self, reader_id: int, user_ids: set[int], more: Sequence[Any]) -> list[Any]:
        """Who of these the reader may see, and the answers of the calls `more`, which are under way."""
        calls = [self._get_refs(identity.BatchGetUserRefsRequest(ids=user_ids)), *more]
        if reader_id:
            calls.append(self._get_filter(graph.GetVisibilityFilterRequest(user_id=reader_id, candidate_ids=user_ids)))
        answers = await _all(calls)
        hidden: Container[int] = ()
        muted: Container[int] = ()
        if reader_id:
            rules = answers.pop()
            # A user's blocks may be many, the people of a page are few.
            hidden = user_ids.intersection(rules.blocked_ids).union(rules.blocked_by_ids)
            muted = user_ids.intersection(rules.muted_ids)
        fragments = {}
        for entry in answers[0].refs:
            user_id = entry.user_id
            if entry.state == _ACTIVE and user_id not in hidden:
                fragments[user_id] = author_fragment(entry.ref)
        return [_People(fragments, muted), *answers[1:]]


# Of a tweet that stands: id, author, head, original, quoted, parent (0 where there is none), and the message.
# Each field of a message is read once: reading is what costs.
_Core = tuple[int, int, tweet_pb2.TweetHead, int, int, int, tweet_pb2.TweetCore]


def _standing(cores: Iterable[tweet_pb2.TweetCore]) -> list[_Core]:
    return [
        (head.id, head.author_id, head, head.retweet_of_id, head.quote_of_id, head.reply_to_id, core)
        for core in cores
        if not (head := core.head).deleted
    ]


def _of_home(cores: Sequence[_Core], reader_id: int, following: Container[int]) -> list[_Core]:
    """The cores less what the heads alone keep out of a home: strangers, and replies to strangers."""
    return [
        core
        for core in cores
        if core[1] == reader_id or (core[1] in following and _to_known(core, reader_id, following))
    ]


def _to_known(core: _Core, reader_id: int, following: Container[int]) -> bool:
    parent_author = core[2].reply_to_author_id if core[5] else reader_id
    return parent_author == reader_id or parent_author in following


def _join(
    cores: Sequence[_Core],
    people: _People,
    nested: dict[int, _Core],
    muted: Container[int],
    parents_of_others_than: int | None,
    limit: int,
    found: list[Joined],
) -> None:
    fragments = people.fragments
    for tweet_id, author_id, head, original_id, quoted_id, parent_id, core in cores:
        author = fragments.get(author_id)
        if author is None or author_id in muted:
            continue
        if parent_id and parents_of_others_than not in (None, author_id) and parent_id not in nested:
            continue
        data: bytes = core.core + author
        if original_id:
            original = _whole(nested.get(original_id), fragments)
            if original is None or head.retweet_of_author_id in muted:
                continue
            data += framed(_RETWEETED, original)
        elif quoted_id:
            data += framed(_QUOTED, _whole(nested.get(quoted_id), fragments) or tombstone(quoted_id))
        if core.replies or core.retweets or core.quotes:
            data += _metrics(core)
        found.append(Joined(tweet_id, author_id, data))
        if len(found) == limit:
            return


def _whole(core: _Core | None, fragments: dict[int, bytes]) -> bytes | None:
    """The serialised nested tweet, or None where it may not be seen."""
    author = None if core is None else fragments.get(core[1])
    return None if core is None or author is None else core[6].core + author + _metrics(core[6])


def _metrics(core: tweet_pb2.TweetCore) -> bytes:
    fields = zip((b"\x10", b"\x18", b"\x20"), (core.retweets, core.replies, core.quotes), strict=True)
    data = b"".join(tag + varint(count) for tag, count in fields if count)
    return framed(_METRICS, data) if data else b""


def tombstone(tweet_id: int) -> bytes:
    """A serialised Tweet that holds its id and `deleted` only."""
    return b"\x08" + varint(tweet_id) + b"\x70\x01"


def author_fragment(ref: bytes) -> bytes:
    """A serialised UserRef as the bytes to append to a core."""
    return _AUTHOR_PREFIX[len(ref)] + ref if len(ref) < len(_AUTHOR_PREFIX) else framed(_AUTHOR, ref)


def framed(tag: bytes, data: bytes) -> bytes:
    """A length-delimited field: its tag as on the wire, the length, the data."""
    return tag + varint(len(data)) + data


def varint(value: int) -> bytes:
    """A non-negative number below 2^64 as on the wire."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _tag(field: str) -> bytes:
    return varint(tweet_pb2.Tweet.DESCRIPTOR.fields_by_name[field].number << 3 | 2)


_ACTIVE = user_pb2.USER_STATE_ACTIVE
_AUTHOR = _tag("author")
_RETWEETED = _tag("retweeted_tweet")
_QUOTED = _tag("quoted_tweet")
_METRICS = _tag("metrics")
# Longer than any reference: joining takes a table's entry, not a loop.
_AUTHOR_PREFIX = [_AUTHOR + varint(length) for length in range(1_024)]


async def _all(calls: Sequence[Any]) -> list[Any]:
    """The answers of calls under way; where one fails, the others are cancelled and its error is raised."""
    try:
        return [await call for call in calls]
    except BaseException:
        for call in calls:
            call.cancel()
        # Nobody else will look at how they ended.
        await asyncio.gather(*calls, return_exceptions=True)
        raise
