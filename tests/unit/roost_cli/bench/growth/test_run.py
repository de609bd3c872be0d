"""Tests the tables of growth, and which exponents are defects."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from roost_cli import progress
from roost_cli.bench import table
from roost_cli.bench.growth import run
from roost_cli.bench.growth.mesh import Cost
from roost_cli.bench.growth.series import SERIES, Series
from roost_cli.exit_codes import CommandError


def series(exponent: float, most: float | None) -> Series:
    async def measure(sizes: Sequence[int], shown: progress.Progress) -> AsyncIterator[Mapping[str, Cost]]:
        for size in sizes:
            yield {"post": Cost(size**exponent, 2 * size**exponent)}

    return Series("followers", "followers", (10, 100), (1_000,), most, measure)


def test_sizes_of_contains_at_least_smallest() -> None:
    one = series(1, None)
    assert run.sizes_of(one, full=False, limit=None) == [10, 100]
    assert run.sizes_of(one, full=True, limit=None) == [10, 100, 1_000]
    assert run.sizes_of(one, full=True, limit=100) == [10, 100]
    assert run.sizes_of(one, full=True, limit=1) == [10]


def test_rows_contain_costs_and_exponent() -> None:
    points = [{"post": Cost(1.0, 2.0)}, {"post": Cost(10.0, 20.0)}]
    lines = run.rows([10, 100], points, run.curves_of([10, 100], points))
    assert lines == [
        ["", "10", "100", "exponent", "of the last step"],
        ["post", "1.00 (2.00)", "10.00 (20.00)", "1.00", "1.00"],
    ]


def test_curves_of_single_size_has_no_exponent() -> None:
    assert math.isnan(run.curves_of([10], [{"post": Cost(0.0, 0.0)}])["post"].line.exponent)


@pytest.mark.parametrize(("exponent", "most", "fails"), [(1.0, 1.0, False), (1.2, 1.0, True), (1.2, None, False)])
async def test_run_ci_fails_above_exponent_limit(
    tmp_path: Path, exponent: float, most: float | None, fails: bool
) -> None:
    document = tmp_path / "growth.md"
    document.write_text(f"{table.BEGIN.format('growth followers')}\n{table.END.format('growth followers')}\n")

    markdown = table.Document.of(document, "growth followers")

    async def measured() -> None:
        await run.run([series(exponent, most)], full=True, limit=None, plots=tmp_path, markdown=markdown, ci=True)

    if fails:
        with pytest.raises(CommandError, match=r"grows with exponent 1\.20 in the number of followers; the limit is 1"):
            await measured()
    else:
        await measured()
    assert "| 10 | 100 | 1,000 | exponent | of the last step |" in document.read_text()
    assert (tmp_path / "followers.svg").read_text().startswith("<svg")


def test_steep_looks_at_last_step_alone() -> None:
    # A fixed cost hides the growth at the small sizes.
    sizes = [10, 100, 1_000, 10_000]
    curves = run.curves_of(sizes, [{"post": Cost(cpu_ms, 1.0)} for cpu_ms in (10.0, 10.0, 10.0, 200.0)])
    assert curves["post"].line.exponent < 0.5
    assert len(run.steep(series(1, 1.0), curves)) == 1


def test_limits_are_those_of_defects() -> None:
    assert {name: one.most for name, one in SERIES.items() if one.most is not None} == {
        "followers": 1.0,
        "users": 0.1,
        "tweets": 0.1,
    }
