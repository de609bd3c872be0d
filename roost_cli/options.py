"""Command-line options and settings that several subcommands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from roost_cli.exit_codes import UNUSABLE, CommandError
from services.platform.config import PREFIX, Settings

Grpc = Annotated[
    str | None,
    typer.Option(
        "--grpc",
        metavar="HOST:PORT",
        help="The gRPC address of the mesh. By default ROOST_GRPC_ADDRESS, or the mesh that runs here.",
    ),
]

Ops = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="Where /livez, /readyz and /metrics of the process are [127.0.0.1, any free port]."
    ),
]

# The name of the gateway as an argument of `roost serve` and `roost restart`, which also accept the names of services.
GATEWAY = "gateway"


def settings_with(options: Mapping[str, Any]) -> Settings:
    """Returns the settings, overridden by the given options; an option that is None is ignored.

    Raises CommandError with one sentence per invalid setting.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise CommandError("\n".join(_sentence(fault) for fault in error.errors()), UNUSABLE) from error
    except ValueError as error:
        raise CommandError(str(error), UNUSABLE) from error


def address_of(text: str, option: str) -> tuple[str, int]:
    """Splits HOST:PORT into host and port; port 0 means any free port. Raises CommandError if the text is malformed.

    The message names the option (`--http`, `--grpc` or `--ops`) and its setting, because the text comes from either.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        setting = f"{option.removeprefix('--')}_address"
        names = f"{setting} ({option}, {PREFIX}{setting.upper()})"
        raise CommandError(f"{names} must be HOST:PORT, such as 127.0.0.1:8080, not {text!r}", UNUSABLE)
    return host.strip("[]"), int(port)


def _sentence(fault: ErrorDetails) -> str:
    """Returns a sentence that says what the setting must be. It leaves the value out, because that may be a secret."""
    name = str(fault["loc"][0]) if fault["loc"] else "?"
    if fault["type"].startswith("bool"):
        words = "must be on or off"
    else:
        words = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    return f"the setting {name} ({PREFIX}{name.upper()}) {words}"
