"""The cache of the JSON of serialised messages."""

from __future__ import annotations

from gateway_http.codec.fragments import FragmentCache


def test_fragment_cache_is_bounded_and_keeps_used_entries() -> None:
    encoded: list[bytes] = []

    def encode(data: bytes) -> bytes:
        encoded.append(data)
        return b'"%s"' % data

    cache = FragmentCache(encode, entries=10)
    for number in range(95):
        cache.one(b"hot")
        cache.one(b"%d" % number)
    assert encoded.count(b"hot") == 1
    assert len(encoded) == 96
    assert len(cache._by_bytes) <= 20


def test_fragment_cache_finds_objects_by_identity_and_equal_ones_by_bytes() -> None:
    encoded: list[bytes] = []

    def encode(data: bytes) -> bytes:
        encoded.append(data)
        return b'"%s"' % data

    cache = FragmentCache(encode, entries=10)
    first, equal = b"".join((b"tw", b"eet")), b"".join((b"tw", b"eet"))
    assert first is not equal
    for _ in range(2):
        assert [fragment.data for fragment in cache.all_by_identity([first, equal])] == [first, equal]
        assert cache.all_by_identity([equal])[0].data is equal
    assert encoded == [b"tweet"]


def test_fragment_cache_never_confuses_objects_whose_ids_were_used_before() -> None:
    cache = FragmentCache(lambda data: b'"%s"' % data, entries=3)
    for number in range(1_000):
        # The object is freed in each turn, so that its id is used again, unless the cache holds it.
        data = b"tweet %d" % number
        assert cache.all_by_identity([data])[0].data == data
