"""Redis servers that a test may stop, restart, misconfigure or combine, unlike the shared one."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis, RedisError

from tests.ports import free_port
from tests.waiting import block_until


def program() -> str:
    """Returns the path of redis-server; skips the test if it is not installed."""
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("no redis-server here")
    return found


class Server:
    """One redis-server process; `url` stays the same over restarts."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = port or free_port()
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.client = Redis(port=self.port, socket_timeout=5)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Server:
        """Starts the server and waits until it answers. Raises RuntimeError if it ends instead."""
        defaults = (
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--logfile",
            "log",
            "--dbfilename",
            "rdb",
        )
        arguments = ["--port", str(self.port), "--dir", str(self.folder), *defaults, *self.options]
        self.process = subprocess.Popen([program(), *arguments])
        wait_for(self._is_up)
        return self

    def kill(self) -> None:
        """Kills the process, like a crash: unsaved data is lost."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Suspends the process: connections stay open but get no answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self.process is not None:
            self.resume()
            self._end(signal.SIGTERM)
        self.client.close()

    def _is_up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"redis-server ended with code {self.process.returncode}; see {self.folder / 'log'}")
        return bool(self.client.ping())

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def server(folder: Path, *options: str) -> Iterator[Server]:
    """Runs a server for the duration of the block."""
    one = Server(folder, *options)
    try:
        yield one.start()
    finally:
        one.close()


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 3) -> Iterator[list[Server]]:
    """Runs a Redis Cluster of `nodes` masters."""
    servers = [
        Server(folder / str(number), "--cluster-enabled", "yes", "--cluster-config-file", "nodes")
        for number in range(nodes)
    ]
    try:
        for each in servers:
            each.start()
        addresses = [f"127.0.0.1:{each.port}" for each in servers]
        subprocess.run(
            ["redis-cli", "--cluster", "create", *addresses, "--cluster-replicas", "0", "--cluster-yes"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for each in servers:
            wait_for(lambda each=each: each.client.cluster("INFO")["cluster_state"] == "ok")
        yield servers
    finally:
        for each in servers:
            each.close()


@contextlib.contextmanager
def sentinels(folder: Path, master: Server, name: str, count: int = 3) -> Iterator[list[Server]]:
    """Runs Sentinels that monitor `master` and know its replicas."""
    watchers = []
    try:
        for number in range(count):
            watcher = Server(folder / f"sentinel{number}")
            (watcher.folder / "conf").write_text(
                f"sentinel monitor {name} 127.0.0.1 {master.port} {count // 2 + 1}\n"
                # Tests request the failover. A master that a busy machine suspends for a moment is not down.
                f"sentinel down-after-milliseconds {name} 60000\n"
                f"sentinel failover-timeout {name} 3000\n"
            )
            watcher.process = subprocess.Popen(
                [
                    program(), str(watcher.folder / "conf"), "--sentinel", "--port", str(watcher.port),
                    "--bind", "127.0.0.1", "--dir", str(watcher.folder), "--logfile", "log",
                ]
            )  # fmt: skip
            watchers.append(watcher)
        for watcher in watchers:
            wait_for(watcher.client.ping)
            wait_for(lambda each=watcher: _ready(each, name, count))
        yield watchers
    finally:
        for watcher in watchers:
            watcher.close()


def _ready(watcher: Server, name: str, count: int) -> bool:
    seen = watcher.client.sentinel_master(name)
    return bool(int(seen["num-other-sentinels"]) == count - 1 and int(seen["num-slaves"]) >= 1)


def wait_for(done: Callable[[], object]) -> None:
    """Waits until `done` returns a true value and raises no RedisError."""

    def ready() -> bool:
        with contextlib.suppress(RedisError):
            return bool(done())
        return False

    block_until(ready)
