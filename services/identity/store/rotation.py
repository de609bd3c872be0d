"""The rotation rule of refresh tokens. Both adapters apply it within a transaction."""

from __future__ import annotations

from typing import NamedTuple

from services.identity.store import Rotation

# Time in milliseconds for which a token can be used again after its successor was used; a later use ends the session.
# Two browser tabs that refresh at once need this time, and so do retries after a slow response. The time is far longer
# than a request takes, and far shorter than an attacker needs to steal and use a token.
REFRESH_GRACE_MS = 10_000
# Length of a SHA-256 hash in bytes.
HASH_BYTES = 32


class RotationState(NamedTuple):
    """The stored state of a session's refresh tokens, as SHA-256 hashes.

    `used` is the hash of the last used token, followed by the hash of the token used before it; each is missing until
    there is such a token. `offered` is the hash of the token to use next: the successor of the last used token, or the
    first token of the session. Earlier releases could store several successors, one after the other. `used_ms` is the
    time of the last rotation in Unix milliseconds.
    """

    used: bytes
    offered: bytes
    used_ms: int

    def use(self, presented: bytes, successor: bytes, now_ms: int) -> RotationState | Rotation:
        """Returns the new state after the token with the hash `presented` is used, or a Rotation if the state does not
        change.

        DONE means that the token was used before and may be used again: the client gets the same `successor` again. A
        token may be used again until REFRESH_GRACE_MS after its successor was used. REUSED means that the token is no
        longer valid.
        """
        last, before = self.used[:HASH_BYTES], self.used[HASH_BYTES:]
        if presented in (self.offered[at : at + HASH_BYTES] for at in range(0, len(self.offered), HASH_BYTES)):
            return RotationState(presented + last, successor, now_ms)
        if presented == last or (presented == before and now_ms - self.used_ms <= REFRESH_GRACE_MS):
            return Rotation.DONE
        return Rotation.REUSED
