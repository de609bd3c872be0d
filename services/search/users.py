"""Searches users by name. A page has only the matches that the reader may see, best match first."""

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

# Number of low bits in the sort key of a match. They contain the number of followers; the higher bits contain the kind
# of match.
FOLLOWERS_BITS = 32

# The characters of a folded username.
_HANDLE_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")


class UserSearch:
    """Searches users. Methods raise AioRpcError if identity or graph does not answer, and UNAVAILABLE if the index
    cannot answer. A user whose visibility cannot be checked is never returned."""

    def __init__(self, channel: grpc.aio.Channel, index: SearchIndex, cursors: Cursors) -> None:
        users, graphs = UserServiceStub(channel), GraphServiceStub(channel)
        self._get_refs: Any = users.BatchGetUserRefs
        self._get_filter: Any = graphs.GetVisibilityFilter
        self._index = index
        self._lists = VisibleUserPages(users, graphs.GetVisibilityFilter, cursors)

    async def page(self, names: NameQuery, cursor: str, size: int, reader_id: int) -> UserPage:
        """Returns a page of matching users and the next cursor (empty on the last page).

        There are three kinds of matches, in this order: the user whose username equals the query; users whose username
        begins with the query; users whose username and display name have, for each word of the query, a word that
        begins with it. Within a kind, users with more followers come first, and of users with equally many followers,
        the older account.
        """
        kinds = _match_kinds(names)

        async def fetch(below: ListEntry | None, limit: int) -> Sequence[ListEntry]:
            return await self._find(kinds, below, limit)

        return await self._lists.page(f"found_people/{names!r}", fetch, cursor, size, reader_id=reader_id)

    async def suggest(self, names: NameQuery, limit: int, reader_id: int) -> list[user_pb2.UserRef]:
        """Returns up to `limit` (≤ 100) matching users whom the reader may see, in the order of `page`. May return
        fewer although more exist."""
        shown: list[user_pb2.UserRef] = []
        # Reads twice the limit, because some users may be hidden from the reader. One read is enough, because clients
        # call again at the next keystroke.
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
        """Returns the id of the user with this username; 0 if there is none."""
        found = await self._index.ranked(Collection.USERS, Query(exact=(username_term(username),)), None, 1)
        return found[0].id if found else 0

    async def _find(self, kinds: Sequence[Query], below: ListEntry | None, limit: int) -> list[ListEntry]:
        """Returns up to `limit` matches after `below` (None: from the first on) as (sort key, user id). `kinds` are the
        queries of `_match_kinds`."""
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
    """Returns a query for each kind of match (see `UserSearch.page`), best kind first. Each query excludes the matches
    of the earlier ones."""
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
