"""The embedded store's writes, each one unit of work of the database: rows, counts and event, or nothing.

Counts change by the rows that a unit changed, never by events. A tweet's replies, retweets and quotes are those rows
that stand. An author's tweets are the rows that stand, less the retweets whose original does not: those are gone for
every reader, so hiding an original takes them off their authors' counts, and restoring it puts them back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.platform.events.log import Record
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.platform.sqlite import outbox
from services.platform.sqlite.absences import is_absent
from services.tweet.store import IDEMPOTENCY_TTL_S, Claim
from services.tweet.store.revisions import first_revision
from services.tweet.store.sqlite import schema as sql

# Expired keys swept by each post that brings one: more than one, so that they cannot pile up.
SWEPT_KEYS = 4


class Change(NamedTuple):
    """What a unit did: to which tweet and author, if to any, and which other tweets count differently now."""

    tweet_id: int
    author_id: int
    changed: bool
    touched: Sequence[int] = ()


class _Row(NamedTuple):
    author_id: int
    state: int
    action_id: int
    reply_to_id: int
    retweet_of_id: int
    quote_of_id: int


class _Link(NamedTuple):
    """A tweet as others count it; 0 where it hangs on none."""

    tweet_id: int
    author_id: int
    reply_to_id: int
    retweet_of_id: int
    quote_of_id: int

    def targets(self) -> list[int]:
        return [i for i in self[2:] if i]


def create(
    connection: sqlite3.Connection, core: tweet_pb2.TweetCore, conversation_id: int, event: Record, claim: Claim | None
) -> Change:
    """See `TweetStore.create`."""
    head = core.head
    if claim is not None and (earlier := claimed(connection, head.author_id, claim)):
        return Change(earlier, head.author_id, False)
    if head.retweet_of_id and (standing := _own_retweet(connection, head.author_id, head.retweet_of_id)):
        return Change(standing, head.author_id, False)
    linked = [i for i in (head.reply_to_id, head.retweet_of_id, head.quote_of_id) if i]
    if not all(_stands(connection, tweet_id) for tweet_id in linked):
        raise _no_such_tweet()
    if claim is not None:
        _take_key(connection, head.author_id, claim, head.id)
    connection.execute(
        sql.INSERT,
        (
            *(head.id, head.author_id, core.core, conversation_id, head.reply_to_id, head.reply_to_author_id),
            *(head.retweet_of_id, head.retweet_of_author_id, head.quote_of_id, head.quote_of_author_id),
        ),
    )
    connection.execute(sql.COUNT_OF_AUTHOR, (head.author_id, 1))
    _count_links(connection, _Link(head.id, head.author_id, head.reply_to_id, head.retweet_of_id, head.quote_of_id), 1)
    outbox.enqueue(connection, (event,))
    return Change(head.id, head.author_id, True, linked)


def hide(connection: sqlite3.Connection, tweet_id: int, into: int, action_id: int, at_s: int, event: Record) -> Change:
    """See `TweetStore.delete` and `TweetStore.remove`."""
    row = _row(connection, tweet_id)
    if row.state == sql.DELETED:
        return Change(tweet_id, row.author_id, False)
    connection.execute(sql.HIDE, (into, action_id, at_s, tweet_id))
    if row.state != sql.STANDS:
        return Change(tweet_id, row.author_id, False)
    outbox.enqueue(connection, (event,))
    return Change(tweet_id, row.author_id, True, _count(connection, tweet_id, row, -1))


def restore(connection: sqlite3.Connection, tweet_id: int, action_id: int, event: Record) -> Change:
    """See `TweetStore.restore`."""
    row = _row(connection, tweet_id)
    if row.state != sql.REMOVED:
        return Change(tweet_id, row.author_id, False)
    if row.action_id != action_id:
        raise errors.failed_precondition("another action hides the tweet", Reason.OTHER_ACTION)
    connection.execute(sql.HIDE, (sql.STANDS, 0, 0, tweet_id))
    outbox.enqueue(connection, (event,))
    return Change(tweet_id, row.author_id, True, _count(connection, tweet_id, row, 1))


def revise(
    connection: sqlite3.Connection,
    core: tweet_pb2.TweetCore,
    revision: tweet_service_pb2.TweetRevision,
    event: Record,
) -> Change:
    """See `TweetStore.revise`."""
    tweet_id, author_id = core.head.id, core.head.author_id
    row = connection.execute(sql.VERSION, (tweet_id,)).fetchone()
    if row is None or row[0] != revision.version - 1:
        return Change(tweet_id, author_id, False)
    # Most tweets are never edited: the first text becomes a row with the first edit.
    rows = [first_revision(row[1]), revision] if row[0] == 1 else [revision]
    connection.executemany(
        sql.ADD_REVISION, [(tweet_id, r.version, r.text, r.created_at.ToMilliseconds()) for r in rows]
    )
    connection.execute(sql.REVISE, (revision.version, core.core, tweet_id))
    outbox.enqueue(connection, (event,))
    return Change(tweet_id, author_id, True)


def revisions(connection: sqlite3.Connection, tweet_id: int) -> list[tweet_service_pb2.TweetRevision]:
    """See `TweetStore.list_revisions`."""
    found = []
    for version, text, created_at_ms in connection.execute(sql.REVISIONS, (tweet_id,)):
        revision = tweet_service_pb2.TweetRevision(version=version, text=text)
        revision.created_at.FromMilliseconds(created_at_ms)
        found.append(revision)
    if not found and (row := connection.execute(sql.CORE, (tweet_id,)).fetchone()) is not None:
        found.append(first_revision(row[0]))
    return found


def purge(connection: sqlite3.Connection, before_s: int, limit: int) -> list[tuple[int, int]]:
    """Removes at most `limit` rows for good: tweets deleted before `before_s`, each behind the retweets of it, which
    count as gone since then. The rows removed: id, and the author where it was such a retweet, else 0."""
    gone: list[tuple[int, int]] = []
    for (tweet_id,) in connection.execute(sql.PURGEABLE, (before_s, limit)).fetchall():
        gone += connection.execute(sql.RETWEETS_OF, (tweet_id, limit - len(gone))).fetchall()
        if len(gone) == limit:
            break
        gone.append((tweet_id, 0))
    connection.executemany(sql.PURGE, [(tweet_id,) for tweet_id, _ in gone])
    connection.executemany(sql.COUNT_AGAIN, [(tweet_id,) for tweet_id, _ in gone])
    connection.executemany(sql.PURGE_REVISIONS, [(tweet_id,) for tweet_id, _ in gone])
    return gone


def claimed(connection: sqlite3.Connection, user_id: int, claim: Claim) -> int:
    """The id of the tweet that the key made before; 0 if it is free."""
    row = connection.execute(sql.KEY, (user_id, claim.key, claim.now_s)).fetchone()
    if row is None:
        return 0
    body_hash, earlier = row
    if body_hash != claim.body_hash:
        raise errors.already_exists("the idempotency key was used for another body", Reason.IDEMPOTENCY_KEY_REUSED)
    return int(earlier)


def _take_key(connection: sqlite3.Connection, user_id: int, claim: Claim, tweet_id: int) -> None:
    connection.executemany(sql.DROP_KEY, connection.execute(sql.EXPIRED, (claim.now_s, SWEPT_KEYS)).fetchall())
    values = (user_id, claim.key, claim.body_hash, tweet_id, claim.now_s + IDEMPOTENCY_TTL_S)
    connection.execute(sql.TAKE_KEY, values)


def _own_retweet(connection: sqlite3.Connection, user_id: int, original_id: int) -> int:
    row = connection.execute(sql.OWN_RETWEET, (user_id, original_id)).fetchone()
    if row is not None and row[1] == sql.REMOVED:
        raise errors.permission_denied("a moderator removed this retweet", Reason.REMOVED)
    return 0 if row is None else int(row[0])


def _count(connection: sqlite3.Connection, tweet_id: int, row: _Row, change: int) -> list[int]:
    """Counts a tweet that stands from now on (1), or no more (-1); the tweets whose counts changed."""
    if not row.retweet_of_id or _stands(connection, row.retweet_of_id):
        connection.execute(sql.COUNT_OF_AUTHOR, (row.author_id, change))
    connection.execute(sql.COUNT_OF_RETWEETERS, (change, tweet_id))
    _count_links(
        connection, _Link(tweet_id, row.author_id, row.reply_to_id, row.retweet_of_id, row.quote_of_id), change
    )
    return [i for i in (row.reply_to_id, row.retweet_of_id, row.quote_of_id) if i]


def set_absent(connection: sqlite3.Connection, tweet_ids: Sequence[int], absent: bool) -> list[int]:
    """Leaves these tweets of one author out of others' counts, or counts them again; the tweets whose counts changed."""
    changed = []
    for tweet_id in tweet_ids:
        row = connection.execute(sql.ROW, (tweet_id,)).fetchone()
        if row is None or row[1] != sql.STANDS:
            # Hidden meanwhile: it is not counted anyway.
            continue
        link = _Link(tweet_id, row[0], *row[3:])
        if link.targets() and connection.execute(sql.UNCOUNT if absent else sql.COUNT_AGAIN, (tweet_id,)).rowcount:
            _add_to_counts(connection, link, -1 if absent else 1)
            changed += link.targets()
    return changed


