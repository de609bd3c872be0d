"""Tests the parser of edge lists and its errors."""

from __future__ import annotations

import re

import pytest

from roost_cli.exit_codes import CommandError
from roost_cli.load import edge_list


def test_parse_undirected_edge_returns_two_follows() -> None:
    found = edge_list.parse(["1 0", "15\t0"])
    assert found.follows == [(1, 0), (0, 1), (15, 0), (0, 15)]
    assert found.nodes == [0, 1, 15]


def test_parse_directed_edge_returns_one_follow() -> None:
    found = edge_list.parse(["1 0", "0 1", "2 1"], directed=True)
    assert found.follows == [(1, 0), (0, 1), (2, 1)]
    assert found.repeats == 0


def test_parse_ignores_comments_blank_lines_and_extra_columns() -> None:
    lines = ["# a graph", "% bip unweighted", "", "  ", "1 2 0.5 1361439600", "3,4", "5;6;1e-3", "% 9 9"]
    assert edge_list.parse(lines, directed=True).follows == [(1, 2), (3, 4), (5, 6)]


def test_parse_counts_repeats_and_self_loops() -> None:
    found = edge_list.parse(["1 2", "2 1", "1 2", "3 3"])
    assert found.follows == [(1, 2), (2, 1)]
    assert (found.repeats, found.self_loops) == (2, 1)
    assert found.nodes == [1, 2, 3]


@pytest.mark.parametrize("line", ["1", "a b", "1 b", "-1 2", "1.5 2", "1 2 three", f"{2**64} 1", "1 ²"])
def test_parse_malformed_line_raises_with_line_number(line: str) -> None:
    with pytest.raises(CommandError, match=r"graph\.edges, line 3: "):
        edge_list.parse(["# comment", "1 2", line], name="graph.edges")


def test_parse_too_many_follows_raises_command_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_list, "MAX_FOLLOWS", 2)
    with pytest.raises(CommandError, match="line 2: more than 2 follows"):
        edge_list.parse(["1 2", "2 3"])


@pytest.mark.parametrize("nodes", [[0, 1, 9_999, 10_000, 10**10 - 1, 10**10, 10**10 + 1, 2**63, 2**64 - 1]])
def test_username_is_unique_per_node(nodes: list[int]) -> None:
    names = [edge_list.username(node) for node in nodes]
    assert len({name.lower() for name in names}) == len(nodes)
    assert all(re.fullmatch(r"[A-Za-z0-9_]{3,15}", name) for name in names)
    assert names[1] == "user_0001"
