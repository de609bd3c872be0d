"""Tests who looks for a tweet whose delivery is measured, and the figures."""

from __future__ import annotations

from roost_cli.bench import delivery, table
from roost_cli.bench.delivery import DeliveryRound


def test_readers_by_author_leaves_out_author() -> None:
    authors = [frozenset({1, 2}), frozenset({1, 3}), frozenset[int]()]
    assert delivery.readers_by_author([1, 2, 3], authors) == {1: [2], 2: [1], 3: [2]}


def test_compare_contains_percentiles() -> None:
    one = DeliveryRound([0.001, 0.002, 0.003, 0.1], [0.01, 0.02])
    rows = {line[0]: line[1:] for line in table.compare({"idle": [one]}, delivery.MEASURES, "idle").lines}
    assert rows["tweets"] == ["2"]
    assert rows["seen after the 201, p50 ms"] == ["2.0"]
    assert rows["seen after the 201, p99 ms"] == ["100.0"]
    assert rows["p50 ms of the post"] == ["10.00"]
