"""Runs a mesh of many processes on free local ports, and kills single processes of it. The kill and restart drills use
it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from roost_cli import runfile
from roost_cli.connection import MeshTarget
from roost_cli.exit_codes import FAULTS, CommandError
from services.platform.config import child_environment, runtime_dir

# Maximum number of seconds for the start of the mesh: about sixteen processes start, and each needs seconds of CPU
# time.
START_WITHIN_S = 400.0
# Maximum number of seconds for the stop of the mesh. The gateway, the services and the registry stop one after another.
STOP_WITHIN_S = 120.0
# Maximum number of characters of a log in an error message; of a longer log, the end is printed.
SHOWN_LOG_CHARS = 2_000

_IS_READY = re.compile(r"(?P<label>\S+) is ready, pid (?P<pid>\d+)")
_HAS_ENDED = re.compile(r"(?P<label>\S+) ended with ")


class MultiProcessMesh:
    """A running `roost up` of several processes. `http` is the host and port of the gateway. `pids` are the process ids of the
    processes that are ready, by label such as `tweet-1`."""

    def __init__(self, process: asyncio.subprocess.Process, grpc: str, http: tuple[str, int], folder: Path) -> None:
        self.http = http
        self.pids: dict[str, int] = {}
        self.grpc = grpc
        self._folder = folder
        self._process = process
        self._changed = asyncio.Condition()
        self._ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read(), name="fleet-output")

    @classmethod
    async def start(cls, folder: Path, settings: Mapping[str, str], shape: Sequence[str]) -> MultiProcessMesh:
        """Starts a mesh, with rate limits off, and returns it when it is ready.

        `folder` is the directory for data, run files and logs. `settings` are the values of settings by name. `shape`
        are the arguments of `roost up` that choose the processes, such as `--replicas 2`. Raises CommandError with the
        end of the log if the mesh ends during its start, or is not ready within START_WITHIN_S seconds.
        """
        runtime = folder / "runtime"
        runtime.mkdir(mode=0o700, exist_ok=True)
        grpc, http = f"127.0.0.1:{_free_port()}", ("127.0.0.1", _free_port())
        argv = ["up", "--cluster", "--no-demo", *shape]
        argv += ["--grpc", grpc, "--http", f"{http[0]}:{http[1]}", "--data", str(folder / "data")]
        with (folder / "up.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "roost_cli",
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=child_environment(runtime, rate_limits="off", log_format="json", **settings),
            )
        mesh_processes = cls(process, grpc, http, folder)
        try:
            async with asyncio.timeout(START_WITHIN_S):
                await mesh_processes._ready.wait()
        except BaseException as error:
            await mesh_processes.kill_all()
            if isinstance(error, TimeoutError):
                raise CommandError(
                    f"the mesh was not ready after {START_WITHIN_S:g} s:\n{mesh_processes._log_end()}", FAULTS
                ) from error
            raise
        if process.returncode is not None:
            raise CommandError(f"the mesh ended while it started:\n{mesh_processes._log_end()}", FAULTS)
        return mesh_processes

    @property
    def target(self) -> MeshTarget:
        """Returns the gRPC address of the gateway and the operator token."""
        runs = runfile.running(runtime_dir(self._folder / "runtime"))
        found = next(run for run in runs if run.grpc == self.grpc)
        return MeshTarget(found.grpc, found.operator_token)

    @property
    def control(self) -> Path:
        """Returns the path of the Unix socket on which the supervisor accepts restart requests."""
        return runfile.path_of(self.grpc, runtime_dir(self._folder / "runtime")).with_suffix(".sock")

    def labels(self, group: str) -> list[str]:
        """Returns the labels of the processes of a group that are ready, sorted."""
        return sorted(label for label in self.pids if label.rpartition("-")[0] == group)

    async def kill(self, label: str, within_s: float) -> float:
        """Sends SIGKILL to the process `label` and returns the number of seconds until its replacement is ready. Raises
        CommandError if that takes longer than `within_s` seconds."""
        before, began = self.pids[label], time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(before, signal.SIGKILL)
        try:
            async with asyncio.timeout(within_s), self._changed:
                await self._changed.wait_for(lambda: self.pids.get(label, before) != before)
        except TimeoutError:
            log = self._folder / "data" / "logs" / f"{label}.log"
            end = log.read_text(errors="replace")[-SHOWN_LOG_CHARS:] if log.exists() else ""
            raise CommandError(f"{label} was not restarted within {within_s:g} s:\n{end}", FAULTS) from None
        return time.monotonic() - began

    async def stop(self) -> None:
        """Sends SIGTERM to the supervisor and waits until it has ended. Raises CommandError if that takes longer than
        STOP_WITHIN_S seconds, or if the exit status is not 0."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            code = await asyncio.wait_for(self._process.wait(), STOP_WITHIN_S)
        except TimeoutError:
            await self.kill_all()
            raise CommandError(f"the mesh did not stop in {STOP_WITHIN_S:g} s", FAULTS) from None
        await self._reading
        if code:
            raise CommandError(f"the mesh stopped with status {code}", FAULTS)

    async def kill_all(self) -> None:
        """Sends SIGKILL to the supervisor and waits until it has ended. The processes that it started then stop by
        themselves. Does nothing if the supervisor has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None, "made with a pipe"
        async for raw in self._process.stdout:
            line = raw.decode(errors="replace")
            async with self._changed:
                if found := _IS_READY.match(line):
                    self.pids[found["label"]] = int(found["pid"])
                elif found := _HAS_ENDED.match(line):
                    self.pids.pop(found["label"], None)
                elif line.startswith(runfile.READY):
                    self._ready.set()
                self._changed.notify_all()
        # The mesh has ended. Wakes `start`, which would otherwise wait until its timeout.
        await self._process.wait()
        self._ready.set()

    def _log_end(self) -> str:
        return (self._folder / "up.log").read_text(errors="replace")[-SHOWN_LOG_CHARS:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
