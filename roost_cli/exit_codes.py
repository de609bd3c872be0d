"""Defines the exit codes of the command, and the exception that ends a command with a message instead of a
traceback."""

from __future__ import annotations

import grpc

from services.platform.rpc import errors

# Exit codes. FAULTS: the command found a fault, or the mesh rejected a call. UNUSABLE: the usage is wrong, or no mesh
# responds. Scripts need to distinguish the two.
OK = 0
FAULTS = 1
UNUSABLE = 2

# Status codes of calls that the mesh did not answer, because it is unreachable or too slow.
_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class CommandError(Exception):
    """Ends the command. `message` is printed on stderr; `code` is the exit code."""

    def __init__(self, message: str, code: int = UNUSABLE) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def call_error(error: grpc.aio.AioRpcError, doing: str = "") -> CommandError:
    """Returns a CommandError with the status, reason, message and field violations of a failed gRPC call. `doing` names
    the attempted action, such as "minting tokens"; it begins the message."""
    found = errors.from_rpc(error)
    message = next((f"{v.field}: {v.message}" for v in found.violations if v.message == found.message), found.message)
    lines = [f"{doing + ': ' if doing else ''}{found.code.name}: {message}"]
    if found.reason and found.reason != found.code.name:
        lines.append(f"  reason: {found.reason}")
    # Most errors repeat a violation as their message. Such a violation is not printed again below the message.
    shown = [f"{violation.field}: {violation.message}" for violation in found.violations]
    lines.extend(f"  {line}" for line in shown if line != message)
    if notes := errors.notes_of(found):
        lines.append(f"  {notes}")
    if found.retry_after_s is not None:
        lines.append(f"  retry after {found.retry_after_s:g} s")
    return CommandError("\n".join(lines), UNUSABLE if found.code in _UNREACHABLE else FAULTS)
