"""Tests `roost events` on the event logs of both backends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from roost_cli.commands import run
from roost_cli.events import moment_ms
from roost_cli.exit_codes import CommandError
from roost_cli.interrupts import INTERRUPTED
from services.platform import logs
from services.platform.events.log import EventLog
from services.platform.sqlite.event_log import EmbeddedLog
from tests import cluster
from tests.contract.platform.events.conftest import Sink, records, start, until
from tests.waiting import WITHIN_S, wait_until_async


class Command:
    """Runs `roost events …` on the log of a data directory, in a thread beside the test's event loop."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        # The command's logging setup would stay in effect after the test.
        monkeypatch.setattr(logs, "configure", lambda *_: None)
        if cluster.backend.name == "cluster":
            self.options = ["--cluster"]
            for name, value in cluster.backend.of(folder).environment.items():
                monkeypatch.setenv(name, value)
        else:
            self.options = ["--data", str(folder)]

    async def __call__(self, *arguments: str, code: int = 0) -> list[str]:
        """Returns the output lines: of stdout, or of stderr if the command failed."""
        self._capsys.readouterr()
        done = await asyncio.to_thread(run, ["events", *arguments, *self.options])
        said = self._capsys.readouterr()
        assert done == code, said
        return (said.err if code else said.out).splitlines()

    async def succeeds(self, *arguments: str) -> bool:
        return await asyncio.to_thread(run, ["events", *arguments, *self.options]) == 0


