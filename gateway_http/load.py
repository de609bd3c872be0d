"""Counts the active requests of the gateway, and rejects new ones above a bound."""

from __future__ import annotations

from types import TracebackType

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# The most active requests. With more, each would only wait longer; a rejection costs 20 µs and contains the time after
# which the client may retry.
MAX_ACTIVE = 1_000
# Bytes of large bodies in memory at once. One has up to 1 MiB, and each of some thousand connections may send one.
MAX_LARGE_BYTES = 64 << 20


class _ClientWait:
    """Context manager that does not count one request as active while it waits for its client."""

    __slots__ = ("_load",)

    def __init__(self, load: Load) -> None:
        self._load = load

    def __enter__(self) -> None:
        self._load.active -= 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._load.active += 1


class Load:
    """Counts active requests; enter `with load:` around each.

    A request that waits for bytes of its client is not active: enter `with load.waiting:` around each such wait. Otherwise a thousand
    clients that stop sending would lock out all others.
    """

    __slots__ = ("active", "large_bytes", "waiting_for_client")

    def __init__(self) -> None:
        self.active = 0
        self.large_bytes = 0
        self.waiting_for_client = _ClientWait(self)

    def __enter__(self) -> None:
        self.active += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.active -= 1

    def check(self) -> None:
        """Raises UNAVAILABLE (OVERLOADED) if more than MAX_ACTIVE requests are active, the caller's included."""
        if self.active > MAX_ACTIVE:
            raise errors.unavailable(
                "the server is processing too many requests: retry later", reason=Reason.OVERLOADED
            )

    def reserve(self, large_bytes: int) -> None:
        """Reserves memory for bytes of a large body. Raises UNAVAILABLE (OVERLOADED), and reserves nothing, above MAX_LARGE_BYTES."""
        if self.large_bytes + large_bytes > MAX_LARGE_BYTES:
            raise errors.unavailable(
                "the server is receiving too many large requests: retry later", reason=Reason.OVERLOADED
            )
        self.large_bytes += large_bytes

    def release(self, large_bytes: int) -> None:
        """Releases bytes that `reserve` reserved."""
        self.large_bytes -= large_bytes
