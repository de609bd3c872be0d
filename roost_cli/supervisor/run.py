"""Runs `roost up --processes`: starts all processes of the mesh, waits for a signal, and stops them."""

from __future__ import annotations

import asyncio
import signal
import sys

from roost_cli import runfile
from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.supervisor import control
from roost_cli.supervisor.supervisor import Supervisor
from roost_cli.supervisor.topology import process_specs, replicas_of
from services.platform.config import Settings
from services.platform.files import open_data_dir
from services.platform.rpc import errors


def supervise(settings: Settings, replicas: str) -> None:
    """Runs a mesh of many processes until SIGTERM or SIGINT. `replicas` is the number of processes of services, as the
    text `NAME=N,…`. Raises CommandError if a process cannot start."""
    try:
        open_data_dir(settings.data_dir)
    except errors.RoostError as error:
        raise CommandError(error.message, UNUSABLE) from error
    asyncio.run(_supervise(settings, replicas))


async def _supervise(settings: Settings, replicas: str) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    logs = settings.data_dir / "logs"
    supervisor = Supervisor(process_specs(settings, replicas_of(replicas)), logs, _print)
    try:
        starting = asyncio.ensure_future(supervisor.start())
        asked = asyncio.ensure_future(stopping.wait())
        await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        starting.result()
        async with control.serving_restarts(supervisor, control.path_of(settings.grpc_address)):
            _print(
                f"{runfile.READY}: http://{settings.http_address} · gRPC {settings.grpc_address} · logs in {logs.resolve()}"
            )
            await stopping.wait()
    finally:
        _print("stopping …")
        await supervisor.stop()
        _print("stopped")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
