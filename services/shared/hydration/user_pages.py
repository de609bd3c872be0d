"""Builds pages of users from the entries of a store, without users whom the reader may not see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Sequence

from roost.graph.v1 import graph_service_pb2 as graph
from roost.identity.v1 import user_pb2, user_service_pb2
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.platform.pagination.cursors import Cursors

# Maximum number of reads for one page. After them, a short page with a cursor is returned: if nearly all users of a
# long list are hidden, a short page is better than a slow page.
MAX_ROUNDS = 10

# (sort key, user id) of one entry of a list. Lists are in descending order; the user id orders entries with equal keys.
ListEntry = tuple[int, int]
# A function `(after, limit)` that returns up to `limit` entries of a list after the entry `after` (None: from the
# start).
FetchEntries = Callable[[ListEntry | None, int], Awaitable[Sequence[ListEntry]]]
GetFilter = Callable[[graph.GetVisibilityFilterRequest], Awaitable[graph.GetVisibilityFilterResponse]]
UserPage = tuple[list[user_pb2.User], str]


class VisibleUserPages:
    """Builds pages of users whom a reader may see. `get_filter` is graph's GetVisibilityFilter. Methods raise
    UNAVAILABLE if identity or graph cannot answer."""

    def __init__(self, identity: UserServiceStub, get_filter: GetFilter, cursors: Cursors) -> None:
        self._identity = identity
        self._get_filter = get_filter
        self._cursors = cursors

    async def page(
        self, list_name: str, fetch: FetchEntries, cursor: str, size: int, *, reader_id: int, cursor_owner_id: int = 0
    ) -> UserPage:
        """Returns up to `size` (≤ 100) users of the list that `fetch` reads, and the next cursor, empty on the last
        page.

        Leaves out suspended and deactivated users, and users whom the reader blocks or who block the reader; for reader
        0 (not signed in) no blocks apply. The cursor is valid for the list `list_name` only, and if `cursor_owner_id`
        is not 0, for that user only.
        """
        below: ListEntry | None = None
        if cursor:
            place, last_id = self._cursors.open(cursor, list_name, cursor_owner_id)
            below = int(place), int(last_id)
        users: list[user_pb2.User] = []
        for _ in range(MAX_ROUNDS):
            wanted = size - len(users)
            # Reads one entry more than the page needs, which shows whether another page follows.
            found = await fetch(below, wanted + 1)
            users += await self._visible([user_id for _, user_id in found[:wanted]], reader_id)
            if len(found) <= wanted:
                return users, ""
            below = found[wanted - 1]
            if len(users) == size:
                break
        # `below` is not None here, because a read that found more entries has set it.
        return users, self._cursors.seal(list_name, cursor_owner_id, *below) if below else ""

    async def users(self, user_ids: Sequence[int]) -> list[user_pb2.User]:
        """Returns the users with these ids (≤ 100), in the order of `user_ids`. Leaves out unknown, suspended and
        deactivated users."""
        if not user_ids:
            return []
        answer = await self._identity.BatchGetUsers(user_service_pb2.BatchGetUsersRequest(ids=user_ids))
        return list(answer.users)

    async def _visible(self, user_ids: Sequence[int], reader_id: int) -> Sequence[user_pb2.User]:
        hidden: Container[int] = ()
        if reader_id and user_ids:
            request = graph.GetVisibilityFilterRequest(user_id=reader_id, candidate_ids=user_ids)
            answer = await self._get_filter(request)
            hidden = {*answer.blocked_ids, *answer.blocked_by_ids}
        return await self.users([user_id for user_id in user_ids if user_id not in hidden])
