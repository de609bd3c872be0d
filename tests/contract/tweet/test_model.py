"""Random posts, deletions and restarts against a model of plain dicts."""

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

from services.tweet.store import Claim
from tests.contract.tweet.conftest import Opened, event

AUTHORS = (1, 2, 3)
ids = st.integers(1, 60)


class Tweets(RuleBasedStateMachine):
    """The store on one side; who posted what, and what stands, on the other."""

    def __init__(self, family: Any) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.opened = Opened(family, Path(self.folder.name))
        self.opened.store = self.run(family.open(self.opened.folder))
        self.author_of: dict[int, int] = {}
        self.standing: set[int] = set()
        self.removed: set[int] = set()
        self.keys: dict[tuple[int, str], int] = {}

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run(self.opened.store.close())
        self.loop.close()
        self.folder.cleanup()

    def newest(self, author_id: int, before_id: int, count: int) -> list[int]:
        below = (i for i in self.standing if self.author_of[i] == author_id and (not before_id or i < before_id))
        return sorted(below, reverse=True)[:count]

    @rule(tweet_id=ids, author_id=st.sampled_from(AUTHORS), key=st.sampled_from(["", "a", "b"]))
    def post(self, tweet_id: int, author_id: int, key: str) -> None:
        if tweet_id in self.author_of:
            return
        claim = Claim(key, b"body", 0) if key else None
        stored = self.run(self.opened.post(tweet_id, author_id, claim))
        earlier = self.keys.get((author_id, key)) if key else None
        assert stored == (earlier or tweet_id)
        if earlier is None:
            self.keys[author_id, key] = tweet_id
            self.author_of[tweet_id] = author_id
            self.standing.add(tweet_id)

    @rule(tweet_id=ids)
    def delete(self, tweet_id: int) -> None:
        if tweet_id in self.author_of:
            assert self.run(self.opened.delete(tweet_id)) == (tweet_id in self.standing)
            self.standing.discard(tweet_id)
            self.removed.discard(tweet_id)

    @rule(tweet_id=ids)
    def remove(self, tweet_id: int) -> None:
        if tweet_id in self.author_of:
            changed = self.run(self.opened.store.remove(tweet_id, 9, 0, event("tweet.deleted", tweet_id)))
            assert changed == (tweet_id in self.standing)
            if changed:
                self.standing.discard(tweet_id)
                self.removed.add(tweet_id)

    @rule(tweet_id=ids)
    def restore(self, tweet_id: int) -> None:
        if tweet_id in self.author_of:
            changed = self.run(self.opened.store.restore(tweet_id, 9, event("tweet.restored", tweet_id)))
            assert changed == (tweet_id in self.removed)
            if changed:
                self.removed.discard(tweet_id)
                self.standing.add(tweet_id)

    @rule()
    def restart(self) -> None:
        self.run(self.opened.again())

    @rule(wanted=st.lists(ids, max_size=10))
    def read(self, wanted: list[int]) -> None:
        response = self.run(self.opened.store.batch_get(wanted))
        assert [core.head.id for core in response.cores] == [i for i in wanted if i in self.author_of]
        for core in response.cores:
            assert core.head.author_id == self.author_of[core.head.id]
            assert core.head.deleted == (core.head.id not in self.standing) == (core.core == b"")

    @rule(author_id=st.sampled_from(AUTHORS), before_id=st.integers(0, 61), count=st.integers(1, 5))
    def page(self, author_id: int, before_id: int, count: int) -> None:
        assert self.run(self.opened.ids_of(author_id, before_id, count)) == self.newest(author_id, before_id, count)

    @rule(before_id=st.integers(0, 61), count=st.integers(1, 5))
    def recent(self, before_id: int, count: int) -> None:
        below = (i for i in self.standing if not before_id or i < before_id)
        assert list(self.run(self.opened.store.list_recent(before_id, count))) == sorted(below, reverse=True)[:count]

    @invariant()
    def counts_are_exact(self) -> None:
        counts = {a: len(self.newest(a, 0, 100)) for a in AUTHORS}
        assert self.run(self.opened.store.batch_count(AUTHORS)) == {a: n for a, n in counts.items() if n}


@pytest.mark.slow
def test_the_store_answers_as_the_model_does(family: Any) -> None:
    run_state_machine_as_test(
        lambda: Tweets(family), settings=settings(max_examples=20, stateful_step_count=40, deadline=None)
    )
