"""Parses edge lists: text files of a graph with one edge per line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from roost_cli.exit_codes import CommandError

# The largest node number. Up to 64 bits, a number fits into the 15 characters of a username.
MAX_NODE = 2**64 - 1
# Maximum number of follows in one file, which use about 4 GB of memory. Larger graphs must be loaded in parts.
MAX_FOLLOWS = 20_000_000
# Nodes below this number get the username `user_` and up to ten digits, which is at most 15 characters.
_PLAIN_NODES = 10**10

_COMMENT = ("#", "%")
_SEPARATOR = re.compile(r"[\s,;]+")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(slots=True)
class EdgeList:
    """The content of an edge list: `nodes` ascending, `follows` as (follower, followee) in the order of the file, and
    how many edges were left out because they connect a node to itself (`self_loops`) or are repeated (`repeats`)."""

    nodes: list[int] = field(default_factory=list)
    follows: list[tuple[int, int]] = field(default_factory=list)
    self_loops: int = 0
    repeats: int = 0


def parse(lines: Iterable[str], *, directed: bool = False, name: str = "edge list") -> EdgeList:
    """Parses lines of the form `FROM TO`. Ignores further columns (weights, times), and lines that begin with `#` or
    `%`.

    If `directed` is true, FROM follows TO; otherwise both follow each other. Repeated edges and edges from a node to
    itself are counted and left out; their nodes are kept. `name` is the name of the file. Raises CommandError, which
    names the line, if a line is malformed or if there are more than MAX_FOLLOWS follows.
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
    """Returns the username of a node. Different nodes have different usernames, of at most 15 characters."""
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
