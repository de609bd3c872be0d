"""Commands find the mesh that is meant, or say what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost_cli import connection, runfile
from roost_cli.connection import Target
from roost_cli.exit_codes import CommandError


def running(directory: Path, *addresses: str, data: str = "", checkout: str = "") -> None:
    for address in addresses:
        run = runfile.RunFile(address, "", os.getpid(), 0.0, f"token of {address}", data, checkout)
        runfile.write(run, directory)


def test_the_only_mesh_is_meant(tmp_path: Path) -> None:
    running(tmp_path, "127.0.0.1:50051")
    assert connection.find(None, tmp_path) == Target("127.0.0.1:50051", "token of 127.0.0.1:50051")


def test_none_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="roost up"):
        connection.find(None, tmp_path)


def test_several_are_listed(tmp_path: Path) -> None:
    running(tmp_path, "127.0.0.1:50051", "127.0.0.1:50052")
    with pytest.raises(CommandError, match=r"(?s)--grpc 127\.0\.0\.1:50051.*--grpc 127\.0\.0\.1:50052"):
        connection.find(None, tmp_path)


def test_find_with_the_address_set_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running(tmp_path, "127.0.0.1:50051", "127.0.0.1:50052")
    monkeypatch.setenv("ROOST_GRPC", "127.0.0.1:50052")
    assert connection.find(None, tmp_path) == Target("127.0.0.1:50052", "token of 127.0.0.1:50052")
    assert connection.find("127.0.0.1:50051", tmp_path) == Target("127.0.0.1:50051", "token of 127.0.0.1:50051")


def test_find_of_several_prefers_the_data_folder_then_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(tmp_path, "127.0.0.1:50051", data="/srv/other/data", checkout="/srv/other")
    running(tmp_path, "127.0.0.1:50052", data=str(tmp_path / "mine"), checkout=str(runfile.CHECKOUT))
    assert connection.find(None, tmp_path).address == "127.0.0.1:50052"
    # Each process of a mesh of many keeps its data in a folder below.
    running(tmp_path, "127.0.0.1:50053", data=str(tmp_path / "others" / "processes" / "gateway-1"))
    monkeypatch.setenv("ROOST_DATA_DIR", str(tmp_path / "others"))
    assert connection.find(None, tmp_path).address == "127.0.0.1:50053"


def test_find_of_two_in_this_checkout_asks_which(tmp_path: Path) -> None:
    running(tmp_path, "127.0.0.1:50051", "127.0.0.1:50052", checkout=str(runfile.CHECKOUT), data="/srv/data")
    with pytest.raises(CommandError, match=r"--grpc 127\.0\.0\.1:50051   \(process \d+, data in /srv/data\)"):
        connection.find(None, tmp_path)


def test_find_with_a_setting_that_does_not_fit_says_so_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOST_TIMELINE_MODE", "sideways")
    with pytest.raises(CommandError, match=r"the setting timeline_mode \(ROOST_TIMELINE_MODE\) must be 'hybrid'"):
        connection.find(None, tmp_path)


@pytest.mark.parametrize("spelling", ["127.0.0.1:50051", "localhost:50051", "[::1]:50051", "0.0.0.0:50051"])
def test_every_spelling_of_this_machine_finds_the_credentials(tmp_path: Path, spelling: str) -> None:
    running(tmp_path, "127.0.0.1:50051", "127.0.0.1:50052")
    assert connection.find(spelling, tmp_path) == Target(spelling, "token of 127.0.0.1:50051")


@pytest.mark.parametrize("other", ["127.0.0.1:50053", "mesh.example:50051"])
def test_another_mesh_gets_no_credentials(tmp_path: Path, other: str) -> None:
    running(tmp_path, "127.0.0.1:50051")
    found = connection.find(other, tmp_path)
    assert found == Target(other, "")
    with pytest.raises(CommandError, match="no operator credentials"):
        found.operator()


@pytest.mark.parametrize("address", ["localhost", "localhost:", "localhost:x", "localhost:0", "localhost:65536"])
def test_an_address_has_a_port(tmp_path: Path, address: str) -> None:
    with pytest.raises(CommandError, match="HOST:PORT"):
        connection.find(address, tmp_path)


async def test_where_nobody_answers_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 0.2)
    with pytest.raises(CommandError, match=r"no mesh answers at 127\.0\.0\.1:1"):
        async with connection.connect(Target("127.0.0.1:1")):
            pass


async def test_an_error_inside_is_not_taken_for_silence(fake_mesh: Target) -> None:
    with pytest.raises(TimeoutError, match="mine"):
        async with connection.connect(fake_mesh):
            raise TimeoutError("mine")


async def test_channels_have_connections_of_their_own(fake_mesh: Target) -> None:
    async with connection.connect(fake_mesh, 3) as channels:
        assert len(set(channels)) == 3


def test_a_mesh_without_a_run_file_takes_the_token_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "6a3f0c9be1d24875b0a9c3d2e1f40718"
    monkeypatch.setenv("ROOST_OPERATOR_TOKEN", token)
    assert connection.find("tweet.example.org:50051", tmp_path).operator() == connection.bearer(token)
    monkeypatch.setenv("ROOST_GRPC", "tweet.example.org:50051")
    assert connection.find(None, tmp_path).operator() == connection.bearer(token)
    # The run file's own is this very mesh's.
    running(tmp_path, "127.0.0.1:50051")
    assert connection.find("127.0.0.1:50051", tmp_path).operator_token == "token of 127.0.0.1:50051"
