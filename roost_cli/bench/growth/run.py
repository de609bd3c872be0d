"""Runs the series of `roost bench growth`, and writes their tables and plots."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from roost_cli import progress
from roost_cli.bench import cpu, table
from roost_cli.bench.growth.fit import Fit, fit, last_exponent
from roost_cli.bench.growth.mesh import Cost
from roost_cli.bench.growth.plot import Curve, draw
from roost_cli.bench.growth.series import Series
from roost_cli.exit_codes import FAULTS, CommandError

TABLE = "growth {}"
# Measured exponents may exceed their limit by this much: the exponent of a step of ten, if one of its costs is wrong by a
# quarter.
TOLERANCE = 0.1
# The smallest CPU time that can be drawn, in milliseconds: a clock that has not advanced would be minus infinity.
LEAST_MS = 0.001


async def run(
    series: Sequence[Series],
    *,
    full: bool,
    limit: int | None,
    plots: Path | None,
    markdown: table.Document | None,
    ci: bool,
) -> None:
    """Measures the series and prints a table of each. With `full` also measures the sizes that take minutes; `limit`
    leaves out larger sizes (None: none).

    `plots` is a folder for SVG documents (None: writes none), `markdown` a document whose tables are replaced (None:
    none). Raises CommandError with `ci` if an exponent is above its limit.
    """
    shown = progress.for_stream()
    excesses: list[str] = []
    for one in series:
        sizes = sizes_of(one, full=full, limit=limit)
        points: list[Mapping[str, Cost]] = []
        with cpu.Bystanders(()) as bystanders:
            async for found in one.measure(sizes, shown):
                said = "; ".join(f"{title} {spent.cpu_ms:,.2f} ms" for title, spent in found.items())
                shown.say(f"{sizes[len(points)]:,} {one.x_title}: {said}")
                points.append(found)
        curves = curves_of(sizes, points)
        excesses += steep(one, curves)
        note = (
            f"CPU ms (and ms until done) of an operation by the number of {one.x_title}, medians; one process without "
            f"HTTP; {cpu.processor()}; Python {platform.python_version()}.{bystanders.warning()}"
        )
        table.publish(TABLE.format(one.name), note, rows(sizes, points, curves), markdown)
        if plots is not None:
            document = draw(f"CPU by {one.x_title}", one.x_title, "CPU ms", list(curves.values()))
            (plots / f"{one.name}.svg").write_text(document)
    if ci and excesses:
        raise CommandError("\n".join(excesses), FAULTS)
    for sentence in excesses:
        shown.say(sentence)


def sizes_of(series: Series, *, full: bool, limit: int | None) -> list[int]:
    """Returns the sizes to measure: all up to `limit`, but at least the smallest."""
    sizes = [*series.sizes, *(series.full_sizes if full else ())]
    return [size for size in sizes if limit is None or size <= limit] or sizes[:1]


def curves_of(sizes: Sequence[int], points: Sequence[Mapping[str, Cost]]) -> dict[str, Curve]:
    """Returns a curve of the CPU time for each operation, by title. `points` are the costs for each size."""
    curves = {}
    for title in points[0]:
        costs = [max(point[title].cpu_ms, LEAST_MS) for point in points]
        line = fit(sizes, costs) if len(sizes) > 1 else Fit(float("nan"), costs[0])
        curves[title] = Curve(title, sizes, costs, line)
    return curves


def steep(series: Series, curves: Mapping[str, Curve]) -> list[str]:
    """Returns a sentence for each curve whose exponent, over all points or over the last step, is above the limit of the
    series and TOLERANCE."""
    if series.most is None:
        return []
    found = {
        title: max(curve.line.exponent, last_exponent(curve.sizes, curve.costs)) for title, curve in curves.items()
    }
    return [
        f"{title}: the CPU time grows with exponent {exponent:.2f} in the number of {series.x_title}; "
        f"the limit is {series.most:g}"
        for title, exponent in found.items()
        if exponent > series.most + TOLERANCE
    ]


def rows(sizes: Sequence[int], points: Sequence[Mapping[str, Cost]], curves: Mapping[str, Curve]) -> list[list[str]]:
    """Returns the rows of a table, header first: the costs for each size, and the exponents of the CPU time."""
    lines = [["", *(f"{size:,}" for size in sizes), "exponent", "of the last step"]]
    for title, curve in curves.items():
        cells = [f"{point[title].cpu_ms:,.2f} ({point[title].ms:,.2f})" for point in points]
        last = last_exponent(curve.sizes, curve.costs)
        lines.append([title, *cells, f"{curve.line.exponent:.2f}", f"{last:.2f}"])
    return lines
