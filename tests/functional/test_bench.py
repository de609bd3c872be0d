"""`roost bench` against a mesh in a process of its own whose users follow one another."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from roost.tweet.v1 import (
    reply_service_pb2,
    reply_service_pb2_grpc,
    tweet_service_pb2,
    tweet_service_pb2_grpc,
)

from roost_cli import connection
from roost_cli.bench import table
from roost_cli.commands import run
from roost_cli.drill.single_process_mesh import MeshLauncher
from roost_cli.load import command, edge_list
from roost_cli.scans import scan_users
from roost_cli.tokens import TokenCache

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not on PATH (apt-get install wrk)")
pytestmark = [
    pytest.mark.slow,
    # The mesh runs in its own process, always on embedded stores.
    pytest.mark.embedded,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="CPU time is read from /proc"),
]


@dataclass
class Bench:
    """A loaded mesh, whose home timelines nobody has read since its start, and a document for tables."""

    document: Path
    capsys: pytest.CaptureFixture[str]

    async def run(self, workload: str, *options: str, rounds: bool = True) -> tuple[dict[str, list[str]], str]:
        """Runs `roost bench` with a document; `rounds` is whether the workload has rounds. Returns the cells of the table
        by the name of their row, the column titles as the row "", and the output."""
        self.document.write_text(f"{table.BEGIN.format(workload)}\n{table.END.format(workload)}\n")
        length = ["--rounds", "1", "--seconds", "1"] if rounds else []
        argv = ["bench", workload, "--markdown", str(self.document), *length, *options]
        assert await asyncio.to_thread(run, argv) == 0
        lines = [line.split("|")[1:-1] for line in self.document.read_text().splitlines() if line.startswith("|")]
        cells = {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines if "---" not in line[1]}
        return cells, self.capsys.readouterr().out


def figure(cell: str) -> float:
    """Returns the median, without the range in parentheses that may follow it."""
    return float(cell.split("(")[0].replace(",", ""))


@pytest_asyncio.fixture
async def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Bench]:
    monkeypatch.setenv("ROOST_CLOCK_MARGIN_S", "0.05")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    launcher = MeshLauncher(tmp_path)
    child = await launcher.start()
    try:
        graph = edge_list.parse(["1 2", "2 3", "3 1"])
        usable, blank = command.tweet_lines(b"one\nsecond\nthird\nfourth\n", "t.txt")
        await command._load(child.target, graph, usable, blank, seed=1, concurrency=4)
        async with connection.connect(child.target) as channels:
            actors = TokenCache(channels[0], child.target.operator())
            users = [user.user.id async for user in scan_users(channels[0], child.target.operator())]
            await actors.admit(users)
            stubs = (tweet_service_pb2_grpc.TweetServiceStub, reply_service_pb2_grpc.ReplyServiceStub)
            tweets, replies = (stub(channels[0]) for stub in stubs)
            me = await actors.act_as(users[0])
            posted = await tweets.CreateTweet(tweet_service_pb2.CreateTweetRequest(text="first"), metadata=me)
            reply = reply_service_pb2.CreateReplyRequest(tweet_id=posted.tweet.id, text="answer")
            await replies.CreateReply(reply, metadata=me)
        # After a start all home timelines are cold.
        await child.stop()
        child = await launcher.start()
        yield Bench(tmp_path / "benchmarks.md", capsys)
    finally:
        await child.stop()


@needs_wrk
async def test_bench_home_measures_cold_unchanged_and_changing_pages(bench: Bench) -> None:
    cells, output = await bench.run("home", "--connections", "2", "--posts", "10")
    assert cells[""] == [
        "cold homes",
        "unchanged",
        "1 post : 100 reads",
        "the same, open loop, load 0.7",
        "10 posts/s",
        "bare uvicorn",
    ]
    assert "3 readers, 6.0 tweets a page" in output
    assert "(of them 1.0 replies, 0.0 retweets, 0.0 quotes, 0.0 liked)" in output
    for name in ("reads/s", "CPU µs a read", "CPU µs a read ÷ bare uvicorn"):
        assert all(figure(cell) > 0 for cell in cells[name])
    sizes = [figure(cell) for cell in cells["bytes an answer"]]
    # The bare server sends a recorded page of about the mean size of all pages.
    assert abs(sizes[1] - sizes[-1]) < 100
    posts = cells["posts/s"]
    assert [bool(cell) for cell in posts] == [False, False, True, True, True, False]
    # The posts are paced by the reads.
    assert figure(posts[2]) == pytest.approx(figure(cells["reads/s"][2]) / 100, abs=1.1)


async def test_bench_posts_measures_delivery_to_all_followers(bench: Bench) -> None:
    cells, output = await bench.run("posts", "--callers", "4")
    assert cells[""] == ["Roost", "bare uvicorn, one response"]
    for name in ("posts/s", "p50 ms", "p99 ms", "CPU µs a post"):
        assert all(figure(cell) > 0 for cell in cells[name])
    # Each user has two followers, whose home timelines are warm.
    assert cells["home timelines a post"] == ["2.0", ""]
    assert figure(cells["delivery p99 ms"][0]) >= figure(cells["delivery p50 ms"][0]) >= 0
    assert "4 callers, closed loop" in output


@needs_wrk
@pytest.mark.parametrize("workload", ["thread", "search"])
async def test_bench_reads_compare_with_bare_server(bench: Bench, workload: str) -> None:
    cells, _ = await bench.run(workload, "--connections", "2")
    assert cells[""] == ["Roost", "bare uvicorn"]
    assert figure(cells["CPU µs a read ÷ bare uvicorn"][0]) > 1
    assert [figure(cell) > 0 for cell in cells["bytes an answer"]] == [True, True]


async def test_bench_stages_sum_up_to_whole_request(bench: Bench) -> None:
    await bench.run("stages", "--operations", "20", rounds=False)
    lines = [line.split("|")[1:-1] for line in bench.document.read_text().splitlines() if line.startswith("|")]
    ms = {line[0].strip(): float(line[2]) for line in lines[2:]}
    posts = [value for title, value in ms.items() if title.startswith("post: ")]
    assert ms["post, whole"] == pytest.approx(sum(posts), abs=0.02)
    assert ms["read, whole"] > ms["read: hydration and visibility"] > 0


async def test_bench_login_compares_with_bcrypt(bench: Bench) -> None:
    cells, output = await bench.run("login", "--callers", "2")
    assert cells[""] == ["Roost", "bcrypt alone"]
    assert all(figure(cell) > 0 for cell in cells["CPU ms a log-in"])
    # The accounts of the measurement are deactivated, so they do not take part in later ones.
    _, output = await bench.run("delivery")
    assert "3 readers" in output


async def test_bench_delivery_measures_until_followers_see_tweet(bench: Bench) -> None:
    cells, _ = await bench.run("delivery", "--posts", "10")
    assert cells[""] == ["idle", "10 posts/s"]
    for column in (0, 1):
        assert figure(cells["tweets"][column]) > 0
        percentiles = [figure(cells[f"seen after the 201, {name} ms"][column]) for name in ("p50", "p95", "p99")]
        assert 0 < percentiles[0] <= percentiles[1] <= percentiles[2]


async def test_bench_start_measures_memory_of_own_meshes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_CLOCK_MARGIN_S", "0.05")
    document = tmp_path / "benchmarks.md"
    document.write_text(f"{table.BEGIN.format('start')}\n{table.END.format('start')}\n")
    argv = ["bench", "start", "--rounds", "1", "--users", "20", "--markdown", str(document)]
    assert await asyncio.to_thread(run, argv) == 0
    lines = [line.split("|")[1:-1] for line in document.read_text().splitlines() if line.startswith("|")]
    cells = {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}
    assert all(figure(cell) > 0 for name in ("start, s", "memory when ready, MB") for cell in cells[name])
    assert cells["memory a warm home, kB"][0] == ""
    assert figure(cells["memory a warm home, kB"][1]) > 0
