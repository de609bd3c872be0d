"""Checks whether a server is ready, by one request of the server's own protocol over a plain socket."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import Callable, Mapping

ANSWER_WITHIN_S = 2.0
HOST = "127.0.0.1"

# Exceptions that a check raises while the server starts: refused or reset connections, timeouts, truncated responses.
NOT_YET = (OSError, http.client.HTTPException, ValueError, struct.error, KeyError)

# Opcodes of Cassandra's native protocol, version 4.
_STARTUP, _QUERY = 0x01, 0x07
_READY, _RESULT = 0x02, 0x08
_CONSISTENCY_ONE = 1
# Kafka's Metadata request, in a version that all brokers since 1.0 support.
_METADATA, _METADATA_VERSION = 3, 4
_NO_TOPICS = 0
# Maximum size of a response in bytes. A larger response means that another kind of server listens on the port.
_MAX_ANSWER = 1 << 20


def cassandra(port: int, host: str = HOST) -> bool:
    """Returns True if a CQL query succeeds, False if the server answers it with an error. Raises one of the exceptions
    in NOT_YET if the server does not respond within ANSWER_WITHIN_S seconds."""
    query = b"SELECT release_version FROM system.local"
    with _connect(port, host) as connection:
        _send_cql(connection, _STARTUP, struct.pack(">H", 1) + _short(b"CQL_VERSION") + _short(b"3.0.0"))
        if _cql_answer(connection) != _READY:
            return False
        _send_cql(connection, _QUERY, struct.pack(">i", len(query)) + query + struct.pack(">HB", _CONSISTENCY_ONE, 0))
        return _cql_answer(connection) == _RESULT


def kafka(port: int, host: str = HOST) -> bool:
    """Returns whether the broker answers a Metadata request, which every client sends first, with at least one broker.

    Raises one of the exceptions in NOT_YET if the server does not respond.
    """
    body = (
        struct.pack(">hhi", _METADATA, _METADATA_VERSION, 1) + _short(b"roost") + struct.pack(">i?", _NO_TOPICS, False)
    )
    with _connect(port, host) as connection:
        connection.sendall(struct.pack(">i", len(body)) + body)
        (length,) = struct.unpack(">i", _exactly(connection, 4))
        answer = _exactly(connection, length)
    correlation, _throttled, brokers = struct.unpack_from(">iii", answer)
    return bool(correlation == 1 and brokers > 0)


def redis(port: int, host: str = HOST) -> bool:
    """Returns whether PING succeeds. It fails while Redis loads its data.

    Raises one of the exceptions in NOT_YET if the server does not respond.
    """
    with _connect(port, host) as connection:
        connection.sendall(b"PING\r\n")
        return _exactly(connection, 5) == b"+PONG"


def opensearch(port: int, host: str = HOST) -> bool:
    """Returns whether the cluster's health is green or yellow, which means that all primary shards are active.

    Raises one of the exceptions in NOT_YET if the server does not respond.
    """
    return _get(port, host, "/_cluster/health").get("status") in ("green", "yellow")


def s3(port: int, host: str = HOST) -> bool:
    """Returns whether an HTTP server responds with a status below 500.

    Raises one of the exceptions in NOT_YET if the server does not respond.
    """
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_WITHIN_S)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    finally:
        connection.close()


def unreachable(addresses: Mapping[str, str]) -> list[str]:
    """Returns the text `<name> at <address>` for each server that is not ready within ANSWER_WITHIN_S seconds.

    `addresses` are host:port by the name of the server, which is a key of PROBES.
    """
    return [f"{name} at {address}" for name, address in addresses.items() if not _answers(name, address)]


def taken(port: int) -> bool:
    """Returns whether a program listens on this port of the loopback address."""
    try:
        _connect(port, HOST).close()
    except OSError:
        return False
    return True


def _answers(name: str, address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        return PROBES[name](int(port), host)
    except NOT_YET:
        return False


def _get(port: int, host: str, path: str) -> dict[str, object]:
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_WITHIN_S)
    try:
        connection.request("GET", path)
        found = json.loads(connection.getresponse().read(_MAX_ANSWER))
        return found if isinstance(found, dict) else {}
    finally:
        connection.close()


def _connect(port: int, host: str) -> socket.socket:
    return socket.create_connection((host, port), ANSWER_WITHIN_S)


def _exactly(connection: socket.socket, count: int) -> bytes:
    if not 0 <= count <= _MAX_ANSWER:
        raise ValueError("the response is longer than any valid one")
    found = b""
    while len(found) < count:
        part = connection.recv(count - len(found))
        if not part:
            raise ConnectionError("the connection was closed")
        found += part
    return found


def _short(text: bytes) -> bytes:
    return struct.pack(">H", len(text)) + text


def _send_cql(connection: socket.socket, opcode: int, body: bytes) -> None:
    connection.sendall(struct.pack(">BBhBi", 4, 0, 0, opcode, len(body)) + body)


def _cql_answer(connection: socket.socket) -> int:
    _version, _flags, _stream, opcode, length = struct.unpack(">BBhBi", _exactly(connection, 9))
    _exactly(connection, length)
    return int(opcode)


PROBES: Mapping[str, Callable[[int, str], bool]] = {
    "cassandra": cassandra,
    "redis": redis,
    "kafka": kafka,
    "opensearch": opensearch,
    "s3": s3,
}
