"""`roost doctor`: checks that Roost can run on this machine, and that the meshes that run on it respond."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import grpc as grpc_lib
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from roost_cli import options, runfile
from roost_cli.backends import compose, server_specs
from roost_cli.backends.addresses import missing
from roost_cli.exit_codes import FAULTS
from services.platform.ids.snowflake import EPOCH_MS

GOOD, NOTE, BAD = "ok", "note", "fault"

MIN_PYTHON = (3, 11)
# The lowest usable version of SQLite, because the stores use `RETURNING` and STRICT tables.
MIN_SQLITE = (3, 37)
# If less disk space than this number of bytes is free, the result is a note. A million tweets with their indices take
# about 1 GB.
LOW_DISK_BYTES = 2 * 1024**3
# If less disk space than this number of bytes is free, the result is a fault, because even the start of a mesh can
# fail.
NO_DISK_BYTES = 100 * 1024**2
# Maximum number of seconds by which a file in the data directory may be newer than the clock. If a file is newer still,
# the clock was set back, and new ids could repeat old ones.
CLOCK_SLACK_S = 60.0
# Minimum limit of open file descriptors. Every connection and every store uses some; 1,024, the usual limit, is enough
# for a small mesh.
MIN_DESCRIPTORS = 1_024
# Maximum number of seconds for the response to each gRPC health check.
HEALTH_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: what was checked, the state (GOOD, NOTE or BAD), and words that say what was found and
    what to do."""

    what: str
    state: str
    words: str


def doctor(
    # With `readable=True`, the default, click would reject an unreadable directory before any check runs.
    data: Annotated[
        Path | None, typer.Option("--data", readable=False, help="The data directory [`data` in the checkout].")
    ] = None,
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="The HTTP address to check [127.0.0.1:8080].")
    ] = None,
    grpc: options.Grpc = None,
    java_home: Annotated[
        Path | None, typer.Option("--java-home", envvar="JAVA_HOME", help="The folder of a JDK for `scripts/backends`.")
    ] = None,
) -> None:
    """Check that Roost can run here and that the meshes here answer. Exits with 1 if a check fails."""
    settings = options.settings_with({})
    data_dir = data or settings.data_dir
    checks = [
        python(sys.version_info[:3]),
        *packages(),
        stubs(),
        sqlite(sqlite3.sqlite_version_info),
        descriptors(),
        *data_directory(data_dir, time.time()),
        *asyncio.run(_mesh(grpc, grpc or settings.grpc_address, http or settings.http_address)),
        servers(missing(settings), settings.backend == "cluster"),
        *backends(compose.works(), server_specs.missing_programs(java_home)),
    ]
    for check in checks:
        typer.echo(f"{check.state:<6} {check.what}: {check.words}")
    faults = sum(check.state == BAD for check in checks)
    typer.echo(f"{faults} fault{'' if faults == 1 else 's'} found" if faults else "no faults found")
    if faults:
        raise typer.Exit(FAULTS)


def python(version: tuple[int, ...]) -> Check:
    """Checks that the Python version is new enough."""
    found = ".".join(map(str, version))
    if version[:2] < MIN_PYTHON:
        return Check("Python", BAD, f"{found} is too old; install 3.11 or newer and remove .venv")
    return Check("Python", GOOD, found)


def packages() -> Iterator[Check]:
    """Checks that every declared dependency is installed. Does not compare versions, because pip compared them at the
    installation."""
    missing = []
    try:
        declared = metadata.requires("roost") or []
    except metadata.PackageNotFoundError:
        yield Check("packages", BAD, "roost itself is not installed; run `scripts/up`, or `pip install -e .`")
        return
    needed = [line for line in declared if "extra ==" not in line]
    for line in needed:
        name = _name(line)
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Check("packages", BAD, f"missing: {', '.join(missing)}; run `pip install -e .`")
    else:
        yield Check("packages", GOOD, f"all {len(needed)} are installed")


