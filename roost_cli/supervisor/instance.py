"""Runs one process of a mesh: starts it, and restarts it if it ends."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from roost_cli import runfile
from roost_cli.exit_codes import FAULTS, CommandError
from roost_cli.supervisor.topology import ProcessSpec
from services.platform.config import process_environment

# Maximum number of seconds until a started process is ready. At the first start of a mesh, processes create their
# tables while all others start too, which takes a minute on a busy machine.
START_WITHIN_S = 180.0
# Seconds between SIGTERM and SIGKILL. A process itself bounds the time for its drain, calls in progress, workers and
# stores; the sum of these bounds is less.
STOP_WITHIN_S = 45.0
# Seconds before a restart. The delay doubles from the minimum to the maximum each time that the process ends. So a
# single failure causes a short outage, and a process that fails at every start does not use the CPU all the time.
RESTART_MIN_DELAY_S, RESTART_MAX_DELAY_S = 0.1, 5.0
# If a process ran for at least this many seconds before it ended, the delay is the minimum again.
HEALTHY_UPTIME_S = 30.0
# Maximum number of characters of a log in an error message; of a longer log, the end is printed.
SHOWN_LOG_CHARS = 2_000

# A function that prints a line for the person who started the mesh.
Say = Callable[[str], None]


class Instance:
    """Runs one process until `stop` is called, and restarts it whenever it ends. Appends its stderr to a log file in
    the directory `logs`. Calls `say` with one line for each start and each end of the process."""

    def __init__(self, spec: ProcessSpec, logs: Path, say: Say) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self.pid = 0
        self._log = logs / f"{spec.label}.log"
        self._say = say
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the process and returns when it is ready. Raises CommandError with the end of the log if that takes
        longer than START_WITHIN_S seconds."""
        self._task = asyncio.create_task(self._keep_running(), name=f"instance-{self.spec.label}")
        try:
            async with asyncio.timeout(START_WITHIN_S):
                await self.ready.wait()
        except TimeoutError:
            await self.stop()
            raise CommandError(f"{self.spec.label} did not become ready:\n{self.log_end()}", FAULTS) from None

    async def stop(self) -> None:
        """Stops the process and returns when it has ended. Sends SIGTERM, and SIGKILL if the process has not ended
        after STOP_WITHIN_S seconds."""
        self._stopping.set()
        if self._task is not None:
            await self._task
            self._task = None

    def log_end(self) -> str:
        """Returns the last SHOWN_LOG_CHARS characters of the log."""
        try:
            return self._log.read_text(errors="replace")[-SHOWN_LOG_CHARS:]
        except OSError:
            return ""

    async def _keep_running(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run()
            if self._stopping.is_set():
                return
            failures = 1 if time.monotonic() - began > HEALTHY_UPTIME_S else failures + 1
            delay_s = min(RESTART_MIN_DELAY_S * 2 ** min(failures - 1, 10), RESTART_MAX_DELAY_S)
            self._say(f"{self.spec.label} ended with {_exit_text(code)}; again in {delay_s:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    async def _run(self) -> int:
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "roost_cli",
                *self.spec.arguments,
                # The process stops when this pipe is closed. The pipe is closed when the supervisor ends, even if the
                # supervisor was killed.
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=process_environment(**self.spec.environment),
                pass_fds=self.spec.inherited,
                # A session of its own, so that Ctrl-C signals only the supervisor, which stops the processes in order.
                start_new_session=True,
            )
        self.pid = process.pid
        reading = asyncio.create_task(self._read(process))
        ended = asyncio.create_task(process.wait())
        asked = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((ended, asked), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(ended), STOP_WITHIN_S)
        if not ended.done():
            self._say(f"{self.spec.label} did not stop in {STOP_WITHIN_S:g} s and was killed")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        code = await ended
        asked.cancel()
        await reading
        self.ready.clear()
        self.pid = 0
        return code

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None, "made with a pipe"
        async for line in process.stdout:
            if line.startswith(runfile.READY.encode()):
                self.ready.set()
                # The address of the ops port is printed, because the port is a random one that no setting contains.
                metrics = line.decode(errors="replace").rpartition(" metrics ")[2].strip()
                self._say(f"{self.spec.label} is ready, pid {process.pid}, metrics {metrics}")


def _exit_text(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"status {code}"
