"""`roost load --mutate` and `roost verify` against a real mesh: home timelines stay exact through random operations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import AsyncMock

import pytest
import structlog

from roost_cli.connection import MeshTarget
from roost_cli.load import mutate
from roost_cli.load.random_operations import Kind
from roost_cli.progress import Silent
from roost_cli.verify import command
from services.platform.rpc import errors
from services.tweet.service import TweetServicer

pytestmark = pytest.mark.slow

PEOPLE, OPERATIONS = 12, 400


@pytest.fixture
async def mesh(start_mesh: Callable[..., Awaitable[Any]]) -> Any:
    """A mesh with a short clock margin and twelve users, each with one tweet, who follow the next three."""
    mesh = await start_mesh(clock_margin_s=0.05)
    ids = await mesh.people(*(f"person_{number}" for number in range(PEOPLE)))
    for place, user_id in enumerate(ids):
        for step in (1, 2, 3):
            await mesh.follow(user_id, ids[(place + step) % PEOPLE])
        await mesh.post(user_id, "the first")
    return mesh


@pytest.fixture
def target(mesh: Any) -> MeshTarget:
    return MeshTarget(f"127.0.0.1:{mesh.process.grpc_port}", mesh.process.operator_token)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long("cluster"))])
async def test_verify_after_random_operations_and_replay_is_exact(
    target: MeshTarget, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    assert await command.audit(target, Silent())
    capsys.readouterr()
    assert await mutate.mutate(target, OPERATIONS, seed, concurrency=16)
    output = capsys.readouterr().out
    assert "0 faults" in output
    # Operations of every kind succeeded.
    for kind in Kind:
        done = next(line for line in output.splitlines() if line.split()[0] == kind).split()[1]
        assert int(done) > 0, kind
    assert await command.audit(target, Silent(), replay=True)
    assert capsys.readouterr().out.splitlines()[-1] == f"{PEOPLE} of {PEOPLE} timelines exact"


@pytest.fixture
def edits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Edits raise the `side_effect` of the returned mock."""
    answer = AsyncMock()
    monkeypatch.setattr(TweetServicer, "UpdateTweet", answer)
    return answer


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Posts raise the `side_effect` of the returned mock, and are created while none is set."""
    answer = AsyncMock()
    create = TweetServicer.CreateTweet

    async def post(servicer: TweetServicer, request: Any, context: Any) -> Any:
        return await (answer(request) if answer.side_effect else create(servicer, request, context))

    monkeypatch.setattr(TweetServicer, "CreateTweet", post)
    return answer


@pytest.mark.long("cluster")
async def test_mutate_internal_error_is_a_fault(
    edits: Any, target: MeshTarget, capsys: pytest.CaptureFixture[str]
) -> None:
    edits.side_effect = [ValueError("a bug"), *[errors.not_found("no such tweet")] * 100]
    # Printing the traceback may take longer than the call's deadline: the call would be retried instead of failing.
    with structlog.testing.capture_logs():
        assert not await mutate.mutate(target, 100, 1, concurrency=4)
    assert "fault INTERNAL" in capsys.readouterr().out


@pytest.mark.long("cluster")
async def test_mutate_unserved_operation_is_reported(
    edits: Any, target: MeshTarget, capsys: pytest.CaptureFixture[str]
) -> None:
    edits.side_effect = errors.unimplemented("later")
    assert not await mutate.mutate(target, 100, 1, concurrency=4)
    assert "edit is not served here: later" in capsys.readouterr().out


@pytest.mark.long("cluster")
async def test_mutate_refused_tweets_do_not_block_operations(
    posts: Any, target: MeshTarget, capsys: pytest.CaptureFixture[str]
) -> None:
    posts.side_effect = errors.permission_denied("not today")
    assert await mutate.mutate(target, 200, 1, concurrency=1)
    assert mutate.NO_TARGET in capsys.readouterr().out
