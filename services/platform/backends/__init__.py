"""What the cluster family adds to the kit: connections to the four servers, and what is built on them for all services.

It imports the kit and no service. Composition roots and adapters import it, and only where the family is chosen: the drivers take
half a second to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from services.platform.service import Kit

if TYPE_CHECKING:
    from services.platform.backends.cluster import Cluster
    from services.platform.redis.shared_versions import SharedEntries


def cluster_of(kit: Kit) -> Cluster | None:
    """The connections that a service is to be built on; None in the embedded family."""
    return cast("Cluster | None", kit.cluster)


def shared_of(kit: Kit) -> SharedEntries | None:
    """What processes tell each other through Redis; None in the embedded family."""
    cluster = cluster_of(kit)
    return cluster.shared if cluster is not None else None
