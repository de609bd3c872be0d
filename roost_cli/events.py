"""`roost events`: shows and replays the event log of a mesh, and appends dead letters to it again. For the operator.

With the cluster backend the log is in Kafka, and every subcommand works while the mesh runs. An embedded log can be
opened by one process only. While a mesh runs on it, only `tail` and the replay of fan-out work; the other subcommands
need the mesh to be stopped.

Without --cluster, --data and the settings `backend` and `data_dir`, a subcommand uses the log of the mesh that runs on
this machine, which it learns from the run file.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import grpc as grpc_lib
import typer
from roost.event.v1 import event_pb2
from roost.fanout.v1 import fanout_service_pb2, fanout_service_pb2_grpc

from roost_cli import connection as target
from roost_cli import options, runfile
from roost_cli.exit_codes import FAULTS, UNUSABLE, CommandError, call_error
from roost_cli.options import settings_with
from services.platform import logs
from services.platform.config import Settings
from services.platform.events.log import DEFAULT_BATCH, RETENTION_S, ConsumedEvent, DeadLetter, EventLog
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.platform.sqlite.event_log import EmbeddedLog

T = TypeVar("T")
Batch = Sequence[ConsumedEvent]

# Without --since and --follow, `tail` prints the events of this many seconds before now.
TAIL_S = 600
# Seconds between two polls of the log by `tail`.
LOOK_EVERY_S = 0.5
# Timeout in seconds of the call that moves the offset of a consumer group in a running mesh.
REPLAY_WITHIN_S = 10.0
FANOUT = "fanout"

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_TAIL = "SELECT * FROM event WHERE event_offset > ? AND appended_ms >= ? ORDER BY event_offset LIMIT ?"
_GROUPS = "SELECT consumer_group FROM consumer_offset ORDER BY 1"

events = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

ClusterBackends = Annotated[
    bool,
    typer.Option(
        "--cluster", help="Use the event log in the Kafka that the settings name [the log of the mesh that runs here]."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="The data directory of an embedded mesh [that of the mesh that runs here; if none runs, `data` in the checkout].",
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="AGO", help="Begin 90s, 30m, 2h or 7d ago, or at a time such as 2026-11-21T06:00:00Z."
    ),
]
Group = Annotated[str, typer.Argument(help="The group of consumers, such as fanout or search.")]


@events.callback()
def _events() -> None:
    """Show the mesh's event log, replay it for a group of consumers, and retry dead letters."""


@events.command()
def tail(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new events too, until Ctrl-C.")] = False,
    topic: Annotated[
        list[str] | None,
        typer.Option("--topic", help="Show only this topic, such as tweet.created. May be given several times."),
    ] = None,
    since: Since = None,
    cluster: ClusterBackends = False,
    data: Data = None,
) -> None:
    """Print events, one on each line.

    A line contains the time at which the event was appended, its topic, key, id and offset. Without options, the events
    of the last ten minutes are printed; with --follow, new events as they are appended. On Kafka, events with the same
    key are in order; events with different keys can be out of order.
    """
    settings = _settings(cluster, data)
    wanted = _topics(topic or [])
    now = time.time()
    since_ms = int((now if follow else now - TAIL_S) * 1_000) if since is None else moment_ms(since, now)
    source = _tail_kafka if settings.backend == "cluster" else _tail_embedded

    async def show() -> None:
        # Whether the command has printed anything: without it, it would look as if it hung.
        said = False
        async for batch in source(settings, wanted, since_ms, follow):
            for event in batch:
                typer.echo(line_of(event))
            if follow and not batch and not said:
                typer.echo("waiting for events; Ctrl-C ends", err=True)
            said = said or follow or bool(batch)
        if not said:
            typer.echo(f"no events since {_shown(since_ms)}: --since shows earlier ones, --follow waits", err=True)

    _run(show())


@events.command()
def replay(
    group: Group,
    since: Since = None,
    cluster: ClusterBackends = False,
    data: Data = None,
    grpc: options.Grpc = None,
) -> None:
    """Deliver events to a group of consumers again.

    Consumers skip events that they have applied, so a replay applies only the events that were lost by a fault.
    """
    if since is None:
        raise CommandError("give --since, the time from which events are delivered again")
    settings = _settings(cluster, data)
    time_ms = moment_ms(since, time.time())
    if settings.backend == "cluster":
        if grpc is not None:
            raise CommandError(
                "--grpc names a running embedded mesh, but --cluster uses the log in Kafka: give only one of these options"
            )
        count = _run(_replay_kafka(settings, group, time_ms))
    else:
        count = _run(_replay_embedded(settings, group, time_ms, grpc))
    typer.echo(f"{group} goes on at {_shown(time_ms)}: {count} events from there on")


