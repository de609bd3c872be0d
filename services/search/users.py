"""Searches users by name and returns the matches that the reader may see, best match first."""

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
from services.search.query import NameQuery
from services.search.store import Collection, Query, RankPosition, SearchIndex
from services.shared.hydration.user_pages import ListEntry, UserPage, VisibleUserPages

# The low bits of a list entry's order key, which hold the number of followers; the higher bits hold the kind of match.
FOLLOWERS_BITS = 32

# The characters of a folded username.
_HANDLE_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")


class UserSearch:
    """Searches users. Methods raise grpc.aio.AioRpcError if a call of identity or graph fails, and UNAVAILABLE if the
    index cannot answer. If the visibility of a user cannot be checked, they raise one of these errors.
    """

    def __init__(self, channel: grpc.aio.Channel, index: SearchIndex, cursors: Cursors) -> None:
        users, graphs = UserServiceStub(channel), GraphServiceStub(channel)
        self._get_refs: Any = users.BatchGetUserRefs
        self._get_filter: Any = graphs.GetVisibilityFilter
        self._index = index
        self._lists = VisibleUserPages(users, graphs.GetVisibilityFilter, cursors)

    async def page(self, names: NameQuery, cursor: str, size: int, reader_id: int) -> UserPage:
        """Returns a page of matching users, and the cursor of the next page (empty on the last).

        There are three kinds of matches, in this order: the user whose username equals the query; users whose username
        begins with the query; users whose names contain, for each word of the query, a word that begins with that word.
        Within each kind, users are sorted by descending number of followers, and for equal numbers by age of the
        account, oldest first. Paging returns every match. Each page makes at most one index search for each kind.
        """
        kinds = _match_kinds(names)

        async def fetch(below: ListEntry | None, limit: int) -> Sequence[ListEntry]:
            return await self._find(kinds, below, limit)

        return await self._lists.page(f"found_people/{names!r}", fetch, cursor, size, reader_id=reader_id)

    async def suggest(self, names: NameQuery, limit: int, reader_id: int) -> list[user_pb2.UserRef]:
        """Returns up to `limit` (≤ 100) matching users whom the reader may see, in the order of `page`."""
        shown: list[user_pb2.UserRef] = []
        # Reads twice the limit, because some users may be hidden from the reader. A shorter response does no harm:
        # clients call again at the next keystroke.
        ids = [user_id for _, user_id in await self._find(_match_kinds(names), None, 2 * limit)]
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
        """Returns the id of the account with this username; 0 if there is none."""
        found = await self._index.ranked(Collection.USERS, Query(exact=(username_term(username),)), None, 1)
        return found[0].id if found else 0

    async def _find(self, kinds: Sequence[Query], below: ListEntry | None, limit: int) -> list[ListEntry]:
        """Returns up to `limit` users after `below` (None: from the first on), as (order key, user id), best kind of
        match first.
        """
        kind, after = 0, None
        if below is not None:
            kind = len(kinds) - 1 - (below[0] >> FOLLOWERS_BITS)
            after = RankPosition(below[0] & ((1 << FOLLOWERS_BITS) - 1), below[1])
        found: list[ListEntry] = []
        while kind < len(kinds) and len(found) < limit:
            places = await self._index.ranked(Collection.USERS, kinds[kind], after, limit - len(found))
            above = (len(kinds) - 1 - kind) << FOLLOWERS_BITS
            found += [(above + place.rank, place.id) for place in places]
            kind, after = kind + 1, None
        return found


def _match_kinds(names: NameQuery) -> list[Query]:
    """Returns one index query for each kind of match, best first. Each query excludes the users that the queries before
    it match."""
    if not names.words:
        return []
    excluded = tuple(map(name_prefix_term, names.excluded))
    kinds: list[Query] = []
    handle = names.words[0] if len(names.words) == 1 else ""
    found_before: tuple[str, ...] = ()
    if handle and _HANDLE_CHARS.issuperset(handle):
        for term in (username_term(handle), handle_prefix_term(handle)):
            kinds.append(Query(exact=(term,), excluded_exact=(*found_before, *excluded)))
            found_before = (term,)
    terms = tuple(dict.fromkeys(map(name_prefix_term, names.words)))
    return [*kinds, Query(exact=terms, excluded_exact=(*found_before, *excluded))]
