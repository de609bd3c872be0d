"""Refresh tokens: random, kept only as hashes, and recognisable without a look into the store.

A session is a family of them. Each names its session and carries a seal, so a made-up token is refused at once, while a
genuine one that is neither the last used nor its successor is known to be dead, however old it is, with no list of the
dead to keep. A token's successor follows from it and the key: whoever refreshes twice gets the same one, though it is
kept nowhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

RANDOM_BYTES = 32
# 128 bits: guessing is out of reach.
_SEAL_BYTES = 16
_ID_BYTES = 8
# Keeps what the key makes of a token for its successor apart from the seal.
_SUCCESSOR = b"successor"
_TOKEN_BYTES = 2 * _ID_BYTES + RANDOM_BYTES + _SEAL_BYTES


@dataclass(frozen=True, slots=True)
class Refresh:
    """A genuine refresh token: whose, of which session, and the SHA-256 under which the store knows it. `body` is secret."""

    user_id: int
    session_id: int
    hash: bytes
    body: bytes = field(repr=False)


class RefreshTokens:
    """Makes and reads refresh tokens. `key` seals them; `random_bytes` must be fit for secrets."""

    def __init__(self, key: bytes, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._key = key
        self._random_bytes = random_bytes

    def make(self, user_id: int, session_id: int) -> tuple[str, bytes]:
        """A new token of the session, and its hash."""
        ids = user_id.to_bytes(_ID_BYTES, "big") + session_id.to_bytes(_ID_BYTES, "big")
        return self._sealed(ids + self._random_bytes(RANDOM_BYTES))

    def successor(self, presented: Refresh) -> tuple[str, bytes]:
        """Returns the token that follows this one in its session, always the same, and its hash.

        Only the key and the whole token give it: the hash that a store keeps is not enough.
        """
        ids = presented.body[: 2 * _ID_BYTES]
        return self._sealed(ids + hmac.digest(self._key, _SUCCESSOR + presented.body, "sha256"))

    def read(self, text: str) -> Refresh:
        """What the token says. UNAUTHENTICATED for anything that `make` did not make with this key."""
        try:
            token = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        except (UnicodeEncodeError, binascii.Error):
            raise refusal() from None
        body, seal = token[:-_SEAL_BYTES], token[-_SEAL_BYTES:]
        if len(token) != _TOKEN_BYTES or not hmac.compare_digest(seal, self._seal(body)):
            raise refusal()
        user_id = int.from_bytes(body[:_ID_BYTES], "big")
        session_id = int.from_bytes(body[_ID_BYTES : 2 * _ID_BYTES], "big")
        return Refresh(user_id, session_id, hashlib.sha256(token).digest(), body)

    def _sealed(self, body: bytes) -> tuple[str, bytes]:
        token = body + self._seal(body)
        return base64.urlsafe_b64encode(token).rstrip(b"=").decode(), hashlib.sha256(token).digest()

    def _seal(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:_SEAL_BYTES]


def refusal() -> errors.RoostError:
    """The one answer to a refresh token that buys nothing, whatever the reason."""
    return errors.unauthenticated("the refresh token is not valid: log in again", reason=Reason.REFRESH_TOKEN_INVALID)
