"""How a command ends early: with one sentence and an exit code, never with a traceback."""

from __future__ import annotations

import grpc

from services.platform.rpc import errors

# Exit codes. Scripts tell a fault in what was looked at from a command that could not do its work.
OK = 0
FAULTS = 1
UNUSABLE = 2

# Codes that say the mesh could not be asked, rather than that it refused.
_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class CommandError(Exception):
    """Ends the command: `message` goes to stderr, `code` to the shell."""

    def __init__(self, message: str, code: int = UNUSABLE) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def refused(error: grpc.aio.AioRpcError, doing: str = "") -> CommandError:
    """What a stub raised, in words: code, reason, text and violations; `doing` says what was tried."""
    found = errors.from_rpc(error)
    lines = [f"{doing + ': ' if doing else ''}{found.code.name}: {found.message}"]
    if found.reason and found.reason != found.code.name:
        lines.append(f"  reason: {found.reason}")
    lines.extend(f"  {violation.field}: {violation.message}" for violation in found.violations)
    if notes := errors.notes_of(found):
        lines.append(f"  {notes}")
    if found.retry_after_s is not None:
        lines.append(f"  come back after {found.retry_after_s:g} s")
    return CommandError("\n".join(lines), UNUSABLE if found.code in _UNREACHABLE else FAULTS)
