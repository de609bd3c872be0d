"""How much the gateway has under way, and the bounds beyond which it refuses."""

from __future__ import annotations

from types import TracebackType

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# Requests worked on at once. More would only wait longer: a refusal costs 20 µs and says when to come back.
MAX_AT_WORK = 1_000
# Bytes of large bodies held at once. One such body has up to 1 MiB, and each of some thousand connections may send one.
MAX_LARGE_BYTES = 64 << 20


class _Waiting:
    """Takes one request out of the work for the length of a `with` block."""

    __slots__ = ("_load",)

    def __init__(self, load: Load) -> None:
        self._load = load

    def __enter__(self) -> None:
        self._load.at_work -= 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._load.at_work += 1


class Load:
    """Counts the requests that are worked on: `with load:` around each.

    A request that waits for its client's bytes costs a connection, but no work: `with load.waiting:` around each such wait takes it
    out of the count. Otherwise a thousand clients which send nothing more would shut out everybody else.
    """

    __slots__ = ("at_work", "large_bytes", "waiting")

    def __init__(self) -> None:
        self.at_work = 0
        self.large_bytes = 0
        self.waiting = _Waiting(self)

    def __enter__(self) -> None:
        self.at_work += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.at_work -= 1

    def check(self) -> None:
        """Raises UNAVAILABLE (OVERLOADED) if more than MAX_AT_WORK requests are worked on, the caller's among them."""
        if self.at_work > MAX_AT_WORK:
            raise errors.unavailable("too many requests are under way", reason=Reason.OVERLOADED)

    def hold(self, large_bytes: int) -> None:
        """Counts bytes of a large body as held; raises UNAVAILABLE (OVERLOADED) and counts nothing above MAX_LARGE_BYTES."""
        if self.large_bytes + large_bytes > MAX_LARGE_BYTES:
            raise errors.unavailable("too many large requests are under way", reason=Reason.OVERLOADED)
        self.large_bytes += large_bytes

    def release(self, large_bytes: int) -> None:
        """Ends what `hold` counted."""
        self.large_bytes -= large_bytes
