"""Ranks matching tweets by a sum of bounded parts, so that no single part decides alone."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence

from services.platform.ids.snowflake import timestamp_ms
from services.search.store import Hit

# Weights of the two main parts of a score, which are equal.
TEXT = 1.0
RECENCY = 1.0
# Weights of the boosts: the reader follows the author; the tweet is trending; a word of the query is a hashtag of the
# tweet. The first is the largest, because the text score of a long text can be a quarter of the text score of a
# one-word text, and the boost must make up for the difference.
FOLLOWED = 0.8
TRENDING = 0.5
HASHTAG = 0.3
# Half-life of recency in milliseconds: one day. After a week recency is below 0.01, so that old tweets are ranked by
# their text.
HALF_LIFE_MS = 24 * 3600 * 1000


def rank(
    hits: Sequence[Hit], followed: Container[int], trending: Mapping[int, float], now_ms: int
) -> list[tuple[float, int]]:
    """Returns (score, tweet id) of all hits, highest score first; of equal scores the newer tweet first.

    `followed` contains the ids of the authors whom the reader follows. `trending` has the strengths, from 0 to 1, of
    trending tweets by tweet id. `now_ms` is in Unix milliseconds. A hit without a text score, because the tweet is too
    new, gets the highest text score.
    """
    most = max((hit.score for hit in hits if hit.score is not None), default=0.0) or 1.0

    def scored(hit: Hit) -> float:
        fit = 1.0 if hit.score is None else hit.score / most
        return score(hit, fit, hit.author_id in followed, trending.get(hit.id, 0.0), now_ms)

    return sorted(((scored(hit), hit.id) for hit in hits), reverse=True)


def score(hit: Hit, fit: float, followed: bool, trending: float, now_ms: int) -> float:
    """Returns the score of one tweet, from 0 to the sum of the weights. `fit` is the text relevance and `trending` the
    strength of the trend, both from 0 to 1. `followed` is true if the reader follows the author.

    `now_ms` is in Unix milliseconds. A tweet with a later time in its id counts as posted now.
    """
    age_ms = max(now_ms - timestamp_ms(hit.id), 0)
    return (
        TEXT * fit
        + RECENCY * math.exp2(-age_ms / HALF_LIFE_MS)
        + FOLLOWED * followed
        + TRENDING * min(max(trending, 0.0), 1.0)
        + HASHTAG * hit.preferred
    )
