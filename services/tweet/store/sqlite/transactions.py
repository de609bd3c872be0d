"""The writes of the embedded store. Each function runs in one transaction: rows, counts and event commit together or
not at all.

Counts change in the transaction of the rows that they count. A tweet's counts of replies, retweets and quotes include
the live ones whose authors are not absent. An author's tweet count includes the author's live tweets, but no retweets
of hidden originals: hiding an original lowers the tweet counts of its retweeters, restoring it raises them.
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
from services.platform.versions import Kind, key_of
from services.shared.tweet_access import no_such_tweet
from services.tweet.store import IDEMPOTENCY_TTL_S, Claim
from services.tweet.store.revisions import first_revision
from services.tweet.store.sqlite import schema as sql

# Maximum number of expired idempotency keys that each post with a key deletes. More than one, so that expired keys do
# not accumulate.
SWEPT_KEYS = 4


class WriteResult(NamedTuple):
    """The result of a transaction: the tweet and its author, whether the transaction changed a row, and the ids of the
    other tweets whose counts it changed."""

    tweet_id: int
    author_id: int
    changed: bool
    recounted_ids: Sequence[int] = ()

    def version_keys(self) -> list[int]:
        """Implements Change."""
        if not self.changed:
            return []
        keys = [key_of(Kind.TWEET, i) for i in (self.tweet_id, *self.recounted_ids)]
        return [*keys, key_of(Kind.TWEET_STATE, self.tweet_id), key_of(Kind.AUTHOR, self.author_id)]


class Recounted(NamedTuple):
    """The tweets whose counts a transaction changed."""

    tweet_ids: Sequence[int]

    def version_keys(self) -> list[int]:
        """Implements Change."""
        return [key_of(Kind.TWEET, i) for i in self.tweet_ids]


class Purged(NamedTuple):
    """A pair (tweet id, author id) for each row that a purge deleted; the author id is 0 unless the row was a live
    retweet."""

    rows: Sequence[tuple[int, int]]

    def version_keys(self) -> list[int]:
        """Implements Change."""
        return [
            *(key_of(Kind.TWEET, tweet_id) for tweet_id, _ in self.rows),
            *(key_of(Kind.AUTHOR, author_id) for _, author_id in self.rows if author_id),
        ]


class _Row(NamedTuple):
    author_id: int
    state: int
    action_id: int
    reply_to_id: int
    retweet_of_id: int
    quote_of_id: int


class _Link(NamedTuple):
    """A tweet, its author and the ids of the tweets to which it refers; each is 0 if it is no reply, retweet or
    quote."""

    tweet_id: int
    author_id: int
    reply_to_id: int
    retweet_of_id: int
    quote_of_id: int

    def targets(self) -> list[int]:
        return [i for i in self[2:] if i]


def create(
    connection: sqlite3.Connection, core: tweet_pb2.TweetCore, conversation_id: int, event: Record, claim: Claim | None
) -> WriteResult:
    """Implements `TweetStore.create`."""
    head = core.head
    if claim is not None and (earlier := find_claimed(connection, head.author_id, claim)):
        return WriteResult(earlier, head.author_id, False)
    if head.retweet_of_id and (live_id := _own_retweet(connection, head.author_id, head.retweet_of_id)):
        return WriteResult(live_id, head.author_id, False)
    linked = [i for i in (head.reply_to_id, head.retweet_of_id, head.quote_of_id) if i]
    if not all(_is_live(connection, tweet_id) for tweet_id in linked):
        raise no_such_tweet()
    if claim is not None:
        _store_claim(connection, head.author_id, claim, head.id)
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
    return WriteResult(head.id, head.author_id, True, linked)


def hide(
    connection: sqlite3.Connection, tweet_id: int, into: int, action_id: int, at_s: int, event: Record
) -> WriteResult:
    """Sets the state of the tweet to `into` (DELETED or REMOVED). Implements `TweetStore.delete` and
    `TweetStore.remove`."""
    row = _row(connection, tweet_id)
    if row.state == sql.DELETED:
        return WriteResult(tweet_id, row.author_id, False)
    connection.execute(sql.HIDE, (into, action_id, at_s, tweet_id))
    if row.state != sql.LIVE:
        return WriteResult(tweet_id, row.author_id, False)
    outbox.enqueue(connection, (event,))
    return WriteResult(tweet_id, row.author_id, True, _count_everywhere(connection, tweet_id, row, -1))


def restore(connection: sqlite3.Connection, tweet_id: int, action_id: int, event: Record) -> WriteResult:
    """Implements `TweetStore.restore`."""
    row = _row(connection, tweet_id)
    if row.state != sql.REMOVED:
        return WriteResult(tweet_id, row.author_id, False)
    if row.action_id != action_id:
        raise errors.failed_precondition(
            "another moderation action hides the tweet: restore it with the id of that action", Reason.OTHER_ACTION
        )
    connection.execute(sql.HIDE, (sql.LIVE, 0, 0, tweet_id))
    outbox.enqueue(connection, (event,))
    return WriteResult(tweet_id, row.author_id, True, _count_everywhere(connection, tweet_id, row, 1))


def revise(
    connection: sqlite3.Connection,
    core: tweet_pb2.TweetCore,
    revision: tweet_service_pb2.TweetRevision,
    event: Record,
) -> WriteResult:
    """Implements `TweetStore.revise`."""
    tweet_id, author_id = core.head.id, core.head.author_id
    row = connection.execute(sql.VERSION, (tweet_id,)).fetchone()
    if row is None or row[0] != revision.version - 1:
        return WriteResult(tweet_id, author_id, False)
    # Most tweets are never edited, so revision 1 is stored only with the first edit.
    rows = [first_revision(row[1]), revision] if row[0] == 1 else [revision]
    connection.executemany(
        sql.ADD_REVISION, [(tweet_id, r.version, r.text, r.created_at.ToMilliseconds()) for r in rows]
    )
    connection.execute(sql.REVISE, (revision.version, core.core, tweet_id))
    outbox.enqueue(connection, (event,))
    return WriteResult(tweet_id, author_id, True)


def revisions(connection: sqlite3.Connection, tweet_id: int) -> list[tweet_service_pb2.TweetRevision]:
    """Implements `TweetStore.list_revisions`."""
    found = []
    for version, text, created_at_ms in connection.execute(sql.REVISIONS, (tweet_id,)):
        revision = tweet_service_pb2.TweetRevision(version=version, text=text)
        revision.created_at.FromMilliseconds(created_at_ms)
        found.append(revision)
    if not found and (row := connection.execute(sql.CORE, (tweet_id,)).fetchone()) is not None:
        found.append(first_revision(row[0]))
    return found


def purge(connection: sqlite3.Connection, before_s: int, limit: int) -> Purged:
    """Deletes at most `limit` rows for good: tweets that their authors deleted before `before_s` (Unix seconds), and
    their live retweets, each tweet after its retweets."""
    gone: list[tuple[int, int]] = []
    for (tweet_id,) in connection.execute(sql.PURGEABLE, (before_s, limit)).fetchall():
        gone += connection.execute(sql.RETWEETS_OF, (tweet_id, limit - len(gone))).fetchall()
        if len(gone) == limit:
            break
        gone.append((tweet_id, 0))
    connection.executemany(sql.PURGE, [(tweet_id,) for tweet_id, _ in gone])
    connection.executemany(sql.RECOUNT, [(tweet_id,) for tweet_id, _ in gone])
    connection.executemany(sql.PURGE_REVISIONS, [(tweet_id,) for tweet_id, _ in gone])
    return Purged(gone)


def find_claimed(connection: sqlite3.Connection, user_id: int, claim: Claim) -> int:
    """Implements `TweetStore.find_claimed`."""
    row = connection.execute(sql.KEY, (user_id, claim.key, claim.now_s)).fetchone()
    if row is None:
        return 0
    body_hash, earlier = row
    if body_hash != claim.body_hash:
        raise errors.already_exists(
            "this idempotency key was used with another request body: use a new key", Reason.IDEMPOTENCY_KEY_REUSED
        )
    return int(earlier)


def _store_claim(connection: sqlite3.Connection, user_id: int, claim: Claim, tweet_id: int) -> None:
    connection.executemany(sql.DROP_KEY, connection.execute(sql.EXPIRED, (claim.now_s, SWEPT_KEYS)).fetchall())
    values = (user_id, claim.key, claim.body_hash, tweet_id, claim.now_s + IDEMPOTENCY_TTL_S)
    connection.execute(sql.STORE_KEY, values)


def _own_retweet(connection: sqlite3.Connection, user_id: int, original_id: int) -> int:
    row = connection.execute(sql.OWN_RETWEET, (user_id, original_id)).fetchone()
    if row is not None and row[1] == sql.REMOVED:
        raise errors.permission_denied(
            "a moderator removed your retweet of this tweet, so you cannot retweet it again", Reason.REMOVED
        )
    return 0 if row is None else int(row[0])


def _count_everywhere(connection: sqlite3.Connection, tweet_id: int, row: _Row, change: int) -> list[int]:
    """Adds a tweet to all counts when it becomes live (`change` is 1), or subtracts it when it is hidden (`change` is
    -1). Returns the ids of the tweets whose counts changed."""
    if not row.retweet_of_id or _is_live(connection, row.retweet_of_id):
        connection.execute(sql.COUNT_OF_AUTHOR, (row.author_id, change))
    connection.execute(sql.COUNT_OF_RETWEETERS, (change, tweet_id))
    _count_links(
        connection, _Link(tweet_id, row.author_id, row.reply_to_id, row.retweet_of_id, row.quote_of_id), change
    )
    return [i for i in (row.reply_to_id, row.retweet_of_id, row.quote_of_id) if i]


def set_absent(connection: sqlite3.Connection, tweet_ids: Sequence[int], absent: bool) -> Recounted:
    """If `absent`, excludes these tweets of one author from the counts of the tweets to which they refer; otherwise
    includes these tweets again. Skips tweets that are hidden or purged."""
    changed: list[int] = []
    for tweet_id in tweet_ids:
        row = connection.execute(sql.ROW, (tweet_id,)).fetchone()
        if row is None or row[1] != sql.LIVE:
            # The tweet was hidden after the caller read its id, so no count includes it.
            continue
        link = _Link(tweet_id, row[0], *row[3:])
        if link.targets() and connection.execute(sql.UNCOUNT if absent else sql.RECOUNT, (tweet_id,)).rowcount:
            _add_to_counts(connection, link, -1 if absent else 1)
            changed += link.targets()
    return Recounted(changed)


def _count_links(connection: sqlite3.Connection, link: _Link, change: int) -> None:
    """Adds a tweet to the counts of the tweets to which it refers (`change` is 1), or subtracts the tweet (`change` is
    -1). Counts do not include a tweet of an absent author."""
    if not link.targets():
        return
    if change > 0 and is_absent(connection, link.author_id):
        connection.execute(sql.UNCOUNT, (link.tweet_id,))
    elif change > 0 or not connection.execute(sql.RECOUNT, (link.tweet_id,)).rowcount:
        _add_to_counts(connection, link, change)


def _add_to_counts(connection: sqlite3.Connection, link: _Link, change: int) -> None:
    for statement, linked_id in (
        (sql.COUNT_REPLIES, link.reply_to_id),
        (sql.COUNT_RETWEETS, link.retweet_of_id),
        (sql.COUNT_QUOTES, link.quote_of_id),
    ):
        if linked_id:
            connection.execute(statement, (change, linked_id))


def _is_live(connection: sqlite3.Connection, tweet_id: int) -> bool:
    row = connection.execute(sql.STATE, (tweet_id,)).fetchone()
    return row is not None and row[0] == sql.LIVE


def _row(connection: sqlite3.Connection, tweet_id: int) -> _Row:
    row = connection.execute(sql.ROW, (tweet_id,)).fetchone()
    if row is None:
        raise no_such_tweet()
    return _Row(*row)
