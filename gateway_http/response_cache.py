"""Caches responses together with the set of keys that they were computed from.

`services.platform.caching.read_tracking` records these keys; a cached response is valid until one of them changes.
"""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import Counter

from gateway_http.request import Response
from services.platform.caching.read_tracking import ReadSet

# Bytes in each of two generations: some 1,400 pages of a home timeline. The old generation is evicted when the young one is full.
MAX_BYTES = 32 * 1024 * 1024
# Memory of an entry beside its body: the read set, the headers and the dictionary entries.
OVERHEAD_BYTES = 4 * 1024
# Larger responses are not cached: one would evict hundreds. No page of the API is larger.
MAX_BODY_BYTES = 256 * 1024

CacheKey = tuple[int, bytes, bytes]

_lookups = Counter("roost_http_response_cache_lookups", "Look-ups in the response cache.", ("outcome",))
_hit, _changed, _miss = (_lookups.labels(outcome) for outcome in ("hit", "changed", "miss"))


class _Entry(NamedTuple):
    response: Response
    tag: bytes
    read_set: ReadSet


class ResponseCache:
    """Responses of status 200 by (user id, raw path, query string), at most 2 * `max_bytes` of them."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._young: dict[CacheKey, _Entry] = {}
        self._old: dict[CacheKey, _Entry] = {}

    def get(self, key: CacheKey) -> tuple[Response, bytes] | None:
        """Returns the cached response and its entity tag; None if there is none, or if a key that it was computed from has changed."""
        entry = self._young.get(key)
        if entry is None and (entry := self._old.pop(key, None)) is not None:
            self._put(key, entry)
        if entry is None:
            _miss.inc()
            return None
        if not entry.read_set.is_current():
            self._young.pop(key)
            self._bytes -= _size(entry)
            _changed.inc()
            return None
        _hit.inc()
        return entry.response, entry.tag

    def store(self, key: CacheKey, response: Response, tag: bytes, read_set: ReadSet) -> None:
        """Caches a response. Does nothing if a key in `read_set`, the keys it was computed from, has changed already."""
        if len(response.body) <= MAX_BODY_BYTES and read_set.is_current():
            self._put(key, _Entry(response, tag, read_set))

    def _put(self, key: CacheKey, entry: _Entry) -> None:
        if (before := self._young.get(key)) is not None:
            self._bytes -= _size(before)
        if self._bytes >= self._max_bytes:
            self._old, self._young, self._bytes = self._young, {}, 0
        self._young[key] = entry
        self._bytes += _size(entry)


def _size(entry: _Entry) -> int:
    # The response also caches its gzipped body if that is at most half as large.
    return len(entry.response.body) * 3 // 2 + OVERHEAD_BYTES