def stubs() -> Check:
    """Checks that the code generated from the protos exists and can be imported."""
    if importlib.util.find_spec("roost") is None:
        return Check("generated stubs", BAD, "missing; run `python scripts/generate.py`")
    try:
        from services.platform.rpc import contract

        count = len(contract.methods())
    except Exception as error:
        # Broken stubs can raise any exception, and running the generator again repairs them all.
        return Check("generated stubs", BAD, f"do not load ({error}); run `python scripts/generate.py`")
    return Check("generated stubs", GOOD, f"{count} methods")


def sqlite(version: tuple[int, ...]) -> Check:
    """Checks that the SQLite library linked into Python is new enough."""
    found = ".".join(map(str, version))
    if version < MIN_SQLITE:
        return Check("SQLite", BAD, f"{found} is too old; 3.37 or newer comes with newer Python builds")
    return Check("SQLite", GOOD, found)


def descriptors() -> Check:
    """Checks that this process may open at least MIN_DESCRIPTORS file descriptors."""
    try:
        import resource
    except ImportError:
        return Check("open files", NOTE, "the limit cannot be read on this system")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit < MIN_DESCRIPTORS:
        return Check("open files", NOTE, f"at most {limit:,}; `ulimit -n 4096` leaves room for more clients")
    return Check("open files", GOOD, f"at most {limit:,}")


def data_directory(data_dir: Path, now: float) -> list[Check]:
    """Checks that the data directory is writable, that its disk has free space, and that the clock is right. `now` is
    the clock's time in Unix seconds."""
    try:
        return [
            writable(data_dir),
            disk(shutil.disk_usage(_existing(data_dir)).free),
            clock(now, _newest(data_dir)),
        ]
    except OSError as error:
        words = f"{data_dir} cannot be read: {error.strerror}; run roost as the user it belongs to, or choose one with --data"
        return [Check("data directory", BAD, words), clock(now, 0.0)]


def writable(data_dir: Path) -> Check:
    """Checks that files can be written in the data directory, or if this directory does not exist, in its nearest
    existing parent directory."""
    try:
        with tempfile.TemporaryFile(dir=_existing(data_dir)) as probe:
            probe.write(b"roost")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return Check("data directory", BAD, f"{data_dir} cannot be written: {error.strerror}; choose one with --data")
    there = "exists and is writable" if data_dir.is_dir() else "can be created"
    return Check("data directory", GOOD, f"{data_dir} {there}")


def disk(free: int) -> Check:
    """Checks that the free disk space, `free` bytes, is large enough."""
    words = f"{free / 1024**3:.1f} GiB free"
    if free < NO_DISK_BYTES:
        return Check("disk", BAD, f"{words}: not enough to start")
    if free < LOW_DISK_BYTES:
        return Check("disk", NOTE, f"{words}: enough to try it, not for a large load")
    return Check("disk", GOOD, words)


