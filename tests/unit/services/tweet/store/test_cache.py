"""The caches of the embedded store: bounded, and never older than a committed write."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from services.tweet.store.cache import CACHED_IDS, AuthorIds, ShardedVersions


def test_sharded_versions_change_with_advance() -> None:
    epochs = ShardedVersions()
    before = epochs.now(1 << 40)
    epochs.advance((1 << 40) + 1)
    assert epochs.now(1 << 40) == before
    epochs.advance(1 << 40)
    assert epochs.now(1 << 40) != before


def test_sharded_versions_successive_ids_use_different_counters() -> None:
    epochs = ShardedVersions()
    for milliseconds in range(1, 500):
        epochs.advance(milliseconds << 22)
    assert epochs.now(500 << 22) == 0


@given(
    st.sets(st.integers(1, 60)),
    st.lists(st.tuples(st.sampled_from(["add", "discard"]), st.integers(1, 60)), max_size=30),
    st.integers(0, 20),
    st.integers(0, 61),
    st.integers(1, 10),
)
def test_author_ids_newest_is_exact_or_none(
    older: set[int], steps: list[tuple[str, int]], cached: int, before_id: int, limit: int
) -> None:
    ascending = sorted(older)
    newest = ascending[-cached:] if cached else []
    known = AuthorIds(array("q", newest), complete=len(newest) == len(ascending))
    truth = set(older)
    for step, tweet_id in steps:
        getattr(known, step)(tweet_id)
        getattr(truth, step)(tweet_id)
    found = known.newest(before_id, limit)
    expected = sorted((i for i in truth if not before_id or i < before_id), reverse=True)[:limit]
    assert found is None or found.tolist() == expected
    assert found is not None or not known.complete


def test_author_ids_beyond_bound_are_trimmed() -> None:
    known = AuthorIds(array("q"), complete=True)
    for tweet_id in range(1, 5_000):
        known.add(tweet_id)
        assert CACHED_IDS <= len(known.ids) <= 2 * CACHED_IDS or known.complete
    found = known.newest(0, CACHED_IDS)
    assert found is not None
    assert found.tolist() == list(range(4_999, 4_999 - CACHED_IDS, -1))
