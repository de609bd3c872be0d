"""Home timelines as Redis holds them: a list of ids and a marker, and the commands for both in Redis's own protocol.

`{u}:h` is a list of ids, eight bytes big-endian each, newest arrival first. `{u}:m` says what the list is: `B` while it is built, `W` once
it is warm. Both lie in one slot.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from sys import byteorder

from services.platform.redis.connection import command
from services.timeline.store import CAPACITY, RESERVE, TRIM_ABOVE, HomeList

# The last position of every list that was not trimmed since it was opened. It keeps an empty home from being no list.
ZERO_ID = bytes(8)
# A home that trims could not keep up with: as much again as one may hold is read and sent at every read.
DROP_ABOVE = 2_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long lists get, other than these only in tests: cut back to `keep` above `trim_above`, given up above `drop_above`.

    Lists that are `soon` entries or fewer from their cut are cut together with others, which costs a tenth of cutting them alone.

    The `reserve` oldest positions of a list that holds `keep` stand for all that was cut off: the largest of them is the floor.
    """

    keep: int = CAPACITY
    reserve: int = RESERVE
    trim_above: int = TRIM_ABOVE
    drop_above: int = DROP_ABOVE
    soon: int = 8


@dataclass(frozen=True, slots=True)
class Warm:
    """What the marker of a warm home says. `floor` is the build's; trims raise it, and that can be seen from the list."""

    run_id: str
    opened_ms: int
    mode: str
    floor: int

    def text(self) -> str:
        """As it is stored."""
        return f"W {self.run_id} {self.opened_ms} {self.mode} {self.floor}"

    @classmethod
    def parse(cls, marker: bytes | None) -> Warm | None:
        """None for any other marker, also one of another release."""
        parts = marker.decode(errors="replace").split(" ") if marker else []
        if len(parts) != 5 or parts[0] != "W" or not (parts[2].isdigit() and parts[4].isdigit()):
            return None
        return cls(parts[1], int(parts[2]), parts[3], int(parts[4]))


def list_key(user_id: int) -> str:
    """The key of a user's list."""
    return f"{{{user_id}}}:h"


def marker_key(user_id: int) -> str:
    """The key of a user's marker."""
    return f"{{{user_id}}}:m"


def packed(ids: Sequence[int]) -> list[bytes]:
    """The ids as they are stored."""
    return [tweet_id.to_bytes(8, "big") for tweet_id in ids]


def decode_home(warm: Warm, stored: Sequence[bytes], sizes: Sizes) -> HomeList:
    """The home that a list is: each id once, ascending, and none at or below the floor."""
    ids = array("q", b"".join(stored))
    if byteorder == "little":
        ids.byteswap()
    floor = warm.floor
    if len(ids) >= sizes.keep:
        floor = max(floor, max(ids[-sizes.reserve :]))
    once = set(ids)
    # Arrivals are nearly in order, which sorting them makes use of; most lists hold nothing twice.
    ordered = sorted(ids) if len(once) == len(ids) else sorted(once)
    # The zero id is below every floor.
    return HomeList(array("q", ordered[bisect_right(ordered, floor) :]), floor, warm.opened_ms, warm.mode)


def encode_pushes(user_ids: Sequence[int], tweet_ids: Sequence[int]) -> bytes:
    """A push of the ids into each of the lists that are there, the newest last, and so first in the list."""
    head = f"*{2 + len(tweet_ids)}\r\n$6\r\nLPUSHX\r\n$"
    # As text all along, Latin-1 at the end: half the time of bytes.
    tail = "".join(f"$8\r\n{one.decode('latin-1')}\r\n" for one in packed(sorted(tweet_ids)))
    rows = [f"{head}{len(user) + 4}\r\n{{{user}}}:h\r\n{tail}" for user in map(str, user_ids)]
    return "".join(rows).encode("latin-1")


def encode_deletes(user_ids: Sequence[int]) -> bytes:
    """Makes each of the homes cold: a command each, list and marker at once."""
    return b"".join(command("DEL", marker_key(user_id), list_key(user_id)) for user_id in user_ids)


def group_by_entries(entries: Sequence[tuple[int, Sequence[int]]]) -> Mapping[tuple[int, ...], Sequence[int]]:
    """The entries as {indexes of entries: user ids who get just these}: what one list gets goes in one command."""
    same: dict[tuple[int, ...], tuple[int, ...]] = {}
    for index, (_, user_ids) in enumerate(entries):
        if users := tuple(user_ids):
            same[users] = (*same.get(users, ()), index)
    if len(same) == 1:
        # Mostly so: the tweets of one author go to the same page of followers.
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
