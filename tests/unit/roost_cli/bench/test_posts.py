"""Tests the figures of `roost bench posts`."""

from __future__ import annotations

from roost_cli.bench import posts, table
from roost_cli.bench.fanout_watch import Delivery
from roost_cli.bench.posts import PostsRound


def test_round_computes_figures_per_post() -> None:
    one = PostsRound([0.001, 0.002, 0.003, 0.004], 2.0, 0.004, [Delivery(0.01, 10), Delivery(0.03, 20)])
    assert (one.per_second, one.cpu_us, one.homes_each) == (2.0, 1000.0, 15.0)
    assert (one.latency_ms(50), one.latency_ms(99)) == (2.0, 4.0)
    assert (one.delivery_ms(50), one.delivery_ms(99)) == (10.0, 30.0)


def test_compare_baseline_without_deliveries_has_empty_cells() -> None:
    mesh = PostsRound([0.002] * 100, 1.0, 0.05, [Delivery(0.004, 39)])
    bare = PostsRound([0.001] * 100, 0.5, 0.01)
    rows = {line[0]: line[1:] for line in table.compare({"m": [mesh], "bare": [bare]}, posts.MEASURES, "bare").lines}
    assert rows["posts/s"] == ["100", "200"]
    assert rows["CPU µs a post ÷ bare"] == ["5.00", "1.00"]
    assert rows["home timelines a post"] == ["39.0", ""]
    assert rows["delivery p99 ms"] == ["4", ""]


def test_post_maker_makes_different_texts() -> None:
    make = posts.post_maker("127.0.0.1:1", ["t"])
    assert make(0) != make(1)
    assert make(0).startswith(b"POST /v1/tweets HTTP/1.1\r\nHost: 127.0.0.1:1\r\nAuthorization: Bearer t\r\n")
