"""Prints the tables of `roost bench`, and writes them into Markdown documents."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from roost_cli.exit_codes import FAULTS, CommandError

T = TypeVar("T")

# Width in characters of a table that is not printed on a terminal.
PLAIN_WIDTH = 160
BEGIN, END = "<!-- roost bench {} -->", "<!-- end of roost bench {} -->"


# Without slots, which Python 3.11 cannot combine with a frozen generic class.
@dataclass(frozen=True)
class Measure(Generic[T]):
    """A row of a table: its title, a function that returns the value of a round (None if the round has none), and the
    format of the value, such as ".2f". If `ratio` is true, another row follows with the value divided by that of the
    baseline."""

    title: str
    value: Callable[[T], float | None]
    form: str
    ratio: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """The maximum of a ratio in a table: the ratio of the row `measure` in the column `column`."""

    column: str
    measure: str
    most: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A table whose columns are servers and whose rows are measures: `lines`, header first, and the `ratios` to the
    baseline by column and measure."""

    lines: Sequence[Sequence[str]]
    ratios: Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Document:
    """A Markdown document that has the markers of all `tables`. It is checked when it is made, which is before the
    measurement: a measurement takes minutes and must not be lost because of a missing marker."""

    path: Path
    tables: frozenset[str]

    @classmethod
    def of(cls, path: Path | None, *tables: str) -> Document | None:
        """Returns the document at `path`, None if that is None. Raises CommandError if a marker of a table is
        missing."""
        if path is None:
            return None
        _check_markers(path.read_text(), tables)
        return cls(path, frozenset(tables))

    def insert(self, what: str, text: str) -> None:
        """Replaces the table `what`, one of `tables`, by `text`. Raises CommandError if its markers were removed
        meanwhile."""
        if what not in self.tables:
            raise ValueError(f"the markers of {what} were not checked before the measurement")
        self.path.write_text(inserted(self.path.read_text(), what, text))


@dataclass(frozen=True, slots=True)
class Output:
    """Where a table is written: always to stdout, and also into the Markdown document `markdown` if that is not None.
    If `ci` is true, a ratio above its limit is an error."""

    markdown: Document | None = None
    ci: bool = False

    def publish(self, what: str, note: str, found: Comparison, limits: Sequence[Limit] = ()) -> None:
        """Writes the note and the table `what`. Raises CommandError if `ci` is true and a ratio is above its limit."""
        publish(what, note, found.lines, self.markdown)
        if self.ci and (excesses := over(found, limits)):
            raise CommandError("\n".join(excesses), FAULTS)


def over(found: Comparison, limits: Sequence[Limit]) -> list[str]:
    """Returns a sentence for each ratio that is above its limit. A limit of a column that the table does not have is
    ignored."""
    return [
        f"{limit.column}: {limit.measure} is {ratio:.2f} times that of the baseline; the limit is {limit.most:g}"
        for limit in limits
        if (ratio := found.ratios.get((limit.column, limit.measure))) is not None and ratio > limit.most
    ]


def compare(cases: Mapping[str, Sequence[T]], measures: Sequence[Measure[T]], baseline: str) -> Comparison:
    """Returns a table with a column for each server in `cases`, which has the rounds by column title. A cell contains
    the median over the rounds, with the range in parentheses.

    `baseline` is the title of the baseline's column. A ratio is the median of the ratios of each round to the round of
    the baseline that followed it, because other load on the machine affects both. If the numbers of rounds differ, it
    is the ratio of the medians.
    """
    lines, ratios = [["", *cases]], {}
    for measure in measures:
        found = {name: _values(rounds, measure) for name, rounds in cases.items()}
        lines.append([measure.title, *(spread(values, measure.form) for values in found.values())])
        if measure.ratio:
            cells = []
            for name, values in found.items():
                quotients = _quotients(values, found[baseline])
                cells.append(spread(quotients, ".2f"))
                if quotients:
                    ratios[name, measure.title] = statistics.median(quotients)
            lines.append([f"{measure.title} ÷ {baseline.partition(',')[0]}", *cells])
    return Comparison(lines, ratios)


def _values(rounds: Sequence[T], measure: Measure[T]) -> list[float]:
    return [value for value in map(measure.value, rounds) if value is not None]


def _quotients(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    if not values or not baseline or not all(baseline):
        return []
    if len(values) != len(baseline):
        return [ratio(values, baseline)]
    return [value / base for value, base in zip(values, baseline, strict=True)]


def publish(what: str, note: str, lines: Sequence[Sequence[str]], markdown: Document | None) -> None:
    """Prints `note` and the table. If `markdown` is not None, also writes both into this document: they replace the
    text between the HTML comments BEGIN and END with the table's name `what`."""
    typer.echo(note)
    _print(lines)
    if markdown is not None:
        markdown.insert(what, f"{note}\n\n{as_markdown(lines)}")


def spread(values: Sequence[float], form: str) -> str:
    """Returns the median as text, with the lowest and the highest value in parentheses if they differ; "" if there are
    no values. `form` is the format of a number, such as ".2f"."""
    if not values:
        return ""
    median, low, high = (f"{value:{form}}" for value in (statistics.median(values), min(values), max(values)))
    return median if low == high else f"{median} ({low}–{high})"


def median(values: Sequence[float]) -> float:
    """Returns the median of the values. Raises ValueError if there are none."""
    return statistics.median(values)


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
    console = Console(highlight=False)
    if not console.is_terminal:
        # A file or a pipe does not limit the width.
        console.width = PLAIN_WIDTH
    console.print(table)


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """Returns the table in Markdown. `lines` are the rows, header first."""
    rule = ["---", *("---:" for _ in lines[0][1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def inserted(document: str, what: str, text: str) -> str:
    """Returns the document with the text between the HTML comments BEGIN and END of the table `what` replaced by
    `text`. Raises CommandError if the comments are missing."""
    _check_markers(document, [what])
    begin, end = BEGIN.format(what), END.format(what)
    before, _, rest = document.partition(begin)
    after = rest.partition(end)[2]
    return f"{before}{begin}\n{text}\n{end}{after}"


def _check_markers(document: str, tables: Sequence[str]) -> None:
    """Raises CommandError, with the comments to add, if the HTML comments BEGIN and END of a table are missing."""
    missing = [
        f"`{BEGIN.format(what)}` and `{END.format(what)}`"
        for what in tables
        if END.format(what) not in document.partition(BEGIN.format(what))[2]
    ]
    if missing:
        raise CommandError(f"the document lacks the markers of the table: add {', '.join(missing)}")
