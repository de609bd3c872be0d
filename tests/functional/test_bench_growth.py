"""`roost bench growth` with the smallest sizes: every tweet reaches all followers, and every home timeline is full."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from roost_cli import progress
from roost_cli.bench.growth import series
from roost_cli.bench.growth.mesh import Cost
from roost_cli.commands import run

pytestmark = [
    pytest.mark.slow,
    # The mesh is always on embedded stores.
    pytest.mark.embedded,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="CPU time is read from /proc"),
]
SIZES = {
    "followers": ((2, 5), {"post and fan-out"}),
    "length": ((3, 30), {"page made anew", "home built"}),
    "celebrities": ((1, 3), {"page made anew"}),
    "users": ((50, 60), {"post and fan-out to 40", "page made anew", "home built", "profile by username"}),
    "tweets": ((1_000, 1_100), {"post and fan-out to 40", "page made anew", "home built", "profile by username"}),
}


@pytest.mark.parametrize("name", SIZES)
async def test_series_measures_every_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "REPEATS", 2)
    monkeypatch.setattr(series, "FEW_REPEATS", 2)
    sizes, titles = SIZES[name]
    shown = progress.Silent()
    found: list[Mapping[str, Cost]] = [costs async for costs in series.SERIES[name].measure(sizes, shown)]
    assert [set(costs) for costs in found] == [titles] * len(sizes)
    assert all(spent.cpu_ms > 0 and spent.ms > 0 for costs in found for spent in costs.values())


async def test_bench_growth_writes_plot(tmp_path: Path) -> None:
    argv = ["bench", "growth", "celebrities", "--limit", "3", "--plots", str(tmp_path)]
    assert await asyncio.to_thread(run, argv) == 0
    assert "exponent" in (tmp_path / "celebrities.svg").read_text()
    assert await asyncio.to_thread(run, ["bench", "growth", "nonsense"]) != 0
