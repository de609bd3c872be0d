"""The indexes on OpenSearch: which are in use, which is being built, and the change from one to the other.

Each collection has one index a generation, `<namespace>-tweets-v1-7`. All that is known of them is their aliases, which the server
changes in one step for all processes: `<namespace>-tweets-v1` is the one in use, `…-filled` says that it was filled from the owners,
`…-filling-8` is the one being built, and names it to whoever fills it, so that nobody writes into one that was given up.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import structlog

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

# Of two processes that make the first index at once one is told that it is there; once more is for a third that removes it.
TRIES = 5

_WORDS = {Collection.TWEETS: "tweets", Collection.USERS: "users"}
_EXISTS = "resource_already_exists_exception"
_log = structlog.get_logger(__name__)


class Standing(NamedTuple):
    """The generations there are: of each collection the one in use (0: none), whether all were filled, those being built, and all."""

    current: dict[Collection, tuple[int, ...]]
    filled: bool
    filling: frozenset[int]
    numbers: frozenset[int]

    @property
    def retired(self) -> frozenset[int]:
        """Generations that served, and that no name leads to any more."""
        return self.numbers - self.filling - {number for numbers in self.current.values() for number in numbers}

    @property
    def number(self) -> int:
        """The generation in use; 0 where there is none, or not of all collections."""
        return min(max(numbers, default=0) for numbers in self.current.values())


class Generations:
    """Makes indexes and changes aliases. All errors of the server are UNAVAILABLE, but those named."""

    def __init__(self, opensearch: OpenSearch, namespace: str, shards: int) -> None:
        self._opensearch = opensearch
        self._shards = shards
        # Those of this process who find none wait for the first.
        self._ensuring = asyncio.Lock()
        self._bases = {kind: f"{namespace}-{word}-v{FORMAT}" for kind, word in _WORDS.items()}

    def alias(self, collection: Collection) -> str:
        """The name under which the index in use is read and written."""
        return self._bases[collection]

    def filling(self, collection: Collection, number: int) -> str:
        """The name under which the index of this number is written while it is being built."""
        return f"{self._bases[collection]}-filling-{number}"

    async def standing(self) -> Standing:
        """What there is now, as one moment."""
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
        return Standing(current, filled == set(Collection), frozenset(filling), frozenset(numbers))

    async def ensure(self) -> Standing:
        """Makes an index, not filled, of each collection that has none in use."""
        async with self._ensuring:
            return await self._ensure()

    async def _ensure(self) -> Standing:
        for _ in range(TRIES):
            standing = await self.standing()
            missing = [kind for kind, numbers in standing.current.items() if not numbers]
            twice = [kind for kind, numbers in standing.current.items() if len(numbers) > 1]
            if not missing and not twice:
                return standing
            number = max(standing.numbers, default=0) + 1
            for kind in missing:
                _log.info("a search index is made", name=self._bases[kind])
            await asyncio.gather(*(self._create(kind, number, self._bases[kind]) for kind in missing))
            for kind in twice:
                # Made while another process took over: what was taken over is the older one, for it was begun before.
                await self._delete(kind, sorted(standing.current[kind])[1:])
        raise unavailable("the search index is made by another process")

    async def begin(self) -> int:
        """Gives up what was being built, makes new indexes, and answers their number: changes go there from now on."""
        standing = await self.ensure()
        await self.remove(standing.filling)
        number = max(standing.numbers) + 1
        made = await asyncio.gather(*(self._create(kind, number, self.filling(kind, number)) for kind in Collection))
        if not all(made):
            raise unavailable("another process makes an index of the same number")
        return number

    async def take_over(self, number: int) -> None:
        """Puts the generation in use in place of the one before, in one step. FAILED_PRECONDITION where it was given up.

        The one before is retired, not removed: searches are under way in it.
        """
        standing = await self.standing()
        actions: list[dict[str, Any]] = []
        for kind, base in self._bases.items():
            index = f"{base}-{number}"
            actions += [
                {"remove": {"index": f"{base}-{old}", "aliases": [base, f"{base}-filled"], "must_exist": False}}
                for old in standing.current[kind]
                if old != number
            ]
            actions += [{"add": {"index": index, "alias": alias}} for alias in (base, f"{base}-filled")]
            actions.append({"remove": {"index": index, "alias": self.filling(kind, number), "must_exist": True}})
        try:
            await self._opensearch.call("POST", "/_aliases", {"actions": actions}, BACKGROUND_TIMEOUT_S)
        except RequestRejected as error:
            if error.status == NOT_FOUND:
                raise errors.failed_precondition("the index that was being built was given up") from error
            raise

    async def give_up(self, number: int) -> None:
        """Removes the generation if it is still being built."""
        if number in (await self.standing()).filling:
            await self.remove((number,))

    async def remove_retired(self, before: int) -> None:
        """Removes retired generations of lower numbers than `before`."""
        retired = (await self.standing()).retired
        await self.remove(number for number in retired if number < before)

    async def remove(self, numbers: Iterable[int]) -> None:
        """Removes these generations."""
        gone = list(numbers)
        await asyncio.gather(*(self._delete(kind, gone) for kind in Collection))

    async def refresh(self, names: Iterable[str]) -> None:
        """Lets everything that was written under these names be found."""
        await self._opensearch.call(
            "POST", f"/{','.join(names)}/_refresh", None, BACKGROUND_TIMEOUT_S, {"ignore_unavailable": "true"}
        )

    async def _create(self, kind: Collection, number: int, alias: str) -> bool:
        body = index_body(self._shards, alias)
        try:
            made = await self._opensearch.call("PUT", f"/{self._bases[kind]}-{number}", body, BACKGROUND_TIMEOUT_S)
        except RequestRejected as error:
            if error.status == BAD_REQUEST and error.kind == _EXISTS:
                return False
            raise
        if not made["acknowledged"]:
            # Nodes that do not know of it would send changes past it.
            raise unavailable("not all nodes know of the new index yet")
        return True

    async def _delete(self, kind: Collection, numbers: Iterable[int]) -> None:
        for number in numbers:
            try:
                await self._opensearch.call("DELETE", f"/{self._bases[kind]}-{number}", timeout_s=BACKGROUND_TIMEOUT_S)
            except RequestRejected as error:
                if error.status != NOT_FOUND:
                    raise
