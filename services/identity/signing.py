"""Signs access tokens (JWT, EdDSA). Only this service has the private key; `services.platform.auth.tokens` verifies the
tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import orjson
from joserfc import jwt
from joserfc.jwk import OKPKey
from roost.identity.v1 import auth_service_pb2

from services.platform.auth import tokens


def new_key() -> bytes:
    """Returns a new Ed25519 key pair as a JWK in JSON. Its `kid` is the RFC 7638 thumbprint of the key."""
    key = OKPKey.generate_key("Ed25519")
    return orjson.dumps({**key.as_dict(private=True), "kid": key.thumbprint()})


class Signer:
    """Signs access tokens with one key. `jwk` is a result of `new_key`; `clock` returns Unix seconds."""

    def __init__(self, jwk: bytes, clock: Callable[[], float]) -> None:
        fields = orjson.loads(jwk)
        self._key = OKPKey.import_key({**fields, "use": "sig", "alg": tokens.ALGORITHM})
        self._header = {"alg": tokens.ALGORITHM, "typ": tokens.TOKEN_TYPE, "kid": fields["kid"]}
        self._clock = clock
        self._public = auth_service_pb2.SigningKey(
            kty="OKP", crv="Ed25519", x=fields["x"], kid=fields["kid"], use="sig", alg=tokens.ALGORITHM
        )

    def sign(self, user_id: int, session_id: int, roles: Iterable[str], ttl_s: int) -> str:
        """Returns an access token that expires in `ttl_s` seconds; `session_id` is 0 for a token without a session.
        Takes about 0.1 ms."""
        now = self._clock()
        claims = {
            "iss": tokens.ISSUER,
            "aud": tokens.AUDIENCE,
            "sub": str(user_id),
            "sid": str(session_id),
            "roles": sorted(roles),
            # `iat` has milliseconds, so that a token that is issued right after all tokens of the user were revoked
            # does not count as issued before.
            "iat": round(now, 3),
            "exp": int(now) + ttl_s,
        }
        return jwt.encode(self._header, claims, self._key, registry=tokens.REGISTRY, default_type=None)

    def public_keys(self) -> auth_service_pb2.GetSigningKeysResponse:
        """Returns the public key that verifies the tokens of this signer, in a new message."""
        return auth_service_pb2.GetSigningKeysResponse(keys=[self._public])
