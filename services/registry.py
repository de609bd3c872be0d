"""The services, in start order: the only list of them.

Adding a service is one line here, its folder, and its protos.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.common.kit import Build
from services.engagement.server import build as build_engagement
from services.fanout.server import build as build_fanout
from services.graph.server import build as build_graph
from services.identity.server import build as build_identity
from services.search.server import build as build_search
from services.timeline.server import build as build_timeline
from services.tweet.server import build as build_tweet

SERVICES: Mapping[str, Build] = {
    "identity": build_identity,
    "graph": build_graph,
    "tweet": build_tweet,
    "engagement": build_engagement,
    "timeline": build_timeline,
    "fanout": build_fanout,
    "search": build_search,
}
