"""One RPC as it is served: the chain around a servicer's method."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Collection, Mapping
from time import monotonic
from typing import Any, Protocol

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from roost.options.v1 import options_pb2 as options

from services.platform.rpc import errors
from services.platform.rpc.context import NEVER, OPERATOR, Call, current_call
from services.platform.rpc.contract import Method, methods
from services.platform.rpc.deadlines import with_deadline
from services.platform.rpc.interceptors.metrics import observer_of
from services.platform.rpc.interceptors.validation import check_caller_only, validate
from services.platform.rpc.reasons import Reason

log = structlog.get_logger()

# With less time left an answer would reach nobody: refused before any work.
MIN_REMAINING_S = 0.002
# The loop's timers count whole milliseconds, and may fire one before their time.
EARLY_S = 0.002

# What a dependency may say through us: the caller can act on these. Anything else a dependency says is our fault.
PROPAGATED_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)


class ServicerContext(Protocol):
    """What a servicer may use of gRPC's context; everything else is in `services.platform.rpc.context`."""

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Sends (key, value) pairs behind the answer."""


class InterceptedMethod:
    """A servicer's method behind access, deadline, validation, error mapping and metrics."""

    __slots__ = ("_bounds", "_callers", "_observer", "_open", "_serve", "cap_s", "method")

    def __init__(self, method: Method, servicer: object | None) -> None:
        """Serves the servicer's method of that name; without a servicer refuses every call that is allowed, as not served."""
        self.method = method
        self.cap_s = method.policy.deadline_ms / 1000 or NEVER
        # Read once: a look into a message costs as much as the check.
        self._open = method.policy.access == options.ACCESS_PUBLIC
        self._bounds = method.bounds or None
        self._callers = frozenset(method.policy.callers) if method.policy.access == options.ACCESS_MESH else None
        self._serve: Any = None if servicer is None else getattr(servicer, method.name)
        if getattr(self._serve, "__module__", "").endswith("_pb2_grpc"):
            # The generated servicer's own method: part of the contract, not served yet.
            self._serve = None
        self._observer = observer_of(method.service, method.name)

    async def unary(
        self, request: Message | bytes, call: Call, context: ServicerContext, *, trusted_local: bool = False
    ) -> Message:
        """Serves one unary call in the current task; raises RoostError and nothing else but cancellation.

        Bytes are parsed once the caller may use the method: a megabyte of empty messages takes 70 ms. `trusted_local`
        says that a service of
        this process made the request.
        """
        current_call.set(call)
        begun = self._observer.begin()
        code = grpc.StatusCode.OK
        try:
            coroutine = self._serve(self._authorize(request, call, begun, trusted_local), context)
            try:
                waited_for = coroutine.send(None)
            except StopIteration as returned:
                return returned.value  # type: ignore[no-any-return]
            return await with_deadline(call.deadline, coroutine, waited_for)
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            mapped = self._to_roost_error(error, call)
            code = mapped.code
            raise mapped from error
        finally:
            self._observer.end(begun, code)

    async def stream(self, request: Message | bytes, call: Call, context: ServicerContext) -> AsyncIterator[Message]:
        """Serves one server stream; run it in a task of its own, because it sets the task's current call."""
        current_call.set(call)
        begun = self._observer.begin()
        code = grpc.StatusCode.OK
        try:
            admitted = self._authorize(request, call, begun)
            async with asyncio.timeout_at(None if call.deadline == NEVER else call.deadline):
                async for message in self._serve(admitted, context):
                    yield message
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            mapped = self._to_roost_error(error, call)
            code = mapped.code
            raise mapped from error
        finally:
            self._observer.end(begun, code)

    @property
    def served(self) -> bool:
        """Whether a servicer stands behind it."""
        return self._serve is not None

    def _authorize(self, request: Message | bytes, call: Call, now: float, trusted_local: bool = False) -> Message:
        """Returns the request once policy and field rules admit it."""
        callers = self._callers
        if callers is not None or not self._open:
            check_access(self.method, call, callers)
        if call.deadline - now < MIN_REMAINING_S:
            raise errors.deadline_exceeded("too little time was left to begin")
        if isinstance(request, bytes):
            request = self.parsed(request)
        # Before the rules look at any item. Even a service of this process may ask for too much, and the bounds are all that is left to
        # check of its requests: the full rules cost 5 to 100 µs, the bounds under one.
        if self._bounds is not None:
            self._bounds.check(request)
        if not trusted_local or callers is None:
            validate(self.method, request)
        if self.method.caller_only:
            check_caller_only(self.method, request, call)
        if self._serve is None:
            raise errors.unimplemented(f"{self.method.path} is not served yet")
        return request

    def parsed(self, data: bytes) -> Message:
        """Returns the request that the bytes are. Raises INVALID_ARGUMENT if they are none."""
        try:
            return self.method.request.FromString(data)
        except DecodeError:
            raise errors.invalid_argument("the request is not a valid message") from None

    def _to_roost_error(self, error: Exception, call: Call) -> errors.RoostError:
        """The error as the caller is told it; what only the log may know of it goes there."""
        mapped = self._told(error, call)
        if notes := errors.notes_of(mapped):
            log.warning("grpc_call.refused", method=self.method.path, code=mapped.code.name, notes=notes)
        return mapped

    def _told(self, error: Exception, call: Call) -> errors.RoostError:
        if isinstance(error, errors.RoostError):
            return error
        if isinstance(error, TimeoutError) and monotonic() >= call.deadline - EARLY_S:
            return errors.deadline_exceeded()
        if isinstance(error, grpc.aio.AioRpcError) and error.code() in PROPAGATED_CODES:
            return errors.from_rpc(error)
        if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.CANCELLED:
            # What a server that stops says of calls that it has not begun. Our caller did not cancel: then nobody would be told.
            return errors.unavailable("a service that was asked is stopping")
        return unforeseen(error, self.method.path, call.request_id)


