"""Tests the Markdown tables of `roost bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost_cli.bench import table
from roost_cli.exit_codes import CommandError


def test_as_markdown_formats_table() -> None:
    assert table.as_markdown([["", "a"], ["b", "1"]]) == "|  | a |\n| --- | ---: |\n| b | 1 |"


def test_inserted_replaces_text_between_markers() -> None:
    empty = "before\n<!-- roost bench home -->\n<!-- end of roost bench home -->\nafter\n"
    once = table.inserted(empty, "home", "one")
    assert once == "before\n<!-- roost bench home -->\none\n<!-- end of roost bench home -->\nafter\n"
    assert table.inserted(once, "home", "two") == once.replace("one", "two")
    with pytest.raises(CommandError, match="lacks the markers"):
        table.inserted("no markers", "home", "one")


def measured(cases: dict[str, list[float | None]], *, ratio: bool = False) -> table.Comparison:
    return table.compare(cases, [table.Measure("CPU µs", lambda value: value, ".1f", ratio=ratio)], "bare, one page")


def test_compare_without_values_leaves_cell_empty() -> None:
    found = measured({"mesh": [1.0, 3.0, 2.0], "bare, one page": [None]})
    assert found.lines == [["", "mesh", "bare, one page"], ["CPU µs", "2.0 (1.0–3.0)", ""]]
    assert measured({"mesh": [1.0], "bare, one page": [None]}, ratio=True).ratios == {}


def test_compare_divides_each_round_by_round_of_baseline() -> None:
    # The machine was half as fast in the last two rounds: the ratio is the same in all.
    found = measured({"mesh": [4.0, 8.0, 8.0], "bare, one page": [2.0, 4.0, 4.0]}, ratio=True)
    assert found.lines[2] == ["CPU µs ÷ bare", "2.00", "1.00"]
    assert found.ratios["mesh", "CPU µs"] == 2.0
    # A column with another number of rounds.
    assert measured({"cold": [9.0], "bare, one page": [2.0, 3.0, 4.0]}, ratio=True).ratios["cold", "CPU µs"] == 3.0


def test_publish_ci_raises_error_only_above_limit() -> None:
    found = measured({"mesh": [4.0], "bare, one page": [2.0]}, ratio=True)
    for limit in (table.Limit("mesh", "CPU µs", 2.0), table.Limit("absent", "CPU µs", 0.1)):
        table.Output(ci=True).publish("x", "note", found, [limit])
    too_low = [table.Limit("mesh", "CPU µs", 1.9)]
    table.Output(ci=False).publish("x", "note", found, too_low)
    with pytest.raises(CommandError, match=r"mesh: CPU µs is 2\.00 times that of the baseline; the limit is 1\.9"):
        table.Output(ci=True).publish("x", "note", found, too_low)


def test_document_without_markers_is_refused_before_measurement(tmp_path: Path) -> None:
    path = tmp_path / "figures.md"
    path.write_text(f"{table.BEGIN.format('home')}\n{table.END.format('home')}\n")
    document = table.Document.of(path, "home")
    assert document is not None
    with pytest.raises(ValueError, match="not checked"):
        document.insert("posts", "text")
    with pytest.raises(CommandError, match="add `<!-- roost bench posts -->` and `<!-- end of roost bench posts -->`"):
        table.Document.of(path, "home", "posts")
    assert table.Document.of(None, "posts") is None
