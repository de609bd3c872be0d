"""What replicas tell each other through Redis, so that a change acts on the next read, whichever replica answers it.

An entry is a version and bytes: only a higher version replaces it, and a tombstone is the highest. Whoever changes something puts the
entry before it answers; whoever reads and finds none asks the owner and fills it in, briefly, and only where there is none: a fill that
comes late overwrites nothing. A mark is a number that is fresh after every change, to be compared for equality.

Keys end in the run id of the server they were said to. After a restart from an old snapshot, or a fail-over that lost the last writes,
nothing that stands there is believed: an older entry in place of a lost tombstone would else be served for an hour.

Every method is bounded by `redis_timeout_s`, and none raises because of Redis: a read that gets no answer knows nothing, and the caller
asks the owner; a write that cannot be made answers False, and the event's consumer repeats it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from struct import Struct
from typing import Any, NamedTuple, TypeVar

from services.cluster.pipe import Pipe, ReplyError, command
from services.cluster.redis import Redis
from services.cluster.redis_nodes import Node
from services.common import errors

T = TypeVar("T")

# Above any version: what it stands for is gone, and nothing comes after it.
TOMBSTONE = 2**63 - 1
# Longer than any fill takes by far; after it owners answer, and none has anything older by then.
PUT_TTL_MS = 3_600_000
# How long a fill may be wrong that was read before a change and written after the changer's entry had gone.
FILL_TTL_MS = 60_000
# A mark that goes is made afresh: readers then fetch once what they had.
MARK_TTL_MS = 24 * 3_600_000
# Of what there are very many, and what is remembered for seconds only.
SHORT_MARK_TTL_MS = 600_000
# Somebody else changes the same entry in each try: more than a few at the same moment are not people's.
PUT_TRIES = 8
# Keys in one command: about 0.2 ms of the server, which answers nobody else meanwhile.
KEYS_AT_ONCE = 500
# Enough of a run id to tell servers apart.
TAG_LETTERS = 10
# Random marks may not meet those of callers, nor each other.
MARK_BITS = 62

_VERSION = Struct(">q")
_TWEET, _USER = "t", "u"
_RELATIONS, _THREAD, _TWEET_MARK, _AUTHOR_MARK = "rv", "tv", "tm", "am"


class SharedEntry(NamedTuple):
    """What is shared of one tweet or user: `data` is the writer's own, and empty for a tombstone."""

    version: int
    data: bytes


