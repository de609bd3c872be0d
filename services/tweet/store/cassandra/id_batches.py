"""Reads rows by ids from Cassandra, with at most IDS_PER_READ ids per statement."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from services.platform.cassandra.keyspace import Keyspace, Row
from services.tweet.store.cassandra import schema as cql


async def by_ids(keyspace: Keyspace, statement: str, ids: Iterable[int]) -> list[Row]:
    """Returns the rows with these ids, in no particular order. `statement` has one parameter, a list of at most
    IDS_PER_READ ids. Raises the error of the first read that fails, and then returns no rows at all."""
    answers = await keyspace.read_each(statement, [(batch,) for batch in batches_of(ids)])
    return list(chain.from_iterable(answers))


def batches_of(ids: Iterable[int]) -> list[list[int]]:
    """Returns the distinct ids in batches of at most IDS_PER_READ."""
    distinct = list(dict.fromkeys(ids))
    return [distinct[start : start + cql.IDS_PER_READ] for start in range(0, len(distinct), cql.IDS_PER_READ)]
