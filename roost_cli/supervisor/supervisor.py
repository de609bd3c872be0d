"""The supervisor: starts the processes of a mesh in order, keeps them running, restarts them one by one, stops them in reverse."""

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
from roost_cli.supervisor.topology import Part

# Python starts: more at once only make each other slower.
STARTED_AT_ONCE = 2 * (os.cpu_count() or 1)


class Supervisor:
    """Runs the parts of one mesh. Logs of the processes go to `logs`."""

    def __init__(self, parts: Sequence[Part], logs: Path, say: Say) -> None:
        self._logs = logs
        self._say = say
        self._parts = parts
        self._instances: list[Instance] = []
        self._numbers = {part.name: part.number for part in parts}
        # One restart at a time: two would halve a service with two replicas.
        self._restarting = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        """What runs, in start order."""
        return list(dict.fromkeys(part.name for part in self._parts))

    def pids(self) -> dict[str, list[int]]:
        """The processes that run now, by name."""
        found: dict[str, list[int]] = defaultdict(list)
        for instance in self._instances:
            if instance.pid:
                found[instance.part.name].append(instance.pid)
        return dict(found)

    async def start(self) -> None:
        """The first part, then those between side by side, then the last. CommandError where one does not become ready."""
        self._logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        instances = [Instance(part, self._logs, self._say) for part in self._parts]
        for group in (instances[:1], instances[1:-1], instances[-1:]):
            slots = asyncio.Semaphore(STARTED_AT_ONCE)
            self._instances += group

            async def begin(instance: Instance, slots: asyncio.Semaphore = slots) -> None:
                async with slots:
                    await instance.start()

            await asyncio.gather(*map(begin, group))

    async def restart(self, name: str) -> float:
        """Replaces every process of that name, one after the other; seconds taken. CommandError where there is none, or
        where a new one does not become ready: what still ran of the old ones goes on then.

        The new one is ready before the old one drains, unless both would need one address.
        """
        if name not in self.names:
            raise CommandError(f"nothing named {name} runs; there are {', '.join(self.names)}", UNUSABLE)
        began = time.monotonic()
        async with self._restarting:
            for old in [instance for instance in self._instances if instance.part.name == name]:
                if old.part.alone:
                    await old.stop()
                new = Instance(self._successor(old.part), self._logs, self._say)
                self._instances.insert(self._instances.index(old) + 1, new)
                try:
                    await new.start()
                except CommandError:
                    # What runs goes on running: the fault lies in what is new.
                    self._instances.remove(new)
                    raise
                await old.stop()
                self._instances.remove(old)
        return time.monotonic() - began

    def _successor(self, part: Part) -> Part:
        if part.alone:
            return part
        # A data directory belongs to one process, and for a moment there are two.
        number = self._numbers[part.name] = self._numbers[part.name] + 1
        arguments = list(part.arguments)
        place = arguments.index("--data") + 1
        arguments[place] = str(Path(arguments[place]).with_name(f"{part.name}-{number}"))
        return replace(part, number=number, arguments=tuple(arguments))

    async def stop(self) -> None:
        """The gateway first, the registry last, the services side by side."""
        for group in (self._instances[-1:], self._instances[1:-1], self._instances[:1]):
            await asyncio.gather(*(instance.stop() for instance in group))
        self._instances.clear()
