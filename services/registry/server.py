"""Composition root of the mesh service."""

from __future__ import annotations

import time

from services.platform.service import Service, ServiceContext
from services.registry.service import RegistryServicer


async def build(context: ServiceContext) -> Service:
    """The registry, in memory."""
    registry = RegistryServicer(context.clock, time.monotonic)
    return Service(name=context.name, servicers={"roost.registry.v1.RegistryService": registry}, workers=(registry,))
