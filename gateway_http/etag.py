"""ETag, If-None-Match and Cache-Control."""

from __future__ import annotations

import hashlib

# Public responses may be cached for 30 s by a shared cache; private ones must be revalidated each time.
PUBLIC = b"public, max-age=30, stale-while-revalidate=30"
PRIVATE = b"private, no-cache"
NO_STORE = b"no-store"


def etag(payload: bytes) -> bytes:
    """Returns a weak entity tag of the payload: equal payloads have equal tags in every process."""
    # SHA-1 is the fastest sufficient checksum; an attacker gains nothing from two responses with one tag.
    return b'W/"' + hashlib.sha1(payload, usedforsecurity=False).hexdigest()[:27].encode() + b'"'


def matches(if_none_match: bytes, tag: bytes) -> bool:
    """Returns whether the header If-None-Match contains `tag`, by weak comparison, or is `*`."""
    if if_none_match == tag:
        return True
    if if_none_match.strip() == b"*":
        return True
    opaque = tag.removeprefix(b"W/")
    return any(one.strip().removeprefix(b"W/") == opaque for one in if_none_match.split(b","))
