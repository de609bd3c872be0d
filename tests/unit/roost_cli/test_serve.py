"""Tests the start of `roost serve` and `roost up` as processes: their output, and errors that prevent it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import grpc
import httpx
import pytest
from roost.tweet.v1 import tweet_service_pb2, tweet_service_pb2_grpc

from roost_cli import runfile, serve
from roost_cli.commands import run
from services.platform.config import storage_text

ANY = "127.0.0.1:0"
# A test that hangs fails after this many seconds.
WITHIN_S = 60.0


@contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Runs `roost` as a process and kills it at the end."""
    # No writable directory for the run file, as with a read-only root file system.
    env = {**os.environ, "HOME": "/dev/null", "ROOST_LOG_FORMAT": "json", **environment}
    env.pop("XDG_RUNTIME_DIR", None)
    command = [sys.executable, "-m", "roost_cli", *arguments, "--grpc", ANY]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        late = Timer(WITHIN_S, process.kill)
        late.start()
        try:
            yield process
        finally:
            late.cancel()
            process.kill()


def line_with(process: subprocess.Popen[str], words: str) -> str:
    """Returns the next output line that contains the words; "" if the output ends first."""
    assert process.stdout is not None, "made with a pipe"
    return next((line.strip() for line in process.stdout if words in line), "")


def test_serve_read_only_runtime_dir_warns_and_serves(tmp_path: Path) -> None:
    with serving("serve", "tweet", "--data", str(tmp_path)) as process:
        ready = line_with(process, "roost is ready")
        metrics = ready.partition("metrics ")[2].split()[0]
        assert ready.endswith(f"data in {tmp_path} · backend embedded")
        assert runfile.addresses_in(ready)[1] == metrics.removeprefix("http://").removesuffix("/metrics")
        assert "grpc_server_started_total" in httpx.get(metrics).text
        assert httpx.get(metrics.replace("/metrics", "/readyz")).json()["services"] == {"tweet": "SERVING"}
        assert line_with(process, "no address") == (
            "no address of engagement, graph, identity is known: set ROOST_REGISTRY_ADDRESS or ROOST_STATIC_PEERS, or calls "
            "to these services are refused"
        )
        process.terminate()
        assert process.wait(WITHIN_S) == 0
        assert process.stderr is not None, "made with a pipe"
        warned = [json.loads(line) for line in process.stderr if "runfile.write_failed" in line]
    assert [(line["level"], line["service"]) for line in warned] == [("warning", "tweet")]


def test_serve_gateway_without_addresses_prints_hint(tmp_path: Path) -> None:
    with serving("serve", "gateway", "--http", ANY, "--data", str(tmp_path)) as process:
        assert line_with(process, "no address").startswith(
            "no address of any service is known: set ROOST_REGISTRY_ADDRESS"
        )


def test_serve_unreachable_peers_are_printed(tmp_path: Path) -> None:
    with socket.socket() as taken:
        # Bound but not listening, so connections are refused.
        taken.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
        peers = f"identity={dead},graph={dead},engagement={dead},timeline={dead}"
        with serving("serve", "tweet", "--data", str(tmp_path), ROOST_STATIC_PEERS=peers) as process:
            told = line_with(process, "not reached yet")
            # timeline is missing, because the tweet service never calls it.
            for name in ("identity", "graph", "engagement"):
                assert f"{name} at {dead}" in told
            assert "timeline" not in told


