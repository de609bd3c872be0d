"""Opens the stores of identity on the embedded backend, on `identity.db` in the data directory."""

from __future__ import annotations

from services.identity.purge import purge_job
from services.identity.store import IdentityStores
from services.identity.store.sqlite.stores import open_stores
from services.platform.backends import OpenedStore, require_memory_versions
from services.platform.periodic import always
from services.platform.service import ServiceContext
from services.platform.sqlite.outbox import Relay


async def open_store(context: ServiceContext) -> OpenedStore[IdentityStores]:
    """Opens the stores, with two workers: the relay of their outbox and the purge of deactivated accounts."""
    stores = await open_stores(context.data_dir / "identity.db", require_memory_versions(context))
    purge = purge_job(stores.purge, context, always)
    return OpenedStore(stores, (Relay(stores.db, context.log), purge))
