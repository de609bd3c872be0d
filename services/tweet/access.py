"""Decides whether a user may act on a tweet, with tweets read from the tweet service's own store."""

from __future__ import annotations

from roost.tweet.v1 import tweet_pb2

from services.shared.hydration.hydrator import Hydrator
from services.shared.tweet_access import TweetAccess
from services.tweet.store import TweetStore


def access_to(store: TweetStore, hydrator: Hydrator) -> TweetAccess:
    """Returns the access rules for the tweets in `store`. `hydrator` decides which of them a reader may see."""

    async def find(tweet_id: int) -> tweet_pb2.TweetCore | None:
        cores = (await store.batch_get((tweet_id,))).cores
        return cores[0] if cores else None

    return TweetAccess(find, hydrator)
