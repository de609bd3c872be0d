"""The SQLite adapter beyond the port: atomic events, the cache, the file."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from roost.identity.v1 import user_pb2

from services.identity.password import Credential, Scheme
from services.identity.store import Account, NewAccount, Session
from services.identity.store.sqlite.accounts.cache import AccountCache
from services.identity.store.sqlite.accounts.store import SqliteAccountStore
from services.identity.store.sqlite.stores import SqliteIdentityStores, open_stores
from services.platform.events.log import Record
from services.platform.rpc import errors
from services.platform.versions import MemoryVersions

ACTIVE = user_pb2.USER_STATE_ACTIVE


def account(user_id: int) -> Account:
    core = user_pb2.User(id=user_id, username=f"user{user_id}", display_name="first").SerializeToString()
    return Account(user_id, core, f"user{user_id}@example.com", ACTIVE, 1, frozenset())


def new(user_id: int) -> NewAccount:
    made = account(user_id)
    created = Record("user.created", user_id, user_id, b"created", "")
    return NewAccount(made, f"user{user_id}", made.email, Credential(Scheme.NONE, b""), created)


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqliteIdentityStores]:
    opened = await open_stores(tmp_path / "identity.db", MemoryVersions(), max_cached=2)
    yield opened
    await opened.close()


async def topics(stores: SqliteIdentityStores) -> list[str]:
    rows = await stores.db.read(lambda c: c.execute("SELECT topic FROM outbox ORDER BY seq").fetchall())
    return [row[0] for row in rows]


async def test_replace_commits_events_with_change(stores: SqliteIdentityStores) -> None:
    updated = Record("user.updated", 1, 10, b"updated", "")
    revoked = Record("session.revoked", 1, 11, b"revoked", "")
    await stores.accounts.create(new(1), Session(5, 1, 1, 2, ""), b"h" * 32)
    assert not await stores.accounts.replace(account(1)._replace(version=7), [updated])
    assert not await stores.sessions.end(6, 1, [revoked])
    assert await topics(stores) == ["user.created"]
    assert await stores.accounts.replace(account(1)._replace(version=2), [updated])
    assert await stores.sessions.end(5, 1, [revoked])
    assert await topics(stores) == ["user.created", "user.updated", "session.revoked"]
    # The account exists already, so there is no second event.
    await stores.accounts.import_accounts([new(1), new(2)])
    assert (await topics(stores))[3:] == ["user.created"]


async def test_account_cache_is_bounded_and_refilled(stores: SqliteIdentityStores) -> None:
    await stores.accounts.import_accounts([new(user_id) for user_id in range(1, 6)])
    for _ in range(2):
        assert [entry.user_id for entry in (await stores.accounts.refs(range(1, 6))).refs] == [1, 2, 3, 4, 5]


async def test_account_cache_late_read_keeps_newer_version(stores: SqliteIdentityStores) -> None:
    cache = AccountCache(stores.db, MemoryVersions(), max_cached=2)
    accounts = SqliteAccountStore(stores.db, cache)
    await accounts.import_accounts([new(1), new(2), new(3)])
    changed = account(1)._replace(state=user_pb2.USER_STATE_SUSPENDED, version=2)
    assert await accounts.replace(changed, [])
    # The row before the write, as a read that began earlier returns it.
    cache._put(account(1))
    assert [entry.version for entry in (await accounts.refs([1])).refs] == [2]


async def test_store_file_is_private_and_persistent(tmp_path: Path) -> None:
    path = tmp_path / "identity.db"
    first = await open_stores(path, MemoryVersions())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = await first.secrets.get_or_create("key", lambda: b"one")
    await first.accounts.import_accounts([new(1)])
    await first.close()
    second = await open_stores(path, MemoryVersions())
    assert await second.secrets.get_or_create("key", lambda: b"two") == secret
    assert await second.accounts.batch_get([1]) == [account(1)]
    await second.close()


async def test_secret_of_earlier_release_moves_to_key_file(tmp_path: Path) -> None:
    path = tmp_path / "identity.db"
    stores = await open_stores(path, MemoryVersions())
    kept = b"a key beside the hashes" * 2
    await stores.db.write(lambda c: c.execute("INSERT INTO secret VALUES ('password_pepper', ?)", (kept,)))
    assert await stores.secrets.get_or_create("password_pepper", lambda: bytes(len(kept))) == kept
    assert (
        await stores.secrets.get_or_create("signing_key", lambda: b"another key of its own")
        == b"another key of its own"
    )
    await stores.close()
    assert (tmp_path / "keys" / "password_pepper.key").read_bytes() == kept
    content = path.read_bytes()
    assert kept not in content
    assert b"another key of its own" not in content


async def test_secret_with_empty_file_raises_with_remedy(tmp_path: Path) -> None:
    stores = await open_stores(tmp_path / "identity.db", MemoryVersions())
    await stores.secrets.get_or_create("password_pepper", lambda: bytes(32))
    (tmp_path / "keys" / "password_pepper.key").write_bytes(b"")
    with pytest.raises(errors.RoostError, match=r"password_pepper\.key is damaged.*backup.*no user can log in"):
        await stores.secrets.get_or_create("password_pepper", lambda: bytes(32))
    await stores.close()
