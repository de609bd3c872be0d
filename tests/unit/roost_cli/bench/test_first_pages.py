"""Tests what `roost bench` says about the pages that it measures, and which responses it refuses."""

from __future__ import annotations

import pytest

from roost_cli.bench import first_pages
from roost_cli.bench.first_pages import Pages
from roost_cli.exit_codes import CommandError


def tweet(**fields: object) -> dict[str, object]:
    plain: dict[str, object] = {"reply_to_id": "0", "retweet_of_id": "0", "quote_of_id": "0", "metrics": {"likes": 0}}
    return plain | fields


def pages(**kinds: float) -> Pages:
    return Pages(
        [], b"", [0.1, 0.2], 100, [], [], [], [], 20.0, {"replies": 0.0, "retweets": 0.0, "quotes": 0.0} | kinds
    )


def test_count_kinds_counts_tweet_of_two_kinds_twice() -> None:
    tweets = [tweet(), tweet(reply_to_id="7", quote_of_id="8"), tweet(retweet_of_id="9"), tweet()]
    tweets[3]["metrics"] = {"likes": 2}
    assert first_pages.count_kinds(tweets) == {"replies": 1, "retweets": 1, "quotes": 1, "liked": 1}


def test_graph_text_warns_of_plain_graph() -> None:
    mutated = pages(replies=2.0, retweets=1.5, quotes=0.5).graph
    assert mutated == "2 readers, 20.0 tweets a page (of them 2.0 replies, 1.5 retweets, 0.5 quotes)."
    for plain in (pages(), pages(replies=1.0, retweets=0.9)):
        assert plain.graph.startswith(plain.content)
        assert "the graph is not mutated, or plain tweets came after it, such as those of `bench posts`" in plain.graph
        assert "roost load --mutate" in plain.graph
        assert "mutate" not in plain.content


def test_check_response_rate_limits_and_refusals_raise_command_error() -> None:
    first_pages.check_response(200, {"content-type": "application/json"})
    for status, headers in ((429, {}), (200, {"RateLimit-Policy": '"read";q=300;w=60'})):
        with pytest.raises(CommandError, match="ROOST_RATE_LIMITS=off"):
            first_pages.check_response(status, headers)
    with pytest.raises(CommandError, match="status 401"):
        first_pages.check_response(401, {})
