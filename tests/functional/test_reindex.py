"""`roost search reindex` against a real mesh over gRPC."""

from __future__ import annotations

import asyncio
import io

import pytest
from roost.search.v1 import search_service_pb2 as pb
from roost.search.v1.search_service_pb2_grpc import SearchServiceStub

from roost_cli import search
from roost_cli.connection import MeshTarget
from roost_cli.exit_codes import CommandError
from roost_cli.progress import Plain
from tests.conftest import Mesh, MeshFactory


@pytest.fixture
async def mesh(start_mesh: MeshFactory) -> Mesh:
    return await start_mesh(wire="grpc")


@pytest.fixture
def target(mesh: Mesh) -> MeshTarget:
    return MeshTarget(f"127.0.0.1:{mesh.process.grpc_port}", mesh.process.operator_token)


async def index_in_use(stub: SearchServiceStub) -> int:
    """The number of the index, once the first one was filled."""
    while True:
        state = await stub.GetReindex(pb.GetReindexRequest())
        # A new mesh fills its second index: the first one is there for what happens meanwhile.
        if state.index > 1 and not state.building:
            return state.index
        await asyncio.sleep(0.02)


async def test_reindex_wait_returns_after_new_index_is_in_use(mesh: Mesh, target: MeshTarget) -> None:
    (alice,) = await mesh.people("alice")
    posted = [await mesh.post(alice, f"word {number}") for number in range(3)]
    stub = SearchServiceStub(mesh.process.channel("operator"))
    before = await index_in_use(stub)
    said = io.StringIO()
    await search.reindex(target, Plain(said), wait=True)
    after = await stub.GetReindex(pb.GetReindexRequest())
    assert after.index > before
    assert said.getvalue().splitlines()[-1] == f"index {after.index} is in use"
    answer = await stub.SearchTweets(pb.SearchTweetsRequest(query="word", order=pb.SEARCH_ORDER_LATEST))
    assert [tweet.id for tweet in answer.tweets] == posted[::-1]


async def test_reindex_without_wait_reports_start(target: MeshTarget) -> None:
    said = io.StringIO()
    await search.reindex(target, Plain(said), wait=False)
    assert said.getvalue().startswith("the index is being built")


async def test_reindex_stuck_build_raises_error(
    mesh: Mesh, target: MeshTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    await index_in_use(SearchServiceStub(mesh.process.channel("operator")))

    def nothing(_: object) -> bool:
        return True

    monkeypatch.setattr("services.search.rebuild.Rebuilder.begin", nothing)
    with pytest.raises(CommandError, match="no document was added"):
        await search.reindex(target, Plain(io.StringIO()), wait=True, stuck_s=0.1)
