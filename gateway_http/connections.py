"""The connections that are open, their bounds per address and in all, and which of them gives way to a new one."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Protocol

import structlog
from prometheus_client import Counter, Gauge

from services.platform import open_files
from services.platform.rpc.client_address import client_key

log = structlog.get_logger()

# The part of all connections that one address may have. People behind one address share it; idle ones give way first.
ADDRESS_SHARE = 8
# Connections beyond the bounds that are open at once, each only to be told so, or to have a probe answered.
MAX_TURNED_AWAY = 64
# How often the log says that a bound was reached; the counter has every one.
LOG_EVERY_S = 60.0

OPEN = Gauge("roost_http_connections", "HTTP connections that are open.")
CROWDED = Counter(
    "roost_http_connections_crowded",
    "HTTP connections closed or refused because a bound was reached.",
    ("bound", "what"),
)


class Stage(enum.Enum):
    """What a connection does: nothing, sending a request, or having one worked on or answered."""

    IDLE = enum.auto()
    SENDING = enum.auto()
    WORKING = enum.auto()


class Connection(Protocol):
    """What can be asked of a connection."""

    def give_way(self, stage: Stage) -> None:
        """Closes, at once if the connection is idle, or after a refusal of what it sends."""


class _Waiting:
    """Places of connections which wait for their clients, the longest waiting first."""

    __slots__ = ("_by_stage",)

    def __init__(self) -> None:
        # A dict keeps the order in which its keys came.
        self._by_stage: dict[Stage, dict[_Place, None]] = {Stage.IDLE: {}, Stage.SENDING: {}}

    def add(self, place: _Place) -> None:
        if place.stage is not Stage.WORKING:
            self._by_stage[place.stage][place] = None

    def remove(self, place: _Place) -> None:
        if place.stage is not Stage.WORKING:
            self._by_stage[place.stage].pop(place, None)

    def first(self) -> _Place | None:
        """The one that loses least by its end: idle for the longest time, or else sending for the longest time."""
        for places in self._by_stage.values():
            for place in places:
                return place
        return None


class _Client:
    """The connections of one address that is bounded."""

    __slots__ = ("open", "waiting")

    def __init__(self) -> None:
        self.open = 0
        self.waiting = _Waiting()


class _Place:
    """One connection among the others."""

    __slots__ = ("client", "connection", "key", "stage")

    def __init__(self, connection: Connection, key: str, client: _Client | None) -> None:
        self.connection = connection
        self.key = key
        self.client = client
        self.stage = Stage.IDLE


def _nobody(address: str) -> bool:
    return False


class Connections:
    """Admits connections up to `most` in all, and `per_address` of each address that `is_trusted` does not name.

    At a bound the connection that has been idle for the longest time gives way to the new one; if none is idle, the one that has been
    sending for the longest time; of the new one's own address if it is the address's bound. If all are worked on, the new one is turned
    away.
    """

    def __init__(
        self, most: int, per_address: int | None = None, *, is_trusted: Callable[[str], bool] = _nobody
    ) -> None:
        self.most = most
        self.per_address = per_address or max(1, most // ADDRESS_SHARE)
        # Whether each answer is its connection's last.
        self.draining = False
        self._is_trusted = is_trusted
        self._clients: dict[str, _Client] = {}
        self._waiting = _Waiting()
        self._places: dict[Connection, _Place] = {}
        self._turned_away: dict[Connection, None] = {}
        self._told: dict[str, float] = {}

    @classmethod
    def within_limits(cls, is_trusted: Callable[[str], bool] = _nobody) -> Connections:
        """Returns bounds that leave this process enough descriptors for all else, and writes them to the log."""
        files = open_files.limit()
        found = cls(open_files.http_connections(files), is_trusted=is_trusted)
        log.info("http.bounds", connections=found.most, per_address=found.per_address, open_files=files)
        return found

    def admit(self, connection: Connection, address: str) -> bool:
        """Takes a new connection; False if it is turned away: it may ask for a probe, and is refused anything else."""
        bounded = bool(address) and not self._is_trusted(address)
        key = client_key(address) if bounded else ""
        client = self._clients.get(key) if bounded else None
        if client is not None and client.open >= self.per_address:
            admitted = self._make_room("address", client.waiting, address)
        else:
            admitted = len(self._places) < self.most or self._make_room("all", self._waiting, address)
        if not admitted:
            self._turn_away(connection)
            return False
        if bounded and (client := self._clients.get(key)) is None:
            client = self._clients[key] = _Client()
        place = self._places[connection] = _Place(connection, key, client)
        self._waiting.add(place)
        if client is not None:
            client.open += 1
            client.waiting.add(place)
        OPEN.inc()
        return True

    def drain(self) -> None:
        """Makes each answer from now on its connection's last, as its `connection: close` says: clients that keep a connection would
        otherwise never see that a load balancer sends new ones elsewhere.
        """
        self.draining = True

    def move(self, connection: Connection, stage: Stage) -> None:
        """Says what a connection does from now on; nothing if it is not admitted, or no longer."""
        place = self._places.get(connection)
        if place is None or place.stage is stage:
            return
        for waiting in (self._waiting, place.client.waiting) if place.client is not None else (self._waiting,):
            waiting.remove(place)
        place.stage = stage
        for waiting in (self._waiting, place.client.waiting) if place.client is not None else (self._waiting,):
            waiting.add(place)

    def leave(self, connection: Connection) -> None:
        """Forgets a connection; nothing if it is not known."""
        self._turned_away.pop(connection, None)
        place = self._places.pop(connection, None)
        if place is None:
            return
        self._waiting.remove(place)
        if (client := place.client) is not None:
            client.waiting.remove(place)
            client.open -= 1
            if client.open == 0:
                del self._clients[place.key]
        OPEN.dec()

    def _make_room(self, bound: str, waiting: _Waiting, address: str) -> bool:
        place = waiting.first()
        self._tell(bound, "closed" if place is not None else "refused", address)
        if place is None:
            return False
        self.leave(place.connection)
        place.connection.give_way(place.stage)
        return True

    def _turn_away(self, connection: Connection) -> None:
        if len(self._turned_away) >= MAX_TURNED_AWAY:
            first = next(iter(self._turned_away))
            del self._turned_away[first]
            first.give_way(Stage.SENDING)
        self._turned_away[connection] = None

    def _tell(self, bound: str, what: str, address: str) -> None:
        CROWDED.labels(bound, what).inc()
        now = time.monotonic()
        if now - self._told.get(bound, -LOG_EVERY_S) >= LOG_EVERY_S:
            self._told[bound] = now
            log.warning(
                "http.crowded", bound=bound, address=address, connections=len(self._places), most=self.most, what=what
            )
