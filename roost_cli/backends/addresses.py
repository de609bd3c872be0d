"""Where the settings say that the servers are: for whoever asks whether they answer."""

from __future__ import annotations

from urllib.parse import urlsplit

from roost_cli.backends.ready import unreachable
from services.platform.config import Settings


def missing(settings: Settings) -> list[str]:
    """The servers of the cluster backend that do not answer, in words; of several Cassandra nodes the first is asked."""
    redis, opensearch = urlsplit(settings.redis), urlsplit(settings.opensearch)
    return unreachable(
        {
            "cassandra": settings.cassandra[0],
            "redis": f"{redis.hostname}:{redis.port or 6379}",
            "kafka": settings.kafka.split(",")[0],
            "opensearch": f"{opensearch.hostname}:{opensearch.port or 9200}",
        }
    )
