"""A page of serialized tweets as the response of an RPC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from roost.tweet.v1 import tweet_pb2

from services.platform.rpc.by_reference import ByReference


class TweetPage(ByReference):
    """A page of serialized tweets. Immutable. Hydration returns the same bytes object for a tweet until the tweet
    changes, so the gateway finds the JSON of a tweet by the identity of its bytes."""

    __slots__ = ("is_reused", "next_cursor", "partial", "tweets")

    wire_type = tweet_pb2.SerializedTweetPage

    def __init__(
        self, tweets: Sequence[bytes], next_cursor: str, *, partial: bool = False, is_reused: bool = False
    ) -> None:
        self.tweets = tweets
        self.next_cursor = next_cursor
        self.partial = partial
        self.is_reused = is_reused

    def SerializeToString(self) -> bytes:  # noqa: N802 (the name of Protobuf's method)
        """Returns the encoding of SerializedTweetPage."""
        return tweet_pb2.SerializedTweetPage(
            tweets=self.tweets, next_cursor=self.next_cursor, partial=self.partial
        ).SerializeToString()

    def as_response(self) -> tweet_pb2.SerializedTweetPage:
        """Returns this object under the type that the generated servicers declare. Callers use only its fields and
        `SerializeToString`."""
        return cast(tweet_pb2.SerializedTweetPage, self)
