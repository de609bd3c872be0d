"""Stores the secrets of the service in files beside the database.

They are not in the database, so that a copy of the database, such as a backup, is not enough to guess passwords.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

from services.platform.files import load_or_create_key, naming, private_dir, write_durably
from services.platform.sqlite.database import Database

# What happens if a new key replaces a damaged one, by name of the key: part of the error message about a damaged key
# file.
_CONSEQUENCE_OF_LOSS = {
    "password_pepper": "no user can log in with the current password then",
    "refresh_token_key": "all users have to log in again",
    "signing_key": "access tokens issued before are rejected",
}


class FileSecretStore:
    """Implements SecretStore: one file for each secret in the folder `directory`. `db` may hold secrets of earlier
    releases."""

    def __init__(self, db: Database, directory: Path) -> None:
        self._db = db
        self._directory = directory
        self._lock = asyncio.Lock()

    async def get_or_create(self, name: str, make: Callable[[], bytes]) -> bytes:
        path = self._directory / f"{name}.key"
        lost = _CONSEQUENCE_OF_LOSS.get(name, "the data that it protects is lost")
        async with self._lock:
            if not path.exists() and (legacy := await self._legacy_secret(name)) is not None:
                with naming(path):
                    await asyncio.to_thread(lambda: write_durably(private_dir(self._directory) / path.name, legacy))
            key = await asyncio.to_thread(load_or_create_key, path, make, lost)
            await self._db.write(lambda c: _delete_legacy_secret(c, name))
        return key

    async def _legacy_secret(self, name: str) -> bytes | None:
        query = "SELECT value FROM secret WHERE name = ?"
        row = await self._db.read(lambda c: c.execute(query, (name,)).fetchone())
        return bytes(row[0]) if row is not None else None


def _delete_legacy_secret(connection: sqlite3.Connection, name: str) -> None:
    # Earlier releases stored keys in the database, beside the hashes that they protect. `secure_delete` overwrites the
    # deleted bytes in the file.
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("DELETE FROM secret WHERE name = ?", (name,))
