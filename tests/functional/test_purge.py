"""Deleted tweets are purged from the store and its files after the grace period."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from roost.tweet.v1 import tweet_service_pb2 as pb

from tests.cluster import backend
from tests.conftest import SETTLE_WITHIN_S, Mesh, MeshFactory

FIRST, SECOND = "a text that nobody is to read again", "its second version, no better"


async def kept(mesh: Mesh) -> set[int]:
    pages = [page async for page in mesh.operator_tweets.ScanTweets(pb.ScanTweetsRequest())]
    return {core.head.id for page in pages for core in page.cores}


def files_with(folder: Path, text: str) -> list[str]:
    return [path.name for path in folder.rglob("tweet.db*") if text.encode() in path.read_bytes()]


async def test_purge_after_grace_removes_tweet_from_store_and_files(start_mesh: MeshFactory, tmp_path: Path) -> None:
    data = tmp_path / "data"
    mesh = await start_mesh(data_dir=data, delete_grace_s=1)
    (author,) = await mesh.people("ada")
    gone, stays = await mesh.post(author, FIRST), await mesh.post(author, "a text that stays")
    with mesh.as_user(author):
        await mesh.tweets.UpdateTweet(pb.UpdateTweetRequest(tweet_id=gone, text=SECOND))
        assert backend.name == "cluster" or files_with(data, FIRST)
        # Before the call, because a busy machine may take longer to answer than the grace period.
        deleted_at = time.monotonic()
        await mesh.tweets.DeleteTweet(pb.DeleteTweetRequest(tweet_id=gone))
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while gone in await kept(mesh) or files_with(data, FIRST) or files_with(data, SECOND):
            await asyncio.sleep(0.1)
    # Not before its time: whole seconds are compared.
    assert time.monotonic() - deleted_at > 0.5
    assert stays in await kept(mesh)
