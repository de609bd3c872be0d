"""Mints access tokens for many users with the operator token, and renews them before they expire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import grpc
from roost.identity.v1 import auth_service_pb2, auth_service_pb2_grpc

from roost_cli.connection import Metadata, bearer
from roost_cli.rate_control import batches, deadline_s, with_retries

MINT_TOKENS = "/roost.identity.v1.AuthService/MintTokens"

# Number of users for whom one MintTokens call mints tokens: the maximum in the proto.
MINT_BATCH = 1_000
# Default and maximum lifetime of a token in seconds. The proto states the same maximum.
DEFAULT_TTL_S = 3600
MAX_TTL_S = 86_400


class TokenCache:
    """Caches the call metadata with the access tokens of many users. Renews all tokens after half their lifetime, so
    that no token expires during a call.

    `operator` is the call metadata with the operator token. `ttl_s` is the lifetime of the tokens in seconds. `clock`
    returns seconds.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        operator: Metadata,
        ttl_s: int = DEFAULT_TTL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stub = auth_service_pb2_grpc.AuthServiceStub(channel)
        self._operator = operator
        self._ttl_s = ttl_s
        self._clock = clock
        self._metadata: dict[int, Metadata] = {}
        self._renew_at = float("inf")
        self._renewing = asyncio.Lock()

    async def admit(self, user_ids: Iterable[int]) -> None:
        """Mints and caches tokens for the users. Skips users who are unknown, suspended or deactivated. Raises
        AioRpcError or CommandError as `with_retries` does."""
        self._renew_at = min(self._renew_at, self._clock() + self._ttl_s / 2)
        for ids in batches(user_ids, MINT_BATCH):
            for user_id, token in (await mint(self._stub, self._operator, ids, self._ttl_s)).items():
                self._metadata[user_id] = bearer(token)

    def __contains__(self, user_id: int) -> bool:
        return user_id in self._metadata

    async def act_as(self, user_id: int) -> Metadata:
        """Returns the call metadata with the user's token. Raises KeyError if `admit` has minted no token for the
        user."""
        if self._clock() >= self._renew_at:
            async with self._renewing:
                if self._clock() >= self._renew_at:
                    self._renew_at = float("inf")
                    await self.admit(list(self._metadata))
        return self._metadata[user_id]


async def mint(
    stub: auth_service_pb2_grpc.AuthServiceStub, operator: Metadata, user_ids: Iterable[int], ttl_s: int
) -> dict[int, str]:
    """Mints access tokens for at most MINT_BATCH users and returns them by user id. Each token is valid for `ttl_s`
    seconds (1 to MAX_TTL_S).

    Leaves out users who are unknown, suspended or deactivated. Raises AioRpcError or CommandError as `with_retries`
    does.
    """
    request = auth_service_pb2.MintTokensRequest(user_ids=user_ids, ttl_seconds=ttl_s)
    answer = await with_retries(lambda: stub.MintTokens(request, metadata=operator, timeout=deadline_s(MINT_TOKENS)))
    return {token.user_id: token.access_token for token in answer.tokens}
