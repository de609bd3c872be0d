"""Parses the setting `redis_url`, a URL of a single server, of the Sentinels of a master, or of a Redis Cluster.

`redis://[user:password@]host:port/db` (`rediss://` with TLS, `unix:///path?db=0`),
`redis+sentinel://[user:password@]host:port,host:port/master/db`, `redis+cluster://[user:password@]host:port,host:port`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import Redis as Client
from redis.asyncio import RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.platform.redis.connection import Endpoint
from services.platform.rpc import errors

Kind = Literal["single", "sentinel", "cluster"]
REDIS_PORT, SENTINEL_PORT = 6379, 26379
# Maximum number of connections per server of the redis-py client, which reads the slot map of a cluster. The client
# needs one connection; beyond the maximum a command fails with redis-py's error.
MAX_CONNECTIONS = 64

_KINDS: dict[str, tuple[Kind, bool]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("single", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}


@dataclass(frozen=True, slots=True)
class RedisTopology:
    """The parsed setting `redis_url`. `hosts` are the (host, port) pairs in the URL: the server, the Sentinels, or some
    nodes of the cluster. `master` is the name of the Sentinel group, "" if there is none. `server` has the credentials,
    which are the same for all servers, and the address of a single server."""

    kind: Kind
    hosts: tuple[tuple[str, int], ...]
    master: str
    server: Endpoint

    @classmethod
    def parse(cls, url: str) -> RedisTopology:
        """Parses a URL. Raises FAILED_PRECONDITION if it is invalid; the message does not contain the password."""
        try:
            return _parse(url)
        except ValueError as error:
            raise errors.failed_precondition(
                f"the setting `redis_url` is invalid ({error}): write redis://host:port/db, "
                "redis+sentinel://host:port,host:port/master/db or redis+cluster://host:port,host:port"
            ) from error

    def __str__(self) -> str:
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return self.server.path or (f"{self.master} at the Sentinels {hosts}" if self.master else hosts)

    def client(self, timeout_s: float) -> Client | RedisCluster:
        """Returns a redis-py client that limits connecting and each command to `timeout_s` seconds. With redis-py's
        default settings it would retry for a minute."""
        known: dict[str, Any] = {
            "username": self.server.username or None,
            "password": self.server.password or None,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "max_connections": MAX_CONNECTIONS,
            "protocol": 2,
        }
        # A command is retried once, because a client notices only at the next command that the server closed an idle
        # connection.
        known["retry"] = Retry(NoBackoff(), 1)
        if self.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in self.hosts]
            return RedisCluster(startup_nodes=nodes, ssl=self.server.tls, **known)
        known["db"] = self.server.db
        if self.kind == "sentinel":
            client: Client = self.sentinel(timeout_s).master_for(self.master, ssl=self.server.tls, **known)
            return client
        if self.server.path:
            return Client(unix_socket_path=self.server.path, **known)
        return Client(host=self.server.host, port=self.server.port, ssl=self.server.tls, **known)

    def sentinel(self, timeout_s: float) -> Any:
        """Returns redis-py's Sentinel client, which discovers the master. `timeout_s` limits connecting and each
        command, in seconds."""
        bounds: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "protocol": 2}
        no_retry = bounds | {"retry": Retry(NoBackoff(), 0)}
        return Sentinel(list(self.hosts), sentinel_kwargs=no_retry)  # type: ignore[no-untyped-call]

    def has_database_of(self, other: RedisTopology) -> bool:
        """Returns whether both URLs name the same database of the same servers."""
        return (self.hosts, self.server.path, self.server.db) == (other.hosts, other.server.path, other.server.db)

    def at(self, host: str, port: int) -> Endpoint:
        """Returns the endpoint at this address, with the credentials of the URL."""
        return replace(self.server, host=host, port=port)


def _parse(url: str) -> RedisTopology:
    parts = urlsplit(url)
    if parts.scheme not in _KINDS:
        raise ValueError(f"unknown scheme {parts.scheme!r}")
    kind, tls = _KINDS[parts.scheme]
    login, _, where = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    entry = Endpoint(username=unquote(username), password=unquote(password), tls=tls)
    steps = [unquote(step) for step in parts.path.split("/") if step]
    if parts.scheme == "unix":
        db = parse_qs(parts.query).get("db", ["0"])[0]
        return RedisTopology("single", (), "", replace(entry, path=unquote(parts.path), db=_number(db)))
    hosts = tuple(_host(text, SENTINEL_PORT if kind == "sentinel" else REDIS_PORT) for text in where.split(","))
    if kind == "single" and len(hosts) > 1:
        raise ValueError("several servers need +sentinel or +cluster in the scheme")
    master = steps.pop(0) if kind == "sentinel" and steps else ""
    if kind == "sentinel" and not master:
        raise ValueError("the name of the master is missing")
    if len(steps) > 1 or (kind == "cluster" and steps and _number(steps[0])):
        raise ValueError("the path after the servers is not a database number")
    host, port = hosts[0]
    return RedisTopology(
        kind, hosts, master, replace(entry, host=host, port=port, db=_number(steps[0]) if steps else 0)
    )


def _host(text: str, port: int) -> tuple[str, int]:
    name = urlsplit(f"//{text}")
    if not name.hostname:
        raise ValueError("a server has no host name")
    return name.hostname, name.port or port


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"database {text!r} is not a number")
    return int(text)
