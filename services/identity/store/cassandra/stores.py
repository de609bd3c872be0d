"""Opens identity's stores on Cassandra, with user references in Redis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.identity.store import IdentityStores
from services.identity.store.cassandra import schema
from services.identity.store.cassandra.accounts.claims import Claims
from services.identity.store.cassandra.accounts.reader import AccountReader
from services.identity.store.cassandra.accounts.store import CassandraAccountStore
from services.identity.store.cassandra.credentials import CassandraCredentialStore
from services.identity.store.cassandra.purge import Purger
from services.identity.store.cassandra.service_secrets import CassandraSecretStore
from services.identity.store.cassandra.sessions import CassandraSessionStore
from services.identity.store.cassandra.shared_refs import SharedUserRefs
from services.identity.store.cassandra.user_transactions import UserTransactions
from services.platform.cassandra.outbox import Outbox
from services.platform.events.log import EventLog

if TYPE_CHECKING:
    from services.platform.backends.cluster import ClusterBackends


@dataclass(frozen=True, slots=True)
class CassandraIdentityStores(IdentityStores):
    """The stores on one keyspace. The service must run `outbox` as a worker, and a consumer that writes changed user
    references to Redis by `shared_refs`."""

    outbox: Outbox
    shared_refs: SharedUserRefs


async def open_stores(
    cluster: ClusterBackends, event_log: EventLog, clock: Callable[[], float]
) -> CassandraIdentityStores:
    """Opens the keyspaces and applies missing migrations. `clock` returns Unix seconds. Raises UNAVAILABLE if Cassandra
    does not answer, and FAILED_PRECONDITION if a newer release migrated a keyspace or migrations are missing and
    `migrate_at_start` is off."""
    keyspace = await cluster.keyspace(schema.KEYSPACE, schema.KEYSPACES[schema.KEYSPACE])
    keys = await cluster.keyspace(schema.KEYS_KEYSPACE, schema.KEYSPACES[schema.KEYS_KEYSPACE])
    transactions = UserTransactions(keyspace, event_log, clock)
    reader = AccountReader(keyspace)
    refs = SharedUserRefs(reader, cluster.shared)
    claims = Claims(keyspace, clock, reader.exists)
    return CassandraIdentityStores(
        accounts=CassandraAccountStore(keyspace, transactions, reader, claims, refs, clock),
        credentials=CassandraCredentialStore(transactions, reader),
        sessions=CassandraSessionStore(keyspace, transactions),
        secrets=CassandraSecretStore(keys, keyspace),
        purge=Purger(keyspace, transactions, reader, claims, refs, clock),
        close=_close,
        outbox=transactions.outbox,
        shared_refs=refs,
    )


async def _close() -> None:
    """Does nothing: the connections belong to the process, which closes them when it stops."""
