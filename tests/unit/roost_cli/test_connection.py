"""Tests which mesh a command uses, and its error if the choice is not clear."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost_cli import connection, runfile
from roost_cli.connection import MeshTarget
from roost_cli.exit_codes import CommandError


def running(directory: Path, *addresses: str, data: str = "", checkout: str = "") -> None:
    for address in addresses:
        run = runfile.RunFile(address, "", os.getpid(), 0.0, f"token of {address}", data, checkout)
        runfile.write(run, directory)


def test_find_single_mesh_is_used(tmp_path: Path) -> None:
    running(tmp_path, "127.0.0.1:50051")
    assert connection.find(None, tmp_path) == MeshTarget("127.0.0.1:50051", "token of 127.0.0.1:50051")


def test_find_without_mesh_error_names_start_command(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="roost up"):
        connection.find(None, tmp_path)


def test_find_several_meshes_are_listed(tmp_path: Path) -> None:
    running(tmp_path, "127.0.0.1:50051", "127.0.0.1:50052")
    with pytest.raises(CommandError, match=r"(?s)--grpc 127\.0\.0\.1:50051.*--grpc 127\.0\.0\.1:50052"):
        connection.find(None, tmp_path)


def test_find_uses_address_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running(tmp_path, "127.0.0.1:50051", "127.0.0.1:50052")
    monkeypatch.setenv("ROOST_GRPC_ADDRESS", "127.0.0.1:50052")
    assert connection.find(None, tmp_path) == MeshTarget("127.0.0.1:50052", "token of 127.0.0.1:50052")
    assert connection.find("127.0.0.1:50051", tmp_path) == MeshTarget("127.0.0.1:50051", "token of 127.0.0.1:50051")


def test_find_several_prefers_data_dir_then_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running(tmp_path, "127.0.0.1:50051", data="/srv/other/data", checkout="/srv/other")
    running(tmp_path, "127.0.0.1:50052", data=str(tmp_path / "mine"), checkout=str(runfile.CHECKOUT))
    assert connection.find(None, tmp_path).address == "127.0.0.1:50052"
    # The processes of `up --processes` use subdirectories of the data directory.
    running(tmp_path, "127.0.0.1:50053", data=str(tmp_path / "others" / "processes" / "gateway-1"))
    monkeypatch.setenv("ROOST_DATA_DIR", str(tmp_path / "others"))
    assert connection.find(None, tmp_path).address == "127.0.0.1:50053"


def test_find_two_in_checkout_raises_command_error(tmp_path: Path) -> None:
    running(tmp_path, "127.0.0.1:50051", "127.0.0.1:50052", checkout=str(runfile.CHECKOUT), data="/srv/data")
    with pytest.raises(CommandError, match=r"--grpc 127\.0\.0\.1:50051   \(process \d+, data in /srv/data\)"):
        connection.find(None, tmp_path)


def test_find_invalid_setting_raises_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_TIMELINE_MODE", "sideways")
    with pytest.raises(CommandError, match=r"the setting timeline_mode \(ROOST_TIMELINE_MODE\) must be 'hybrid'"):
        connection.find(None, tmp_path)


@pytest.mark.parametrize("spelling", ["127.0.0.1:50051", "localhost:50051", "[::1]:50051", "0.0.0.0:50051"])
def test_find_any_local_host_name_finds_credentials(tmp_path: Path, spelling: str) -> None:
    running(tmp_path, "127.0.0.1:50051", "127.0.0.1:50052")
    assert connection.find(spelling, tmp_path) == MeshTarget(spelling, "token of 127.0.0.1:50051")


@pytest.mark.parametrize("other", ["127.0.0.1:50053", "mesh.example:50051"])
def test_find_other_address_gets_no_credentials(tmp_path: Path, other: str) -> None:
    running(tmp_path, "127.0.0.1:50051")
    found = connection.find(other, tmp_path)
    assert found == MeshTarget(other, "")
    with pytest.raises(CommandError, match="no operator credentials"):
        found.operator()


@pytest.mark.parametrize("address", ["localhost", "localhost:", "localhost:x", "localhost:0", "localhost:65536"])
def test_find_address_without_port_raises_command_error(tmp_path: Path, address: str) -> None:
    with pytest.raises(CommandError, match="HOST:PORT"):
        connection.find(address, tmp_path)


async def test_connect_no_server_raises_command_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 0.2)
    with pytest.raises(CommandError, match=r"no mesh answers at 127\.0\.0\.1:1"):
        async with connection.connect(MeshTarget("127.0.0.1:1")):
            pass


async def test_connect_timeout_inside_block_is_not_converted(fake_mesh: MeshTarget) -> None:
    with pytest.raises(TimeoutError, match="mine"):
        async with connection.connect(fake_mesh):
            raise TimeoutError("mine")


async def test_connect_channels_use_separate_connections(fake_mesh: MeshTarget) -> None:
    async with connection.connect(fake_mesh, 3) as channels:
        assert len(set(channels)) == 3


def test_find_without_run_file_uses_token_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "6a3f0c9be1d24875b0a9c3d2e1f40718"
    monkeypatch.setenv("ROOST_OPERATOR_TOKEN", token)
    assert connection.find("tweet.example.org:50051", tmp_path).operator() == connection.bearer(token)
    monkeypatch.setenv("ROOST_GRPC_ADDRESS", "tweet.example.org:50051")
    assert connection.find(None, tmp_path).operator() == connection.bearer(token)
    # The token in the run file belongs to this mesh and takes precedence.
    running(tmp_path, "127.0.0.1:50051")
    assert connection.find("127.0.0.1:50051", tmp_path).operator_token == "token of 127.0.0.1:50051"
