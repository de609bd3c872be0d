"""Opens the addresses of a mesh in the supervisor: several gateway processes can serve each of the public ones, and no
other user can take over an address while no process of the mesh listens there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.options import address_of
from services.platform.config import Settings
from services.platform.listen_errors import cannot_listen

# Maximum number of connections that the operating system has established and no process has accepted yet.
BACKLOG = 1_024
# Only processes on this machine call the registry.
REGISTRY_ADDRESS = "127.0.0.1:0"


@dataclass(frozen=True, slots=True)
class SharedAddresses:
    """The HTTP and the gRPC address as HOST:PORT, with the port that was chosen if the setting has port 0, and the gRPC
    address of the registry.

    `http_fd` is the descriptor of the listening HTTP socket. All gateway processes inherit it and accept from its one
    queue, so no connection is lost when a process stops accepting or is killed. gRPC cannot listen on an inherited
    socket: each process binds `grpc` itself, with SO_REUSEPORT, and so does the registry `registry`.
    """

    http: str
    grpc: str
    registry: str
    http_fd: int


@contextmanager
def shared_addresses(settings: Settings) -> Iterator[SharedAddresses]:
    """Opens the HTTP and the gRPC address of the settings, and a free one for the registry, until the block ends. Raises
    CommandError if an address is malformed or if another program uses it."""
    with ExitStack() as stack:
        http = stack.enter_context(_bound(settings.http_address, "HTTP", "--http"))
        http.listen(BACKLOG)
        grpc = stack.enter_context(_reserved(settings.grpc_address, "gRPC", "--grpc"))
        # Reserved too: to whoever listens there, each process sends the mesh secret.
        registry = stack.enter_context(_reserved(REGISTRY_ADDRESS, "the registry", "--grpc"))
        yield SharedAddresses(
            _named(settings.http_address, http),
            _named(settings.grpc_address, grpc),
            _named(REGISTRY_ADDRESS, registry),
            http.fileno(),
        )


def _reserved(address: str, protocol: str, option: str) -> socket.socket:
    """Returns a socket that reserves the address for processes of this user that bind it with SO_REUSEPORT. It never
    listens, so it gets no connections."""
    bound = _bound(address, protocol, option)
    # Bound without SO_REUSEPORT, so that an occupied address is an error. With the option set afterwards, processes of
    # the same user can bind the address too, and without SO_REUSEADDR no others.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return bound


def _bound(address: str, protocol: str, option: str) -> socket.socket:
    host, port = address_of(address, option)
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        return bound
    except OSError as error:
        bound.close()
        raise CommandError(cannot_listen(protocol, address, option, error).message, UNUSABLE) from error


def _named(address: str, bound: socket.socket) -> str:
    return f"{address.rpartition(':')[0]}:{bound.getsockname()[1]}"
