"""Edits, deletes, removes and restores tweets in Cassandra."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.platform.events.log import Record
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.tweet.store.cassandra import schema as cql
from services.tweet.store.cassandra.claims import MAX_TRIES, is_unknown
from services.tweet.store.cassandra.rows import (
    Stored,
    links,
    list_for_purge,
    set_orphaned,
    set_state,
    uncount,
)
from services.tweet.store.cassandra.writes import BatchWriter
from services.tweet.store.revisions import first_revision

# Number of rows that a change of very many rows reads and writes at a time.
STEP = 500
# Smaller than every id: the bound of a list in ascending order from the first entry on.
_NO_BOUND = -1


class ChangeResult(NamedTuple):
    """The result of a write. `changed` is what the method of TweetStore returns. `tweet` is the tweet before the write,
    None if it does not exist."""

    changed: bool
    tweet: Stored | None = None


class TweetUpdater:
    """Changes stored tweets with the batches of a BatchWriter."""

    def __init__(self, writer: BatchWriter) -> None:
        self._writer = writer
        self._keyspace = writer.keyspace

    async def delete(self, tweet_id: int, at_s: int, event: Record) -> ChangeResult:
        """Implements `TweetStore.delete`. Of concurrent deletions of one tweet, several may store their event and
        return that the tweet was live."""
        known = await self._writer.require_stored(tweet_id)
        if known.hidden == cql.DELETED:
            return ChangeResult(False, known)
        steps = [*set_state(known.head, cql.DELETED, cql.FOREVER_US, 0, at_s), *list_for_purge(tweet_id, at_s)]
        was_live = known.hidden == cql.LIVE
        if was_live:
            await self._writer.commit(steps, event, known.head)
        else:
            await self._keyspace.batch(steps)
        if known.head.retweet_of_id:
            # A failure is harmless: a later retweet of the original takes over the claim of a deleted one. It is only
            # faster if the claim is released.
            with contextlib.suppress(errors.RoostError):
                await self._writer.release_retweet_claim(known)
        return ChangeResult(was_live, known)

    async def remove(self, tweet_id: int, action_id: int, at_s: int, event: Record) -> ChangeResult:
        """Implements `TweetStore.remove`."""
        known = await self._writer.require_stored(tweet_id)
        if known.hidden == cql.DELETED:
            return ChangeResult(False, known)
        steps = set_state(known.head, cql.REMOVED, self._writer.now_us(known.changed_us), action_id, at_s)
        if known.hidden == cql.REMOVED:
            await self._keyspace.batch(steps)
            return ChangeResult(False, known)
        await self._writer.commit(steps, event, known.head)
        return ChangeResult(True, known)

    async def restore(self, tweet_id: int, action_id: int, event: Record) -> ChangeResult:
        """Implements `TweetStore.restore`."""
        known = await self._writer.require_stored(tweet_id)
        if known.hidden != cql.REMOVED:
            return ChangeResult(False, known)
        if known.action_id != action_id:
            raise errors.failed_precondition(
                "another moderation action hides the tweet: restore it with the id of that action", Reason.OTHER_ACTION
            )
        steps = set_state(known.head, cql.LIVE, self._writer.now_us(known.changed_us), 0, 0)
        await self._writer.commit(steps, event, known.head)
        return ChangeResult(True, known)

    async def update_retweet_counts(self, tweet_id: int) -> None:
        """Includes the retweets of a tweet in the tweet counts of their authors if the tweet is live, otherwise
        excludes them. Idempotent, and independent of the order of calls: the rows get the write timestamp of the
        tweet's state."""
        known = (await self._writer.read_stored((tweet_id,))).get(tweet_id)
        after_id = _NO_BOUND
        while known is not None:
            rows = await self._keyspace.read(cql.ALL_LINKS, tweet_id, cql.RETWEET, after_id, STEP)
            if rows:
                await self._keyspace.write_each(
                    set_orphaned(retweet_id, author_id, known.hidden, known.changed_us)
                    for retweet_id, author_id in rows
                )
                await self._writer.publish_versions((), [author_id for _, author_id in rows])
            if len(rows) < STEP:
                return
            after_id = rows[-1][0]

    async def repeat_side_effects(self, tweet_ids: Sequence[int]) -> None:
        """Repeats the follow-up writes of committed changes: changes the versions of the tweets, and updates the tweet
        counts of their retweeters by the current state of the tweets. Raises UNAVAILABLE if Redis does not accept the
        versions."""
        for tweet_id, known in (await self._writer.read_stored(tweet_ids)).items():
            if not await self._writer.publish_tweet_change(known.head):
                raise errors.unavailable(
                    "Redis did not accept the new versions of a changed tweet: retry later",
                    reason=Reason.CACHE_UNAVAILABLE,
                )
            await self.update_retweet_counts(tweet_id)

    async def revise(
        self, core: tweet_pb2.TweetCore, revision: tweet_service_pb2.TweetRevision, event: Record
    ) -> ChangeResult:
        """Implements `TweetStore.revise`."""
        tweet_id = core.head.id
        async with self._writer.locks.hold(tweet_id):
            known = (await self._writer.read_stored((tweet_id,))).get(tweet_id)
            if known is None or known.hidden != cql.LIVE or await self._last_version(known) != revision.version - 1:
                return ChangeResult(False, known)
            if not await self._insert_revision(known, core, revision, event):
                return ChangeResult(False, known)
            await self._apply_revision(known, revision.version, core.core, event)
            return ChangeResult(True, known)

    async def _last_version(self, known: Stored) -> int:
        """Returns the number of the latest revision. If this revision is in `tweet_revisions` but not in
        `tweets_by_id`, because a process died during an edit, first applies the edit."""
        for version, core, event in await self._keyspace.read(cql.LAST_REVISION, known.head.id):
            if version > known.version:
                await self._apply_revision(known, version, core, Record(*event))
            return int(version)
        return known.version

    async def _apply_revision(self, known: Stored, version: int, core: bytes, event: Record) -> None:
        """Copies a revision to `tweets_by_id` and publishes its event. Idempotent, even if several processes do it
        concurrently."""
        tweet_id = known.head.id
        step = (cql.REVISE, (cql.created_us(tweet_id, version), version, core, tweet_id))
        await self._writer.commit([step], event, known.head)

    async def _insert_revision(
        self, known: Stored, core: tweet_pb2.TweetCore, revision: tweet_service_pb2.TweetRevision, event: Record
    ) -> bool:
        """Inserts the revision by an LWT. Returns False if another edit has stored a revision with this number. Raises
        UNAVAILABLE (CONTENDED) if it is unknown after MAX_TRIES attempts whether the revision is stored."""
        tweet_id = known.head.id
        text = cql.ADD_REVISION
        values: tuple[Any, ...] = (*_revision(tweet_id, revision), core.core, tuple(event))
        if revision.version == 2:
            text = cql.ADD_FIRST_REVISIONS
            values = (*_revision(tweet_id, first_revision(known.core)), *values)
        for _ in range(MAX_TRIES):
            try:
                applied, _stood = await self._keyspace.execute_lwt(text, *values)
                return applied
            except errors.RoostError as error:
                if not is_unknown(error):
                    raise
            for version, _core, made_by in await self._keyspace.read_serial(cql.LAST_REVISION, tweet_id):
                if version >= revision.version:
                    return bool(version == revision.version and Record(*made_by) == event)
        raise errors.unavailable("too many concurrent edits of this tweet: retry later", reason=Reason.CONTENDED)

    async def list_revisions(self, tweet_id: int) -> Sequence[tweet_service_pb2.TweetRevision]:
        """Implements `TweetStore.list_revisions`. First applies an edit that is in `tweet_revisions` only: the client
        whose edit timed out may read the revisions to find out whether it succeeded."""
        known = (await self._writer.read_stored((tweet_id,))).get(tweet_id)
        if known is None:
            return []
        rows = await self._keyspace.read(cql.REVISIONS, tweet_id)
        if not rows:
            return [first_revision(known.core)]
        if rows[-1][0] > known.version:
            await self._last_version(known)
        found = []
        for version, text, created_at_ms in rows:
            revision = tweet_service_pb2.TweetRevision(version=version, text=text)
            revision.created_at.FromMilliseconds(created_at_ms)
            found.append(revision)
        return found

    async def set_absent(self, tweet_ids: Sequence[int], absent: bool, at_us: int) -> None:
        """If `absent`, excludes these tweets of one author from the counts of the tweets to which they refer; otherwise
        includes these tweets again. `at_us` is as in `TweetStore.set_absent`. Raises UNAVAILABLE if Redis does not
        accept the new versions."""
        found = (await self._writer.read_stored(tweet_ids)).values()
        await self._keyspace.write_each([step for tweet in found for step in uncount(tweet, absent, at_us)])
        targets = {tweet_id for tweet in found for tweet_id, _ in links(tweet.head)}
        if not await self._writer.publish_versions(list(targets)):
            raise errors.unavailable("Redis did not accept the new versions of changed counts: retry later")


def _revision(tweet_id: int, revision: tweet_service_pb2.TweetRevision) -> tuple[int, int, str, int]:
    return tweet_id, revision.version, revision.text, revision.created_at.ToMilliseconds()
