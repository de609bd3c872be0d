"""The supervisor: starts the processes of a mesh in order, restarts those that die, performs rolling restarts, and
stops them in reverse order."""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.supervisor.instance import Instance, Say
from roost_cli.supervisor.topology import ProcessSpec

# Processes that start at the same time. The start of Python is bound by CPU, so more of them would only slow each other
# down.
STARTED_AT_ONCE = 2 * (os.cpu_count() or 1)


class Supervisor:
    """Runs the processes of one mesh. Their logs go to `logs`."""

    def __init__(self, specs: Sequence[ProcessSpec], logs: Path, say: Say) -> None:
        self._logs = logs
        self._say = say
        self._parts = specs
        self._instances: list[Instance] = []
        self._numbers = {spec.name: spec.number for spec in specs}
        # Two restarts at once could stop both replicas of a service.
        self._restarting = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        """Returns the names of the running services, `registry` and `gateway` included, in start order."""
        return list(dict.fromkeys(spec.name for spec in self._parts))

    def pids(self) -> dict[str, list[int]]:
        """Returns the ids of the running processes by name."""
        found: dict[str, list[int]] = defaultdict(list)
        for instance in self._instances:
            if instance.pid:
                found[instance.spec.name].append(instance.pid)
        return dict(found)

    async def start(self) -> None:
        """Starts the first process (registry), then the services concurrently, then the last (gateway). Raises
        CommandError if one does not become ready."""
        self._logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        instances = [Instance(spec, self._logs, self._say) for spec in self._parts]
        for group in (instances[:1], instances[1:-1], instances[-1:]):
            slots = asyncio.Semaphore(STARTED_AT_ONCE)
            self._instances += group

            async def begin(instance: Instance, slots: asyncio.Semaphore = slots) -> None:
                async with slots:
                    await instance.start()

            await asyncio.gather(*map(begin, group))

    async def restart(self, name: str) -> float:
        """Replaces every process of that name, one after the other, and returns the seconds that it took.

        The new process is ready before the old one drains, unless both need the same address. Raises CommandError if no
        process has that name or a new process does not become ready; the old processes that were not replaced yet keep
        running.
        """
        if name not in self.names:
            raise CommandError(f"no process named {name} runs; name one of {', '.join(self.names)}", UNUSABLE)
        began = time.monotonic()
        async with self._restarting:
            for old in [instance for instance in self._instances if instance.spec.name == name]:
                if old.spec.has_fixed_address:
                    await old.stop()
                new = Instance(self._successor(old.spec), self._logs, self._say)
                self._instances.insert(self._instances.index(old) + 1, new)
                try:
                    await new.start()
                except CommandError:
                    # The old process keeps running, because only the new one is broken.
                    self._instances.remove(new)
                    raise
                await old.stop()
                self._instances.remove(old)
        return time.monotonic() - began

    def _successor(self, spec: ProcessSpec) -> ProcessSpec:
        if spec.has_fixed_address:
            return spec
        # Old and new process overlap, and a data directory belongs to one process.
        number = self._numbers[spec.name] = self._numbers[spec.name] + 1
        arguments = list(spec.arguments)
        place = arguments.index("--data") + 1
        arguments[place] = str(Path(arguments[place]).with_name(f"{spec.name}-{number}"))
        return replace(spec, number=number, arguments=tuple(arguments))

    async def stop(self) -> None:
        """Stops the gateway, then the services concurrently, then the registry."""
        for group in (self._instances[-1:], self._instances[1:-1], self._instances[:1]):
            await asyncio.gather(*(instance.stop() for instance in group))
        self._instances.clear()
