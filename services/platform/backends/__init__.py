"""Access to the cluster backend's connections, and to what all services share through them.

Imports no service. Import `cluster` only if the cluster backend is chosen: its drivers take half a second to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from services.platform.service import ServiceContext

if TYPE_CHECKING:
    from services.platform.backends.cluster import ClusterBackends
    from services.platform.redis.shared_versions import SharedVersions


def cluster_backends_of(context: ServiceContext) -> ClusterBackends | None:
    """Returns the cluster's connections; None in the embedded backend."""
    return cast("ClusterBackends | None", context.cluster)


def shared_versions_of(context: ServiceContext) -> SharedVersions | None:
    """Returns the versions and entries that processes share through Redis; None in the embedded backend."""
    cluster = cluster_backends_of(context)
    return cluster.shared if cluster is not None else None
