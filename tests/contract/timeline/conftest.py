"""What the port's promises are checked against: one entry a family."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.timeline.store import HomeTimelineStore
from services.timeline.store.embedded import EmbeddedHomeTimelines


@pytest.fixture(params=["embedded"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[HomeTimelineStore]:
    """An empty store of the family."""
    families = {"embedded": lambda: EmbeddedHomeTimelines(100)}
    made = families[request.param]()
    yield made
    await made.close()
