"""What the cluster backend adds to the kit: connections to the four servers, and what is built on them for all services.

It imports the kit and no service. Composition roots and adapters import it, and only where the family is chosen: the drivers take
half a second to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from services.platform.service import ServiceContext

if TYPE_CHECKING:
    from services.platform.backends.cluster import ClusterBackends
    from services.platform.redis.shared_versions import SharedVersions


def cluster_backends_of(context: ServiceContext) -> ClusterBackends | None:
    """The connections that a service is to be built on; None in the embedded backend."""
    return cast("ClusterBackends | None", context.cluster)


def shared_versions_of(context: ServiceContext) -> SharedVersions | None:
    """What processes tell each other through Redis; None in the embedded backend."""
    cluster = cluster_backends_of(context)
    return cluster.shared if cluster is not None else None
