"""Manages the indexes on OpenSearch by aliases: which is in use, which is being built, and the switch between them.

Each collection has one index for each generation, such as `<namespace>-tweets-v1-7`. All state is in aliases, which
the server changes atomically for all processes: `<namespace>-tweets-v1` is on the index in use, `…-filled` on an
index that was filled completely, and `…-filling-8` on the index being built. Builders write through the last one, so
that nothing is written into a discarded build.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import structlog

from services.platform.log_events import LogEvent
from services.platform.opensearch.client import (
    BACKGROUND_TIMEOUT_S,
    BAD_REQUEST,
    NOT_FOUND,
    OpenSearch,
    RequestRejected,
    unavailable,
)
from services.platform.rpc import errors
from services.search.store import Collection
from services.search.store.opensearch.requests import FORMAT, index_body

# Attempts to create the first index: if two processes create it at the same time, a second attempt is needed; if a
# third process removes the duplicate, one more.
TRIES = 5

_WORDS = {Collection.TWEETS: "tweets", Collection.USERS: "users"}
_EXISTS = "resource_already_exists_exception"
log = structlog.get_logger(__name__)


class GenerationState(NamedTuple):
    """The generations on the server.

    `current`: for each collection the generations in use (normally one; empty: none). `filled`: True if the indexes
    of all collections were filled. `filling`: the generations being built. `numbers`: all generations.
    """

    current: dict[Collection, tuple[int, ...]]
    filled: bool
    filling: frozenset[int]
    numbers: frozenset[int]

    @property
    def retired(self) -> frozenset[int]:
        """The generations that were in use before and have no alias any more."""
        return self.numbers - self.filling - {number for numbers in self.current.values() for number in numbers}

    @property
    def number(self) -> int:
        """The generation in use; 0 if a collection has none."""
        return min(max(numbers, default=0) for numbers in self.current.values())


class IndexGenerations:
    """Creates indexes and changes aliases. All methods raise UNAVAILABLE if the server fails."""

    def __init__(self, opensearch: OpenSearch, namespace: str, shards: int) -> None:
        self._opensearch = opensearch
        self._shards = shards
        # Concurrent calls of `ensure` in this process wait for the first of them.
        self._ensuring = asyncio.Lock()
        self._bases = {kind: f"{namespace}-{word}-v{FORMAT}" for kind, word in _WORDS.items()}

    def alias(self, collection: Collection) -> str:
        """Returns the alias of the index in use, for reads and writes."""
        return self._bases[collection]

    def filling(self, collection: Collection, number: int) -> str:
        """Returns the alias for writes to the index with this number while it is being built."""
        return f"{self._bases[collection]}-filling-{number}"

    async def state(self) -> GenerationState:
        """Returns the generations as the server has them, from one request."""
        pattern = ",".join(f"{base}-*" for base in self._bases.values())
        found = await self._opensearch.call("GET", f"/{pattern}/_alias", timeout_s=BACKGROUND_TIMEOUT_S)
        current: dict[Collection, tuple[int, ...]] = dict.fromkeys(Collection, ())
        filled: set[Collection] = set()
        filling: set[int] = set()
        numbers: set[int] = set()
        for name, entry in found.items():
            for kind, base in self._bases.items():
                match = re.fullmatch(rf"{re.escape(base)}-(\d+)", name)
                if match is None:
                    continue
                number, aliases = int(match[1]), entry["aliases"]
                numbers.add(number)
                if base in aliases:
                    current[kind] += (number,)
                if f"{base}-filled" in aliases:
                    filled.add(kind)
                if self.filling(kind, number) in aliases:
                    filling.add(number)
        return GenerationState(current, filled == set(Collection), frozenset(filling), frozenset(numbers))

    async def ensure(self) -> GenerationState:
        """Creates an empty index for each collection without an index in use, and returns the state of all
        generations."""
        async with self._ensuring:
            return await self._ensure()

    async def _ensure(self) -> GenerationState:
        for _ in range(TRIES):
            state = await self.state()
            missing = [kind for kind, numbers in state.current.items() if not numbers]
            duplicates = [kind for kind, numbers in state.current.items() if len(numbers) > 1]
            if not missing and not duplicates:
                return state
            number = max(state.numbers, default=0) + 1
            for kind in missing:
                log.info(LogEvent.SEARCH_INDEX_CREATED, name=self._bases[kind])
            await asyncio.gather(*(self._create(kind, number, self._bases[kind]) for kind in missing))
            for kind in duplicates:
                # Two indexes of one collection are in use: while this process created an empty one, another process put
                # a built one in use. The index with the lower number is the built one, because its build began earlier;
                # it stays, and the other one is deleted.
                await self._delete(kind, sorted(state.current[kind])[1:])
        raise unavailable("another process is creating the search index: try again")

    async def begin(self) -> int:
        """Discards a build in progress, creates one new index for each collection, and returns the number of their
        generation. From then on `state` reports this generation as being built, and callers write changes to it too.
        """
        state = await self.ensure()
        await self.remove(state.filling)
        number = max(state.numbers) + 1
        made = await asyncio.gather(*(self._create(kind, number, self.filling(kind, number)) for kind in Collection))
        if not all(made):
            raise unavailable("another process is creating a search index of the same number: try again")
        return number

    async def take_over(self, number: int) -> None:
        """Puts the generation `number` in use, in place of the generation that was in use before, atomically.

        Does not delete the earlier generation, because searches may be running in it. Raises FAILED_PRECONDITION if
        another process discarded the generation `number`.
        """
        state = await self.state()
        actions: list[dict[str, Any]] = []
        for kind, base in self._bases.items():
            index = f"{base}-{number}"
            actions += [
                {"remove": {"index": f"{base}-{old}", "aliases": [base, f"{base}-filled"], "must_exist": False}}
                for old in state.current[kind]
                if old != number
            ]
            actions += [{"add": {"index": index, "alias": alias}} for alias in (base, f"{base}-filled")]
            actions.append({"remove": {"index": index, "alias": self.filling(kind, number), "must_exist": True}})
        try:
            await self._opensearch.call("POST", "/_aliases", {"actions": actions}, BACKGROUND_TIMEOUT_S)
        except RequestRejected as error:
            if error.status == NOT_FOUND:
                raise errors.failed_precondition(
                    "another process discarded the search index being built: start a reindex again"
                ) from error
            raise

    async def discard(self, number: int) -> None:
        """Deletes the generation `number` if its build is not finished."""
        if number in (await self.state()).filling:
            await self.remove((number,))

    async def remove_retired(self, before: int) -> None:
        """Deletes the retired generations with numbers below `before`."""
        retired = (await self.state()).retired
        await self.remove(number for number in retired if number < before)

    async def remove(self, numbers: Iterable[int]) -> None:
        """Deletes the generations with these numbers. An index that is already gone is no error."""
        gone = list(numbers)
        await asyncio.gather(*(self._delete(kind, gone) for kind in Collection))

    async def refresh(self, names: Iterable[str]) -> None:
        """Makes everything that was written through these aliases searchable."""
        await self._opensearch.call(
            "POST", f"/{','.join(names)}/_refresh", None, BACKGROUND_TIMEOUT_S, {"ignore_unavailable": "true"}
        )

    async def _create(self, kind: Collection, number: int, alias: str) -> bool:
        """Creates an index with the alias and returns True; returns False if the index exists."""
        body = index_body(self._shards, alias)
        try:
            made = await self._opensearch.call("PUT", f"/{self._bases[kind]}-{number}", body, BACKGROUND_TIMEOUT_S)
        except RequestRejected as error:
            if error.status == BAD_REQUEST and error.kind == _EXISTS:
                return False
            raise
        if not made["acknowledged"]:
            # A node that does not know the new alias yet would not send changes to it.
            raise unavailable("not all OpenSearch nodes know the new search index yet: try again")
        return True

    async def _delete(self, kind: Collection, numbers: Iterable[int]) -> None:
        for number in numbers:
            try:
                await self._opensearch.call("DELETE", f"/{self._bases[kind]}-{number}", timeout_s=BACKGROUND_TIMEOUT_S)
            except RequestRejected as error:
                if error.status != NOT_FOUND:
                    raise
