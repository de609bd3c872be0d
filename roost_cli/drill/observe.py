"""Reads the data that a drill wrote: with scans as the operator, and through the API as the users who wrote it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import grpc
from roost.fanout.v1 import fanout_service_pb2, fanout_service_pb2_grpc
from roost.graph.v1 import graph_service_pb2, graph_service_pb2_grpc
from roost.tweet.v1 import tweet_pb2, tweet_service_pb2, tweet_service_pb2_grpc

from roost_cli.drill.history import History, Kind, Observed, ObservedTweet
from roost_cli.load.loader import Operator
from roost_cli.rate_control import batches, deadline_s, for_each
from roost_cli.tokens import TokenCache
from roost_cli.verify.command import SCAN_EDGES, SCAN_TWEETS

# Number of tweets per BatchGetTweets call and per page: the maximum of both.
PAGE_SIZE = 100
# Number of newest tweets whose delivery receipts are checked. Fan-out stores the receipts of the last 10,000 tweets.
RECEIPTS = 9_000
CONCURRENCY = 16

BATCH_GET = "/roost.tweet.v1.TweetService/BatchGetTweets"
GET_STATUS = "/roost.fanout.v1.FanoutService/GetFanoutStatus"
LIST_USER = "/roost.tweet.v1.TweetService/ListUserTweets"


async def observe(
    channel: grpc.aio.Channel, operator: Operator, actors: TokenCache, users: Sequence[int], history: History
) -> Observed:
    """Returns all tweets and follows of the mesh, and of each user in `users` the likes in `history` and the user
    timeline.

    Tweets and follows are read with scans; likes and user timelines are read as the user. Raises AioRpcError if a call
    fails.
    """
    found = Observed()
    tweets = tweet_service_pb2_grpc.TweetServiceStub(channel)
    scan = tweet_service_pb2.ScanTweetsRequest()
    async for page in tweets.ScanTweets(scan, metadata=operator.metadata, timeout=deadline_s(SCAN_TWEETS)):
        for core in page.cores:
            head = core.head
            text = tweet_pb2.Tweet.FromString(core.core).text
            found.tweets[head.id] = ObservedTweet(head.author_id, text, head.deleted, head.retweet_of_id)
    graph = graph_service_pb2_grpc.GraphServiceStub(channel)
    follows = graph_service_pb2.ScanEdgesRequest(kind=graph_service_pb2.EDGE_KIND_FOLLOW)
    async for edges in graph.ScanEdges(follows, metadata=operator.metadata, timeout=deadline_s(SCAN_EDGES)):
        found.follows.update((edge.from_id, edge.to_id) for edge in edges.edges)
    await asyncio.gather(*(_read_as(tweets, actors, user, history, found) for user in users))
    return found


async def without_receipt(channel: grpc.aio.Channel, operator: Operator, tweet_ids: Iterable[int]) -> list[int]:
    """Returns the tweets without a delivery receipt of fan-out. Checks only the RECEIPTS greatest ids of `tweet_ids`.

    After a replay of the whole event log, these are the tweets whose event is not in the event log. Raises AioRpcError
    if a call fails.
    """
    stub = fanout_service_pb2_grpc.FanoutServiceStub(channel)
    missing: list[int] = []

    async def look(tweet_id: int) -> None:
        request = fanout_service_pb2.GetFanoutStatusRequest(tweet_id=tweet_id)
        try:
            await stub.GetFanoutStatus(request, metadata=operator.metadata, timeout=deadline_s(GET_STATUS))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            missing.append(tweet_id)

    await for_each(sorted(tweet_ids)[-RECEIPTS:], look, concurrency=CONCURRENCY)
    return missing


async def _read_as(
    tweets: tweet_service_pb2_grpc.TweetServiceStub, actors: TokenCache, user: int, history: History, found: Observed
) -> None:
    metadata = await actors.act_as(user)
    for ids in batches(history.subjects(Kind.LIKE, user), PAGE_SIZE):
        request = tweet_service_pb2.BatchGetTweetsRequest(ids=ids)
        answer = await tweets.BatchGetTweets(request, metadata=metadata, timeout=deadline_s(BATCH_GET))
        found.likes.update((user, tweet.id) for tweet in answer.tweets if tweet.viewer.liked)
    listed: list[int] = []
    cursor = ""
    while True:
        wanted = tweet_service_pb2.ListUserTweetsRequest(
            user_id=user, page_size=PAGE_SIZE, cursor=cursor, exclude=[tweet_service_pb2.TWEET_KIND_RETWEETS]
        )
        page = await tweets.ListUserTweets(wanted, metadata=metadata, timeout=deadline_s(LIST_USER))
        listed.extend(tweet.id for tweet in page.tweets)
        cursor = page.next_cursor
        if not cursor:
            break
    found.listed[user] = listed
