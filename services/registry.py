"""The services, in start order, and the families of adapters: the only lists of them.

Adding a service is one line here, its folder, and its protos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from services.common.config import Settings
from services.common.kit import Build, Ground, OpenGround
from services.embedded.ground import open_embedded
from services.engagement.server import build as build_engagement
from services.fanout.server import build as build_fanout
from services.graph.server import build as build_graph
from services.identity.server import build as build_identity
from services.mesh.server import build as build_mesh
from services.search.server import build as build_search
from services.timeline.server import build as build_timeline
from services.tweet.server import build as build_tweet

SERVICES: Mapping[str, Build] = {
    "mesh": build_mesh,
    "identity": build_identity,
    "graph": build_graph,
    "tweet": build_tweet,
    "engagement": build_engagement,
    "timeline": build_timeline,
    "fanout": build_fanout,
    "search": build_search,
}


def migrations() -> Mapping[str, Sequence[str]]:
    """The keyspaces of the cluster family by the service that owns each, and the scripts that bring it up to date."""
    # Not before they are asked for: the drivers take half a second to import.
    from services.cluster.connections import MESH, MESH_MIGRATIONS
    from services.engagement.store.cassandra import MIGRATIONS as ENGAGEMENT
    from services.graph.store.cql import MIGRATIONS as GRAPH
    from services.identity.store.cassandra import MIGRATIONS as IDENTITY
    from services.tweet.store.cassandra_schema import MIGRATIONS as TWEET

    return {MESH: MESH_MIGRATIONS, "identity": IDENTITY, "graph": GRAPH, "tweet": TWEET, "engagement": ENGAGEMENT}


async def _open_cluster(settings: Settings, stack: AsyncExitStack) -> Ground:
    # Not before it is asked for: the drivers take half a second to import.
    from services.cluster.connections import open_cluster

    return await open_cluster(settings, stack)


GROUNDS: Mapping[str, OpenGround] = {"embedded": open_embedded, "cluster": _open_cluster}
