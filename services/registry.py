"""The services, in start order, and the families of adapters: the only lists of them.

Adding a service is one line here, its folder, and its protos.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack

from services.common.config import Settings
from services.common.ground import open_embedded
from services.common.kit import Build, Ground, OpenGround
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


async def _open_cluster(settings: Settings, stack: AsyncExitStack) -> Ground:
    # Not before it is asked for: the drivers take half a second to import.
    from services.cluster.connections import open_cluster

    return await open_cluster(settings, stack)


GROUNDS: Mapping[str, OpenGround] = {"embedded": open_embedded, "cluster": _open_cluster}
