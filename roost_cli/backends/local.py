"""Runs the servers of the cluster backend as local processes: starts them concurrently, waits until they respond, and
stops them by process id."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from roost_cli.backends import processes, ready
from roost_cli.backends.java import tail
from roost_cli.backends.layout import BackendError, Layout
from roost_cli.backends.opensearch import home_of
from roost_cli.backends.server_specs import SERVERS

POLL_S = 0.2
# Seconds between two lines of progress while a server starts. The servers write their own output to log files.
SAY_EACH_S = 15.0


@dataclass(frozen=True, slots=True)
class Row:
    """The state of a server, as a row of the printed table. `address` is host:port. `pid` is 0 if no process runs.

    `ready_in` is the number of seconds until the server responded, None if this command did not start the server.
    """

    name: str
    state: str
    address: str
    pid: int = 0
    log: str = ""
    ready_in: float | None = None


def up(layout: Layout, names: Sequence[str], wait_s: float) -> list[Row]:
    """Starts each of the named servers that does not run, all at the same time, and waits until these servers respond.

    Raises BackendError with the errors of all servers that failed, or did not respond within `wait_s` seconds.
    """
    for folder in (layout.data, layout.logs, layout.records, layout.cache):
        folder.mkdir(parents=True, exist_ok=True)
    return _side_by_side(lambda name: _up(layout, name, wait_s), names)


def down(layout: Layout, names: Sequence[str], *, wipe: bool, kill: bool = False) -> list[Row]:
    """Stops each of the named servers that runs, with SIGTERM, or with SIGKILL if `kill` is true. If `wipe` is true,
    deletes the data of all named servers, also of servers that did not run."""
    return _side_by_side(lambda name: _down(layout, name, wipe=wipe, kill=kill), names)


def status(layout: Layout, names: Iterable[str]) -> list[Row]:
    """Returns one row for each server, with its current state."""
    return [_status(layout, name) for name in names]


def answers(layout: Layout, name: str) -> bool:
    """Returns whether the server responds to a request of its own protocol within 2 s."""
    return not ready.unreachable({name: _address(layout, name)})


def _up(layout: Layout, name: str, wait_s: float) -> Row:
    began = time.monotonic()
    record = processes.recorded(_record(layout, name))
    if record is None or not record.alive():
        if SERVERS[name].second_start_after_kill and _was_killed(layout, name):
            # If this command is interrupted before the second start, the next `up` finds the file and makes the second
            # start.
            _recovering(layout, name).touch()
        record, began = _start(layout, name)
    elif answers(layout, name) and not _recovering(layout, name).exists():
        return _status(layout, name)
    if _recovering(layout, name).exists():
        _await(layout, name, record, wait_s)
        layout.say(name, "was killed: starting a second time, to read the data that it recovered")
        processes.stop(record)
        record, _ = _start(layout, name)
        _recovering(layout, name).unlink()
    _await(layout, name, record, wait_s)
    took = time.monotonic() - began
    layout.say(name, f"answers after {took:.1f} s")
    return Row(name, "up", _address(layout, name), record.pid, str(_log(layout, name)), took)


def _start(layout: Layout, name: str) -> tuple[processes.Record, float]:
    """Starts the process of a server. Returns the process and the time of the start, in seconds of the monotonic
    clock."""
    _ports_free(layout, name)
    launch = SERVERS[name].prepare(layout)
    began = time.monotonic()
    layout.say(name, "starting")
    _clean_stop(layout, name).unlink(missing_ok=True)
    record = processes.start(
        launch.argv, cwd=launch.cwd, log=_log(layout, name), user=launch.user, record=_record(layout, name)
    )
    return record, began


def _was_killed(layout: Layout, name: str) -> bool:
    """Returns whether the server has data of an earlier run that did not end with a clean stop by `down`."""
    return layout.of(name).exists() and not _clean_stop(layout, name).exists()


def _await(layout: Layout, name: str, record: processes.Record, wait_s: float) -> None:
    log = _log(layout, name)
    began = said = time.monotonic()
    while not answers(layout, name):
        now = time.monotonic()
        if not record.alive():
            raise BackendError(f"{name} ended while it started (log: {log}):\n{tail(log)}")
        if now - began > wait_s:
            raise BackendError(f"{name} does not answer after {wait_s:.0f} s (log: {log}):\n{tail(log)}")
        if now - said > SAY_EACH_S:
            said = now
            layout.say(name, "not ready yet")
        time.sleep(POLL_S)


def _ports_free(layout: Layout, name: str) -> None:
    for usual in (SERVERS[name].port, *SERVERS[name].others):
        port = layout.port(usual)
        if ready.taken(port):
            raise BackendError(
                f"{name} cannot have port {port}: another program listens there. Stop that program, or move all ports by --shift 1000"
            )


def _down(layout: Layout, name: str, *, wipe: bool, kill: bool) -> Row:
    record = processes.recorded(_record(layout, name))
    ended = processes.stop(record, kill=kill) if record is not None else processes.Stopped.ENDED_BEFORE
    stopped = ended is not processes.Stopped.ENDED_BEFORE
    if stopped:
        layout.say(name, "stopped")
    if ended is processes.Stopped.CLEANLY:
        _clean_stop(layout, name).touch()
    _record(layout, name).unlink(missing_ok=True)
    if wipe:
        _recovering(layout, name).unlink(missing_ok=True)
        shutil.rmtree(layout.of(name), ignore_errors=True)
        if name == "opensearch":
            shutil.rmtree(home_of(layout), ignore_errors=True)
    return Row(name, "stopped" if stopped else "was not up", _address(layout, name))


def _status(layout: Layout, name: str) -> Row:
    record = processes.recorded(_record(layout, name))
    if record is None or not record.alive():
        foreign = ready.taken(layout.port(SERVERS[name].port))
        return Row(name, "down; something else has its port" if foreign else "down", _address(layout, name))
    state = "up" if answers(layout, name) else "runs, does not answer"
    return Row(name, state, _address(layout, name), record.pid, str(_log(layout, name)))


def _side_by_side(work: Callable[[str], Row], names: Sequence[str]) -> list[Row]:
    """Calls `work` for each name, each call in a thread of its own, waits for all calls, and returns the rows in the
    order of `names`.

    If calls raised BackendError, raises one BackendError with all their messages.
    """
    rows: list[Row] = []
    complaints: list[str] = []
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        for future in [pool.submit(work, name) for name in names]:
            try:
                rows.append(future.result())
            except BackendError as error:
                complaints.append(str(error))
    if complaints:
        raise BackendError("\n\n".join(complaints))
    return rows


def _address(layout: Layout, name: str) -> str:
    return f"{ready.HOST}:{layout.port(SERVERS[name].port)}"


def _log(layout: Layout, name: str) -> Path:
    return layout.logs / f"{name}.log"


def _record(layout: Layout, name: str) -> Path:
    return layout.records / f"{name}.json"


def _clean_stop(layout: Layout, name: str) -> Path:
    """Returns the path of the file that exists from a clean stop of the server until its next start."""
    return layout.records / f"{name}.clean"


def _recovering(layout: Layout, name: str) -> Path:
    """Returns the path of the file that exists while a server that was killed still needs its second start."""
    return layout.records / f"{name}.recovering"
