"""Why a tweet stands in a home, or why it does not.

Whether it is shown is found by reading the home itself, down to the tweet; the reason why not, by showing the tweet alone under fewer
and fewer rules, to the same code that filters pages. So an explanation cannot differ from the home.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import grpc
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1 import graph_service_pb2_grpc as graph_grpc
from roost.timeline.v1 import timeline_service_pb2 as pb
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1 import tweet_service_pb2_grpc as tweet_grpc

from services.shared.hydration.hydrator import Hydrator
from services.timeline.fanout_rules import Source
from services.timeline.home_reader import MAX_ENTRIES, HomeReader, HomeSnapshot

# Of the walk down to the tweet: about a page's calls for each 100 entries.
DEPTH = 100

Filter: TypeAlias = "pb.EntryFilter.ValueType"

_SOURCES: dict[Source, str] = {
    pb.ENTRY_SOURCE_PUSHED: "Pushed by fan-out, or found when the home was built.",
    pb.ENTRY_SOURCE_PULLED_CELEBRITY: "Pulled at read: the author has too many followers to push to.",
    pb.ENTRY_SOURCE_PULLED_SELF: "Pulled at read: it is your own.",
    pb.ENTRY_SOURCE_PULLED_RECENT_FOLLOWEE: "Pulled at read: you follow the author only since the home was built.",
    pb.ENTRY_SOURCE_PULLED_TIER_CHANGE: "Pulled at read: the author stopped being a celebrity since the home was built.",
    pb.ENTRY_SOURCE_PULLED_COLD: "Pulled at read: the home is not kept, or not this far down.",
}
_FILTERS: dict[Filter, str] = {
    pb.ENTRY_FILTER_UNSPECIFIED: "Nothing hides it, but fan-out has not delivered it yet.",
    pb.ENTRY_FILTER_NOT_FOUND: "There is no such tweet.",
    pb.ENTRY_FILTER_DELETED: "It was deleted.",
    pb.ENTRY_FILTER_NOT_FOLLOWED: "You do not follow its author.",
    pb.ENTRY_FILTER_BLOCKED: "You block its author.",
    pb.ENTRY_FILTER_MUTED: "You mute its author, or the author of what it retweets.",
    pb.ENTRY_FILTER_AUTHOR_HIDDEN: "Its author is suspended or deactivated.",
    pb.ENTRY_FILTER_REPLY_NOT_FOLLOWED: "It replies to somebody you do not follow.",
    pb.ENTRY_FILTER_PARENT_GONE: "What it replies to is gone or hidden.",
    pb.ENTRY_FILTER_ORIGINAL_GONE: "What it retweets is gone or hidden.",
    pb.ENTRY_FILTER_BELOW_DEPTH: f"It is older than the newest {MAX_ENTRIES} that you may see.",
}


class Explainer:
    """Explains entries to the reader whose home it is."""

    def __init__(self, home: HomeReader, hydrator: Hydrator, channel: grpc.aio.Channel) -> None:
        self._home = home
        self._hydrator = hydrator
        self._graph = graph_grpc.GraphServiceStub(channel)
        self._tweets = tweet_grpc.TweetServiceStub(channel)

    async def explain(self, reader: int, tweet_id: int) -> pb.ExplainTimelineEntryResponse:
        """Whether the reader's home shows the tweet, and why. Raises AioRpcError where an owner cannot answer."""
        view = await self._home.view(reader)
        answer = pb.ExplainTimelineEntryResponse(tweet_id=tweet_id)
        # The tweet by itself first: one that a rule hides needs no walk.
        if not await self._home.visible(view, (tweet_id,), 1):
            answer.filter = await self._hidden_by(view, tweet_id)
            answer.reason = _FILTERS[answer.filter]
            return answer
        above = await self._entries_down_to(view, tweet_id)
        answer.shown = bool(above) and above[-1] == tweet_id
        if answer.shown:
            answer.source = await self._source(view, tweet_id)
            answer.reason = _SOURCES[answer.source]
        else:
            deep = len(above) == MAX_ENTRIES
            answer.filter = pb.ENTRY_FILTER_BELOW_DEPTH if deep else pb.ENTRY_FILTER_UNSPECIFIED
            answer.reason = _FILTERS[answer.filter]
        return answer

    async def _entries_down_to(self, view: HomeSnapshot, tweet_id: int) -> list[int]:
        """The home's entries from the newest down to this tweet's place, MAX_ENTRIES at most."""
        shown: list[int] = []
        walk = self._home.walk(view, 0, DEPTH)
        while len(shown) < MAX_ENTRIES and (round_ := await walk.next()) is not None:
            reach = [entry for entry in round_.ids if entry >= tweet_id]
            shown += [entry.id for entry in await self._home.visible(view, reach, MAX_ENTRIES - len(shown))]
            if round_.frontier <= tweet_id:
                break
        return shown

    async def _source(self, view: HomeSnapshot, tweet_id: int) -> Source:
        if view.home is None or tweet_id <= view.home.floor:
            return pb.ENTRY_SOURCE_PULLED_COLD
        if tweet_id in view.home.ids:
            return pb.ENTRY_SOURCE_PUSHED
        head = await self._head(tweet_id)
        return view.pulled.get(head.author_id, pb.ENTRY_SOURCE_PUSHED) if head else pb.ENTRY_SOURCE_PUSHED

    async def _head(self, tweet_id: int) -> tweet_pb2.TweetHead | None:
        answer = await self._tweets.BatchGetTweetCores(tweet.BatchGetTweetCoresRequest(ids=[tweet_id]))
        return answer.cores[0].head if answer.cores else None

    async def _hidden_by(self, view: HomeSnapshot, tweet_id: int) -> Filter:
        """Which rule hides a tweet that is not visible: the first that makes it visible when it is left out."""
        head = await self._head(tweet_id)
        if head is None:
            return pb.ENTRY_FILTER_NOT_FOUND
        if head.deleted:
            return pb.ENTRY_FILTER_DELETED
        if not await self._seen_by(0, (tweet_id,)):
            nobody_sees_original = head.retweet_of_id and not await self._seen_by(0, (head.retweet_of_id,))
            return pb.ENTRY_FILTER_ORIGINAL_GONE if nobody_sees_original else pb.ENTRY_FILTER_AUTHOR_HIDDEN
        if not await self._seen_by(view.reader, (tweet_id,)):
            return await self._block(view.reader, head)
        if head.author_id != view.reader and head.author_id not in view.relations.followees:
            return pb.ENTRY_FILTER_NOT_FOLLOWED
        if not await self._seen_by(view.reader, (tweet_id,), hide_muted=True):
            return pb.ENTRY_FILTER_MUTED
        follows_parent = head.reply_to_author_id == view.reader or head.reply_to_author_id in view.relations.followees
        return pb.ENTRY_FILTER_PARENT_GONE if follows_parent else pb.ENTRY_FILTER_REPLY_NOT_FOLLOWED

    async def _block(self, reader: int, head: tweet_pb2.TweetHead) -> Filter:
        """Who hides from whom. That the author blocks the reader is not told apart from a tweet that never was."""
        people = [author for author in (head.author_id, head.retweet_of_author_id) if author]
        rules = await self._graph.GetVisibilityFilter(
            graph.GetVisibilityFilterRequest(user_id=reader, candidate_ids=people)
        )
        if head.author_id in rules.blocked_ids:
            return pb.ENTRY_FILTER_BLOCKED
        return pb.ENTRY_FILTER_NOT_FOUND if head.author_id in rules.blocked_by_ids else pb.ENTRY_FILTER_ORIGINAL_GONE

    async def _seen_by(self, reader: int, ids: Sequence[int], *, hide_muted: bool = False) -> bool:
        return bool(await self._hydrator.visible(reader, ids, hide_muted=hide_muted, limit=1))
