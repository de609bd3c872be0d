"""Tests the figures of starts and memory."""

from __future__ import annotations

from roost_cli.bench import start, table
from roost_cli.bench.start import StartRound


def test_compare_divides_growth_of_memory_by_users_and_homes() -> None:
    cases = {
        start.EMPTY: [StartRound(0, 1.0, 100_000_000)],
        "1,000 users": [StartRound(1_000, 2.0, 102_000_000, 122_000_000)],
    }
    found = table.compare(cases, start.measures(100_000_000), start.EMPTY)
    rows = {line[0]: line[1:] for line in found.lines}
    assert rows["start, s"] == ["1.00", "2.00"]
    assert rows["memory when ready, MB"] == ["100", "102"]
    assert rows["memory when all homes are warm, MB"] == ["", "122"]
    assert rows["memory a user, kB"] == ["", "2.00"]
    assert rows["memory a warm home, kB"] == ["", "20.0"]
