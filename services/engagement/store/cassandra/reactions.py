"""Writes the copies of reactions, from which lists and counts are read, and finds out which events were committed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from services.engagement.store import ReactionKind
from services.engagement.store.cassandra import schema
from services.engagement.store.cassandra.count_cache import CachedCounts
from services.platform.cassandra.keyspace import Keyspace, Row, Statement
from services.platform.events.log import Record


class Reaction(NamedTuple):
    """One reaction of a user to a tweet, and the bucket of its copy by tweet. A reaction that is undone and made again
    has a new `reaction_id`."""

    user_id: int
    kind: int
    tweet_id: int
    reaction_id: int
    bucket: int

    def copies(self) -> list[Statement]:
        """Returns the statements that insert the copies."""
        user_id, kind, tweet_id, reaction_id, bucket = self
        return [
            (schema.COPY_BY_USER, (user_id, kind, reaction_id, tweet_id, schema.ADDED)),
            (schema.COPY_BY_TWEET, (tweet_id, bucket, kind, reaction_id, user_id, schema.ADDED)),
        ]

    def drops(self) -> list[Statement]:
        """Returns the statements that delete the rows of this reaction from the tables by user and by tweet. Their
        timestamp is newer than that of the inserts, so a late insert cannot bring a row back."""
        user_id, kind, tweet_id, reaction_id, bucket = self
        steps: list[Statement] = [
            (schema.DROP_BY_USER, (schema.REMOVED, user_id, kind, reaction_id)),
            (schema.DROP_BY_TWEET, (schema.REMOVED, tweet_id, bucket, kind, reaction_id)),
        ]
        if kind == schema.NUMBERS[ReactionKind.LIKE]:
            steps.append(
                (
                    schema.DROP_BY_TWEET,
                    (schema.FOREVER_US, tweet_id, schema.FIRST_BUCKET, schema.UNCOUNTED, reaction_id),
                )
            )
        return steps


class ReactionCopies:
    """Writes the copies of reactions and marks the cached counts of the tweets as changed."""

    def __init__(self, keyspace: Keyspace, cached_counts: CachedCounts) -> None:
        self._keyspace = keyspace
        self._cached_counts = cached_counts

    async def write(self, steps: Iterable[Statement], tweet_ids: Iterable[int], user_ids: Iterable[int]) -> None:
        """Executes `steps`, statements that insert or delete copies of reactions of these users to these tweets. Raises UNAVAILABLE,
        DEADLINE_EXCEEDED or RESOURCE_EXHAUSTED if the store cannot answer; then some of the statements may have been
        applied."""
        await self._keyspace.write_each(steps)
        await self._cached_counts.changed(tweet_ids, user_ids)


class CommittedReactions:
    """The EventValidator of the engagement store: an event is valid if the transaction of its like or unlike left a
    note."""

    def __init__(self, keyspace: Keyspace, copies: ReactionCopies) -> None:
        self._keyspace = keyspace
        self._copies = copies

    async def publishable(self, records: Sequence[Record]) -> Sequence[Record]:
        """Returns the events whose transaction was applied. Before that, writes the copies of their reactions again,
        because the writer may have died before it wrote the copies."""
        notes = await self.find_notes(records)
        steps: list[Statement] = []
        for (user_id, _), (reaction_id, gone, bucket, tweet_id) in notes.items():
            like = (user_id, schema.NUMBERS[ReactionKind.LIKE], tweet_id)
            if gone is None:
                steps += Reaction(*like, reaction_id, bucket).copies()
            else:
                steps += Reaction(*like, gone, bucket).drops()
        await self._copies.write(steps, {note[3] for note in notes.values()}, {user_id for user_id, _ in notes})
        return [record for record in records if (record.key, record.event_id) in notes]

    async def find_notes(self, records: Sequence[Record]) -> Mapping[tuple[int, int], Row]:
        """Returns the notes of the events that were committed, by (user id, event id). Reads the notes serially, which
        first completes transactions that are in progress."""
        found: dict[tuple[int, int], Row] = {}
        for record in records:
            rows = await self._keyspace.read_serial(schema.NOTED, record.key, schema.NOTE, record.event_id)
            if rows:
                found[record.key, record.event_id] = rows[0]
        return found
