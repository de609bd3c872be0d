"""Creates and deletes generations of indexes on OpenSearch, and puts a new generation in use.

A generation has one index per collection, such as `<namespace>-tweets-v2-7` for generation 7. Aliases show the state of
an index, and OpenSearch changes several aliases atomically: `<namespace>-tweets-v2` is on the index in use, `…-filled`
on an index that was filled completely, and `…-filling-8` on the index of generation 8 while it is built. A build writes
through its `…-filling-` alias, so it cannot write after it was discarded.
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

# Maximum number of attempts of `ensure`. A second is needed if two processes create the first index concurrently, a
# third if yet another process deletes the duplicate.
TRIES = 5

_WORDS = {Collection.TWEETS: "tweets", Collection.USERS: "users"}
_EXISTS = "resource_already_exists_exception"
log = structlog.get_logger(__name__)


class GenerationState(NamedTuple):
    """The generations on the server.

    `current` has the numbers of the indexes in use by collection: one, or none before the first is created, or two if
    two processes created one concurrently. `filled` is true if the index in use of each collection was filled
    completely. `filling` are the generations that are being built. `numbers` are all generations.
    """

    current: dict[Collection, tuple[int, ...]]
    filled: bool
    filling: frozenset[int]
    numbers: frozenset[int]

    @property
    def retired(self) -> frozenset[int]:
        """The generations without an alias, which were in use before."""
        return self.numbers - self.filling - {number for numbers in self.current.values() for number in numbers}

    @property
    def number(self) -> int:
        """The generation in use; 0 if a collection has no index in use."""
        return min(max(numbers, default=0) for numbers in self.current.values())


class IndexGenerations:
    """Creates and deletes indexes and changes aliases. All methods raise UNAVAILABLE if OpenSearch does not answer."""

    def __init__(self, opensearch: OpenSearch, namespace: str, shards: int) -> None:
        self._opensearch = opensearch
        self._shards = shards
        # Lets one call of `ensure` run at a time, so that calls of this process create no duplicates.
        self._ensuring = asyncio.Lock()
        self._bases = {kind: f"{namespace}-{word}-v{FORMAT}" for kind, word in _WORDS.items()}

    def alias(self, collection: Collection) -> str:
        """Returns the alias of the collection's index in use, for reads and writes."""
        return self._bases[collection]

    def filling(self, collection: Collection, number: int) -> str:
        """Returns the alias of the collection's index in the generation `number` while that is being built."""
        return f"{self._bases[collection]}-filling-{number}"

    async def state(self) -> GenerationState:
        """Reads the state of all generations with one request."""
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
        """Creates an empty index for each collection that has no index in use. Returns the state afterwards."""
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
                # Two indexes of one collection are in use: while one process created an empty index, another put a
                # built one in use. The built one has the lower number, because its build began earlier. It stays, and
                # the other is deleted.
                await self._delete(kind, sorted(state.current[kind])[1:])
        raise unavailable("another process is creating the search index: retry later")

    async def begin(self) -> int:
        """Discards builds in progress, creates the indexes of a new generation, and returns its number. From now on the
        generation is among `filling` of `state`, so processes write changes to it too. Raises UNAVAILABLE if another
        process creates a generation with the same number at the same time, or if OpenSearch does not answer."""
        state = await self.ensure()
        await self.remove(state.filling)
        number = max(state.numbers) + 1
        made = await asyncio.gather(*(self._create(kind, number, self.filling(kind, number)) for kind in Collection))
        if not all(made):
            raise unavailable("another process is creating a search index of the same number: retry later")
        return number

    async def take_over(self, number: int) -> None:
        """Puts the generation `number` in use in place of the earlier generation, atomically. Does not delete the
        earlier generation, because searches may still read it. Raises FAILED_PRECONDITION if another process discarded
        the generation `number`."""
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
        """Deletes the generation `number` if it is still being built."""
        if number in (await self.state()).filling:
            await self.remove((number,))

    async def remove_retired(self, before: int) -> None:
        """Deletes the retired generations below the number `before`."""
        retired = (await self.state()).retired
        await self.remove(number for number in retired if number < before)

    async def remove(self, numbers: Iterable[int]) -> None:
        """Deletes the generations with these numbers. Ignores indexes that do not exist."""
        gone = list(numbers)
        await asyncio.gather(*(self._delete(kind, gone) for kind in Collection))

    async def refresh(self, names: Iterable[str]) -> None:
        """Makes all writes through the aliases `names` visible to searches."""
        await self._opensearch.call(
            "POST", f"/{','.join(names)}/_refresh", None, BACKGROUND_TIMEOUT_S, {"ignore_unavailable": "true"}
        )

    async def _create(self, kind: Collection, number: int, alias: str) -> bool:
        """Creates the collection's index `number` with the alias. Returns False if it exists."""
        body = index_body(self._shards, alias)
        try:
            made = await self._opensearch.call("PUT", f"/{self._bases[kind]}-{number}", body, BACKGROUND_TIMEOUT_S)
        except RequestRejected as error:
            if error.status == BAD_REQUEST and error.kind == _EXISTS:
                return False
            raise
        if not made["acknowledged"]:
            # Some nodes do not know the new alias yet. `state`, read from such a node, would lack it, and changes would
            # not be written to the new index.
            raise unavailable("not all OpenSearch nodes know the new search index yet: retry later")
        return True

    async def _delete(self, kind: Collection, numbers: Iterable[int]) -> None:
        for number in numbers:
            try:
                await self._opensearch.call("DELETE", f"/{self._bases[kind]}-{number}", timeout_s=BACKGROUND_TIMEOUT_S)
            except RequestRejected as error:
                if error.status != NOT_FOUND:
                    raise
