"""The SQLite adapter beyond the port: atomic events, the cache, the file."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from roost.identity.v1 import user_pb2

from services.identity.password import Credential, Scheme
from services.identity.store import Account, NewAccount, Session
from services.identity.store.sqlite.store import EmbeddedStore
from services.platform.events.log import Record
from services.platform.rpc import errors

ACTIVE = user_pb2.USER_STATE_ACTIVE


def account(user_id: int) -> Account:
    core = user_pb2.User(id=user_id, username=f"user{user_id}", display_name="first").SerializeToString()
    return Account(user_id, core, f"user{user_id}@example.com", ACTIVE, 1, frozenset())


def new(user_id: int) -> NewAccount:
    made = account(user_id)
    created = Record("user.created", user_id, user_id, b"created", "")
    return NewAccount(made, f"user{user_id}", made.email, Credential(Scheme.NONE, b""), created)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedStore]:
    opened = await EmbeddedStore.open(tmp_path / "identity.db", max_cached=2)
    yield opened
    await opened.close()


async def topics(store: EmbeddedStore) -> list[str]:
    rows = await store.db.read(lambda c: c.execute("SELECT topic FROM outbox ORDER BY seq").fetchall())
    return [row[0] for row in rows]


async def test_replace_commits_events_with_change(store: EmbeddedStore) -> None:
    updated = Record("user.updated", 1, 10, b"updated", "")
    revoked = Record("session.revoked", 1, 11, b"revoked", "")
    await store.create(new(1), Session(5, 1, 1, 2, ""), b"h" * 32)
    assert not await store.replace(account(1)._replace(version=7), [updated])
    assert not await store.end_session(6, 1, [revoked])
    assert await topics(store) == ["user.created"]
    assert await store.replace(account(1)._replace(version=2), [updated])
    assert await store.end_session(5, 1, [revoked])
    assert await topics(store) == ["user.created", "user.updated", "session.revoked"]
    # The account exists already, so there is no second event.
    await store.import_accounts([new(1), new(2)])
    assert (await topics(store))[3:] == ["user.created"]


async def test_account_cache_is_bounded_and_refilled(store: EmbeddedStore) -> None:
    await store.import_accounts([new(user_id) for user_id in range(1, 6)])
    for _ in range(2):
        assert [entry.user_id for entry in (await store.refs(range(1, 6))).refs] == [1, 2, 3, 4, 5]


async def test_account_cache_late_read_keeps_newer_version(store: EmbeddedStore) -> None:
    await store.import_accounts([new(1), new(2), new(3)])
    changed = account(1)._replace(state=user_pb2.USER_STATE_SUSPENDED, version=2)
    assert await store.replace(changed, [])
    # The row before the write, as a read that began earlier returns it.
    store._cache_account(account(1))
    assert [entry.version for entry in (await store.refs([1])).refs] == [2]


async def test_store_file_is_private_and_persistent(tmp_path: Path) -> None:
    path = tmp_path / "identity.db"
    first = await EmbeddedStore.open(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = await first.secret("key", lambda: b"one")
    await first.import_accounts([new(1)])
    await first.close()
    second = await EmbeddedStore.open(path)
    assert await second.secret("key", lambda: b"two") == secret
    assert await second.accounts([1]) == [account(1)]
    await second.close()


async def test_secret_of_earlier_release_moves_to_key_file(tmp_path: Path) -> None:
    path = tmp_path / "identity.db"
    store = await EmbeddedStore.open(path)
    kept = b"a key beside the hashes" * 2
    await store.db.write(lambda c: c.execute("INSERT INTO secret VALUES ('password_pepper', ?)", (kept,)))
    assert await store.secret("password_pepper", lambda: bytes(len(kept))) == kept
    assert await store.secret("signing_key", lambda: b"another key of its own") == b"another key of its own"
    await store.close()
    assert (tmp_path / "keys" / "password_pepper.key").read_bytes() == kept
    content = path.read_bytes()
    assert kept not in content
    assert b"another key of its own" not in content


async def test_secret_with_empty_file_raises_with_remedy(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path / "identity.db")
    await store.secret("password_pepper", lambda: bytes(32))
    (tmp_path / "keys" / "password_pepper.key").write_bytes(b"")
    with pytest.raises(errors.RoostError, match=r"password_pepper\.key is damaged.*backup.*no user can log in"):
        await store.secret("password_pepper", lambda: bytes(32))
    await store.close()
