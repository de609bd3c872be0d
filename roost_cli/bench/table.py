"""Prints the tables of `roost bench`, and writes them into Markdown documents."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from roost_cli.exit_codes import CommandError

BEGIN, END = "<!-- roost bench {} -->", "<!-- end of roost bench {} -->"


def publish(what: str, note: str, lines: Sequence[Sequence[str]], markdown: Path | None) -> None:
    """Prints `note` and the table. If `markdown` is not None, also writes both into this document: they replace the
    text between the HTML comments BEGIN and END with the table's name `what`. Raises CommandError if the comments are
    missing."""
    typer.echo(note)
    _print(lines)
    if markdown is not None:
        markdown.write_text(inserted(markdown.read_text(), what, f"{note}\n\n{as_markdown(lines)}"))


def spread(values: Sequence[float], form: str) -> str:
    """Returns the median as text, with the lowest and the highest value in parentheses if they differ. `form` is the
    format of a number, such as ".2f"."""
    median, low, high = (f"{value:{form}}" for value in (statistics.median(values), min(values), max(values)))
    return median if low == high else f"{median} ({low}–{high})"


def ratio(mine: Sequence[float], other: Sequence[float]) -> float:
    """Returns the median of `mine` divided by the median of `other`; NaN if that is 0."""
    divisor = statistics.median(other)
    return statistics.median(mine) / divisor if divisor else float("nan")


def _print(lines: Sequence[Sequence[str]]) -> None:
    table = Table()
    for number, title in enumerate(lines[0]):
        table.add_column(title, justify="right" if number else "left")
    for line in lines[1:]:
        table.add_row(*line)
    Console(highlight=False).print(table)


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Returns the table in Markdown. `lines` are the rows, header first."""
    rule = ["---", *("---:" for _ in lines[0][1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def inserted(document: str, what: str, text: str) -> str:
    """Returns the document with the text between the HTML comments BEGIN and END of the table `what` replaced by
    `text`. Raises CommandError if the comments are missing."""
    begin, end = BEGIN.format(what), END.format(what)
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise CommandError(f"the document lacks the markers of the table: add `{begin}` and `{end}`")
    return f"{before}{begin}\n{text}\n{end}{after}"
