"""Channels to services in other processes, and the routing channel that a service is given.

What grpc.aio does not do by itself happens here: deadlines are passed on, the user's token and the trace travel along, the calling
service proves who it is, and what is safe to repeat is retried within a budget, keyed writes too.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from services.platform.caching import read_tracking
from services.platform.rpc.context import NEVER, current_call
from services.platform.rpc.contract import Method, methods
from services.platform.transport.base import AbstractChannel
from services.platform.transport.idempotent_retry import (
    ATTEMPTS,
    CODES,
    FIRST_REST_S,
    GROWTH,
    LONGEST_REST_S,
    RetryingCall,
    takes_key,
)

# Metadata of calls between services.
CALLER_KEY = "roost-caller"
SECRET_KEY = "roost-mesh-secret"  # noqa: S105 (a metadata name, not a secret)
REQUEST_ID_KEY = "x-request-id"
TRACE_KEY = "traceparent"
# The client's address, which a service believes beside the mesh secret only.
CLIENT_ADDRESS_KEY = "roost-client-address"
AUTHORIZATION_KEY = "authorization"
# What the client's program calls itself: gRPC's own header names the service that passes the call on.
USER_AGENT_KEY = "roost-user-agent"

# A callee gets this much less time than its caller: the way back takes some.
DEADLINE_MARGIN_S = 0.005

# 30 s finds a dead peer before most deadlines of streams; without calls no pings: idle channels cost nothing.
CONNECTION_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # gRPC would wait up to two minutes; a service that was restarted is to be found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


def service_config() -> str:
    """gRPC's service config: retries of retry-safe methods, the retry budget, balancing and health watching."""
    names = [{"service": m.service, "method": m.name} for m in methods().values() if m.policy.retry_safe]
    policy = {
        "maxAttempts": ATTEMPTS,
        "initialBackoff": f"{FIRST_REST_S}s",
        "maxBackoff": f"{LONGEST_REST_S}s",
        "backoffMultiplier": GROWTH,
        "retryableStatusCodes": [code.name for code in CODES],
    }
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "healthCheckConfig": {"serviceName": ""},
            "methodConfig": [{"name": names, "retryPolicy": policy}],
            # About one retry in ten calls: an outage is not answered by a storm.
            "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
        }
    )


class MeshChannel(AbstractChannel):
    """A channel to one target (any gRPC name, such as `dns:///tweet:50051`), as the service `caller`.

    Calls carry the user's token of the current call, or else `token`, which is the operator's for the operator.
    """

    def __init__(self, target: str, caller: str, mesh_secret: str, token: str = "") -> None:
        options = [("grpc.service_config", service_config()), *CONNECTION_OPTIONS]
        self._channel = grpc.aio.insecure_channel(target, options=options)
        self._identity = ((CALLER_KEY, caller), (SECRET_KEY, mesh_secret))
        self._token = token

    def _callable(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Any:
        start = getattr(self._channel, kind)(method, *args, **kwargs)
        contract = methods().get(method)
        keyed = kind == "unary_unary" and takes_key(contract)

        def begin(request: Any = None, *, timeout: float | None = None, metadata: Any = (), **rest: Any) -> Any:
            sent = (*self._metadata(), *(metadata or ()))
            left = time_left(contract, timeout)
            if keyed and request.idempotency_key:
                return RetryingCall(lambda left_s: start(request, timeout=left_s, metadata=sent, **rest), left)
            return start(request, timeout=left, metadata=sent, **rest)

        return begin

    def _metadata(self) -> list[tuple[str, str]]:
        call = current_call.get()
        pairs = [*self._identity, (REQUEST_ID_KEY, call.request_id or secrets.token_hex(8))]
        if token := call.actor.token or self._token:
            pairs.append((AUTHORIZATION_KEY, f"Bearer {token}"))
        if call.address:
            pairs.append((CLIENT_ADDRESS_KEY, call.address))
        if call.traceparent:
            pairs.append((TRACE_KEY, call.traceparent))
        if call.user_agent:
            pairs.append((USER_AGENT_KEY, call.user_agent))
        return pairs

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The connection's state."""
        return self._channel.get_state(try_to_connect)

    async def close(self, grace: float | None = None) -> None:
        """Closes the connection; calls under way get `grace` seconds."""
        await self._channel.close(grace)


def time_left(method: Method | None, timeout: float | None) -> float | None:
    """Seconds a call may take: the least of its own limit, its method's, and what its caller has left."""
    limits = [] if timeout is None else [timeout]
    if method is not None and method.policy.deadline_ms:
        limits.append(method.policy.deadline_ms / 1000)
    deadline = current_call.get().deadline
    if deadline != NEVER:
        limits.append(max(0.0, deadline - asyncio.get_running_loop().time() - DEADLINE_MARGIN_S))
    return min(limits) if limits else None


class RoutingChannel(AbstractChannel):
    """Reaches every service: `remote` by folder name, the others over `local`."""

    def __init__(self, local: grpc.aio.Channel, remote: Mapping[str, grpc.aio.Channel]) -> None:
        self._local = local
        self._remote = remote

    def _callable(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Any:
        # "/roost.tweet.v1.TweetService/GetTweet": the folder is the second segment of the package.
        channel = self._remote.get(method.split(".")[1], self._local)
        start: Callable[..., Any] = getattr(channel, kind)(method, *args, **kwargs)
        if channel is self._local:
            return start

        def begin(*said: Any, **options: Any) -> Any:
            # What another process reads, this one does not learn.
            read_tracking.mark_uncacheable()
            return start(*said, **options)

        return begin

    async def close(self, grace: float | None = None) -> None:
        """Closes the remote channels."""
        for channel in set(self._remote.values()):
            await channel.close(grace)
