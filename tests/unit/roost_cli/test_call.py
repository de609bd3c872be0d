"""`roost call` finds methods by their descriptors, acts as whom it is told, and prints answers as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from roost_cli import call
from roost_cli.connection import Target
from roost_cli.exit_codes import CommandError
from roost_cli.main import run


@pytest.mark.parametrize(
    "name",
    [
        "TweetService.GetTweet",
        "roost.tweet.v1.TweetService.GetTweet",
        "roost.tweet.v1.TweetService/GetTweet",
        "/roost.tweet.v1.TweetService/GetTweet",
    ],
)
def test_every_spelling_of_a_method(name: str) -> None:
    assert call.resolve(name).path == "/roost.tweet.v1.TweetService/GetTweet"


def test_an_unknown_method_is_helped_along() -> None:
    with pytest.raises(CommandError, match=r"did you mean TweetService\.GetTweet\?"):
        call.resolve("gettweet")
    with pytest.raises(CommandError, match="--list"):
        call.resolve("TweetService.Shout")


def test_the_list_says_kind_and_access(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["call", "--list", "TimelineService"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["roost.timeline.v1.TimelineService"] in lines
    assert ["ListHomeTimeline", "unary", "user"] in lines
    assert ["StreamHomeTimeline", "server", "stream", "user"] in lines
    assert ["AppendHomeEntries", "unary", "mesh", "(fanout)"] in lines


async def test_an_answer_is_json(fake_mesh: Target, state: Any, capsys: pytest.CaptureFixture[str]) -> None:
    state.add_user("alice")
    await call._call(fake_mesh, call.resolve("TweetService.CreateTweet"), ["text=hello"], "alice")
    made = json.loads(capsys.readouterr().out)["tweet"]
    assert (made["id"], made["author_id"], made["edited"]) == ("1000", "100", False)
    await call._call(fake_mesh, call.resolve("TweetService.GetTweet"), ["tweet_id=1000"], None)
    assert json.loads(capsys.readouterr().out)["tweet"]["text"] == "hello"


async def test_a_stream_is_one_line_a_message(
    fake_mesh: Target, state: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    state.add_user("alice")
    state.add_user("ben")
    await call._call(fake_mesh, call.resolve("UserService.ScanUsers"), [], None)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["users"][0]["user"]["username"] for line in lines] == ["alice", "ben"]


async def test_me_is_whom_it_acts_as(fake_mesh: Target, state: Any) -> None:
    state.add_user("alice")
    state.add_user("ben")
    await call._call(fake_mesh, call.resolve("GraphService.Follow"), ["user_id=me"], "@ben")
    assert state.follows == [(101, 101)]


async def test_refusals_say_why(fake_mesh: Target) -> None:
    with pytest.raises(CommandError, match="NOT_FOUND: no such tweet") as refusal:
        await call._call(fake_mesh, call.resolve("TweetService.GetTweet"), ["tweet_id=5"], None)
    assert refusal.value.code == 1
    with pytest.raises(CommandError, match="NOT_FOUND: no such user"):
        await call._call(fake_mesh, call.resolve("TweetService.GetTweet"), ["tweet_id=5"], "nobody")


async def test_a_users_method_needs_a_user(fake_mesh: Target) -> None:
    with pytest.raises(CommandError, match="--as USER"):
        await call._call(fake_mesh, call.resolve("TweetService.CreateTweet"), [], None)


async def test_without_credentials_the_operators_methods_are_out_of_reach(fake_mesh: Target) -> None:
    with pytest.raises(CommandError, match="no operator credentials"):
        await call._call(Target(fake_mesh.address), call.resolve("UserService.ScanUsers"), [], None)


async def test_only_a_field_is_printed_bare(fake_mesh: Target, state: Any, capsys: pytest.CaptureFixture[str]) -> None:
    state.add_user("alice")
    method = call.resolve("UserService.GetUserByUsername")
    await call._call(fake_mesh, method, ["username=alice"], None, ("user", "id"))
    assert capsys.readouterr().out == "100\n"


@pytest.mark.parametrize("path", ["user.idd", "idd", "user.id.more"])
def test_only_a_field_that_is_not_there_is_refused(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["call", "UserService.GetUserByUsername", "username=alice", "--only", path]) == 2
    assert f"--only {path}: the answer of GetUserByUsername has no such field" in capsys.readouterr().err
