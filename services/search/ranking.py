"""Ranks matching tweets by a sum of bounded parts, so that no single part decides alone."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence

from services.platform.ids.snowflake import timestamp_ms
from services.search.store import Hit

# The weights of text relevance and recency, which are equal.
TEXT = 1.0
RECENCY = 1.0
# The weights of three boosts: the reader follows the author; the tweet is trending; the tweet has a word of the query
# as a hashtag. Followed authors weigh most: text relevance alone can make a longer text score a quarter of a one-word
# text, and the boost must outweigh that.
FOLLOWED = 0.8
TRENDING = 0.5
HASHTAG = 0.3
# Recency halves every day. A tweet of last week with the best text still ranks above one of last week with a weaker
# text.
HALF_LIFE_MS = 24 * 3600 * 1000


def rank(
    hits: Sequence[Hit], followed: Container[int], trending: Mapping[int, float], now_ms: int
) -> list[tuple[float, int]]:
    """Returns (score, tweet id) of all hits, highest score first; of equal scores the newer tweet first.

    `followed` holds author ids. `trending` maps tweet ids to a strength from 0 to 1; other tweets have 0. A hit
    without a text score (not committed to the index yet) is ranked as if its text were the best match.
    """
    most = max((hit.score for hit in hits if hit.score is not None), default=0.0) or 1.0

    def scored(hit: Hit) -> float:
        fit = 1.0 if hit.score is None else hit.score / most
        return score(hit, fit, hit.author_id in followed, trending.get(hit.id, 0.0), now_ms)

    return sorted(((scored(hit), hit.id) for hit in hits), reverse=True)


def score(hit: Hit, fit: float, followed: bool, trending: float, now_ms: int) -> float:
    """Returns the score of one tweet, from 0 to the sum of the weights. `fit` is the text relevance from 0 to 1.

    `now_ms` is in Unix milliseconds; a tweet whose id is ahead of it counts as new.
    """
    age_ms = max(now_ms - timestamp_ms(hit.id), 0)
    return (
        TEXT * fit
        + RECENCY * math.exp2(-age_ms / HALF_LIFE_MS)
        + FOLLOWED * followed
        + TRENDING * min(max(trending, 0.0), 1.0)
        + HASHTAG * hit.preferred
    )
