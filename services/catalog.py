"""Lists the services in start order, the backends that a process can open, and the key source for access tokens.

`scripts/new-service` adds a service: its name here, its folder below `services/` and its protos. `migrations` finds the
Cassandra migrations of a service in its file `store/cassandra/schema.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

from services.platform.backends.embedded import open_embedded
from services.platform.config import Settings
from services.platform.service import BackendFactory, Backends, Service, ServiceContext, ServiceFactory
from services.shared.signing_keys import IdentityKeySource


def _of(name: str) -> ServiceFactory:
    async def build(context: ServiceContext) -> Service:
        # The module is imported on use, so that a process of one service does not import all services, which takes 0.5
        # s of CPU.
        root = importlib.import_module(f"services.{name}.server")
        return cast(Service, await root.build(context))

    return build


# In start order: a service comes after those that it calls when it starts. `scripts/new-service` appends here.
NAMES = (
    "registry",
    "identity",
    "graph",
    "tweet",
    "engagement",
    "timeline",
    "fanout",
    "search",
)
SERVICES: Mapping[str, ServiceFactory] = {name: _of(name) for name in NAMES}


def migrations() -> Mapping[str, Sequence[str]]:
    """Returns the migrations of each Cassandra keyspace in order, by the keyspace's name without the namespace.

    A service declares its keyspaces as `KEYSPACES` in `store/cassandra/schema.py`. A service without that file has no
    keyspace. Imports the Cassandra driver.
    """
    # Imported on use, because the drivers take 0.5 s to import.
    from services.platform.backends.cluster import MESH, MESH_MIGRATIONS

    found: dict[str, Sequence[str]] = {MESH: MESH_MIGRATIONS}
    for name in SERVICES:
        if (Path(__file__).parent / name / "store" / "cassandra" / "schema.py").exists():
            found.update(importlib.import_module(f"services.{name}.store.cassandra.schema").KEYSPACES)
    return found


async def _open_cluster(settings: Settings, stack: AsyncExitStack) -> Backends:
    # Imported on use, because the drivers take 0.5 s to import.
    from services.platform.backends.cluster import open_cluster

    return await open_cluster(settings, stack)


BACKENDS: Mapping[str, BackendFactory] = {"embedded": open_embedded, "cluster": _open_cluster}

KEY_SOURCE = IdentityKeySource()
