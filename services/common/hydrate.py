"""Ids and a reader in, visible joined tweets out: the one place that applies deletion, block, mute, suspension and
parent rules.

Everything is asked of its owner at each read, in two rounds at most, so that a delete, a block or a suspension acts
on the next read. A tweet is joined by concatenating serialised fragments (concatenation is merge in Protobuf's wire
format); no message is built.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any, NamedTuple

import grpc.aio
from roost.engagement.v1 import engagement_service_pb2 as engagement
from roost.engagement.v1.engagement_service_pb2_grpc import EngagementServiceStub
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.identity.v1 import user_service_pb2 as identity
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.common.answers import counts_of, gathered, nothing, seen_by_reader, states_of
from services.common.fragments import (
    NO_METRICS,
    QUOTED,
    RETWEETED,
    VIEWER,
    framed,
    metrics_fragment,
    tombstone,
)

# Each tweet names up to two people to show and two other tweets, and the owners answer for 1,000 at once.
MAX_ROUND_IDS = 300
# A little more than the page wants: mostly nothing is hidden, and then one round is enough.
_SPARE_IDS = 4


class Joined(NamedTuple):
    """A tweet that may be shown; `data` is a serialised roost.tweet.v1.Tweet."""

    id: int
    author_id: int
    data: bytes


class _Page(NamedTuple):
    """What the owners say of one round: the author fragment of each person who may be seen, whom the reader mutes, the nested
    tweets that stand, and what is counted and what the reader did, by tweet."""

    fragments: dict[int, bytes]
    muted: Container[int]
    nested: dict[int, _Core]
    counts: dict[int, engagement.TweetCounts]
    states: dict[int, int]


class Hydrator:
    """Joins tweets for readers. `channel` reaches tweet, identity and graph; the calls carry the current deadline."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        # Any: the generated stubs' types know the socket's call class only.
        self._get_cores: Any = TweetServiceStub(channel).BatchGetTweetCores
        self._get_refs: Any = UserServiceStub(channel).BatchGetUserRefs
        self._get_filter: Any = GraphServiceStub(channel).GetVisibilityFilter
        self._get_counts: Any = EngagementServiceStub(channel).BatchGetCounts
        self._get_states: Any = EngagementServiceStub(channel).BatchGetViewerStates

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
        and the parent stands and may be seen. Raises AioRpcError when an owner cannot answer: nothing is shown unchecked.
        """
        found: list[Joined] = []
        start, size = 0, min(limit + limit // 4 + _SPARE_IDS, MAX_ROUND_IDS)
        while start < len(ids) and len(found) < limit:
            batch = ids[start : start + size]
            response = await self._get_cores(tweet.BatchGetTweetCoresRequest(ids=batch, viewer_id=reader_id))
            cores = _standing(response.cores)
            if following is not None:
                cores = _of_home(cores, reader_id, following)
            if cores:
                page = await self._ask_owners(reader_id, cores, following is not None)
                own = None if following is None else reader_id
                _join(cores, page, page.muted if hide_muted else (), own, limit, found)
            start, size = start + size, min(size * 2, MAX_ROUND_IDS)
        return found

    async def author_fragments(self, reader_id: int, user_ids: Iterable[int]) -> dict[int, bytes]:
        """`Tweet.author` of each of these people (≤ 1,000) as bytes to append to a core; those hidden from the
        reader are absent."""
        asked = set(user_ids)
        refs, rules = await gathered(self._ask_people(reader_id, asked))
        return seen_by_reader(refs, rules, asked)[0]

    async def _ask_owners(self, reader_id: int, cores: Sequence[_Core], want_parents: bool) -> _Page:
        user_ids: set[int] = set()
        others: set[int] = set()
        shown = [core[0] for core in cores]
        for core in cores:
            user_ids.add(core[1])
            if core[3]:
                others.add(core[3])
                shown.append(core[3])
                user_ids.add(core[2].retweet_of_author_id)
            elif core[4]:
                others.add(core[4])
                shown.append(core[4])
                user_ids.add(core[2].quote_of_author_id)
            if want_parents and core[5]:
                others.add(core[5])
                user_ids.add(core[2].reply_to_author_id)
        people = self._ask_people(reader_id, user_ids)
        more = [self._get_cores(tweet.BatchGetTweetCoresRequest(ids=others, viewer_id=reader_id))] if others else []
        counts = counts_of(self._get_counts(engagement.BatchGetCountsRequest(ids=shown)))
        states = states_of(
            self._get_states(engagement.BatchGetViewerStatesRequest(user_id=reader_id, ids=shown))
            if reader_id
            else None
        )
        refs, rules, *answers, counted, did = await gathered([*people, *more, counts, states])
        fragments, muted = seen_by_reader(refs, rules, user_ids)
        nested = {core[0]: core for answer in answers for core in _standing(answer.cores)}
        return _Page(fragments, muted, nested, counted, did)

    def _ask_people(self, reader_id: int, user_ids: set[int]) -> list[Any]:
        rules = graph.GetVisibilityFilterRequest(user_id=reader_id, candidate_ids=user_ids)
        return [
            self._get_refs(identity.BatchGetUserRefsRequest(ids=user_ids)),
            self._get_filter(rules) if reader_id else nothing(),
        ]


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
    page: _Page,
    muted: Container[int],
    parents_of_others_than: int | None,
    limit: int,
    found: list[Joined],
) -> None:
    fragments = page.fragments
    for core in cores:
        tweet_id, author_id, head, original_id, quoted_id, parent_id, _ = core
        if author_id not in fragments or author_id in muted:
            continue
        if parent_id and parents_of_others_than not in (None, author_id):
            parent = page.nested.get(parent_id)
            if parent is None or parent[1] not in fragments:
                continue
        data = _whole(core, page)
        if original_id:
            original = _whole(page.nested.get(original_id), page)
            if not original or head.retweet_of_author_id in muted:
                continue
            data += framed(RETWEETED, original)
        elif quoted_id:
            data += framed(QUOTED, _whole(page.nested.get(quoted_id), page) or tombstone(quoted_id))
        found.append(Joined(tweet_id, author_id, data))
        if len(found) == limit:
            return


def _whole(core: _Core | None, page: _Page) -> bytes:
    """The serialised tweet less what is nested in it; empty where it may not be seen."""
    author = None if core is None else page.fragments.get(core[1])
    if core is None or author is None:
        return b""
    kept = core[6]
    data: bytes = kept.core + author
    counts = page.counts.get(core[0])
    if counts is not None:
        data += metrics_fragment(counts.likes, kept.retweets, kept.replies, kept.quotes, counts.bookmarks)
    elif kept.retweets or kept.replies or kept.quotes:
        data += metrics_fragment(0, kept.retweets, kept.replies, kept.quotes, 0)
    else:
        data += NO_METRICS
    state = page.states.get(core[0], 0) + 2 * kept.retweeted
    return data + VIEWER[state] if state else data
