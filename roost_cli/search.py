"""`roost search`: rebuilds the search index, for the operator."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Annotated

import grpc as grpc_lib
import typer
from roost.search.v1 import search_service_pb2, search_service_pb2_grpc

from roost_cli import connection, options, progress
from roost_cli.exit_codes import FAULTS, CommandError, call_error
from roost_cli.rate_control import deadline_s, with_retries

REINDEX = "/roost.search.v1.SearchService/Reindex"
GET_REINDEX = "/roost.search.v1.SearchService/GetReindex"
# Seconds between two polls of the rebuild's progress.
LOOK_EVERY_S = 0.5
# If a rebuild makes no progress for this many seconds, the command fails. The search service restarts a failed rebuild
# within 30 s, so if nothing happens for longer, an operator must look into it.
STUCK_S = 120.0


class Action(StrEnum):
    """An action on the search index."""

    REINDEX = "reindex"


def search(
    action: Annotated[Action, typer.Argument(help="reindex builds a new index while the current one is in use.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the new index is in use, and show the progress.")
    ] = False,
    grpc: options.Grpc = None,
) -> None:
    """Build a new search index from the data of the other services. Until it is complete, searches use the current
    index."""
    asyncio.run(reindex(connection.find(grpc), progress.for_stream(), wait=wait))


async def reindex(
    mesh: connection.MeshTarget, shown: progress.Progress, *, wait: bool, stuck_s: float = STUCK_S
) -> None:
    """Starts a rebuild of the search index. If `wait` is true, waits until the new index is in use, and raises
    CommandError after `stuck_s` seconds without progress."""
    operator = mesh.operator()
    async with connection.connect(mesh) as channels:
        stub = search_service_pb2_grpc.SearchServiceStub(channels[0])

        async def look() -> search_service_pb2.GetReindexResponse:
            request = search_service_pb2.GetReindexRequest()
            return await stub.GetReindex(request, metadata=operator, timeout=deadline_s(GET_REINDEX))

        async def begin() -> bool:
            request = search_service_pb2.ReindexRequest()
            answer = await stub.Reindex(request, metadata=operator, timeout=deadline_s(REINDEX))
            return bool(answer.started)

        try:
            before = (await with_retries(look)).index
            started = await begin()
            shown.say("a new index is being built" if started else "a new index is being built already")
            if not wait:
                return
            loop = asyncio.get_running_loop()
            moved = loop.time()
            with shown.phase("documents", 0) as phase:
                while (now := await with_retries(look)).index <= before:
                    if now.building and now.documents > phase.done:
                        phase.advance(now.documents - phase.done)
                        moved = loop.time()
                    if loop.time() > moved + stuck_s:
                        raise CommandError(
                            f"no document was added for {stuck_s:g} s: read the log of the search service", FAULTS
                        )
                    await asyncio.sleep(LOOK_EVERY_S)
                    # A rebuild that was already in progress at the call of this command may have read old data, so
                    # another one is started after it.
                    started = started or now.building or await begin()
            shown.say(f"index {now.index} is in use")
        except grpc_lib.aio.AioRpcError as error:
            raise call_error(error, "reindex") from error
