"""Caches each response together with its read set: the keys of all data that the calls for the response read.

`services.platform.caching.read_tracking` records read sets. A cached response is valid until a key in its read set
changes.
"""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import Counter

from gateway_http.request import Response
from services.platform.caching.generational import GenerationalCache
from services.platform.caching.read_tracking import ReadSet

# Maximum size in bytes of each of the two generations of the cache: some 1,400 pages of a home timeline. If the young
# generation is full, the old one is evicted.
MAX_BYTES = 32 * 1024 * 1024
# Estimated memory in bytes of a cached response in addition to its body: read set, headers and dictionary entries.
OVERHEAD_BYTES = 4 * 1024
# Maximum size in bytes of a response body that is cached, so that one response does not evict hundreds of others. No
# page of the API is larger.
MAX_BODY_BYTES = 256 * 1024

CacheKey = tuple[int, bytes, bytes]

_lookups = Counter("roost_http_response_cache_lookups", "Look-ups in the response cache.", ("outcome",))
_hit, _changed, _miss = (_lookups.labels(outcome) for outcome in ("hit", "changed", "miss"))


class _Entry(NamedTuple):
    response: Response
    tag: bytes
    read_set: ReadSet


class ResponseCache:
    """Caches responses with status 200 by user id, raw path and query string. Holds at most 2 * `max_bytes` bytes."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._cache: GenerationalCache[CacheKey, _Entry] = GenerationalCache(max_bytes, _size)

    def get(self, key: CacheKey) -> tuple[Response, bytes] | None:
        """Returns the cached response and its entity tag; None if none is cached, or if a key in its read set has
        changed."""
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
        """Caches a response and its entity tag. Does nothing if the body is larger than MAX_BODY_BYTES, or if a key in
        `read_set` has changed already."""
        if len(response.body) <= MAX_BODY_BYTES and read_set.is_current():
            self._cache.put(key, _Entry(response, tag, read_set))


def _size(entry: _Entry) -> int:
    # A response keeps its gzipped body too if the gzipped body is at most half as large as the body.
    return len(entry.response.body) * 3 // 2 + OVERHEAD_BYTES
