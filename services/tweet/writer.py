"""What posting, editing, retweeting and deleting mean: the rules behind both gRPC services of this package."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection
from copy import deepcopy
from typing import NamedTuple

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp
from roost.event.v1 import event_pb2
from roost.identity.v1 import user_pb2
from roost.tweet.v1 import reply_service_pb2, tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as rpc

from services.platform.events.log import Record
from services.platform.ids.snowflake import Snowflake, timestamp_ms
from services.platform.rpc import context as calls
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.shared.hydration.fragments import NO_METRICS, author_fragment
from services.shared.hydration.hydrator import Hydrator
from services.tweet.entities import extract
from services.tweet.store import Claim, TweetStore
from services.tweet.text import normalize_text

# Enough to mend a text, too few to make it another one unseen.
MAX_EDITS = 5
# Posting does not depend on identity: this much of the answer's time is spent on naming the author in full.
AUTHOR_WAIT_S = 0.5

# Both ways to post something written.
Post = rpc.CreateTweetRequest | reply_service_pb2.CreateReplyRequest


class Draft(NamedTuple):
    """What somebody wants to post; ids of 0 mean none."""

    author_id: int
    text: str
    reply_to_id: int = 0
    quote_of_id: int = 0


class TweetWriter:
    """Writes by the rules, and answers as the author reads it. `clock` gives unix seconds; a text may be edited for
    `edit_window_s` seconds."""

    def __init__(
        self, store: TweetStore, hydrator: Hydrator, ids: Snowflake, clock: Callable[[], float], edit_window_s: int
    ) -> None:
        self._store = store
        self._hydrator = hydrator
        self._ids = ids
        self._clock = clock
        self._edit_window_s = edit_window_s

    async def post(self, draft: Draft, request: Post) -> tweet_pb2.JoinedTweet:
        """Posts a tweet, reply or quote; a repeat of a request with an idempotency key answers the first. What stands
        for a retweet is its original. NOT_FOUND where a tweet that it names is gone, PERMISSION_DENIED where its author
        and this one block each other, ALREADY_EXISTS where the key came with another body."""
        if request.media_ids:
            raise errors.unimplemented("media are not served yet")
        text = normalize_text(draft.text)
        claim = self._claim(request)
        try:
            parent = await self.target(draft.author_id, draft.reply_to_id) if draft.reply_to_id else None
            quoted = await self.target(draft.author_id, draft.quote_of_id) if draft.quote_of_id else None
        except errors.RoostError:
            # What it named may have gone since: the first answer still holds.
            earlier = await self._store.find_claimed(draft.author_id, claim) if claim is not None else 0
            if not earlier:
                raise
            return await self.joined(earlier)
        author = await self._author(draft.author_id)
        tweet_id = await self._ids.mint()
        core, conversation_id = _first_core(tweet_id, draft.author_id, text, parent, quoted)
        stored_id = await self._store.create(core, conversation_id, await self._created(core.head), claim)
        if stored_id != tweet_id or quoted is not None:
            return await self.joined(stored_id)
        return tweet_pb2.JoinedTweet(tweet=core.core + author + NO_METRICS)

    async def edit(self, user_id: int, tweet_id: int, text: str) -> tweet_pb2.JoinedTweet:
        """Changes the text of an own tweet; the text that stands already makes no new version, so that repeats are
        OK. FAILED_PRECONDITION when its time (EDIT_WINDOW_CLOSED) or its edits (EDIT_LIMIT) are used up and for
        retweets (RETWEET); else as `own`."""
        text = normalize_text(text)
        # Each time round somebody else's edit came first, and of those there are only so many.
        for _ in range(MAX_EDITS + 1):
            core = await self.own(user_id, tweet_id, "edits")
            if core.head.retweet_of_id:
                raise errors.failed_precondition("a retweet has no text of its own", Reason.RETWEET)
            versions = await self._store.list_revisions(tweet_id)
            if not versions or versions[-1].text == text or await self._revise(core, versions[0], versions[-1], text):
                break
        return await self.joined(tweet_id)

    async def _revise(
        self, core: tweet_pb2.TweetCore, first: rpc.TweetRevision, last: rpc.TweetRevision, text: str
    ) -> bool:
        now_ms = int(self._clock() * 1000)
        if now_ms - timestamp_ms(core.head.id) > self._edit_window_s * 1000:
            raise errors.failed_precondition("the time for edits is over", Reason.EDIT_WINDOW_CLOSED)
        if last.version > MAX_EDITS:
            raise errors.failed_precondition(f"a tweet is edited {MAX_EDITS} times at most", Reason.EDIT_LIMIT)
        edited_at = Timestamp()
        edited_at.FromMilliseconds(now_ms)
        tweet = tweet_pb2.Tweet.FromString(core.core)
        tweet.text, tweet.edited, tweet.original_text = text, True, first.text
        tweet.edited_at.CopyFrom(edited_at)
        tweet.entities.CopyFrom(extract(text))
        core.core = tweet.SerializeToString()
        revision = rpc.TweetRevision(version=last.version + 1, text=text, created_at=edited_at)
        fact = event_pb2.TweetEdited(tweet_id=tweet.id, author_id=tweet.author_id, version=revision.version)
        event = await self._event("tweet.edited", tweet.author_id, event_pb2.Event(tweet_edited=fact))
        return await self._store.revise(core, revision, event)

    async def retweet(self, user_id: int, tweet_id: int) -> tweet_pb2.JoinedTweet:
        """The user's retweet of the tweet, or of the original where this is a retweet; one stands at a time. Refuses
        as `post`."""
        original = await self.target(user_id, tweet_id)
        original_id = original.head.id
        retweet_id = (await self._store.find_retweets(user_id, (original_id,))).get(original_id, 0)
        if not retweet_id:
            core = _retweet_core(await self._ids.mint(), user_id, original.head)
            retweet_id = await self._store.create(core, core.head.id, await self._created(core.head), None)
        return await self.joined(retweet_id)

    async def unretweet(self, user_id: int, tweet_id: int) -> None:
        """Takes the user's retweet of this tweet, or of this retweet's original, back, if there is one; also where it
        is hidden by now. NOT_FOUND if there never was such a tweet."""
        head = (await self._any(tweet_id)).head
        original_id = head.retweet_of_id or head.id
        retweet_id = (await self._store.find_retweets(user_id, (original_id,))).get(original_id, 0)
        if retweet_id:
            await self._store.delete(retweet_id, int(self._clock()), await self._deleted(retweet_id, user_id))

    async def delete(self, user_id: int, tweet_id: int) -> None:
        """Deletes an own tweet or retweet; again is OK. Refuses as `own`."""
        core = await self._any(tweet_id)
        await self._refuse_others(user_id, core, "deletes")
        await self._store.delete(tweet_id, int(self._clock()), await self._deleted(tweet_id, user_id))

    async def remove(self, tweet_id: int, action_id: int) -> None:
        """Hides a tweet by a moderator's action. NOT_FOUND if there is none."""
        event = await self._deleted(tweet_id, (await self._any(tweet_id)).head.author_id)
        await self._store.remove(tweet_id, action_id, int(self._clock()), event)

    async def restore(self, tweet_id: int, action_id: int) -> None:
        """Undoes `remove`. NOT_FOUND if there is none, FAILED_PRECONDITION if another action hides it."""
        author_id = (await self._any(tweet_id)).head.author_id
        fact = event_pb2.TweetRestored(tweet_id=tweet_id, author_id=author_id)
        event = await self._event("tweet.restored", author_id, event_pb2.Event(tweet_restored=fact))
        await self._store.restore(tweet_id, action_id, event)

    async def own(self, user_id: int, tweet_id: int, action: str) -> tweet_pb2.TweetCore:
        """A standing tweet of the user's. PERMISSION_DENIED (NOT_AUTHOR) where it is another's, NOT_FOUND where it is
        gone, or the user may not even know of it."""
        core = await self._standing(tweet_id)
        await self._refuse_others(user_id, core, action)
        return core

    async def target(self, user_id: int, tweet_id: int) -> tweet_pb2.TweetCore:
        """What the user means to answer, quote or retweet: a tweet that stands, and for a retweet its original.
        NOT_FOUND where it is gone or its author suspended, PERMISSION_DENIED (BLOCKED) where one blocks the other."""
        core = await self._standing(tweet_id)
        author_ids = {core.head.author_id}
        if core.head.retweet_of_id:
            core = await self._standing(core.head.retweet_of_id)
            author_ids.add(core.head.author_id)
        await self._refuse_hidden(user_id, author_ids)
        return core

    async def joined(self, tweet_id: int) -> tweet_pb2.JoinedTweet:
        """The tweet as the caller reads it; NOT_FOUND where that is not to be."""
        found = await self._hydrator.visible(calls.reader_id(), (tweet_id,), limit=1)
        if not found:
            raise no_such_tweet()
        return tweet_pb2.JoinedTweet(tweet=found[0].data)

    def _claim(self, request: Post) -> Claim | None:
        """What makes repeats of this body with its key safe; None without a key. Tweets and replies share no keys."""
        key = request.idempotency_key
        if not key:
            return None
        body = deepcopy(request)
        # The caller may or may not name themselves: that makes no other body.
        body.ClearField("idempotency_key")
        body.ClearField("user_id")
        digest = hashlib.sha256(body.SerializeToString(deterministic=True)).digest()
        # A space stands in no key that a client may send.
        scoped = key if isinstance(request, rpc.CreateTweetRequest) else f"{request.DESCRIPTOR.name} {key}"
        return Claim(scoped, digest, int(self._clock()))

    async def _author(self, user_id: int) -> bytes:
        """The author fragment of the caller; with the id alone while identity does not answer: a post must not wait
        for it."""
        fragment = None
        try:
            async with asyncio.timeout(AUTHOR_WAIT_S):
                fragment = (await self._hydrator.author_fragments(0, [user_id])).get(user_id)
        except (grpc.aio.AioRpcError, TimeoutError):
            pass
        return fragment or author_fragment(user_pb2.UserRef(id=user_id).SerializeToString())

    async def _refuse_others(self, user_id: int, core: tweet_pb2.TweetCore, action: str) -> None:
        if core.head.author_id != user_id:
            # Raises NOT_FOUND where the caller may not even know of it.
            await self.joined(core.head.id)
            raise errors.permission_denied(f"only its author {action} a tweet", Reason.NOT_AUTHOR)

    async def _refuse_hidden(self, user_id: int, author_ids: Collection[int]) -> None:
        if len(await self._hydrator.author_fragments(user_id, author_ids)) == len(author_ids):
            return
        if len(await self._hydrator.author_fragments(0, author_ids)) == len(author_ids):
            raise errors.permission_denied("one of you blocks the other", Reason.BLOCKED)
        raise no_such_tweet()

    async def _any(self, tweet_id: int) -> tweet_pb2.TweetCore:
        """The tweet, also where it is hidden; NOT_FOUND if there is none."""
        cores = (await self._store.batch_get((tweet_id,))).cores
        if not cores:
            raise no_such_tweet()
        return cores[0]

    async def _standing(self, tweet_id: int) -> tweet_pb2.TweetCore:
        core = await self._any(tweet_id)
        if core.head.deleted:
            raise no_such_tweet()
        return core

    async def _created(self, head: tweet_pb2.TweetHead) -> Record:
        fact = event_pb2.TweetCreated(
            tweet_id=head.id,
            author_id=head.author_id,
            reply_to_id=head.reply_to_id,
            reply_to_author_id=head.reply_to_author_id,
            retweet_of_id=head.retweet_of_id,
            retweet_of_author_id=head.retweet_of_author_id,
            quote_of_id=head.quote_of_id,
            quote_of_author_id=head.quote_of_author_id,
        )
        return await self._event("tweet.created", head.author_id, event_pb2.Event(tweet_created=fact))

    async def _deleted(self, tweet_id: int, author_id: int) -> Record:
        body = event_pb2.Event(tweet_deleted=event_pb2.TweetDeleted(tweet_id=tweet_id, author_id=author_id))
        return await self._event("tweet.deleted", author_id, body)

    async def _event(self, topic: str, author_id: int, event: event_pb2.Event) -> Record:
        event.event_id = await self._ids.mint()
        event.key = author_id
        event.occurred_at.FromMilliseconds(int(self._clock() * 1000))
        event.traceparent = calls.current().traceparent
        return Record(topic, author_id, event.event_id, event.SerializeToString(), event.traceparent)


def no_such_tweet() -> errors.RoostError:
    """The one answer for what never was, is gone, or is hidden from who asks."""
    return errors.not_found("no such tweet")


def _first_core(
    tweet_id: int,
    author_id: int,
    text: str,
    parent: tweet_pb2.TweetCore | None,
    quoted: tweet_pb2.TweetCore | None,
) -> tuple[tweet_pb2.TweetCore, int]:
    """The core of a new post, and its conversation: that of what it replies to, else its own."""
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
