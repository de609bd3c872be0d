"""Serves BatchService: each call of a batch passes the interceptors and is served as if it had arrived alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any

import grpc
from roost.batch.v1 import batch_service_pb2 as pb
from roost.batch.v1 import batch_service_pb2_grpc as pb_grpc

from services.platform.rpc import errors
from services.platform.rpc.context import Actor, Call, current
from services.platform.rpc.interceptors import InterceptedMethod
from services.platform.transport.call_log import log_call
from services.platform.transport.remote import AUTHORIZATION_KEY

# Returns (actor, caller) of a call with these metadata. Raises UNAUTHENTICATED or UNAVAILABLE.
Identify = Callable[[Mapping[str, str]], Awaitable[tuple[Actor, str]]]


class BatchServicer(pb_grpc.BatchServiceServicer):
    """Serves batches with the methods of this process. `endpoints` maps paths to methods.

    `identify` gets the `authorization` of each call and returns its actor. If `log_calls` is true, each call is logged.
    """

    def __init__(
        self, endpoints: Mapping[str, InterceptedMethod], identify: Identify, *, log_calls: bool = False
    ) -> None:
        self._endpoints = endpoints
        self._identify = identify
        self._log_calls = log_calls

    async def Call(self, request: pb.CallRequest, context: Any) -> pb.CallResponse:
        """Serves the calls of the batch concurrently and returns one result for each, in order.

        Each call has its own deadline, status and current call; the failure of one call does not affect the other
        calls. The caller of all of them is the caller of the batch. Streaming or unknown methods get UNIMPLEMENTED.
        """
        caller = current().caller
        results = await asyncio.gather(*(self._serve(item, caller) for item in request.items))
        return pb.CallResponse(results=results)

    async def _serve(self, item: pb.CallItem, caller: str) -> pb.CallResult:
        trailing = _TrailingMetadata()
        began, code, user_id = monotonic(), grpc.StatusCode.OK, 0
        try:
            endpoint = self._endpoints.get(item.method)
            if endpoint is None or endpoint.method.server_streaming or endpoint.method.client_streaming:
                raise errors.unimplemented(f"{item.method} is not served here")
            actor, _ = await self._identify({AUTHORIZATION_KEY: item.authorization} if item.authorization else {})
            user_id = actor.user_id
            deadline = asyncio.get_running_loop().time() + min(endpoint.cap_s, item.deadline_ms / 1000)
            who = (actor, caller, item.request_id, item.traceparent)
            call = Call(item.method, *who, deadline, address=item.client_address)
            answer = await endpoint.unary(item.payload, call, trailing)
            return pb.CallResult(payload=answer.SerializeToString(), trailing_metadata=trailing.texts)
        except errors.RoostError as error:
            status, code = error.status(), error.code
            return pb.CallResult(
                code=status.code,
                message=error.message,
                details=status.SerializeToString(),
                trailing_metadata=trailing.texts,
            )
        finally:
            if self._log_calls:
                log_call(item.method, code, began, user_id, item.request_id, item.traceparent)


class _TrailingMetadata:
    """Collects the trailing metadata that a servicer sets. Drops binary values: a CallResult holds text values only."""

    __slots__ = ("texts",)

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self.texts = {key: value for key, value in trailing_metadata if isinstance(value, str)}
