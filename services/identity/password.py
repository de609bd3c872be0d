"""Passwords: how they are hashed, and the few threads that do it.

A password is normalised (NFKC), keyed with the store's pepper and then given to bcrypt, so any length works and a
stolen table of hashes is of no use without the pepper. Hashes that were imported come from elsewhere: those are of the
password's own UTF-8 bytes.
"""

from __future__ import annotations

import asyncio
import base64
import enum
import hmac
import os
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import bcrypt

from services.identity.fair_queue import FairQueue
from services.platform.rpc import context as calls
from services.platform.rpc import errors
from services.platform.rpc.client_address import client_key
from services.platform.rpc.reasons import Reason

T = TypeVar("T")

# bcrypt reads no further, and the library refuses more.
MAX_FOREIGN_BYTES = 72
# bcrypt's least, and our own setting's most: beyond it one log-in keeps a core busy for seconds.
MIN_FOREIGN_COST, MAX_FOREIGN_COST = 4, 16
# 22 characters of six bits hold the salt's 128: the last has four spare bits, which are zero.
_LAST_OF_SALT = slice(28, 29)
_SALT_ENDS = frozenset(".Oeu")
# At cost 12 a job takes a quarter of a second: whoever is further back would wait past a log-in's deadline.
QUEUED_PER_WORKER = 16
RETRY_AFTER_S = 2.0
# The hash proper; dots decode to zeros, which no password is known to give.
_NO_HASH = b"." * 31


class Scheme(enum.IntEnum):
    """What a stored hash is a hash of. Stored: append, never renumber."""

    NONE = 0
    """Nothing: nobody can log in."""
    PEPPERED = 1
    """bcrypt(base64(HMAC-SHA-256(pepper, NFKC(password))))."""
    FOREIGN = 2
    """bcrypt(password), made elsewhere; of passwords up to MAX_FOREIGN_BYTES."""


class Credential(NamedTuple):
    """A stored password hash in bcrypt's own spelling; empty with Scheme.NONE."""

    scheme: Scheme
    hash: bytes


def foreign(password_hash: str) -> Credential:
    """The credential of an imported hash in bcrypt's spelling; empty gives one that no password matches.

    INVALID_ARGUMENT where bcrypt would refuse to check it, or take too long.
    """
    if not password_hash:
        return Credential(Scheme.NONE, b"")
    if not MIN_FOREIGN_COST <= int(password_hash[4:6]) <= MAX_FOREIGN_COST:
        message = f"a bcrypt cost is within {MIN_FOREIGN_COST} and {MAX_FOREIGN_COST}"
        raise errors.invalid_argument(message, field="password_hash")
    if password_hash[_LAST_OF_SALT] not in _SALT_ENDS:
        raise errors.invalid_argument("not a bcrypt hash: its salt is damaged", field="password_hash")
    return Credential(Scheme.FOREIGN, password_hash.encode("ascii"))


def prehash(pepper: bytes, password: str) -> bytes:
    """What bcrypt is given: 44 characters, whatever the password."""
    normalised = unicodedata.normalize("NFKC", password).encode()
    return base64.b64encode(hmac.digest(pepper, normalised, "sha256"))


def worker_count(cores: int | None) -> int:
    """bcrypt's share of the machine: all cores but one, which the event loop needs."""
    return max((cores or 1) - 1, 1)


# Told apart by identity, as each is one caller's.
@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """Work for a thread, and who waits for its result."""

    work: Callable[[], Any]
    future: asyncio.Future[Any]

    def refuse(self, error: errors.RoostError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Passwords:
    """Hashes and checks in a bounded pool of threads with a bounded queue, which clients share by address: whoever sends much waits
    longer, and gets RESOURCE_EXHAUSTED if the queue is full. By account they would not share fairly: then guesses at somebody's
    account, from anywhere, would keep its owner waiting.

    `cost` is bcrypt's: each step doubles the time, 12 is about 240 ms.
    """

    def __init__(self, pepper: bytes, cost: int, workers: int | None = None) -> None:
        self._pepper = pepper
        self._cost = cost
        count = workers or worker_count(os.cpu_count())
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="bcrypt")
        self._workers = count
        self._running = 0
        self._queue: FairQueue[_Job] = FairQueue(count * QUEUED_PER_WORKER)
        # Same cost as a real one, so that checking it takes the same time.
        self._nobody = Credential(Scheme.PEPPERED, bcrypt.gensalt(cost) + _NO_HASH)

    async def hash(self, password: str) -> Credential:
        """A credential for a new password."""
        prepared = prehash(self._pepper, password)
        made = await self._run(lambda: bcrypt.hashpw(prepared, bcrypt.gensalt(self._cost)))
        return Credential(Scheme.PEPPERED, made)

    async def check(self, password: str, credential: Credential | None) -> bool:
        """Whether the password is the one. None stands for an account that does not exist: the same work, and False."""
        known = credential if credential is not None and credential.scheme != Scheme.NONE else self._nobody
        if known.scheme == Scheme.FOREIGN:
            prepared = password.encode()
            # Others would have cut it silently; the work is done all the same, for the answer's time.
            fits = len(prepared) <= MAX_FOREIGN_BYTES
            prepared = prepared[:MAX_FOREIGN_BYTES]
        else:
            prepared, fits = prehash(self._pepper, password), True
        matches = await self._run(lambda: bcrypt.checkpw(prepared, known.hash))
        return matches and fits and known is not self._nobody

    async def close(self) -> None:
        """Refuses what is queued; what runs ends by itself."""
        while self._queue:
            self._queue.pop().refuse(errors.unavailable("the service is stopping", reason=Reason.STOPPING))
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        job = _Job(work, asyncio.get_running_loop().create_future())
        key = client_key(calls.current().address)
        gave_way = self._queue.push(key, job)
        if gave_way is not None:
            gave_way.refuse(errors.resource_exhausted("too many log-ins at once", RETRY_AFTER_S))
        self._begin()
        try:
            result: T = await job.future
            return result
        finally:
            # A caller who gives up while queued takes the job out with it.
            self._queue.discard(key, job)

    def _begin(self) -> None:
        while self._queue and self._running < self._workers:
            job = self._queue.pop()
            self._running += 1
            running = asyncio.get_running_loop().run_in_executor(self._pool, job.work)
            running.add_done_callback(lambda done, job=job: self._end(job, done))  # type: ignore[misc]

    def _end(self, job: _Job, done: asyncio.Future[Any]) -> None:
        self._running -= 1
        if done.cancelled():
            job.refuse(errors.unavailable("the service is stopping", reason=Reason.STOPPING))
            return
        error = done.exception()
        if not job.future.done():
            if error is None:
                job.future.set_result(done.result())
            else:
                job.future.set_exception(error)
        self._begin()
