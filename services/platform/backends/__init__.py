"""Opens the store of a service on the backend of its process, and gives access to the connections of the cluster
backend. Import `cluster` only if the cluster backend is chosen: its drivers take half a second to import.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

from services.platform.service import ServiceContext, Worker
from services.platform.versions import MemoryVersions

if TYPE_CHECKING:
    from services.platform.backends.cluster import ClusterBackends
    from services.platform.redis.shared_versions import SharedVersions

S = TypeVar("S")


class OpenedStore(NamedTuple, Generic[S]):
    """An open store and the workers that it needs on this backend, such as the relay of its outbox."""

    store: S
    workers: Sequence[Worker] = ()


async def open_store(context: ServiceContext, *arguments: Any) -> OpenedStore[Any]:
    """Opens the store of the service on the backend of the process.

    Calls `open_store(context, *arguments)` in `services/<name>/store/embedded.py` or
    `services/<name>/store/cluster.py`, and raises the errors of that function. The type of the store is Any, because
    each service has its own port.
    """
    backend = "embedded" if context.cluster is None else "cluster"
    # The module is imported here and not at the top, because the drivers of the cluster take half a second to import.
    adapters = importlib.import_module(f"services.{context.name}.store.{backend}")
    return cast("OpenedStore[Any]", await adapters.open_store(context, *arguments))


def cluster_backends_of(context: ServiceContext) -> ClusterBackends | None:
    """Returns the connections of this process to Cassandra and Redis; None with the embedded backend."""
    return cast("ClusterBackends | None", context.cluster)


def require_cluster(context: ServiceContext) -> ClusterBackends:
    """Returns the connections of this process to Cassandra and Redis, for `services/<name>/store/cluster.py`. Raises
    RuntimeError with the embedded backend."""
    cluster = cluster_backends_of(context)
    if cluster is None:
        raise RuntimeError(f"{context.name} was opened on the cluster, but this process uses the embedded backend")
    return cluster


def require_memory_versions(context: ServiceContext) -> MemoryVersions:
    """Returns the MemoryVersions of this process, through which the embedded store of a service publishes the versions
    of its data. Raises RuntimeError if this process uses the cluster backend."""
    if not isinstance(context.versions, MemoryVersions):
        raise RuntimeError(f"{context.name} was opened on embedded stores, but this process uses the cluster backend")
    return context.versions


def shared_versions_of(context: ServiceContext) -> SharedVersions | None:
    """Returns the user references and versions that processes share through Redis; None with the embedded backend."""
    cluster = cluster_backends_of(context)
    return cluster.shared if cluster is not None else None
