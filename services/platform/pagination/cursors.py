"""Page cursors: opaque to clients, bound to one list of one reader, and impossible to make up."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import orjson

from services.platform.rpc import errors

# Of a key that a mesh makes itself.
KEY_BYTES = 32
# Room for a bound, a slate name and the ids of a stream's last second; more is not a cursor of ours.
MAX_CURSOR_CHARS = 512
# 128 bits: guessing is out of reach, and the cursor stays short.
_SEAL_BYTES = 16


class Cursors:
    """Seals and opens cursors with one key, which all replicas of a service share and keep over restarts."""

    def __init__(self, key: bytes) -> None:
        if not _SEAL_BYTES <= len(key) <= hashlib.blake2b.MAX_KEY_SIZE:
            raise ValueError(f"a cursor key has {_SEAL_BYTES} to {hashlib.blake2b.MAX_KEY_SIZE} bytes")
        self._key = key

    def seal(self, list_name: str, owner_id: int, *values: int | str) -> str:
        """The values (64-bit integers, strings) as a base64url token without padding.

        `owner_id` is who may use it: the reader of a private list, 0 for a public one. ValueError if it gets too long.
        """
        payload = orjson.dumps(values)
        token = base64.urlsafe_b64encode(self._seal(list_name, owner_id, payload) + payload).rstrip(b"=").decode()
        if len(token) > MAX_CURSOR_CHARS:
            raise ValueError(f"a cursor of {len(token)} characters; at most {MAX_CURSOR_CHARS} are accepted back")
        return token

    def open(self, token: str, list_name: str, owner_id: int) -> tuple[int | str, ...]:
        """The sealed values. INVALID_ARGUMENT on `cursor` for all but a token sealed for this list and owner."""
        try:
            raw = token.encode("ascii") if len(token) <= MAX_CURSOR_CHARS else b""
            sealed = base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4))
        except (UnicodeEncodeError, binascii.Error):
            raise _refusal() from None
        seal, payload = sealed[:_SEAL_BYTES], sealed[_SEAL_BYTES:]
        # The decoder skips what is not base64 and drops odd bits; only the spelling that we gave out is ours.
        genuine = base64.urlsafe_b64encode(sealed).rstrip(b"=") == raw
        if not hmac.compare_digest(seal, self._seal(list_name, owner_id, payload)) or not genuine:
            raise _refusal()
        return tuple(orjson.loads(payload))

    def _seal(self, list_name: str, owner_id: int, payload: bytes) -> bytes:
        # Lengths first, so that no two (list, owner, payload) spell the same bytes.
        name = list_name.encode()
        message = b"%d %d %s%s" % (len(name), owner_id, name, payload)
        # Keyed BLAKE2 (RFC 7693): a MAC like HMAC-SHA-256, at a fifth of the cost; a home read seals one cursor.
        return hashlib.blake2b(message, digest_size=_SEAL_BYTES, key=self._key).digest()


def _refusal() -> errors.RoostError:
    return errors.invalid_argument("not a cursor of this list: start again without one", field="cursor")
