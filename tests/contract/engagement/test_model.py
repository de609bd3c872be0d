"""Random likes, bookmarks, undos and restarts compared with a model of plain sets."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from services.engagement.store import ReactionKind
from services.engagement.store.sqlite import cache
from services.engagement.store.sqlite import store as adapter
from tests.conftest import LONG, SHORT
from tests.contract.engagement.conftest import Embedded, Opened

USERS = st.integers(1, 4)
TWEETS = st.integers(1, 12)
EVERY_TWEET = list(range(1, 13))


class Engagement(RuleBasedStateMachine):
    """Compares the store with lists of (tweet, user) per reaction kind, newest last."""

    def __init__(self, backend: Any) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.opened = Opened(backend, Path(self.folder.name))
        self.opened.store = self.run(backend.open(self.opened.folder))
        self.pairs: dict[ReactionKind, list[tuple[int, int]]] = {ReactionKind.LIKE: [], ReactionKind.BOOKMARK: []}
        self.events: list[tuple[str, int, int]] = []

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run(self.opened.backend.close(self.opened.store))
        self.loop.close()
        self.folder.cleanup()

    def likers(self, tweet_id: int) -> list[int]:
        return [user for tweet, user in reversed(self.pairs[ReactionKind.LIKE]) if tweet == tweet_id]

    def tweets(self, kind: ReactionKind, user_id: int) -> list[int]:
        return [tweet for tweet, user in reversed(self.pairs[kind]) if user == user_id]

    @rule(tweet_id=TWEETS, user_id=USERS)
    def like(self, tweet_id: int, user_id: int) -> None:
        if (tweet_id, user_id) not in self.pairs[ReactionKind.LIKE]:
            self.pairs[ReactionKind.LIKE].append((tweet_id, user_id))
            self.events.append(("tweet.liked", user_id, tweet_id))
        assert self.run(self.opened.like(tweet_id, user_id)) == len(self.likers(tweet_id))

    @rule(tweet_id=TWEETS, user_id=USERS)
    def unlike(self, tweet_id: int, user_id: int) -> None:
        if (tweet_id, user_id) in self.pairs[ReactionKind.LIKE]:
            self.pairs[ReactionKind.LIKE].remove((tweet_id, user_id))
            self.events.append(("tweet.unliked", user_id, tweet_id))
        assert self.run(self.opened.unlike(tweet_id, user_id)) == len(self.likers(tweet_id))

    @rule(tweet_id=TWEETS, user_id=USERS)
    def bookmark(self, tweet_id: int, user_id: int) -> None:
        new = (tweet_id, user_id) not in self.pairs[ReactionKind.BOOKMARK]
        if new:
            self.pairs[ReactionKind.BOOKMARK].append((tweet_id, user_id))
        assert self.run(self.opened.bookmark(tweet_id, user_id)) == new

    @rule(tweet_id=TWEETS, user_id=USERS)
    def unbookmark(self, tweet_id: int, user_id: int) -> None:
        there = (tweet_id, user_id) in self.pairs[ReactionKind.BOOKMARK]
        if there:
            self.pairs[ReactionKind.BOOKMARK].remove((tweet_id, user_id))
        assert self.run(self.opened.unbookmark(tweet_id, user_id)) == there

    @rule()
    def restart(self) -> None:
        self.run(self.opened.reopen())

    @rule(tweet_id=TWEETS, limit=st.integers(1, 5))
    def list_likers(self, tweet_id: int, limit: int) -> None:
        found, below = [], 0
        while page := self.run(self.opened.store.list_likers(tweet_id, below, limit)):
            found += [entry.id for entry in page]
            below = page[-1].reaction_id
        assert found == self.likers(tweet_id)

    @rule(user_id=USERS, kind=st.sampled_from(ReactionKind), limit=st.integers(1, 5))
    def list_tweets(self, user_id: int, kind: ReactionKind, limit: int) -> None:
        found, below = [], 0
        while page := self.run(self.opened.store.list_tweets(kind, user_id, below, limit)):
            found += [entry.id for entry in page]
            below = page[-1].reaction_id
        assert found == self.tweets(kind, user_id)

    @rule(user_id=USERS, wanted=st.lists(TWEETS, max_size=8))
    def states(self, user_id: int, wanted: list[int]) -> None:
        liked, kept = self.tweets(ReactionKind.LIKE, user_id), self.tweets(ReactionKind.BOOKMARK, user_id)
        expected = [(i, i in liked, i in kept) for i in wanted if i in liked or i in kept]
        assert self.run(self.opened.states(user_id, wanted)) == expected

    @invariant()
    def counts_are_exact(self) -> None:
        kept = [tweet for tweet, _ in self.pairs[ReactionKind.BOOKMARK]]
        counts = [(i, len(self.likers(i)), kept.count(i)) for i in EVERY_TWEET]
        assert self.run(self.opened.counts(EVERY_TWEET)) == [one for one in counts if any(one[1:])]

    @invariant()
    def events_equal_changes(self) -> None:
        assert self.run(self.opened.events()) == self.events


@pytest.fixture(params=["everything fits", "hardly anything fits"])
def memory_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs with the default cache sizes, and with caches so small that most reads need the tables."""
    if request.param == "everything fits":
        return
    for module in (cache, adapter):
        monkeypatch.setattr(module, "NEWEST_COUNTS", 3)
        monkeypatch.setattr(module, "MAX_CACHED_PER_USER", 4)
    monkeypatch.setattr(cache, "_SLACK", 1)
    monkeypatch.setattr(cache, "OLDER_COUNTS", 2)
    monkeypatch.setattr(cache, "MAX_CACHED_IDS", 40)


# Histories by length. On the cluster each takes seconds and new tables.
EMBEDDED_EXAMPLES = {SHORT: 20, LONG: 100}
CLUSTER_EXAMPLES = {SHORT: 2, LONG: 15}


@pytest.mark.slow
@pytest.mark.usefixtures("memory_size")
def test_store_matches_model(backend: Any, length: str) -> None:
    examples = (EMBEDDED_EXAMPLES if isinstance(backend, Embedded) else CLUSTER_EXAMPLES)[length]
    run_state_machine_as_test(
        lambda: Engagement(backend), settings=settings(max_examples=examples, stateful_step_count=40, deadline=None)
    )
