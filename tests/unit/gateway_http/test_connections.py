"""Which connections are admitted, evicted and rejected."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from gateway_http import connections as module
from gateway_http.connections import Connections, Stage
from services.platform import open_files

ONE, TWO, THREE = "192.0.2.1", "192.0.2.2", "192.0.2.3"


class Fake:
    def __init__(self) -> None:
        self.evicted_in: Stage | None = None

    def evict(self, stage: Stage) -> None:
        self.evicted_in = stage


def admitted(connections: Connections, *addresses: str) -> list[Fake]:
    found = [Fake() for _ in addresses]
    for connection, address in zip(found, addresses, strict=True):
        assert connections.admit(connection, address)
    return found


def test_admit_at_address_bound_evicts_longest_idle_of_address() -> None:
    connections = Connections(10, 2)
    other, first, second = admitted(connections, TWO, ONE, ONE)
    connections.set_stage(first, Stage.WORKING)
    connections.set_stage(first, Stage.IDLE)
    (third,) = admitted(connections, ONE)
    assert [one.evicted_in for one in (other, first, second, third)] == [None, None, Stage.IDLE, None]


def test_admit_at_total_bound_evicts_longest_idle_of_any_address() -> None:
    connections = Connections(3, 3)
    first, second, third = admitted(connections, ONE, TWO, ONE)
    admitted(connections, THREE)
    assert [one.evicted_in for one in (first, second, third)] == [Stage.IDLE, None, None]


def test_admit_at_bound_evicts_sending_connection_only_without_idle() -> None:
    connections = Connections(2, 2)
    sending, idle = admitted(connections, ONE, TWO)
    connections.set_stage(sending, Stage.SENDING)
    admitted(connections, THREE)
    assert (sending.evicted_in, idle.evicted_in) == (None, Stage.IDLE)
    (worked_on,) = [one for one in connections._slots if one is not sending]
    connections.set_stage(worked_on, Stage.WORKING)
    admitted(connections, THREE)
    assert sending.evicted_in is Stage.SENDING


def test_admit_with_all_connections_working_rejects() -> None:
    connections = Connections(2, 1)
    for connection in admitted(connections, ONE, TWO):
        connections.set_stage(connection, Stage.WORKING)
    assert not connections.admit(Fake(), ONE)
    assert not connections.admit(Fake(), THREE)


def test_admit_bounds_rejected_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REJECTED", 2)
    connections = Connections(1)
    (working,) = admitted(connections, ONE)
    connections.set_stage(working, Stage.WORKING)
    rejected = [Fake() for _ in range(3)]
    assert not any(connections.admit(one, TWO) for one in rejected)
    assert [one.evicted_in for one in rejected] == [Stage.SENDING, None, None]
    connections.remove(rejected[1])
    connections.remove(working)
    assert connections.admit(Fake(), TWO)


def test_admit_trusted_or_unknown_address_is_unbounded() -> None:
    connections = Connections(10, 1, is_trusted=lambda address: address == ONE)
    assert all(one.evicted_in is None for one in admitted(connections, ONE, ONE, "", ""))
    first, _ = admitted(connections, TWO, TWO)
    assert first.evicted_in is Stage.IDLE


def test_admit_counts_ipv6_network_as_one_address() -> None:
    connections = Connections(10, 1)
    first, _ = admitted(connections, "2001:db8::1", "2001:db8::2")
    assert first.evicted_in is Stage.IDLE


def test_remove_frees_capacity() -> None:
    connections = Connections(1)
    (first,) = admitted(connections, ONE)
    connections.remove(first)
    connections.remove(first)
    connections.set_stage(first, Stage.WORKING)
    (second,) = admitted(connections, ONE)
    assert (first.evicted_in, second.evicted_in) == (None, None)
    connections.remove(second)
    assert not connections._by_client


def test_bounds_are_logged_once_per_minute() -> None:
    with capture_logs() as logs:
        connections = Connections.within_limits()
        bounded = Connections(1)
        admitted(bounded, ONE, ONE, ONE)
    assert logs[0]["connections"] == connections.max_total == open_files.http_connections(open_files.limit())
    assert [(one["event"], one["bound"], one["action"]) for one in logs[1:]] == [
        ("http_bound.reached", "address", "evicted")
    ]
