"""Creates, edits, retweets and deletes tweets: the rules shared by TweetService and ReplyService."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp
from roost.event.v1 import event_pb2
from roost.identity.v1 import user_pb2
from roost.tweet.v1 import reply_service_pb2, tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as rpc

from services.platform.events.log import Record
from services.platform.events.records import EventBuilder
from services.platform.ids.snowflake import Snowflake, timestamp_ms
from services.platform.rpc import context as calls
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.shared.hydration.fragments import NO_METRICS, author_fragment
from services.shared.hydration.hydrator import Hydrator
from services.shared.tweet_access import no_such_tweet
from services.tweet.access import access_to
from services.tweet.entities import extract
from services.tweet.store import Claim, TweetStores
from services.tweet.text import normalize_text

# Maximum number of edits per tweet. Beyond it edits are rejected with FAILED_PRECONDITION. Five are enough to correct
# mistakes.
MAX_EDITS = 5
# Maximum seconds that a post waits for the author fragment from identity. Then the response contains only the author's
# id, because a post must not fail if identity is slow.
AUTHOR_WAIT_S = 0.5

# The requests that create a tweet with a text.
PostRequest = rpc.CreateTweetRequest | reply_service_pb2.CreateReplyRequest


class Draft(NamedTuple):
    """A tweet to create. `reply_to_id` is 0 if the tweet is no reply, `quote_of_id` is 0 if the tweet is no quote."""

    author_id: int
    text: str
    reply_to_id: int = 0
    quote_of_id: int = 0


class TweetWriter:
    """Checks and stores writes of tweets, and returns the tweets hydrated for their author. `clock` returns Unix
    seconds. A tweet can be edited for `edit_window_s` seconds after its creation."""

    def __init__(
        self, stores: TweetStores, hydrator: Hydrator, ids: Snowflake, clock: Callable[[], float], edit_window_s: int
    ) -> None:
        self._tweets = stores.tweets
        self._links = stores.links
        self._access = access_to(stores.tweets, hydrator)
        self._hydrator = hydrator
        self._ids = ids
        self._clock = clock
        self._events = EventBuilder(ids, clock)
        self._edit_window_s = edit_window_s

    async def post(self, draft: Draft, request: PostRequest) -> tweet_pb2.SerializedTweet:
        """Creates a tweet, reply or quote and returns it hydrated. A reply to a retweet, or a quote of one, refers to
        the original. A repeat with the same idempotency key and body returns the tweet of the first call.

        Raises INVALID_ARGUMENT if the text is not valid; NOT_FOUND if the parent or the quoted tweet is deleted or
        hidden from the author; PERMISSION_DENIED (BLOCKED) if only a block hides it; ALREADY_EXISTS if the key was used
        with another body; UNIMPLEMENTED if the request has media ids.
        """
        if request.media_ids:
            raise errors.unimplemented("media are not supported yet: leave media_ids empty")
        text = normalize_text(draft.text)
        claim = self._claim(request)
        try:
            parent = await self._access.actionable(draft.author_id, draft.reply_to_id) if draft.reply_to_id else None
            quoted = await self._access.actionable(draft.author_id, draft.quote_of_id) if draft.quote_of_id else None
        except errors.RoostError:
            # If the call is a repeat, the parent may have been deleted since the first call, whose tweet must still be
            # returned.
            earlier = await self._tweets.find_claimed(draft.author_id, claim) if claim is not None else 0
            if not earlier:
                raise
            return await self.hydrated(earlier)
        author = await self._author_fragment(draft.author_id)
        tweet_id = await self._ids.mint()
        core, conversation_id = _new_core(tweet_id, draft.author_id, text, parent, quoted)
        stored_id = await self._tweets.create(
            core, conversation_id, await self._events.record(_created(core.head)), claim
        )
        if stored_id != tweet_id or quoted is not None:
            return await self.hydrated(stored_id)
        return tweet_pb2.SerializedTweet(tweet=core.core + author + NO_METRICS)

    async def edit(self, user_id: int, tweet_id: int, text: str) -> tweet_pb2.SerializedTweet:
        """Replaces the text of the user's own tweet and returns it hydrated. If `text` equals the current text, stores
        nothing, so a repeat succeeds.

        Raises FAILED_PRECONDITION if `edit_window_s` has passed (EDIT_WINDOW_CLOSED), after MAX_EDITS edits
        (EDIT_LIMIT), or if the tweet is a retweet (RETWEET); INVALID_ARGUMENT if the text is not valid;
        PERMISSION_DENIED (NOT_AUTHOR) if another user wrote the tweet; NOT_FOUND if it is deleted or hidden from the
        user.
        """
        text = normalize_text(text)
        # An attempt fails only if another edit of this tweet was stored meanwhile. There are at most MAX_EDITS edits,
        # so one more attempt than that is enough.
        for _ in range(MAX_EDITS + 1):
            core = await self.live_own_tweet(user_id, tweet_id, "edit")
            if core.head.retweet_of_id:
                raise errors.failed_precondition(
                    "a retweet has no text to edit: edit the original tweet", Reason.RETWEET
                )
            versions = await self._tweets.list_revisions(tweet_id)
            if (
                not versions
                or versions[-1].text == text
                or await self._store_edit(core, versions[0], versions[-1], text)
            ):
                break
        return await self.hydrated(tweet_id)

    async def _store_edit(
        self, core: tweet_pb2.TweetCore, first: rpc.TweetRevision, last: rpc.TweetRevision, text: str
    ) -> bool:
        """Stores `text` as the revision after `last`. Returns False if another edit was stored first. Raises
        FAILED_PRECONDITION if the edit window is over or the tweet has been edited MAX_EDITS times."""
        now_ms = int(self._clock() * 1000)
        if now_ms - timestamp_ms(core.head.id) > self._edit_window_s * 1000:
            raise errors.failed_precondition(
                f"a tweet can be edited for {self._edit_window_s} s after it was created: that time is over",
                Reason.EDIT_WINDOW_CLOSED,
            )
        if last.version > MAX_EDITS:
            raise errors.failed_precondition(
                f"a tweet can be edited {MAX_EDITS} times: no edit is left", Reason.EDIT_LIMIT
            )
        edited_at = Timestamp()
        edited_at.FromMilliseconds(now_ms)
        tweet = tweet_pb2.Tweet.FromString(core.core)
        tweet.text, tweet.edited, tweet.original_text = text, True, first.text
        tweet.edited_at.CopyFrom(edited_at)
        tweet.entities.CopyFrom(extract(text))
        core.core = tweet.SerializeToString()
        revision = rpc.TweetRevision(version=last.version + 1, text=text, created_at=edited_at)
        body = event_pb2.TweetEdited(tweet_id=tweet.id, author_id=tweet.author_id, version=revision.version)
        event = await self._events.record(body)
        return await self._tweets.revise(core, revision, event)

    async def retweet(self, user_id: int, tweet_id: int) -> tweet_pb2.SerializedTweet:
        """Returns the user's retweet of the tweet, hydrated, and creates it if there is none. A retweet of a retweet
        refers to the original. Raises NOT_FOUND if the tweet is missing, deleted or hidden, and PERMISSION_DENIED
        (BLOCKED) if only a block hides the tweet."""
        original = await self._access.actionable(user_id, tweet_id)
        original_id = original.head.id
        retweet_id = (await self._links.find_retweets(user_id, (original_id,))).get(original_id, 0)
        if not retweet_id:
            core = _retweet_core(await self._ids.mint(), user_id, original.head)
            retweet_id = await self._tweets.create(
                core, core.head.id, await self._events.record(_created(core.head)), None
            )
        return await self.hydrated(retweet_id)

    async def unretweet(self, user_id: int, tweet_id: int) -> None:
        """Deletes the user's retweet of this tweet, if there is one; for a retweet, the user's retweet of its original.
        Works on hidden tweets too. Raises NOT_FOUND if the tweet never existed."""
        original_id = await self._access.original_id(tweet_id)
        retweet_id = (await self._links.find_retweets(user_id, (original_id,))).get(original_id, 0)
        if retweet_id:
            await self._tweets.delete(retweet_id, int(self._clock()), await self._deleted(retweet_id, user_id))

    async def delete(self, user_id: int, tweet_id: int) -> None:
        """Deletes the user's own tweet or retweet; a repeat changes nothing. Raises NOT_FOUND if the tweet never
        existed or is hidden from the user, PERMISSION_DENIED (NOT_AUTHOR) if another user wrote the tweet."""
        core = await self._access.existing(tweet_id)
        await self._require_author(user_id, core, "delete")
        await self._tweets.delete(tweet_id, int(self._clock()), await self._deleted(tweet_id, user_id))

    async def remove(self, tweet_id: int, action_id: int) -> None:
        """Hides a tweet from all readers by the moderation action `action_id`. Raises NOT_FOUND if the tweet does not
        exist."""
        event = await self._deleted(tweet_id, (await self._access.existing(tweet_id)).head.author_id)
        await self._tweets.remove(tweet_id, action_id, int(self._clock()), event)

    async def restore(self, tweet_id: int, action_id: int) -> None:
        """Undoes `remove`. Raises NOT_FOUND if the tweet does not exist, FAILED_PRECONDITION if another moderation
        action hides it."""
        author_id = (await self._access.existing(tweet_id)).head.author_id
        event = await self._events.record(event_pb2.TweetRestored(tweet_id=tweet_id, author_id=author_id))
        await self._tweets.restore(tweet_id, action_id, event)

    async def live_own_tweet(self, user_id: int, tweet_id: int, action: str) -> tweet_pb2.TweetCore:
        """Returns a live tweet of the user. Raises PERMISSION_DENIED (NOT_AUTHOR) if another user wrote the tweet,
        NOT_FOUND if the tweet is deleted or hidden from the user. `action` completes the error message: "only the
        author may <action> this tweet"."""
        core = await self._access.live(tweet_id)
        await self._require_author(user_id, core, action)
        return core

    async def hydrated(self, tweet_id: int) -> tweet_pb2.SerializedTweet:
        """Returns the tweet hydrated for the call's actor. Raises NOT_FOUND if the tweet does not exist or is hidden
        from the actor."""
        found = await self._hydrator.visible(calls.reader_id(), (tweet_id,), 1)
        if not found:
            raise no_such_tweet()
        return tweet_pb2.SerializedTweet(tweet=found[0].data)

    async def _deleted(self, tweet_id: int, author_id: int) -> Record:
        return await self._events.record(event_pb2.TweetDeleted(tweet_id=tweet_id, author_id=author_id))

    def _claim(self, request: PostRequest) -> Claim | None:
        """Returns the claim for the idempotency key of the request, None if the request has no key. The same key in
        CreateTweet and in CreateReply makes two different claims."""
        key = request.idempotency_key
        if not key:
            return None
        body = deepcopy(request)
        # `user_id` is optional and says nothing new, so the hash leaves it out: repeats with and without it are equal.
        body.ClearField("idempotency_key")
        body.ClearField("user_id")
        digest = hashlib.sha256(body.SerializeToString(deterministic=True)).digest()
        # Keys of clients contain no space, so none equals a key with this prefix.
        scoped = key if isinstance(request, rpc.CreateTweetRequest) else f"{request.DESCRIPTOR.name} {key}"
        return Claim(scoped, digest, int(self._clock()))

    async def _author_fragment(self, user_id: int) -> bytes:
        """Returns the author fragment of the user. It contains only the id if identity fails or takes longer than
        AUTHOR_WAIT_S seconds."""
        fragment = None
        try:
            async with asyncio.timeout(AUTHOR_WAIT_S):
                fragment = (await self._hydrator.author_fragments(0, [user_id])).get(user_id)
        except (grpc.aio.AioRpcError, TimeoutError):
            pass
        return fragment or author_fragment(user_pb2.UserRef(id=user_id).SerializeToString())

    async def _require_author(self, user_id: int, core: tweet_pb2.TweetCore, action: str) -> None:
        if core.head.author_id != user_id:
            # Raises NOT_FOUND if the user may not see the tweet. The error below would reveal to this user that the
            # tweet exists.
            await self.hydrated(core.head.id)
            raise errors.permission_denied(f"only the author may {action} this tweet", Reason.NOT_AUTHOR)


