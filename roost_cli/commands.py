"""The subcommands of `roost`: parses the arguments, runs the subcommand, and turns errors into exit codes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from roost_cli.exit_codes import FAULTS, UNUSABLE, CommandError
from roost_cli.interrupts import INTERRUPTED, raise_at_interrupt
from services.platform.rpc import errors


@dataclass(frozen=True, slots=True)
class _Command:
    module: str
    function: str
    summary: str


# The subcommands by name. Only the module of the requested subcommand is imported, so that the command starts fast, and
# a module that cannot be imported disables only its own subcommand.
COMMANDS = {
    "up": _Command("roost_cli.up", "up", "Run every service, in one process or in several."),
    "serve": _Command("roost_cli.serve", "serve", "Run some services in this process, with or without the gateway."),
    "restart": _Command(
        "roost_cli.restart",
        "restart",
        "Restart the processes of a service, in a mesh of several, without a failed call.",
    ),
    "topology": _Command("roost_cli.topology", "topology", "Print which process runs what, and who calls whom how."),
    "call": _Command("roost_cli.call", "call", "Call one method of the API."),
    "load": _Command("roost_cli.load.command", "load", "Load a graph and tweets from files, or do random operations."),
    "verify": _Command("roost_cli.verify.command", "verify", "Check that every home timeline is exact."),
    "drill": _Command(
        "roost_cli.drill.command", "drill", "Kill a temporary mesh and check that no acknowledged write is lost."
    ),
    "bench": _Command("roost_cli.bench.command", "bench", "Measure a mesh, and a minimal server in the same run."),
    "search": _Command("roost_cli.search", "search", "Rebuild the search index."),
    "events": _Command("roost_cli.events", "events", "Show the event log, replay it, retry dead letters."),
    "token": _Command("roost_cli.token", "token", "Print access tokens of users."),
    "migrate": _Command("roost_cli.migrate", "migrate", "Bring the Cassandra keyspaces up to date."),
    "doctor": _Command("roost_cli.doctor", "doctor", "Check that Roost can run here and that the mesh answers."),
}


class _LazyGroup(TyperGroup):
    """A typer group that imports the module of a subcommand at its first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = COMMANDS.get(cmd_name)
        built = None if command is None else _build(cmd_name, command)
        # The modules of the command are imported, so it can handle KeyboardInterrupt.
        raise_at_interrupt()
        return built


def _build(name: str, command: _Command) -> Any:
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(command.module), command.function)
        if isinstance(function, typer.Typer):
            group = get_command(function)
            group.name, group.short_help = name, command.summary
            return group
        settings: dict[str, Any] = {}
    except ImportError as error:
        reason = str(error)

        def function() -> None:
            raise CommandError(f"`roost {name}` cannot run here: {reason}")

        settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    single.command(name, context_settings=settings, short_help=command.summary)(function)
    return get_command(single)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"roost {metadata.version('roost')}")
        raise typer.Exit


app = typer.Typer(
    cls=_LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback()
def roost(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
) -> None:
    """Roost: a Twitter-class service mesh.

    Exit codes: 0 on success; 1 if faults were found or the mesh rejected a call; 2 if the usage is wrong or no mesh
    responds.
    """


def run(arguments: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns its exit code. Prints an error as one message on stderr."""
    try:
        get_command(app).main(args=list(arguments), prog_name="roost")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else UNUSABLE
    except CommandError as stop:
        typer.echo(f"roost: {stop.message}", err=True)
        return stop.code
    except errors.RoostError as stop:
        # Commands that open a store or a server in this process, such as `migrate`, raise RoostError. Its message is a
        # sentence for people.
        typer.echo(f"roost: {stop.message}", err=True)
        return UNUSABLE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has exited (`roost call --list | head`); that is not an error.
        sys.stderr.close()
        return 0
    except Exception as error:
        if "--debug" in arguments:
            raise
        typer.echo(f"roost: unexpected {type(error).__name__}: {error} (`roost --debug …` shows where)", err=True)
        return FAULTS
    return 0
