"""Parses edge lists: text files of a graph with one edge per line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from roost_cli.exit_codes import CommandError

# Node numbers have at most 64 bits, so that each can be encoded in a username.
MAX_NODE = 2**64 - 1
# The most follows of one file. They use about 4 GB of memory; load larger graphs in parts.
MAX_FOLLOWS = 20_000_000
# `user_` and ten digits are the 15 characters that a username may have.
_PLAIN_NODES = 10**10

_COMMENT = ("#", "%")
_SEPARATOR = re.compile(r"[\s,;]+")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(slots=True)
class EdgeList:
    """The content of a file: `nodes` ascending, `follows` as (follower, followee) in file order, and the numbers of
    left-out repeats and edges from a node to itself."""

    nodes: list[int] = field(default_factory=list)
    follows: list[tuple[int, int]] = field(default_factory=list)
    self_loops: int = 0
    repeats: int = 0


def parse(lines: Iterable[str], *, directed: bool = False, name: str = "edge list") -> EdgeList:
    """Parses lines of the form `FROM TO`; further columns (weights, times) are ignored, `#` and `%` begin comments.

    An undirected edge becomes a follow in each direction. Repeats and edges from a node to itself are left out and
    counted; their nodes are kept. Raises CommandError, naming the line, if one is malformed or there are more than
    MAX_FOLLOWS follows.
    """
    found = EdgeList()
    nodes: set[int] = set()
    seen: set[tuple[int, int]] = set()
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith(_COMMENT):
            continue
        edge = _edge(text)
        if edge is None:
            raise CommandError(f"{name}, line {number}: {text[:60]!r} is not an edge; a line holds two node numbers")
        nodes.update(edge)
        if edge[0] == edge[1]:
            found.self_loops += 1
            continue
        key = edge if directed or edge[0] < edge[1] else (edge[1], edge[0])
        if key in seen:
            found.repeats += 1
            continue
        seen.add(key)
        found.follows.append(edge)
        if not directed:
            found.follows.append((edge[1], edge[0]))
        if len(found.follows) > MAX_FOLLOWS:
            raise CommandError(f"{name}, line {number}: more than {MAX_FOLLOWS:,} follows")
    found.nodes = sorted(nodes)
    return found


def username(node: int) -> str:
    """Returns the username of a node: deterministic, unique per node, at most 15 characters."""
    if node < _PLAIN_NODES:
        return f"user_{node:04d}"
    digits = ""
    while node:
        node, rest = divmod(node, len(_DIGITS))
        digits = _DIGITS[rest] + digits
    return "u" + digits


def _edge(text: str) -> tuple[int, int] | None:
    columns = _SEPARATOR.split(text)
    ends = columns[:2]
    if len(ends) < 2 or not all(end.isascii() and end.isdigit() for end in ends):
        return None
    if not all(_NUMBER.fullmatch(column) for column in columns[2:] if column):
        return None
    one, other = int(ends[0]), int(ends[1])
    return (one, other) if max(one, other) <= MAX_NODE else None
