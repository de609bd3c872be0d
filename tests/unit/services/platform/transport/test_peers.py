"""Tests the connections to peers whose servers start and stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import grpc
import pytest
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from prometheus_client import REGISTRY

from services.catalog import BACKENDS, KEY_SOURCE, SERVICES
from services.platform.config import Settings
from services.platform.process import Process
from services.platform.transport.batching import BatchingChannel
from services.platform.transport.peers import PATIENCE_S, Peers
from services.platform.transport.remote import MeshChannel
from tests.conftest import mesh_settings
from tests.waiting import WITHIN_S, wait_until


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


@pytest.fixture
async def peers(port: int) -> AsyncIterator[Peers]:
    channel = BatchingChannel(MeshChannel(f"127.0.0.1:{port}", "", "secret"))
    yield Peers({"tweet": channel})
    await channel.close()


async def serving(port: int) -> grpc.aio.Server:
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server


async def test_unreached_without_server_names_service(peers: Peers) -> None:
    assert await peers.unreached(0.5) == ["tweet"]
    assert peers.states()["tweet"] != "READY"


async def test_unreached_with_server_returns_before_timeout(peers: Peers, port: int) -> None:
    server = await serving(port)
    async with asyncio.timeout(WITHIN_S):
        assert await peers.unreached(10 * WITHIN_S) == []
    assert peers.states() == {"tweet": "READY"}
    await server.stop(None)
    await wait_until(lambda: peers.states()["tweet"] != "READY")


async def test_look_logs_lost_peer_once_and_reached_peer_once(peers: Peers, port: int) -> None:
    with structlog.testing.capture_logs() as lines:
        for now in (0.0, PATIENCE_S - 0.1):
            peers.look(now)
        assert lines == []
        for now in (PATIENCE_S, 2 * PATIENCE_S):
            peers.look(now)
        assert [(line["event"], line["peer"]) for line in lines] == [("peer.lost", "tweet")]
        assert REGISTRY.get_sample_value("roost_peer_ready", {"peer": "tweet"}) == 0
        server = await serving(port)
        assert await peers.unreached(WITHIN_S) == []
        peers.look(3 * PATIENCE_S)
    assert lines[-1]["event"] == "peer.reached"
    assert REGISTRY.get_sample_value("roost_peer_ready", {"peer": "tweet"}) == 1
    await server.stop(None)


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return mesh_settings(tmp_path_factory.mktemp("mesh"))


async def started(settings: Settings, *names: str, **changed: object) -> Process:
    builds = {name: SERVICES[name] for name in names}
    chosen = settings.model_copy(update=changed)
    return await Process.start(
        chosen, builds, backend=BACKENDS[settings.backend], key_source=KEY_SOURCE, remote_services=SERVICES
    )


async def test_health_of_gateway_with_unreachable_peers_is_degraded_and_ready(settings: Settings, port: int) -> None:
    peers = {"tweet": f"127.0.0.1:{port}", "identity": f"127.0.0.1:{port}"}
    async with await started(settings, static_peers=peers) as gateway:
        assert await gateway.peers.unreached(0.2) == ["tweet", "identity"]
        found = gateway.health()
        assert (found.status, found.ready, set(found.peers)) == ("degraded", True, {"tweet", "identity"})
        assert gateway.target_of("tweet") == peers["tweet"]
    assert gateway.health().status == "not_ready"


async def test_health_of_gateway_without_peers_is_not_ready(settings: Settings) -> None:
    async with await started(settings) as gateway:
        assert gateway.health().status == "not_ready"
        assert set(gateway.unaddressed) == set(SERVICES) - {"registry"}


async def test_health_of_service_lists_only_its_dependencies(settings: Settings, port: int) -> None:
    peers = {name: f"127.0.0.1:{port}" for name in SERVICES if name != "graph"}
    async with await started(settings, "fanout", static_peers=peers) as fanout:
        assert set(fanout.health().peers) == {"identity", "timeline", "tweet", "registry"}
        assert fanout.unaddressed == ["graph"]
