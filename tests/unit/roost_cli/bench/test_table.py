"""Tests the Markdown tables of `roost bench`."""

from __future__ import annotations

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
