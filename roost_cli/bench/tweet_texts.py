"""Makes the texts of the tweets that `roost bench` posts."""

from __future__ import annotations

import random

# Number of words of a text. The mean length, 90 characters, is that of real tweets.
WORDS = range(8, 20)
# Share of texts with a hashtag: in the TweetEval data set, 39 % of real tweets have one.
HASHTAG_SHARE = 0.39
HASHTAGS = 500
_TEXT = (
    "the bus was late again and nobody knew why so we walked home through rain with two bags of fruit while your "
    "sister kept talking about that film from last summer which I never saw because tickets were gone before noon"
)
_WORDS = _TEXT.split()


class TweetTexts:
    """Makes different texts from a seed."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311 (must be reproducible)

    def next(self) -> str:
        """Returns a text of 8 to 19 words and sometimes a hashtag, which fits into a tweet."""
        words = self._chance.choices(_WORDS, k=self._chance.choice(WORDS))
        if self._chance.random() < HASHTAG_SHARE:
            words.append(f"#topic{self._chance.randrange(HASHTAGS)}")
        return " ".join(words)
