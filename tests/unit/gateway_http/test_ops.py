"""The ops port of a process, on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway_http import ops
from gateway_http.server import HttpServer
from services.platform.health import SERVING, STARTING, Health


@pytest.fixture
def health() -> list[Health]:
    """The reported health is the last element."""
    return [Health(STARTING)]


@pytest.fixture
async def client(health: list[Health]) -> AsyncIterator[httpx.AsyncClient]:
    server = HttpServer(ops.Ops(lambda: health[-1]), "127.0.0.1", 0)
    await server.start()
    async with httpx.AsyncClient(base_url=server.url) as found:
        yield found
    await server.stop()


async def test_readyz_reports_starting_and_lost_peers(client: httpx.AsyncClient, health: list[Health]) -> None:
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/readyz")).status_code == 503
    health.append(Health(SERVING, {"tweet": SERVING}, {"graph": "TRANSIENT_FAILURE"}))
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "degraded", "services": {"tweet": SERVING}, "peers": {"graph": "TRANSIENT_FAILURE"}, "faults": {}},
    )


async def test_metrics_are_prometheus_text(client: httpx.AsyncClient) -> None:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "process_cpu_seconds_total" in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/tweets", 404),
        ("GET", "/metrics/", 404),
        ("POST", "/roost.tweet.v1.TweetService/GetTweet", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/readyz", 405),
    ],
)
async def test_ops_port_other_route_is_rejected(client: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.json()["status"]) == (status, status)


async def test_ops_head_has_no_body(client: httpx.AsyncClient) -> None:
    answer = await client.head("/livez")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "15")


class Counting(Collector):
    """Counts how often the metrics are rendered."""

    def __init__(self) -> None:
        self.made = 0

    def collect(self) -> Iterator[Metric]:
        self.made += 1
        yield GaugeMetricFamily("made", "How often.", value=self.made)


async def test_metrics_concurrent_scrapes_render_once() -> None:
    registry, counting, now = CollectorRegistry(), Counting(), 100.0
    registry.register(counting)
    before = counting.made
    metrics = ops.Metrics(registry, lambda: now)
    pages = await asyncio.gather(*(metrics.serve(None) for _ in range(100)))  # type: ignore[arg-type]
    assert counting.made == before + 1
    assert len({page.body for page in pages}) == 1
    now += ops.METRICS_MAX_AGE_S - 0.01
    await metrics.serve(None)  # type: ignore[arg-type]
    assert counting.made == before + 1
    now += 0.02
    assert (await metrics.serve(None)).body != pages[0].body  # type: ignore[arg-type]
