"""How a tweet changes and goes in the Cassandra adapter: edits, deletions, a moderator's actions, the purge."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.platform.events.log import Record
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.tweet.store.cassandra import schema as cql
from services.tweet.store.cassandra.claims import MAX_TRIES, is_unknown, name_of_retweet
from services.tweet.store.cassandra.rows import Stored, drop, links, orphan, show, to_purge, uncount
from services.tweet.store.cassandra.writes import Writer
from services.tweet.store.revisions import first_revision

# Rows read and changed in one go where there may be very many.
STEP = 500
# Hours with deletions in them that are looked up at once.
HOURS_PAGE = 64
# Below every hour and id.
_NO_BOUND = -1


class Change(NamedTuple):
    """What a write did: whether that was news, to which tweet, if it is known."""

    changed: bool
    tweet: Stored | None = None


class Changer:
    """Changes tweets, by the writer's batches."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._keyspace = writer.keyspace

    async def delete(self, tweet_id: int, at_s: int, event: Record) -> Change:
        """See `TweetStore.delete`. Of deletions at the same moment each may find that it was the first."""
        known = await self._writer.one(tweet_id)
        if known.hidden == cql.DELETED:
            return Change(False, known)
        steps = [*show(known.head, cql.DELETED, cql.FOREVER_US, 0, at_s), *to_purge(tweet_id, at_s)]
        stood = known.hidden == cql.STANDS
        if stood:
            await self._writer.commit(steps, event, known.head)
        else:
            await self._keyspace.batch(steps)
        if known.head.retweet_of_id:
            # Whoever finds it held by a deleted tweet takes it over: this only spares them the look.
            with contextlib.suppress(errors.RoostError):
                await self._free(known)
        return Change(stood, known)

    async def remove(self, tweet_id: int, action_id: int, at_s: int, event: Record) -> Change:
        """See `TweetStore.remove`."""
        known = await self._writer.one(tweet_id)
        if known.hidden == cql.DELETED:
            return Change(False, known)
        steps = show(known.head, cql.REMOVED, self._writer.now_us(known.changed_us), action_id, at_s)
        if known.hidden == cql.REMOVED:
            await self._keyspace.batch(steps)
            return Change(False, known)
        await self._writer.commit(steps, event, known.head)
        return Change(True, known)

    async def restore(self, tweet_id: int, action_id: int, event: Record) -> Change:
        """See `TweetStore.restore`."""
        known = await self._writer.one(tweet_id)
        if known.hidden != cql.REMOVED:
            return Change(False, known)
        if known.action_id != action_id:
            raise errors.failed_precondition("another action hides the tweet", Reason.OTHER_ACTION)
        steps = show(known.head, cql.STANDS, self._writer.now_us(known.changed_us), 0, 0)
        await self._writer.commit(steps, event, known.head)
        return Change(True, known)

    async def count_retweets(self, tweet_id: int) -> None:
        """Makes the retweets of a tweet count for their authors, or not, as its state wants. Harmless to repeat: what is written bears
        the time of the state."""
        known = (await self._writer.stored((tweet_id,))).get(tweet_id)
        after_id = _NO_BOUND
        while known is not None:
            rows = await self._keyspace.read(cql.ALL_LINKS, tweet_id, cql.RETWEET, after_id, STEP)
            if rows:
                await self._keyspace.write_each(
                    orphan(retweet_id, author_id, known.hidden, known.changed_us) for retweet_id, author_id in rows
                )
                await self._writer.tell((), [author_id for _, author_id in rows])
            if len(rows) < STEP:
                return
            after_id = rows[-1][0]

    async def follow_up(self, tweet_ids: Sequence[int]) -> None:
        """Does again what follows the commit of a change, by the tweets as they stand. UNAVAILABLE where that cannot be for now."""
        for tweet_id, known in (await self._writer.stored(tweet_ids)).items():
            if not await self._writer.tell_of(known.head):
                raise errors.unavailable("no process can be told of a change now", reason=Reason.CACHE_UNAVAILABLE)
            await self.count_retweets(tweet_id)

    async def revise(
        self, core: tweet_pb2.TweetCore, revision: tweet_service_pb2.TweetRevision, event: Record
    ) -> Change:
        """See `TweetStore.revise`."""
        tweet_id = core.head.id
        async with self._writer.turns.hold(tweet_id):
            known = (await self._writer.stored((tweet_id,))).get(tweet_id)
            if known is None or known.hidden != cql.STANDS or await self._last_version(known) != revision.version - 1:
                return Change(False, known)
            if not await self._decide(known, core, revision, event):
                return Change(False, known)
            await self._copy(known, revision.version, core.core, event)
            return Change(True, known)

    async def _last_version(self, known: Stored) -> int:
        """The version that stands; copies it first where an edit was left half done."""
        for version, core, event in await self._keyspace.read(cql.LAST_REVISION, known.head.id):
            if version > known.version:
                await self._copy(known, version, core, Record(*event))
            return int(version)
        return known.version

    async def _copy(self, known: Stored, version: int, core: bytes, event: Record) -> None:
        """Makes what the revisions say what everybody reads. The same whoever does it, and however often."""
        tweet_id = known.head.id
        step = (cql.REVISE, (cql.created_us(tweet_id, version), version, core, tweet_id))
        await self._writer.commit([step], event, known.head)

    async def _decide(
        self, known: Stored, core: tweet_pb2.TweetCore, revision: tweet_service_pb2.TweetRevision, event: Record
    ) -> bool:
        """Whether this edit, and no other, makes the version."""
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
        raise errors.unavailable("others edit the same all the time", reason=Reason.CONTENDED)

    async def list_revisions(self, tweet_id: int) -> Sequence[tweet_service_pb2.TweetRevision]:
        """See the port. An edit that was left half done is finished first: whoever repeats it looks here, too."""
        known = (await self._writer.stored((tweet_id,))).get(tweet_id)
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
        """Leaves these tweets of one author out of the counts of what they hang on, or counts them again. UNAVAILABLE if other processes
        cannot be told."""
        found = (await self._writer.stored(tweet_ids)).values()
        await self._keyspace.write_each([step for stored in found for step in uncount(stored, absent, at_us)])
        targets = {tweet_id for stored in found for tweet_id, _ in links(stored.head)}
        if not await self._writer.tell(list(targets)):
            raise errors.unavailable("other processes cannot be told of counts that changed")

    async def purge(self, before_s: int, limit: int) -> int:
        """See `TweetStore.purge`."""
        purged, hour = 0, _NO_BOUND
        last_hour = before_s * 1000 // cql.HOUR_MS
        while hours := await self._keyspace.read(cql.DELETION_HOURS, cql.ALL_HOURS, hour, last_hour, HOURS_PAGE):
            for (hour,) in hours:
                purged += await self._purge_hour(hour, before_s, limit - purged)
                if purged == limit:
                    return purged
        return purged

    async def _purge_hour(self, hour: int, before_s: int, room: int) -> int:
        begun_us = self._writer.now_us(0)
        after, purged = (_NO_BOUND, _NO_BOUND), 0
        while rows := await self._keyspace.read(cql.DELETIONS, hour, *after, before_s, min(room - purged, STEP)):
            for after in rows:
                purged += await self._purge_deleted(hour, *after, before_s, room - purged)
                if purged == room:
                    return purged
        past = hour < before_s * 1000 // cql.HOUR_MS
        if past and not await self._keyspace.read(cql.ANY_DELETION, hour):
            # What is deleted from now on lists its hour anew, with a later timestamp.
            await self._keyspace.write(cql.DROP_DELETION_HOUR, begun_us, cql.ALL_HOURS, hour)
        return purged

    async def _purge_deleted(self, hour: int, at_s: int, tweet_id: int, before_s: int, room: int) -> int:
        """Purges the retweets of a tweet, then the tweet where room (above 0) is left; how many."""
        known = (await self._writer.stored((tweet_id,))).get(tweet_id)
        purged = 0
        if known is not None:
            # Of two deletions at once the later time counts, which has its own row.
            if known.hidden != cql.DELETED or known.hidden_at_s >= before_s:
                return 0
            purged = await self._purge_retweets(tweet_id, room)
            if purged == room:
                return purged
            await self._drop(known)
            purged += 1
        await self._keyspace.write(cql.DROP_DELETION, hour, at_s, tweet_id)
        return purged

    async def _purge_retweets(self, tweet_id: int, room: int) -> int:
        purged, before_id = 0, cql.NO_BOUND
        while limit := min(room - purged, STEP):
            rows = await self._keyspace.read(cql.LINKS_DOWN, tweet_id, cql.RETWEET, before_id, limit)
            for known in (await self._writer.stored(row[0] for row in rows)).values():
                await self._drop(known)
                purged += 1
            if len(rows) < limit:
                break
            before_id = rows[-1][0]
        return purged

    async def _drop(self, known: Stored) -> None:
        """Takes one tweet away. The claim and the revisions first: the row is what a purge that was broken off finds them by."""
        head = known.head
        if head.retweet_of_id:
            await self._free(known)
        for version, _text, _created_at in await self._keyspace.read(cql.REVISIONS, head.id):
            await self._keyspace.execute_lwt(cql.DROP_REVISION, head.id, version)
        await self._keyspace.batch(drop(head))
        await self._writer.tell((head.id,), (head.author_id,))

    async def _free(self, known: Stored) -> None:
        head = known.head
        await self._writer.claims.free(head.author_id, name_of_retweet(head.retweet_of_id), head.id)


def _revision(tweet_id: int, revision: tweet_service_pb2.TweetRevision) -> tuple[int, int, str, int]:
    return tweet_id, revision.version, revision.text, revision.created_at.ToMilliseconds()
