"""Lists of people: entries of the store, as users whom the reader may see."""

from __future__ import annotations

from collections.abc import Sequence

from roost.identity.v1 import user_pb2, user_service_pb2
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.graph.store import GraphStore, Listing, Position
from services.platform.pagination.cursors import Cursors
from services.platform.rpc import errors
from services.shared.hydration.user_pages import ListEntry, UserPage, VisibleUserPages

DEFAULT_PAGE_SIZE = 20
# How far suggestions reach; they are found anew for every page, so deep pages would only repeat the work.
MAX_SUGGESTIONS = 200


class People:
    """Pages of users for one reader (0 is nobody). A cursor is good for its list, and of a private one for its owner only."""

    def __init__(self, store: GraphStore, identity: UserServiceStub, cursors: Cursors) -> None:
        self._store = store
        self._identity = identity
        self._cursors = cursors
        self._lists = VisibleUserPages(identity, store.visibility, cursors)

    async def states(self, user_ids: Sequence[int]) -> dict[int, user_pb2.UserState.ValueType]:
        """The states of those that identity knows."""
        answer = await self._identity.BatchGetUserRefs(user_service_pb2.BatchGetUserRefsRequest(ids=user_ids))
        return {entry.user_id: entry.state for entry in answer.refs}

    async def require_active(self, user_id: int) -> None:
        """NOT_FOUND unless the user is there and takes part."""
        if (await self.states((user_id,))).get(user_id) != user_pb2.USER_STATE_ACTIVE:
            raise errors.not_found("no such user")

    async def public_page(self, listing: Listing, user_id: int, reader_id: int, cursor: str, size: int) -> UserPage:
        """Followers or followees of a user; people hidden from the reader are left out.

        NOT_FOUND if the user does not take part, or blocks the reader or is blocked by the reader.
        """
        await self.require_active(user_id)
        if reader_id not in (0, user_id):
            (tie,) = await self._store.relationships(reader_id, (user_id,))
            if tie.blocked_by or tie.blocking:
                raise errors.not_found("no such user")
        return await self._page(listing, user_id, 0, reader_id, cursor, size)

    async def private_page(self, listing: Listing, user_id: int, cursor: str, size: int) -> UserPage:
        """Whom the caller blocks or mutes: also those who are hidden from the caller otherwise."""
        return await self._page(listing, user_id, user_id, 0, cursor, size)

    async def suggestions(self, user_id: int, cursor: str, size: int) -> UserPage:
        """Returns people followed by the caller's followees, then those with the most followers, so that a new user gets some too."""
        start = int(self._cursors.open(cursor, "suggestions", user_id)[0]) if cursor else 0
        found = await self._store.suggestions(user_id, MAX_SUGGESTIONS)
        if len(found) < MAX_SUGGESTIONS:
            found = (found + await self._popular(user_id, found))[:MAX_SUGGESTIONS]
        users = await self._lists.users(found[start : start + size])
        end = start + size
        return users, self._cursors.seal("suggestions", user_id, end) if end < len(found) else ""

    async def _popular(self, user_id: int, but: Sequence[int]) -> list[int]:
        """Returns the most followed people whom the user may follow and does not, without those of `but`."""
        known = {user_id, *but}
        others = [other for other in await self._store.popular(MAX_SUGGESTIONS) if other not in known]
        ties = await self._store.relationships(user_id, others)
        return [t.user_id for t in ties if not (t.following or t.blocking or t.blocked_by or t.muting)]

    async def _page(
        self, listing: Listing, user_id: int, cursor_owner_id: int, reader_id: int, cursor: str, size: int
    ) -> UserPage:
        async def fetch(below: ListEntry | None, limit: int) -> Sequence[ListEntry]:
            return await self._store.page(listing, user_id, Position(*below) if below else None, limit)

        return await self._lists.page(
            f"{listing.value}/{user_id}", fetch, cursor, size, reader_id=reader_id, cursor_owner_id=cursor_owner_id
        )
