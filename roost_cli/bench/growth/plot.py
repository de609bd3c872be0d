"""Draws costs against sizes as an SVG document, both axes logarithmic.

The document is written here and not by a plotting library: four lines and some texts need no dependency of 50 MB, and
the file changes only if the figures do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from roost_cli.bench.growth.fit import Fit

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 50
# Colours that people with colour blindness can tell apart (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of one cost, and the line through them."""

    title: str
    sizes: Sequence[float]
    costs: Sequence[float]
    line: Fit


@dataclass(frozen=True, slots=True)
class _Axis:
    """A logarithmic axis from `low` to `high`, powers of ten, drawn from pixel `start` to pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Returns the pixel of a value."""
        share = math.log10(value / self.low) / math.log10(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Returns the powers of ten from `low` to `high`."""
        return [10.0**power for power in range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)]


def draw(title: str, x_title: str, y_title: str, curves: Sequence[Curve]) -> str:
    """Returns an SVG document with the points and lines of the curves, and a legend with their exponents. All values
    must be above 0."""
    x_axis = _axis([size for curve in curves for size in curve.sizes], LEFT, WIDTH - RIGHT)
    on_lines = [curve.line.at(size) for curve in curves for size in curve.sizes if math.isfinite(curve.line.exponent)]
    y_axis = _axis([*(cost for curve in curves for cost in curve.costs), *on_lines], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 20, title, size=14),
        *_grid(x_axis, y_axis),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_title, anchor="middle"),
        f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>',
    ]
    for number, curve in enumerate(curves):
        parts += _curve(curve, COLOURS[number % len(COLOURS)], TOP + 14 + 34 * number, x_axis, y_axis)
    return "\n".join([*parts, "</svg>", ""])


def _axis(values: Sequence[float], start: float, end: float) -> _Axis:
    low = 10.0 ** math.floor(math.log10(min(values)))
    high = 10.0 ** math.ceil(math.log10(max(values)))
    return _Axis(low, max(high, low * 10), start, end)


def _grid(x_axis: _Axis, y_axis: _Axis) -> list[str]:
    parts = []
    for tick in x_axis.ticks():
        x = x_axis.at(tick)
        parts.append(_line(x, y_axis.start, x, y_axis.end, "#dddddd"))
        parts.append(_text(x, y_axis.start + 16, _number(tick), anchor="middle"))
    for tick in y_axis.ticks():
        y = y_axis.at(tick)
        parts.append(_line(x_axis.start, y, x_axis.end, y, "#dddddd"))
        parts.append(_text(x_axis.start - 6, y + 4, _number(tick), anchor="end"))
    return parts


def _curve(curve: Curve, colour: str, legend_y: float, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    ends = [(x_axis.at(size), y_axis.at(curve.line.at(size))) for size in (min(curve.sizes), max(curve.sizes))]
    points = zip(curve.sizes, curve.costs, strict=True)
    legend_x = WIDTH - RIGHT + 14
    # A single point has no line.
    line = [_line(*ends[0], *ends[1], colour)] if math.isfinite(curve.line.exponent) else []
    return [
        *line,
        *(f'<circle cx="{x_axis.at(x):.1f}" cy="{y_axis.at(y):.1f}" r="4" fill="{colour}"/>' for x, y in points),
        f'<circle cx="{legend_x}" cy="{legend_y - 4}" r="4" fill="{colour}"/>',
        _text(legend_x + 10, legend_y, curve.title),
        _text(legend_x + 10, legend_y + 14, f"exponent {curve.line.exponent:.2f}"),
    ]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="1.5"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _number(value: float) -> str:
    """Returns a power of ten as short text, such as "0.01", "10", "100k" or "1M"."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"
