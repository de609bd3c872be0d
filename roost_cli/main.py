"""The entry point of the `roost` command. It imports the rest only after it has decided what Ctrl-C does meanwhile."""

from __future__ import annotations

import sys

from roost_cli.interrupts import exit_at_interrupt


def main() -> None:
    """Runs the command with the arguments of this process and exits with its exit code."""
    exit_at_interrupt()
    # The imports take half a second or more.
    from roost_cli.commands import run

    code = run(sys.argv[1:])
    # The command is done: Ctrl-C while the interpreter exits must not show a traceback. `run` closes stdout or stderr
    # if its reader has exited.
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    exit_at_interrupt()
    sys.exit(code)
