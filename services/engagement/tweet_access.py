"""Reads from the tweet service the tweets to which reactions refer."""

from __future__ import annotations

from typing import Any

import grpc.aio
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.shared.hydration.hydrator import Hydrator
from services.shared.tweet_access import TweetAccess


def access_over(channel: grpc.aio.Channel, hydrator: Hydrator) -> TweetAccess:
    """Returns a TweetAccess that reads tweets from the tweet service through `channel`."""
    # Any, because the types of the generated stubs accept only grpc.aio calls, and the in-process channel returns
    # others.
    get_cores: Any = TweetServiceStub(channel).BatchGetTweetCores

    async def find(tweet_id: int) -> tweet_pb2.TweetCore | None:
        cores = (await get_cores(tweet.BatchGetTweetCoresRequest(ids=[tweet_id]))).cores
        return cores[0] if cores else None

    return TweetAccess(find, hydrator)
