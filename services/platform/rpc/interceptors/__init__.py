"""The interceptors of every RPC: access, deadline, validation, error mapping and metrics.

`endpoint` holds the chain, `metrics` its counters, `validation` the field rules of the contract. The gRPC server and the in-process
channel use the same chain, so no rule can hold for one of them only.
"""

from services.platform.rpc.interceptors.endpoint import (
    InterceptedMethod,
    ServicerContext,
    check_access,
    intercepted_methods,
    unexpected_error,
    unserved,
)

__all__ = [
    "InterceptedMethod",
    "ServicerContext",
    "check_access",
    "intercepted_methods",
    "unexpected_error",
    "unserved",
]
