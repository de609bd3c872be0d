"""Channels to services in other processes, and the routing channel that a service uses.

These channels add to grpc.aio: the deadline of the current call limits the calls that are made while it is served; the
user's token, the request id, the trace and the client's address are forwarded; the calling service authenticates with
the mesh secret. gRPC retries retry-safe methods within a retry budget, and RetryingCall retries writes with an
idempotency key.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Generator, Mapping
from typing import Any

import grpc

from services.platform.ids.random_hex import random_hex
from services.platform.rpc import errors
from services.platform.rpc.context import NEVER, current_call
from services.platform.rpc.contract import Method, methods
from services.platform.transport.base import AbstractChannel
from services.platform.transport.idempotent_retry import (
    ATTEMPTS,
    BACKOFF_MULTIPLIER,
    FIRST_BACKOFF_S,
    MAX_BACKOFF_S,
    RETRIED_CODES,
    RetryingCall,
    takes_key,
)

# Metadata keys of calls between services.
CALLER_KEY = "roost-caller"
SECRET_KEY = "roost-mesh-secret"  # noqa: S105 (a metadata name, not a secret)
REQUEST_ID_KEY = "x-request-id"
TRACE_KEY = "traceparent"
# The address of the client outside the mesh. A server ignores it if the mesh secret is missing or wrong.
CLIENT_ADDRESS_KEY = "roost-client-address"
AUTHORIZATION_KEY = "authorization"
# The user agent of the client outside the mesh. gRPC's own header `user-agent` describes the process that forwards
# the call.
USER_AGENT_KEY = "roost-user-agent"

# Seconds by which the deadline of a call is earlier than the deadline of the call that made it, because the response
# takes time to arrive.
DEADLINE_MARGIN_S = 0.005

# A ping every 30 s detects a dead peer before the deadlines of most streams pass. A channel without calls sends no
# pings, so it causes no traffic.
CONNECTION_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # gRPC's default backoff grows to two minutes, but a restarted service must be connected again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


def service_config() -> str:
    """Returns gRPC's service config as JSON.

    It sets retries of retry-safe methods with a retry budget, round-robin load balancing and health watches.
    """
    names = [{"service": m.service, "method": m.name} for m in methods().values() if m.policy.retry_safe]
    policy = {
        "maxAttempts": ATTEMPTS,
        "initialBackoff": f"{FIRST_BACKOFF_S}s",
        "maxBackoff": f"{MAX_BACKOFF_S}s",
        "backoffMultiplier": BACKOFF_MULTIPLIER,
        "retryableStatusCodes": [code.name for code in RETRIED_CODES],
    }
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "healthCheckConfig": {"serviceName": ""},
            "methodConfig": [{"name": names, "retryPolicy": policy}],
            # Allows about one retry for ten calls, so that retries do not add to the load during an outage.
            "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
        }
    )


class MeshChannel(AbstractChannel):
    """A channel to one target (any gRPC name, such as `dns:///tweet:50051`), as the service `caller`.

    A call carries the token of the current call's actor or, if it has none, `token`: the operator token in channels of
    the operator, otherwise "". Writes with an idempotency key are retried.
    """

    def __init__(self, target: str, caller: str, mesh_secret: str, token: str = "") -> None:
        options = [("grpc.service_config", service_config()), *CONNECTION_OPTIONS]
        self._channel = grpc.aio.insecure_channel(target, options=options)
        self._identity = ((CALLER_KEY, caller), (SECRET_KEY, mesh_secret))
        self._token = token

    def _callable(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Any:
        start = getattr(self._channel, kind)(method, *args, **kwargs)
        contract = methods().get(method)
        if kind == "unary_unary" and contract is not None:
            start = _naming(start, contract.service_name)
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
        pairs = [*self._identity, (REQUEST_ID_KEY, call.request_id or random_hex(8))]
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
        """Returns the state of the connection."""
        return self._channel.get_state(try_to_connect)

    async def close(self, grace: float | None = None) -> None:
        """Closes the connection. Calls in progress get `grace` seconds to end; if `grace` is None, they are
        cancelled."""
        await self._channel.close(grace)


class _NamedCall:
    """A unary call whose error names the called service if the service cannot be reached."""

    __slots__ = ("_call", "_service")

    def __init__(self, call: Any, service: str) -> None:
        self._call = call
        self._service = service

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._call.__await__())
        except grpc.aio.AioRpcError as error:
            raise with_service(error, self._service) from None

    async def trailing_metadata(self) -> Any:
        """Waits for the response and returns its trailing metadata."""
        return await self._call.trailing_metadata()

    def cancel(self) -> bool:
        """Cancels the call. Returns False if it has ended."""
        return bool(self._call.cancel())


def _naming(start: Callable[..., Any], service: str) -> Callable[..., Any]:
    return lambda *args, **kwargs: _NamedCall(start(*args, **kwargs), service)


def with_service(error: grpc.aio.AioRpcError, service: str) -> grpc.aio.AioRpcError:
    """Returns the error with status details that name the service, if gRPC itself reports that no connection to it works.

    Returns any other error unchanged: one with another code than UNAVAILABLE, or with the status details of a server.
    """
    trailing = error.trailing_metadata() or ()
    if error.code() is not grpc.StatusCode.UNAVAILABLE or any(key == errors.STATUS_KEY for key, _ in trailing):
        return error
    status = errors.unavailable(f"{service} cannot be reached now: retry later").status()
    # gRPC's own text names addresses. It stays the text of the error, which `errors.from_rpc` makes a note for the log.
    return grpc.aio.AioRpcError(
        error.code(),
        grpc.aio.Metadata(),
        grpc.aio.Metadata(*trailing, (errors.STATUS_KEY, status.SerializeToString())),
        error.details(),
    )


def time_left(method: Method | None, timeout: float | None) -> float | None:
    """Returns the seconds that a call may take, None if nothing limits it.

    They are the minimum of `timeout`, the deadline in the method's policy, and the remaining time of the current call
    minus DEADLINE_MARGIN_S, at least 0. `method` is None for a method outside the contract.
    """
    limits = [] if timeout is None else [timeout]
    if method is not None and method.policy.deadline_ms:
        limits.append(method.policy.deadline_ms / 1000)
    deadline = current_call.get().deadline
    if deadline != NEVER:
        limits.append(max(0.0, deadline - asyncio.get_running_loop().time() - DEADLINE_MARGIN_S))
    return min(limits) if limits else None


class RoutingChannel(AbstractChannel):
    """Sends the calls to each service in `remote` (channels by service name, such as `tweet`) over its channel, and all
    other calls over `local`."""

    def __init__(self, local: grpc.aio.Channel, remote: Mapping[str, grpc.aio.Channel]) -> None:
        self._local = local
        self._remote = remote

    def _callable(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Any:
        # "/roost.tweet.v1.TweetService/GetTweet": the service name is the second segment of the package.
        channel = self._remote.get(method.split(".")[1], self._local)
        start: Callable[..., Any] = getattr(channel, kind)(method, *args, **kwargs)
        return start

    async def close(self, grace: float | None = None) -> None:
        """Closes the channels of `remote`; `local` stays open. Calls in progress get `grace` seconds to end."""
        for channel in set(self._remote.values()):
            await channel.close(grace)
