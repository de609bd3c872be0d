"""Tests the warning of two meshes that share a Redis database."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from structlog.testing import capture_logs

from services.platform.backends.cluster import ClusterBackends
from services.platform.config import Settings
from services.platform.rpc import errors


@pytest.mark.parametrize(
    ("namespace", "redis_url", "warns"),
    [
        ("mine", "redis://127.0.0.1:6379/0", True),
        ("mine", "redis://127.0.0.1", True),
        ("mine", "redis://127.0.0.1:6379/5", False),
        ("mine", "redis://redis.example.org:6379/0", False),
        ("roost", "redis://127.0.0.1:6379/0", False),
    ],
)
async def test_open_own_namespace_on_default_redis_database_warns(namespace: str, redis_url: str, warns: bool) -> None:
    # Nobody listens on port 1, so that the test needs no servers; the warning comes first.
    settings = Settings(namespace=namespace, redis_url=redis_url, cassandra_contact_points=("127.0.0.1:1",))
    with capture_logs() as logged:
        async with AsyncExitStack() as stack:
            with pytest.raises(errors.RoostError, match="Cassandra cannot be reached"):
                await ClusterBackends.open(settings, stack)
    found = [line for line in logged if line["event"] == "redis_database.shared"]
    assert [line["namespace"] for line in found] == (["mine"] if warns else [])
    assert all(line["log_level"] == "warning" and "ROOST_REDIS_URL" in line["advice"] for line in found)
