"""Finding people by their names, the best first, as the reader may see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.identity.v1 import user_pb2
from roost.identity.v1 import user_service_pb2 as identity
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.common.cursor import Cursors
from services.hydration.people import Entry, Page, PeopleLists
from services.search.documents import handle_prefix_term, name_prefix_term, username_term
from services.search.query import MAX_TERMS
from services.search.store import Collection, Query, SearchIndex
from services.search.words import words

# How many a search reaches, of each kind of match; the contract's bound for counts is 500 at once.
MAX_BY_HANDLE = 100
MAX_BY_NAME = 200
# Above every place in a list of people.
MAX_FOUND_PLACE = 1 + MAX_BY_HANDLE + MAX_BY_NAME

# What usernames are made of, folded.
_HANDLE_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")


class PeopleSearch:
    """Finds people. Raises AioRpcError where identity or graph cannot answer: nobody is shown unchecked."""

    def __init__(self, channel: grpc.aio.Channel, index: SearchIndex, cursors: Cursors) -> None:
        users, graphs = UserServiceStub(channel), GraphServiceStub(channel)
        self._get_refs: Any = users.BatchGetUserRefs
        self._get_filter: Any = graphs.GetVisibilityFilter
        self._get_counts: Any = graphs.BatchGetUserCounts
        self._index = index
        self._lists = PeopleLists(users, graphs.GetVisibilityFilter, cursors)

    async def page(self, text: str, cursor: str, size: int, reader_id: int) -> Page:
        """A page of those who match, and the cursor behind it: the one of that very name, then whose username begins so, then
        those with words in their names that begin with all of these words; within each the most followed first."""
        found = await self._find(text)

        async def fetch(below: Entry | None, limit: int) -> Sequence[Entry]:
            start = 0 if below is None else MAX_FOUND_PLACE - below[0] + 1
            return [(MAX_FOUND_PLACE - at, found[at]) for at in range(start, min(start + limit, len(found)))]

        name = f"search_users/{text.strip().casefold()}"
        return await self._lists.page(name, fetch, cursor, size, reader_id=reader_id)

    async def suggest(self, text: str, limit: int, reader_id: int) -> list[user_pb2.UserRef]:
        """Up to `limit` (≤ 100) of those who match."""
        found = await self._find(text)
        shown: list[user_pb2.UserRef] = []
        # A few more than wanted, for some may be hidden; typing goes on in any case.
        ids = found[: 2 * limit]
        if not ids:
            return shown
        refs = (await self._get_refs(identity.BatchGetUserRefsRequest(ids=ids))).refs
        hidden: set[int] = set()
        if reader_id:
            request = graph.GetVisibilityFilterRequest(user_id=reader_id, candidate_ids=ids)
            answer = await self._get_filter(request)
            hidden = {*answer.blocked_ids, *answer.blocked_by_ids}
        for entry in refs:
            if entry.state == user_pb2.USER_STATE_ACTIVE and entry.user_id not in hidden and len(shown) < limit:
                shown.append(user_pb2.UserRef.FromString(entry.ref))
        return shown

    async def user_id(self, username: str) -> int:
        """The account of this name; 0 where there is none."""
        found = await self._index.oldest(Collection.USERS, Query(exact=(username_term(username),)), 1)
        return found[0] if found else 0

    async def _find(self, text: str) -> list[int]:
        tiers: list[Sequence[int]] = []
        asked = words(text)[:MAX_TERMS]
        handle = asked[0] if len(asked) == 1 else ""
        if handle and _HANDLE_CHARS.issuperset(handle):
            if exact := await self.user_id(handle):
                tiers.append((exact,))
            tiers.append(await self._tier((handle_prefix_term(handle),), MAX_BY_HANDLE))
        if asked:
            tiers.append(await self._tier(tuple(dict.fromkeys(map(name_prefix_term, asked))), MAX_BY_NAME))
        followers = await self._followers(list(dict.fromkeys(user_id for tier in tiers for user_id in tier)))
        found: dict[int, None] = {}
        for tier in tiers:
            # Of equals the older account.
            found |= dict.fromkeys(sorted(tier, key=lambda user_id: (-followers.get(user_id, 0), user_id)))
        return list(found)

    async def _tier(self, terms: tuple[str, ...], limit: int) -> Sequence[int]:
        return await self._index.oldest(Collection.USERS, Query(exact=terms), limit)

    async def _followers(self, ids: Sequence[int]) -> dict[int, int]:
        if len(ids) < 2:
            return {}
        answer = await self._get_counts(graph.BatchGetUserCountsRequest(ids=ids))
        return {user_id: counts.followers for user_id, counts in answer.counts.items()}
