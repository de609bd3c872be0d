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
from tests.conftest import SETTLE_WITHIN_S, Mesh
from tests.functional.conftest import unique

pytestmark = pytest.mark.parametrize("shared_mesh", ["grpc"], indirect=True)


@pytest.fixture
def target(shared_mesh: Mesh) -> MeshTarget:
    return MeshTarget(f"127.0.0.1:{shared_mesh.process.grpc_port}", shared_mesh.process.operator_token)


async def index_in_use(stub: SearchServiceStub) -> int:
    """Returns the number of the index in use, once no index is being built."""
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while True:
            state = await stub.GetReindex(pb.GetReindexRequest())
            # A new mesh starts with an empty first index and fills a second one.
            if state.index > 1 and not state.building:
                return state.index
            await asyncio.sleep(0.02)


async def test_reindex_wait_returns_after_new_index_is_in_use(shared_mesh: Mesh, target: MeshTarget) -> None:
    mesh = shared_mesh
    (alice,) = await mesh.people(unique("alice"))
    posted = [await mesh.post(alice, f"word {number}") for number in range(3)]
    stub = SearchServiceStub(mesh.process.channel("operator"))
    before = await index_in_use(stub)
    output = io.StringIO()
    await search.reindex(target, Plain(output), wait=True)
    after = await stub.GetReindex(pb.GetReindexRequest())
    assert after.index > before
    assert output.getvalue().splitlines()[-1] == f"index {after.index} is in use"
    answer = await stub.SearchTweets(pb.SearchTweetsRequest(query="word", order=pb.SEARCH_ORDER_LATEST))
    assert [tweet.id for tweet in answer.tweets] == posted[::-1]


async def test_reindex_stuck_build_raises_error(
    shared_mesh: Mesh, target: MeshTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    await index_in_use(SearchServiceStub(shared_mesh.process.channel("operator")))

    def begin_nothing(_: object) -> bool:
        return True

    monkeypatch.setattr("services.search.rebuild.Rebuilder.begin", begin_nothing)
    with pytest.raises(CommandError, match="no document was added"):
        await search.reindex(target, Plain(io.StringIO()), wait=True, stuck_s=0.1)


async def test_reindex_without_wait_reports_start(target: MeshTarget) -> None:
    output = io.StringIO()
    await search.reindex(target, Plain(output), wait=False)
    assert output.getvalue().startswith("a new index is being built")
