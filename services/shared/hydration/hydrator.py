"""Hydrates tweets: turns ids and a reader into visible tweets. The only place that applies the rules of deletion,
blocks, mutes, suspension and parents.

Each read calls the services that own the data, in at most two rounds of calls per batch of ids, so that a delete, block
or suspension affects the next read. A tweet is the concatenation of serialized fragments; no message object is built.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import grpc.aio
from roost.engagement.v1 import engagement_service_pb2 as engagement
from roost.engagement.v1.engagement_service_pb2_grpc import EngagementServiceStub
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.identity.v1 import user_service_pb2 as identity
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet

from services.platform.caching import read_tracking
from services.platform.shared_state import SharedUserRefs
from services.shared.hydration.fragments import QUOTED, RETWEETED, VIEWER, framed, metrics_fragment, tombstone
from services.shared.hydration.owner_responses import (
    await_all,
    counts_or_empty,
    no_response,
    visible_authors,
)
from services.shared.hydration.parsed import ParseCache, TweetRecord, parse_active_user, parse_live_core

# Maximum number of ids hydrated at once; more ids are hydrated in several rounds. A tweet refers to up to two more
# users and two more tweets, and the services accept 1,000 ids per call.
MAX_ROUND_IDS = 300
# Minimum number of ids hydrated in addition to those that the page needs, because usually a few tweets are hidden.
_SPARE_IDS = 4


class HydratedTweet(NamedTuple):
    """A visible tweet. `data` is a serialized roost.tweet.v1.Tweet."""

    id: int
    author_id: int
    data: bytes


class VisibleTweets(NamedTuple):
    """Visible tweets, and the relation versions of the reader under which graph decided who is hidden: none if no
    reader is signed in, several if the relation version changed during the read."""

    tweets: list[HydratedTweet]
    relation_versions: set[int]


class ListRules(Protocol):
    """Rules of one kind of list, in addition to the rules that apply to every list."""

    def admitted(self, tweets: Sequence[TweetRecord]) -> Sequence[TweetRecord]:
        """Returns the tweets that may be in the list, in their order."""

    def requires_parent(self, reply: TweetRecord) -> bool:
        """Returns whether the list shows the reply only if its parent is live and the parent's author visible."""


class _PageData(NamedTuple):
    """The responses of the other services for the tweets of one page, from which the fragments are assembled.

    `relation_version` is the reader's relation version (None if no reader is signed in). `fragments` holds the author
    fragment of each user whom the reader may see, by user id; tweets of other authors are left out. `muted` are the
    users whom the reader mutes. `nested` holds the retweeted and quoted tweets, and the parents that a list requires,
    if they are live; `counts` and `states` are by tweet id; a state is the index into VIEWER for the reader's like and
    bookmark.
    """

    relation_version: int | None
    fragments: dict[int, bytes]
    muted: Container[int]
    nested: dict[int, TweetRecord]
    counts: dict[int, engagement.TweetCounts]
    states: dict[int, int]


