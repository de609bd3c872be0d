"""The servicer of roost.graph.v1.GraphService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import islice
from typing import Any

import structlog
from roost.graph.v1 import graph_service_pb2 as pb
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceServicer
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.graph.events import WriteStamp
from services.graph.store import MAX_EVENTS, GraphStores, Listing, Outcome, Position
from services.graph.tier_publisher import HEARTBEAT_S, MAX_ENTRIES, TierPublisher
from services.graph.user_lists import UserLists
from services.platform.ids.snowflake import Snowflake
from services.platform.log_events import LogEvent
from services.platform.pagination.cursors import Cursors
from services.platform.pagination.page_size import page_size_of
from services.platform.rpc import context as calls
from services.platform.rpc import errors
from services.shared.users import no_such_user

# Maximum numbers of followees and of edges in one streamed message: the proto's `max_items`.
FOLLOWEES_PER_MESSAGE = 500
EDGES_PER_MESSAGE = 1_000
# The caller whose ids are not checked: identity sends ids of users that it has just read. Calling identity to check
# whether they exist would double the cost of a profile.
_IDENTITY = "identity"

log = structlog.get_logger(__name__)

# The context type differs between generated methods, and no method here uses the context.
_Context = Any
_Write = Callable[[int, int, WriteStamp], Awaitable[Outcome]]


class GraphService(GraphServiceServicer):
    """Serves follows, blocks, mutes, their lists, and the batch and streaming reads of other services."""

    def __init__(
        self,
        stores: GraphStores,
        publisher: TierPublisher,
        identity: UserServiceStub,
        cursors: Cursors,
        ids: Snowflake,
        clock: Callable[[], float],
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._stores = stores
        self._tier_publisher = publisher
        self._user_lists = UserLists(stores, identity, cursors)
        self._ids = ids
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._last_ms = 0

    async def stamp(self, events: int = MAX_EVENTS) -> WriteStamp:
        """Returns the write stamp for a write that causes up to `events` events.

        The time of the stamp never decreases while the process runs, even if the clock is set back.
        """
        self._last_ms = at_ms = max(self._last_ms, int(self._clock() * 1000))
        version = await self._ids.mint()
        event_ids = [await self._ids.mint() for _ in range(events)]
        return WriteStamp(at_ms, version, tuple(event_ids), calls.current().traceparent)

    async def Follow(self, request: pb.FollowRequest, context: _Context) -> pb.FollowResponse:
        return pb.FollowResponse(relationship=await self._add_edge(self._stores.edges.follow, request.user_id))

    async def Unfollow(self, request: pb.UnfollowRequest, context: _Context) -> pb.UnfollowResponse:
        return pb.UnfollowResponse(relationship=await self._remove_edge(self._stores.edges.unfollow, request.user_id))

    async def Block(self, request: pb.BlockRequest, context: _Context) -> pb.BlockResponse:
        return pb.BlockResponse(relationship=await self._add_edge(self._stores.edges.block, request.user_id))

    async def Unblock(self, request: pb.UnblockRequest, context: _Context) -> pb.UnblockResponse:
        return pb.UnblockResponse(relationship=await self._remove_edge(self._stores.edges.unblock, request.user_id))

    async def Mute(self, request: pb.MuteRequest, context: _Context) -> pb.MuteResponse:
        return pb.MuteResponse(relationship=await self._add_edge(self._stores.edges.mute, request.user_id))

    async def Unmute(self, request: pb.UnmuteRequest, context: _Context) -> pb.UnmuteResponse:
        return pb.UnmuteResponse(relationship=await self._remove_edge(self._stores.edges.unmute, request.user_id))

    async def ListFollowers(self, request: pb.ListFollowersRequest, context: _Context) -> pb.ListFollowersResponse:
        users, next_cursor = await self._user_lists.public_page(
            Listing.FOLLOWERS, request.user_id, calls.reader_id(), request.cursor, page_size_of(request)
        )
        return pb.ListFollowersResponse(users=users, next_cursor=next_cursor)

    async def ListFollowing(self, request: pb.ListFollowingRequest, context: _Context) -> pb.ListFollowingResponse:
        users, next_cursor = await self._user_lists.public_page(
            Listing.FOLLOWING, request.user_id, calls.reader_id(), request.cursor, page_size_of(request)
        )
        return pb.ListFollowingResponse(users=users, next_cursor=next_cursor)

    async def ListBlocks(self, request: pb.ListBlocksRequest, context: _Context) -> pb.ListBlocksResponse:
        users, next_cursor = await self._user_lists.private_page(
            Listing.BLOCKS, calls.require_user(), request.cursor, page_size_of(request)
        )
        return pb.ListBlocksResponse(users=users, next_cursor=next_cursor)

    async def ListMutes(self, request: pb.ListMutesRequest, context: _Context) -> pb.ListMutesResponse:
        users, next_cursor = await self._user_lists.private_page(
            Listing.MUTES, calls.require_user(), request.cursor, page_size_of(request)
        )
        return pb.ListMutesResponse(users=users, next_cursor=next_cursor)

    async def SuggestUsers(self, request: pb.SuggestUsersRequest, context: _Context) -> pb.SuggestUsersResponse:
        users, next_cursor = await self._user_lists.suggestions(
            calls.require_user(), request.cursor, page_size_of(request)
        )
        return pb.SuggestUsersResponse(users=users, next_cursor=next_cursor)

    async def BatchGetRelationships(
        self, request: pb.BatchGetRelationshipsRequest, context: _Context
    ) -> pb.BatchGetRelationshipsResponse:
        user_id, others = calls.require_user(), list(request.ids)
        if calls.current().caller != _IDENTITY:
            known = await self._user_lists.states(others)
            others = [other for other in others if other in known]
        return pb.BatchGetRelationshipsResponse(relationships=await self._stores.edges.relationships(user_id, others))

    async def GetVisibilityFilter(
        self, request: pb.GetVisibilityFilterRequest, context: _Context
    ) -> pb.GetVisibilityFilterResponse:
        return await self._stores.visibility.filter(request)

    async def BatchGetUserCounts(
        self, request: pb.BatchGetUserCountsRequest, context: _Context
    ) -> pb.BatchGetUserCountsResponse:
        return pb.BatchGetUserCountsResponse(counts=await self._stores.counts.batch_get(request.ids))

    async def StreamFollowerIds(
        self, request: pb.StreamFollowerIdsRequest, context: _Context
    ) -> AsyncIterator[pb.StreamFollowerIdsResponse]:
        async for page in self._pages(Listing.FOLLOWERS, request.user_id, request.page_size):
            yield pb.StreamFollowerIdsResponse(ids=[entry.user_id for entry in page])

    async def StreamFollowingIds(
        self, request: pb.StreamFollowingIdsRequest, context: _Context
    ) -> AsyncIterator[pb.StreamFollowingIdsResponse]:
        # The version is read before the first followee. A version read later could include a follow that the list
        # lacks, and a reader would cache the incomplete list under this version.
        version = await self._stores.visibility.relation_version(request.user_id)
        found_any = False
        async for page in self._pages(Listing.FOLLOWING, request.user_id, FOLLOWEES_PER_MESSAGE):
            found_any = True
            followees = [pb.Followee(user_id=entry.user_id, followed_at_ms=entry.at_ms) for entry in page]
            yield pb.StreamFollowingIdsResponse(followees=followees, relation_version=version)
        if not found_any:
            yield pb.StreamFollowingIdsResponse(relation_version=version)

    async def ScanEdges(self, request: pb.ScanEdgesRequest, context: _Context) -> AsyncIterator[pb.ScanEdgesResponse]:
        edges = await self._stores.lists.scan(request.kind, (0, 0), EDGES_PER_MESSAGE)
        while edges:
            yield pb.ScanEdgesResponse(edges=edges)
            edges = await self._stores.lists.scan(request.kind, (edges[-1].from_id, edges[-1].to_id), EDGES_PER_MESSAGE)

    async def StreamTiers(
        self, request: pb.StreamTiersRequest, context: _Context
    ) -> AsyncIterator[pb.StreamTiersResponse]:
        with self._tier_publisher.subscribe() as subscription:
            snapshot = iter(subscription.snapshot)
            while entries := list(islice(snapshot, MAX_ENTRIES)):
                yield pb.StreamTiersResponse(entries=entries)
            yield pb.StreamTiersResponse(snapshot_end=True)
            while True:
                entries = await subscription.next(self._heartbeat_s)
                yield pb.StreamTiersResponse(entries=entries, heartbeat=not entries)

    async def ReclassifyUser(self, request: pb.ReclassifyUserRequest, context: _Context) -> pb.ReclassifyUserResponse:
        if request.user_id not in await self._user_lists.states((request.user_id,)):
            raise no_such_user()
        tier, changed = await self._stores.tiers.reclassify(request.user_id, request.tier, await self.stamp())
        call = calls.current()
        log.info(
            LogEvent.USER_RECLASSIFIED,
            actor_id=call.actor.user_id,
            caller=call.caller,
            request_id=call.request_id,
            user_id=request.user_id,
            choice=pb.TierChoice.Name(request.tier),
            tier=pb.Tier.Name(tier),
            changed=changed,
        )
        return pb.ReclassifyUserResponse(user_id=request.user_id, tier=tier, changed=changed)

    async def _add_edge(self, write: _Write, target_id: int) -> pb.Relationship:
        user_id = _caller_other_than(target_id)
        await self._user_lists.require_active(target_id)
        return (await write(user_id, target_id, await self.stamp())).relationship

    async def _remove_edge(self, write: _Write, target_id: int) -> pb.Relationship:
        user_id = _caller_other_than(target_id)
        outcome = await write(user_id, target_id, await self.stamp())
        # A user who was suspended or deactivated can still be unfollowed; only an id that never existed is refused.
        if not outcome.changed and target_id not in await self._user_lists.states((target_id,)):
            raise no_such_user()
        return outcome.relationship

    async def _pages(self, listing: Listing, user_id: int, size: int) -> AsyncIterator[Sequence[Position]]:
        """Yields the whole list in pages of `size`, newest first.

        An edge that is created during the iteration is newer than all entries that were read, so no user is returned
        twice.
        """
        below: Position | None = None
        while page := await self._stores.lists.page(listing, user_id, below, size):
            yield page
            if len(page) < size:
                return
            below = page[-1]


def _caller_other_than(target_id: int) -> int:
    """Returns the caller's user id. Raises INVALID_ARGUMENT if it is the target."""
    user_id = calls.require_user()
    if user_id == target_id:
        raise errors.invalid_argument(
            "you cannot follow, block or mute yourself: give the id of another user", field="user_id"
        )
    return user_id
