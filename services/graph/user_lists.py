"""Builds pages of users from the edges in the store: followers, followees, blocks, mutes and suggestions."""

from __future__ import annotations

from collections.abc import Sequence

from roost.identity.v1 import user_pb2, user_service_pb2
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.graph.store import GraphStores, Listing, Position
from services.platform.pagination.cursors import Cursors
from services.shared.hydration.user_pages import ListEntry, UserPage, VisibleUserPages
from services.shared.users import no_such_user

# Maximum number of suggestions over all pages. All suggestions are computed again for every page, so a greater number
# would make each page slower.
MAX_SUGGESTIONS = 200


class UserLists:
    """Builds pages of users as a reader may see them; the reader id 0 means that no reader is signed in.

    A cursor is valid for its own list only. A cursor of a private list (blocks, mutes, suggestions) is also valid for
    its owner only; any other use raises INVALID_ARGUMENT.
    """

    def __init__(self, stores: GraphStores, identity: UserServiceStub, cursors: Cursors) -> None:
        self._edges = stores.edges
        self._edge_lists = stores.lists
        self._identity = identity
        self._cursors = cursors
        self._lists = VisibleUserPages(identity, stores.visibility.filter, cursors)

    async def states(self, user_ids: Sequence[int]) -> dict[int, user_pb2.UserState.ValueType]:
        """Returns the state of each user by id; omits ids that identity does not know."""
        answer = await self._identity.BatchGetUserRefs(user_service_pb2.BatchGetUserRefsRequest(ids=user_ids))
        return {entry.user_id: entry.state for entry in answer.refs}

    async def require_active(self, user_id: int) -> None:
        """Raises NOT_FOUND unless the user exists and is active (neither suspended nor deactivated)."""
        if (await self.states((user_id,))).get(user_id) != user_pb2.USER_STATE_ACTIVE:
            raise no_such_user()

    async def public_page(self, listing: Listing, user_id: int, reader_id: int, cursor: str, size: int) -> UserPage:
        """Returns a page of the user's followers or followees, newest first, without users who are hidden from the
        reader.

        Raises NOT_FOUND if the user is not active, or if one of the two blocks the other.
        """
        await self.require_active(user_id)
        if reader_id not in (0, user_id):
            (relationship,) = await self._edges.relationships(reader_id, (user_id,))
            if relationship.blocked_by or relationship.blocking:
                raise no_such_user()
        return await self._page(listing, user_id, 0, reader_id, cursor, size)

    async def private_page(self, listing: Listing, user_id: int, cursor: str, size: int) -> UserPage:
        """Returns a page of the users whom `user_id` blocks or mutes, newest first. The page includes users who are
        hidden from `user_id` elsewhere."""
        return await self._page(listing, user_id, user_id, 0, cursor, size)

    async def suggestions(self, user_id: int, cursor: str, size: int) -> UserPage:
        """Returns a page of users to follow, at most MAX_SUGGESTIONS users over all pages.

        First come users followed by the user's own followees, then the most followed users, so that a new user gets
        suggestions too.
        """
        start = int(self._cursors.open(cursor, "suggestions", user_id)[0]) if cursor else 0
        found = await self._edge_lists.suggestions(user_id, MAX_SUGGESTIONS)
        if len(found) < MAX_SUGGESTIONS:
            found = (found + await self._popular(user_id, found))[:MAX_SUGGESTIONS]
        users = await self._lists.users(found[start : start + size])
        end = start + size
        return users, self._cursors.seal("suggestions", user_id, end) if end < len(found) else ""

    async def _popular(self, user_id: int, but: Sequence[int]) -> list[int]:
        """Returns the most followed users, without the users in `but`, the users whom `user_id` follows, blocks or
        mutes, and the users who block `user_id`."""
        known = {user_id, *but}
        others = [other for other in await self._edge_lists.popular(MAX_SUGGESTIONS) if other not in known]
        relationships = await self._edges.relationships(user_id, others)
        return [t.user_id for t in relationships if not (t.following or t.blocking or t.blocked_by or t.muting)]

    async def _page(
        self, listing: Listing, user_id: int, cursor_owner_id: int, reader_id: int, cursor: str, size: int
    ) -> UserPage:
        async def fetch(below: ListEntry | None, limit: int) -> Sequence[ListEntry]:
            return await self._edge_lists.page(listing, user_id, Position(*below) if below else None, limit)

        return await self._lists.page(
            f"{listing.value}/{user_id}", fetch, cursor, size, reader_id=reader_id, cursor_owner_id=cursor_owner_id
        )
