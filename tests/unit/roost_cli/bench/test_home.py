"""Tests the figures of `roost bench home` and its refusal to measure invalid runs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from roost_cli.bench import home, reads, table, wrk
from roost_cli.exit_codes import CommandError


def figures(requests: int = 1_000, *, refused: int = 0, broken: int = 0, p50_ms: float = 2.0) -> wrk.Figures:
    return wrk.Figures(requests, 2.0, requests * 500, p50_ms, 10.0, refused, broken)


def round_of(count: int = 1_000, *, cpu_s: float = 0.2, posts_s: Sequence[float] = ()) -> reads.Round:
    return reads.Round(count, 2.0, 2.0, 10.0, count * 500, cpu_s, posts_s)


def test_round_computes_figures_per_read() -> None:
    one = round_of(posts_s=[0.001, 0.003])
    assert (one.per_second, one.cpu_us, one.post_p99_ms) == (500.0, 200.0, 3.0)
    assert round_of().post_p99_ms is None


def test_compare_rounds_contains_ratio_of_each_column() -> None:
    cases = {
        home.UNCHANGED: [round_of(), round_of(2_000), round_of(4_000)],
        home.PACED: [round_of(cpu_s=0.4, posts_s=[0.001] * 10)] * 3,
        reads.BARE: [round_of(4_000, cpu_s=0.4)] * 3,
    }
    found = table.compare(cases, reads.MEASURES, reads.BARE)
    rows = {line[0]: line[1:] for line in found.lines}
    assert rows["reads/s"] == ["1,000 (500–2,000)", "500", "2,000"]
    assert rows["CPU µs a read"] == ["100 (50–200)", "400", "100"]
    assert rows["CPU µs a read ÷ bare uvicorn"] == ["1.00 (0.50–2.00)", "4.00", "1.00"]
    assert rows["bytes an answer"] == ["500", "500", "500"]
    assert rows["posts/s"] == ["", "5.0", ""]
    assert table.over(found, home.LIMITS) == [
        "1 post : 100 reads: CPU µs a read is 4.00 times that of the baseline; the limit is 3.5"
    ]


@pytest.mark.parametrize("seen", [figures(refused=1), figures(broken=1), figures(0)])
def test_check_failed_requests_raise_command_error(seen: wrk.Figures) -> None:
    with pytest.raises(CommandError, match="are not valid"):
        reads.check_run("mesh", seen)
    reads.check_run("mesh", figures())
