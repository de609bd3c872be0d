"""Counts the requests that the gateway is processing and the bytes of their large bodies, and rejects requests above a
bound."""

from __future__ import annotations

from types import TracebackType

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# Maximum number of active requests; further ones are rejected with UNAVAILABLE (OVERLOADED). With more, each request
# would only wait longer. A rejection costs 20 µs.
MAX_ACTIVE = 1_000
# Maximum number of bytes of large bodies in memory; further ones are rejected with UNAVAILABLE (OVERLOADED). A body has
# up to 1 MiB, and each of some thousand connections can send one at the same time.
MAX_LARGE_BYTES = 64 << 20


class _ClientWait:
    """Context manager around a wait for bytes from a client. During the wait, the request is not counted as active."""

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

    A request that waits for bytes from its client is not active: enter `with load.waiting_for_client:` around each
    wait. Otherwise a thousand clients that stop sending would lock out all others.
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
        """Raises UNAVAILABLE (OVERLOADED) if more than MAX_ACTIVE requests are active. The request that calls this
        method is one of the active requests."""
        if self.active > MAX_ACTIVE:
            raise errors.unavailable(
                "the server is processing too many requests: retry later", reason=Reason.OVERLOADED
            )

    def reserve(self, large_bytes: int) -> None:
        """Adds bytes of a large body to the bytes in memory. Raises UNAVAILABLE (OVERLOADED), and adds nothing, if the
        sum would exceed MAX_LARGE_BYTES."""
        if self.large_bytes + large_bytes > MAX_LARGE_BYTES:
            raise errors.unavailable(
                "the server is receiving too many large requests: retry later", reason=Reason.OVERLOADED
            )
        self.large_bytes += large_bytes

    def release(self, large_bytes: int) -> None:
        """Subtracts bytes that `reserve` added."""
        self.large_bytes -= large_bytes
