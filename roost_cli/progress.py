"""Shows the progress of long commands: as a bar on a terminal, as lines of text without a terminal, or not at all."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

# Minimum number of seconds between two lines of progress if the output is not a terminal. Such output usually goes to a
# log file, where few lines are enough.
PLAIN_EVERY_S = 5.0
# Minimum number of seconds between two updates of a bar. Updating it after every item would take longer than the items
# themselves.
BAR_EVERY_S = 0.1


# A function that adds its argument to the number of finished items of a phase.
Advance = Callable[[int], None]


class Phase:
    """One phase of a command: its finished items (`done`), all items (`total`, 0 if unknown), duration and rate.

    `clock` returns seconds. `show` is called with the phase after it has advanced, at most every `every_s` seconds.
    """

    def __init__(
        self, title: str, total: int, clock: Callable[[], float], show: Callable[[Phase], None], every_s: float
    ) -> None:
        self.title = title
        self.total = total
        self.done = 0
        self._clock = clock
        self._show = show
        self._every_s = every_s
        self._began = self._shown = clock()
        self._ended: float | None = None

    def advance(self, count: int = 1) -> None:
        """Adds `count` to the number of finished items."""
        self.done += count
        now = self._clock()
        if now - self._shown >= self._every_s:
            self._shown = now
            self._show(self)

    def end(self) -> None:
        """Ends the phase: its duration no longer grows."""
        self._ended = self._clock()

    @property
    def seconds(self) -> float:
        """Returns the duration of the phase in seconds: until `end` was called, or until now if it was not."""
        return (self._clock() if self._ended is None else self._ended) - self._began

    @property
    def rate(self) -> float:
        """Returns the number of finished items per second; 0 if no time has passed."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    def summary(self) -> str:
        """Returns one line with the phase's title, count, duration and rate."""
        return f"{self.title}: {self.done:,} in {self.seconds:.1f} s ({self.rate:,.0f}/s)"


class Progress(Protocol):
    """Shows the progress of a command, one phase after another."""

    def phase(self, title: str, total: int) -> AbstractContextManager[Phase]:
        """Begins a phase, shows its progress during the `with` block, and ends the phase. `total` is the number of
        items, 0 if unknown."""

    def say(self, text: str) -> None:
        """Prints one line."""


class Silent:
    """Shows no progress, but measures the duration of each phase."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Phase]:
        phase = Phase(title, total, self._clock, lambda _: None, PLAIN_EVERY_S)
        try:
            yield phase
        finally:
            phase.end()

    def say(self, text: str) -> None:
        pass


class Plain:
    """Prints the progress as lines of text without control characters, for log files and pipes."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Phase]:
        phase = Phase(title, total, self._clock, self._line, PLAIN_EVERY_S)
        try:
            yield phase
            phase.end()
            self.say(phase.summary())
        finally:
            phase.end()

    def say(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()

    def _line(self, phase: Phase) -> None:
        of = f" of {phase.total:,}" if phase.total else ""
        self.say(f"{phase.title}: {phase.done:,}{of} ({phase.rate:,.0f}/s)")


class Bar:
    """Draws the progress as a bar on a terminal."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Phase]:
        bars, task = self._bar(title, total)
        phase = Phase(
            title, total, self._clock, lambda p: bars.update(task, completed=p.done, total=p.total or None), BAR_EVERY_S
        )
        with bars:
            try:
                yield phase
            finally:
                phase.end()
                bars.update(task, completed=phase.done, total=phase.total or phase.done)
        self.say(phase.summary())

    def say(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()

    def _bar(self, title: str, total: int) -> tuple[Bars, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bars = Progress(*columns, console=Console(file=self._out), transient=True)
        return bars, bars.add_task(title, total=total or None)


def for_stream(out: TextIO | None = None) -> Progress:
    """Returns a Bar if `out` (by default stderr) is a terminal, otherwise a Plain."""
    out = out or sys.stderr
    return Bar(out) if out.isatty() else Plain(out)
