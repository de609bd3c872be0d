"""Runs one process of a mesh: starts it, and restarts it if it ends."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from roost_cli import runfile
from roost_cli.exit_codes import FAULTS, UNUSABLE, CommandError
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

# The beginning of the message with which a command ends.
ERROR_PREFIX = "roost: "

# A function that prints a line for the person who started the mesh.
Say = Callable[[str], None]


class Instance:
    """Runs one process until `stop` is called, and restarts it whenever it ends. Appends its stderr to a log file in
    the directory `logs`. Calls `say` with one line for each start and each end of the process.

    A process that ends with status UNUSABLE is not restarted if it was never ready: its settings or servers are wrong,
    and a restart would hide the reason. `is_replacement` is true if its predecessor was ready and has been stopped; then
    it is restarted even so.
    """

    def __init__(self, spec: ProcessSpec, logs: Path, say: Say, *, is_replacement: bool = False) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self.pid = 0
        # Addresses as HOST:PORT, "" until the process is ready for the first time.
        self.grpc, self.ops = "", ""
        self._was_ready = is_replacement
        # Whether the process was ready since its last start, and the size of the log at that start.
        self._is_run_ready = False
        self._run_log_start = 0
        self.log = logs / f"{spec.label}.log"
        self._say = say
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the process and returns when it is ready.

        Raises CommandError UNUSABLE with the reason if the process ends with status UNUSABLE, and CommandError FAULTS
        with the end of the log if it is not ready after START_WITHIN_S seconds, or if `stop` is called.
        """
        running = self._task = asyncio.create_task(self._keep_running(), name=f"instance-{self.spec.label}")
        ready = asyncio.create_task(self.ready.wait())
        try:
            await asyncio.wait({running, ready}, timeout=START_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if ready.done():
            return
        if running.done() and not self._stopping.is_set():
            running.result()
            raise CommandError(f"{self.spec.label} cannot start: {self.reason()}\nIts log is {self.log}", UNUSABLE)
        await self.stop()
        raise CommandError(f"{self.spec.label} did not become ready; its log is {self.log}:\n{self.log_end()}", FAULTS)

    async def stop(self) -> None:
        """Stops the process and returns when it has ended. Sends SIGTERM, and SIGKILL if the process has not ended
        after STOP_WITHIN_S seconds."""
        self._stopping.set()
        if self._task is not None:
            await self._task
            self._task = None

    def log_end(self) -> str:
        """Returns the last SHOWN_LOG_CHARS characters of what the process logged since its last start."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._run_log_start)
                return log.read().decode(errors="replace")[-SHOWN_LOG_CHARS:]
        except OSError:
            return ""

    def reason(self) -> str:
        """Returns why the process ended: the error message at the end of its log, or if there is none, the last
        line."""
        lines = self.log_end().strip().splitlines()
        for place in range(len(lines) - 1, -1, -1):
            if lines[place].startswith(ERROR_PREFIX):
                return "\n".join(lines[place:]).removeprefix(ERROR_PREFIX)
        return lines[-1] if lines else "its log is empty"

    async def _keep_running(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run()
            if self._stopping.is_set():
                return
            if code == UNUSABLE and not self._was_ready:
                return
            failures = 1 if time.monotonic() - began > HEALTHY_UPTIME_S else failures + 1
            delay_s = min(RESTART_MIN_DELAY_S * 2 ** min(failures - 1, 10), RESTART_MAX_DELAY_S)
            why = "" if self._is_run_ready else f" before it was ready: {_one_line(self.reason())} (log: {self.log})"
            self._say(f"{self.spec.label} ended with {_exit_text(code)}{why}; again in {delay_s:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    async def _run(self) -> int:
        self._is_run_ready = False
        with self.log.open("ab") as log:
            self._run_log_start = log.tell()
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
                self._is_run_ready = self._was_ready = True
                self.grpc, self.ops = runfile.addresses_in(line.decode(errors="replace"))
                self.ready.set()
                # The address of the ops port is printed, because the port is a random one that no setting contains.
                self._say(f"{self.spec.label} is ready, pid {process.pid}, metrics http://{self.ops}/metrics")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _exit_text(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"status {code}"