def unforeseen(error: Exception, method: str, request_id: str) -> errors.RoostError:
    """Logs an exception that nobody foresaw and returns what the caller is told of it: an id to find it by."""
    error_id = secrets.token_hex(8)
    log.error("rpc.failed", method=method, error_id=error_id, request_id=request_id, exc_info=error)
    return errors.internal(error_id)


def check_access(method: Method, call: Call, callers: Collection[str] | None = None) -> None:
    """Raises UNAUTHENTICATED or PERMISSION_DENIED if the method's rule does not admit the call; a rule not set admits nobody.

    `callers` may be given for a method of the mesh, to spare a look into its policy.
    """
    access = method.policy.access
    if access == options.ACCESS_PUBLIC:
        return
    if access == options.ACCESS_MESH:
        allowed = method.policy.callers if callers is None else callers
        if call.caller not in allowed:
            raise errors.permission_denied(f"{method.name} is for {', '.join(sorted(allowed))} only", Reason.MESH_ONLY)
        return
    if access == options.ACCESS_USER:
        if not call.actor.user_id:
            raise errors.unauthenticated()
        return
    if call.caller == OPERATOR:
        return
    if not call.actor.user_id:
        raise errors.unauthenticated()
    needed = {"admin"} if access == options.ACCESS_ADMIN else {"admin", "moderator"}
    if not needed & call.actor.roles:
        raise errors.permission_denied(
            f"{method.name} needs the role {' or '.join(sorted(needed))}", Reason.ROLE_MISSING
        )


def intercepted_methods(servicers: Mapping[str, object]) -> dict[str, InterceptedMethod]:
    """The endpoints of a service by path; ValueError where a servicer serves what the contract does not know."""
    found = {
        method.path: InterceptedMethod(method, servicers[method.service])
        for method in methods().values()
        if method.service in servicers
    }
    unknown = set(servicers) - {endpoint.method.service for endpoint in found.values()}
    if unknown:
        raise ValueError(f"the contract has no service {', '.join(sorted(unknown))}")
    return found


def unserved(folders: Collection[str], served: Collection[str]) -> dict[str, InterceptedMethod]:
    """Endpoints without a servicer for the methods of these folders whose paths are not among `served`.

    So a method of the contract that nobody implements yet still checks who calls before it says so.
    """
    return {
        path: InterceptedMethod(method, None)
        for path, method in methods().items()
        if method.service_name in folders and path not in served
    }
