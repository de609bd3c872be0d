"""Computes entity tags, compares them with If-None-Match, and defines the values of Cache-Control."""

from __future__ import annotations

import hashlib

# Values of Cache-Control. PUBLIC, for reads without a token: any cache may use the response for 30 s. PRIVATE, for
# reads with a token: only the client may cache it, and must revalidate it before each use. NO_STORE: for writes.
PUBLIC = b"public, max-age=30, stale-while-revalidate=30"
PRIVATE = b"private, no-cache"
NO_STORE = b"no-store"


def digest(payload: bytes) -> bytes:
    """Returns a digest of 20 bytes."""
    # SHA-1 is the fastest hash that suffices. An attacker who finds two payloads with the same tag gains nothing.
    return hashlib.sha1(payload, usedforsecurity=False).digest()


def etag(payload: bytes) -> bytes:
    """Returns a weak entity tag, computed from the payload alone: processes give equal payloads equal tags."""
    return b'W/"' + hashlib.sha1(payload, usedforsecurity=False).hexdigest()[:27].encode() + b'"'


def matches(if_none_match: bytes, tag: bytes) -> bool:
    """Returns whether the value of the header If-None-Match is `*` or contains `tag`, by weak comparison (RFC 9110,
    8.8.3.2)."""
    if if_none_match == tag:
        return True
    if if_none_match.strip() == b"*":
        return True
    opaque = tag.removeprefix(b"W/")
    return any(one.strip().removeprefix(b"W/") == opaque for one in if_none_match.split(b","))
