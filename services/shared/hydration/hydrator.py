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
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet

from services.platform.caching import read_tracking
from services.shared.hydration.fragments import QUOTED, RETWEETED, VIEWER, framed, metrics_fragment, tombstone
from services.shared.hydration.owner_responses import (
    SharedUserRefs,
    await_all,
    counts_or_empty,
    no_response,
    visible_authors,
)
from services.shared.hydration.parsed import Core, ParseCache, active_ref, parse_live_core

# Each tweet names up to two people to show and two other tweets, and the owners answer for 1,000 at once.
MAX_ROUND_IDS = 300
# A little more than the page wants: mostly nothing is hidden, and then one round is enough.
_SPARE_IDS = 4


class RelationsChangedError(Exception):
    """The reader follows others by now than the caller of `visible` believed."""


class HydratedTweet(NamedTuple):
    """A tweet that may be shown; `data` is a serialised roost.tweet.v1.Tweet."""

    id: int
    author_id: int
    data: bytes


class _Page(NamedTuple):
    """What the owners say of one round: the author fragment of each person who may be seen, whom the reader mutes, the nested
    tweets that stand, and what is counted and what the reader did, by tweet."""

    fragments: dict[int, bytes]
    muted: Container[int]
    nested: dict[int, Core]
    counts: dict[int, engagement.TweetCounts]
    states: dict[int, int]