class Hydrator:
    """Hydrates tweets for readers. `channel` reaches tweet, identity, graph and engagement; calls carry the deadline of
    the current call.

    `shared_refs` (cluster backend) reads user references from Redis; only references that Redis does not have are read
    from identity.
    """

    def __init__(self, channel: grpc.aio.Channel, shared_refs: SharedUserRefs | None = None) -> None:
        # Any, because the types of the generated stubs accept only grpc.aio calls, and the in-process channel returns
        # others. The wire types leave tweets and user references as bytes, which are the keys of the parse caches.
        self._get_cores: Any = channel.unary_unary(
            "/roost.tweet.v1.TweetService/BatchGetTweetCores",
            tweet.BatchGetTweetCoresRequest.SerializeToString,
            tweet_pb2.SerializedTweetCores.FromString,
        )
        self._shared_refs = shared_refs
        self._cores = ParseCache(parse_live_core)
        self._refs = ParseCache(parse_active_user)
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
        limit: int,
        *,
        hide_muted: bool = False,
        rules: ListRules | None = None,
    ) -> VisibleTweets:
        """Returns the first `limit` tweets of `ids` that the reader (0: not signed in) may see, in the order of `ids`.

        Leaves out unknown and deleted tweets, tweets whose author is suspended, deactivated, blocks the reader or is
        blocked by the reader, and retweets whose original is left out. A quoted tweet that is hidden becomes a
        tombstone. With `hide_muted`, also leaves out tweets and retweeted originals of muted users; with `rules`, also
        tweets that the rules do not admit. Raises AioRpcError if tweet, identity or graph cannot answer, because no
        tweet may be returned unchecked.
        """
        found: list[HydratedTweet] = []
        versions: set[int] = set()
        start, size = 0, min(limit + limit // 4 + _SPARE_IDS, MAX_ROUND_IDS)
        while start < len(ids) and len(found) < limit:
            batch = ids[start : start + size]
            response = await self._get_cores(tweet.BatchGetTweetCoresRequest(ids=batch, viewer_id=reader_id))
            cores: Sequence[TweetRecord] = self._cores.read(response.cores)
            if rules is not None:
                cores = rules.admitted(cores)
            if cores:
                page = await self._fetch_page_data(reader_id, cores, rules)
                if page.relation_version is not None:
                    versions.add(page.relation_version)
                found += _assemble_page(cores, page, page.muted if hide_muted else (), rules, limit - len(found))
            start, size = start + size, min(size * 2, MAX_ROUND_IDS)
        return VisibleTweets(found, versions)

    async def author_fragments(self, reader_id: int, user_ids: Iterable[int]) -> dict[int, bytes]:
        """Returns the field `author` of a tweet for each of these users (≤ 1,000), by user id. Users hidden from the
        reader (0: not signed in) are left out."""
        asked = set(user_ids)
        refs, rules = await await_all(self._fetch_authors(reader_id, asked))
        return visible_authors(self._refs.read(refs.refs), rules, asked)[0]

    async def _fetch_page_data(
        self, reader_id: int, cores: Sequence[TweetRecord], list_rules: ListRules | None
    ) -> _PageData:
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
            if core.parent_id and list_rules is not None and list_rules.requires_parent(core):
                others.add(core.parent_id)
                user_ids.add(core.parent_author_id)
        authors = self._fetch_authors(reader_id, user_ids)
        more = [self._get_cores(tweet.BatchGetTweetCoresRequest(ids=others, viewer_id=reader_id))] if others else []
        asked = engagement.BatchGetCountsRequest(ids=shown, viewer_id=reader_id)
        counts_call = counts_or_empty(self._get_counts(asked))
        refs, rules, *answers, (counts, states) = await await_all([*authors, *more, counts_call])
        fragments, muted = visible_authors(self._refs.read(refs.refs), rules, user_ids)
        nested = {core.id: core for answer in answers for core in self._cores.read(answer.cores)}
        version = None if rules is None else rules.relation_version
        return _PageData(version, fragments, muted, nested, counts, states)

    def _fetch_authors(self, reader_id: int, user_ids: set[int]) -> list[Any]:
        rules = graph.GetVisibilityFilterRequest(user_id=reader_id, candidate_ids=user_ids)
        if self._shared_refs is None:
            refs = self._get_refs(identity.BatchGetUserRefsRequest(ids=user_ids))
        else:
            refs = self._refs_of(list(user_ids), self._shared_refs)
        return [refs, self._get_filter(rules) if reader_id else no_response()]

    async def _refs_of(self, user_ids: Sequence[int], shared_refs: SharedUserRefs) -> identity.SerializedUserRefs:
        # Other processes change these references, and this process does not record their changes. So a response that
        # contains the references must not be cached.
        read_tracking.mark_uncacheable()
        found = dict(zip(user_ids, await shared_refs.users(user_ids), strict=True))
        refs = identity.SerializedUserRefs.FromString(b"".join(one.data for one in found.values() if one is not None))
        if missing := [user_id for user_id, one in found.items() if one is None]:
            refs.MergeFrom(await self._get_refs(identity.BatchGetUserRefsRequest(ids=missing)))
        return refs


def _assemble_page(
    cores: Sequence[TweetRecord],
    page: _PageData,
    muted: Container[int],
    rules: ListRules | None,
    limit: int,
) -> list[HydratedTweet]:
    """Returns the first `limit` of these tweets that the reader may see."""
    found: list[HydratedTweet] = []
    fragments = page.fragments
    for core in cores:
        author_id = core.author_id
        if author_id not in fragments or author_id in muted:
            continue
        if core.parent_id and rules is not None and rules.requires_parent(core):
            parent = page.nested.get(core.parent_id)
            if parent is None or parent.author_id not in fragments:
                continue
        data = _assemble(core, page)
        if core.original_id:
            original = _assemble(page.nested.get(core.original_id), page)
            if not original or core.original_author_id in muted:
                continue
            data += framed(RETWEETED, original)
        elif core.quoted_id:
            data += framed(QUOTED, _assemble(page.nested.get(core.quoted_id), page) or tombstone(core.quoted_id))
        found.append(HydratedTweet(core.id, author_id, data))
        if len(found) == limit:
            break
    return found


def _assemble(core: TweetRecord | None, page: _PageData) -> bytes:
    """Returns the serialized tweet without its nested tweets; empty if `core` is None or the author is hidden."""
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
