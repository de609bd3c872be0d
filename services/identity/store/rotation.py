"""The rotation rule of refresh tokens. Both adapters apply it within a transaction."""

from __future__ import annotations

from typing import NamedTuple

from services.identity.store import Rotation

# Milliseconds after the use of a token's successor in which the token can be used again: for two browser tabs that
# refresh at once, and for retries after a slow response. Far longer than a request takes, far shorter than stealing and
# using a token takes.
REFRESH_GRACE_MS = 10_000
HASH_BYTES = 32


class RotationState(NamedTuple):
    """The stored state of a session's refresh tokens, as SHA-256 hashes.

    `used` is the last used token followed by the one before it (empty at first). `offered` are the successors of the last used one: one,
    or several issued by an earlier release. `used_ms` is the time of the last rotation, in milliseconds since 1970.
    """

    used: bytes
    offered: bytes
    used_ms: int

    def use(self, presented: bytes, successor: bytes, now_ms: int) -> RotationState | Rotation:
        """Returns the new state after `presented` is used, or a Rotation if the state does not change.

        DONE means that the token was used before and may be repeated: the client gets the same `successor` again. A
        repeat is valid until REFRESH_GRACE_MS after the successor was used. REUSED means that the token is no longer
        valid.
        """
        last, before = self.used[:HASH_BYTES], self.used[HASH_BYTES:]
        if presented in (self.offered[at : at + HASH_BYTES] for at in range(0, len(self.offered), HASH_BYTES)):
            return RotationState(presented + last, successor, now_ms)
        if presented == last or (presented == before and now_ms - self.used_ms <= REFRESH_GRACE_MS):
            return Rotation.DONE
        return Rotation.REUSED
