"""Tests the fit of exponents."""

from __future__ import annotations

import pytest

from roost_cli.bench.growth.fit import fit


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_fit_finds_exponent_of_power(exponent: float) -> None:
    sizes = [10, 100, 1_000]
    line = fit(sizes, [3 * size**exponent for size in sizes])
    assert line.exponent == pytest.approx(exponent)
    assert line.at(50) == pytest.approx(3 * 50**exponent)


def test_fit_is_least_squares_line() -> None:
    # By hand: log10 of the sizes is 0, 1, 2, of the costs 0, 2, 1; so the exponent is ½.
    assert fit([1, 10, 100], [1, 100, 10]).exponent == pytest.approx(0.5)


def test_fit_one_size_raises_value_error() -> None:
    with pytest.raises(ValueError, match="two different sizes"):
        fit([10, 10], [1, 2])