@pytest.fixture
def events(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(tmp_path, capsys, monkeypatch)


async def opened(folder: Path) -> EventLog:
    """Opens the event log of the tested backend with the system clock."""
    if cluster.backend.name == "embedded":
        return await EmbeddedLog.open(folder / "log.db", retry_first_s=0.001)
    from services.platform.config import Settings
    from services.platform.kafka.event_log import KafkaLog

    return await KafkaLog.open(Settings(**cluster.backend.of(folder).settings), retry_first_s=0.001)


async def test_tail_works_while_mesh_runs(tmp_path: Path, events: Command) -> None:
    log = await opened(tmp_path)
    await log.append([*records(1, 2), *records(3, topic="user.followed")])
    said = await events("tail")
    assert sorted(line.split()[1:4] for line in said) == [
        ["tweet.created", "key=7", "id=1"],
        ["tweet.created", "key=7", "id=2"],
        ["user.followed", "key=7", "id=3"],
    ]
    assert [line.split()[1] for line in await events("tail", "--topic", "user.followed")] == ["user.followed"]
    assert len(await events("tail", "--since", "1h")) == 3
    await log.close()


async def test_tail_without_events_says_so(tmp_path: Path, events: Command, capsys: pytest.CaptureFixture[str]) -> None:
    log = await opened(tmp_path)
    await log.append(records(1))
    assert await asyncio.to_thread(run, ["events", "tail", "--topic", "user.followed", *events.options]) == 0
    said = capsys.readouterr()
    assert not said.out
    assert re.fullmatch(r"no events since 20.*Z: --since shows earlier ones, --follow waits\n", said.err)
    await log.close()


async def test_tail_follow_says_that_it_waits(tmp_path: Path, events: Command) -> None:
    log = await opened(tmp_path)
    command = [sys.executable, "-m", "roost_cli", "events", "tail", "--follow", *events.options]
    # The log of the command's own start is not what is tested.
    environment = os.environ | {"ROOST_LOG_LEVEL": "error"}
    tail = await asyncio.create_subprocess_exec(
        *command,
        stdout=PIPE,
        stderr=PIPE,
        env=environment,
        # A process that starts this test in the background may ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert tail.stdout is not None
    assert tail.stderr is not None
    try:
        async with asyncio.timeout(WITHIN_S):
            assert await tail.stderr.readline() == b"waiting for events; Ctrl-C ends\n"
            await log.append(records(1))
            assert b" tweet.created key=7 id=1 " in await tail.stdout.readline()
            tail.send_signal(signal.SIGINT)
            assert await tail.stderr.read() == b""
            assert await tail.wait() == INTERRUPTED
    finally:
        with contextlib.suppress(ProcessLookupError):
            tail.kill()
        await log.close()


async def test_replay_stopped_group_moves_offset(tmp_path: Path, events: Command, sink: Sink) -> None:
    log = await opened(tmp_path)
    await log.append(records(1, 2))
    await start(log, sink)
    await until(lambda: sink.ids == [1, 2])
    await log.close()
    (said,) = await events("replay", "g", "--since", "1h")
    assert said.startswith("g goes on at 20")
    assert said.endswith("Z: 2 events from there on")
    log = await opened(tmp_path)
    await start(log, sink)
    await until(lambda: sink.ids == [1, 2, 1, 2])
    await log.close()


@pytest.mark.cluster
async def test_replay_group_running_in_other_process_moves_offset(tmp_path: Path, events: Command, sink: Sink) -> None:
    log = await opened(tmp_path)
    await log.append(records(1, 2))
    await start(log, sink)
    await until(lambda: sink.ids == [1, 2])

    # A consumer group exists from its first commit.
    await wait_until_async(lambda: events.succeeds("replay", "g", "--since", "1h"))
    await until(lambda: sink.ids == [1, 2, 1, 2])
    await log.close()


@pytest.mark.embedded
async def test_embedded_log_of_running_mesh_is_read_only(tmp_path: Path, events: Command, sink: Sink) -> None:
    log = await opened(tmp_path)
    await start(log, sink)
    assert "stop it to replay g; fanout alone" in (await events("replay", "g", "--since", "1h", code=2))[0]
    assert "stop the mesh first" in (await events("redrive", "g", code=2))[0]
    await log.close()


async def test_redrive_appends_dead_letters_again(tmp_path: Path, events: Command, sink: Sink) -> None:
    log = await opened(tmp_path)
    sink.poison = {1}
    await log.append(records(1, 2))
    await start(log, sink)
    await until(lambda: sink.ids == [2])
    await log.close()
    letter, count = await events("redrive", "g", "--dry-run")
    assert " tweet.created key=7 id=1 " in letter
    assert letter.endswith("ValueError('poison')")
    assert count == "1 dead letters"
    assert await events("redrive", "g") == ["1 events appended again"]
    assert await events("redrive", "g") == ["0 events appended again"]
    sink.poison = set()
    log = await opened(tmp_path)
    await start(log, sink)
    await until(lambda: sink.ids == [2, 1])
    await log.close()


async def test_events_faults_raise_sentences(tmp_path: Path, events: Command, sink: Sink) -> None:
    log = await opened(tmp_path)
    await start(log, sink)
    await log.append(records(1))
    await until(lambda: sink.ids == [1])
    await log.close()
    assert (
        "no group 'nobody' ever read this log; there are g"
        in (await events("replay", "nobody", "--since", "1h", code=2))[0]
    )
    assert "give --since" in (await events("replay", "g", code=2))[0]
    assert "no topic cat.sat; there are user.created" in (await events("tail", "--topic", "cat.sat", code=2))[0]
    assert "write 90s" in (await events("tail", "--since", "yesterday", code=2))[0]


@pytest.mark.embedded
async def test_events_without_log_raises_command_error(tmp_path: Path, events: Command) -> None:
    assert "no embedded log in" in (await events("tail", code=2))[0]
    assert not (tmp_path / "log.db").exists()


@pytest.mark.cluster
async def test_events_kafka_down_raises_command_error(events: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert "Kafka cannot be reached at 127.0.0.1:1" in (await events("tail", code=2))[0]


def test_moment_ms_parses_durations_and_times() -> None:
    now = 1_800_000_000.5
    assert moment_ms("90s", now) == 1_799_999_910_500
    assert moment_ms("2h", now) == 1_799_992_800_500
    assert moment_ms("2027-01-15T07:59:00Z", now) == 1_799_999_940_000
    assert moment_ms("2027-01-15T07:59:00", now) == 1_799_999_940_000
    for text in ("8d", "2027-01-15T08:00:01Z", "5", "h", "-5m", ""):
        with pytest.raises(CommandError):
            moment_ms(text, now)
