"""Refresh tokens: genuine ones are decoded, all others are rejected without reading a store."""

from __future__ import annotations

import base64

import grpc
import pytest

from services.identity.refresh import RefreshTokens
from services.platform.rpc import errors

KEY = b"k" * 32


def test_read_token_returns_user_and_session() -> None:
    made = RefreshTokens(KEY)
    token, digest = made.make(42, 7)
    for read in (made.read(token), RefreshTokens(KEY).read(token)):
        assert (read.user_id, read.session_id, read.hash) == (42, 7, digest)


def test_successor_of_one_token_is_deterministic_and_valid() -> None:
    first = RefreshTokens(KEY).read(RefreshTokens(KEY).make(42, 7)[0])
    token, digest = RefreshTokens(KEY).successor(first)
    assert RefreshTokens(KEY).successor(first) == (token, digest)
    following = RefreshTokens(KEY).read(token)
    assert (following.user_id, following.session_id, following.hash) == (42, 7, digest)
    # Chains of successors have no cycle, and other tokens and keys have other successors.
    line = {token}
    for _ in range(100):
        token, _ = RefreshTokens(KEY).successor(following)
        following = RefreshTokens(KEY).read(token)
        line.add(token)
    assert len(line) == 101
    assert RefreshTokens(b"o" * 32).successor(first)[1] != digest
    another = RefreshTokens(KEY).read(RefreshTokens(KEY).make(42, 7)[0])
    assert RefreshTokens(KEY).successor(another)[1] != digest


def test_repr_of_token_hides_secret() -> None:
    read = RefreshTokens(KEY, lambda count: b"S" * count).read(
        RefreshTokens(KEY, lambda count: b"S" * count).make(1, 2)[0]
    )
    assert "SSSS" in str(read.body)
    assert "SSSS" not in repr(read)


def test_make_twice_returns_different_tokens() -> None:
    made = RefreshTokens(KEY)
    assert len({made.make(42, 7)[0] for _ in range(100)}) == 100


def test_read_forged_token_is_unauthenticated() -> None:
    token, _ = RefreshTokens(KEY).make(42, 7)
    raw = base64.urlsafe_b64decode(token + "==")
    flipped = [raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :] for at in range(len(raw))]
    forgeries = [base64.urlsafe_b64encode(wrong).decode().rstrip("=") for wrong in flipped]
    others = RefreshTokens(b"o" * 32).make(42, 7)[0]
    for wrong in ("", "x", "é", "%%%%", token[:-1], token + "A", token + token, others, *forgeries):
        with pytest.raises(errors.RoostError) as caught:
            RefreshTokens(KEY).read(wrong)
        assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
