"""Tests `roost topology`: who calls whom, derived from the contract, and in which way."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from roost.registry.v1 import registry_service_pb2

from roost_cli import runfile
from roost_cli.commands import run
from roost_cli.supervisor.groups import MEMBERS, Group, notation, parse_groups, replica_groups, service_groups
from roost_cli.topology import Way, callees_of_member, calls_of, groups_of_instances, processes_of_instances

FRONT_AND_BACK = "front=gateway,timeline,tweet,graph,identity,engagement*4;back=fanout,search"


def ways(groups: str, static: frozenset[str] = frozenset()) -> dict[tuple[str, str], Way]:
    """Returns the way of each call, by caller and callee."""
    return {
        (row.caller, callee): way
        for row in calls_of(parse_groups(groups), static)
        for way, callees in row.callees.items()
        for callee in callees
    }


def test_callees_follow_the_contract() -> None:
    assert callees_of_member("gateway") == set(MEMBERS) - {"gateway"}
    # Fan-out reads followers of graph and appends to home timelines; it calls no search.
    assert {"graph", "timeline"} <= callees_of_member("fanout")
    assert "search" not in callees_of_member("fanout")
    assert all(member not in callees_of_member(member) for member in MEMBERS)


def test_calls_stay_in_process_only_within_a_group() -> None:
    found = ways(FRONT_AND_BACK)
    assert found["timeline", "tweet"] is Way.LOCAL
    assert found["gateway", "timeline"] is Way.LOCAL
    assert found["gateway", "search"] is Way.REGISTRY
    assert found["fanout", "timeline"] is Way.REGISTRY


def test_calls_of_replicas_are_all_in_process_and_of_services_all_over_grpc() -> None:
    replicas = ways(notation(replica_groups("2")))
    services = ways(notation(service_groups()))
    assert set(replicas.values()) == {Way.LOCAL}
    assert set(services.values()) == {Way.REGISTRY}
    # The shape changes the ways of the calls, and not the calls.
    assert replicas.keys() == services.keys()


def test_static_address_has_priority_over_the_registry_and_not_over_the_process() -> None:
    found = ways(FRONT_AND_BACK, frozenset({"timeline", "tweet"}))
    assert found["fanout", "timeline"] is Way.STATIC
    assert found["timeline", "tweet"] is Way.LOCAL


def test_calls_to_service_in_no_group_are_not_found() -> None:
    groups = parse_groups("roost=gateway,tweet", complete=False)
    (gateway, _) = calls_of(groups, ())
    assert gateway.callees[Way.LOCAL] == ["tweet"]
    assert "timeline" in gateway.callees[Way.UNKNOWN]


def test_groups_of_instances_join_processes_with_the_same_services() -> None:
    def instance(service: str, port: int) -> registry_service_pb2.Instance:
        return registry_service_pb2.Instance(service=service, address=f"127.0.0.1:{port}")

    instances = [instance(name, port) for name in ("search", "fanout") for port in (1, 2)]
    instances += [instance("tweet", 3), instance("registry", 4)]
    assert groups_of_instances(instances, {"gateway", "tweet"}) == [Group("fanout", ("fanout", "search"), 2)]
    assert [(p.label, p.grpc, p.pid) for p in processes_of_instances(instances, {"gateway", "tweet"})] == [
        ("fanout,search", "127.0.0.1:1", 0),
        ("fanout,search", "127.0.0.1:2", 0),
        ("registry", "127.0.0.1:4", 0),
    ]


def test_topology_of_given_groups_prints_a_row_for_each_service(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topology", "--groups", FRONT_AND_BACK]) == 0
    shown = capsys.readouterr().out
    for word in ("front", "back", *MEMBERS, "in process", "gRPC via"):
        assert word in shown
    assert "not found" not in shown


def test_topology_of_running_mesh_is_read_from_its_run_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    groups = notation(replica_groups("3"))
    runfile.write(runfile.RunFile("127.0.0.1:1", "", os.getpid(), time.time(), "token", groups=groups))
    assert run(["topology"]) == 0
    shown = capsys.readouterr().out
    assert "in process" in shown
    assert "gRPC via" not in shown
    assert " 3 " in shown
    assert f"│ {os.getpid()} │ 127.0.0.1:1 │" in shown


def test_topology_without_mesh_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert run(["topology"]) == 2
    assert "no mesh runs here: start one" in capsys.readouterr().err


def test_topology_of_malformed_groups_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topology", "--groups", "front=gateway"]) == 2
    assert "in no group; add each to one group" in capsys.readouterr().err
