"""Opens the search index of the cluster backend: indexes on OpenSearch that all processes of the mesh share."""

from __future__ import annotations

from services.platform.backends import OpenedStore
from services.platform.service import ServiceContext
from services.search.consumer import GROUP, INDEX_TOPICS, Indexer
from services.search.store import SearchIndex
from services.search.store.opensearch.store import OpenSearchIndex


async def open_store(context: ServiceContext) -> OpenedStore[SearchIndex]:
    """Opens the index, with a worker that consumes events and applies them to the index. Changes are durable when
    `apply` returns, so the consumer starts at the committed offset of its consumer group."""
    index = await OpenSearchIndex.open(context.settings)
    indexer = Indexer(context.channel, index, context.clock)
    return OpenedStore(index, (context.log.consumer(GROUP, INDEX_TOPICS, indexer.apply),))
