"""Turns the error of a server that cannot listen on its address into a sentence that says what to do."""

from __future__ import annotations

import errno

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

_CAUSES = {
    errno.EADDRINUSE: "another program listens there",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "this user may not listen on that port",
}


def cannot_listen(protocol: str, address: str, option: str, error: OSError) -> errors.RoostError:
    """Returns UNAVAILABLE (ADDRESS_TAKEN) for a server of `protocol` (HTTP or gRPC) that cannot listen on `address`,
    because of `error`. `option` is the command-line option that sets the address."""
    cause = _CAUSES.get(error.errno or 0, error.strerror or str(error))
    return errors.unavailable(
        f"cannot serve {protocol} on {address}: {cause}; choose another address with {option} HOST:PORT",
        reason=Reason.ADDRESS_TAKEN,
    )
