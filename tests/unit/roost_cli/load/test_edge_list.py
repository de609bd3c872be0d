"""Edge lists are read as they are published, and a line that is none is named."""

from __future__ import annotations

import re

import pytest

from roost_cli.exit_codes import CommandError
from roost_cli.load import edge_list


def test_an_undirected_edge_is_a_follow_each_way() -> None:
    found = edge_list.parse(["1 0", "15\t0"])
    assert found.follows == [(1, 0), (0, 1), (15, 0), (0, 15)]
    assert found.nodes == [0, 1, 15]


def test_a_directed_edge_is_one_follow() -> None:
    found = edge_list.parse(["1 0", "0 1", "2 1"], directed=True)
    assert found.follows == [(1, 0), (0, 1), (2, 1)]
    assert found.repeats == 0


def test_comments_blank_lines_and_further_columns_are_passed_over() -> None:
    lines = ["# a graph", "% bip unweighted", "", "  ", "1 2 0.5 1361439600", "3,4", "5;6;1e-3", "% 9 9"]
    assert edge_list.parse(lines, directed=True).follows == [(1, 2), (3, 4), (5, 6)]


def test_repeats_and_loops_are_left_out_and_counted() -> None:
    found = edge_list.parse(["1 2", "2 1", "1 2", "3 3"])
    assert found.follows == [(1, 2), (2, 1)]
    assert (found.repeats, found.self_loops) == (2, 1)
    assert found.nodes == [1, 2, 3]


@pytest.mark.parametrize("line", ["1", "a b", "1 b", "-1 2", "1.5 2", "1 2 three", f"{2**64} 1", "1 ²"])
def test_a_malformed_line_is_named(line: str) -> None:
    with pytest.raises(CommandError, match=r"graph\.edges, line 3: "):
        edge_list.parse(["# comment", "1 2", line], name="graph.edges")


def test_too_many_follows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_list, "MAX_FOLLOWS", 2)
    with pytest.raises(CommandError, match="line 2: more than 2 follows"):
        edge_list.parse(["1 2", "2 3"])


@pytest.mark.parametrize("nodes", [[0, 1, 9_999, 10_000, 10**10 - 1, 10**10, 10**10 + 1, 2**63, 2**64 - 1]])
def test_every_node_has_a_username_of_its_own(nodes: list[int]) -> None:
    names = [edge_list.username(node) for node in nodes]
    assert len({name.lower() for name in names}) == len(nodes)
    assert all(re.fullmatch(r"[A-Za-z0-9_]{3,15}", name) for name in names)
    assert names[1] == "user_0001"
