"""Stores the secrets of the service in Cassandra, in a separate keyspace."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from services.identity.store.cassandra import schema
from services.platform.cassandra.keyspace import Keyspace
from services.platform.log_events import LogEvent

log = structlog.get_logger(__name__)


class CassandraSecretStore:
    """Implements SecretStore in the keyspace `keys`. `accounts` is the keyspace of the accounts, in which earlier
    releases stored the secrets."""

    def __init__(self, keys: Keyspace, accounts: Keyspace) -> None:
        self._keys = keys
        self._accounts = accounts

    async def get_or_create(self, name: str, make: Callable[[], bytes]) -> bytes:
        rows = await self._keys.read(schema.SECRET, name)
        if not rows:
            # The copy of an earlier release is not deleted, because processes of that release may still restart during
            # an upgrade.
            earlier = await self._accounts.read_serial(schema.SECRET, name)
            if earlier:
                # The operator must delete the old copy from the accounts' keyspace when no process of the earlier
                # release runs any more.
                log.warning(LogEvent.LEGACY_KEY_COPIED, name=name, keyspace=schema.KEYSPACE)
            await self._keys.execute_lwt(schema.INSERT_SECRET, name, earlier[0][0] if earlier else make())
            rows = await self._keys.read_serial(schema.SECRET, name)
        return bytes(rows[0][0])
