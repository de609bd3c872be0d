"""Decides what Ctrl-C does to the `roost` command while it imports modules, runs, and exits.

This module imports nothing slow, because Ctrl-C shows a traceback until `exit_at_interrupt` is called.
"""

from __future__ import annotations

import os
import signal

# Exit code of a command that Ctrl-C ended, as that of a shell: 128 + SIGINT.
INTERRUPTED = 130


def exit_at_interrupt() -> None:
    """From now on Ctrl-C ends the process at once with INTERRUPTED, without any clean-up.

    A KeyboardInterrupt within an import would show a traceback, or be lost in a callback of the import system. Has no
    effect if the process ignores SIGINT, as a job in the background of a script does.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def raise_at_interrupt() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, so that a command can clean up. Has no effect unless
    `exit_at_interrupt` was called before."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(_number: int, _frame: object) -> None:
    os._exit(INTERRUPTED)
