"""The servicer of roost.engagement.v1.EngagementService."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from roost.engagement.v1 import engagement_service_pb2 as pb
from roost.engagement.v1.engagement_service_pb2_grpc import EngagementServiceServicer
from roost.event.v1 import event_pb2
from roost.tweet.v1 import tweet_pb2

from services.engagement.store import EngagementStore, ReactionKind
from services.platform.events.records import EventBuilder
from services.platform.ids.snowflake import Snowflake
from services.platform.pagination.cursors import Cursors
from services.platform.pagination.page_size import page_size_of
from services.platform.rpc import context as calls
from services.shared.hydration.fill_page import StoredList, fill_page
from services.shared.hydration.hydrator import Hydrator
from services.shared.hydration.user_pages import ListEntry as Liker
from services.shared.hydration.user_pages import VisibleUserPages
from services.shared.tweet_access import TweetAccess
from services.shared.users import no_such_user


class EngagementService(EngagementServiceServicer):
    """Serves likes, bookmarks and their counts. A reaction to a retweet is stored for its original."""

    def __init__(
        self,
        store: EngagementStore,
        access: TweetAccess,
        hydrator: Hydrator,
        user_pages: VisibleUserPages,
        events: EventBuilder,
        ids: Snowflake,
        cursors: Cursors,
    ) -> None:
        self._store = store
        self._access = access
        self._hydrator = hydrator
        self._user_pages = user_pages
        self._events = events
        self._ids = ids
        self._cursors = cursors

    async def LikeTweet(self, request: pb.LikeTweetRequest, context: object) -> pb.LikeTweetResponse:
        user_id = calls.require_user()
        tweet_id = (await self._access.actionable(user_id, request.tweet_id)).head.id
        event = await self._events.record(event_pb2.TweetLiked(tweet_id=tweet_id, user_id=user_id))
        likes = await self._store.like(tweet_id, user_id, event)
        return pb.LikeTweetResponse(liked=True, likes=likes)

    async def UnlikeTweet(self, request: pb.UnlikeTweetRequest, context: object) -> pb.UnlikeTweetResponse:
        user_id = calls.require_user()
        tweet_id = await self._access.original_id(request.tweet_id)
        event = await self._events.record(event_pb2.TweetUnliked(tweet_id=tweet_id, user_id=user_id))
        likes = await self._store.unlike(tweet_id, user_id, event)
        return pb.UnlikeTweetResponse(liked=False, likes=likes)

    async def ListLikes(self, request: pb.ListLikesRequest, context: object) -> pb.ListLikesResponse:
        reader_id = calls.reader_id()
        tweet_id = (await self._access.visible(reader_id, request.tweet_id)).head.id

        async def fetch(below: Liker | None, limit: int) -> Sequence[Liker]:
            return await self._store.list_likers(tweet_id, below[0] if below else 0, limit)

        users, next_cursor = await self._user_pages.page(
            f"likes/{tweet_id}", fetch, request.cursor, page_size_of(request), reader_id=reader_id
        )
        return pb.ListLikesResponse(users=users, next_cursor=next_cursor)

    async def ListLikedTweets(
        self, request: pb.ListLikedTweetsRequest, context: object
    ) -> tweet_pb2.SerializedTweetPage:
        user_id = request.user_id
        if not await self._hydrator.author_fragments(calls.reader_id(), [user_id]):
            raise no_such_user()
        return await self._page(request, ReactionKind.LIKE, user_id, cursor_owner_id=0)

    async def BookmarkTweet(self, request: pb.BookmarkTweetRequest, context: object) -> pb.BookmarkTweetResponse:
        user_id = calls.require_user()
        tweet_id = (await self._access.visible(user_id, request.tweet_id)).head.id
        await self._store.bookmark(tweet_id, user_id, await self._ids.mint())
        return pb.BookmarkTweetResponse(bookmarked=True)

    async def UnbookmarkTweet(self, request: pb.UnbookmarkTweetRequest, context: object) -> pb.UnbookmarkTweetResponse:
        tweet_id = await self._access.original_id(request.tweet_id)
        await self._store.unbookmark(tweet_id, calls.require_user())
        return pb.UnbookmarkTweetResponse(bookmarked=False)

    async def ListBookmarks(self, request: pb.ListBookmarksRequest, context: object) -> tweet_pb2.SerializedTweetPage:
        user_id = calls.require_user()
        return await self._page(request, ReactionKind.BOOKMARK, user_id, cursor_owner_id=user_id)

    async def BatchGetCounts(self, request: pb.BatchGetCountsRequest, context: object) -> pb.BatchGetCountsResponse:
        ids = list(request.ids)
        response = await self._store.batch_get_counts(ids)
        # Each reaction of an active user is counted. So if no tweet has counts, the viewer has no reaction to these
        # tweets, and the viewer states need not be read.
        if request.viewer_id and response.counts:
            marked = await self._store.batch_get_viewer_states(request.viewer_id, ids)
            response.states.MergeFrom(marked.states)
        return response

    async def BatchGetViewerStates(
        self, request: pb.BatchGetViewerStatesRequest, context: object
    ) -> pb.BatchGetViewerStatesResponse:
        return await self._store.batch_get_viewer_states(request.user_id, list(request.ids))

    async def _page(
        self,
        request: pb.ListLikedTweetsRequest | pb.ListBookmarksRequest,
        kind: ReactionKind,
        user_id: int,
        cursor_owner_id: int,
    ) -> tweet_pb2.SerializedTweetPage:
        """Returns a page of visible tweets to which the user has a reaction of this kind, the newest reaction first.
        The cursor holds the reaction id at which the next page begins."""
        list_name, size = f"{kind.value}_of/{user_id}", page_size_of(request)
        below = int(self._cursors.open(request.cursor, list_name, cursor_owner_id)[0]) if request.cursor else 0

        async def read(below: int, limit: int) -> Mapping[int, int]:
            return {entry.id: entry.reaction_id for entry in await self._store.list_tweets(kind, user_id, below, limit)}

        page = await fill_page(
            StoredList(read, below, size + 1), partial(self._hydrator.visible, calls.reader_id()), size
        )
        next_cursor = self._cursors.seal(list_name, cursor_owner_id, page.next_position) if page.next_position else ""
        return tweet_pb2.SerializedTweetPage(tweets=[tweet.data for tweet in page.tweets], next_cursor=next_cursor)
