"""Caches responses together with the set of keys that they were computed from.

`services.platform.caching.read_tracking` records these keys; a cached response is valid until one of them changes.
"""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import Counter

from gateway_http.request import Response
from services.platform.caching.generational import GenerationalCache
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
        self._cache: GenerationalCache[CacheKey, _Entry] = GenerationalCache(max_bytes, _size)

    def get(self, key: CacheKey) -> tuple[Response, bytes] | None:
        """Returns the cached response and its entity tag; None if there is none, or if a key that it was computed from has changed."""
        entry = self._cache.get(key)
        if entry is None:
            _miss.inc()
            return None
        if not entry.read_set.is_current():
            self._cache.pop(key)
            _changed.inc()
            return None
        _hit.inc()
        return entry.response, entry.tag

    def store(self, key: CacheKey, response: Response, tag: bytes, read_set: ReadSet) -> None:
        """Caches a response. Does nothing if a key in `read_set`, the keys it was computed from, has changed already."""
        if len(response.body) <= MAX_BODY_BYTES and read_set.is_current():
            self._cache.put(key, _Entry(response, tag, read_set))


def _size(entry: _Entry) -> int:
    # The response also caches its gzipped body if that is at most half as large.
    return len(entry.response.body) * 3 // 2 + OVERHEAD_BYTES
