"""Opens the search index of the embedded backend, with Tantivy, in `search` in the data directory."""

from __future__ import annotations

from services.platform.backends import OpenedStore
from services.platform.service import ServiceContext
from services.search.consumer import GROUP, INDEX_TOPICS, Indexer, PositionedConsumer
from services.search.store import SearchIndex
from services.search.store.tantivy.store import EmbeddedSearchIndex


async def open_store(context: ServiceContext) -> OpenedStore[SearchIndex]:
    """Opens the index, with a worker that consumes events and applies them to the index. The index stores the log
    offset up to which it is durable, and the consumer starts there."""
    index = await EmbeddedSearchIndex.open(context.data_dir / "search")
    indexer = Indexer(context.channel, index, context.clock)
    consumer = context.log.consumer(GROUP, INDEX_TOPICS, indexer.apply)
    return OpenedStore(index, (PositionedConsumer(consumer, indexer.start_position),))
