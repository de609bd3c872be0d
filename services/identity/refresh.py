"""Creates and verifies refresh tokens. The store holds only their SHA-256 hashes.

A session is a chain of refresh tokens: each refresh returns the successor of the token that was used. A token contains
its user id, its session id and a MAC made with a secret key of the service. So a forged token is rejected without
reading the store, and a genuine token that is no longer valid is recognized as reused without a list of old tokens. The
successor is derived from the token with the same key, so two refreshes with the same token return the same successor
although no token is stored.
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

# Length in bytes of the random part of a token: 256 bits cannot be guessed.
RANDOM_BYTES = 32
# Length of the MAC in bytes: 128 bits cannot be guessed.
_MAC_BYTES = 16
_ID_BYTES = 8
# Prefix of the HMAC input for a successor. Successors and MACs are derived with the same key; the prefix makes their
# inputs differ (domain separation).
_SUCCESSOR = b"successor"
_TOKEN_BYTES = 2 * _ID_BYTES + RANDOM_BYTES + _MAC_BYTES


@dataclass(frozen=True, slots=True)
class DecodedRefreshToken:
    """A refresh token whose MAC was verified. `hash` is the SHA-256 of the token, which the store holds; `body` is the
    token without the MAC, and secret."""

    user_id: int
    session_id: int
    hash: bytes
    body: bytes = field(repr=False)


class RefreshTokens:
    """Creates and verifies refresh tokens. `key` is the MAC key; `random_bytes` must be cryptographically secure."""

    def __init__(self, key: bytes, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._key = key
        self._random_bytes = random_bytes

    def make(self, user_id: int, session_id: int) -> tuple[str, bytes]:
        """Returns a new random token of the session, and the SHA-256 of the token."""
        ids = user_id.to_bytes(_ID_BYTES, "big") + session_id.to_bytes(_ID_BYTES, "big")
        return self._with_mac(ids + self._random_bytes(RANDOM_BYTES))

    def successor(self, presented: DecodedRefreshToken) -> tuple[str, bytes]:
        """Returns the successor of the token `presented`, and the SHA-256 of the successor. A token has the same
        successor at each call.

        Deriving the successor needs the key and the whole token, so a stolen copy of the store is not enough.
        """
        ids = presented.body[: 2 * _ID_BYTES]
        return self._with_mac(ids + hmac.digest(self._key, _SUCCESSOR + presented.body, "sha256"))

    def read(self, text: str) -> DecodedRefreshToken:
        """Verifies and decodes a token. Raises UNAUTHENTICATED if `make` or `successor` did not create it with this
        key."""
        try:
            token = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        except (UnicodeEncodeError, binascii.Error):
            raise invalid_refresh_token() from None
        body, mac = token[:-_MAC_BYTES], token[-_MAC_BYTES:]
        if len(token) != _TOKEN_BYTES or not hmac.compare_digest(mac, self._mac(body)):
            raise invalid_refresh_token()
        user_id = int.from_bytes(body[:_ID_BYTES], "big")
        session_id = int.from_bytes(body[_ID_BYTES : 2 * _ID_BYTES], "big")
        return DecodedRefreshToken(user_id, session_id, hashlib.sha256(token).digest(), body)

    def _with_mac(self, body: bytes) -> tuple[str, bytes]:
        token = body + self._mac(body)
        return base64.urlsafe_b64encode(token).rstrip(b"=").decode(), hashlib.sha256(token).digest()

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:_MAC_BYTES]


def invalid_refresh_token() -> errors.RoostError:
    """Returns the error for every invalid refresh token. It is always the same, so that it does not reveal the
    reason."""
    return errors.unauthenticated("the refresh token is not valid: log in again", reason=Reason.REFRESH_TOKEN_INVALID)
