"""ETag, If-None-Match and Cache-Control."""

from __future__ import annotations

import hashlib

# "At once" holds for our answers; an edge may keep a public copy this long.
PUBLIC = b"public, max-age=30, stale-while-revalidate=30"
PRIVATE = b"private, no-cache"
NO_STORE = b"no-store"


def etag(payload: bytes) -> bytes:
    """A weak tag of the payload: equal for equal answers, in every process."""
    # SHA-1 for speed, as a checksum: nobody gains by making two answers of ours collide.
    return b'W/"' + hashlib.sha1(payload, usedforsecurity=False).hexdigest()[:27].encode() + b'"'


def matches(if_none_match: bytes, tag: bytes) -> bool:
    """Whether the client already has the answer, by weak comparison."""
    if if_none_match == tag:
        return True
    if if_none_match.strip() == b"*":
        return True
    opaque = tag.removeprefix(b"W/")
    return any(one.strip().removeprefix(b"W/") == opaque for one in if_none_match.split(b","))
