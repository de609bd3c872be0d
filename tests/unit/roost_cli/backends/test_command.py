"""Tests the command line of `scripts/backends`, its ports, and its health checks."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from roost_cli.backends import ready
from roost_cli.backends.__main__ import main
from roost_cli.backends.compose import FILE
from roost_cli.backends.opensearch import VERSION as OPENSEARCH_VERSION
from roost_cli.backends.server_specs import CASSANDRA_VERSION, DEFAULT_SERVERS, KAFKA_VERSION, SERVERS

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server here")


@contextmanager
def listening(answer: Callable[[socket.socket], None] = socket.socket.close) -> Iterator[int]:
    """Yields a port whose connections are handled by `answer`."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def shift_of(name: str, port: int) -> int:
    return port - SERVERS[name].port


def test_main_unknown_server_returns_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "postgres", "--data", str(tmp_path)]) == 2
    assert "no server is named postgres" in capsys.readouterr().err


def test_up_port_in_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listening() as port:
        shift = shift_of("redis", port)
        argv = ["redis", "--processes", "--data", str(tmp_path), f"--shift={shift}"]
        assert main(["up", *argv]) == 1
        said = capsys.readouterr().err
        assert f"redis cannot have port {port}" in said
        assert "--shift" in said
        assert main(["status", *argv]) == 1
        assert "something else has its port" in capsys.readouterr().out


@needs_redis
def test_up_and_down_are_idempotent_after_death(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listening() as port:
        pass
    argv = ["redis", "--processes", "--json", "--data", str(tmp_path), f"--shift={shift_of('redis', port)}"]
    assert main(["up", *argv]) == 0
    (first,) = json.loads(capsys.readouterr().out)
    assert first["state"] == "up"
    assert first["address"] == f"127.0.0.1:{port}"
    assert first["ready_in"] is not None
    assert main(["up", *argv]) == 0
    (again,) = json.loads(capsys.readouterr().out)
    assert again["pid"] == first["pid"]
    assert again["ready_in"] is None
    assert main(["status", *argv]) == 0
    assert main(["down", *argv, "--kill"]) == 0
    capsys.readouterr()
    assert main(["down", *argv, "--wipe"]) == 0
    (gone,) = json.loads(capsys.readouterr().out)
    assert gone["state"] == "was not up"
    assert not (tmp_path / "redis").exists()
    assert main(["status", *argv]) == 1


@needs_redis
def test_up_after_kill_starts_twice_if_server_needs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SERVERS, "redis", replace(SERVERS["redis"], second_start_after_kill=True))  # type: ignore[arg-type]
    with listening() as port:
        pass
    argv = ["redis", "--processes", "--data", str(tmp_path), f"--shift={shift_of('redis', port)}"]

    def starts() -> int:
        assert main(["up", *argv]) == 0
        return capsys.readouterr().err.count("starting")

    assert starts() == 1, "no data yet"
    assert main(["down", *argv]) == 0
    assert starts() == 1, "stopped cleanly"
    assert main(["down", *argv, "--kill"]) == 0
    assert starts() == 3, "two starts and the line that says why"
    assert main(["down", *argv, "--wipe"]) == 0


@needs_redis
def test_up_interrupted_before_second_start_makes_it_next_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SERVERS, "redis", replace(SERVERS["redis"], second_start_after_kill=True))  # type: ignore[arg-type]
    with listening() as port:
        pass
    argv = ["redis", "--processes", "--data", str(tmp_path), f"--shift={shift_of('redis', port)}"]
    assert main(["up", *argv]) == 0
    assert main(["down", *argv, "--kill"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("roost_cli.backends.local.answers", lambda *_: False)
        assert main(["up", *argv, "--wait=0.1"]) == 1
    capsys.readouterr()
    assert main(["up", *argv]) == 0
    assert "starting a second time" in capsys.readouterr().err
    assert main(["up", *argv]) == 0
    assert "starting" not in capsys.readouterr().err
    assert main(["down", *argv, "--wipe"]) == 0


@needs_redis
def test_up_server_dying_at_start_shows_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost_cli.backends.server_specs.REDIS_DATABASES", "none at all")
    with listening() as port:
        pass
    argv = ["redis", "--processes", "--data", str(tmp_path), f"--shift={shift_of('redis', port)}"]
    assert main(["up", *argv]) == 1
    said = capsys.readouterr().err
    assert "redis ended while it started" in said
    assert "databases" in said, "the log's own words"


@pytest.mark.parametrize("name", sorted(ready.PROBES))
def test_ready_closed_or_garbage_response_is_not_ready(name: str) -> None:
    with listening() as port:
        assert ready.unreachable({name: f"127.0.0.1:{port}"}) == [f"{name} at 127.0.0.1:{port}"]
    with listening(lambda connection: connection.sendall(b"\xff" * 64)) as port:
        assert ready.unreachable({name: f"127.0.0.1:{port}"})
    assert ready.unreachable({name: f"127.0.0.1:{port}"}), "nobody listens there now"


def test_compose_versions_equal_local_versions() -> None:
    services = yaml.safe_load(FILE.read_text())["services"]
    assert set(services) == set(SERVERS)
    assert {name for name in services if "profiles" not in services[name]} == set(DEFAULT_SERVERS)
    images = {name: service["image"].rpartition(":")[2] for name, service in services.items()}
    assert images["cassandra"] == CASSANDRA_VERSION
    assert images["kafka"] == KAFKA_VERSION
    assert images["opensearch"] == OPENSEARCH_VERSION
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service["ports"])
