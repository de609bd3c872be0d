"""The kill drill repeats requests that the store answered too late, and no others."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from roost_cli.drill import kill
from roost_cli.drill.history import Outcome
from roost_cli.drill.kill import Client, KillDrill
from roost_cli.progress import Silent

FOLLOWED = (200, b"{}")
POSTS = [(201, b'{"id": "%d"}' % number) for number in (11, 12, 13)]


class Actors:
    """Returns one token for every user."""

    async def act_as(self, user_id: int) -> list[tuple[str, str]]:
        return [("authorization", "Bearer token")]


# In the place of an answer: the server closes the connection without one, as a killed process does.
BROKEN = (0, b"")


async def begin(answers: list[tuple[int, bytes]], attempts: int = 1) -> KillDrill:
    """Returns the drill after a client followed a user and posted three times, which a server answered in this order."""

    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                await reader.readexactly(length)
                status, body = answers.pop(0)
                if not status:
                    writer.close()
                    return
                writer.write(b"HTTP/1.1 %d .\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
        except asyncio.IncompleteReadError:
            writer.close()
            await writer.wait_closed()
            ended.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        mesh: Any = SimpleNamespace(http=server.sockets[0].getsockname())
        drill, actors = KillDrill(mesh, 1, Silent(), attempts=attempts), Actors()
        client = Client(drill, actors, 1, (1, 2))  # type: ignore[arg-type]
        await client.begin()
        client.http.close()
        await ended.wait()
    return drill


def problem(status: int, code: str) -> tuple[int, bytes]:
    return status, b'{"code": "%b"}' % code.encode()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill, "REPEAT_PAUSE_S", 0.0)


@pytest.mark.parametrize(
    "slow",
    [
        problem(503, "store_unavailable"),
        problem(503, "outcome_unknown"),
        problem(503, "search_unavailable"),
        problem(504, "deadline_exceeded"),
    ],
)
async def test_client_store_too_slow_repeats_request(slow: tuple[int, bytes]) -> None:
    drill = await begin([FOLLOWED, slow, slow, *POSTS])
    assert (drill.result.slow, drill.result.failed, drill.result.writes) == (1, 0, 4)
    assert drill.history.counts()[Outcome.OK] == 4
    assert not drill.result.clean


async def test_client_store_stays_too_slow_counts_failure() -> None:
    slow = problem(503, "store_unavailable")
    drill = await begin([FOLLOWED, *[slow] * (1 + kill.REPEATS), *POSTS[:2]])
    assert (drill.result.slow, drill.result.failed) == (0, 1)
    assert "503" in drill.result.failures[0]


async def test_client_service_gone_does_not_repeat_request() -> None:
    drill = await begin([FOLLOWED, problem(503, "unavailable"), *POSTS[:2]])
    assert (drill.result.slow, drill.result.failed) == (0, 1)
    assert drill.history.counts()[Outcome.UNKNOWN] == 1


async def test_client_broken_connection_is_repeated_once_if_gateways_are_killed() -> None:
    drill = await begin([BROKEN, FOLLOWED, POSTS[0], BROKEN, *POSTS[1:]], kill.ATTEMPTS_AT_KILLED_GATEWAY)
    assert (drill.result.reconnected, drill.result.failed, drill.result.writes) == (2, 0, 4)
    assert drill.history.counts()[Outcome.OK] == 4


async def test_client_second_broken_connection_counts_failure() -> None:
    drill = await begin([BROKEN, BROKEN, *POSTS], kill.ATTEMPTS_AT_KILLED_GATEWAY)
    assert (drill.result.reconnected, drill.result.failed) == (1, 1)


async def test_client_broken_connection_is_failure_if_no_gateway_is_killed() -> None:
    drill = await begin([BROKEN, *POSTS])
    assert (drill.result.reconnected, drill.result.failed) == (0, 1)
