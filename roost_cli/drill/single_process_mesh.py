"""Runs a single-process mesh as a child process on free local ports. The crash drill starts and kills it repeatedly."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from pathlib import Path
from typing import IO

from roost_cli import runfile
from roost_cli.connection import MeshTarget
from roost_cli.exit_codes import FAULTS, CommandError
from services.platform.config import child_environment, runtime_dir

# Maximum number of seconds for a start, else the drill ends with an error. It is far longer than a start should take,
# so that only a mesh that hangs ends the drill; slow starts are reported.
START_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0
# Maximum number of characters of the log in an error message; of a longer log, the end is printed.
SHOWN_LOG_CHARS = 2_000


class ChildMesh:
    """A running `roost up`. `started_s` is the number of seconds from the start of the process until the mesh was
    ready."""

    def __init__(self, process: asyncio.subprocess.Process, target: MeshTarget, started_s: float) -> None:
        self.target = target
        self.started_s = started_s
        self._process = process
        self._drain = asyncio.create_task(_discard_stdout(process))

    async def kill(self) -> None:
        """Sends SIGKILL to the process, which simulates a crash, and waits until it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._drain

    async def stop(self) -> None:
        """Sends SIGTERM to the process and waits until it has ended. Raises CommandError if that takes longer than
        STOP_WITHIN_S seconds, or if the exit status is not 0."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            code = await asyncio.wait_for(self._process.wait(), STOP_WITHIN_S)
        except TimeoutError:
            await self.kill()
            raise CommandError(f"the mesh did not stop in {STOP_WITHIN_S:g} s", FAULTS) from None
        await self._drain
        if code:
            raise CommandError(f"the mesh stopped with status {code}", FAULTS)


class MeshLauncher:
    """Starts a mesh again and again on the same data directory. `folder` is the directory for the data, the run files
    and the log."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self._runtime = folder / "runtime"
        self._log = folder / "up.log"
        self._runtime.mkdir(mode=0o700, exist_ok=True)

    async def start(self) -> ChildMesh:
        """Starts a mesh and returns it when it is ready. Raises CommandError with the end of the log if the mesh ends
        during its start, or is not ready within START_WITHIN_S seconds."""
        began = time.monotonic()
        process = await self._spawn()
        try:
            async with asyncio.timeout(START_WITHIN_S):
                ready = await _until_ready(process)
            started_s = time.monotonic() - began
            if not ready:
                raise CommandError(f"the mesh ended while it started:\n{self._log_end()}", FAULTS)
            found = next(run for run in runfile.running(runtime_dir(self._runtime)) if run.pid == process.pid)
        except BaseException as error:
            await _kill(process)
            if isinstance(error, TimeoutError):
                raise CommandError(
                    f"the mesh was not ready after {START_WITHIN_S:g} s:\n{self._log_end()}", FAULTS
                ) from error
            raise
        return ChildMesh(process, MeshTarget(found.grpc, found.operator_token), started_s)

    async def start_and_kill(self, after_s: float) -> None:
        """Starts a mesh and kills it after `after_s` seconds, even if it is not ready by then."""
        process = await self._spawn()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.communicate(), after_s)
        finally:
            await _kill(process)

    async def _spawn(self) -> asyncio.subprocess.Process:
        any_port = "127.0.0.1:0"
        argv = ["up", "--no-demo", "--http", any_port, "--grpc", any_port, "--data", str(self._data)]
        environment = child_environment(self._runtime, rate_limits="off", log_format="json")
        with self._opened_log() as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "roost_cli",
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment,
            )

    def _opened_log(self) -> IO[bytes]:
        return self._log.open("ab")

    def _log_end(self) -> str:
        return self._log.read_text(errors="replace")[-SHOWN_LOG_CHARS:]


async def _until_ready(process: asyncio.subprocess.Process) -> bool:
    assert process.stdout is not None, "made with a pipe"
    async for line in process.stdout:
        if line.startswith(runfile.READY.encode()):
            return True
    return False


async def _discard_stdout(process: asyncio.subprocess.Process) -> None:
    """Reads and discards the output of the process until its end, because a full pipe would block the process."""
    assert process.stdout is not None, "made with a pipe"
    async for _ in process.stdout:
        pass


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
