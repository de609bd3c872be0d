"""The key that signs access tokens, and the tokens. Only this service has it; `services.platform.auth.tokens` is the other
side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import orjson
from joserfc import jwt
from joserfc.jwk import OKPKey
from roost.identity.v1 import auth_service_pb2

from services.platform.auth import tokens


def new_key() -> bytes:
    """A fresh Ed25519 key pair as a JWK in JSON, its id the key's RFC 7638 thumbprint."""
    key = OKPKey.generate_key("Ed25519")
    return orjson.dumps({**key.as_dict(private=True), "kid": key.thumbprint()})


class Signer:
    """Signs access tokens with one key. `jwk` is what `new_key` made; `clock` is in unix seconds."""

    def __init__(self, jwk: bytes, clock: Callable[[], float]) -> None:
        fields = orjson.loads(jwk)
        self._key = OKPKey.import_key({**fields, "use": "sig", "alg": tokens.ALGORITHM})
        self._header = {"alg": tokens.ALGORITHM, "typ": tokens.TOKEN_TYPE, "kid": fields["kid"]}
        self._clock = clock
        self._public = auth_service_pb2.SigningKey(
            kty="OKP", crv="Ed25519", x=fields["x"], kid=fields["kid"], use="sig", alg=tokens.ALGORITHM
        )

    def sign(self, user_id: int, session_id: int, roles: Iterable[str], ttl_s: int) -> str:
        """An access token for `ttl_s` seconds from now; `session_id` 0 where no session stands behind it. Costs about
        0.1 ms.
        """
        now = self._clock()
        claims = {
            "iss": tokens.ISSUER,
            "aud": tokens.AUDIENCE,
            "sub": str(user_id),
            "sid": str(session_id),
            "roles": sorted(roles),
            # Milliseconds: a log-in right after "end all sessions" must not count as before it.
            "iat": round(now, 3),
            "exp": int(now) + ttl_s,
        }
        return jwt.encode(self._header, claims, self._key, registry=tokens.REGISTRY, default_type=None)

    def public_keys(self) -> auth_service_pb2.GetSigningKeysResponse:
        """The keys that tokens may be signed with, as a new message."""
        return auth_service_pb2.GetSigningKeysResponse(keys=[self._public])
