"""Encodes home timelines, and the commands that change them, as Redis stores and receives them.

`{u}:h` is a list of ids, eight bytes big-endian each, the newest arrival first. `{u}:m` is its marker: `B …` while it
is built, `W …` once it is warm. Both keys have one hash slot.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from sys import byteorder

from services.platform.redis.connection import command
from services.timeline.store import CAPACITY, RESERVE, TRIM_ABOVE, HomeList

# The last element of every list that was not trimmed since its build opened it. Redis deletes empty lists, so without
# it an empty home timeline would look like a missing key.
ZERO_ID = bytes(8)
# A list with more elements than this is deleted: its trims failed repeatedly, and each read would transfer more than
# twice the ids that are needed.
DROP_ABOVE = 2_000


@dataclass(frozen=True, slots=True)
class ListLimits:
    """Lengths of lists; only tests pass other values. A list is trimmed to `keep` above `trim_above` and dropped above
    `drop_above`.

    Lists with at least `trim_above - soon` elements are collected and trimmed in one transaction, at a tenth of the
    cost of trimming each alone. In a list of `keep` elements the largest of the `reserve` oldest ones is the floor: all
    trimmed ids are at most that.
    """

    keep: int = CAPACITY
    reserve: int = RESERVE
    trim_above: int = TRIM_ABOVE
    drop_above: int = DROP_ABOVE
    soon: int = 8


@dataclass(frozen=True, slots=True)
class WarmMarker:
    """The content of the marker of a warm home timeline. `floor` is that of the build; trims raise it, and
    `decode_home` computes the raised floor from the list."""

    run_id: str
    opened_ms: int
    mode: str
    floor: int

    def text(self) -> str:
        """Returns the marker as it is stored."""
        return f"W {self.run_id} {self.opened_ms} {self.mode} {self.floor}"

    @classmethod
    def parse(cls, marker: bytes | None) -> WarmMarker | None:
        """Parses a stored marker. Returns None for any other marker, including those of other releases."""
        parts = marker.decode(errors="replace").split(" ") if marker else []
        if len(parts) != 5 or parts[0] != "W" or not (parts[2].isdigit() and parts[4].isdigit()):
            return None
        return cls(parts[1], int(parts[2]), parts[3], int(parts[4]))


def list_key(user_id: int) -> str:
    """Returns the key of a user's list."""
    return f"{{{user_id}}}:h"


def marker_key(user_id: int) -> str:
    """Returns the key of a user's marker."""
    return f"{{{user_id}}}:m"


def encode_ids(ids: Sequence[int]) -> list[bytes]:
    """Returns the ids as they are stored."""
    return [tweet_id.to_bytes(8, "big") for tweet_id in ids]


def decode_home(warm: WarmMarker, stored: Sequence[bytes], limits: ListLimits) -> HomeList:
    """Decodes a stored list: unique ids, ascending, all above the floor."""
    ids = array("q", b"".join(stored))
    if byteorder == "little":
        ids.byteswap()
    floor = warm.floor
    if len(ids) >= limits.keep:
        floor = max(floor, max(ids[-limits.reserve :]))
    once = set(ids)
    # Ids arrive nearly in order, which Python's sort exploits; most lists have no duplicates.
    ordered = sorted(ids) if len(once) == len(ids) else sorted(once)
    # This also removes ZERO_ID, which is below every floor.
    return HomeList(array("q", ordered[bisect_right(ordered, floor) :]), floor, warm.opened_ms, warm.mode)


def encode_pushes(user_ids: Sequence[int], tweet_ids: Sequence[int]) -> bytes:
    """Encodes one LPUSHX per user, which adds the ids to the front of the user's list if the key exists; the largest id
    becomes the first element."""
    head = f"*{2 + len(tweet_ids)}\r\n$6\r\nLPUSHX\r\n$"
    # Built as text and encoded as Latin-1 at the end, which takes half the time of bytes.
    tail = "".join(f"$8\r\n{one.decode('latin-1')}\r\n" for one in encode_ids(sorted(tweet_ids)))
    rows = [f"{head}{len(user) + 4}\r\n{{{user}}}:h\r\n{tail}" for user in map(str, user_ids)]
    return "".join(rows).encode("latin-1")


def encode_deletes(user_ids: Sequence[int]) -> bytes:
    """Encodes one DEL per user, which deletes the user's list and marker in one step."""
    return b"".join(command("DEL", marker_key(user_id), list_key(user_id)) for user_id in user_ids)


def group_by_entries(entries: Sequence[tuple[int, Sequence[int]]]) -> Mapping[tuple[int, ...], Sequence[int]]:
    """Groups users by the entries they receive: {indexes of entries: user ids}. Each list then gets one command."""
    same: dict[tuple[int, ...], tuple[int, ...]] = {}
    for index, (_, user_ids) in enumerate(entries):
        if users := tuple(user_ids):
            same[users] = (*same.get(users, ()), index)
    if len(same) == 1:
        # The usual case: all entries have the same followers of one author.
        ((users, indexes),) = same.items()
        return {indexes: tuple(dict.fromkeys(users))}
    wanted: dict[int, tuple[int, ...]] = {}
    for users, indexes in same.items():
        for user_id in dict.fromkeys(users):
            wanted[user_id] = wanted[user_id] + indexes if user_id in wanted else indexes
    found: dict[tuple[int, ...], list[int]] = {}
    for user_id, indexes in wanted.items():
        found.setdefault(indexes, []).append(user_id)
    return found
