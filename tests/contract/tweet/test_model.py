"""Random posts, replies, quotes, retweets, edits, deletions, purges and restarts compared with a model of plain dicts."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from roost.tweet.v1 import tweet_pb2

from services.platform.rpc.errors import RoostError
from services.tweet.store import Claim
from tests.cluster import backend as namespaces
from tests.contract.tweet.conftest import Opened, event

AUTHORS = (1, 2, 3)
LAST_ID = 40
ids = st.integers(1, LAST_ID)
# Index of an existing tweet, so that rules act on each other's tweets; now and then one that does not exist.
picks = st.integers(0, 999)
authors = st.sampled_from(AUTHORS)
bounds = st.integers(0, LAST_ID + 1)
limits = st.integers(1, 5)
LIVE, DELETED, REMOVED = "stands", "deleted", "removed"


@dataclass
class Known:
    """The model's state of one tweet."""

    author: int
    reply_to: int = 0
    quote_of: int = 0
    retweet_of: int = 0
    state: str = LIVE
    deleted_at: int = 0
    texts: list[str] = field(default_factory=lambda: ["hello"])


class Tweets(RuleBasedStateMachine):
    """Compares the store with a model of the tweets, their authors and their states."""

    def __init__(self, backend: Any) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.opened = Opened(backend, Path(self.folder.name))
        self.opened.stores = self.run(backend.open(self.opened.folder))
        self.tweets: dict[int, Known] = {}
        self.used: set[int] = set()
        self.keys: dict[tuple[int, str], int] = {}
        self.now = 0

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run(self.opened.stores.close())
        self.loop.close()
        self.folder.cleanup()
        # Hundreds of examples may share one namespace.
        namespaces.release()

    def pick(self, number: int) -> int:
        known = [*sorted(self.tweets), LAST_ID]
        return known[number % len(known)]

    # The model.

    def is_live(self, tweet_id: int) -> bool:
        return tweet_id in self.tweets and self.tweets[tweet_id].state == LIVE

    def live_ids(self, **wanted: int) -> list[int]:
        """Returns the ids of live tweets with these properties, newest first."""
        return sorted(
            (
                i
                for i, known in self.tweets.items()
                if known.state == LIVE and all(getattr(known, name) == value for name, value in wanted.items())
            ),
            reverse=True,
        )

    def count(self, author: int) -> int:
        own = (self.tweets[i] for i in self.live_ids(author=author))
        return sum(not known.retweet_of or self.is_live(known.retweet_of) for known in own)

    def refuses(self, code: grpc.StatusCode, work: Coroutine[Any, Any, Any]) -> None:
        with pytest.raises(RoostError) as caught:
            self.run(work)
        assert caught.value.code is code

    # Writes.

    @rule(tweet_id=ids, author=authors, key=st.sampled_from(["", "a", "b"]))
    def post(self, tweet_id: int, author: int, key: str) -> None:
        self.create(tweet_id, Known(author), key)

    @rule(tweet_id=ids, author=authors, parent=picks)
    def reply(self, tweet_id: int, author: int, parent: int) -> None:
        self.create(tweet_id, Known(author, reply_to=self.pick(parent)))

    @rule(tweet_id=ids, author=authors, quoted=picks, parent=st.one_of(st.none(), picks))
    def quote(self, tweet_id: int, author: int, quoted: int, parent: int | None) -> None:
        self.create(
            tweet_id, Known(author, quote_of=self.pick(quoted), reply_to=0 if parent is None else self.pick(parent))
        )

    @rule(tweet_id=ids, author=authors, original=picks)
    def retweet(self, tweet_id: int, author: int, original: int) -> None:
        original = self.pick(original)
        if original in self.tweets and self.tweets[original].retweet_of:
            original = self.tweets[original].retweet_of
        self.create(tweet_id, Known(author, retweet_of=original))

    def create(self, tweet_id: int, new: Known, key: str = "") -> None:
        if tweet_id in self.used:
            return
        links = {"reply_to": new.reply_to, "quote_of": new.quote_of, "retweet_of": new.retweet_of}
        head = {f"{name}_id": target for name, target in links.items() if target}
        work = self.opened.post(tweet_id, new.author, Claim(key, b"body", 0) if key else None, **head)
        own = [
            i
            for i, known in self.tweets.items()
            if (known.author, known.retweet_of) == (new.author, new.retweet_of) and known.state != DELETED
        ]
        if key and (new.author, key) in self.keys:
            assert self.run(work) == self.keys[new.author, key]
        elif new.retweet_of and own:
            if self.is_live(own[0]):
                assert self.run(work) == own[0]
            else:
                self.refuses(grpc.StatusCode.PERMISSION_DENIED, work)
        elif not all(self.is_live(target) for target in links.values() if target):
            self.refuses(grpc.StatusCode.NOT_FOUND, work)
        else:
            assert self.run(work) == tweet_id
            self.tweets[tweet_id] = new
            self.used.add(tweet_id)
            if key:
                self.keys[new.author, key] = tweet_id

    @rule(tweet_id=picks, ahead=st.integers(0, 2))
    def edit(self, tweet_id: int, ahead: int) -> None:
        tweet_id = self.pick(tweet_id)
        known = self.tweets.get(tweet_id)
        if known is None:
            return
        text = f"text {len(known.texts)}"
        changed = self.run(self.opened.edit(tweet_id, known.author, len(known.texts) + ahead, text))
        assert changed == (ahead == 1 and known.state == LIVE)
        if changed:
            known.texts.append(text)
        found = self.run(self.opened.stores.tweets.list_revisions(tweet_id))
        assert [(revision.version, revision.text) for revision in found] == list(enumerate(known.texts, 1))

    @rule(tweet_id=picks)
    def delete(self, tweet_id: int) -> None:
        self.end(self.pick(tweet_id))

    @rule(number=picks, purged=st.booleans())
    def delete_an_original(self, number: int, purged: bool) -> None:
        originals = sorted({self.tweets[i].retweet_of for i in self.live_ids()} - {0})
        if originals:
            self.end(originals[number % len(originals)])
            if purged:
                self.purge_before(self.now + 1)

    def end(self, tweet_id: int) -> None:
        self.now += 1
        if (known := self.tweets.get(tweet_id)) is not None:
            assert self.run(self.opened.delete(tweet_id, self.now)) == (known.state == LIVE)
            if known.state != DELETED:
                known.state, known.deleted_at = DELETED, self.now

    @rule(tweet_id=picks)
    def remove(self, tweet_id: int) -> None:
        tweet_id = self.pick(tweet_id)
        if (known := self.tweets.get(tweet_id)) is not None:
            changed = self.run(self.opened.stores.tweets.remove(tweet_id, 9, 0, event("tweet.deleted", tweet_id)))
            assert changed == (known.state == LIVE)
            if changed:
                known.state = REMOVED

    @rule(tweet_id=picks)
    def restore(self, tweet_id: int) -> None:
        tweet_id = self.pick(tweet_id)
        if (known := self.tweets.get(tweet_id)) is not None:
            changed = self.run(self.opened.stores.tweets.restore(tweet_id, 9, event("tweet.restored", tweet_id)))
            assert changed == (known.state == REMOVED)
            if changed:
                known.state = LIVE

    @rule(age=st.integers(-1, 2))
    def purge(self, age: int) -> None:
        self.purge_before(self.now - age)

    def purge_before(self, before: int) -> None:
        due = {i for i, known in self.tweets.items() if known.state == DELETED and known.deleted_at < before}
        due |= {i for i in self.live_ids() if self.tweets[i].retweet_of in due}
        assert self.run(self.opened.stores.purge.purge(before, 1_000)) == len(due)
        for tweet_id in due:
            del self.tweets[tweet_id]
            assert self.run(self.opened.stores.tweets.list_revisions(tweet_id)) == []

    @rule()
    def restart(self) -> None:
        self.run(self.opened.reopen())

    # Reads.

    # Only one rule per kind of list, so that most steps are writes.

    @rule(author=authors, before_id=bounds, count=limits)
    def page(self, author: int, before_id: int, count: int) -> None:
        found = self.run(self.opened.ids_of(author, before_id, count))
        assert found == below(self.live_ids(author=author), before_id, count)
        recent = list(self.run(self.opened.stores.lists.list_recent(before_id, count)))
        assert recent == below(self.live_ids(), before_id, count)

    @rule(tweet_id=picks, bound=bounds, count=limits)
    def links(self, tweet_id: int, bound: int, count: int) -> None:
        tweet_id = self.pick(tweet_id)
        stores = self.opened.stores
        replies = self.live_ids(reply_to=tweet_id)
        assert self.run(stores.links.list_replies(tweet_id, bound, count)) == below(replies, bound, count)
        oldest = self.run(stores.links.list_replies(tweet_id, bound, count, oldest_first=True))
        assert oldest == [i for i in reversed(replies) if i > bound][:count]
        quotes = self.live_ids(quote_of=tweet_id)
        assert self.run(stores.links.list_quotes(tweet_id, bound, count)) == below(quotes, bound, count)
        found = self.run(stores.links.list_retweeters(tweet_id, bound, count))
        assert [i for i, _ in found] == below(self.live_ids(retweet_of=tweet_id), bound, count)
        assert all(self.tweets[i].author == user for i, user in found)

        children: dict[int, list[int]] = {}
        for child, known in sorted(self.tweets.items()):
            if known.reply_to and child > bound and len(children.get(known.reply_to, ())) < count:
                children.setdefault(known.reply_to, []).append(child)
        assert self.run(stores.links.batch_list_children(range(1, LAST_ID + 1), count, after_id=bound)) == children
        ancestors: list[int] = []
        at = tweet_id
        while at in self.tweets and (at := self.tweets[at].reply_to):
            ancestors.append(at)
        assert self.run(stores.links.list_ancestors(tweet_id, count)) == ancestors[:count]

    def check(self, wanted: list[int], viewer: int) -> None:
        cores = self.run(self.opened.stores.tweets.batch_get(wanted, viewer)).cores
        assert [core.head.id for core in cores] == [i for i in wanted if i in self.tweets]
        shared = {self.tweets[i].retweet_of: i for i in self.live_ids(author=viewer) if self.tweets[i].retweet_of}
        assert self.run(self.opened.stores.links.find_retweets(viewer, wanted)) == {
            i: shared[i] for i in wanted if i in shared
        }
        for core in cores:
            tweet_id = core.head.id
            known = self.tweets[tweet_id]
            assert core.head.author_id == known.author
            assert core.head.deleted == (known.state != LIVE) == (core.core == b"")
            assert core.head.deleted or tweet_pb2.Tweet.FromString(core.core).text == known.texts[-1]
            assert core.replies == len(self.live_ids(reply_to=tweet_id))
            assert core.quotes == len(self.live_ids(quote_of=tweet_id))
            assert core.retweets == len(self.live_ids(retweet_of=tweet_id))
            assert core.retweeted == (tweet_id in shared)

    @invariant()
    def everything_is_exact(self) -> None:
        counts = {author: self.count(author) for author in AUTHORS}
        assert self.run(self.opened.stores.lists.batch_count(AUTHORS)) == {a: n for a, n in counts.items() if n}
        for viewer in (0, *AUTHORS):
            self.check([*range(1, LAST_ID + 1), 1], viewer)


def below(newest_first: list[int], before_id: int, count: int) -> list[int]:
    return [i for i in newest_first if not before_id or i < before_id][:count]


@pytest.mark.slow
def test_store_matches_model(backend: Any, length: str) -> None:
    examples = settings(max_examples=backend.EXAMPLES[length], stateful_step_count=60, deadline=None)
    run_state_machine_as_test(lambda: Tweets(backend), settings=examples)
