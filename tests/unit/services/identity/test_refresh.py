"""Refresh tokens: genuine ones are read, all others refused without a look into any store."""

from __future__ import annotations

import base64

import grpc
import pytest

from services.common import errors
from services.identity.refresh import RefreshTokens

KEY = b"k" * 32


def test_a_token_says_whose_it_is() -> None:
    made = RefreshTokens(KEY)
    token, digest = made.make(42, 7)
    assert made.read(token) == (42, 7, digest)
    assert RefreshTokens(KEY).read(token) == (42, 7, digest)


def test_no_two_are_alike() -> None:
    made = RefreshTokens(KEY)
    assert len({made.make(42, 7)[0] for _ in range(100)}) == 100


def test_nothing_else_is_a_token() -> None:
    token, _ = RefreshTokens(KEY).make(42, 7)
    raw = base64.urlsafe_b64decode(token + "==")
    flipped = [raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :] for at in range(len(raw))]
    forgeries = [base64.urlsafe_b64encode(wrong).decode().rstrip("=") for wrong in flipped]
    others = RefreshTokens(b"o" * 32).make(42, 7)[0]
    for wrong in ("", "x", "é", "%%%%", token[:-1], token + "A", token + token, others, *forgeries):
        with pytest.raises(errors.RoostError) as caught:
            RefreshTokens(KEY).read(wrong)
        assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
