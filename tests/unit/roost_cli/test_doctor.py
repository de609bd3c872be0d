"""Tests the checks of `roost doctor`."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from roost_cli import doctor, runfile
from roost_cli.commands import run
from roost_cli.connection import MeshTarget
from roost_cli.doctor import BAD, GOOD, NOTE
from services.platform.ids.snowflake import EPOCH_MS

EPOCH_S = EPOCH_MS / 1000


def test_doctor_in_this_checkout_finds_no_fault() -> None:
    assert [check.state for check in doctor.packages()] == [GOOD]
    assert doctor.stubs().state == GOOD


def test_doctor_old_software_is_a_fault() -> None:
    assert doctor.python((3, 10, 9)).state == BAD
    assert doctor.python((3, 11, 0)).state == GOOD
    assert doctor.sqlite((3, 36, 0)).state == BAD
    assert doctor.sqlite((3, 40, 1)).state == GOOD


def test_writable_read_only_data_dir_is_a_fault(tmp_path: Path) -> None:
    assert doctor.writable(tmp_path / "new" / "deep").state == GOOD
    assert not (tmp_path / "new").exists()
    if os.getuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    assert doctor.writable(tmp_path / "new").state == BAD


@pytest.mark.parametrize("inner", ["", "data"])
def test_doctor_forbidden_data_dir_is_a_fault_beside_other_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], inner: str
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o000)
    data_dir = closed / inner
    # Without a port to bind or a server to ask.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    ports = ["--http", f"127.0.0.1:{_free()}", "--grpc", f"127.0.0.1:{_free()}"]
    # Loaded now, because the plain user may not be able to read the code.
    assert run(["doctor", "--data", str(tmp_path), *ports]) == 1
    capsys.readouterr()
    with plain_user():
        assert run(["doctor", "--data", str(data_dir), *ports]) == 1
    said = capsys.readouterr().out.splitlines()
    (fault,) = [line for line in said if "data directory:" in line]
    assert fault.startswith(f"fault  data directory: {data_dir} cannot be ")
    assert fault.endswith("choose one with --data")
    assert any("clock: " in line for line in said)
    assert any("mesh: " in line for line in said)


def test_port_malformed_address_is_a_fault() -> None:
    check = doctor.port("HTTP port", "localhost")
    assert (check.state, check.words) == (BAD, "'localhost' is not an address: write HOST:PORT, such as 127.0.0.1:8080")


def test_disk_reports_state_by_free_space() -> None:
    assert [doctor.disk(free).state for free in (10**6, 10**9, 10**10)] == [BAD, NOTE, GOOD]


def test_clock_impossible_time_is_a_fault() -> None:
    assert doctor.clock(EPOCH_S - 1, 0.0).state == BAD
    assert doctor.clock(EPOCH_S + 1_000, EPOCH_S + 2_000).state == BAD
    assert doctor.clock(EPOCH_S + 1_000, EPOCH_S + 1_001).state == GOOD


def test_port_in_use_is_a_fault() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert doctor.port("gRPC port", address).state == BAD
    assert doctor.port("gRPC port", address).state == GOOD


def test_servers_silent_is_a_fault_for_cluster_backend_only() -> None:
    assert doctor.servers([], needed=True).state == GOOD
    assert doctor.servers(["redis at localhost:6379"], needed=False).state == NOTE
    silent = doctor.servers(["redis at localhost:6379"], needed=True)
    assert silent.state == BAD
    assert "redis at localhost:6379" in silent.words
    assert "scripts/backends up" in silent.words


def test_backends_lists_each_missing_program() -> None:
    assert [check.state for check in doctor.backends(True, ["Java 17 is missing"])] == [GOOD]
    assert [check.state for check in doctor.backends(False, [])] == [GOOD]
    checks = list(doctor.backends(False, ["Java 17 is missing", "Maven is missing"]))
    assert [check.state for check in checks] == [NOTE, NOTE]
    assert "Java 17" in checks[0].words
    assert "Maven" in checks[1].words


def test_mesh_none_running_is_reported_as_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("ROOST_GRPC_ADDRESS", f"127.0.0.1:{_free()}")
    assert run(["doctor", "--data", str(tmp_path), "--http", f"127.0.0.1:{_free()}"]) == 0
    said = capsys.readouterr().out
    assert "none runs here" in said
    assert said.splitlines()[-1] == "no faults found"


def test_mesh_named_but_silent_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert run(["doctor", "--data", str(tmp_path), "--grpc", f"127.0.0.1:{_free()}"]) == 1
    assert "none answers at" in capsys.readouterr().out


async def test_mesh_running_but_silent_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    address = f"127.0.0.1:{_free()}"
    runfile.write(runfile.RunFile(address, "", os.getpid(), 0.0, "token"))
    found = await doctor._mesh(None, address, f"127.0.0.1:{_free()}")
    (silent,) = [check for check in found if "does not answer" in check.words]
    assert silent.state == BAD
    assert f"stop it, or remove {runfile.path_of(address)}" in silent.words


async def test_mesh_two_running_checks_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    async with healthy() as one, healthy() as other:
        for address in (one, other):
            runfile.write(runfile.RunFile(address, "", os.getpid(), 0.0, "token"))
        found = await doctor._mesh(None, f"127.0.0.1:{_free()}", f"127.0.0.1:{_free()}")
    assert not [check for check in found if check.state != GOOD]
    assert {f"answers at {one}", f"answers at {other}"} <= {check.words for check in found}


async def test_mesh_owning_checked_addresses_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    async with healthy() as address:
        with socket.socket() as http:
            http.bind(("127.0.0.1", 0))
            http.listen()
            http_address = f"127.0.0.1:{http.getsockname()[1]}"
            runfile.write(runfile.RunFile(address, http_address, os.getpid(), 0.0, "token"))
            found = await doctor._mesh(None, address, http_address)
    assert {check.state for check in found} == {GOOD}


async def test_health_of_other_server_is_not_a_mesh(fake_mesh: MeshTarget) -> None:
    assert await doctor.health(fake_mesh.address) == []


@asynccontextmanager
async def healthy() -> AsyncIterator[str]:
    """Yields the address of a server whose health service reports identity as SERVING."""
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    await servicer.set("roost.identity.v1.AuthService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextmanager
def plain_user() -> Iterator[None]:
    """Runs the block as a user whom file modes bind: root becomes `nobody`, and keeps only the saved id to return."""
    if os.getuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
