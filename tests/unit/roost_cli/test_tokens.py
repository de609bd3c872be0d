"""Tests that tokens are minted in batches and renewed before they expire."""

from __future__ import annotations

from typing import Any

from roost_cli.load.loader import Operator
from roost_cli.tokens import MINT_BATCH, TokenCache


async def test_token_cache_mints_in_batches_of_contract_size(operator: Operator, state: Any) -> None:
    ids = [state.add_user(f"u{number}") for number in range(MINT_BATCH + 1)]
    book = TokenCache(operator.channel, operator.metadata)
    await book.admit(ids)
    assert state.calls["MintTokens"] == 2
    assert await book.act_as(ids[-1]) == (("authorization", f"Bearer token-{ids[-1]}"),)


async def test_token_cache_renews_at_half_lifetime(operator: Operator, state: Any) -> None:
    user_id = state.add_user("alice")
    now = 0.0
    book = TokenCache(operator.channel, operator.metadata, ttl_s=100, clock=lambda: now)
    await book.admit([user_id])
    now = 49.0
    await book.act_as(user_id)
    assert state.calls["MintTokens"] == 1
    now = 50.0
    await book.act_as(user_id)
    await book.act_as(user_id)
    assert state.calls["MintTokens"] == 2


async def test_token_cache_unknown_or_suspended_user_gets_no_token(operator: Operator, state: Any) -> None:
    state.hidden.add(barred := state.add_user("mallory"))
    book = TokenCache(operator.channel, operator.metadata)
    await book.admit([barred, 5])
    assert barred not in book
    assert 5 not in book
