"""Fits the exponent of a cost that grows as a power of a size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fit:
    """The least-squares line through points in log-log scale: cost = factor × size ** exponent."""

    exponent: float
    factor: float

    def at(self, size: float) -> float:
        """Returns the cost that the line has at this size."""
        return self.factor * math.pow(size, self.exponent)


def fit(sizes: Sequence[float], costs: Sequence[float]) -> Fit:
    """Returns the line through the points. All sizes and costs must be above 0. Raises ValueError if there are fewer
    than two different sizes."""
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    if not spread:
        raise ValueError("an exponent needs at least two different sizes")
    exponent = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    return Fit(exponent, math.exp(mean_y - exponent * mean_x))


def last_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Returns the exponent between the last two points; NaN if there is only one. At small sizes a fixed cost hides the
    growth, so the exponent of all points is smaller."""
    return fit(sizes[-2:], costs[-2:]).exponent if len(sizes) > 1 else math.nan