@events.command()
def redrive(
    group: Group,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the dead letters and change nothing.")] = False,
    cluster: ClusterBackends = False,
    data: Data = None,
) -> None:
    """Append a group's dead letters to the log again.

    Repair the cause of the failures first. All groups receive the events again and skip events that they have applied.
    """
    settings = _settings(cluster, data)

    async def look_or_move(log: EventLog) -> list[DeadLetter] | int:
        return await log.dead_letters(group) if dry_run else await log.redrive(group)

    found = _run(_with_log(settings, look_or_move))
    if isinstance(found, int):
        typer.echo(f"{found} events appended again")
        return
    for letter in found:
        typer.echo(f"{line_of(letter.event)} failed={_shown(letter.failed_ms)} {letter.reason}")
    typer.echo(f"{len(found)} dead letters")


def moment_ms(text: str, now_s: float) -> int:
    """Returns the time that `text` names, in Unix milliseconds. `text` is a duration before `now_s` (Unix seconds),
    such as `30m`, or an ISO 8601 time.

    Raises CommandError if `text` has neither form, or if the time is in the future or older than the log keeps events
    (RETENTION_S).
    """
    match = re.fullmatch(r"(\d{1,7})([smhd])", text)
    if match:
        found = now_s - int(match[1]) * _UNITS[match[2]]
    else:
        try:
            stamp = datetime.fromisoformat(text)
        except ValueError:
            raise CommandError(
                f"--since {text!r}: write 90s, 30m, 2h, 7d, or a time such as 2026-11-21T06:00:00Z"
            ) from None
        found = (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()
    if not now_s - RETENTION_S <= found <= now_s:
        raise CommandError(
            f"--since {text!r}: name a time in the last {RETENTION_S // 86_400} days, which is how long the log keeps events"
        )
    return int(found * 1_000)


def line_of(event: ConsumedEvent) -> str:
    """Returns the event as one line for `tail`. The line contains ids but no text of a user."""
    return f"{_shown(event.appended_ms)} {event.topic} key={event.key} id={event.event_id} offset={event.offset}"


def _shown(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _settings(cluster: bool, data: Path | None) -> Settings:
    if cluster and data is not None:
        raise CommandError(
            "--data names an embedded log and --cluster the log in Kafka: give only one of these options"
        )
    settings = settings_with({"backend": "cluster" if cluster else None, "data_dir": data})
    if not {"backend", "data_dir"} & settings.model_fields_set:
        settings = _settings_of_running_mesh(settings)
    # The logs of the database drivers are written to stderr, so that stdout contains only events.
    logs.configure(settings, "events")
    return settings


def _settings_of_running_mesh(settings: Settings) -> Settings:
    """Returns settings that name the event log of the mesh that runs on this machine, and prints its address to stderr.
    Returns `settings` if no mesh runs. Raises CommandError if several equally suitable ones run."""
    runs = runfile.running()
    run = target.choose(runs, settings.data_dir)
    if run is None and runs:
        raise CommandError("several meshes run here: name the event log with --data DIR or --cluster")
    if run is None or not run.backend:
        return settings
    typer.echo(f"the event log of the mesh at {run.grpc}", err=True)
    if run.backend == "embedded":
        return settings_with({"data_dir": run.data})
    return settings_with(
        {
            "backend": run.backend,
            "namespace": run.namespace,
            "kafka_bootstrap_servers": run.kafka_bootstrap_servers,
        }
    )


def known_topics() -> list[str]:
    """Returns all topic names, derived from the Event message: `tweet.created`, …."""
    fields = event_pb2.Event.DESCRIPTOR.oneofs_by_name["body"].fields
    return [field.name.replace("_", ".", 1) for field in fields]


def _topics(asked: Sequence[str]) -> list[str]:
    known = known_topics()
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise CommandError(f"no topic {', '.join(unknown)}; there are {', '.join(known)}")
    return list(asked) or known


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except grpc_lib.aio.AioRpcError as error:
        raise call_error(error) from error
    except errors.RoostError as error:
        down = error.code is grpc_lib.StatusCode.UNAVAILABLE
        raise CommandError(error.message, UNUSABLE if down else FAULTS) from error


async def _with_log(settings: Settings, work: Callable[[EventLog], Awaitable[T]]) -> T:
    """Opens the event log of the configured backend, returns the result of `work` with the log, and closes the log.

    Raises CommandError if Kafka cannot be reached, or if another process has opened the embedded log.
    """
    log = await (_open_kafka(settings) if settings.backend == "cluster" else _open_embedded(settings))
    try:
        return await work(log)
    finally:
        await log.close()


async def _open_kafka(settings: Settings) -> EventLog:
    # Imported in the function, because the embedded backend does not need the Kafka driver.
    from services.platform.kafka.event_log import KafkaLog

    try:
        return await KafkaLog.open(settings)
    except errors.RoostError as error:
        if error.code is not grpc_lib.StatusCode.UNAVAILABLE:
            raise
        # The message of the error contains no address, because services send such messages to clients. The operator who
        # runs this command needs the address.
        text = (
            f"Kafka cannot be reached at {settings.kafka_bootstrap_servers}: check that it runs there, or set "
            "ROOST_KAFKA_BOOTSTRAP_SERVERS"
        )
        raise CommandError(text, UNUSABLE) from error


async def _open_embedded(settings: Settings) -> EventLog:
    try:
        return await EmbeddedLog.open(_file_of(settings))
    except errors.RoostError as error:
        if error.reason != Reason.DATA_IN_USE:
            raise CommandError(error.message) from error
        raise CommandError(
            f"{error.message}: stop the mesh first, for an embedded log belongs to one process"
        ) from error


def _file_of(settings: Settings) -> Path:
    path = settings.data_dir / "log.db"
    if not path.is_file():
        raise CommandError(
            f"no embedded log in {settings.data_dir}: name the mesh's folder with --data, or give --cluster"
        )
    return path


async def _tail_kafka(settings: Settings, topics: Sequence[str], since_ms: int, follow: bool) -> AsyncIterator[Batch]:
    log = await _open_kafka(settings)
    # The queue holds one batch. If the terminal is slow, the consumer of this command waits; the mesh's consumers do
    # not.
    batches: asyncio.Queue[Batch] = asyncio.Queue(1)
    consumer = log.consumer("tail", topics, batches.put, DEFAULT_BATCH, broadcast=True)
    try:
        await consumer.seek(time_ms=since_ms)
        await consumer.start()
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    batch = await batches.get()
            except TimeoutError:
                if not follow and (await consumer.lag()).events == 0 and batches.empty():
                    return
                batch = ()
            yield batch
    finally:
        await log.close()


async def _tail_embedded(
    settings: Settings, topics: Sequence[str], since_ms: int, follow: bool
) -> AsyncIterator[Batch]:
    # The file is opened read-only, because the running mesh owns it.
    uri = f"{_file_of(settings).absolute().as_uri()}?mode=ro"
    wanted, offset = frozenset(topics), 0
    with closing(sqlite3.connect(uri, uri=True, check_same_thread=False)) as connection:
        while True:
            bounds = (offset, since_ms, DEFAULT_BATCH)
            batch = await asyncio.to_thread(_rows, connection, bounds)
            yield [event for event in batch if event.topic in wanted]
            if batch:
                offset = batch[-1].offset
            elif not follow:
                return
            if len(batch) < DEFAULT_BATCH:
                await asyncio.sleep(LOOK_EVERY_S if follow else 0)


def _rows(connection: sqlite3.Connection, bounds: tuple[int, int, int]) -> list[ConsumedEvent]:
    return [ConsumedEvent(*row) for row in connection.execute(_TAIL, bounds)]


async def _replay_kafka(settings: Settings, group: str, time_ms: int) -> int:
    from services.platform.kafka.event_log import KafkaLog

    log = await KafkaLog.open(settings)
    try:
        count = await log.replay(group, time_ms)
        if count is None:
            raise _no_group(group, await log.admin.groups())
        return count
    finally:
        await log.close()


async def _replay_embedded(settings: Settings, group: str, time_ms: int, grpc: str | None) -> int:
    path = _file_of(settings)
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        known = [name for (name,) in connection.execute(_GROUPS)]
    if group not in known:
        raise _no_group(group, known)
    try:
        log = await EmbeddedLog.open(path)
    except errors.RoostError as error:
        if error.reason != Reason.DATA_IN_USE:
            raise CommandError(error.message) from error
        if group != FANOUT:
            raise CommandError(
                f"a mesh runs on {settings.data_dir}: stop it to replay {group}; {FANOUT} alone can be replayed meanwhile"
            ) from None
        return await _replay_running(_mesh_on(settings.data_dir, grpc), time_ms)
    try:
        await (consumer := log.consumer(group, known_topics(), _ignore_batch)).seek(time_ms=time_ms)
        return (await consumer.lag()).events
    finally:
        await log.close()


def _mesh_on(data_dir: Path, grpc: str | None) -> target.MeshTarget:
    """Returns the mesh at the address `grpc`, or if `grpc` is None, the mesh on this machine whose data is in
    `data_dir`.

    Raises CommandError if no mesh uses `data_dir`, or more than one.
    """
    if grpc is None:
        found = target.with_data_in(runfile.running(), data_dir)
        if len(found) != 1:
            raise CommandError(
                f"a process uses {data_dir}, but its gRPC address is not known here; name it with --grpc HOST:PORT"
            )
        grpc = found[0].grpc
    return target.find(grpc)


async def _replay_running(mesh: target.MeshTarget, time_ms: int) -> int:
    operator = mesh.operator()
    async with target.connect(mesh) as channels:
        request = fanout_service_pb2.ReplayFanoutRequest()
        request.time.FromMilliseconds(time_ms)
        stub = fanout_service_pb2_grpc.FanoutServiceStub(channels[0])
        answer = await stub.ReplayFanout(request, metadata=operator, timeout=REPLAY_WITHIN_S)
    return int(answer.events)


async def _ignore_batch(_: Batch) -> None:
    """Does nothing. The consumer of a replay needs a handler, but this consumer only moves the offset of its group and
    receives no batches."""


def _no_group(group: str, known: Sequence[str]) -> CommandError:
    return CommandError(f"no group {group!r} ever read this log; there are {', '.join(known) or 'none'}")