class Hydrator:
    """Joins tweets for readers. `channel` reaches tweet, identity, graph and engagement; the calls carry the current deadline.

    Whom `people` knows identity is not asked about: one trip to Redis in place of a call that makes the same.
    """

    def __init__(self, channel: grpc.aio.Channel, people: SharedUserRefs | None = None) -> None:
        # Any: the generated stubs' types know the socket's call class only.
        # The twins: what was read before is known by its bytes.
        self._get_cores: Any = channel.unary_unary(
            "/roost.tweet.v1.TweetService/BatchGetTweetCores",
            tweet.BatchGetTweetCoresRequest.SerializeToString,
            tweet_pb2.SerializedTweetCores.FromString,
        )
        self._people = people
        self._cores = ParseCache(parse_live_core)
        self._refs = ParseCache(active_ref)
        self._get_refs: Any = channel.unary_unary(
            "/roost.identity.v1.UserService/BatchGetUserRefs",
            identity.BatchGetUserRefsRequest.SerializeToString,
            identity.SerializedUserRefs.FromString,
        )
        self._get_filter: Any = GraphServiceStub(channel).GetVisibilityFilter
        self._get_counts: Any = EngagementServiceStub(channel).BatchGetCounts

    async def visible(
        self,
        reader_id: int,
        ids: Sequence[int],
        *,
        hide_muted: bool = False,
        following: Container[int] | None = None,
        expected_relation_version: int | None = None,
        limit: int,
    ) -> list[HydratedTweet]:
        """The first `limit` tweets of `ids` that the reader (0: nobody signed in) may see, in the order given.

        Left out: unknown and deleted tweets, those whose author is suspended, deactivated or blocks or is blocked by the
        reader, and retweets whose original is left out. A quoted tweet that may not be seen is a tombstone. With
        `hide_muted` also what muted people wrote, whoever retweets it. With `following`, the rules of a home: only what
        the reader and these people posted, another's reply only where the reader is, or follows, the author replied to,
        and the parent stands and may be seen. Raises AioRpcError when an owner cannot answer: nothing is shown unchecked;
        RelationsChangedError where `expected_relation_version`, the relation version that `following` is of, is not the present one.
        """
        found: list[HydratedTweet] = []
        start, size = 0, min(limit + limit // 4 + _SPARE_IDS, MAX_ROUND_IDS)
        while start < len(ids) and len(found) < limit:
            batch = ids[start : start + size]
            response = await self._get_cores(tweet.BatchGetTweetCoresRequest(ids=batch, viewer_id=reader_id))
            cores = self._cores.read(response.cores)
            if following is not None:
                cores = _of_home(cores, reader_id, following)
            if cores:
                page = await self._ask_owners(reader_id, cores, following is not None, expected_relation_version)
                own = None if following is None else reader_id
                _join(cores, page, page.muted if hide_muted else (), own, limit, found)
            start, size = start + size, min(size * 2, MAX_ROUND_IDS)
        return found

    async def author_fragments(self, reader_id: int, user_ids: Iterable[int]) -> dict[int, bytes]:
        """`Tweet.author` of each of these people (≤ 1,000) as bytes to append to a core; those hidden from the
        reader are absent."""
        asked = set(user_ids)
        refs, rules = await await_all(self._ask_people(reader_id, asked))
        return visible_authors(self._refs.read(refs.refs), rules, asked)[0]

    async def _ask_owners(
        self, reader_id: int, cores: Sequence[Core], want_parents: bool, expected_relation_version: int | None
    ) -> _Page:
        user_ids: set[int] = set()
        others: set[int] = set()
        shown = []
        for core in cores:
            shown.append(core.id)
            user_ids.add(core.author_id)
            if core.original_id:
                others.add(core.original_id)
                shown.append(core.original_id)
                user_ids.add(core.original_author_id)
            elif core.quoted_id:
                others.add(core.quoted_id)
                shown.append(core.quoted_id)
                user_ids.add(core.quoted_author_id)
            if want_parents and core.parent_id:
                others.add(core.parent_id)
                user_ids.add(core.parent_author_id)
        people = self._ask_people(reader_id, user_ids)
        more = [self._get_cores(tweet.BatchGetTweetCoresRequest(ids=others, viewer_id=reader_id))] if others else []
        asked = engagement.BatchGetCountsRequest(ids=shown, viewer_id=reader_id)
        marks = counts_or_empty(self._get_counts(asked))
        refs, rules, *answers, (counts, states) = await await_all([*people, *more, marks])
        if expected_relation_version is not None and rules.relation_version != expected_relation_version:
            raise RelationsChangedError
        fragments, muted = visible_authors(self._refs.read(refs.refs), rules, user_ids)
        nested = {core.id: core for answer in answers for core in self._cores.read(answer.cores)}
        return _Page(fragments, muted, nested, counts, states)

    def _ask_people(self, reader_id: int, user_ids: set[int]) -> list[Any]:
        rules = graph.GetVisibilityFilterRequest(user_id=reader_id, candidate_ids=user_ids)
        if self._people is None:
            refs = self._get_refs(identity.BatchGetUserRefsRequest(ids=user_ids))
        else:
            refs = self._refs_of(list(user_ids), self._people)
        return [refs, self._get_filter(rules) if reader_id else no_response()]

    async def _refs_of(self, user_ids: Sequence[int], people: SharedUserRefs) -> identity.SerializedUserRefs:
        # What is read from there changes without a word to this process.
        read_tracking.mark_uncacheable()
        found = dict(zip(user_ids, await people.users(user_ids), strict=True))
        refs = identity.SerializedUserRefs.FromString(b"".join(one.data for one in found.values() if one is not None))
        if missing := [user_id for user_id, one in found.items() if one is None]:
            refs.MergeFrom(await self._get_refs(identity.BatchGetUserRefsRequest(ids=missing)))
        return refs


def _of_home(cores: Sequence[Core], reader_id: int, following: Container[int]) -> list[Core]:
    """The cores less what the heads alone keep out of a home: strangers, and replies to strangers."""
    return [
        core
        for core in cores
        if core.author_id == reader_id
        or (
            core.author_id in following
            and (not core.parent_id or _is_known(core.parent_author_id, reader_id, following))
        )
    ]


def _is_known(user_id: int, reader_id: int, following: Container[int]) -> bool:
    return user_id == reader_id or user_id in following


def _join(
    cores: Sequence[Core],
    page: _Page,
    muted: Container[int],
    parents_of_others_than: int | None,
    limit: int,
    found: list[HydratedTweet],
) -> None:
    fragments = page.fragments
    for core in cores:
        author_id = core.author_id
        if author_id not in fragments or author_id in muted:
            continue
        if core.parent_id and parents_of_others_than not in (None, author_id):
            parent = page.nested.get(core.parent_id)
            if parent is None or parent.author_id not in fragments:
                continue
        data = _whole(core, page)
        if core.original_id:
            original = _whole(page.nested.get(core.original_id), page)
            if not original or core.original_author_id in muted:
                continue
            data += framed(RETWEETED, original)
        elif core.quoted_id:
            data += framed(QUOTED, _whole(page.nested.get(core.quoted_id), page) or tombstone(core.quoted_id))
        found.append(HydratedTweet(core.id, author_id, data))
        if len(found) == limit:
            return


def _whole(core: Core | None, page: _Page) -> bytes:
    """The serialised tweet less what is nested in it; empty where it may not be seen."""
    if core is None:
        return b""
    author = page.fragments.get(core.author_id)
    if author is None:
        return b""
    counts = page.counts.get(core.id)
    metrics = core.metrics
    if counts is not None:
        metrics = metrics_fragment(counts.likes, core.retweets, core.replies, core.quotes, counts.bookmarks)
    state = page.states.get(core.id, 0) + 2 * core.retweeted
    return core.data + author + metrics + VIEWER[state]
