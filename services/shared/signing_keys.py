"""Fetches the public keys that verify access tokens from identity.

The platform, which verifies the tokens, cannot call identity itself, because it imports no domain stub.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc.aio
from roost.identity.v1 import auth_service_pb2 as pb
from roost.identity.v1 import auth_service_pb2_grpc as pb_grpc

from services.platform.auth.tokens import VerificationKey

# The only supported curve, because the platform verifies only EdDSA signatures.
CURVE = "Ed25519"


class IdentityKeySource:
    """The key source of every process: identity issues all access tokens."""

    service = "identity"

    async def fetch(self, channel: grpc.aio.Channel) -> Sequence[VerificationKey]:
        """Returns identity's Ed25519 keys; skips keys of other curves.

        Raises the AioRpcError of the call if it fails.
        """
        response = await pb_grpc.AuthServiceStub(channel).GetSigningKeys(pb.GetSigningKeysRequest())
        return verification_keys(response)


def verification_keys(response: pb.GetSigningKeysResponse) -> Sequence[VerificationKey]:
    """Returns the Ed25519 keys of a response; skips keys of other curves, which a later release may publish."""
    return [VerificationKey(key.kid, key.x) for key in response.keys if key.crv == CURVE]
