"""Finds the mesh that `roost bench` measures, and gets access tokens of its users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc as grpc_lib
from roost.identity.v1 import auth_service_pb2_grpc

from roost_cli import connection, runfile
from roost_cli.bench import cpu
from roost_cli.exit_codes import CommandError, call_error
from roost_cli.rate_control import batches
from roost_cli.scans import scan_users
from roost_cli.tokens import DEFAULT_TTL_S, MINT_BATCH, mint

# Maximum number of users whose tokens are minted; further users are left out. A load generator keeps a prepared request
# of about 500 bytes for each.
MAX_USERS = 100_000


@dataclass(frozen=True, slots=True)
class LocalMesh:
    """A mesh on this machine: its gRPC target, the addresses of its gateway and of the ops port (HOST:PORT; "" if it has
    several processes), and the ids of all its processes, with the supervisor if there is one."""

    target: connection.MeshTarget
    http: str
    ops: str
    pids: Sequence[int]


def find(grpc: str | None, http: str | None) -> LocalMesh:
    """Returns the mesh at the gRPC address `grpc` (None: the mesh that runs on this machine). `http` is the address of
    its gateway (None: the one in the mesh's run file).

    Raises CommandError if the mesh cannot be found, does not run on this machine for this user, or serves no HTTP.
    """
    target = connection.find(grpc)
    found = next((run for run in runfile.running() if run.operator_token == target.operator_token != ""), None)
    if found is None:
        raise CommandError(
            f"no mesh of this user runs at {target.address} on this machine: start one there, or run the benchmark as its "
            "user on the machine of the mesh"
        )
    address = http or found.http
    if not address:
        raise CommandError(f"the mesh at {target.address} serves no HTTP; name its gateway with --http")
    # The run file contains the process id of the only process, or of the supervisor, which is the parent of all others.
    return LocalMesh(target, address, found.ops, cpu.backend(found.pid))


async def access_tokens(mesh: LocalMesh) -> dict[int, str]:
    """Returns the access tokens of all active users by user id, ascending, at most MAX_USERS. Raises CommandError if
    there are none."""
    async with connection.connect(mesh.target) as channels:
        try:
            ids = [user.user.id async for user in scan_users(channels[0], mesh.target.operator())]
        except grpc_lib.aio.AioRpcError as error:
            raise call_error(error, "reading the users of the mesh") from error
    tokens = await tokens_of(mesh, ids[:MAX_USERS])
    if not tokens:
        raise CommandError("the mesh has no users: load a graph first with `roost load`")
    return tokens


async def tokens_of(mesh: LocalMesh, user_ids: Sequence[int]) -> dict[int, str]:
    """Returns the access tokens of the active ones of these users, by user id. Raises CommandError if a call fails."""
    tokens: dict[int, str] = {}
    async with connection.connect(mesh.target) as channels:
        stub = auth_service_pb2_grpc.AuthServiceStub(channels[0])
        try:
            for some in batches(user_ids, MINT_BATCH):
                tokens |= await mint(stub, mesh.target.operator(), some, DEFAULT_TTL_S)
        except grpc_lib.aio.AioRpcError as error:
            raise call_error(error, "minting tokens") from error
    return tokens
