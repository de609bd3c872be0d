"""The servicer of roost.timeline.v1.TimelineService."""

from __future__ import annotations

from typing import Any

from roost.timeline.v1 import timeline_service_pb2 as pb
from roost.timeline.v1.timeline_service_pb2_grpc import TimelineServiceServicer
from roost.tweet.v1 import tweet_pb2

from services.platform.pagination.cursors import Cursors
from services.platform.pagination.page_size import page_size_of
from services.platform.rpc import context as calls
from services.platform.rpc import errors
from services.shared.hydration.tweet_page import TweetPage
from services.timeline.explain import Explainer
from services.timeline.fanout_rules import PULL, FanoutRules
from services.timeline.home.builder import HomeBuilder
from services.timeline.home.reader import MAX_ENTRIES, HomePage, HomeReader
from services.timeline.search_timelines import SearchTimelines
from services.timeline.store import HomeTimelineStore

# Maximum number of user ids per AppendHomeEntries call, summed over its entries; the proto states it. A call with more
# is rejected with INVALID_ARGUMENT. Appending to 10,000 home timelines in process memory blocks the event loop for some
# milliseconds.
MAX_APPENDS = 10_000
# Maximum seconds that RebuildHomeTimeline waits for its build. The deadline of the call is 10 s; the last second is
# left for the response.
REBUILD_WAIT_S = 9.0
# The generated type of the context differs per method. The servicer only calls `set_trailing_metadata`.
_Context = Any


class TimelineService(TimelineServiceServicer):
    """Serves home timelines, mentions and tag timelines."""

    def __init__(
        self,
        store: HomeTimelineStore,
        reader: HomeReader,
        builds: HomeBuilder,
        explainer: Explainer,
        found: SearchTimelines,
        rules: FanoutRules,
        cursors: Cursors,
    ) -> None:
        self._store = store
        self._reader = reader
        self._builds = builds
        self._explainer = explainer
        self._search_timelines = found
        self._rules = rules
        self._cursors = cursors

    async def ListHomeTimeline(
        self, request: pb.ListHomeTimelineRequest, context: _Context
    ) -> tweet_pb2.SerializedTweetPage:
        user_id = calls.require_user()
        bound, served = self._open_cursor(request.cursor, user_id)
        size = page_size_of(request)
        # `mode` is ignored: there is no ranking yet, so TIMELINE_MODE_RANKED is newest first too.
        page = await self._reader.page(user_id, bound, served, size)
        context.set_trailing_metadata(page.trailer)
        response = page.response
        if response is None:
            response = page.response = TweetPage(
                [entry.data for entry in page.entries],
                self._next_cursor(page, user_id, bound, served),
                partial=page.partial,
                is_reused=page.is_reused,
            )
        return response.as_response()

    def _next_cursor(self, page: HomePage, user_id: int, bound: int, served: int) -> str:
        if page.partial:
            # Requests the same page again.
            return self._seal_cursor(user_id, bound, served)
        return self._seal_cursor(user_id, page.bound, served + len(page.entries)) if page.bound else ""

    async def ListMentions(self, request: pb.ListMentionsRequest, context: _Context) -> tweet_pb2.SerializedTweetPage:
        return await self._search_timelines.mentions(calls.require_user(), request.cursor, page_size_of(request))

    async def ListTagTimeline(
        self, request: pb.ListTagTimelineRequest, context: _Context
    ) -> tweet_pb2.SerializedTweetPage:
        return await self._search_timelines.tagged(request.tag, request.cursor, page_size_of(request))

    async def ExplainTimelineEntry(
        self, request: pb.ExplainTimelineEntryRequest, context: _Context
    ) -> pb.ExplainTimelineEntryResponse:
        return await self._explainer.explain(calls.require_user(), request.tweet_id)

    async def RebuildHomeTimeline(
        self, request: pb.RebuildHomeTimelineRequest, context: _Context
    ) -> pb.RebuildHomeTimelineResponse:
        await self._store.drop(request.user_id)
        if self._rules.mode == PULL:
            # In timeline mode `pull` no home timeline is stored, so there is nothing to build.
            return pb.RebuildHomeTimelineResponse()
        build = self._builds.restart(request.user_id)
        if not await build.done(REBUILD_WAIT_S):
            raise errors.deadline_exceeded("the build is still running; the home timeline becomes warm when it ends")
        entries = len(build.home.ids) if build.home is not None else 0
        return pb.RebuildHomeTimelineResponse(entries=entries, warm=build.installed)

    async def AppendHomeEntries(
        self, request: pb.AppendHomeEntriesRequest, context: _Context
    ) -> pb.AppendHomeEntriesResponse:
        entries = [(entry.tweet_id, entry.user_ids) for entry in request.entries]
        total = sum(len(user_ids) for _, user_ids in entries)
        if total > MAX_APPENDS:
            raise errors.invalid_argument(f"{total} user ids in one call; at most {MAX_APPENDS}", field="entries")
        return pb.AppendHomeEntriesResponse(warm=await self._store.append(entries))

    def _seal_cursor(self, user_id: int, bound: int, served: int) -> str:
        return self._cursors.seal("home", user_id, bound, served)

    def _open_cursor(self, cursor: str, user_id: int) -> tuple[int, int]:
        if not cursor:
            return 0, 0
        bound, served = self._cursors.open(cursor, "home", user_id)
        # The cursor is signed, so other values can only come from another release of this service.
        if not (isinstance(bound, int) and isinstance(served, int) and 0 <= served < MAX_ENTRIES):
            raise errors.invalid_argument(
                "this cursor is not valid for this list; request the first page without a cursor", field="cursor"
            )
        return bound, served
