"""Tests the addresses that the supervisor opens for its gateway processes, with real sockets."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from roost_cli.exit_codes import CommandError
from roost_cli.supervisor.shared_addresses import shared_addresses
from services.platform.config import Settings


def listening(*, reuse: bool = False) -> socket.socket:
    bound = socket.socket()
    if reuse:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", 0))
    bound.listen()
    return bound


def settings(tmp_path: Path, http: str = "127.0.0.1:0", grpc: str = "127.0.0.1:0") -> Settings:
    return Settings(data_dir=tmp_path, http_address=http, grpc_address=grpc)


def place(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


@pytest.mark.parametrize("which", ["http", "grpc"])
@pytest.mark.parametrize("reuse", [False, True], ids=["exclusive", "shared by strangers"])
def test_shared_addresses_of_occupied_port_says_what_to_do(tmp_path: Path, which: str, reuse: bool) -> None:
    with listening(reuse=reuse) as stranger:
        taken = f"127.0.0.1:{stranger.getsockname()[1]}"
        with (
            pytest.raises(
                CommandError, match=f"on {taken}: another program listens there; choose another .* --{which}"
            ),
            shared_addresses(settings(tmp_path, **{which: taken})),
        ):
            pass


@pytest.mark.parametrize("which", ["grpc", "registry"])
def test_shared_addresses_grpc_is_open_to_processes_that_share_it_and_closed_to_others(
    tmp_path: Path, which: str
) -> None:
    with shared_addresses(settings(tmp_path)) as found:
        address = place(getattr(found, which))
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(address)
        with socket.socket() as one, socket.socket() as two:
            for member in (one, two):
                member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                member.bind(address)
            one.listen()
            # Only sockets that listen get connections: the reservation of the supervisor and `two` get none.
            for _ in range(20):
                socket.create_connection(address, timeout=10).close()
                one.accept()[0].close()


def test_shared_addresses_http_queues_connections_for_every_process(tmp_path: Path) -> None:
    with shared_addresses(settings(tmp_path)) as found:
        with socket.create_connection(place(found.http), timeout=10) as client:
            # The descriptor of another process is a duplicate of this one.
            with socket.socket(fileno=os.dup(found.http_fd)) as inherited:
                inherited.accept()[0].close()
            assert client.recv(1) == b""
        # The other process has closed its descriptor; connections still queue.
        socket.create_connection(place(found.http), timeout=10).close()
    with pytest.raises(ConnectionError):
        socket.create_connection(place(found.http), timeout=10)
