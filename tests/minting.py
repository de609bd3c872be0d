"""Shared by tests of minted ids: a fake clock, and a check of the error."""

from __future__ import annotations

from services.platform.ids.snowflake import EPOCH_MS
from services.platform.rpc import errors

NOW = EPOCH_MS + 10_000_000


class Clock:
    """A wall clock that only tests and `sleep` advance."""

    def __init__(self, now_ms: int = NOW) -> None:
        self.now_ms = now_ms
        self.slept = 0

    def __call__(self) -> int:
        return self.now_ms

    async def sleep(self, seconds: float) -> None:
        self.slept += 1
        self.now_ms += max(1, round(seconds * 1000))


def unavailable(error: errors.RoostError) -> bool:
    return error.code.name == "UNAVAILABLE"
