"""How a session's refresh tokens succeed one another: one rule for both adapters, which apply it within a transaction."""

from __future__ import annotations

from typing import NamedTuple

from services.identity.store import Rotation

# Two tabs of one browser that refresh at once, and a repeat whose answer was slow: far longer than a request takes, far
# shorter than it takes to steal a token and use it.
REFRESH_GRACE_MS = 10_000
HASH_BYTES = 32


class Succession(NamedTuple):
    """What a session keeps of its refresh tokens, as SHA-256 hashes.

    `used` is the last one used, followed by the one used before it (empty at first); `offered` are its successors: one,
    or several that an earlier release gave; `used_ms` is when the last one was used first, in milliseconds since 1970.
    """

    used: bytes
    offered: bytes
    used_ms: int

    def present(self, presented: bytes, successor: bytes, now_ms: int) -> Succession | Rotation:
        """Returns what the session keeps once `presented` was used, whose only successor this is; or a Rotation if it
        keeps what it has: DONE for a repeat, which gets the same successor, DEAD for a token that may not be used any more.

        A repeat is good until the successor was used, and REFRESH_GRACE_MS longer.
        """
        last, before = self.used[:HASH_BYTES], self.used[HASH_BYTES:]
        if presented in (self.offered[at : at + HASH_BYTES] for at in range(0, len(self.offered), HASH_BYTES)):
            return Succession(presented + last, successor, now_ms)
        if presented == last or (presented == before and now_ms - self.used_ms <= REFRESH_GRACE_MS):
            return Rotation.DONE
        return Rotation.DEAD
