"""Tests the table of `roost bench fanout`, and that both designs write all entries."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost_cli import progress
from roost_cli.bench import fanout
from roost_cli.bench.fanout import CASES, Case, FanoutBench, Pass
from roost_cli.exit_codes import CommandError
from services.platform.config import Settings
from services.platform.redis.client import Redis
from services.timeline.store.redis.encoding import list_key
from tests import redis_servers


def test_rows_contain_parts_and_ratio() -> None:
    found = {CASES[0]: ([Pass(1, 2), Pass(3, 2), Pass(2, 2)], [Pass(10, 10), Pass(10, 10), Pass(10, 10)])}
    table = fanout.rows(found, 10.0, 120.0)
    assert table[0] == ["an entry", "Roost", "textbook", "textbook ÷ Roost", "wanted"]
    assert table[1] == ["200 followers: CPU µs, client", "2.00 (1.00–3.00)", "10.00", "5.0", ""]
    assert table[3] == ["200 followers: CPU µs, both", "4.00 (3.00–5.00)", "20.00", "5.0", "≥ 5"]
    assert table[-1] == ["bytes, marker included", "10.0", "120.0", "12.0", "≥ 10"]


async def test_bench_both_designs_write_every_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "READERS", 40)
    monkeypatch.setattr(fanout, "ENTRIES_A_ROUND", 300)
    with redis_servers.server(tmp_path) as server:
        ours = await Redis.open(Settings(redis_url=server.url, redis_timeout_s=5))
        work = FanoutBench(ours, server.client)
        await work.fill(progress.Silent())
        case = Case("all", 40, 3, 1)
        for write in (work.ours, work.theirs):
            done = await work.measure(case, write)
            assert done.client_us > 0
            assert done.server_us > 0
        reader = fanout.FIRST_READER + 7
        newest = [int.from_bytes(i, "big") for i in server.client.lrange(list_key(reader), 0, 5)]
        assert newest == sorted(newest, reverse=True)
        assert len({*newest}) == 6
        assert server.client.zcard(f"timeline:{reader}") == 800
        our_bytes, their_bytes = work.bytes_each()
        assert our_bytes * fanout.WANTED_BYTES < their_bytes
        await ours.close()


def test_run_non_empty_database_is_left_alone(tmp_path: Path) -> None:
    with redis_servers.server(tmp_path) as server:
        server.client.set("precious", "1")
        with pytest.raises(CommandError, match="is not empty"):
            fanout.run(1, server.url, None)
        assert server.client.get("precious") == b"1"
