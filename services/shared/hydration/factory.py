"""Makes the hydrator of a service."""

from __future__ import annotations

from services.platform.backends import shared_versions_of
from services.platform.service import ServiceContext
from services.shared.hydration.cache import HydrationCache
from services.shared.hydration.hydrator import Hydrator


def hydrator_of(context: ServiceContext) -> Hydrator:
    """Returns a hydrator that calls as this service, and shares its cache with the other services of the process."""
    cache = context.shared_by_process(HydrationCache, lambda: HydrationCache(context.versions))
    return Hydrator(context.channel, cache, shared_versions_of(context))
