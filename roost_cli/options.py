"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Grpc = Annotated[
    str | None, typer.Option("--grpc", metavar="HOST:PORT", help="The mesh; the one that runs here by default.")
]
