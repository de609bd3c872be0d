"""The interceptors of every RPC: access, deadline, validation, error mapping and metrics.

`endpoint` runs the interceptors in order, `metrics` counts calls, `validation` checks the field rules of the contract.
The gRPC server and the in-process channel use the same interceptors, so every rule applies to both.
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
