"""Tests the results that users expect in a small fixed corpus, the same on every backend.

Each question names exactly what matches, and where that is decided, what comes first among the best.
"""

from __future__ import annotations

import pytest
from roost.tweet.v1 import tweet_pb2

from services.platform.ids.snowflake import EPOCH_MS, first_id_at
from services.search.consumer import tweet_change
from services.search.query import hashtag_term, parse
from services.search.ranking import HALF_LIFE_MS, rank
from services.search.store import Query
from tests.contract.search.conftest import Opened

ANN, BOB, CAT = 1, 2, 3
NOW_MS = EPOCH_MS + 300 * HALF_LIFE_MS

# Name, author, age in days, text, hashtags, mentions.
CORPUS = [
    ("sourdough", ANN, 40, "My sourdough starter is alive again! #baking", ["baking"], []),
    ("bread", BOB, 20, "Bread, bread and more bread today", [], []),
    (
        "breads",
        BOB,
        9,
        "I walked along the river, met old friends, and we talked for hours, mostly about bread",
        [],
        [],
    ),
    ("starter", CAT, 3, "@ann how do you feed your starter? Mine smells odd", [], ["ann"]),
    ("kickoff", CAT, 2, "The starter gun was fired and the race is on #running #berlin", ["running", "berlin"], []),
    ("berlin", ANN, 1, "Café in Berlin-Kreuzberg with the best Brötchen", [], []),
    ("tokyo", BOB, 1, "東京タワーの夜景 #東京", ["東京"], []),
    ("running", ANN, 0, "Not running today. Baking bread instead!", [], []),
]

MATCHES = [
    ("bread", {"bread", "breads", "running"}),
    ("Bread TODAY", {"bread", "running"}),
    ("starter", {"sourdough", "starter", "kickoff"}),
    ('"your starter"', {"starter"}),
    ('"starter your"', set()),
    ("#baking", {"sourdough"}),
    ("baking", {"sourdough", "running"}),
    ("@ann", {"starter"}),
    ("ann", {"starter"}),
    ("brotchen", {"berlin"}),
    ("BRÖTCHEN cafe", {"berlin"}),
    ("kreuzberg", {"berlin"}),
    ("berlin-kreuzberg", {"berlin"}),
    ("kreuzberg-berlin", set()),
    ("東京", {"tokyo"}),
    ("夜景", {"tokyo"}),
    ("景夜", set()),
    ("#東京 タワー", {"tokyo"}),
    ("bre", set()),
    ("bread*", {"bread", "breads", "running"}),
    ("race running", {"kickoff"}),
]

# Followed authors, trending tweets, and the tweet that ranks first.
BEST = [
    ("bread", (), (), "running"),
    ("running", (), (), "running"),
    ("starter", (), (), "kickoff"),
    # The searched word as a hashtag.
    ("berlin", (), (), "berlin"),
    ("berlin", (CAT,), (), "kickoff"),
    ("starter", (), ("starter",), "starter"),
]

IDS = {name: first_id_at(NOW_MS - age * HALF_LIFE_MS) + place for place, (name, _, age, *_) in enumerate(CORPUS)}
NAMES = {tweet_id: name for name, tweet_id in IDS.items()}


def cores() -> list[tweet_pb2.TweetCore]:
    made = []
    for name, author, _, text, tags, mentions in CORPUS:
        entities = tweet_pb2.Entities(
            hashtags=[tweet_pb2.TagEntity(tag=tag) for tag in tags],
            mentions=[tweet_pb2.MentionEntity(username=username) for username in mentions],
        )
        body = tweet_pb2.Tweet(id=IDS[name], author_id=author, text=text, entities=entities)
        head = tweet_pb2.TweetHead(id=IDS[name], author_id=author)
        made.append(tweet_pb2.TweetCore(head=head, core=body.SerializeToString()))
    return made


@pytest.fixture
async def corpus(opened: Opened) -> Opened:
    await opened.apply(*map(tweet_change, cores()))
    await opened.commit()
    return opened


@pytest.mark.parametrize(("text", "names"), MATCHES)
async def test_newest_corpus_query_returns_expected_tweets(corpus: Opened, text: str, names: set[str]) -> None:
    found = [NAMES[tweet_id] for tweet_id in await corpus.newest(text)]
    assert found == sorted(names, key=lambda name: -IDS[name])


@pytest.mark.parametrize(("text", "followed", "trending", "first"), BEST)
async def test_best_corpus_query_ranks_expected_tweet_first(
    corpus: Opened, text: str, followed: tuple[int, ...], trending: tuple[str, ...], first: str
) -> None:
    query_of = parse(text)
    preferred = [hashtag_term(phrase[0]) for phrase in query_of.phrases]
    hits = await corpus.index.best(Query(query_of.exact, query_of.phrases), 0, 100, preferred)
    ranked = rank(hits, followed, {IDS[name]: 1.0 for name in trending}, NOW_MS)
    assert NAMES[ranked[0][1]] == first
