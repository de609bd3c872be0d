"""Loads what hydration does not have in its caches from the services that own it, and caches it under its versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import grpc.aio
from roost.engagement.v1 import engagement_service_pb2 as engagement
from roost.engagement.v1.engagement_service_pb2_grpc import EngagementServiceStub
from roost.identity.v1 import user_service_pb2 as identity
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet

from services.platform.shared_state import SharedUserRefs
from services.platform.versions import Kind, Snapshot, Versioned, key_of
from services.shared.hydration.cache import CachedTweet, HydrationCache, ViewerStates
from services.shared.hydration.fragments import NO_METRICS, metrics_fragment
from services.shared.hydration.owner_responses import Counts, await_all, counts_or_none
from services.shared.hydration.parsed import TweetRecord, parse_active_user, parse_live_core


class TweetLoader:
    """Loads tweets and authors. `channel` reaches tweet, identity and engagement; calls carry the current deadline.

    `shared_refs` (cluster backend) supplies user references from Redis; only those that Redis does not have are read
    from identity. Methods raise AioRpcError if tweet or identity cannot answer.
    """

    def __init__(
        self, channel: grpc.aio.Channel, cache: HydrationCache, shared_refs: SharedUserRefs | None = None
    ) -> None:
        # Any, because the types of the generated stubs accept only grpc.aio calls, and the in-process channel returns
        # others. The wire types leave tweets and user references as bytes.
        self._get_cores: Any = channel.unary_unary(
            "/roost.tweet.v1.TweetService/BatchGetTweetCores",
            tweet.BatchGetTweetCoresRequest.SerializeToString,
            tweet_pb2.SerializedTweetCores.FromString,
        )
        self._get_refs: Any = channel.unary_unary(
            "/roost.identity.v1.UserService/BatchGetUserRefs",
            identity.BatchGetUserRefsRequest.SerializeToString,
            identity.SerializedUserRefs.FromString,
        )
        self._get_counts: Any = EngagementServiceStub(channel).BatchGetCounts
        self._cache = cache
        self._shared_refs = shared_refs

    async def records(self, ids: Iterable[int], viewer_id: int) -> dict[int, TweetRecord]:
        """Returns the live ones of these tweets by id, from the tweet service."""
        answer = await self._get_cores(tweet.BatchGetTweetCoresRequest(ids=ids, viewer_id=viewer_id))
        return _live(answer)

    async def viewer_states(self, viewer_id: int, ids: Sequence[int]) -> ViewerStates:
        """Returns the viewer states of these tweets: an index into VIEWER by tweet id. Leaves out tweets whose state is
        unknown, because engagement does not answer."""
        answer, counts = await await_all(
            [
                self._get_cores(tweet.BatchGetTweetCoresRequest(ids=ids, viewer_id=viewer_id)),
                counts_or_none(self._get_counts(engagement.BatchGetCountsRequest(ids=ids, viewer_id=viewer_id))),
            ]
        )
        if counts is None:
            return {}
        records = _live(answer)
        return {i: counts.states.get(i, 0) + 2 * (i in records and records[i].retweeted) for i in ids}

    async def author_fragments(self, user_ids: Iterable[int], snapshot: Snapshot) -> dict[int, bytes]:
        """Returns the author fragment of each of these users (≤ 1,000) by user id; empty if the user is unknown or not
        active. Adds the versions of the users to the snapshot."""
        wanted = list(dict.fromkeys(user_ids))
        await snapshot.read([key_of(Kind.USER, user_id) for user_id in wanted])
        found, missing = await self._cached_users(wanted)
        if missing:
            found |= self._cache_users(missing, await self._refs(missing), snapshot)
        return found

    async def complete(
        self, records: Sequence[TweetRecord], viewer_id: int, snapshot: Snapshot
    ) -> tuple[dict[int, CachedTweet], ViewerStates]:
        """Completes tweets from their records, and caches them. Returns them by id, without those that nobody sees, and
        the viewer states that came with the responses.

        `snapshot` has the versions of the tweets from before the records were loaded.
        """
        work = _Work(records)
        await snapshot.read(work.keys())
        fragments, missing_users = await self._cached_users(work.user_ids)
        cached = await self._cached_tweets(work.other_ids)
        # A head lacks the fragments of a nested tweet, but shows that a parent is live.
        nested: dict[int, CachedTweet | None] = {
            i: cached[i] for i in work.nested_ids if i in cached and cached[i].whole
        }
        wanted = [i for i in work.other_ids if i not in (nested if i in work.nested_ids else cached)]
        counted = {record.id for record in records}.union(i for i in work.nested_ids if i not in nested)
        calls: list[Any] = [
            counts_or_none(self._get_counts(engagement.BatchGetCountsRequest(ids=counted, viewer_id=viewer_id)))
        ]
        if missing_users:
            calls.append(self._refs(missing_users))
        if wanted:
            calls.append(self._get_cores(tweet.BatchGetTweetCoresRequest(ids=wanted, viewer_id=viewer_id)))
        counts, *answers = await await_all(calls)
        if missing_users:
            fragments |= self._cache_users(missing_users, answers[0], snapshot)
        others = _live(answers[-1]) if wanted else {}
        for tweet_id in work.nested_ids:
            if tweet_id not in nested and (record := others.get(tweet_id)) is not None:
                nested[tweet_id] = _nested(record, fragments, counts)
        states: ViewerStates = {}
        if counts is not None and viewer_id:
            for record in (*records, *others.values()):
                if record.id in counted and _is_stateful(record, counts):
                    states[record.id] = counts.states.get(record.id, 0) + 2 * record.retweeted
        live_ids = others.keys() | cached.keys()
        return self._cache_tweets(records, fragments, counts, nested, live_ids, snapshot), states

    def _cache_tweets(
        self,
        records: Sequence[TweetRecord],
        fragments: dict[int, bytes],
        counts: Counts | None,
        nested: dict[int, CachedTweet | None],
        live_ids: Iterable[int],
        snapshot: Snapshot,
    ) -> dict[int, CachedTweet]:
        done: dict[int, CachedTweet] = {}
        for record in records:
            made: CachedTweet | None = None
            inner = nested.get(record.original_id or record.quoted_id)
            author = fragments[record.author_id]
            if author and (inner is not None or not record.original_id):
                made = done[record.id] = CachedTweet(record)
                parent_live = record.parent_id in live_ids and bool(fragments[record.parent_author_id])
                made.complete(_plain(record, author, counts), _is_stateful(record, counts), inner, parent_live)
            keys = _Work((record,)).keys()
            # Counts are derived data: a tweet is shown without them if engagement does not answer, but not cached.
            if counts is not None and (stamp := snapshot.stamp(keys)) is not None:
                self._cache.tweets.put(record.id, Versioned(keys, stamp, made))
        return done

    async def _cached_tweets(self, ids: Sequence[int]) -> dict[int, CachedTweet]:
        """Returns the tweets that are cached and current, heads included, by id."""
        entries = {i: entry for i in ids if (entry := self._cache.tweets.get(i)) is not None}
        current = await self._cache.versions.current(list(entries.values()))
        return {
            i: entry.value
            for (i, entry), is_current in zip(entries.items(), current, strict=True)
            if is_current and entry.value is not None
        }

    async def _cached_users(self, user_ids: Sequence[int]) -> tuple[dict[int, bytes], list[int]]:
        """Returns the cached and current author fragments by user id, and the ids of the other users."""
        entries = self._cache.users.get_many(user_ids)
        known = [entry for entry in entries if entry is not None]
        current = iter(await self._cache.versions.current(known))
        found: dict[int, bytes] = {}
        missing = []
        for user_id, entry in zip(user_ids, entries, strict=True):
            if entry is not None and next(current):
                found[user_id] = entry.value
            else:
                missing.append(user_id)
        return found, missing

    def _cache_users(
        self, user_ids: Sequence[int], response: identity.SerializedUserRefs, snapshot: Snapshot
    ) -> dict[int, bytes]:
        found = dict.fromkeys(user_ids, b"") | dict(map(parse_active_user, response.refs))
        for user_id in user_ids:
            keys = (key_of(Kind.USER, user_id),)
            if (stamp := snapshot.stamp(keys)) is not None:
                self._cache.users.put(user_id, Versioned(keys, stamp, found[user_id]))
        return found

    async def _refs(self, user_ids: Sequence[int]) -> identity.SerializedUserRefs:
        if self._shared_refs is None:
            answer: identity.SerializedUserRefs = await self._get_refs(identity.BatchGetUserRefsRequest(ids=user_ids))
            return answer
        found = dict(zip(user_ids, await self._shared_refs.users(user_ids), strict=True))
        refs = identity.SerializedUserRefs.FromString(b"".join(one.data for one in found.values() if one is not None))
        if missing := [user_id for user_id, one in found.items() if one is None]:
            refs.MergeFrom(await self._get_refs(identity.BatchGetUserRefsRequest(ids=missing)))
        return refs


class _Work:
    """The ids that tweets refer to: of nested tweets, of these and of parents (`other_ids`), and of users."""

    def __init__(self, records: Sequence[TweetRecord]) -> None:
        nested: dict[int, None] = {}
        others: dict[int, None] = {}
        users: dict[int, None] = {}
        for record in records:
            users[record.author_id] = None
            if inner := record.original_id or record.quoted_id:
                nested[inner] = others[inner] = None
                users[record.original_author_id or record.quoted_author_id] = None
            if record.parent_id:
                others[record.parent_id] = users[record.parent_author_id] = None
        self._ids = [record.id for record in records]
        self._parents = [record.parent_id for record in records if record.parent_id]
        self.nested_ids = nested.keys()
        self.other_ids = list(others)
        self.user_ids = list(users)

    def keys(self) -> tuple[int, ...]:
        """Returns the version keys on which the tweets depend: of the tweets and nested tweets, their reactions, their
        authors, and the states of parents and their authors."""
        shown = (*self._ids, *self.nested_ids)
        return (
            *(key_of(Kind.TWEET, i) for i in shown),
            *(key_of(Kind.REACTION_COUNTS, i) for i in shown),
            *(key_of(Kind.TWEET_STATE, i) for i in self._parents),
            *(key_of(Kind.USER, i) for i in self.user_ids),
        )


def _live(answer: tweet_pb2.SerializedTweetCores) -> dict[int, TweetRecord]:
    return {record.id: record for data in answer.cores if (record := parse_live_core(data)) is not None}


def _nested(record: TweetRecord, fragments: dict[int, bytes], counts: Counts | None) -> CachedTweet | None:
    """Returns the tweet as it is shown within another one, without its own nested tweet; None if nobody sees it."""
    author = fragments.get(record.author_id)
    if not author:
        return None
    made = CachedTweet(record)
    made.complete(_plain(record, author, counts), _is_stateful(record, counts), None, False)
    return made


def _plain(record: TweetRecord, author: bytes, counts: Counts | None) -> bytes:
    reacted = counts.by_tweet.get(record.id) if counts is not None else None
    likes, bookmarks = (reacted.likes, reacted.bookmarks) if reacted is not None else (0, 0)
    shown = (likes, record.retweets, record.replies, record.quotes, bookmarks)
    return record.data + author + (metrics_fragment(*shown) if any(shown) else NO_METRICS)


def _is_stateful(record: TweetRecord, counts: Counts | None) -> bool:
    return record.retweets > 0 or (counts is not None and record.id in counts.by_tweet)
