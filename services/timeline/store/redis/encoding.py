"""Encodes home timelines, and the commands that change them, for Redis.

The home timeline of user `u` has two keys. `{u}:h` is a list of tweet ids, eight bytes big-endian each, the last one
appended first. `{u}:m` is the marker, a string: `B …` while the home timeline is built, `W …` while it is warm. The
braces put both keys into one hash slot, so that a transaction can change both.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from sys import byteorder

from services.platform.redis.connection import command
from services.timeline.store import CAPACITY, RESERVE, TRIM_ABOVE, HomeList

# The last element of a list until the first trim removes it. Redis has no empty lists, so without this element the list
# of a home timeline without ids would be missing, and LPUSHX would append nothing.
ZERO_ID = bytes(8)
# Maximum number of elements of a list. Beyond it the list is deleted, which makes the home timeline cold. A list gets
# this long only if its trims fail repeatedly; each read would transfer more than twice as many ids as needed.
DROP_ABOVE = 2_000


@dataclass(frozen=True, slots=True)
class ListLimits:
    """The limits of lists, in elements; only tests pass other values than the defaults.

    A list of more than `trim_above` elements is trimmed to `keep`, one of more than `drop_above` is deleted. Lists of
    more than `trim_above - soon` elements are queued and trimmed together in one transaction, which takes a tenth of
    the time of single trims.

    The floor of a list with at least `keep` elements is the largest id among its `reserve` last elements, because no
    trimmed id is above it.
    """

    keep: int = CAPACITY
    reserve: int = RESERVE
    trim_above: int = TRIM_ABOVE
    drop_above: int = DROP_ABOVE
    soon: int = 8


@dataclass(frozen=True, slots=True)
class WarmMarker:
    """The marker of a warm home timeline.

    `run_id` identifies the Redis server process, `opened_ms` is the start of the build in Unix milliseconds, `mode` is
    the timeline mode. `floor` is the floor at the end of the build. A trim raises the floor, but does not write the
    marker: `decode_home` computes the current floor.
    """

    run_id: str
    opened_ms: int
    mode: str
    floor: int

    def text(self) -> str:
        """Returns the marker as it is stored."""
        return f"W {self.run_id} {self.opened_ms} {self.mode} {self.floor}"

    @classmethod
    def parse(cls, marker: bytes | None) -> WarmMarker | None:
        """Parses a stored marker. Returns None if the key is missing, if the home timeline is being built, or if a
        release with another format wrote the marker."""
        parts = marker.decode(errors="replace").split(" ") if marker else []
        if len(parts) != 5 or parts[0] != "W" or not (parts[2].isdigit() and parts[4].isdigit()):
            return None
        return cls(parts[1], int(parts[2]), parts[3], int(parts[4]))


def list_key(user_id: int) -> str:
    """Returns the Redis key of the tweet ids in the user's home timeline."""
    return f"{{{user_id}}}:h"


def marker_key(user_id: int) -> str:
    """Returns the Redis key of the marker of the user's home timeline."""
    return f"{{{user_id}}}:m"


def encode_ids(ids: Sequence[int]) -> list[bytes]:
    """Returns each id as eight bytes, big-endian."""
    return [tweet_id.to_bytes(8, "big") for tweet_id in ids]


def decode_home(warm: WarmMarker, stored: Sequence[bytes], limits: ListLimits) -> HomeList:
    """Returns the home timeline that has the marker `warm` and the list elements `stored`, with the current floor. The
    ids of the result are unique and ascending, as HomeList requires."""
    ids = array("q", b"".join(stored))
    if byteorder == "little":
        ids.byteswap()
    floor = warm.floor
    if len(ids) >= limits.keep:
        floor = max(floor, max(ids[-limits.reserve :]))
    once = set(ids)
    # Sorting `ids` is fast because they are nearly in order; a set has lost this order. Most lists have no duplicates.
    ordered = sorted(ids) if len(once) == len(ids) else sorted(once)
    # This also removes ZERO_ID, which is below every floor.
    return HomeList(array("q", ordered[bisect_right(ordered, floor) :]), floor, warm.opened_ms, warm.mode)


def encode_pushes(user_ids: Sequence[int], tweet_ids: Sequence[int]) -> bytes:
    """Returns one LPUSHX command per user: it puts the ids at the front of the list of the user's home timeline, the
    largest id first. The command does nothing if the list does not exist."""
    head = f"*{2 + len(tweet_ids)}\r\n$6\r\nLPUSHX\r\n$"
    # The commands are joined as text and encoded once at the end, which takes half the time of joining bytes. Latin-1
    # maps each character to the byte of the same value.
    tail = "".join(f"$8\r\n{one.decode('latin-1')}\r\n" for one in encode_ids(sorted(tweet_ids)))
    rows = [f"{head}{len(user) + 4}\r\n{{{user}}}:h\r\n{tail}" for user in map(str, user_ids)]
    return "".join(rows).encode("latin-1")


def encode_deletes(user_ids: Sequence[int]) -> bytes:
    """Returns one DEL command per user: it deletes the list and the marker of the user's home timeline in one step, so
    that the home timeline is cold."""
    return b"".join(command("DEL", marker_key(user_id), list_key(user_id)) for user_id in user_ids)


def group_by_entries(entries: Sequence[tuple[int, Sequence[int]]]) -> Mapping[tuple[int, ...], Sequence[int]]:
    """Groups the users by the entries that they get, so that each user's list needs one command. Returns the user ids
    by the indexes of their entries in `entries`; no user is in two groups."""
    same: dict[tuple[int, ...], tuple[int, ...]] = {}
    for index, (_, user_ids) in enumerate(entries):
        if users := tuple(user_ids):
            same[users] = (*same.get(users, ()), index)
    if len(same) == 1:
        # The usual case: all entries are for the same followers of one author.
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
