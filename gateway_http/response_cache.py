"""Answers that may be given again, because nothing that they were made of has changed (`services.platform.caching.read_tracking`)."""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import Counter

from gateway_http.request import Response
from services.platform.caching.read_tracking import Reading

# What is kept in each of two halves: some 1,400 home pages. The older half goes when the younger is full.
MAX_BYTES = 32 * 1024 * 1024
# What an answer costs beside its body: what it was made of, headers, and its places.
OVERHEAD_BYTES = 4 * 1024
# Nobody's page is larger; one that is would push out hundreds.
MAX_BODY_BYTES = 256 * 1024

Key = tuple[int, bytes, bytes]

_looked = Counter("roost_http_remembered", "Answers looked for among those given before.", ("outcome",))
_hit, _changed, _unknown = (_looked.labels(outcome) for outcome in ("given", "changed", "unknown"))


class _Kept(NamedTuple):
    response: Response
    tag: bytes
    reading: Reading


class ResponseCache:
    """Answers of status 200 by (user id, path, query), bounded by their bytes."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._young: dict[Key, _Kept] = {}
        self._old: dict[Key, _Kept] = {}

    def find(self, key: Key) -> tuple[Response, bytes] | None:
        """The answer and its entity tag, if it still holds."""
        kept = self._young.get(key)
        if kept is None and (kept := self._old.pop(key, None)) is not None:
            self._put(key, kept)
        if kept is None:
            _unknown.inc()
            return None
        if not kept.reading.holds():
            self._young.pop(key)
            self._bytes -= _size(kept)
            _changed.inc()
            return None
        _hit.inc()
        return kept.response, kept.tag

    def keep(self, key: Key, response: Response, tag: bytes, reading: Reading) -> None:
        """Keeps an answer that was made of what `reading` saw, if that still stands."""
        if len(response.body) <= MAX_BODY_BYTES and reading.holds():
            self._put(key, _Kept(response, tag, reading))

    def _put(self, key: Key, kept: _Kept) -> None:
        if (before := self._young.get(key)) is not None:
            self._bytes -= _size(before)
        if self._bytes >= self._max_bytes:
            self._old, self._young, self._bytes = self._young, {}, 0
        self._young[key] = kept
        self._bytes += _size(kept)


def _size(kept: _Kept) -> int:
    # With its compressed form, which is kept if it is at most half as large.
    return len(kept.response.body) * 3 // 2 + OVERHEAD_BYTES
