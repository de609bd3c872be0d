"""The key source of the processes: identity's response as keys of the platform."""

from __future__ import annotations

from roost.identity.v1 import auth_service_pb2 as pb

from services.platform.auth.tokens import VerificationKey
from services.shared.signing_keys import verification_keys


def test_verification_keys_with_another_curve_are_skipped() -> None:
    keys = [pb.SigningKey(kty="OKP", crv="Ed25519", x="AA", kid="1"), pb.SigningKey(kty="EC", crv="P-256", kid="2")]
    assert verification_keys(pb.GetSigningKeysResponse(keys=keys)) == [VerificationKey("1", "AA")]
