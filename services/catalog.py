"""The services, in start order, and the families of adapters: the only lists of them.

Adding a service is one line here, its folder, and its protos.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import cast

from services.platform.backends.embedded import open_embedded
from services.platform.config import Settings
from services.platform.service import BackendFactory, Backends, Service, ServiceContext, ServiceFactory


def _of(name: str) -> ServiceFactory:
    async def build(context: ServiceContext) -> Service:
        # Not before it is asked for: a process of one service would else import all of them, at half a second of CPU.
        root = importlib.import_module(f"services.{name}.server")
        return cast(Service, await root.build(context))

    return build


SERVICES: Mapping[str, ServiceFactory] = {
    name: _of(name) for name in ("registry", "identity", "graph", "tweet", "engagement", "timeline", "fanout", "search")
}


def migrations() -> Mapping[str, Sequence[str]]:
    """The keyspaces of the cluster backend by their names without the namespace, and the scripts that bring it up to date."""
    # Not before they are asked for: the drivers take half a second to import.
    from services.engagement.store.cassandra.store import MIGRATIONS as ENGAGEMENT
    from services.graph.store.cassandra.schema import MIGRATIONS as GRAPH
    from services.identity.store.cassandra.store import KEYS, KEYS_MIGRATIONS
    from services.identity.store.cassandra.store import MIGRATIONS as IDENTITY
    from services.platform.backends.cluster import MESH, MESH_MIGRATIONS
    from services.tweet.store.cassandra.schema import MIGRATIONS as TWEET

    return {
        MESH: MESH_MIGRATIONS,
        "identity": IDENTITY,
        KEYS: KEYS_MIGRATIONS,
        "graph": GRAPH,
        "tweet": TWEET,
        "engagement": ENGAGEMENT,
    }


async def _open_cluster(settings: Settings, stack: AsyncExitStack) -> Backends:
    # Not before it is asked for: the drivers take half a second to import.
    from services.platform.backends.cluster import open_cluster

    return await open_cluster(settings, stack)


BACKENDS: Mapping[str, BackendFactory] = {"embedded": open_embedded, "cluster": _open_cluster}
