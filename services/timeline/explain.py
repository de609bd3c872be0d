"""Explains why a home timeline shows a tweet, or why it does not.

To find whether the home timeline shows the tweet, it reads all entries from the newest down to the tweet. To find the
rule that hides the tweet, it filters the tweet alone, first without the rules of the reader, then with more and more of
them. Both use the filter that pages use, so an explanation cannot contradict the home timeline.
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
from services.timeline.home.reader import MAX_ENTRIES, HomeReader, HomeSnapshot

# Number of ids per author in the first batch of the merge that reads down to the tweet. With 100, a tweet among the
# newest 100 entries needs about as many calls as one page.
DEPTH = 100

Filter: TypeAlias = "pb.EntryFilter.ValueType"

_SOURCE_REASONS: dict[Source, str] = {
    pb.ENTRY_SOURCE_PUSHED: "Added by fan-out, or found when the home timeline was built.",
    pb.ENTRY_SOURCE_PULLED_CELEBRITY: "Pulled at read: the author has too many followers for fan-out on write.",
    pb.ENTRY_SOURCE_PULLED_SELF: "Pulled at read: it is your own.",
    pb.ENTRY_SOURCE_PULLED_RECENT_FOLLOWEE: "Pulled at read: you followed the author after the home timeline was built.",
    pb.ENTRY_SOURCE_PULLED_TIER_CHANGE: "Pulled at read: the author stopped being a celebrity after the home timeline was built.",
    pb.ENTRY_SOURCE_PULLED_COLD: "Pulled at read: the home timeline is not stored, or ends above this tweet.",
}
_FILTER_REASONS: dict[Filter, str] = {
    pb.ENTRY_FILTER_UNSPECIFIED: "Nothing hides it, but fan-out has not delivered it yet.",
    pb.ENTRY_FILTER_NOT_FOUND: "There is no such tweet.",
    pb.ENTRY_FILTER_DELETED: "It was deleted.",
    pb.ENTRY_FILTER_NOT_FOLLOWED: "You do not follow its author.",
    pb.ENTRY_FILTER_BLOCKED: "You block its author.",
    pb.ENTRY_FILTER_MUTED: "You mute its author, or the author of what it retweets.",
    pb.ENTRY_FILTER_AUTHOR_HIDDEN: "Its author is suspended or deactivated.",
    pb.ENTRY_FILTER_REPLY_NOT_FOLLOWED: "It replies to a user whom you do not follow.",
    pb.ENTRY_FILTER_PARENT_GONE: "The tweet that it replies to is deleted or hidden.",
    pb.ENTRY_FILTER_ORIGINAL_GONE: "The tweet that it retweets is deleted or hidden.",
    pb.ENTRY_FILTER_BELOW_DEPTH: f"It is older than the newest {MAX_ENTRIES} that you may see.",
}


class Explainer:
    """Explains entries of a home timeline to its reader."""

    def __init__(self, home: HomeReader, hydrator: Hydrator, channel: grpc.aio.Channel) -> None:
        self._home = home
        self._hydrator = hydrator
        self._graph = graph_grpc.GraphServiceStub(channel)
        self._tweets = tweet_grpc.TweetServiceStub(channel)

    async def explain(self, reader: int, tweet_id: int) -> pb.ExplainTimelineEntryResponse:
        """Returns whether the reader's home timeline shows the tweet, and why. Raises AioRpcError if tweet, graph or
        identity does not answer."""
        snapshot = await self._home.snapshot(reader)
        answer = pb.ExplainTimelineEntryResponse(tweet_id=tweet_id)
        # Filters the tweet alone first: if a rule hides the tweet, the home timeline need not be read.
        if not await self._home.visible(snapshot, (tweet_id,), 1):
            answer.filter = await self._hidden_by(snapshot, tweet_id)
            answer.reason = _FILTER_REASONS[answer.filter]
            return answer
        above = await self._entries_down_to(snapshot, tweet_id)
        answer.shown = bool(above) and above[-1] == tweet_id
        if answer.shown:
            answer.source = await self._source_of(snapshot, tweet_id)
            answer.reason = _SOURCE_REASONS[answer.source]
        else:
            deep = len(above) == MAX_ENTRIES
            answer.filter = pb.ENTRY_FILTER_BELOW_DEPTH if deep else pb.ENTRY_FILTER_UNSPECIFIED
            answer.reason = _FILTER_REASONS[answer.filter]
        return answer

    async def _entries_down_to(self, snapshot: HomeSnapshot, tweet_id: int) -> list[int]:
        """Returns the ids that the home timeline shows from the newest down to `tweet_id`, newest first, at most
        MAX_ENTRIES."""
        shown: list[int] = []
        merge = self._home.merge(snapshot, 0, DEPTH)
        async for batch in merge:
            reach = [entry for entry in batch.ids if entry >= tweet_id]
            found = await self._home.visible(snapshot, reach, MAX_ENTRIES - len(shown))
            shown += [entry.id for entry in found]
            if batch.next_position <= tweet_id or len(shown) == MAX_ENTRIES:
                break
        return shown

    async def _source_of(self, snapshot: HomeSnapshot, tweet_id: int) -> Source:
        if snapshot.home is None or tweet_id <= snapshot.home.floor:
            return pb.ENTRY_SOURCE_PULLED_COLD
        if tweet_id in snapshot.home.ids:
            return pb.ENTRY_SOURCE_PUSHED
        head = await self._tweet_head(tweet_id)
        return (
            self._home.pulled(snapshot).get(head.author_id, pb.ENTRY_SOURCE_PUSHED) if head else pb.ENTRY_SOURCE_PUSHED
        )

    async def _tweet_head(self, tweet_id: int) -> tweet_pb2.TweetHead | None:
        answer = await self._tweets.BatchGetTweetCores(tweet.BatchGetTweetCoresRequest(ids=[tweet_id]))
        return answer.cores[0].head if answer.cores else None

    async def _hidden_by(self, snapshot: HomeSnapshot, tweet_id: int) -> Filter:
        """Returns the first rule that hides the tweet. The rules are checked one after the other, those that hide the
        tweet from all readers first."""
        head = await self._tweet_head(tweet_id)
        if head is None:
            return pb.ENTRY_FILTER_NOT_FOUND
        if head.deleted:
            return pb.ENTRY_FILTER_DELETED
        # Reader 0 is anonymous: no block, mute or follow applies.
        if not await self._is_visible_to(0, (tweet_id,)):
            nobody_sees_original = head.retweet_of_id and not await self._is_visible_to(0, (head.retweet_of_id,))
            return pb.ENTRY_FILTER_ORIGINAL_GONE if nobody_sees_original else pb.ENTRY_FILTER_AUTHOR_HIDDEN
        if not await self._is_visible_to(snapshot.reader, (tweet_id,)):
            return await self._block_filter(snapshot.reader, head)
        if head.author_id != snapshot.reader and head.author_id not in snapshot.relations.followees:
            return pb.ENTRY_FILTER_NOT_FOLLOWED
        if not await self._is_visible_to(snapshot.reader, (tweet_id,), hide_muted=True):
            return pb.ENTRY_FILTER_MUTED
        follows_parent = (
            head.reply_to_author_id == snapshot.reader or head.reply_to_author_id in snapshot.relations.followees
        )
        return pb.ENTRY_FILTER_PARENT_GONE if follows_parent else pb.ENTRY_FILTER_REPLY_NOT_FOLLOWED

    async def _block_filter(self, reader: int, head: tweet_pb2.TweetHead) -> Filter:
        """Returns the rule for a tweet that only a block hides from the reader. If the author blocks the reader,
        returns NOT_FOUND, as for a tweet that does not exist, so that the block stays secret."""
        people = [author for author in (head.author_id, head.retweet_of_author_id) if author]
        rules = await self._graph.GetVisibilityFilter(
            graph.GetVisibilityFilterRequest(user_id=reader, candidate_ids=people)
        )
        if head.author_id in rules.blocked_ids:
            return pb.ENTRY_FILTER_BLOCKED
        return pb.ENTRY_FILTER_NOT_FOUND if head.author_id in rules.blocked_by_ids else pb.ENTRY_FILTER_ORIGINAL_GONE

    async def _is_visible_to(self, reader: int, ids: Sequence[int], *, hide_muted: bool = False) -> bool:
        return bool(await self._hydrator.visible(reader, ids, 1, hide_muted=hide_muted))
