"""Makes the texts of the tweets that `roost bench` posts."""

from __future__ import annotations

import itertools
import random

# Number of words of a text. The mean length, 80 characters, is about that of real tweets.
WORDS = range(8, 20)
# Number of different words. Their frequencies follow Zipf's law, as in natural languages: the word with rank r is r times
# rarer than the first. So a search finds as many tweets as in real ones.
VOCABULARY = 5_000
# Share of texts with a hashtag: in the TweetEval data set, 39 % of real tweets have one.
HASHTAG_SHARE = 0.39
HASHTAGS = 500
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def _vocabulary() -> list[str]:
    """Returns VOCABULARY different words of two to three syllables, such as `bade` or `lokuni`."""
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    words = (one + other + last for last in ("", *syllables) for one in syllables for other in syllables)
    return list(itertools.islice(words, VOCABULARY))


_WORDS = _vocabulary()
_CUMULATIVE = list(itertools.accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))


class TweetTexts:
    """Makes different texts from a seed."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311 (must be reproducible)

    def next(self) -> str:
        """Returns a text of 8 to 19 words and sometimes a hashtag, which fits into a tweet."""
        words = self._chance.choices(_WORDS, cum_weights=_CUMULATIVE, k=self._chance.choice(WORDS))
        if self._chance.random() < HASHTAG_SHARE:
            words.append(f"#topic{self._chance.randrange(HASHTAGS)}")
        return " ".join(words)
