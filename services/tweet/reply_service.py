"""The servicer of roost.tweet.v1.ReplyService. A reply is a tweet with a parent (the tweet that it replies to), so the
rules of tweets apply to it."""

from __future__ import annotations

from roost.tweet.v1 import reply_service_pb2 as rpc
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1.reply_service_pb2_grpc import ReplyServiceServicer

from services.platform.rpc import context as calls
from services.platform.rpc import errors
from services.tweet.pages import TweetPages
from services.tweet.store import TweetStore
from services.tweet.threads import Threads
from services.tweet.writer import Draft, TweetWriter


class ReplyServicer(ReplyServiceServicer):
    """Serves roost.tweet.v1.ReplyService."""

    def __init__(self, tweets: TweetStore, writer: TweetWriter, pages: TweetPages, threads: Threads) -> None:
        self._tweets = tweets
        self._writer = writer
        self._pages = pages
        self._threads = threads

    async def CreateReply(self, request: rpc.CreateReplyRequest, context: object) -> tweet_pb2.SerializedTweet:
        draft = Draft(calls.require_user(), request.text, request.tweet_id, request.quote_of_id)
        return await self._writer.post(draft, request)

    async def ListReplies(self, request: rpc.ListRepliesRequest, context: object) -> tweet_pb2.SerializedTweetPage:
        return await self._pages.replies(request)

    async def UpdateReply(self, request: rpc.UpdateReplyRequest, context: object) -> tweet_pb2.SerializedTweet:
        user_id = calls.require_user()
        await self._parent_id(request.reply_id)
        return await self._writer.edit(user_id, request.reply_id, request.text)

    async def DeleteReply(self, request: rpc.DeleteReplyRequest, context: object) -> rpc.DeleteReplyResponse:
        user_id = calls.require_user()
        parent_id = await self._parent_id(request.reply_id)
        if request.tweet_id and parent_id != await self._original_id(request.tweet_id):
            raise _no_such_reply()
        await self._writer.delete(user_id, request.reply_id)
        return rpc.DeleteReplyResponse()

    async def GetThread(self, request: rpc.GetThreadRequest, context: object) -> tweet_pb2.SerializedThread:
        return await self._threads.page(request)

    async def _parent_id(self, reply_id: int) -> int:
        """Returns the id of the reply's parent, even if the reply is deleted. Raises NOT_FOUND if there is no reply
        with this id."""
        cores = (await self._tweets.batch_get((reply_id,))).cores
        if not cores or not cores[0].head.reply_to_id:
            raise _no_such_reply()
        return cores[0].head.reply_to_id

    async def _original_id(self, tweet_id: int) -> int:
        """Returns the id of the tweet that is the parent of replies to `tweet_id`: if `tweet_id` is a retweet, the id
        of its original, otherwise `tweet_id`, even if no tweet has this id."""
        cores = (await self._tweets.batch_get((tweet_id,))).cores
        return (cores[0].head.retweet_of_id if cores else 0) or tweet_id


def _no_such_reply() -> errors.RoostError:
    return errors.not_found("no such reply")
