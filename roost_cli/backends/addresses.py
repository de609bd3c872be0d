"""Checks whether the servers of the cluster backend answer at the addresses in the settings."""

from __future__ import annotations

from urllib.parse import urlsplit

from roost_cli.backends.ready import unreachable
from services.platform.config import Settings


def missing(settings: Settings) -> list[str]:
    """Returns the text `<name> at <host>:<port>` for each server of the cluster backend that does not respond within 2
    s.

    If the settings list several Cassandra or Kafka nodes, only the first node is checked.
    """
    redis, opensearch = urlsplit(settings.redis_url), urlsplit(settings.opensearch_urls)
    return unreachable(
        {
            "cassandra": settings.cassandra_contact_points[0],
            "redis": f"{redis.hostname}:{redis.port or 6379}",
            "kafka": settings.kafka_bootstrap_servers.split(",")[0],
            "opensearch": f"{opensearch.hostname}:{opensearch.port or 9200}",
        }
    )
