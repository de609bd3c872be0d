"""Hashing and checking of passwords, and the bounded queue."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import bcrypt
import grpc
import pytest

from services.identity import password
from services.identity.password import Credential, Passwords, Scheme, imported_credential, prehash, worker_count
from services.platform.rpc import context, errors

COST = 4

AWKWARD = {
    "short": "correct horse",
    "73 bytes": "x" * 73,
    "300 characters": "y" * 300,
    "NUL inside": "before\0after!",
    "emoji": "🐦" * 256,
    "combining": "Å" * 20,
    "spaces": " " * 10,
}


@pytest.fixture
async def passwords() -> AsyncIterator[Passwords]:
    pool = Passwords(b"pepper", COST, workers=1)
    yield pool
    await pool.close()


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD.keys())
async def test_check_password_of_any_text_matches_only_itself(passwords: Passwords, text: str) -> None:
    credential = await passwords.hash(text)
    assert credential.scheme == Scheme.PEPPERED
    assert await passwords.check(text, credential)
    assert not await passwords.check(text + "x", credential)
    assert not await passwords.check(text[:-1], credential)
    assert not await passwords.check("", credential)


async def test_check_password_in_another_normal_form_matches(passwords: Passwords) -> None:
    credential = await passwords.hash("Ångström 1234")
    assert await passwords.check("A\u030angstro\u0308m 1234", credential)


async def test_check_password_with_another_pepper_does_not_match(passwords: Passwords) -> None:
    credential = await passwords.hash("correct horse")
    other = Passwords(b"another", COST, workers=1)
    assert not await other.check("correct horse", credential)
    await other.close()


def test_prehash_of_any_password_has_44_bytes() -> None:
    assert {len(prehash(b"pepper", text)) for text in AWKWARD.values()} == {44}


async def test_check_password_of_unknown_account_does_same_work_and_fails(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares the work instead of the time: each check runs bcrypt once, at the same cost."""
    somebody = await passwords.hash("correct horse")
    costs: list[bytes] = []
    check = bcrypt.checkpw

    def counted(given: bytes, hashed: bytes) -> bool:
        costs.append(hashed[:7])
        return check(given, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    assert not await passwords.check("wrong password", somebody)
    assert not await passwords.check("wrong password", None)
    assert not await passwords.check("wrong password", Credential(Scheme.NONE, b""))
    assert costs == [b"$2b$04$"] * 3


async def test_check_password_against_imported_hash_uses_plain_bcrypt(passwords: Passwords) -> None:
    credential = imported_credential(bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(COST)).decode())
    assert await passwords.check("x" * 72, credential)
    # Bytes after the first 72 are not ignored.
    assert not await passwords.check("x" * 73, credential)
    assert not await passwords.check("x" * 71, credential)


def test_imported_credential_of_empty_hash_matches_no_password() -> None:
    assert imported_credential("") == Credential(Scheme.NONE, b"")


@pytest.mark.parametrize("cost", ["00", "03", "17", "31"])
def test_imported_credential_of_extreme_cost_is_invalid(cost: str) -> None:
    hashed = bcrypt.hashpw(b"x", bcrypt.gensalt(COST)).decode()
    with pytest.raises(errors.RoostError, match="cost"):
        imported_credential(hashed[:4] + cost + hashed[6:])


@pytest.mark.parametrize("end", "/Az9")
def test_imported_credential_with_invalid_salt_is_invalid(end: str) -> None:
    hashed = bcrypt.hashpw(b"x", bcrypt.gensalt(COST)).decode()
    with pytest.raises(errors.RoostError, match="salt"):
        imported_credential(hashed[:28] + end + hashed[29:])


async def test_hash_with_full_queue_raises_with_retry_after(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(bcrypt, "checkpw", lambda *_: gate.wait(10))
    waiting = [
        asyncio.create_task(passwords.check("correct horse", None)) for _ in range(1 + password.QUEUED_PER_WORKER)
    ]
    await asyncio.sleep(0)
    with pytest.raises(errors.RoostError) as caught:
        await passwords.check("correct horse", None)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.retry_after_s is not None
    # A cancelled caller frees its place in the queue.
    waiting[-1].cancel()
    await asyncio.gather(waiting[-1], return_exceptions=True)
    again = asyncio.create_task(passwords.check("correct horse", None))
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(again, *waiting[:-1]) == [False] * (1 + password.QUEUED_PER_WORKER)


async def test_hash_queue_flooded_by_one_address_serves_others(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(bcrypt, "checkpw", lambda *_: gate.wait(10))
    ended: list[str] = []

    async def log_in(address: str) -> str:
        context.current_call.set(context.Call(address=address))
        try:
            await passwords.check("correct horse", None)
        except errors.RoostError as refusal:
            return refusal.code.name
        ended.append(address)
        return "OK"

    flood = [asyncio.create_task(log_in("203.0.113.1")) for _ in range(3 * password.QUEUED_PER_WORKER)]
    await asyncio.sleep(0)
    victim = asyncio.create_task(log_in("192.0.2.1"))
    await asyncio.sleep(0)
    gate.set()
    assert await victim == "OK"
    outcomes = await asyncio.gather(*flood)
    # One job was running and one was next; then came the victim's, for which one job of the flood was evicted.
    assert ended.index("192.0.2.1") <= 2
    assert outcomes.count("OK") == password.QUEUED_PER_WORKER
    assert set(outcomes) == {"OK", "RESOURCE_EXHAUSTED"}


async def test_close_with_queued_jobs_fails_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Passwords(b"pepper", COST, workers=1)
    gate = threading.Event()
    monkeypatch.setattr(bcrypt, "checkpw", lambda *_: gate.wait(10))
    running, waiting = [asyncio.create_task(pool.check("correct horse", None)) for _ in range(2)]
    await asyncio.sleep(0)
    await pool.close()
    with pytest.raises(errors.RoostError, match="stopping"):
        await waiting
    gate.set()
    assert await running is False


def test_worker_count_leaves_one_core() -> None:
    assert [worker_count(cores) for cores in (None, 1, 2, 8)] == [1, 1, 1, 7]
