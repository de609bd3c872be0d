"""What hides authors from readers, kept in process memory under the relation version that all processes share.

A version is read before the rows, and changed after the rows are and before a write returns. So what was read under a version is good
for as long as that version stands, whoever writes; and as a block changes the versions of both sides, that holds for who blocks the
reader, too.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Iterable, Sequence

from cachetools import LRUCache
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import Listing, Position
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.relationship import Pair, ends
from services.platform.cassandra.keyspace import Keyspace
from services.platform.redis.shared_versions import SharedVersions

# In ids of an array, 8 bytes each; an author takes about eight times that in a dict. So 64 MB, and with 20 authors each 36,000 readers.
MAX_WEIGHT = 8_000_000
_READER_WEIGHT = 60
_AUTHOR_WEIGHT = 8
# Authors remembered of one reader: a day's reading. Beyond it they are asked anew.
MAX_AUTHORS = 2_000
# More than this is read anew for each answer, so that one user cannot push out thousands of others.
MAX_KEPT_EDGES = 50_000
PAGE_ROWS = 5_000
TOP = Position((1 << 63) - 1, (1 << 63) - 1)


class _Reader:
    """What one reader's version vouches for. `authors` maps an id to (the reader follows, blocks the reader)."""

    __slots__ = ("authors", "blocked", "muted", "version")

    def __init__(self, version: int, blocked: array[int], muted: array[int]) -> None:
        self.version = version
        self.blocked = blocked
        self.muted = muted
        self.authors: dict[int, tuple[bool, bool]] = {}

    def weight(self) -> int:
        return _READER_WEIGHT + len(self.blocked) + len(self.muted) + _AUTHOR_WEIGHT * len(self.authors)


class Filters:
    """Answers GetVisibilityFilter. Of one event loop; `mint` gives new ids."""

    def __init__(self, keyspace: Keyspace, shared: SharedVersions, mint: Callable[[], Awaitable[int]]) -> None:
        self._keyspace = keyspace
        self._shared = shared
        self._mint = mint
        self._readers: LRUCache[int, _Reader] = LRUCache(MAX_WEIGHT, _Reader.weight)
        self._loading: dict[tuple[int, int], asyncio.Task[_Reader]] = {}

    async def version(self, user_id: int) -> int:
        """The user's relation version; one that was never seen where nobody can say."""
        version = await self._shared.relation_version(user_id)
        return await self._mint() if version is None else version

    async def answer(self, request: pb.GetVisibilityFilterRequest) -> pb.GetVisibilityFilterResponse:
        """The response, in memory of its own."""
        reader = await self._reader(request.user_id)
        authors = await self._authors(request.user_id, reader, request.candidate_ids)
        return pb.GetVisibilityFilterResponse(
            blocked_ids=reader.blocked,
            muted_ids=reader.muted,
            following_ids=[i for i, (follows, _) in authors.items() if follows] if request.want_following else (),
            blocked_by_ids=[i for i, (_, blocks) in authors.items() if blocks],
            relation_version=reader.version,
        )

    async def _reader(self, user_id: int) -> _Reader:
        version = await self._shared.relation_version(user_id)
        if version is None:
            # Nobody vouches for what is kept, and nobody will for this.
            return await self._load(user_id, await self._mint())
        kept = self._readers.get(user_id)
        if kept is not None and kept.version == version:
            return kept
        # Those who ask under one version share one read, and so one answer.
        task = self._loading.get((user_id, version))
        if task is None:
            task = self._loading[user_id, version] = asyncio.create_task(self._load(user_id, version))
            task.add_done_callback(lambda _: self._loading.pop((user_id, version), None))
        reader = await asyncio.shield(task)
        if len(reader.blocked) + len(reader.muted) <= MAX_KEPT_EDGES:
            self._readers[user_id] = reader
        return reader

    async def _load(self, user_id: int, version: int) -> _Reader:
        blocked, muted = await asyncio.gather(self._all(Listing.BLOCKS, user_id), self._all(Listing.MUTES, user_id))
        return _Reader(version, blocked, muted)

    async def _all(self, listing: Listing, user_id: int) -> array[int]:
        found, below = array("q"), TOP
        while True:
            page = await self._keyspace.read(schema.PAGES[listing], user_id, *below, PAGE_ROWS)
            found.extend(other_id for _, other_id in page)
            if len(page) < PAGE_ROWS:
                return found
            below = Position(*page[-1])

    async def _authors(self, user_id: int, reader: _Reader, asked: Iterable[int]) -> dict[int, tuple[bool, bool]]:
        wanted = dict.fromkeys(asked)
        known = reader.authors
        found = {i: known[i] for i in wanted if i in known}
        unknown: Sequence[int] = [i for i in wanted if i not in found and i != user_id]
        if unknown:
            keys = [ends(user_id, other) for other in unknown]
            rows = await self._keyspace.read_each(schema.PAIR, keys)
            for other, key, row in zip(unknown, keys, rows, strict=True):
                tie = Pair.of(*key, row[0] if row else None).relationship(user_id)
                found[other] = (tie.following, tie.blocked_by)
            if len(known) + len(unknown) > MAX_AUTHORS:
                known.clear()
            known.update(found)
            if self._readers.get(user_id) is reader:
                # Put in again, so that it is weighed again.
                self._readers[user_id] = reader
        return found
