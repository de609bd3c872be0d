"""Options and settings that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from roost_cli.outcome import UNUSABLE, CommandError
from services.common.config import Settings

Grpc = Annotated[
    str | None,
    typer.Option(
        "--grpc",
        metavar="HOST:PORT",
        help="The gRPC address of the mesh. By default ROOST_GRPC, or the mesh that runs here.",
    ),
]


def settings_with(options: Mapping[str, Any]) -> Settings:
    """Returns the settings, with the options given on the command line; None leaves one as it is.

    Raises CommandError, in words, if a setting does not fit.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise CommandError("the settings do not fit: " + "; ".join(faults), UNUSABLE) from error
    except ValueError as error:
        raise CommandError(str(error), UNUSABLE) from error
