"""The fragments of a joined tweet, as bytes: concatenation is merge in Protobuf's wire format, so nothing is built field by field.

Each fragment has one owner and its own field numbers: core (tweet), author (identity), nested tweets, metrics, viewer.
"""

from __future__ import annotations

from roost.tweet.v1 import tweet_pb2


def varint(value: int) -> bytes:
    """A non-negative number below 2^64 as on the wire."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def framed(tag: bytes, data: bytes) -> bytes:
    """A length-delimited field: its tag as on the wire, the length, the data."""
    return tag + varint(len(data)) + data


def _tag(field: str) -> bytes:
    return varint(tweet_pb2.Tweet.DESCRIPTOR.fields_by_name[field].number << 3 | 2)


_AUTHOR = _tag("author")
RETWEETED = _tag("retweeted_tweet")
QUOTED = _tag("quoted_tweet")
_METRICS = _tag("metrics")
_VIEWER = _tag("viewer")
# Longer than any reference: joining takes a table's entry, not a loop.
_AUTHOR_PREFIX = [_AUTHOR + varint(length) for length in range(1_024)]

# A tweet that nobody has counted anything of still shows its zeros.
NO_METRICS = framed(_METRICS, b"")
# By liked + 2 × retweeted + 4 × bookmarked; nothing where nothing is true.
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
    """A serialised UserRef as the bytes to append to a core."""
    return _AUTHOR_PREFIX[len(ref)] + ref if len(ref) < len(_AUTHOR_PREFIX) else framed(_AUTHOR, ref)


def metrics_fragment(likes: int, retweets: int, replies: int, quotes: int, bookmarks: int) -> bytes:
    """Counts as the bytes to append to a core."""
    counts = (likes, retweets, replies, quotes, bookmarks)
    data = b"".join(varint(number << 3) + varint(count) for number, count in enumerate(counts, 1) if count)
    return framed(_METRICS, data) if data else NO_METRICS


def tombstone(tweet_id: int, reply_to_id: int = 0) -> bytes:
    """A serialised Tweet that holds its id, `deleted`, and where given the place in its thread."""
    data = b"\x08" + varint(tweet_id) + b"\x70\x01"
    return data + b"\x40" + varint(reply_to_id) if reply_to_id else data
