"""Signs page cursors. A cursor is opaque to clients, is valid only for one list of one owner, and cannot be forged."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import orjson

from services.platform.rpc import errors

# The size in bytes of the key that a mesh generates to sign cursors.
KEY_BYTES = 32
# Maximum length of a cursor in characters. A longer string is rejected without decoding. The longest cursor contains a
# number, a name, and the tweet ids of one second of a stream.
MAX_CURSOR_CHARS = 512
# Length of the MAC in bytes: 128 bits cannot be guessed, and keep the cursor short.
_SEAL_BYTES = 16


class Cursors:
    """Signs and verifies cursors with one key, which is the same in all processes of a mesh and survives restarts.

    Raises ValueError if the key has fewer than 16 or more than 64 bytes.
    """

    def __init__(self, key: bytes) -> None:
        if not _SEAL_BYTES <= len(key) <= hashlib.blake2b.MAX_KEY_SIZE:
            raise ValueError(f"a cursor key has {_SEAL_BYTES} to {hashlib.blake2b.MAX_KEY_SIZE} bytes")
        self._key = key

    def seal(self, list_name: str, owner_id: int, *values: int | str) -> str:
        """Returns a cursor that contains the values (64-bit integers or strings): base64url without padding.

        `owner_id` is the id of the only user who may use the cursor, that is, the reader of a private list; 0 for a
        public list. Raises ValueError if the cursor is longer than MAX_CURSOR_CHARS.
        """
        payload = orjson.dumps(values)
        token = base64.urlsafe_b64encode(self._seal(list_name, owner_id, payload) + payload).rstrip(b"=").decode()
        if len(token) > MAX_CURSOR_CHARS:
            raise ValueError(f"the cursor has {len(token)} characters, but `open` accepts at most {MAX_CURSOR_CHARS}")
        return token

    def open(self, token: str, list_name: str, owner_id: int) -> tuple[int | str, ...]:
        """Returns the values of a cursor.

        Raises INVALID_ARGUMENT (field `cursor`) if `token` is not a cursor that `seal` returned for this list and
        owner.
        """
        try:
            raw = token.encode("ascii") if len(token) <= MAX_CURSOR_CHARS else b""
            sealed = base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4))
        except (UnicodeEncodeError, binascii.Error):
            raise _refusal() from None
        seal, payload = sealed[:_SEAL_BYTES], sealed[_SEAL_BYTES:]
        # The decoder ignores characters outside base64 and surplus bits, so several strings decode to the same bytes.
        # Only the string that `seal` returned is accepted.
        genuine = base64.urlsafe_b64encode(sealed).rstrip(b"=") == raw
        if not hmac.compare_digest(seal, self._seal(list_name, owner_id, payload)) or not genuine:
            raise _refusal()
        return tuple(orjson.loads(payload))

    def _seal(self, list_name: str, owner_id: int, payload: bytes) -> bytes:
        # The signed message begins with the length of the list's name, so that two different triples of list, owner and
        # payload never give the same bytes.
        name = list_name.encode()
        message = b"%d %d %s%s" % (len(name), owner_id, name, payload)
        # Keyed BLAKE2 (RFC 7693) is a MAC as strong as HMAC-SHA-256 at a fifth of the cost; each read of a home
        # timeline signs a cursor.
        return hashlib.blake2b(message, digest_size=_SEAL_BYTES, key=self._key).digest()


def _refusal() -> errors.RoostError:
    return errors.invalid_argument("not a cursor of this list: start again without one", field="cursor")
