"""The Redis client. Redis may lose any key at any time; callers must detect that a value is incomplete.

Commands use Roost's own connections (`connection.py`). redis-py only reads the slot map of a cluster and asks the
Sentinels for the master. The setting `redis_timeout_s` limits the time of every command: if Redis does not answer
within it, callers continue without Redis.
"""

from __future__ import annotations

import asyncio
import binascii
import time
from typing import Any, Self

import structlog
from redis.asyncio import Redis as Client
from redis.asyncio import RedisCluster
from redis.exceptions import RedisClusterException, RedisError

from services.platform.config import Settings
from services.platform.log_events import LogEvent
from services.platform.redis.connection import Endpoint, RedisConnection, ReplyError, connect, unreachable
from services.platform.redis.node_pool import Node
from services.platform.redis.server_checks import check
from services.platform.redis.url import RedisTopology
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# Number of hash slots of every Redis Cluster.
SLOTS = 16_384
# Seconds between two requests to the Sentinels for the address of the master. After a fail-over, a process may still
# read from the demoted master for up to this time.
SENTINEL_POLL_INTERVAL_S = 1.0
# Minimum number of seconds between two reloads of a cluster's slot map, which says which node holds which keys. More
# replies in this time that call the slot map outdated cause no reload.
SLOT_REFRESH_INTERVAL_S = 1.0

# RedisClusterException is not a subclass of RedisError.
_CLIENT_ERRORS = (RedisError, RedisClusterException, OSError)

log = structlog.get_logger(__name__)


