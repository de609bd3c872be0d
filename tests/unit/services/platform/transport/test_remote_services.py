"""The services in other processes: which are known, at which address, and one channel for each caller."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from services.platform.config import Settings
from services.platform.rpc.context import OPERATOR
from services.platform.transport.batching import BatchingChannel
from services.platform.transport.remote import MeshChannel
from services.platform.transport.remote_services import RemoteServices

PEERS = {"tweet": "127.0.0.1:1", "graph": "127.0.0.1:2"}


@pytest.fixture
def services(tmp_path: Path) -> RemoteServices:
    settings = Settings(data_dir=tmp_path, static_peers=PEERS, registry_address="127.0.0.1:3")
    return RemoteServices(settings, "secret", "token")


async def test_start_leaves_out_services_of_this_process(services: RemoteServices) -> None:
    await services.start(local=["tweet", "search"], discovered=["search", "identity"])
    try:
        assert services.names == {"graph", "identity"}
        assert (services.target_of("graph"), services.target_of("tweet"), services.target_of("identity")) == (
            "127.0.0.1:2",
            "",
            "",
        )
        assert set(services.channels("fanout")) == {"graph", "identity"}
    finally:
        await services.stop_watches()
        await services.close()


async def test_channels_same_caller_share_one_connection(services: RemoteServices) -> None:
    await services.start(local=[], discovered=[])
    try:
        assert services.channels("fanout") == services.channels("fanout")
        assert services.channels("fanout")["tweet"] is not services.channels("timeline")["tweet"]
        assert services.registry("one") is not services.registry("other")
    finally:
        await services.close()


async def test_connect_batches_calls_of_services_only(services: RemoteServices) -> None:
    try:
        kinds = {caller: type(services.connect("tweet", PEERS["tweet"], caller)) for caller in ("", OPERATOR, "fanout")}
        assert kinds == {"": MeshChannel, OPERATOR: MeshChannel, "fanout": BatchingChannel}
    finally:
        await services.close()


async def test_close_closes_channels(services: RemoteServices) -> None:
    channel = services.connect("tweet", PEERS["tweet"], "")
    await services.close()
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
