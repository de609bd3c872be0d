"""Bounds the number of open HTTP connections, in total and per client address. Chooses which connection is evicted when
a new one needs its place."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Protocol

import structlog
from prometheus_client import Counter, Gauge

from services.platform import open_files
from services.platform.log_events import LogEvent
from services.platform.rpc.client_address import client_key

log = structlog.get_logger()

# A client address may have 1/8 of all connections, so that one client cannot use them all. Users behind one address
# (NAT) share this number.
ADDRESS_SHARE = 8
# Maximum number of connections that are open although a bound rejected them. A rejected connection can only request a
# probe or receive an error. Beyond the maximum, the oldest of them is closed.
MAX_REJECTED = 64
# Minimum number of seconds between two log lines about the same bound. The metric counts every event.
LOG_EVERY_S = 60.0

OPEN = Gauge("roost_http_connections", "HTTP connections that are open.")
BOUND_REACHED = Counter(
    "roost_http_connection_limit_reached",
    "HTTP connections closed (evicted) or refused (rejected) because a bound was reached.",
    ("bound", "action"),
)


class Stage(enum.Enum):
    """The stage of a connection. IDLE: it has no request. SENDING: the client is sending a request. WORKING: the
    gateway processes a request or sends its response."""

    IDLE = enum.auto()
    SENDING = enum.auto()
    WORKING = enum.auto()


class Connection(Protocol):
    """A connection that can be evicted."""

    def evict(self, stage: Stage) -> None:
        """Closes the connection. If `stage` is not IDLE, sends status 503 first, because the client is sending a
        request."""


class _EvictionQueue:
    """The connections that can be evicted: those whose stage is IDLE or SENDING. For each stage, they are in the order
    in which they reached it."""

    __slots__ = ("_by_stage",)

    def __init__(self) -> None:
        # A dict iterates in insertion order, and removes any key in O(1).
        self._by_stage: dict[Stage, dict[_Slot, None]] = {Stage.IDLE: {}, Stage.SENDING: {}}

    def add(self, slot: _Slot) -> None:
        if slot.stage is not Stage.WORKING:
            self._by_stage[slot.stage][slot] = None

    def remove(self, slot: _Slot) -> None:
        if slot.stage is not Stage.WORKING:
            self._by_stage[slot.stage].pop(slot, None)

    def first(self) -> _Slot | None:
        """Returns the connection to evict: the longest idle one, or if none is idle, the one that has been sending its
        request longest.

        Returns None if all are processing requests.
        """
        for slots in self._by_stage.values():
            for slot in slots:
                return slot
        return None


class _ClientConnections:
    """The open connections of one client address: their number, and the connections that can be evicted."""

    __slots__ = ("evictable", "open")

    def __init__(self) -> None:
        self.open = 0
        self.evictable = _EvictionQueue()


class _Slot:
    """An admitted connection with its stage. `client` is None, and `key` is "", if the number of connections from its
    address is not bounded."""

    __slots__ = ("client", "connection", "key", "stage")

    def __init__(self, connection: Connection, key: str, client: _ClientConnections | None) -> None:
        self.connection = connection
        self.key = key
        self.client = client
        self.stage = Stage.IDLE


def _trusts_none(address: str) -> bool:
    return False


class Connections:
    """Admits up to `max_total` connections in total, and up to `per_address` from each client address.

    Addresses for which `is_trusted` returns true, such as those of proxies, count only in the total. `per_address` is
    by default 1/ADDRESS_SHARE of `max_total`.

    At a bound, a new connection evicts the longest idle one, or if none is idle, the one that has been sending its
    request longest. At the bound of an address, only connections from this address can be evicted. If all are
    processing requests, the new connection is rejected.
    """

    def __init__(
        self, max_total: int, per_address: int | None = None, *, is_trusted: Callable[[str], bool] = _trusts_none
    ) -> None:
        self.max_total = max_total
        self.per_address = per_address or max(1, max_total // ADDRESS_SHARE)
        # True once the process drains. Each further response then closes its connection.
        self.draining = False
        self._is_trusted = is_trusted
        self._by_client: dict[str, _ClientConnections] = {}
        self._evictable = _EvictionQueue()
        self._slots: dict[Connection, _Slot] = {}
        self._rejected: dict[Connection, None] = {}
        self._logged_at: dict[str, float] = {}

    @classmethod
    def within_limits(cls, is_trusted: Callable[[str], bool] = _trusts_none) -> Connections:
        """Returns an object whose `max_total` is derived from this process's limit on open files, and logs its bounds.

        Leaves at least a quarter of the file descriptors for other uses.
        """
        files = open_files.limit()
        found = cls(open_files.http_connections(files), is_trusted=is_trusted)
        log.info(
            LogEvent.HTTP_BOUNDS_COMPUTED, connections=found.max_total, per_address=found.per_address, open_files=files
        )
        return found

    def admit(self, connection: Connection, address: str) -> bool:
        """Admits a new connection from the IP address `address` ("" if unknown), and evicts another connection if a
        bound is reached.

        Returns false if the new connection is rejected. The gateway then serves only the paths of probes on it.
        """
        bounded = bool(address) and not self._is_trusted(address)
        key = client_key(address) if bounded else ""
        client = self._by_client.get(key) if bounded else None
        if client is not None and client.open >= self.per_address:
            admitted = self._evict_one("address", client.evictable, address)
        else:
            admitted = len(self._slots) < self.max_total or self._evict_one("all", self._evictable, address)
        if not admitted:
            self._reject(connection)
            return False
        if bounded and (client := self._by_client.get(key)) is None:
            client = self._by_client[key] = _ClientConnections()
        slot = self._slots[connection] = _Slot(connection, key, client)
        self._evictable.add(slot)
        if client is not None:
            client.open += 1
            client.evictable.add(slot)
        OPEN.inc()
        return True

    def drain(self) -> None:
        """Makes every further response close its connection, with the header `connection: close`.

        Otherwise clients would go on to send requests to this process over keep-alive connections, although the load
        balancer no longer chooses it.
        """
        self.draining = True

    def set_stage(self, connection: Connection, stage: Stage) -> None:
        """Sets the stage of a connection. Does nothing if the connection is not admitted."""
        slot = self._slots.get(connection)
        if slot is None or slot.stage is stage:
            return
        for evictable in (self._evictable, slot.client.evictable) if slot.client is not None else (self._evictable,):
            evictable.remove(slot)
        slot.stage = stage
        for evictable in (self._evictable, slot.client.evictable) if slot.client is not None else (self._evictable,):
            evictable.add(slot)

    def remove(self, connection: Connection) -> None:
        """Removes a closed connection. Does nothing if the connection was neither admitted nor rejected, or is removed
        already."""
        self._rejected.pop(connection, None)
        slot = self._slots.pop(connection, None)
        if slot is None:
            return
        self._evictable.remove(slot)
        if (client := slot.client) is not None:
            client.evictable.remove(slot)
            client.open -= 1
            if client.open == 0:
                del self._by_client[slot.key]
        OPEN.dec()

    def _evict_one(self, bound: str, evictable: _EvictionQueue, address: str) -> bool:
        slot = evictable.first()
        self._report_bound(bound, "evicted" if slot is not None else "rejected", address)
        if slot is None:
            return False
        self.remove(slot.connection)
        slot.connection.evict(slot.stage)
        return True

    def _reject(self, connection: Connection) -> None:
        if len(self._rejected) >= MAX_REJECTED:
            first = next(iter(self._rejected))
            del self._rejected[first]
            first.evict(Stage.SENDING)
        self._rejected[connection] = None

    def _report_bound(self, bound: str, action: str, address: str) -> None:
        BOUND_REACHED.labels(bound, action).inc()
        now = time.monotonic()
        if now - self._logged_at.get(bound, -LOG_EVERY_S) >= LOG_EVERY_S:
            self._logged_at[bound] = now
            log.warning(
                LogEvent.HTTP_BOUND_REACHED,
                bound=bound,
                address=address,
                connections=len(self._slots),
                max_total=self.max_total,
                action=action,
            )
