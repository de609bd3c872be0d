"""Limits the concurrent calls of a gRPC server.

Calls from processes of the mesh are limited in total. Calls from clients outside the mesh are limited in total and for
each client address, for the services of the contract, reflection and health watches alike. Health checks are limited in
total only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from services.platform.rpc.client_address import TrustedProxies, client_key, of_grpc_peer
from services.platform.rpc.concurrency import ConcurrencyLimit
from services.platform.transport.authenticator import Authenticator
from services.platform.transport.remote import CLIENT_ADDRESS_KEY

# Maximum number of open unary calls from outside the mesh, including calls whose request message has not arrived yet.
# Beyond it calls are rejected with UNAVAILABLE. The metadata and buffers of a call take some 20 kB: 200 MB at most.
MAX_OPEN_CALLS = 10_000
# Maximum number of unary calls from outside the mesh whose request message has arrived, the same as in the HTTP
# gateway. Beyond it calls are rejected with UNAVAILABLE: if more were served at once, each would only take longer.
MAX_CALLS = 1_000
# Maximum number of open unary calls per client address. Beyond it calls are rejected with RESOURCE_EXHAUSTED. `roost
# load` and similar tools make some dozens of concurrent calls from one machine; a network behind one address makes
# more.
MAX_CALLS_PER_ADDRESS = 200
# Maximum number of concurrent calls and streams from processes of the mesh. Beyond it calls are rejected with
# UNAVAILABLE. Each needs a task and its messages, some 20 kB: 100 MB at most.
MAX_MESH_CALLS = 5_000
# Maximum number of streams from outside the mesh, in total and per client address. Streams last as long as their
# reader, so they do not count as calls. Each channel of the mesh has a health watch that carries no mesh secret, so it
# counts here too; a machine that runs a whole mesh opens some dozens.
MAX_STREAMS = 2_000
MAX_STREAMS_PER_ADDRESS = 100


class Client(NamedTuple):
    """The client of a call, determined before its access token is verified.

    `metadata` holds the text values of the call's metadata. `is_mesh` is True if the metadata contain the mesh secret.
    `address` is the address of the client outside the mesh, without a port; "" if it is not known.
    """

    metadata: Mapping[str, str]
    is_mesh: bool
    address: str


class Admission:
    """Counts the open calls and streams of one server and rejects those above the limits of this module."""

    def __init__(self, authenticator: Authenticator, proxies: TrustedProxies) -> None:
        self._authenticator = authenticator
        self._proxies = proxies
        self._open = ConcurrencyLimit("calls", MAX_OPEN_CALLS, MAX_CALLS_PER_ADDRESS)
        self._calls = ConcurrencyLimit("calls", MAX_CALLS, MAX_CALLS_PER_ADDRESS)
        self._streams = ConcurrencyLimit("streams", MAX_STREAMS, MAX_STREAMS_PER_ADDRESS)
        self._probes = ConcurrencyLimit("health checks", MAX_OPEN_CALLS, MAX_OPEN_CALLS)
        self._mesh = ConcurrencyLimit("calls of the mesh", MAX_MESH_CALLS, MAX_MESH_CALLS)

    def client(self, context: Any) -> Client:
        """Returns the client of the call with the gRPC context `context`.

        The client's address is the connection's peer, unless a process of the mesh (CLIENT_ADDRESS_KEY) or a trusted
        proxy (`x-forwarded-for`) reports another one in the metadata.
        """
        pairs = context.invocation_metadata() or ()
        metadata = {key: value for key, value in pairs if isinstance(value, str)}
        if self._authenticator.is_mesh(metadata):
            return Client(metadata, True, metadata.get(CLIENT_ADDRESS_KEY, ""))
        forwarded = [value for key, value in pairs if key == "x-forwarded-for" and isinstance(value, str)]
        return Client(metadata, False, self._proxies.client(of_grpc_peer(context.peer()), forwarded))

    @contextmanager
    def open(self, client: Client) -> Iterator[None]:
        """Counts a unary call from outside the mesh, from before its message is read; does not count calls of the mesh.

        Raises UNAVAILABLE if MAX_OPEN_CALLS is reached, RESOURCE_EXHAUSTED if MAX_CALLS_PER_ADDRESS is reached.
        """
        if client.is_mesh:
            yield
            return
        with self._open.hold(client_key(client.address)):
            yield

    @contextmanager
    def probe(self) -> Iterator[None]:
        """Counts a health check. Raises UNAVAILABLE if MAX_OPEN_CALLS are in progress.

        There is no limit for an address: behind network address translation, the orchestrator may have the same address
        as clients, and it restarts a process whose health checks fail.
        """
        with self._probes.hold(""):
            yield

    @contextmanager
    def served(self, client: Client) -> Iterator[None]:
        """Counts a unary call whose request message has arrived. Raises UNAVAILABLE if MAX_CALLS (for calls of the mesh
        MAX_MESH_CALLS) is reached, RESOURCE_EXHAUSTED if MAX_CALLS_PER_ADDRESS is reached."""
        with self._mesh.hold("") if client.is_mesh else self._calls.hold(client_key(client.address)):
            yield

    @contextmanager
    def stream(self, client: Client) -> Iterator[None]:
        """Counts a stream. Raises UNAVAILABLE if MAX_STREAMS (for streams of the mesh MAX_MESH_CALLS) is reached,
        RESOURCE_EXHAUSTED if MAX_STREAMS_PER_ADDRESS is reached."""
        with self._mesh.hold("") if client.is_mesh else self._streams.hold(client_key(client.address)):
            yield
