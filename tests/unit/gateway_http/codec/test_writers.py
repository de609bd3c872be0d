"""Writers of responses: bodies, entity tags, and what is kept of responses that services return again."""

from __future__ import annotations

import gc
import tracemalloc
import zlib
from collections.abc import Callable

import orjson
import pytest
from roost.tweet.v1 import tweet_pb2

from gateway_http.codec import writers
from gateway_http.codec.binding import Codec
from gateway_http.router import bindings
from services.platform.rpc.contract import methods
from services.shared.hydration.tweet_page import TweetPage

MANY = 500
# The JSON of a tweet has 300 bytes here. Without a copy, orjson's result takes 4 kB.
MAX_BYTES_EACH = 2_000
METHOD = methods()["/roost.timeline.v1.TimelineService/ListHomeTimeline"]


def writer() -> writers.ResponseWriter:
    return Codec().writer(METHOD, bindings(METHOD)[0])


def tweets(*texts: str) -> list[bytes]:
    return [tweet_pb2.Tweet(id=number, text=text).SerializeToString() for number, text in enumerate(texts, 1)]


def message(page: TweetPage) -> tweet_pb2.SerializedTweetPage:
    return tweet_pb2.SerializedTweetPage.FromString(page.SerializeToString())


PAGES = {
    "two tweets": TweetPage(tweets("a", "b"), "next"),
    "other order": TweetPage(tweets("a", "b")[::-1], "next"),
    "one tweet": TweetPage(tweets("a"), "next"),
    "other text": TweetPage(tweets("a", "c"), "next"),
    "other cursor": TweetPage(tweets("a", "b"), "later"),
    "no cursor": TweetPage(tweets("a", "b"), ""),
    "partial": TweetPage(tweets("a", "b"), "next", partial=True),
    "no tweets": TweetPage([], "next"),
}


@pytest.mark.parametrize("name", PAGES)
def test_page_by_reference_is_written_as_its_message(name: str) -> None:
    page = PAGES[name]
    by_reference, of_message = writer().tagged(page), writer().tagged(message(page))
    assert (by_reference.body, by_reference.tag) == (of_message.body, of_message.tag)
    found = orjson.loads(by_reference.body)
    assert [tweet["id"] for tweet in found["tweets"]] == [str(tweet_pb2.Tweet.FromString(t).id) for t in page.tweets]
    assert found["next_cursor"] == page.next_cursor


def test_pages_with_other_bodies_have_other_tags() -> None:
    one = writer()
    written = [one.tagged(page) for page in PAGES.values()]
    assert len({page.tag for page in written}) == len({page.body for page in written}) == len(PAGES)


def test_reused_page_is_written_and_compressed_once() -> None:
    one = writer()
    page = TweetPage(tweets("a" * 100), "", is_reused=True)
    first = one.tagged(page)
    assert one.tagged(page) is first
    assert zlib.decompress(first.gzip(), 31) == first.body
    assert first.gzip() is first.gzip()
    equal = TweetPage(list(page.tweets), "", is_reused=True)
    assert one.tagged(equal) is not first
    assert one.tagged(equal).body == first.body


def test_reused_pages_are_bounded_and_never_confused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "MAX_REUSED_BYTES", 500)
    one = writer()
    for number in range(300):
        # The page is freed in each turn, unless the writer holds it, so that its id is used again.
        page = TweetPage(tweets(f"number {number}"), "", is_reused=True)
        assert f"number {number}" in one.tagged(page).body.decode()
    assert isinstance(one, writers.WireWriter)
    assert len(one._reused) < 20


def _write_tweets(one: writers.ResponseWriter) -> None:
    for number in range(MANY):
        one.tagged(TweetPage(tweets(f"number {number}"), ""))


def _write_pages_of_one_tweet(one: writers.ResponseWriter) -> None:
    data = tweets("a")
    for _ in range(MANY):
        one.tagged(TweetPage(data, "", is_reused=True))


@pytest.mark.parametrize("write", [_write_tweets, _write_pages_of_one_tweet])
def test_cached_json_takes_about_its_length_in_memory(write: Callable[[writers.ResponseWriter], None]) -> None:
    one = writer()
    one.tagged(TweetPage(tweets("first"), ""))
    gc.collect()
    tracemalloc.start()
    try:
        write(one)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 300 < held / MANY < MAX_BYTES_EACH
