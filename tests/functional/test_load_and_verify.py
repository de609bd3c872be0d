"""`roost load`, `roost verify` and the demo against a real mesh over gRPC."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from roost.fanout.v1 import fanout_service_pb2
from roost.identity.v1 import auth_service_pb2
from roost.search.v1 import search_service_pb2, search_service_pb2_grpc
from roost.tweet.v1 import tweet_service_pb2, tweet_service_pb2_grpc

from roost_cli.connection import MeshTarget
from roost_cli.load import command, edge_list
from roost_cli.load.demo import first_run as demo
from roost_cli.progress import Silent
from roost_cli.scans import scan_users
from roost_cli.verify import command as verify
from tests.conftest import SETTLE_WITHIN_S

pytestmark = pytest.mark.slow

MARGIN_S = 0.05
PEOPLE, EDGES, LINES = 30, 120, 80


@pytest.fixture
async def mesh(start_mesh: Callable[..., Awaitable[Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A mesh with an empty data directory; the mesh and the command use a short clock margin."""
    monkeypatch.setenv("ROOST_CLOCK_MARGIN_S", str(MARGIN_S))
    return await start_mesh(clock_margin_s=MARGIN_S)


@pytest.fixture
def target(mesh: Any) -> MeshTarget:
    return MeshTarget(f"127.0.0.1:{mesh.process.grpc_port}", mesh.process.operator_token)


async def load_files(target: MeshTarget) -> None:
    chance = random.Random(3)
    graph = edge_list.parse(f"{chance.randrange(PEOPLE)} {chance.randrange(PEOPLE)}" for _ in range(EDGES))
    usable, blank = command.tweet_lines("".join(f"tweet {number} #t\n" for number in range(LINES)).encode(), "t.txt")
    await command._load(target, graph, usable, blank, seed=1, concurrency=8)


async def test_load_twice_adds_nothing_and_homes_are_exact(
    target: MeshTarget, capsys: pytest.CaptureFixture[str]
) -> None:
    await load_files(target)
    assert f"{LINES} posted, 0 already there" in capsys.readouterr().out
    assert await verify.audit(target, Silent())
    # The home timelines were warm before the first tweet, so fan-out delivered all tweets.
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"warm: {PEOPLE} of {PEOPLE}",
        f"{PEOPLE} of {PEOPLE} timelines exact",
    ]
    await load_files(target)
    assert f"0 posted, {LINES} already there" in capsys.readouterr().out
    assert await verify.audit(target, Silent())


async def test_verify_undelivered_tweet_is_reported_missing(
    mesh: Any, target: MeshTarget, capsys: pytest.CaptureFixture[str]
) -> None:
    await load_files(target)
    await mesh.settled()
    await mesh.fanout.PauseFanout(fanout_service_pb2.PauseFanoutRequest())
    author = {user.user.username: user.user.id async for user in _users(mesh)}["user_0003"]
    tweet_id = await mesh.post(author, "not delivered")
    assert not await verify.audit(target, Silent())
    output = capsys.readouterr().out
    assert f"1 missing ({tweet_id})" in output
    await mesh.fanout.ResumeFanout(fanout_service_pb2.ResumeFanoutRequest())
    await mesh.settled()
    assert await verify.audit(target, Silent())


@pytest.mark.long("cluster")
async def test_demo_repeated_load_adds_nothing_and_login_works(mesh: Any, target: MeshTarget) -> None:
    account = await demo.load_once(mesh.process.channel, mesh.process.settings.data_dir)
    assert account is not None
    login = auth_service_pb2.LoginRequest(username=account.username, password=account.password)
    assert (await mesh.auth.Login(login)).user.username == account.username
    channel: grpc.aio.Channel = mesh.process.channel("operator")
    tweets = tweet_service_pb2_grpc.TweetServiceStub(channel)
    pages = [page async for page in tweets.ScanTweets(tweet_service_pb2.ScanTweetsRequest())]
    heads = [core.head for page in pages for core in page.cores]
    for field in ("reply_to_id", "retweet_of_id", "quote_of_id"):
        assert sum(bool(getattr(head, field)) for head in heads) > 20, field
    search = search_service_pb2_grpc.SearchServiceStub(channel)
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while not (await search.ListTrendingTags(search_service_pb2.ListTrendingTagsRequest())).tags:
            await asyncio.sleep(0.05)
    people = len([user async for user in _users(mesh)])
    assert await demo.load_once(mesh.process.channel, mesh.process.settings.data_dir) == account
    assert len([user async for user in _users(mesh)]) == people == len(demo.PEOPLE)
    assert await verify.audit(target, Silent())


@pytest.mark.long("cluster")
async def test_demo_interrupted_load_is_finished(mesh: Any) -> None:
    data_dir = mesh.process.settings.data_dir
    account = demo.DemoAccount(demo.PEOPLE[0][0], "the password it had")
    demo._write_marker(data_dir / demo.MARKER, account, complete=False)
    await demo._sign_up(mesh.process.channel(""), account, demo.demo_content().people[0])
    assert await demo.load_once(mesh.process.channel, data_dir) == account
    assert demo._is_complete(data_dir / demo.MARKER)
    assert len([user async for user in _users(mesh)]) == len(demo.PEOPLE)


async def test_demo_mesh_with_users_is_left_alone(mesh: Any) -> None:
    await mesh.people("somebody")
    assert await demo.load_once(mesh.process.channel, mesh.process.settings.data_dir) is None
    assert len([user async for user in _users(mesh)]) == 1


def _users(mesh: Any) -> Any:
    channel: grpc.aio.Channel = mesh.process.channel("operator")
    return scan_users(channel, ())
