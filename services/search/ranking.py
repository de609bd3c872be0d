"""How matching tweets are ordered where the best come first: a sum of bounded parts, so that no single one decides alone."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence

from services.platform.ids.snowflake import timestamp_ms
from services.search.store import Hit

# How well the text fits, and how new the tweet is, weigh the same.
TEXT = 1.0
RECENCY = 1.0
# What lifts a tweet among others that fit: an author whom the reader follows, people acting upon it now, a word asked for as its hashtag.
# People followed weigh most: a longer text alone fits down to a quarter as well as a bare word, and must not hide them.
FOLLOWED = 0.8
TRENDING = 0.5
HASHTAG = 0.3
# News are old after a day, yet last week's best answer still stands above last week's second best.
HALF_LIFE_MS = 24 * 3600 * 1000


def rank(
    hits: Sequence[Hit], followed: Container[int], trending: Mapping[int, float], now_ms: int
) -> list[tuple[float, int]]:
    """(score, tweet id), best first; of equals the newer first. `trending` gives tweets a strength from 0 to 1.

    What is too new to be compared fits as well as the best.
    """
    most = max((hit.score for hit in hits if hit.score is not None), default=0.0) or 1.0

    def scored(hit: Hit) -> float:
        fit = 1.0 if hit.score is None else hit.score / most
        return score(hit, fit, hit.author_id in followed, trending.get(hit.id, 0.0), now_ms)

    return sorted(((scored(hit), hit.id) for hit in hits), reverse=True)


def score(hit: Hit, fit: float, followed: bool, trending: float, now_ms: int) -> float:
    """One tweet's score, from 0 to the sum of the weights, of how well its text fits (from 0 to 1) and the rest. A text that fits
    twice as well beats no boost of everything else."""
    age_ms = max(now_ms - timestamp_ms(hit.id), 0)
    return (
        TEXT * fit
        + RECENCY * math.exp2(-age_ms / HALF_LIFE_MS)
        + FOLLOWED * followed
        + TRENDING * min(max(trending, 0.0), 1.0)
        + HASHTAG * hit.preferred
    )
