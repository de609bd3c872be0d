"""Tests that `roost call` finds methods, acts as the given user, and prints JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from roost_cli import call
from roost_cli.commands import run
from roost_cli.connection import MeshTarget
from roost_cli.exit_codes import CommandError


@pytest.mark.parametrize(
    "name",
    [
        "TweetService.GetTweet",
        "roost.tweet.v1.TweetService.GetTweet",
        "roost.tweet.v1.TweetService/GetTweet",
        "/roost.tweet.v1.TweetService/GetTweet",
    ],
)
def test_resolve_accepts_every_spelling_of_method(name: str) -> None:
    assert call.resolve(name).path == "/roost.tweet.v1.TweetService/GetTweet"


def test_resolve_unknown_method_suggests_similar() -> None:
    with pytest.raises(CommandError, match=r"did you mean TweetService\.GetTweet\?"):
        call.resolve("gettweet")
    with pytest.raises(CommandError, match="--list"):
        call.resolve("TweetService.Shout")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("TweetService.GetTwet", "TweetService.GetTweet"),
        ("TwetService.GetTwet", "TweetService.GetTweet"),
        ("roost.tweet.v1.TweetService/CraeteTweet", "TweetService.CreateTweet"),
        ("GetTwet", "TweetService.GetTweet"),
    ],
)
def test_resolve_misspelled_method_suggests_most_similar(wrong: str, meant: str) -> None:
    with pytest.raises(CommandError) as caught:
        call.resolve(wrong)
    suggested = caught.value.message.partition("did you mean ")[2].rstrip("?").split(" or ")
    assert suggested[0] == meant
    assert len(suggested) <= call.MAX_SUGGESTIONS


def test_call_list_marks_unserved_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["call", "--list", "AuthService"]) == 0
    marked = {line.split()[0]: line.endswith(", not served yet") for line in capsys.readouterr().out.splitlines()}
    assert marked["VerifyOtp"]
    assert not marked["Login"]


def test_call_list_prints_kind_and_access(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["call", "--list", "TimelineService"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["roost.timeline.v1.TimelineService"] in lines
    assert ["ListHomeTimeline", "unary", "user"] in lines
    assert ["StreamHomeTimeline", "server", "stream", "user,", "not", "served", "yet"] in lines
    assert ["AppendHomeEntries", "unary", "mesh", "(fanout)"] in lines


async def test_call_unary_prints_json(fake_mesh: MeshTarget, state: Any, capsys: pytest.CaptureFixture[str]) -> None:
    state.add_user("alice")
    await call._call(fake_mesh, call.resolve("TweetService.CreateTweet"), ["text=hello"], "alice")
    made = json.loads(capsys.readouterr().out)["tweet"]
    assert (made["id"], made["author_id"], made["edited"]) == ("1000", "100", False)
    await call._call(fake_mesh, call.resolve("TweetService.GetTweet"), ["tweet_id=1000"], None)
    assert json.loads(capsys.readouterr().out)["tweet"]["text"] == "hello"


async def test_call_stream_prints_one_line_per_message(
    fake_mesh: MeshTarget, state: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    state.add_user("alice")
    state.add_user("ben")
    await call._call(fake_mesh, call.resolve("UserService.ScanUsers"), [], None)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["users"][0]["user"]["username"] for line in lines] == ["alice", "ben"]


async def test_call_me_resolves_to_acting_user(fake_mesh: MeshTarget, state: Any) -> None:
    state.add_user("alice")
    state.add_user("ben")
    await call._call(fake_mesh, call.resolve("GraphService.Follow"), ["user_id=me"], "@ben")
    assert state.follows == [(101, 101)]


async def test_call_refused_prints_reason(fake_mesh: MeshTarget) -> None:
    with pytest.raises(CommandError, match="NOT_FOUND: no such tweet") as refusal:
        await call._call(fake_mesh, call.resolve("TweetService.GetTweet"), ["tweet_id=5"], None)
    assert refusal.value.code == 1
    with pytest.raises(CommandError, match="NOT_FOUND: no such user"):
        await call._call(fake_mesh, call.resolve("TweetService.GetTweet"), ["tweet_id=5"], "nobody")


async def test_call_user_method_without_user_raises_command_error(fake_mesh: MeshTarget) -> None:
    with pytest.raises(CommandError, match="--as USER"):
        await call._call(fake_mesh, call.resolve("TweetService.CreateTweet"), [], None)


async def test_call_operator_method_without_token_raises_command_error(fake_mesh: MeshTarget) -> None:
    with pytest.raises(CommandError, match="no operator credentials"):
        await call._call(MeshTarget(fake_mesh.address), call.resolve("UserService.ScanUsers"), [], None)


async def test_call_only_prints_field_without_quotes(
    fake_mesh: MeshTarget, state: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    state.add_user("alice")
    method = call.resolve("UserService.GetUserByUsername")
    await call._call(fake_mesh, method, ["username=alice"], None, ("user", "id"))
    assert capsys.readouterr().out == "100\n"


@pytest.mark.parametrize("path", ["user.idd", "idd", "user.id.more"])
def test_call_only_unknown_field_raises_command_error(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["call", "UserService.GetUserByUsername", "username=alice", "--only", path]) == 2
    assert f"--only {path}: the response of GetUserByUsername has no such field" in capsys.readouterr().err
