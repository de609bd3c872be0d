"""What a gRPC server admits: who is at the door, and how much may be under way for whom.

Calls of the mesh's own processes are bounded in all. Everybody else's are bounded for each address too, whatever they call: the
services of the contract, health and reflection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from services.platform.rpc.client_address import TrustedProxies, client_key, of_grpc_peer
from services.platform.rpc.concurrency import ConcurrencyLimit
from services.platform.transport.authenticator import Authenticator
from services.platform.transport.remote import CLIENT_ADDRESS_KEY

# Metadata and buffers of an open call take some 20 kB: 200 MB at most. Those that wait for their client's message count here alone.
MAX_OPEN_CALLS = 10_000
# Being served at once for clients outside, as the HTTP gateway admits; beyond it waiting would only grow.
MAX_CALLS = 1_000
# `roost load` and other tools of one machine keep some dozens under way; a network behind one address some more.
MAX_CALLS_PER_ADDRESS = 200
# Calls of the mesh's own processes being served at once. Each holds a task and its messages, some 20 kB: 100 MB.
MAX_MESH_CALLS = 5_000
# Streams live as long as their reader, so they are counted apart. Channels of the mesh watch health by one stream for each caller and
# target, without saying who they are: a machine with a whole mesh on it has some dozens.
MAX_STREAMS = 2_000
MAX_STREAMS_PER_ADDRESS = 100


class Visitor(NamedTuple):
    """Who is at the door, before any token is looked at: `address` is the client's outside the mesh, "" if it is not known."""

    metadata: Mapping[str, str]
    is_mesh: bool
    address: str


class Admission:
    """Counts what is under way on one server."""

    def __init__(self, authenticator: Authenticator, proxies: TrustedProxies) -> None:
        self._authenticator = authenticator
        self._proxies = proxies
        self._open = ConcurrencyLimit("calls", MAX_OPEN_CALLS, MAX_CALLS_PER_ADDRESS)
        self._calls = ConcurrencyLimit("calls", MAX_CALLS, MAX_CALLS_PER_ADDRESS)
        self._streams = ConcurrencyLimit("streams", MAX_STREAMS, MAX_STREAMS_PER_ADDRESS)
        self._probes = ConcurrencyLimit("health checks", MAX_OPEN_CALLS, MAX_OPEN_CALLS)
        self._mesh = ConcurrencyLimit("calls of the mesh", MAX_MESH_CALLS, MAX_MESH_CALLS)

    def visitor(self, context: Any) -> Visitor:
        """Returns who is at the door. A client's address is taken from the metadata of processes of the mesh and trusted proxies only."""
        pairs = context.invocation_metadata() or ()
        metadata = {key: value for key, value in pairs if isinstance(value, str)}
        if self._authenticator.is_mesh(metadata):
            return Visitor(metadata, True, metadata.get(CLIENT_ADDRESS_KEY, ""))
        forwarded = [value for key, value in pairs if key == "x-forwarded-for" and isinstance(value, str)]
        return Visitor(metadata, False, self._proxies.client(of_grpc_peer(context.peer()), forwarded))

    @contextmanager
    def open(self, visitor: Visitor) -> Iterator[None]:
        """Counts a unary call from its first byte on. Raises RESOURCE_EXHAUSTED or UNAVAILABLE if there are too many."""
        if visitor.is_mesh:
            yield
            return
        with self._open.hold(client_key(visitor.address)):
            yield

    @contextmanager
    def probe(self) -> Iterator[None]:
        """Counts a health check, of all addresses together: behind one address translation, the orchestrator that restarts whoever does
        not answer shares its address with clients. Raises UNAVAILABLE if there are too many.
        """
        with self._probes.hold(""):
            yield

    @contextmanager
    def served(self, visitor: Visitor) -> Iterator[None]:
        """Counts a unary call whose message has arrived. Raises as `open`."""
        with self._mesh.hold("") if visitor.is_mesh else self._calls.hold(client_key(visitor.address)):
            yield

    @contextmanager
    def stream(self, visitor: Visitor) -> Iterator[None]:
        """Counts a stream. Raises as `open`."""
        with self._mesh.hold("") if visitor.is_mesh else self._streams.hold(client_key(visitor.address)):
            yield
