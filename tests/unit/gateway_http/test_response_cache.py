from __future__ import annotations

from gateway_http.request import Response
from gateway_http.response_cache import MAX_BODY_BYTES, OVERHEAD_BYTES, ResponseCache
from services.platform.caching.read_tracking import ChangeTracker, ReadSet, track_reads

KEY = (1, b"/v1/timelines/home", b"")


def _read(owner: ChangeTracker, *keys: int) -> ReadSet:
    with track_reads() as seen:
        owner.read(keys or (1,))
    return seen


def _answer(body: bytes = b"{}") -> Response:
    return Response(200, (), body)


def test_cached_response_is_returned_until_dependency_changes() -> None:
    owner, response_cache, answer = ChangeTracker(), ResponseCache(), _answer()
    assert response_cache.get(KEY) is None
    response_cache.store(KEY, answer, b"tag", _read(owner))
    assert response_cache.get(KEY) == (answer, b"tag")
    owner.changed((1,))
    assert response_cache.get(KEY) is None


def test_cached_response_is_keyed_by_user_path_and_query() -> None:
    response_cache = ResponseCache()
    response_cache.store(KEY, _answer(), b"tag", _read(ChangeTracker()))
    for other in ((2, *KEY[1:]), (1, b"/timeline", b""), (*KEY[:2], b"page_size=2")):
        assert response_cache.get(other) is None


def test_store_response_with_changed_dependency_is_skipped() -> None:
    owner, response_cache = ChangeTracker(), ResponseCache()
    seen = _read(owner)
    owner.changed((1,))
    response_cache.store(KEY, _answer(), b"tag", seen)
    assert response_cache.get(KEY) is None


def test_store_response_with_large_body_is_skipped() -> None:
    response_cache = ResponseCache()
    response_cache.store(KEY, _answer(b"x" * (MAX_BODY_BYTES + 1)), b"tag", _read(ChangeTracker()))
    assert response_cache.get(KEY) is None


def test_response_cache_is_bounded_and_keeps_used_entries() -> None:
    owner = ChangeTracker()
    size = 1_000 + OVERHEAD_BYTES
    response_cache = ResponseCache(max_bytes=10 * size)
    for user in range(1, 101):
        response_cache.store((user, b"/", b""), _answer(b"x" * 1_000), b"tag", _read(owner))
        assert response_cache.get((1, b"/", b"")) is not None
        assert len(response_cache._cache) <= 22
    assert response_cache.get((2, b"/", b"")) is None
    assert response_cache.get((100, b"/", b"")) is not None
