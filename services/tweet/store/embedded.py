"""Opens the tweet stores of the embedded backend, on `tweet.db` in the data directory."""

from __future__ import annotations

from services.platform.backends import OpenedStore, require_memory_versions
from services.platform.periodic import always
from services.platform.service import ServiceContext
from services.platform.sqlite.outbox import Relay
from services.tweet.purge import purge_job
from services.tweet.store import TweetStores
from services.tweet.store.sqlite.stores import open_stores


async def open_store(context: ServiceContext) -> OpenedStore[TweetStores]:
    """Opens the stores, with two workers: the relay of their outbox and the purge of deleted tweets."""
    stores = await open_stores(context.data_dir / "tweet.db", require_memory_versions(context))
    purge = purge_job(stores.purge, context.clock, context.settings.delete_grace_s, always)
    return OpenedStore(stores, (Relay(stores.db, context.log), purge))