@pytest.mark.parametrize("option", ["--grpc", "--http", "--ops"])
def test_up_port_in_use_prints_one_line(tmp_path: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ports = {"--http": ANY, "--ops": ANY, "--grpc": ANY, option: address}
        arguments = [part for pair in ports.items() for part in pair]
        ran = subprocess.run(
            [sys.executable, "-m", "roost_cli", "up", "--no-demo", "--data", str(tmp_path), *arguments],
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            env={**os.environ, "ROOST_LOG_LEVEL": "warning"},
        )
    assert ran.returncode == 2
    what = "gRPC" if option == "--grpc" else "HTTP"
    assert (
        ran.stderr
        == f"roost: cannot serve {what} on {address}: another program listens there; choose another address with {option} HOST:PORT\n"
    )


@pytest.mark.parametrize("option", ["--grpc", "--http", "--ops"])
def test_up_address_of_other_machine_says_what_to_do(tmp_path: Path, option: str) -> None:
    # An address reserved for documentation (RFC 5737): no machine has it.
    address = "192.0.2.1:50999"
    ports = {"--http": ANY, "--ops": ANY, "--grpc": ANY, option: address}
    command = [sys.executable, "-m", "roost_cli", "up", "--no-demo", "--data", str(tmp_path)]
    ran = subprocess.run(
        [*command, *(part for pair in ports.items() for part in pair)],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        env={**os.environ, "ROOST_LOG_LEVEL": "warning"},
    )
    assert ran.returncode == 2
    assert ran.stderr.endswith(
        f"on {address}: this machine has no such address; choose another address with {option} HOST:PORT\n"
    )


def test_serve_unknown_name_suggests_the_similar_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "gateway", "timelin"]) == 2
    assert "no service timelin; there are registry, identity," in (told := capsys.readouterr().err)
    assert told.endswith("did you mean timeline?\n")


@pytest.mark.parametrize(("options", "backend"), [((), "embedded"), (("--cluster",), "cluster")])
def test_serve_with_cluster_option_chooses_the_servers(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], backend: str
) -> None:
    found: list[str] = []
    monkeypatch.setattr(serve, "serve_until_stopped", lambda settings, *_, **__: found.append(storage_text(settings)))
    assert run(["serve", "tweet", *options]) == 0
    assert found == [f"backend {backend}" + ", namespace roost" * (backend == "cluster")]


def test_serve_http_address_without_gateway_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "tweet", "--http", ANY]) == 2
    assert capsys.readouterr().err == (
        "roost: --http is the address of the gateway: add gateway to the names, or leave --http out\n"
    )


def test_up_cassandra_down_prints_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = ["up", "--cluster", "--no-demo", "--data", str(tmp_path), "--http", ANY, "--grpc", ANY]
        ran = subprocess.run(
            [sys.executable, "-m", "roost_cli", *arguments],
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            env={**os.environ, "ROOST_CASSANDRA_CONTACT_POINTS": dead},
        )
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1), ran.stderr
    assert ran.stderr.startswith("roost: Cassandra cannot be reached")


def test_serve_at_debug_logs_each_request_with_response_ids(tmp_path: Path) -> None:
    arguments = ("up", "--no-demo", "--http", ANY, "--data", str(tmp_path))
    with serving(*arguments, ROOST_LOG_LEVEL="debug") as process:
        ready = line_with(process, "roost is ready")
        refused = httpx.get(f"http://{address_in(ready, 'http://')}/v1/tweets/1")
        with grpc.insecure_channel(address_in(ready, "gRPC ")) as channel:
            stub = tweet_service_pb2_grpc.TweetServiceStub(channel)
            listing = tweet_service_pb2.ListRecentTweetsRequest()
            _, call = stub.ListRecentTweets.with_call(listing, metadata=(("x-request-id", "mine"),))
            assert ("x-request-id", "mine") in call.trailing_metadata()
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetTweet(tweet_service_pb2.GetTweetRequest(tweet_id=1))
            made = dict(caught.value.trailing_metadata())["x-request-id"]
        process.terminate()
        _, errors = process.communicate(timeout=WITHIN_S)
    found = [json.loads(line) for line in errors.splitlines()]
    (http,) = [line for line in found if line["event"] == "http_request.served"]
    assert (http["route"], http["method"], http["status"]) == ("TweetService/GetTweet", "GET", 404)
    assert (http["trace_id"], http["request_id"]) == (refused.json()["trace_id"], refused.headers["x-request-id"])
    listed, missing = [line for line in found if line["event"] == "grpc_call.served"]
    assert (listed["method"], listed["status"]) == ("/roost.tweet.v1.TweetService/ListRecentTweets", "OK")
    assert (listed["request_id"], len(listed["trace_id"])) == ("mine", 32)
    assert (missing["status"], missing["request_id"]) == ("NOT_FOUND", made)
    for line in (http, listed, missing):
        assert (line["service"], line["user"], line["ms"] > 0) == ("roost", 0, True)


def address_in(ready: str, before: str) -> str:
    """Returns the HOST:PORT that follows the words in the ready line."""
    return ready.partition(before)[2].split()[0]
