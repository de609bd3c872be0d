"""Computes percentiles of measured values."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the smallest value that at least `percent` percent of the values do not exceed (nearest rank). Raises
    ValueError if there are no values, or if `percent` is not above 0 and at most 100."""
    if not values or not 0 < percent <= 100:
        raise ValueError("a percentile needs values, and a percent above 0 and at most 100")
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]
