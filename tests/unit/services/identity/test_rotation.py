"""The rotation rule of refresh tokens."""

from __future__ import annotations

from services.identity.store import Rotation
from services.identity.store.rotation import HASH_BYTES, RotationState

A, B, C, D = (bytes([number]) * HASH_BYTES for number in range(4))


def test_use_any_of_several_offered_successors_rotates() -> None:
    kept = RotationState(A, B + C, 1_000)
    assert kept.use(B, D, 2_000) == RotationState(B + A, D, 2_000)
    assert kept.use(C, D, 2_000) == RotationState(C + A, D, 2_000)
    # Bytes that span two hashes are not a hash.
    assert kept.use((B + C)[1 : HASH_BYTES + 1], D, 2_000) is Rotation.REUSED