def clock(now: float, newest: float) -> Check:
    """Checks the clock, whose time is `now`: it must be after EPOCH_MS, the time at which ids begin, and not before
    `newest`, the last write to the data directory. Both times are in Unix seconds."""
    if now * 1000 < EPOCH_MS:
        return Check(
            "clock",
            BAD,
            f"it says {time.strftime('%Y-%m-%d', time.gmtime(now))}; set the clock, because ids contain the time",
        )
    if newest > now + CLOCK_SLACK_S:
        return Check("clock", BAD, f"it went back {newest - now:,.0f} s since data was written; set it right first")
    return Check("clock", GOOD, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def port(what: str, address: str) -> Check:
    """Checks that a server can listen on an address. `what` names the check; `address` is HOST:PORT."""
    host, _, number = address.rpartition(":")
    if not number.isdigit():
        return Check(what, BAD, f"{address!r} is not an address: write HOST:PORT, such as 127.0.0.1:8080")
    backend = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(backend) as probe:
        # Roost's servers set SO_REUSEADDR too, so they can listen on an address whose old connections are in TIME_WAIT.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(number)))
        except OSError as error:
            return Check(what, BAD, f"{address} is not free ({error.strerror}); choose another, or stop what uses it")
    return Check(what, GOOD, f"{address} is free")


def servers(silent: Sequence[str], needed: bool) -> Check:
    """Checks that the servers of the cluster backend respond at the configured addresses. `silent` names those that do
    not.

    If there are any, the result is BAD if `needed` is true (the settings select the cluster backend), otherwise NOTE.
    """
    if not silent:
        return Check("servers", GOOD, "Cassandra, Redis, Kafka and OpenSearch answer")
    words = f"no answer from {', '.join(silent)}; `scripts/backends up` starts them here"
    return (
        Check("servers", BAD, words) if needed else Check("servers", NOTE, f"{words} (the embedded backend needs none)")
    )


def backends(containers: bool, missing_programs: Sequence[str]) -> Iterator[Check]:
    """Checks that `scripts/backends` can run the servers of the cluster backend on this machine.

    It can run them as containers if `containers` is true, otherwise as processes. `missing_programs` has a sentence for
    each program that is needed for that and is not installed.
    """
    if containers:
        yield Check("scripts/backends", GOOD, "Docker runs the servers of the cluster backend")
    elif not missing_programs:
        yield Check("scripts/backends", GOOD, "can run the servers of the cluster backend as processes")
    else:
        yield from (
            Check("scripts/backends", NOTE, f"for the cluster backend without Docker: {words}")
            for words in missing_programs
        )


async def _mesh(asked: str | None, grpc_address: str, http_address: str) -> list[Check]:
    """Checks the mesh at the address `asked`. If `asked` is None, checks the meshes that run on this machine, and that
    the addresses that a new mesh would use are free."""
    if asked is not None:
        return await health(asked) or [Check("mesh", BAD, f"none answers at {asked}")]
    runs = runfile.running()
    answers = await asyncio.gather(*(health(run.grpc) for run in runs))
    checks: list[Check] = []
    for run, answer in zip(runs, answers, strict=True):
        words = (
            f"the process {run.pid} at {run.grpc} does not answer: stop it, or remove {runfile.path_of(run.grpc)} if it is "
            "no longer a mesh"
        )
        checks += answer or [Check("mesh", BAD, words)]
    # A mesh of another user has no run file in this user's directory, but it may respond at the address.
    if all(run.grpc != grpc_address for run in runs):
        others = await health(grpc_address)
        if others:
            return [*checks, *others]
        checks.append(port("gRPC port", grpc_address))
    if all(run.http != http_address for run in runs):
        checks.append(port("HTTP port", http_address))
    return checks if runs else [*checks, Check("mesh", NOTE, "none runs here; `scripts/up` starts one")]


async def health(address: str) -> list[Check]:
    """Checks each service of the mesh at `address` by gRPC's health protocol. Returns an empty list if no mesh responds
    within HEALTH_TIMEOUT_S seconds."""
    from services.platform.rpc import contract

    names = sorted({method.service for method in contract.methods().values()})
    states: dict[str, str] = {}
    async with grpc_lib.aio.insecure_channel(address) as channel:
        # The type annotations of this package do not declare the methods of HealthStub.
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for name in names:
            try:
                request = health_pb2.HealthCheckRequest(service=name)
                answer = await stub.Check(request, timeout=HEALTH_TIMEOUT_S)
                states[name] = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
            except grpc_lib.aio.AioRpcError as error:
                if error.code() is grpc_lib.StatusCode.NOT_FOUND:
                    continue
                return []
    if not states:
        return []
    checks = [Check("mesh", GOOD, f"answers at {address}")]
    for name, state in states.items():
        checks.append(Check(name, GOOD if state == "SERVING" else BAD, state))
    return checks


def _name(requirement: str) -> str:
    """Returns the package name of a requirement: `grpcio` for `grpcio<2,>=1.85.1`."""
    for index, letter in enumerate(requirement):
        if not (letter.isalnum() or letter in "-_."):
            return requirement[:index]
    return requirement


def _existing(path: Path) -> Path:
    """Returns the path if it is a directory, otherwise its nearest existing parent directory."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _newest(data_dir: Path) -> float:
    """Returns the latest modification time of the files in the data directory, in Unix seconds; 0 if there are none."""
    if not data_dir.is_dir():
        return 0.0
    return max((path.stat().st_mtime for path in data_dir.iterdir()), default=0.0)
