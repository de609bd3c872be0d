"""One supervised process: starts it, watches it, and restarts it when it dies."""

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

# Seconds until a process must be ready. The first start creates the tables while all other processes start; on a busy
# machine that takes a minute.
START_WITHIN_S = 180.0
# Seconds between SIGTERM and SIGKILL: more than the sum of the process's own limits for drain, calls in progress,
# workers and stores.
STOP_WITHIN_S = 45.0
# Delays before a restart, doubling from the first to the last: most deaths are isolated, but a process that dies at
# every start must not spin.
RESTART_MIN_DELAY_S, RESTART_MAX_DELAY_S = 0.1, 5.0
# A process that ran this long before it exited starts again with the shortest delay.
HEALTHY_UPTIME_S = 30.0
SHOWN_LOG_CHARS = 2_000

Say = Callable[[str], None]


class Instance:
    """Runs one process until `stop` and restarts it when it ends. Its stderr is appended to a log file in `logs`;
    `say` receives one line for each start and death."""

    def __init__(self, spec: ProcessSpec, logs: Path, say: Say) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self.pid = 0
        self._log = logs / f"{spec.label}.log"
        self._say = say
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the process and returns when it is ready. Raises CommandError, with the end of its log, if that
        takes longer than START_WITHIN_S."""
        self._task = asyncio.create_task(self._keep_running(), name=f"instance-{self.spec.label}")
        try:
            async with asyncio.timeout(START_WITHIN_S):
                await self.ready.wait()
        except TimeoutError:
            await self.stop()
            raise CommandError(f"{self.spec.label} did not become ready:\n{self.log_end()}", FAULTS) from None

    async def stop(self) -> None:
        """Sends SIGTERM, and SIGKILL after STOP_WITHIN_S; returns when the process has ended."""
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
                # The process stops when this pipe closes, so it cannot outlive the supervisor.
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=process_environment(**self.spec.environment),
                # Ctrl-C must reach only the supervisor, which stops the processes in order.
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
                # Of the addresses in the ready line only the metrics address is printed: it uses any free port and is
                # listed nowhere else.
                metrics = line.decode(errors="replace").rpartition(" metrics ")[2].strip()
                self._say(f"{self.spec.label} is ready, pid {process.pid}, metrics {metrics}")


def _exit_text(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"status {code}"
