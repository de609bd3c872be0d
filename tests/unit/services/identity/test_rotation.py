"""Which refresh tokens of a session are good."""

from __future__ import annotations

from services.identity.store import Rotation
from services.identity.store.rotation import HASH_BYTES, RotationState

A, B, C, D = (bytes([number]) * HASH_BYTES for number in range(4))


def test_present_takes_any_successor_that_an_earlier_release_gave() -> None:
    kept = RotationState(A, B + C, 1_000)
    assert kept.use(B, D, 2_000) == RotationState(B + A, D, 2_000)
    assert kept.use(C, D, 2_000) == RotationState(C + A, D, 2_000)
    # What lies across two of them is none.
    assert kept.use((B + C)[1 : HASH_BYTES + 1], D, 2_000) is Rotation.REUSED
