"""Builds the fragments of a hydrated tweet as bytes. In Protobuf's wire format, concatenated messages are the merged
message, so a tweet is assembled without building a message object.

Each fragment has one owner and its own field numbers: core (tweet), author (identity), nested tweets, metrics and
viewer (engagement).
"""

from __future__ import annotations

from roost.tweet.v1 import tweet_pb2


def varint(value: int) -> bytes:
    """Encodes a non-negative number below 2^64 as a Protobuf varint."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def framed(tag: bytes, data: bytes) -> bytes:
    """Returns a length-delimited field: encoded tag, length, data."""
    return tag + varint(len(data)) + data


def _tag(field: str) -> bytes:
    return varint(tweet_pb2.Tweet.DESCRIPTOR.fields_by_name[field].number << 3 | 2)


_AUTHOR = _tag("author")
RETWEETED = _tag("retweeted_tweet")
QUOTED = _tag("quoted_tweet")
_METRICS = _tag("metrics")
_VIEWER = _tag("viewer")
# Prefixes (tag and length) of author fragments by length. Nearly every UserRef is shorter than 1,024 bytes, so
# hydration looks the prefix up instead of encoding it.
_AUTHOR_PREFIX = [_AUTHOR + varint(length) for length in range(1_024)]

# A tweet without counts still has a `metrics` field, with zeros.
NO_METRICS = framed(_METRICS, b"")
# The fragments of all viewer states. The index is liked + 2 × retweeted + 4 × bookmarked; the fragment of index 0 is
# empty.
VIEWER = [
    framed(
        _VIEWER,
        tweet_pb2.TweetViewer(liked=bool(i & 1), retweeted=bool(i & 2), bookmarked=bool(i & 4)).SerializeToString(),
    )
    if i
    else b""
    for i in range(8)
]


def author_fragment(ref: bytes) -> bytes:
    """Returns the field `author` of a tweet, from a serialized UserRef."""
    return _AUTHOR_PREFIX[len(ref)] + ref if len(ref) < len(_AUTHOR_PREFIX) else framed(_AUTHOR, ref)


def metrics_fragment(likes: int, retweets: int, replies: int, quotes: int, bookmarks: int) -> bytes:
    """Returns the field `metrics` of a tweet."""
    counts = (likes, retweets, replies, quotes, bookmarks)
    data = b"".join(varint(number << 3) + varint(count) for number, count in enumerate(counts, 1) if count)
    return framed(_METRICS, data) if data else NO_METRICS


def tombstone(tweet_id: int, reply_to_id: int = 0) -> bytes:
    """Returns a serialized Tweet with its id, `deleted` and, if not 0, the id of the tweet that it replies to."""
    data = b"\x08" + varint(tweet_id) + b"\x70\x01"
    return data + b"\x40" + varint(reply_to_id) if reply_to_id else data
