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

from services.platform.pagination.cursors import Cursors
from services.search.documents import handle_prefix_term, name_prefix_term, username_term
from services.search.query import Names
from services.search.store import Collection, Place, Query, SearchIndex
from services.shared.hydration.user_pages import ListEntry, UserPage, VisibleUserPages

# In an entry's place among the people found the kind of match stands above these bits, and the number of followers in them.
FOLLOWERS_BITS = 32

# What usernames are made of, folded.
_HANDLE_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")


class PeopleSearch:
    """Finds people. Raises AioRpcError where identity or graph cannot answer: nobody is shown unchecked."""

    def __init__(self, channel: grpc.aio.Channel, index: SearchIndex, cursors: Cursors) -> None:
        users, graphs = UserServiceStub(channel), GraphServiceStub(channel)
        self._get_refs: Any = users.BatchGetUserRefs
        self._get_filter: Any = graphs.GetVisibilityFilter
        self._index = index
        self._lists = VisibleUserPages(users, graphs.GetVisibilityFilter, cursors)

    async def page(self, names: Names, cursor: str, size: int, reader_id: int) -> UserPage:
        """A page of those who match, and the cursor behind it: the one of that very name, then whose username begins so, then
        those with words in their names that begin with all of these words; within each the most followed first, of equals the
        older account. Pages reach everybody who matches, each in at most one search of the index for each kind of match."""
        tiers = _tiers(names)

        async def fetch(below: ListEntry | None, limit: int) -> Sequence[ListEntry]:
            return await self._find(tiers, below, limit)

        return await self._lists.page(f"found_people/{names!r}", fetch, cursor, size, reader_id=reader_id)

    async def suggest(self, names: Names, limit: int, reader_id: int) -> list[user_pb2.UserRef]:
        """Up to `limit` (≤ 100) of those who match."""
        shown: list[user_pb2.UserRef] = []
        # A few more than wanted, for some may be hidden; typing goes on in any case.
        ids = [user_id for _, user_id in await self._find(_tiers(names), None, 2 * limit)]
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
        found = await self._index.ranked(Collection.USERS, Query(exact=(username_term(username),)), None, 1)
        return found[0].id if found else 0

    async def _find(self, tiers: Sequence[Query], below: ListEntry | None, limit: int) -> list[ListEntry]:
        """Up to `limit` people behind `below`, the first tier first."""
        tier, after = 0, None
        if below is not None:
            tier = len(tiers) - 1 - (below[0] >> FOLLOWERS_BITS)
            after = Place(below[0] & ((1 << FOLLOWERS_BITS) - 1), below[1])
        found: list[ListEntry] = []
        while tier < len(tiers) and len(found) < limit:
            places = await self._index.ranked(Collection.USERS, tiers[tier], after, limit - len(found))
            above = (len(tiers) - 1 - tier) << FOLLOWERS_BITS
            found += [(above + place.rank, place.id) for place in places]
            tier, after = tier + 1, None
        return found


def _tiers(names: Names) -> list[Query]:
    """The kinds of match, the best first; each leaves out whom one before it finds."""
    if not names.words:
        return []
    excluded = tuple(map(name_prefix_term, names.excluded))
    tiers: list[Query] = []
    handle = names.words[0] if len(names.words) == 1 else ""
    found_before: tuple[str, ...] = ()
    if handle and _HANDLE_CHARS.issuperset(handle):
        for term in (username_term(handle), handle_prefix_term(handle)):
            tiers.append(Query(exact=(term,), excluded_exact=(*found_before, *excluded)))
            found_before = (term,)
    terms = tuple(dict.fromkeys(map(name_prefix_term, names.words)))
    return [*tiers, Query(exact=terms, excluded_exact=(*found_before, *excluded))]
