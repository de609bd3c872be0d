"""Composition root of the mesh service."""

from __future__ import annotations

import time

from services.platform.service import Kit, Service
from services.registry.service import RegistryServicer


async def build(kit: Kit) -> Service:
    """The registry, in memory."""
    registry = RegistryServicer(kit.clock, time.monotonic)
    return Service(name=kit.name, servicers={"roost.registry.v1.RegistryService": registry}, workers=(registry,))
