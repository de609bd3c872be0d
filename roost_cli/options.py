"""Defines command-line options that several subcommands share, and combines options with the settings."""

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

Cluster = Annotated[
    bool,
    typer.Option(
        "--cluster", help="Keep data in Cassandra, Redis, Kafka and OpenSearch. `scripts/backends up` starts them."
    ),
]

# The name of the gateway in the arguments of `roost serve` and `roost restart`. All other names are those of services.
GATEWAY = "gateway"


def settings_with(options: Mapping[str, Any]) -> Settings:
    """Returns the settings. Each option overrides the setting with the same name, unless the option is None.

    Raises CommandError with one sentence for each invalid setting.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise CommandError("\n".join(_sentence(fault) for fault in error.errors()), UNUSABLE) from error
    except ValueError as error:
        raise CommandError(str(error), UNUSABLE) from error


def address_of(text: str, option: str) -> tuple[str, int]:
    """Returns the host and the port of the text HOST:PORT; port 0 means any free port. Raises CommandError if the text
    is malformed.

    `option` is `--http`, `--grpc` or `--ops`. The error names the option and the setting, because the text can come
    from the option or from the setting.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        setting = f"{option.removeprefix('--')}_address"
        names = f"{setting} ({option}, {PREFIX}{setting.upper()})"
        raise CommandError(f"{names} must be HOST:PORT, such as 127.0.0.1:8080, not {text!r}", UNUSABLE)
    return host.strip("[]"), int(port)


def _sentence(fault: ErrorDetails) -> str:
    """Returns a sentence that says what the setting must be. It does not contain the value, which may be a secret."""
    name = str(fault["loc"][0]) if fault["loc"] else "?"
    if fault["type"].startswith("bool"):
        words = "must be on or off"
    else:
        words = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    return f"the setting {name} ({PREFIX}{name.upper()}) {words}"
