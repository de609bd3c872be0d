"""The supervisor of a mesh of several processes: starts the processes of a mesh in order, restarts those that end, performs
rolling restarts, and stops the processes in reverse order."""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.supervisor.instance import Instance, Say
from roost_cli.supervisor.topology import Phase, ProcessSpec

# Maximum number of processes that start at the same time. The start of a process is bound by the CPU, so more would not
# be faster.
STARTED_AT_ONCE = 2 * (os.cpu_count() or 1)


class Restarted(NamedTuple):
    """The group whose processes were replaced, and the number of seconds that it took."""

    group: str
    seconds: float


class RunningProcess(NamedTuple):
    """A process of the mesh. `group` is the name of its group or `registry`, `label` that of its log file; the gRPC and
    the ops address are HOST:PORT."""

    group: str
    label: str
    pid: int
    grpc: str
    ops: str


class Supervisor:
    """Runs the processes of one mesh. `specs` are the processes in start order. Their logs are written to the directory
    `logs`; `say` prints one line for each start and end of a process."""

    def __init__(self, specs: Sequence[ProcessSpec], logs: Path, say: Say) -> None:
        self._logs = logs
        self._say = say
        self._parts = specs
        self._instances: list[Instance] = []
        self._numbers = {spec.name: spec.number for spec in specs}
        # Two concurrent restarts of a group could stop all its processes at the same time.
        self._restarting = asyncio.Lock()
        self._is_stopping = False

    def pids(self) -> dict[str, list[int]]:
        """Returns the process ids of the running processes, by the name of the group or `registry`."""
        found: dict[str, list[int]] = defaultdict(list)
        for instance in self._instances:
            if instance.pid:
                found[instance.spec.name].append(instance.pid)
        return dict(found)

    def processes(self) -> Sequence[RunningProcess]:
        """Returns the processes that are ready, in start order."""
        return [
            RunningProcess(instance.spec.name, instance.spec.label, instance.pid, instance.grpc, instance.ops)
            for instance in self._instances
            if instance.ready.is_set()
        ]

    async def start(self) -> None:
        """Starts the registry if there is one, then the groups without the gateway concurrently, then those with it.
        Raises CommandError if a process does not become ready."""
        self._logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        for phase in Phase:
            started = [Instance(spec, self._logs, self._say) for spec in self._parts if spec.phase is phase]
            slots = asyncio.Semaphore(STARTED_AT_ONCE)
            self._instances += started

            async def begin(instance: Instance, slots: asyncio.Semaphore = slots) -> None:
                async with slots:
                    await instance.start()

            await asyncio.gather(*map(begin, started))

    async def restart(self, name: str) -> Restarted:
        """Replaces each process of a group by a new one, one after the other. `name` is the name of the group, or of a
        service that it runs, or `gateway`.

        The old process is stopped when the new one is ready. Only if both need the same address, the old process is
        stopped first. Raises CommandError if no group has or runs `name`, if a new process does not become ready, or if
        `stop` was called; the old processes that are not replaced yet go on running, except after `stop`.
        """
        group = self._group_of(name)
        began = time.monotonic()
        async with self._restarting:
            for old in [instance for instance in self._instances if instance.spec.name == group]:
                if old.spec.has_fixed_address:
                    await old.stop()
                self._check_not_stopping()
                new = Instance(
                    self._successor(old.spec), self._logs, self._say, is_replacement=old.spec.has_fixed_address
                )
                self._instances.insert(self._instances.index(old) + 1, new)
                try:
                    await new.start()
                except CommandError:
                    # Only the new process is broken, so the old one goes on running.
                    self._instances.remove(new)
                    raise
                await old.stop()
                self._check_not_stopping()
                self._instances.remove(old)
        return Restarted(group, time.monotonic() - began)

    def _check_not_stopping(self) -> None:
        # `stop` stops the processes that exist when it is called, so none may be started afterwards.
        if self._is_stopping:
            raise CommandError("the mesh is stopping: start it again instead")

    def _group_of(self, name: str) -> str:
        groups = {spec.name: spec for spec in self._parts}
        if name in groups:
            return name
        for spec in self._parts:
            if name in spec.members:
                return spec.name
        known = dict.fromkeys([*groups, *(member for spec in self._parts for member in spec.members)])
        raise CommandError(f"nothing named {name} runs; name one of {', '.join(known)}", UNUSABLE)

    def _successor(self, spec: ProcessSpec) -> ProcessSpec:
        if spec.has_fixed_address:
            return spec
        # The new process needs a data directory of its own, because the old one still runs.
        number = self._numbers[spec.name] = self._numbers[spec.name] + 1
        arguments = list(spec.arguments)
        place = arguments.index("--data") + 1
        arguments[place] = str(Path(arguments[place]).with_name(f"{spec.name}-{number}"))
        return replace(spec, number=number, arguments=tuple(arguments))

    async def stop(self) -> None:
        """Stops the groups with the gateway, then the others concurrently, then the registry. Ends a restart in
        progress."""
        self._is_stopping = True
        for phase in reversed(Phase):
            stopped = [instance for instance in self._instances if instance.spec.phase is phase]
            await asyncio.gather(*(instance.stop() for instance in stopped))
        self._instances.clear()
