"""Tests which processes a mesh consists of."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost_cli.exit_codes import CommandError
from roost_cli.supervisor.topology import MAX_REPLICAS, process_specs, replicas_of
from services.catalog import SERVICES
from services.platform.config import Settings


def test_replicas_of_valid_list_returns_counts() -> None:
    assert replicas_of("") == {}
    assert replicas_of("timeline=3,fanout=2") == {"timeline": 3, "fanout": 2}


@pytest.mark.parametrize(
    "text", ["timeline", "timeline=0", f"timeline={MAX_REPLICAS + 1}", "nobody=2", "mesh=2", "timeline=x"]
)
def test_replicas_of_malformed_list_raises_command_error(text: str) -> None:
    with pytest.raises(CommandError, match="--replicas"):
        replicas_of(text)


def test_process_specs_start_with_registry_and_end_with_gateway(tmp_path: Path) -> None:
    settings = Settings(
        backend="cluster",
        data_dir=tmp_path,
        http_address="127.0.0.1:1",
        grpc_address="127.0.0.1:2",
        ops_address="127.0.0.1:3",
    )
    parts = process_specs(settings, {"timeline": 3})
    assert parts[0].name == "registry"
    assert parts[-1].name == "gateway"
    assert parts[-1].arguments[2:6] == ("--grpc", "127.0.0.1:2", "--http", "127.0.0.1:1")
    between = [part.name for part in parts[1:-1]]
    assert {name: between.count(name) for name in between} == {
        name: 3 if name == "timeline" else 1 for name in SERVICES if name != "registry"
    }
    # Only the gateway's ops port can be configured, because there is one gateway.
    assert [part.arguments[part.arguments.index("--ops") + 1] for part in parts] == [
        *["127.0.0.1:0"] * (len(parts) - 1),
        "127.0.0.1:3",
    ]
    # All processes share the secrets and the registry, but no data directory.
    assert len({part.environment["mesh_secret"] for part in parts}) == 1
    assert len({part.environment["registry_address"] for part in parts}) == 1
    assert len({part.arguments[-1] for part in parts}) == len(parts)
    assert {part.environment["backend"] for part in parts[1:]} == {"cluster"}
