"""Tests that loading is idempotent, retries while the mesh is busy, and counts refusals."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest

from roost_cli import rate_control
from roost_cli.exit_codes import CommandError
from roost_cli.load.loader import Loader, NewUser, Operator, Post
from roost_cli.progress import Silent
from roost_cli.tokens import TokenCache

PEOPLE = [NewUser(f"user_{number:04d}", f"User {number}") for number in range(5)]


@pytest.fixture
def loader(operator: Operator) -> Loader:
    book = TokenCache(operator.channel, operator.metadata)
    return Loader([operator.channel], operator, book, Silent(), concurrency=4)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_control, "FIRST_PAUSE_S", 0.001)


def posts(ids: dict[str, int], *texts: str) -> list[Post]:
    author = ids["user_0000"]
    return [Post(author, text, f"load:x:{number}", f"line {number}") for number, text in enumerate(texts, 1)]


async def test_loader_second_run_adds_nothing(loader: Loader, state: Any) -> None:
    for run in range(2):
        ids = await loader.import_users(PEOPLE)
        await loader.follow([(ids["user_0000"], ids["user_0001"]), (ids["user_0001"], ids["user_0000"])])
        posted = await loader.post(posts(ids, "one", "two"), time.time())
        assert (posted.created, posted.existing) == ((2, 0) if run == 0 else (0, 2))
    assert len(state.usernames) == len(PEOPLE)
    assert len(state.follows) == 2
    assert len(state.heads) == 2
    assert state.calls["ImportUsers"] == 1


async def test_import_people_matches_usernames_ignoring_case(loader: Loader, state: Any) -> None:
    there = state.add_user("USER_0003")
    ids = await loader.import_users(PEOPLE)
    assert ids["user_0003"] == there
    assert len(state.usernames) == len(PEOPLE)


async def test_loader_retries_busy_mesh(loader: Loader, state: Any) -> None:
    ids = await loader.import_users(PEOPLE)
    state.failing = {
        "Follow": (3, grpc.StatusCode.UNAVAILABLE),
        "CreateTweet": (3, grpc.StatusCode.RESOURCE_EXHAUSTED),
    }
    await loader.follow([(ids["user_0000"], ids["user_0001"])])
    posted = await loader.post(posts(ids, "one"), time.time())
    assert posted.created == 1
    assert state.calls["Follow"] == state.calls["CreateTweet"] == 4


async def test_post_invalid_tweets_are_counted_by_reason(loader: Loader) -> None:
    ids = await loader.import_users(PEOPLE)
    posted = await loader.post(posts(ids, "fine", "x" * 281, "y" * 300), time.time())
    assert posted.created == 1
    assert posted.refused == {"too long": ["line 2", "line 3"]}


async def test_follow_blocked_pairs_are_counted(loader: Loader, state: Any) -> None:
    ids = await loader.import_users(PEOPLE)
    state.blocks.append((ids["user_0001"], ids["user_0000"]))
    barred = await loader.follow([(ids["user_0000"], ids["user_0001"]), (ids["user_0000"], ids["user_0002"])])
    assert barred == 1
    assert state.follows == [(ids["user_0000"], ids["user_0002"])]


async def test_post_other_refusal_raises_with_place(loader: Loader, state: Any) -> None:
    ids = await loader.import_users(PEOPLE)
    state.failing = {"CreateTweet": (1, grpc.StatusCode.INTERNAL)}
    with pytest.raises(CommandError, match="posting line 1: INTERNAL"):
        await loader.post(posts(ids, "one"), time.time())


async def test_import_people_suspended_user_raises_command_error(loader: Loader, state: Any) -> None:
    state.hidden.add(state.add_user("user_0002"))
    with pytest.raises(CommandError, match="1 of these users are suspended or deactivated in the mesh, user_0002"):
        await loader.import_users(PEOPLE)


async def test_warm_reads_home_until_built(loader: Loader, state: Any) -> None:
    ids = await loader.import_users(PEOPLE)
    state.partial_answers = 2
    assert await loader.warm(list(ids.values())) == len(PEOPLE)
    assert state.calls["ListHomeTimeline"] == len(PEOPLE) + 2
