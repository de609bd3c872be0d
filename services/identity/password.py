"""Hashes and checks passwords with bcrypt, in a bounded pool of threads.

A password is normalized (NFKC), hashed with the secret pepper by HMAC-SHA-256, then by bcrypt. So passwords of any
length work, and stolen hashes are useless without the pepper. Imported hashes are plain bcrypt of the password's UTF-8
bytes.
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

# Maximum length in bytes of a password that can match an imported hash; a longer password never matches. bcrypt uses
# only the first 72 bytes, and the library raises ValueError for a longer input.
MAX_IMPORTED_BYTES = 72
# Bounds of the cost of an imported hash; a hash outside them is rejected with INVALID_ARGUMENT. 4 is the minimum of
# bcrypt. 16 is the maximum of the setting `bcrypt_cost`: at cost 16, one log-in takes about 4 s of a core.
MIN_IMPORTED_COST, MAX_IMPORTED_COST = 4, 16
# The salt's 128 bits are written as 22 characters of six bits. The last character has four spare bits, which must be
# zero, so only four characters are valid there.
_LAST_OF_SALT = slice(28, 29)
_SALT_ENDS = frozenset(".Oeu")
# Maximum number of queued jobs per bcrypt thread. If the queue is full, the newest job of the client address with the
# most jobs fails with RESOURCE_EXHAUSTED. A job takes a quarter of a second at cost 12, so the last of 16 jobs waits 4
# s; at higher costs, later jobs would exceed the deadline of a log-in (10 s).
QUEUED_PER_WORKER = 16
# Time in seconds after which a client should retry if its password was not checked because the queue was full.
RETRY_AFTER_S = 2.0
# A value for the 31 characters that follow the salt in bcrypt's text format. Dots decode to zero bytes, which are the
# hash of no known password.
_NO_HASH = b"." * 31


class Scheme(enum.IntEnum):
    """The algorithm of a stored hash. The numbers are stored, so new schemes get new numbers, and no number is
    changed."""

    NONE = 0
    """No hash: no password matches."""
    PEPPERED = 1
    """bcrypt(base64(HMAC-SHA-256(pepper, NFKC(password))))."""
    IMPORTED = 2
    """bcrypt(password), imported; for passwords of up to MAX_IMPORTED_BYTES."""


class Credential(NamedTuple):
    """A stored password hash in bcrypt's text format; empty with Scheme.NONE."""

    scheme: Scheme
    hash: bytes


def imported_credential(password_hash: str) -> Credential:
    """Returns the credential of an imported bcrypt hash; for an empty text, a credential that no password matches.

    `password_hash` has bcrypt's text format, which the proto checks. Raises INVALID_ARGUMENT if the salt is invalid, or
    if the cost is below MIN_IMPORTED_COST or above MAX_IMPORTED_COST.
    """
    if not password_hash:
        return Credential(Scheme.NONE, b"")
    if not MIN_IMPORTED_COST <= int(password_hash[4:6]) <= MAX_IMPORTED_COST:
        message = f"the bcrypt cost must be from {MIN_IMPORTED_COST} to {MAX_IMPORTED_COST}"
        raise errors.invalid_argument(message, field="password_hash")
    if password_hash[_LAST_OF_SALT] not in _SALT_ENDS:
        raise errors.invalid_argument("the salt of the bcrypt hash is invalid", field="password_hash")
    return Credential(Scheme.IMPORTED, password_hash.encode("ascii"))


def prehash(pepper: bytes, password: str) -> bytes:
    """Returns the input of bcrypt for a password: base64(HMAC-SHA-256(pepper, NFKC(password))), always 44 bytes."""
    normalised = unicodedata.normalize("NFKC", password).encode()
    return base64.b64encode(hmac.digest(pepper, normalised, "sha256"))


def worker_count(cores: int | None) -> int:
    """Returns the number of threads for bcrypt: all cores but one, which the event loop needs; at least 1."""
    return max((cores or 1) - 1, 1)


# Compared by identity, because each job belongs to one caller.
@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A bcrypt computation for a thread, and the future that receives its result."""

    work: Callable[[], Any]
    future: asyncio.Future[Any]

    def fail(self, error: errors.RoostError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Passwords:
    """Hashes and checks passwords in a bounded pool of `workers` threads with a bounded queue.

    The queue is shared fairly between client addresses: an address that sends many requests delays only its own
    requests, and gets RESOURCE_EXHAUSTED if the queue is full. The queue is not shared between accounts, because
    guesses at the password of an account would then delay the owner of the account. `cost` is the bcrypt cost of new
    hashes: each step doubles the time; 12 takes about 240 ms. If `workers` is None, the pool has `worker_count`
    threads.
    """

    def __init__(self, pepper: bytes, cost: int, workers: int | None = None) -> None:
        self._pepper = pepper
        self._cost = cost
        count = workers or worker_count(os.cpu_count())
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="bcrypt")
        self._workers = count
        self._running = 0
        self._queue: FairQueue[_Job] = FairQueue(count * QUEUED_PER_WORKER)
        # A hash that no password matches, of the same cost as real hashes, so that the check of an unknown account
        # takes the same time.
        self._dummy = Credential(Scheme.PEPPERED, bcrypt.gensalt(cost) + _NO_HASH)

    async def hash(self, password: str) -> Credential:
        """Returns a credential for a new password. Raises RESOURCE_EXHAUSTED if the queue of jobs is full, and
        UNAVAILABLE if the service is stopping."""
        prepared = prehash(self._pepper, password)
        made = await self._run(lambda: bcrypt.hashpw(prepared, bcrypt.gensalt(self._cost)))
        return Credential(Scheme.PEPPERED, made)

    async def check(self, password: str, credential: Credential | None) -> bool:
        """Returns whether the password matches. If `credential` is None (there is no such account), takes as long as
        for an existing account and returns False.

        Raises RESOURCE_EXHAUSTED if the queue of jobs is full, and UNAVAILABLE if the service is stopping.
        """
        known = credential if credential is not None and credential.scheme != Scheme.NONE else self._dummy
        if known.scheme == Scheme.IMPORTED:
            prepared = password.encode()
            # Other systems may have truncated a longer password silently. Here a password of more than
            # MAX_IMPORTED_BYTES never matches, but its check takes the same time.
            fits = len(prepared) <= MAX_IMPORTED_BYTES
            prepared = prepared[:MAX_IMPORTED_BYTES]
        else:
            prepared, fits = prehash(self._pepper, password), True
        matches = await self._run(lambda: bcrypt.checkpw(prepared, known.hash))
        return matches and fits and known is not self._dummy

    async def close(self) -> None:
        """Fails queued jobs with UNAVAILABLE. Does not wait for running jobs."""
        while self._queue:
            self._queue.pop().fail(errors.unavailable("the service is stopping: retry later", reason=Reason.STOPPING))
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        job = _Job(work, asyncio.get_running_loop().create_future())
        key = client_key(calls.current().address)
        evicted = self._queue.push(key, job)
        if evicted is not None:
            evicted.fail(errors.resource_exhausted("too many log-ins at once: retry later", RETRY_AFTER_S))
        self._begin()
        try:
            result: T = await job.future
            return result
        finally:
            # If the caller was cancelled while its job was queued, the job is removed from the queue.
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
            job.fail(errors.unavailable("the service is stopping: retry later", reason=Reason.STOPPING))
            return
        error = done.exception()
        if not job.future.done():
            if error is None:
                job.future.set_result(done.result())
            else:
                job.future.set_exception(error)
        self._begin()
