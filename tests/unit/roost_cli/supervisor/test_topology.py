"""Tests which processes a mesh consists of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roost_cli.exit_codes import CommandError
from roost_cli.supervisor.groups import parse_groups, replica_groups, service_groups, with_replicas
from roost_cli.supervisor.shared_addresses import SharedAddresses
from roost_cli.supervisor.topology import Phase, Secrets, process_specs
from services.catalog import SERVICES
from services.platform.config import Settings

ADDRESSES = SharedAddresses("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:4", 7)
FRONT_AND_BACK = "back=fanout,search*3;front=gateway,timeline,tweet,graph,identity,engagement*2"


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(backend="cluster", data_dir=tmp_path, **changes)


def shared() -> Secrets:
    return Secrets("mesh" * 8, "operator" * 4)


def option(arguments: tuple[str, ...], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_process_specs_of_services_start_with_registry_and_end_with_gateway(tmp_path: Path) -> None:
    groups = with_replicas(service_groups(), {"timeline": 3})
    parts = process_specs(settings(tmp_path, ops_address="127.0.0.1:3"), groups, ADDRESSES, shared())
    assert parts[0].name == "registry"
    assert parts[-1].name == "gateway"
    assert parts[-1].arguments[2:6] == ("--grpc", "127.0.0.1:2", "--http", "127.0.0.1:1")
    between = [part.name for part in parts[1:-1]]
    assert {name: between.count(name) for name in between} == {
        name: 3 if name == "timeline" else 1 for name in SERVICES if name != "registry"
    }
    # Only the gateway's ops port can be configured, because there is one gateway.
    assert [option(part.arguments, "--ops") for part in parts] == [*["127.0.0.1:0"] * (len(parts) - 1), "127.0.0.1:3"]
    # All processes share the secrets and the registry, but no data directory.
    assert len({part.environment["mesh_secret"] for part in parts}) == 1
    assert {part.environment["registry_address"] for part in parts} == {"127.0.0.1:4"}
    assert option(parts[0].arguments, "--grpc") == "127.0.0.1:4"
    assert parts[0].environment["grpc_address_shared"] == "true"
    assert len({part.arguments[-1] for part in parts}) == len(parts)
    assert {part.environment["backend"] for part in parts[1:]} == {"cluster"}


def test_process_specs_of_replicas_are_equal_and_need_no_registry(tmp_path: Path) -> None:
    one, two = process_specs(settings(tmp_path), replica_groups("2"), ADDRESSES, shared())
    for number, part in enumerate((one, two), 1):
        assert part.label == f"roost-{number}"
        assert set(part.arguments[1 : part.arguments.index("--grpc")]) == {"gateway", *SERVICES} - {"registry"}
        assert "registry_address" not in part.environment
        # All accept connections from the socket of the supervisor, and share the gRPC address.
        assert (part.environment["inherited_listener_fd"], part.inherited) == ("7", (7,))
        assert part.environment["grpc_address_shared"] == "true"
        assert not part.has_fixed_address
    assert one.environment == two.environment


@pytest.mark.parametrize(
    ("text", "set_s", "expected"),
    [("2", None, "60.0"), ("2", 7.0, "7.0"), ("1", None, None)],
)
def test_process_specs_of_several_processes_get_a_longer_clock_margin(
    tmp_path: Path, text: str, set_s: float | None, expected: str | None
) -> None:
    chosen = settings(tmp_path) if set_s is None else settings(tmp_path, clock_margin_s=set_s)
    for part in process_specs(chosen, replica_groups(text), ADDRESSES, shared()):
        assert part.environment.get("clock_margin_s") == expected


def test_process_specs_of_groups_start_the_gateway_last(tmp_path: Path) -> None:
    parts = process_specs(settings(tmp_path), parse_groups(FRONT_AND_BACK), ADDRESSES, shared())
    assert [part.label for part in parts] == ["registry-1", "back-1", "back-2", "back-3", "front-1", "front-2"]
    assert [part.phase for part in parts] == [Phase.REGISTRY, *[Phase.SERVICES] * 3, *[Phase.GATEWAY] * 2]
    # Only the gateway processes get the addresses of the mesh.
    assert [option(part.arguments, "--grpc") for part in parts[1:]] == [*["127.0.0.1:0"] * 3, *["127.0.0.1:2"] * 2]
    assert [part.inherited for part in parts] == [*[()] * 4, *[(7,)] * 2]


def test_process_specs_of_several_gateways_with_ops_port_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"2 processes of roost cannot share the ops address .* leave --ops"):
        process_specs(settings(tmp_path, ops_address="127.0.0.1:9090"), replica_groups("2"), ADDRESSES, shared())


def test_process_specs_of_one_gateway_with_ops_port_restart_it_at_the_same_address(tmp_path: Path) -> None:
    parts = process_specs(settings(tmp_path, ops_address="127.0.0.1:9090"), service_groups(), ADDRESSES, shared())
    assert [part.name for part in parts if part.has_fixed_address] == ["registry", "gateway"]


def test_secrets_of_settings_are_kept_and_others_are_random(tmp_path: Path) -> None:
    given = Secrets.of(settings(tmp_path, mesh_secret="0123456789abcdef" * 2))
    assert given.mesh_secret == "0123456789abcdef" * 2
    assert given.operator_token != Secrets.of(settings(tmp_path)).operator_token
