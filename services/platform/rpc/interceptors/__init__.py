"""What happens around every RPC, whichever channel it came by: access, deadline, validation, error mapping, metrics.

`endpoint` is the chain itself, `metrics` what it counts, `validation` the field rules of the contract. One chain serves the socket
and the in-process channel, so a rule cannot hold on one and not on the other.
"""

from services.platform.rpc.interceptors.endpoint import (
    InterceptedMethod,
    ServicerContext,
    check_access,
    intercepted_methods,
    unforeseen,
    unserved,
)

__all__ = ["InterceptedMethod", "ServicerContext", "check_access", "intercepted_methods", "unforeseen", "unserved"]
