"""The growth of the CPU time of a function with its input: a limit in seconds would depend on the machine."""

from __future__ import annotations

import time
from collections.abc import Callable

RUNS = 5
# A linear function takes 4 times as long for the whole text as for its first quarter, a quadratic one 16 times.
MAX_GROWTH = 9.0
# Below this time the clock and the caches of the CPU decide.
LEAST_S = 0.002


def cpu_s(run: Callable[[], object]) -> float:
    """Returns the least CPU time of this thread, in seconds, of RUNS calls."""
    found = []
    for _ in range(RUNS):
        begun = time.thread_time()
        run()
        found.append(time.thread_time() - begun)
    return min(found)


def assert_linear(run: Callable[[str], object], text: str) -> None:
    """Fails if `run` takes more than MAX_GROWTH times as long for the text as for its first quarter."""
    quarter, whole = (cpu_s(lambda part=part: run(part)) for part in (text[: len(text) // 4], text))  # type: ignore[misc]
    assert whole < MAX_GROWTH * max(quarter, LEAST_S), f"{quarter:.4f} s for a quarter, {whole:.4f} s for the whole"
