"""Hydration with its cache: no call for what is cached, and every change shows on the next read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from roost.identity.v1 import user_pb2
from roost.tweet.v1 import tweet_pb2

from services.platform.versions import Kind, VersionPublisher, key_of
from services.shared.hydration.cache import HydrationCache
from services.shared.hydration.hydrator import Hydrator
from tests.unit.services.shared.hydration.test_hydrator import ANN, BOB, CAT, READER, OddRules, World, channel_to
from tests.versions import UnknownVersions, all_versions

ORIGINAL, RETWEET, QUOTE, REPLY, PLAIN = 10, 11, 13, 15, 17
PAGE = (ORIGINAL, RETWEET, QUOTE, REPLY, PLAIN)


class Cached:
    """A hydrator with a cache, and one without, over the same world."""

    def __init__(self) -> None:
        self.world = World()
        self.versions, self.publisher = all_versions()
        self.cache = HydrationCache(self.versions)
        self.hydrator = Hydrator(channel_to(self.world), self.cache)
        self.uncached = Hydrator(channel_to(self.world), HydrationCache(UnknownVersions()))
        self.world.post(ORIGINAL, BOB)
        self.world.post(RETWEET, ANN, retweet_of_id=ORIGINAL)
        self.world.post(QUOTE, ANN, quote_of_id=ORIGINAL)
        self.world.post(REPLY, ANN, reply_to_id=ORIGINAL)
        self.world.post(PLAIN, CAT)

    async def page(self, reader: int = READER) -> list[tweet_pb2.Tweet]:
        """Returns the page from the cache, after comparing it with the page without a cache."""
        calls = list(self.world.calls)
        rules = OddRules()
        fresh = await self.uncached.visible(reader, PAGE, len(PAGE), hide_muted=True, rules=rules)
        self.world.calls[:] = calls
        found = await self.hydrator.visible(reader, PAGE, len(PAGE), hide_muted=True, rules=rules)
        assert [tweet_pb2.Tweet.FromString(tweet.data) for tweet in found] == [
            tweet_pb2.Tweet.FromString(tweet.data) for tweet in fresh
        ]
        return [tweet_pb2.Tweet.FromString(tweet.data) for tweet in found]


@pytest.fixture
def cached() -> Cached:
    return Cached()


async def test_cached_page_makes_no_call(cached: Cached) -> None:
    cached.world.likes = {(READER, PLAIN), (ANN, ORIGINAL)}
    first = await cached.page()
    cached.world.calls.clear()
    assert await cached.page() == first
    assert cached.world.calls == []


async def test_page_of_another_reader_calls_for_relations_and_reactions_only(cached: Cached) -> None:
    await cached.page()
    cached.world.calls.clear()
    await cached.page(CAT)
    assert cached.world.calls == [("graph", 3)], "no tweet of the page has reactions"
    cached.world.calls.clear()
    await cached.page(0)
    assert cached.world.calls == []


# A change of the world, and the version keys that its owner publishes.
Deed = tuple[Callable[[World], None], tuple[tuple[Kind, int], ...]]


def _suspend(user_id: int) -> Callable[[World], None]:
    return lambda world: world.states.update({user_id: user_pb2.USER_STATE_SUSPENDED})


def _retweet(world: World) -> None:
    world.cores[PLAIN].retweets, world.cores[PLAIN].retweeted = 1, True


def _edit(world: World) -> None:
    body = tweet_pb2.Tweet.FromString(world.cores[ORIGINAL].core)
    body.text = "edited"
    world.cores[ORIGINAL].core = body.SerializeToString()


CHANGES: dict[str, Deed] = {
    "edit": (_edit, ((Kind.TWEET, ORIGINAL),)),
    "delete": (lambda w: w.delete(PLAIN), ((Kind.TWEET, PLAIN), (Kind.TWEET_STATE, PLAIN))),
    "delete original": (lambda w: w.delete(ORIGINAL), ((Kind.TWEET, ORIGINAL), (Kind.TWEET_STATE, ORIGINAL))),
    "count": (lambda w: setattr(w.cores[PLAIN], "replies", 3), ((Kind.TWEET, PLAIN),)),
    "retweet": (_retweet, ((Kind.TWEET, PLAIN), (Kind.AUTHOR, READER))),
    "like": (lambda w: w.likes.add((READER, PLAIN)), ((Kind.REACTION_COUNTS, PLAIN), (Kind.REACTIONS, READER))),
    "like of another": (lambda w: w.likes.add((CAT, ORIGINAL)), ((Kind.REACTION_COUNTS, ORIGINAL),)),
    "suspend author": (_suspend(ANN), ((Kind.USER, ANN),)),
    "suspend author of original": (_suspend(BOB), ((Kind.USER, BOB),)),
    "block": (lambda w: w.blocks.add((READER, CAT)), ((Kind.RELATIONS, READER),)),
    "block by author": (lambda w: w.blocks.add((BOB, READER)), ((Kind.RELATIONS, READER),)),
    "mute": (lambda w: w.mutes.add((READER, ANN)), ((Kind.RELATIONS, READER),)),
}


def _publish(publisher: VersionPublisher, keys: tuple[tuple[Kind, int], ...]) -> None:
    publisher.changed([key_of(kind, item_id) for kind, item_id in keys])


@pytest.mark.parametrize("change", CHANGES)
async def test_change_shows_on_next_read_if_published(cached: Cached, change: str) -> None:
    deed, keys = CHANGES[change]
    before = await cached.page()
    deed(cached.world)
    _publish(cached.publisher, keys)
    assert await cached.page() != before
    cached.world.calls.clear()
    await cached.page()
    assert cached.world.calls == []


@pytest.mark.parametrize("change", CHANGES)
async def test_change_that_is_not_published_is_noticed_by_the_comparison(cached: Cached, change: str) -> None:
    deed, _ = CHANGES[change]
    await cached.page()
    deed(cached.world)
    with pytest.raises(AssertionError):
        await cached.page()


async def test_restored_tweet_shows_on_next_read(cached: Cached) -> None:
    core = tweet_pb2.TweetCore()
    core.CopyFrom(cached.world.cores[PLAIN])
    cached.world.delete(PLAIN)
    assert PLAIN not in [tweet.id for tweet in await cached.page()]
    cached.world.cores[PLAIN] = core
    _publish(cached.publisher, ((Kind.TWEET, PLAIN), (Kind.TWEET_STATE, PLAIN)))
    assert PLAIN in [tweet.id for tweet in await cached.page()]


async def test_unknown_tweet_shows_once_it_is_created(cached: Cached) -> None:
    del cached.world.cores[PLAIN]
    await cached.page()
    cached.world.calls.clear()
    await cached.page()
    assert cached.world.calls == [], "that the tweet does not exist is cached too"
    cached.world.post(PLAIN, CAT)
    _publish(cached.publisher, ((Kind.TWEET, PLAIN),))
    assert PLAIN in [tweet.id for tweet in await cached.page()]


async def test_replies_to_strangers_are_left_out_without_a_call(cached: Cached) -> None:
    for tweet_id in range(100, 120, 2):
        cached.world.post(tweet_id, ANN)
    assert await cached.hydrator.visible(READER, range(100, 120), 20, rules=OddRules()) == []
    cached.world.calls.clear()
    assert await cached.hydrator.visible(READER, range(100, 120), 20, rules=OddRules()) == []
    assert cached.world.calls == []


async def test_page_without_engagement_is_not_cached(cached: Cached) -> None:
    cached.world.likes = {(ANN, PLAIN)}
    cached.world.down = "engagement"
    await cached.page()
    cached.world.down = ""
    (tweet,) = [tweet for tweet in await cached.page() if tweet.id == PLAIN]
    assert tweet.metrics.likes == 1


async def test_memory_of_reader_is_bounded(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.shared.hydration.cache.MAX_IDS_PER_READER", 2)
    cached.world.likes = {(READER, PLAIN), (READER, ORIGINAL)}
    cached.world.blocks = {(READER, CAT)}
    for _ in range(3):
        await cached.page()
    states, reader_filter = cached.cache.states.get(READER), cached.cache.filters.get(READER)
    assert states is not None
    assert reader_filter is not None
    assert (len(states.value.by_tweet), len(reader_filter.value.authors)) <= (2, 3)
    assert (states.value.weight, reader_filter.value.weight) == (states.value.size(), reader_filter.value.size())
