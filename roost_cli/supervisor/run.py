"""Runs a mesh of several processes: starts them, waits for a signal, and stops them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from roost_cli import runfile
from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.supervisor import control
from roost_cli.supervisor.groups import Group, notation
from roost_cli.supervisor.shared_addresses import SharedAddresses, shared_addresses
from roost_cli.supervisor.supervisor import Supervisor
from roost_cli.supervisor.topology import Secrets, process_specs
from services.platform.config import Settings, storage_text
from services.platform.files import open_data_dir
from services.platform.rpc import errors
from services.platform.sqlite.lockfile import LockFile

# The file in the data directory that a supervisor locks: two would write the same logs, and data of the same processes.
LOCK = "supervisor.lock"


def supervise(settings: Settings, groups: Sequence[Group]) -> None:
    """Runs the processes of `groups` until SIGTERM or SIGINT. Raises CommandError if another supervisor uses the data
    directory, an address is occupied, or a process cannot start."""
    try:
        lock = LockFile(open_data_dir(settings.data_dir) / LOCK)
    except errors.RoostError as error:
        raise CommandError(error.message, UNUSABLE) from error
    with closing(lock), shared_addresses(settings) as addresses:
        asyncio.run(_supervise(settings, groups, addresses))


async def _supervise(settings: Settings, groups: Sequence[Group], addresses: SharedAddresses) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    logs = settings.data_dir / "logs"
    shared = Secrets.of(settings)
    supervisor = Supervisor(process_specs(settings, groups, addresses, shared), logs, _print)
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
        run = runfile.RunFile(
            addresses.grpc,
            addresses.http,
            os.getpid(),
            time.time(),
            shared.operator_token,
            data=str(settings.data_dir.resolve()),
            checkout=str(runfile.CHECKOUT),
            groups=notation(groups),
            backend=settings.backend,
            namespace=settings.namespace,
            kafka_bootstrap_servers=settings.kafka_bootstrap_servers,
        )
        async with control.serving_requests(supervisor, control.path_of(addresses.grpc)):
            with _written(run):
                _print(
                    f"{runfile.READY}: http://{addresses.http} · gRPC {addresses.grpc} · logs in {logs.resolve()} · "
                    f"{storage_text(settings)}"
                )
                await stopping.wait()
    finally:
        _print("stopping …")
        await supervisor.stop()
        _print("stopped")


@contextmanager
def _written(run: runfile.RunFile) -> Iterator[None]:
    """Writes the run file, and removes it at the end of the block. Prints what to do if it cannot be written."""
    try:
        runfile.write(run)
    except OSError as error:
        _print(f"no run file ({error.strerror}): commands need --grpc and ROOST_OPERATOR_TOKEN, or set XDG_RUNTIME_DIR")
        yield
        return
    try:
        yield
    finally:
        runfile.remove(run)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