class SharedEntries:
    """Entries of tweets and users by id, and marks of relations, threads, tweets and authors."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def tweets(self, ids: Sequence[int]) -> list[SharedEntry | None]:
        """What is known of each tweet, in order; None: ask the owner."""
        return await self._entries(_TWEET, ids)

    async def put_tweet(self, tweet_id: int, version: int, data: bytes) -> bool:
        """Says how a tweet stands now, unless something as new is known. False where Redis did not take it."""
        return await self._put(_TWEET, tweet_id, version, data)

    async def fill_tweets(self, entries: Mapping[int, tuple[int, bytes]]) -> None:
        """What the owner answered, as {id: (version, data)}, where nothing is known."""
        await self._fill(_TWEET, entries)

    async def drop_tweets(self, ids: Sequence[int]) -> bool:
        """Forgets tweets, tombstones as well: for what comes back. A fill under way may then put up to FILL_TTL_MS what it read before."""
        return await self._drop(_TWEET, ids)

    async def users(self, ids: Sequence[int]) -> list[SharedEntry | None]:
        """As `tweets`, of users."""
        return await self._entries(_USER, ids)

    async def put_user(self, user_id: int, version: int, data: bytes) -> bool:
        """As `put_tweet`, of a user."""
        return await self._put(_USER, user_id, version, data)

    async def fill_users(self, entries: Mapping[int, tuple[int, bytes]]) -> None:
        """As `fill_tweets`, of users."""
        await self._fill(_USER, entries)

    async def drop_users(self, ids: Sequence[int]) -> bool:
        """As `drop_tweets`, of users."""
        return await self._drop(_USER, ids)

    async def relation_version(self, user_id: int) -> int | None:
        """The mark of a user's relations, taken before they are read; None where Redis does not answer: they may have changed."""
        return await self._mark(_RELATIONS, user_id)

    async def change_relations(self, user_ids: Sequence[int], fresh: int) -> bool:
        """Marks them changed, after the rows are written and before the answer. `fresh` was never given before: a new id."""
        return await self._change(_RELATIONS, user_ids, fresh)

    async def thread_version(self, root_id: int) -> int | None:
        """As `relation_version`, of a thread."""
        return await self._mark(_THREAD, root_id)

    async def change_threads(self, root_ids: Sequence[int], fresh: int) -> bool:
        """As `change_relations`, of threads."""
        return await self._change(_THREAD, root_ids, fresh)

    async def tweet_marks(self, ids: Sequence[int]) -> list[int | None]:
        """As `relation_version`, of tweets with what is counted of them, in order: for what processes remember of each."""
        return await self._marks(_TWEET_MARK, ids)

    async def change_tweets(self, ids: Sequence[int], fresh: int) -> bool:
        """As `change_relations`, of tweets."""
        return await self._change(_TWEET_MARK, ids, fresh, SHORT_MARK_TTL_MS)

    async def author_marks(self, user_ids: Sequence[int]) -> list[int | None]:
        """As `tweet_marks`, of what each user has posted."""
        return await self._marks(_AUTHOR_MARK, user_ids)

    async def change_authors(self, user_ids: Sequence[int], fresh: int) -> bool:
        """As `change_relations`, of what users have posted."""
        return await self._change(_AUTHOR_MARK, user_ids, fresh, SHORT_MARK_TTL_MS)

    async def _entries(self, kind: str, ids: Sequence[int]) -> list[SharedEntry | None]:
        found: dict[int, bytes | None] = {}

        async def read(node: Node, some: Sequence[int]) -> None:
            pipe = await node.reads()
            keys = [_key(kind, i, pipe) for i in some]
            if self._redis.clustered:
                # Keys of several slots: a command each, still one round trip.
                found.update(zip(some, await self._answers(pipe, [command("GET", key) for key in keys]), strict=True))
            else:
                (values,) = await self._answers(pipe, [command("MGET", *keys)])
                found.update(zip(some, values, strict=True))

        await self._each(ids, read)
        return [_opened(found.get(i)) for i in ids]

    async def _put(self, kind: str, entry_id: int, version: int, data: bytes) -> bool:
        value = _VERSION.pack(version) + data

        async def put() -> bool:
            node = self._redis.node(str(entry_id))
            for _ in range(PUT_TRIES):
                async with node.own() as pipe:
                    if await self._put_once(pipe, _key(kind, entry_id, pipe), version, value):
                        return True
            return False

        return await self._within(put, False)

    async def _put_once(self, pipe: Pipe, key: str, version: int, value: bytes) -> bool:
        """False where somebody else changed it meanwhile."""
        _, held = await self._answers(pipe, [command("WATCH", key), command("GET", key)])
        known = _opened(held)
        if known is not None and known.version >= version:
            await self._answers(pipe, [command("UNWATCH")])
            return True
        writing = command("MULTI") + command("SET", key, value, "PX", PUT_TTL_MS) + command("EXEC")
        _, queued, done = await pipe.ask(writing, 3)
        if isinstance(queued, ReplyError) or isinstance(done, ReplyError):
            # Out of memory, say: then nothing at all is better than what stood before, and owners are asked.
            await self._answers(pipe, [command("DEL", key)])
            return True
        return done is not None

    async def _fill(self, kind: str, entries: Mapping[int, tuple[int, bytes]]) -> None:
        async def fill(node: Node, some: Sequence[int]) -> None:
            pipe = await node.reads()
            sets = []
            for i in some:
                version, data = entries[i]
                value = _VERSION.pack(version) + data
                sets.append(command("SET", _key(kind, i, pipe), value, "NX", "PX", FILL_TTL_MS))
            await self._answers(pipe, sets)

        await self._each(entries, fill)

    async def _drop(self, kind: str, ids: Sequence[int]) -> bool:
        async def drop(node: Node, some: Sequence[int]) -> None:
            pipe = await node.reads()
            await self._answers(pipe, [command("DEL", _key(kind, i, pipe)) for i in some])

        return await self._each(ids, drop)

    async def _mark(self, kind: str, of: int) -> int | None:
        async def mark() -> int | None:
            pipe = await self._redis.node(str(of)).reads()
            key = _key(kind, of, pipe)
            (held,) = await self._answers(pipe, [command("GET", key)])
            if held is None:
                # Only where there is none still: two readers must not give each other's mark away.
                fresh = random.getrandbits(MARK_BITS) + 1
                making = [command("SET", key, fresh, "NX", "PX", MARK_TTL_MS), command("GET", key)]
                _, held = await self._answers(pipe, making)
            return None if held is None else int(held)

        return await self._within(mark, None)

    async def _marks(self, kind: str, of: Sequence[int]) -> list[int | None]:
        found: dict[int, int | None] = {}

        async def read(node: Node, some: Sequence[int]) -> None:
            pipe = await node.reads()
            keys = {i: _key(kind, i, pipe) for i in some}
            if self._redis.clustered:
                held = await self._answers(pipe, [command("GET", key) for key in keys.values()])
            else:
                (held,) = await self._answers(pipe, [command("MGET", *keys.values())])
            found.update({i: None if mark is None else int(mark) for i, mark in zip(keys, held, strict=True)})
            if missing := [i for i in keys if found[i] is None]:
                fresh = random.getrandbits(MARK_BITS) + 1
                making = [command("SET", keys[i], fresh, "NX", "PX", SHORT_MARK_TTL_MS) for i in missing]
                held = await self._answers(pipe, making + [command("GET", keys[i]) for i in missing])
                found.update(
                    {
                        i: None if mark is None else int(mark)
                        for i, mark in zip(missing, held[len(missing) :], strict=True)
                    }
                )

        return [found.get(i) for i in of] if await self._each(dict.fromkeys(of), read) else [None] * len(of)

    async def _change(self, kind: str, of: Sequence[int], fresh: int, ttl_ms: int = MARK_TTL_MS) -> bool:
        async def change(node: Node, some: Sequence[int]) -> None:
            pipe = await node.reads()
            keys = [_key(kind, i, pipe) for i in some]
            sets = b"".join(command("SET", key, fresh, "PX", ttl_ms) for key in keys)
            if any(isinstance(reply, ReplyError) for reply in await pipe.ask(sets, len(keys))):
                # As in `_put_once`: readers make a fresh one, or know that they know nothing.
                await self._answers(pipe, [command("DEL", key) for key in keys])

        return await self._each(of, change)

    async def _each(self, ids: Iterable[int], work: Callable[[Node, Sequence[int]], Awaitable[None]]) -> bool:
        """Does the work for the ids of each server, KEYS_AT_ONCE at a time; False where some of it was not done."""

        async def run() -> bool:
            by_node: dict[Node, list[int]] = {}
            if self._redis.clustered:
                for i in ids:
                    by_node.setdefault(self._redis.node(str(i)), []).append(i)
            else:
                by_node[self._redis.node("")] = list(ids)
            for node, all_ids in by_node.items():
                left = iter(all_ids)
                while some := list(islice(left, KEYS_AT_ONCE)):
                    await work(node, some)
            return True

        return await self._within(run, False)

    async def _answers(self, pipe: Pipe, commands: Sequence[bytes]) -> list[Any]:
        """The replies; a refused command is Redis not answering."""
        replies = await pipe.ask(b"".join(commands), len(commands))
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise self._redis.refusal(reply)
        return replies

    async def _within(self, work: Callable[[], Awaitable[T]], unknown: T) -> T:
        try:
            async with asyncio.timeout(self._redis.timeout_s):
                return await work()
        except (TimeoutError, errors.RoostError):
            return unknown


def _key(kind: str, of: int, pipe: Pipe) -> str:
    # In braces what decides on which node of a cluster it lies: the tag is that node's.
    return f"{kind}:{{{of}}}:{pipe.run_id[:TAG_LETTERS]}"


def _opened(value: bytes | None) -> SharedEntry | None:
    return None if value is None else SharedEntry(_VERSION.unpack_from(value)[0], value[_VERSION.size :])
