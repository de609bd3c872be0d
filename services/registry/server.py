"""Composition root of the registry service."""

from __future__ import annotations

import time

from services.platform.service import Service, ServiceContext
from services.registry.service import RegistryServicer


async def build(context: ServiceContext) -> Service:
    """Returns the service. Its state is in memory, so it needs no store."""
    registry = RegistryServicer(context.clock, time.monotonic)
    return Service(name=context.name, servicers={"roost.registry.v1.RegistryService": registry}, workers=(registry,))
