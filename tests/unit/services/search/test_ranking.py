"""Ranking: the parts of a score are bounded and none decides alone."""

from __future__ import annotations

import pytest

from services.platform.ids.snowflake import EPOCH_MS, first_id_at
from services.search.ranking import HALF_LIFE_MS, rank, score
from services.search.store import Hit

NOW_MS = EPOCH_MS + 90 * HALF_LIFE_MS


def hit(age_ms: int = 0, fit: float = 0.5, author: int = 1, *, preferred: bool = False) -> Hit:
    return Hit(first_id_at(NOW_MS - age_ms), author, fit, preferred)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (hit(fit=0.9), hit(age_ms=1, fit=0.5)),
        (hit(), hit(age_ms=HALF_LIFE_MS)),
        (hit(age_ms=2, author=7), hit()),
        (hit(age_ms=2, preferred=True), hit()),
        # A long text of a followed author ranks before a one-word text of another author.
        (hit(age_ms=2, fit=0.26, author=7), hit(fit=1.0)),
        # A good match of last week ranks before a poor match of today.
        (hit(age_ms=HALF_LIFE_MS, fit=1.0), hit(fit=0.3)),
    ],
)
def test_rank_hit_pairs_better_first(better: Hit, worse: Hit) -> None:
    assert [key for _, key in rank([worse, better], {7}, {}, NOW_MS)] == [better.id, worse.id]


def test_rank_trending_boost_is_bounded() -> None:
    plain, trending = hit(age_ms=2), hit(age_ms=1)
    assert [key for _, key in rank([plain, trending], (), {plain.id: 1.0}, NOW_MS)] == [plain.id, trending.id]
    assert score(plain, 0.5, False, 99.0, NOW_MS) == score(plain, 0.5, False, 1.0, NOW_MS)


def test_rank_new_tweet_with_best_text_beats_boosts() -> None:
    fitting, boosted = hit(fit=1.0), hit(age_ms=30 * HALF_LIFE_MS, fit=0.1, author=7, preferred=True)
    assert rank([boosted, fitting], {7}, {boosted.id: 1.0}, NOW_MS)[0][1] == fitting.id


def test_score_id_ahead_of_clock_counts_as_new() -> None:
    assert score(hit(age_ms=-5_000), 0.5, False, 0.0, NOW_MS) == score(hit(), 0.5, False, 0.0, NOW_MS)