class Redis:
    """The connections of one process to Redis: a single server, the master of a Sentinel group, or a cluster."""

    def __init__(self, topology: RedisTopology, client: Client | RedisCluster, timeout_s: float) -> None:
        self.client = client
        self.timeout_s = timeout_s
        self._topology = topology
        self._nodes: dict[tuple[str, int], Node] = {}
        self._sentinel: Any = topology.sentinel(timeout_s) if topology.kind == "sentinel" else None
        self._master: tuple[str, int] | None = None
        self._sentinel_task: asyncio.Task[None] | None = None
        self._slot_refresh: asyncio.Task[None] | None = None
        self._slots_refreshed_at = 0.0
        self._single = Node(str(topology), self._connect_to_master, time.monotonic)

    @classmethod
    async def open(cls, settings: Settings) -> Self:
        """Connects and checks the servers. Raises UNAVAILABLE if Redis cannot be reached, FAILED_PRECONDITION if a
        server's version or eviction policy could cause wrong results."""
        topology = RedisTopology.parse(settings.redis_url)
        redis = cls(topology, topology.client(settings.redis_timeout_s), settings.redis_timeout_s)
        try:
            await redis._start()
        except (errors.RoostError, *_CLIENT_ERRORS) as error:
            await redis.close()
            if isinstance(error, errors.RoostError) and error.reason != Reason.CACHE_UNAVAILABLE:
                raise
            raise errors.unavailable(
                f"Redis ({topology}) cannot be reached: start it (`scripts/backends up`) or correct the setting `redis_url`"
            ) from error
        return redis

    @property
    def clustered(self) -> bool:
        """True if Redis is a cluster, which spreads keys over several nodes. In a cluster, all keys of one transaction
        must be in one slot."""
        return self._topology.kind == "cluster"

    def node(self, tag: str) -> Node:
        """Returns the server that holds the key `tag` and all keys with the hash tag `{tag}`. Raises UNAVAILABLE if a
        cluster has no node for their slot."""
        if not self.clustered:
            return self._single
        return self._node_of_slot(binascii.crc_hqx(tag.encode(), 0) % SLOTS)

    def nodes(self) -> list[Node]:
        """Returns all servers that hold keys."""
        if not self.clustered:
            return [self._single]
        addresses = {_address(nodes[0]) for nodes in self._slots().values() if nodes}
        return [self._node_at(*address) for address in sorted(addresses)]

    def refusal(self, reply: ReplyError) -> errors.RoostError:
        """Returns UNAVAILABLE, reason CACHE_UNAVAILABLE, for a command that the server rejected with `reply`. If the
        reply says that the keys or the role of master have moved to another server, calls `rediscover`."""
        if str(reply).startswith(("MOVED", "ASK", "CLUSTERDOWN", "TRYAGAIN", "READONLY")):
            self.rediscover()
        refused = unreachable()
        refused.__cause__ = reply
        return refused

    def rediscover(self) -> None:
        """Makes later commands go to the current masters. In a cluster, reloads the slot map in a background task, at
        most every SLOT_REFRESH_INTERVAL_S seconds; otherwise closes the connections, so that the next command connects
        to the current master."""
        if (
            self.clustered
            and self._slot_refresh is None
            and time.monotonic() > self._slots_refreshed_at + SLOT_REFRESH_INTERVAL_S
        ):
            self._slot_refresh = asyncio.create_task(self._refresh(), name="redis-slots")
        elif not self.clustered:
            self._single.drop()

    async def close(self) -> None:
        """Closes all connections."""
        for task in (self._sentinel_task, self._slot_refresh):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for node in (self._single, *self._nodes.values()):
            node.drop()
        await self.client.aclose()
        if self._sentinel is not None:
            await asyncio.gather(*(each.aclose() for each in self._sentinel.sentinels), return_exceptions=True)

    async def _start(self) -> None:
        if isinstance(self.client, RedisCluster):
            await self.client.initialize()
        for node in self.nodes():
            await check(await node.reads(), node.name)
        if self._sentinel is not None:
            self._sentinel_task = asyncio.create_task(self._watch(), name="redis-sentinels")

    async def _connect_to_master(self) -> RedisConnection:
        if self._sentinel is None:
            return await connect(self._topology.server, self.timeout_s)
        return await connect(self._topology.at(*await self._discover_master()), self.timeout_s)

    async def _discover_master(self) -> tuple[str, int]:
        try:
            host, port = await self._sentinel.discover_master(self._topology.master)
        except _CLIENT_ERRORS as error:
            raise unreachable() from error
        return str(host), int(port)

    async def _watch(self) -> None:
        """Asks the Sentinels for the master every SENTINEL_POLL_INTERVAL_S seconds. If the master has changed, closes
        the connections to the demoted one, which may still answer with old values."""
        while True:
            await asyncio.sleep(SENTINEL_POLL_INTERVAL_S)
            try:
                master = await self._discover_master()
            except errors.RoostError:
                continue
            if self._master is not None and master != self._master:
                log.warning(LogEvent.REDIS_MASTER_CHANGED, host=master[0], port=master[1])
                self._single.drop()
            self._master = master

    def _slots(self) -> dict[int, list[Any]]:
        assert isinstance(self.client, RedisCluster), "only a cluster has slots"
        return self.client.nodes_manager.slots_cache

    def _node_of_slot(self, slot: int) -> Node:
        nodes = self._slots().get(slot)
        if not nodes:
            self.rediscover()
            raise unreachable()
        return self._node_at(*_address(nodes[0]))

    def _node_at(self, host: str, port: int) -> Node:
        known = self._nodes.get((host, port))
        if known is None:
            endpoint = self._topology.at(host, port)
            known = Node(f"{host}:{port}", lambda: self._connect_to_node(endpoint), time.monotonic)
            self._nodes[host, port] = known
        return known

    async def _connect_to_node(self, endpoint: Endpoint) -> RedisConnection:
        try:
            return await connect(endpoint, self.timeout_s)
        except errors.RoostError:
            self.rediscover()
            raise

    async def _refresh(self) -> None:
        assert isinstance(self.client, RedisCluster), "only a cluster has a map"
        try:
            await self.client.nodes_manager.initialize()
        except _CLIENT_ERRORS as error:
            log.warning(LogEvent.REDIS_SLOT_REFRESH_FAILED, error=repr(error))
        self._slots_refreshed_at = time.monotonic()
        self._slot_refresh = None


def _address(node: Any) -> tuple[str, int]:
    return str(node.host), int(node.port)