def _count_links(connection: sqlite3.Connection, link: _Link, change: int) -> None:
    """Counts a link that stands from now on (1), or no more (-1), unless its author does not take part."""
    if not link.targets():
        return
    if change > 0 and is_absent(connection, link.author_id):
        connection.execute(sql.UNCOUNT, (link.tweet_id,))
    elif change > 0 or not connection.execute(sql.COUNT_AGAIN, (link.tweet_id,)).rowcount:
        _add_to_counts(connection, link, change)


def _add_to_counts(connection: sqlite3.Connection, link: _Link, change: int) -> None:
    for statement, linked_id in (
        (sql.COUNT_REPLIES, link.reply_to_id),
        (sql.COUNT_RETWEETS, link.retweet_of_id),
        (sql.COUNT_QUOTES, link.quote_of_id),
    ):
        if linked_id:
            connection.execute(statement, (change, linked_id))


def _stands(connection: sqlite3.Connection, tweet_id: int) -> bool:
    row = connection.execute(sql.STATE, (tweet_id,)).fetchone()
    return row is not None and row[0] == sql.STANDS


def _row(connection: sqlite3.Connection, tweet_id: int) -> _Row:
    row = connection.execute(sql.ROW, (tweet_id,)).fetchone()
    if row is None:
        raise _no_such_tweet()
    return _Row(*row)


def _no_such_tweet() -> errors.RoostError:
    return errors.not_found("no such tweet")
