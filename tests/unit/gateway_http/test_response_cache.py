from __future__ import annotations

from gateway_http.request import Response
from gateway_http.response_cache import MAX_BODY_BYTES, OVERHEAD_BYTES, Remembered
from services.platform.caching.read_tracking import Reading, Revisions, reading

KEY = (1, b"/v1/timelines/home", b"")


def _read(owner: Revisions, *keys: int) -> Reading:
    with reading() as seen:
        owner.read(keys or (1,))
    return seen


def _answer(body: bytes = b"{}") -> Response:
    return Response(200, (), body)


def test_an_answer_is_given_again_until_something_changes() -> None:
    owner, remembered, answer = Revisions(), Remembered(), _answer()
    assert remembered.find(KEY) is None
    remembered.keep(KEY, answer, b"tag", _read(owner))
    assert remembered.find(KEY) == (answer, b"tag")
    owner.changed((1,))
    assert remembered.find(KEY) is None


def test_each_user_path_and_query_has_its_own() -> None:
    remembered = Remembered()
    remembered.keep(KEY, _answer(), b"tag", _read(Revisions()))
    for other in ((2, *KEY[1:]), (1, b"/timeline", b""), (*KEY[:2], b"page_size=2")):
        assert remembered.find(other) is None


def test_what_changed_while_it_was_made_is_not_kept() -> None:
    owner, remembered = Revisions(), Remembered()
    seen = _read(owner)
    owner.changed((1,))
    remembered.keep(KEY, _answer(), b"tag", seen)
    assert remembered.find(KEY) is None


def test_a_body_too_large_is_not_kept() -> None:
    remembered = Remembered()
    remembered.keep(KEY, _answer(b"x" * (MAX_BODY_BYTES + 1)), b"tag", _read(Revisions()))
    assert remembered.find(KEY) is None


def test_bytes_are_bounded_and_what_is_used_stays() -> None:
    owner = Revisions()
    size = 1_000 + OVERHEAD_BYTES
    remembered = Remembered(max_bytes=10 * size)
    for user in range(1, 101):
        remembered.keep((user, b"/", b""), _answer(b"x" * 1_000), b"tag", _read(owner))
        assert remembered.find((1, b"/", b"")) is not None
        assert len(remembered._young) <= 11
        assert len(remembered._old) <= 11
    assert remembered.find((2, b"/", b"")) is None
    assert remembered.find((100, b"/", b"")) is not None