def _new_core(
    tweet_id: int,
    author_id: int,
    text: str,
    parent: tweet_pb2.TweetCore | None,
    quoted: tweet_pb2.TweetCore | None,
) -> tuple[tweet_pb2.TweetCore, int]:
    """Returns the TweetCore of a new tweet and its conversation id: for a reply the conversation id of the parent,
    otherwise `tweet_id`."""
    head = tweet_pb2.TweetHead(id=tweet_id, author_id=author_id)
    conversation_id = tweet_id
    if parent is not None:
        head.reply_to_id, head.reply_to_author_id = parent.head.id, parent.head.author_id
        conversation_id = tweet_pb2.Tweet.FromString(parent.core).conversation_id
    if quoted is not None:
        head.quote_of_id, head.quote_of_author_id = quoted.head.id, quoted.head.author_id
    tweet = tweet_pb2.Tweet(
        id=tweet_id,
        author_id=author_id,
        text=text,
        created_at=_created_at(tweet_id),
        reply_to_id=head.reply_to_id,
        conversation_id=conversation_id,
        quote_of_id=head.quote_of_id,
        entities=extract(text),
    )
    return tweet_pb2.TweetCore(head=head, core=tweet.SerializeToString()), conversation_id


def _created(head: tweet_pb2.TweetHead) -> event_pb2.TweetCreated:
    return event_pb2.TweetCreated(
        tweet_id=head.id,
        author_id=head.author_id,
        reply_to_id=head.reply_to_id,
        reply_to_author_id=head.reply_to_author_id,
        retweet_of_id=head.retweet_of_id,
        retweet_of_author_id=head.retweet_of_author_id,
        quote_of_id=head.quote_of_id,
        quote_of_author_id=head.quote_of_author_id,
    )


def _retweet_core(tweet_id: int, author_id: int, original: tweet_pb2.TweetHead) -> tweet_pb2.TweetCore:
    tweet = tweet_pb2.Tweet(
        id=tweet_id,
        author_id=author_id,
        created_at=_created_at(tweet_id),
        conversation_id=tweet_id,
        retweet_of_id=original.id,
        entities=tweet_pb2.Entities(),
    )
    head = tweet_pb2.TweetHead(
        id=tweet_id, author_id=author_id, retweet_of_id=original.id, retweet_of_author_id=original.author_id
    )
    return tweet_pb2.TweetCore(head=head, core=tweet.SerializeToString())


def _created_at(tweet_id: int) -> Timestamp:
    created_at = Timestamp()
    created_at.FromMilliseconds(timestamp_ms(tweet_id))
    return created_at
